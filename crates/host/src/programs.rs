//! The programs that banger runs: where each is, and what to type when it is missing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use banger_model::Error;
use rustix::fs::Access;

use crate::Distribution;

const TABLE: &str = include_str!("../programs.tsv");
/// Where administrators' programs are. An ordinary user's PATH leaves them out.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What a row of the table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A program.
    Program,
    /// A library of the C compiler.
    Library,
    /// A file that is at one of several paths.
    File,
}

/// What a program is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Starting VMs and copying repositories.
    Run,
    /// Building and importing images.
    Image,
    /// Pulling and importing kernels.
    Kernel,
    /// Building banger.
    Build,
    /// Testing banger.
    Test,
}

/// A row of the table.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name; a file's paths, separated by `|`.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// What it is needed for.
    pub uses: Vec<Use>,
    /// The packages of Debian, Fedora, Arch Linux and openSUSE.
    packages: [Option<&'static str>; 4],
    /// The option that prints its version, and the oldest version that is known to work.
    pub oldest: Option<(&'static str, &'static str)>,
    /// Completes "it is needed for ...".
    pub purpose: &'static str,
}

/// A program that a host does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is not installed{}", needed_for(.name))]
pub struct Missing {
    /// Its name.
    pub name: String,
}

impl Missing {
    /// What to type.
    #[must_use]
    pub fn hint(&self) -> String {
        hint(&self.name, Distribution::of_this_host())
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::unavailable(missing.to_string()).with_hint(missing.hint())
    }
}

/// Programs of the table that a host does not have.
#[derive(Debug, Clone, thiserror::Error)]
#[error("this host cannot make what VMs boot from: {}", listed(.missing))]
pub struct SeveralMissing {
    missing: Vec<&'static Program>,
}

impl SeveralMissing {
    /// What to type: one command that installs all, or the way for a host whose distribution lacks one of them.
    fn hint(&self, distribution: Option<Distribution>) -> String {
        let packages = |of| self.missing.iter().map(|row| row.package(of)).collect::<Option<BTreeSet<_>>>();
        if let Some(of) = distribution
            && let Some(packages) = packages(of)
        {
            return of.install(&packages.into_iter().collect::<Vec<_>>().join(" "));
        }
        let lacks = |of| self.missing.iter().any(|row| row.uses.contains(&of));
        let ways = [
            (Use::Image, "'banger image import NAME FILE' takes a root file system (tar or squashfs)"),
            (Use::Kernel, "'banger kernel import NAME DIR' takes a directory with vmlinuz and lib/modules"),
        ];
        let ways: Vec<&str> = ways.into_iter().filter(|(of, _)| lacks(*of)).map(|(_, way)| way).collect();
        format!("bring it from elsewhere: {}", ways.join("; "))
    }
}

impl From<SeveralMissing> for Error {
    fn from(missing: SeveralMissing) -> Self {
        let hint = missing.hint(Distribution::of_this_host());
        Self::unavailable(missing.to_string()).with_hint(hint)
    }
}

fn listed(missing: &[&Program]) -> String {
    let sentences = missing.iter().map(|row| format!("{} is not installed, for {}", row.name, row.purpose));
    sentences.collect::<Vec<_>>().join("; ")
}

/// All rows.
#[must_use]
pub fn all() -> &'static [Program] {
    static ALL: LazyLock<Vec<Program>> = LazyLock::new(|| rows(TABLE).filter_map(parse).collect());
    &ALL
}

/// A program's row.
#[must_use]
pub fn get(name: &str) -> Option<&'static Program> {
    all().iter().find(|program| program.name == name)
}

/// Finds a program in PATH, or where administrators' programs are.
///
/// # Errors
/// [`Missing`] when it is in neither.
pub fn find(name: &str) -> Result<PathBuf, Missing> {
    find_in(name, std::env::var_os("PATH").as_deref())
}

/// Finds a program in `search_path`, a value of PATH, or where administrators' programs are.
///
/// # Errors
/// [`Missing`] when it is in neither.
pub fn find_in(name: &str, search_path: Option<&OsStr>) -> Result<PathBuf, Missing> {
    let dirs = search_path.into_iter().flat_map(std::env::split_paths);
    dirs.chain(SBIN.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_absolute() && is_program(file))
        .ok_or_else(|| Missing { name: name.to_owned() })
}

/// Checks that all programs for some uses are there.
///
/// # Errors
/// All that are missing.
pub fn require(uses: &[Use]) -> Result<(), SeveralMissing> {
    let wanted =
        all().iter().filter(|row| row.kind == Kind::Program && row.uses.iter().any(|of| uses.contains(of)));
    let missing: Vec<&Program> = wanted.filter(|row| find(row.name).is_err()).collect();
    if missing.is_empty() { Ok(()) } else { Err(SeveralMissing { missing }) }
}

/// A command that runs a program of the table, found by [`find`].
///
/// # Errors
/// [`Missing`] when it is not installed.
pub fn command(name: &str) -> Result<Command, Missing> {
    find(name).map(Command::new)
}

/// Whether it is a file that this process may run.
#[must_use]
pub fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, Access::EXEC_OK).is_ok()
}

/// What to type to get a program on this host.
#[must_use]
pub fn install_hint(name: &str) -> String {
    hint(name, Distribution::of_this_host())
}

fn hint(name: &str, distribution: Option<Distribution>) -> String {
    let Some(program) = get(name) else { return format!("install the package that has {name}") };
    let package = |of| program.package(of);
    match distribution.map(|of| (of, package(of))) {
        Some((of, Some(package))) => of.install(package),
        _ if program.uses.contains(&Use::Image) && package(Distribution::Fedora).is_none() => {
            "this host cannot build images; use one that was made elsewhere: 'banger image import NAME FILE'"
                .to_owned()
        }
        _ => match package(Distribution::Debian) {
            Some(debian) => format!("install the package that has {name}; Debian calls it {debian}"),
            None => format!("install {name}"),
        },
    }
}

fn needed_for(name: &str) -> String {
    get(name).map(|program| format!(": it is needed for {}", program.purpose)).unwrap_or_default()
}

impl Program {
    /// The package that has it.
    #[must_use]
    pub fn package(&self, distribution: Distribution) -> Option<&'static str> {
        let [debian, fedora, arch, opensuse] = self.packages;
        match distribution {
            Distribution::Debian => debian,
            Distribution::Fedora => fedora,
            Distribution::Arch => arch,
            Distribution::OpenSuse => opensuse,
        }
    }

    /// The version that an installed program prints, if it is older than the oldest that is known to work. Runs it.
    #[must_use]
    pub fn too_old(&self, file: &Path) -> Option<String> {
        let (option, oldest) = self.oldest?;
        let run = Command::new(file).arg(option).stdin(Stdio::null()).env("LC_ALL", "C").output().ok()?;
        let said = [run.stdout, run.stderr].concat();
        let version = version_in(&String::from_utf8_lossy(&said))?;
        (numbers(&version) < numbers(oldest)).then_some(version)
    }
}

fn rows(table: &'static str) -> impl Iterator<Item = &'static str> {
    table.lines().filter(|line| !line.starts_with('#'))
}

fn parse(row: &'static str) -> Option<Program> {
    let columns: Vec<&'static str> = row.split('\t').collect();
    let [name, kind, uses, debian, fedora, arch, opensuse, version, oldest, purpose] = columns[..] else {
        return None;
    };
    let given = |text: &'static str| (text != "-").then_some(text);
    let kind = match kind {
        "program" => Kind::Program,
        "library" => Kind::Library,
        "file" => Kind::File,
        _ => return None,
    };
    let uses = uses.split(',').map(|word| match word {
        "run" => Some(Use::Run),
        "image" => Some(Use::Image),
        "kernel" => Some(Use::Kernel),
        "build" => Some(Use::Build),
        "test" => Some(Use::Test),
        _ => None,
    });
    Some(Program {
        name,
        kind,
        uses: uses.collect::<Option<_>>()?,
        packages: [debian, fedora, arch, opensuse].map(given),
        oldest: given(version).zip(given(oldest)),
        purpose,
    })
}

/// The first word that begins with a number and a dot, as far as it is numbers.
fn version_in(said: &str) -> Option<String> {
    let number = |word: &&str| {
        let digits = word.bytes().take_while(u8::is_ascii_digit).count();
        digits > 0 && word.as_bytes().get(digits) == Some(&b'.')
    };
    let word = said.split(|c: char| c.is_whitespace() || c == '(').find(number)?;
    let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
    word.get(..end).map(|version| version.trim_end_matches('.').to_owned())
}

fn numbers(version: &str) -> Vec<u32> {
    version.split('.').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_understood_and_no_name_comes_twice() {
        assert!(all().len() > 30);
        for row in rows(TABLE) {
            let program = parse(row).unwrap_or_else(|| panic!("not understood: {row}"));
            assert_eq!(all().iter().filter(|other| other.name == program.name).count(), 1, "{row}");
            let installed_otherwise = program.name == "cargo";
            assert!(program.package(Distribution::Debian).is_some() || installed_otherwise, "{row}");
            assert!(!program.purpose.is_empty() && !program.purpose.ends_with('.'), "{row}");
        }
    }

    #[test]
    fn a_missing_program_is_told_with_its_purpose_and_this_distributions_package() {
        let missing = Missing { name: "depmod".to_owned() };
        assert_eq!(
            missing.to_string(),
            "depmod is not installed: it is needed for listing a kernel's modules"
        );
        let typed = |name, of| hint(name, of);
        assert_eq!(typed("depmod", Some(Distribution::Debian)), "sudo apt-get install kmod");
        assert_eq!(typed("newuidmap", Some(Distribution::Fedora)), "sudo dnf install shadow-utils");
        assert_eq!(typed("qemu-system-x86_64", Some(Distribution::OpenSuse)), "sudo zypper install qemu-x86");
        assert!(typed("mmdebstrap", Some(Distribution::Arch)).contains("banger image import"));
        assert!(typed("depmod", None).contains("Debian calls it kmod"));
        assert!(typed("no-such-thing", None).contains("no-such-thing"));
    }

    #[test]
    fn all_that_a_host_lacks_is_said_at_once_with_the_way_that_is_open_to_it() {
        let lacks = |names: &[&str]| SeveralMissing {
            missing: names.iter().map(|name| get(name).unwrap()).collect(),
        };
        let both = lacks(&["mmdebstrap", "mksquashfs", "sqfstar", "dpkg-deb"]);
        assert!(
            both.to_string().contains("mmdebstrap is not installed, for building Debian images"),
            "{both}"
        );
        assert_eq!(
            both.hint(Some(Distribution::Debian)),
            "sudo apt-get install dpkg mmdebstrap squashfs-tools"
        );
        // Fedora has no mmdebstrap: nothing that could be typed would help.
        let hint = both.hint(Some(Distribution::Fedora));
        assert!(hint.contains("banger image import") && hint.contains("banger kernel import"), "{hint}");
        let hint = lacks(&["dpkg-deb"]).hint(None);
        assert!(hint.contains("banger kernel import") && !hint.contains("image import"), "{hint}");
        require(&[]).unwrap();
    }

    #[test]
    fn a_program_is_found_in_the_path_and_in_sbin() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, "").unwrap();
        let path = Some(dir.path().as_os_str());
        // A file that cannot be run is no program.
        assert!(find_in("tool", path).is_err());
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("tool", path).unwrap(), file);
        // Relative parts of a path depend on where a program runs: they do not count.
        assert!(find_in("tool", Some(OsStr::new("."))).is_err());
        assert!(find_in("mkfs.ext4", None).is_ok());
    }

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (said, version) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n", "7.2.22"),
            ("git version 2.39.5\n", "2.39.5"),
            ("mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0", "1.47.0"),
            ("mksquashfs version 4.5.1 (2022/03/17)", "4.5.1"),
            ("apt 2.6.1 (amd64)", "2.6.1"),
            ("mmdebstrap 1.3.5\n", "1.3.5"),
            ("git version 2.50.1.windows-x", "2.50.1"),
        ] {
            assert_eq!(version_in(said).as_deref(), Some(version), "{said}");
        }
        assert_eq!(version_in("passt unknown version\nCopyright"), None);
        assert!(numbers("4.5") < numbers("4.5.1") && numbers("2.9") < numbers("2.34"));
    }
}
