//! Which family of Linux distributions this host is of, and how a package is installed there.

use std::fs;

/// A family with packages of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    /// Debian, Ubuntu and what is made of them.
    Debian,
    /// Fedora and its relatives.
    Fedora,
    /// Arch Linux and its relatives.
    Arch,
    /// openSUSE.
    OpenSuse,
}

impl Distribution {
    /// This host's; `None` for one that is not known.
    #[must_use]
    pub fn of_this_host() -> Option<Self> {
        let read = |path| fs::read_to_string(path).ok();
        Self::of(&read("/etc/os-release").or_else(|| read("/usr/lib/os-release"))?)
    }

    /// By the `ID` and `ID_LIKE` of an os-release(5).
    fn of(os_release: &str) -> Option<Self> {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\''])
        };
        let mut words = value("ID").split(' ').chain(value("ID_LIKE").split(' '));
        words.find_map(|word| match word {
            "debian" | "ubuntu" => Some(Self::Debian),
            "fedora" | "rhel" | "centos" => Some(Self::Fedora),
            "arch" => Some(Self::Arch),
            "opensuse" | "suse" => Some(Self::OpenSuse),
            other if other.starts_with("opensuse-") => Some(Self::OpenSuse),
            _ => None,
        })
    }

    /// The command that installs these packages.
    #[must_use]
    pub fn install(self, packages: &str) -> String {
        let command = match self {
            Self::Debian => "apt-get install",
            Self::Fedora => "dnf install",
            Self::Arch => "pacman -S",
            Self::OpenSuse => "zypper install",
        };
        format!("sudo {command} {packages}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_derivative_is_of_its_parents_family() {
        for (text, expected) in [
            ("ID=debian\nVERSION_ID=\"12\"\n", Some(Distribution::Debian)),
            ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Some(Distribution::Debian)),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Some(Distribution::Fedora)),
            ("ID=manjaro\nID_LIKE=arch\n", Some(Distribution::Arch)),
            ("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n", Some(Distribution::OpenSuse)),
            ("ID=nixos\n", None),
            ("", None),
        ] {
            assert_eq!(Distribution::of(text), expected, "{text}");
        }
    }
}
