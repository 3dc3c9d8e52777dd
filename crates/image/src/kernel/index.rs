//! What a kernel says about its own modules: which there are, what each of them needs, and which ones an alias names.
//! Owns the reading of modules.dep, modules.builtin, modules.builtin.modinfo, modules.softdep and modules.alias
//! (depmod(8)). Must never read the host's modprobe.d: it configures another kernel.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::error::Result;
use crate::error::ImageError;

/// The tables of one kernel. Names of modules in it have underscores only.
#[derive(Debug, Default)]
pub(super) struct Index {
    modules: HashMap<String, Module>,
    builtin: HashSet<String>,
    soft: HashMap<String, Soft>,
    aliases: Vec<Alias>,
    builtin_aliases: Vec<Alias>,
}

/// A module that is a file.
#[derive(Debug)]
pub(super) struct Module {
    /// Relative to the directory with the tables.
    pub(super) path: String,
    /// The paths of all modules that it cannot be loaded without, in the order to load them.
    pub(super) needs: Vec<String>,
}

/// Names and aliases of what should be loaded with a module, see `softdep` in modprobe.d(5).
#[derive(Debug, Default)]
pub(super) struct Soft {
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
}

/// A pattern as of fnmatch(3), and the module that it stands for.
#[derive(Debug)]
struct Alias {
    pattern: String,
    module: String,
}

impl Index {
    /// Reads the tables in `dir` (`lib/modules/<release>`).
    ///
    /// # Errors
    /// When modules.dep or modules.builtin cannot be read. The others may be missing, as for modprobe: Linux before 5.2
    /// makes no modules.builtin.modinfo.
    pub(super) fn read(dir: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = dir.join(name);
            let bytes = std::fs::read(&path).map_err(ImageError::io("read", &path))?;
            Ok::<_, ImageError>(String::from_utf8_lossy(&bytes).into_owned())
        };
        let read_if_there = |name: &str| {
            if dir.join(name).exists() { read(name) } else { Ok(String::new()) }
        };
        Ok(Self {
            modules: modules(&read("modules.dep")?),
            builtin: read("modules.builtin")?.lines().map(module_name).collect(),
            soft: soft(&read_if_there("modules.softdep")?),
            aliases: aliases(&read_if_there("modules.alias")?),
            builtin_aliases: builtin_aliases(&read_if_there("modules.builtin.modinfo")?),
        })
    }

    /// Whether the kernel itself has this module.
    pub(super) fn is_builtin(&self, module: &str) -> bool {
        self.builtin.contains(module)
    }

    /// A module by its exact name.
    pub(super) fn module(&self, name: &str) -> Option<&Module> {
        self.modules.get(name)
    }

    /// What should be loaded with a module.
    pub(super) fn soft(&self, module: &str) -> Option<&Soft> {
        self.soft.get(module)
    }

    /// The modules to load for a name or an alias, in the order of the table: all that match, as for modprobe.
    /// There are none when nothing matches, and when something built in does. In the second case modprobe would load
    /// modules that match as well, which are faster versions of what is there; a boot does not need them.
    pub(super) fn stands_for(&self, name: &str) -> Vec<&str> {
        let name = normal(name);
        if let Some((module, _)) = self.modules.get_key_value(&name) {
            return vec![module];
        }
        if self.is_builtin(&name) || self.builtin_aliases.iter().any(|alias| alias.matches(&name)) {
            return Vec::new();
        }
        let matching = self.aliases.iter().filter(|alias| alias.matches(&name));
        matching.filter_map(|alias| Some(self.modules.get_key_value(&alias.module)?.0.as_str())).collect()
    }
}

impl Alias {
    fn new(pattern: &str, module: &str) -> Self {
        Self { pattern: normal(pattern), module: normal(module) }
    }

    fn matches(&self, name: &str) -> bool {
        gix_glob::wildmatch(self.pattern.as_str().into(), name.into(), gix_glob::wildmatch::Mode::empty())
    }
}

/// `PATH: PATH...` of modules.dep, which lists all that is needed, also by what is needed; the first to load is the last.
fn modules(dep: &str) -> HashMap<String, Module> {
    let lines = dep.lines().filter_map(|line| line.split_once(':'));
    let module = |(path, needs): (&str, &str)| {
        let needs = needs.split_ascii_whitespace().rev().map(str::to_owned).collect();
        (module_name(path), Module { path: path.to_owned(), needs })
    };
    lines.map(module).collect()
}

/// `softdep MODULE pre: NAME... post: NAME...`. A name before `pre:` or `post:` means nothing, as for modprobe. A module
/// with several lines needs what all of them say, while modprobe takes its first line only.
fn soft(text: &str) -> HashMap<String, Soft> {
    let mut all: HashMap<String, Soft> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("softdep"), Some(module)) = (words.next(), words.next()) else { continue };
        let soft = all.entry(normal(module)).or_default();
        let mut list = None;
        for word in words {
            match (word, &mut list) {
                ("pre:", _) => list = Some(&mut soft.before),
                ("post:", _) => list = Some(&mut soft.after),
                (name, Some(list)) => list.push(name.to_owned()),
                (_, None) => {}
            }
        }
    }
    all
}

/// `alias PATTERN MODULE` of modules.alias.
fn aliases(text: &str) -> Vec<Alias> {
    let alias = |line: &str| {
        let (pattern, module) = line.strip_prefix("alias ")?.rsplit_once(' ')?;
        Some(Alias::new(pattern, module))
    };
    text.lines().filter_map(alias).collect()
}

/// `MODULE.alias=PATTERN` of modules.builtin.modinfo, which has a NUL after each entry.
fn builtin_aliases(modinfo: &str) -> Vec<Alias> {
    let alias = |entry: &str| {
        let (module, field) = entry.split_once('.')?;
        Some(Alias::new(field.strip_prefix("alias=")?, module))
    };
    modinfo.split('\0').filter_map(alias).collect()
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module virtio_rng.
pub(super) fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Dashes and underscores mean the same, but for a dash in brackets, which makes a range.
fn normal(name: &str) -> String {
    let mut in_brackets = false;
    let same = |c: char| {
        in_brackets = (in_brackets || c == '[') && c != ']';
        if c == '-' && !in_brackets { '_' } else { c }
    };
    name.chars().map(same).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(files: &[(&str, &str)]) -> Index {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("modules.dep", ""), ("modules.builtin", "")].iter().chain(files) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Index::read(dir.path()).unwrap()
    }

    #[test]
    fn an_alias_names_all_modules_that_match_it() {
        let index = index(&[
            (
                "modules.dep",
                "a/crc32c-intel.ko:\na/crc32c_generic.ko.xz:\na/leds-gpio.ko:\na/led_range.ko:\n",
            ),
            (
                "modules.alias",
                "# Aliases extracted from modules themselves.\nalias crypto-crc32c crc32c_intel\n\
                 alias cpu:type:x86,ven*fam*mod*:feature:*0094* crc32c_intel\nalias crypto-crc32c crc32c_generic\n\
                 alias crypto-crc32c gone\nalias platform:leds-* leds_gpio\nalias led[a-c]? led_range\n",
            ),
        ]);
        assert_eq!(index.stands_for("crypto-crc32c"), ["crc32c_intel", "crc32c_generic"]);
        assert_eq!(index.stands_for("crypto_crc32c"), ["crc32c_intel", "crc32c_generic"]);
        // A name of a module comes before aliases, with dashes as with underscores
        assert_eq!(index.stands_for("crc32c-generic"), ["crc32c_generic"]);
        assert_eq!(index.stands_for("platform:leds-gpio"), ["leds_gpio"]);
        assert_eq!(index.stands_for("ledb1"), ["led_range"]);
        for nothing in ["led-1", "ledb", "crypto-crc32", "crc32c", "cpu:type:x86"] {
            assert_eq!(index.stands_for(nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn what_is_built_in_satisfies_its_name_and_its_aliases() {
        let index = index(&[
            ("modules.dep", "a/crc32c-intel.ko:\n"),
            ("modules.builtin", "kernel/crypto/crc32c_generic.ko\n"),
            ("modules.builtin.modinfo", "crc32c_generic.license=GPL\0crc32c_generic.alias=crypto-crc32c\0"),
            ("modules.alias", "alias crypto-crc32c crc32c_intel\nalias crc32c crc32c_intel\n"),
        ]);
        assert!(index.is_builtin("crc32c_generic"));
        assert_eq!(index.stands_for("crc32c-generic"), [""; 0]);
        assert_eq!(index.stands_for("crypto-crc32c"), [""; 0]);
        assert_eq!(index.stands_for("crc32c"), ["crc32c_intel"], "this alias of it is not built in");
    }

    #[test]
    fn soft_dependencies_of_all_lines_of_a_module_count() {
        let index = index(&[(
            "modules.softdep",
            "# Soft dependencies extracted from modules themselves.\nsoftdep btrfs pre: blake2b-256\n\
             softdep btrfs post: b pre: sha256 c\nsoftdep snd-x pre: y\nsoftdep cifs gcm\n",
        )]);
        let soft = index.soft("btrfs").unwrap();
        assert_eq!(
            (&soft.before[..], &soft.after[..]),
            (&["blake2b-256", "sha256", "c"].map(String::from)[..], &["b".to_owned()][..])
        );
        assert_eq!(index.soft("snd_x").unwrap().before, ["y"]);
        assert_eq!(index.soft("cifs").unwrap().before, [""; 0], "modprobe ignores it as well");
        assert!(index.soft("ext4").is_none());
    }

    #[test]
    fn a_kernel_without_its_main_tables_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("modules.dep"), "").unwrap();
        assert!(Index::read(dir.path()).unwrap_err().to_string().contains("modules.builtin"));
    }
}
