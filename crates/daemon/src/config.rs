//! The configuration file, and what is in force after it, the environment and the defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use banger_model::{
    Bytes, DriverChoice, Error, ImageName, KernelName, Layer, Mib, NetworkMode, Result, parse_duration,
};
use serde::Deserialize;

/// `config.toml`. Every key is optional; an unknown one is an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    vm_defaults: VmDefaults,
    boot: BootSection,
    security: SecuritySection,
    images: BTreeMap<ImageName, ImageSection>,
    warm: WarmSection,
    qemu: Option<PathBuf>,
    firecracker: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VmDefaults {
    vcpu: Option<u32>,
    memory: Option<String>,
    disk_size: Option<String>,
    image: Option<String>,
    kernel: Option<String>,
    driver: Option<String>,
    network: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BootSection {
    timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SecuritySection {
    require: Option<Vec<String>>,
}

/// `[images.NAME]`: what VMs of one image get.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ImageSection {
    driver: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct WarmSection {
    enabled: Option<bool>,
    budget: Option<String>,
    spares: Option<u32>,
}

/// Where an effective value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Built in, or computed from this host.
    Builtin,
    /// The configuration file.
    Config,
    /// An environment variable.
    Environment,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Builtin => "builtin",
            Self::Config => "config",
            Self::Environment => "environment",
        })
    }
}

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(crate) struct Setting<T> {
    /// The value.
    pub value: T,
    /// Its origin.
    pub origin: Origin,
}

/// What is in force.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// The file that `BANGER_CONFIG` names, when it is not there. Not an error: scripts name where one could be.
    pub absent: Option<PathBuf>,
    /// Virtual CPUs of a VM.
    pub vcpu: Setting<u32>,
    /// Memory of a VM.
    pub memory: Setting<Mib>,
    /// System disk of a VM.
    pub disk: Setting<Bytes>,
    /// Image.
    pub image: Setting<ImageName>,
    /// Kernel.
    pub kernel: Setting<KernelName>,
    /// Driver.
    pub driver: Setting<DriverChoice>,
    /// Network.
    pub network: Setting<NetworkMode>,
    /// How long a guest has until its agent answers; twice at most, since a silent boot is tried
    /// once more.
    pub boot_timeout: Setting<Duration>,
    /// Layers of the cage without which nothing is started.
    pub require: Setting<Vec<Layer>>,
    /// Whether new VMs go on from templates, and templates are made.
    pub warm: Setting<bool>,
    /// What templates that were made by themselves may take on the disk.
    pub warm_budget: Setting<Bytes>,
    /// How many machines wait, restored and halted, for a VM.
    pub warm_spares: Setting<u32>,
    /// The QEMU binary; absent: `qemu-system-x86_64` on PATH.
    pub qemu: Setting<Option<PathBuf>>,
    /// The Firecracker binary; absent: `firecracker` on PATH.
    pub firecracker: Setting<Option<PathBuf>>,
    /// Drivers of the VMs of some images.
    pub image_drivers: BTreeMap<ImageName, DriverChoice>,
}

/// What this host has, for defaults.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// CPUs this process may use.
    pub cpus: u32,
    /// Physical memory.
    pub memory: Mib,
}

impl Host {
    /// Asks the kernel.
    #[must_use]
    pub(crate) fn measure() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1));
        let info = rustix::system::sysinfo();
        #[expect(clippy::useless_conversion, reason = "the field's width differs between architectures")]
        let bytes = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
        Self { cpus, memory: Mib(u32::try_from(bytes >> 20).unwrap_or(u32::MAX)) }
    }
}

impl Config {
    /// Reads the file that the environment names, or the usual one when it exists.
    ///
    /// # Errors
    /// `invalid_argument` for a file that is unreadable, or wrong in any key.
    pub(crate) fn load(env: impl Fn(&str) -> Option<OsString>, host: Host) -> Result<Self> {
        let named = env("BANGER_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
        let usual = || {
            let base = env("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
            base.or_else(|| env("HOME").map(|h| PathBuf::from(h).join(".config")))
                .map(|b| b.join("banger/config.toml"))
        };
        let path = named.clone().or_else(usual).map(|p| if p.is_dir() { p.join("config.toml") } else { p });
        let mut found = None;
        let file = match &path {
            None => File::default(),
            Some(path) => match std::fs::read_to_string(path) {
                Ok(text) => {
                    found = Some(path.clone());
                    parse(&text).map_err(|e| {
                        Error::invalid(format!("{}: {}", path.display(), e.message))
                            .with_hint("correct that line, or remove it: every key is optional")
                    })?
                }
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => File::default(),
                Err(e) => return Err(Error::invalid(format!("{} cannot be read: {e}", path.display()))),
            },
        };
        let absent = path.filter(|_| named.is_some_and(|named| !named.is_dir()) && found.is_none());
        Ok(Self { absent, ..Self::merge(file, found, &env, host)? })
    }

    fn merge(
        file: File,
        found: Option<PathBuf>,
        env: &impl Fn(&str) -> Option<OsString>,
        host: Host,
    ) -> Result<Self> {
        let defaults = file.vm_defaults;
        // A quarter of the CPUs from two (if there are two) to four, an eighth of the memory up to eight GiB: several
        // VMs fit beside the user's own work, and a build in a guest has a second CPU, as has its boot. One where vCPUs
        // take turns: see `create`.
        let vcpu = (host.cpus / 4).clamp(host.cpus.clamp(1, 2), 4);
        let memory = Mib((host.memory.0 / 8).clamp(1024, 8192) / 256 * 256);
        let program = |variable, from_file| match (env(variable).filter(|v| !v.is_empty()), from_file) {
            (Some(value), _) => Setting { value: Some(value.into()), origin: Origin::Environment },
            (None, Some(value)) => Setting { value: Some(value), origin: Origin::Config },
            (None, None) => Setting { value: None, origin: Origin::Builtin },
        };
        let mut image_drivers = BTreeMap::new();
        for (image, section) in file.images {
            let key = format!("images.{image}.driver");
            if let Some(driver) = section.driver {
                let driver = setting(&key, Some(driver), |s| s.parse(), DriverChoice::Auto)?.value;
                image_drivers.insert(image, driver);
            }
        }
        let warm = match env("BANGER_WARM").filter(|v| !v.is_empty()) {
            Some(value) => Setting { value: switch(&value)?, origin: Origin::Environment },
            None => setting("warm.enabled", file.warm.enabled, Ok, true)?,
        };
        Ok(Self {
            file: found,
            absent: None,
            vcpu: setting("vm_defaults.vcpu", defaults.vcpu, Ok, vcpu)?,
            memory: setting("vm_defaults.memory", defaults.memory, |s| s.parse(), memory)?,
            disk: setting("vm_defaults.disk_size", defaults.disk_size, |s| s.parse(), Bytes(8 << 30))?,
            image: setting("vm_defaults.image", defaults.image, |s| s.parse(), "debian".parse()?)?,
            kernel: setting("vm_defaults.kernel", defaults.kernel, |s| s.parse(), "debian-cloud".parse()?)?,
            driver: setting("vm_defaults.driver", defaults.driver, |s| s.parse(), DriverChoice::Auto)?,
            network: setting("vm_defaults.network", defaults.network, |s| s.parse(), NetworkMode::User)?,
            boot_timeout: setting(
                "boot.timeout",
                file.boot.timeout,
                |s| parse_duration(&s),
                Duration::from_secs(60),
            )?,
            require: setting(
                "security.require",
                file.security.require,
                |layers| layers.iter().map(|layer| layer.parse()).collect(),
                Vec::new(),
            )?,
            warm,
            warm_budget: setting("warm.budget", file.warm.budget, |s| s.parse(), Bytes(8 << 30))?,
            warm_spares: setting("warm.spares", file.warm.spares, few, 0)?,
            qemu: program("BANGER_QEMU", file.qemu),
            firecracker: program("BANGER_FIRECRACKER", file.firecracker),
            image_drivers,
        })
    }
}

impl Config {
    /// The driver of a new VM of this image, unless a flag says another.
    pub(crate) fn driver_of(&self, image: &ImageName) -> DriverChoice {
        self.image_drivers.get(image).copied().unwrap_or(self.driver.value)
    }
}

/// Each spare is a machine of its own.
fn few(spares: u32) -> Result<u32> {
    const MOST: u32 = 64;
    if spares <= MOST { Ok(spares) } else { Err(Error::invalid(format!("{spares} are more than {MOST}"))) }
}

/// The value of `BANGER_WARM`.
fn switch(value: &std::ffi::OsStr) -> Result<bool> {
    match value.to_str() {
        Some("1" | "on" | "true" | "yes") => Ok(true),
        Some("0" | "off" | "false" | "no") => Ok(false),
        _ => Err(Error::invalid(format!("BANGER_WARM is '{}'", value.display()))
            .with_hint("set it to 'on' or 'off'")),
    }
}

fn parse(text: &str) -> Result<File> {
    toml::from_str(text).map_err(|e| Error::invalid(e.to_string().trim().replace('\n', " ")))
}

fn setting<S, T>(
    key: &str,
    given: Option<S>,
    parse: impl Fn(S) -> Result<T>,
    builtin: T,
) -> Result<Setting<T>> {
    match given {
        None => Ok(Setting { value: builtin, origin: Origin::Builtin }),
        Some(text) => match parse(text) {
            Ok(value) => Ok(Setting { value, origin: Origin::Config }),
            Err(e) => Err(Error { message: format!("config key {key}: {}", e.message), ..e }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host { cpus: 2, memory: Mib(24_000) };

    fn load(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(|key| (key == "BANGER_CONFIG").then(|| path.clone().into()), HOST)
    }

    #[test]
    fn without_a_file_the_host_decides() {
        let config = Config::load(|_| None, HOST).unwrap();
        assert_eq!((config.vcpu.value, config.memory.value), (2, Mib(2816)));
        assert_eq!(config.memory.origin, Origin::Builtin);
        assert_eq!(config.file, None);
    }

    #[test]
    fn a_file_that_is_named_and_absent_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let absent = |key: &str, path: &std::path::Path| {
            Config::load(|asked| (asked == key).then(|| path.to_owned().into()), HOST).unwrap().absent
        };
        let file = dir.path().join("config.toml");
        assert_eq!(absent("BANGER_CONFIG", &file), Some(file));
        assert_eq!(absent("BANGER_CONFIG", dir.path()), None, "a directory need not have one");
        assert_eq!(absent("XDG_CONFIG_HOME", dir.path()), None);
    }

    #[test]
    fn the_file_wins_over_the_host_and_the_environment_over_the_file() {
        let config = load("qemu = '/opt/q'\n[vm_defaults]\nmemory = '4G'\n[boot]\ntimeout = '5s'").unwrap();
        assert_eq!((config.memory.value, config.memory.origin), (Mib(4096), Origin::Config));
        assert_eq!(config.boot_timeout.value, Duration::from_secs(5));
        assert_eq!(config.qemu.value, Some(PathBuf::from("/opt/q")));
        let strict = load("[security]\nrequire = ['namespaces', 'landlock']").unwrap();
        assert_eq!(strict.require.value, [Layer::Namespaces, Layer::Landlock]);
        let env = |key: &str| (key == "BANGER_QEMU").then(|| OsString::from("/env/q"));
        assert_eq!(Config::load(env, HOST).unwrap().qemu.origin, Origin::Environment);
        let cold = load("[warm]\nenabled = false\nbudget = '1G'").unwrap();
        assert_eq!((cold.warm.value, cold.warm_budget.value), (false, Bytes(1 << 30)));
        assert_eq!((cold.warm_spares.value, load("[warm]\nspares = 3").unwrap().warm_spares.value), (0, 3));
        let env = |value: &'static str| move |key: &str| (key == "BANGER_WARM").then(|| value.into());
        let warm = Config::load(env("off"), HOST).unwrap().warm;
        assert_eq!((warm.value, warm.origin), (false, Origin::Environment));
        assert!(Config::load(env("perhaps"), HOST).unwrap_err().message.contains("BANGER_WARM"));
    }

    #[test]
    fn an_image_can_have_a_driver_of_its_own() {
        let text =
            "firecracker = '/opt/f'\n[vm_defaults]\ndriver = 'qemu'\n[images.alpine]\ndriver = 'firecracker'";
        let config = load(text).unwrap();
        assert_eq!(config.firecracker.value, Some(PathBuf::from("/opt/f")));
        let driver = |image: &str| config.driver_of(&image.parse().unwrap());
        assert_eq!((driver("alpine"), driver("debian")), (DriverChoice::Firecracker, DriverChoice::Qemu));
    }

    #[test]
    fn a_wrong_file_names_the_key() {
        for (text, needle) in [
            ("[vm_defaults]\nmemroy = '1G'", "memroy"),
            ("[vm_defaults]\nmemory = 'lots'", "vm_defaults.memory"),
            ("[boot]\ntimeout = 'soon'", "boot.timeout"),
            ("[security]\nrequire = ['moat']", "security.require"),
            ("[images.alpine]\ndriver = 'vbox'", "images.alpine.driver"),
            ("[images.alpine]\nsize = 1", "size"),
            ("[warm]\nbudget = 'all'", "warm.budget"),
            ("[warm]\nenabled = 'perhaps'", "enabled"),
            ("[warm]\nspares = 1000", "warm.spares"),
            ("=", "TOML"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.message.contains(needle), "{text}: {error}");
        }
    }
}
