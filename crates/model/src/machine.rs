//! What a machine is made of: shape, driver, network, and paths inside the guest.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Bytes, Error, Mib, Result};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident ($what:literal) { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// The word for it on the command line, on the wire and in the database.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;
            fn from_str(s: &str) -> $crate::Result<Self> {
                match s {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::Error::invalid(format!("'{}' is not {}", s.escape_debug(), $what))
                        .with_hint(concat!("one of:" $(, " ", $word)+))),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Which driver a user asks for.
    DriverChoice ("a driver") {
        /// Firecracker when installed and KVM truly works, else QEMU.
        Auto = "auto",
        /// Firecracker or nothing.
        Firecracker = "firecracker",
        /// QEMU or nothing.
        Qemu = "qemu",
    }
}

words! {
    /// The driver a VM has.
    DriverKind ("a driver") {
        /// Firecracker.
        Firecracker = "firecracker",
        /// QEMU's microvm machine.
        Qemu = "qemu",
    }
}

words! {
    /// What runs the guest's instructions.
    Accel ("an accelerator") {
        /// Hardware virtualisation.
        Kvm = "kvm",
        /// QEMU's software emulation.
        Tcg = "tcg",
    }
}

words! {
    /// How a guest reaches the outside.
    NetworkMode ("a network mode") {
        /// Rootless outbound network and DNS; the host's loopback is out of reach.
        User = "user",
        /// A shared bridge with stable addresses; needs the root helper.
        Bridge = "bridge",
        /// No network device at all.
        None = "none",
    }
}

/// The size of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MachineShape {
    /// Virtual CPUs, 1–64.
    pub vcpu: u32,
    /// Memory in MiB.
    pub memory: Mib,
    /// Size of the writable system disk in bytes; it is sparse.
    pub disk: Bytes,
}

impl MachineShape {
    /// Checks the limits that hold on every host.
    ///
    /// # Errors
    /// `invalid_argument` naming the value and the limit.
    pub fn validate(&self) -> Result<()> {
        if !(1..=64).contains(&self.vcpu) {
            return Err(Error::invalid(format!("{} vCPUs are not between 1 and 64", self.vcpu))
                .with_hint("give another number with --vcpu"));
        }
        if !(64..=1 << 20).contains(&self.memory.0) {
            return Err(Error::invalid(format!("{} of memory is not between 64 MiB and 1 TiB", self.memory))
                .with_hint("give another size with --memory, such as 512M"));
        }
        if !(64 << 20..=16 << 40).contains(&self.disk.0) {
            return Err(Error::invalid(format!("a disk of {} is not between 64 MiB and 16 TiB", self.disk))
                .with_hint("give another size with --disk-size, such as 8G"));
        }
        Ok(())
    }
}

/// An absolute, normal path inside the guest: begins with `/`, no `.`, `..`, NUL or empty part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct GuestPath(String);

impl GuestPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GuestPath {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let parts_fine = s
            .strip_prefix('/')
            .is_some_and(|rest| rest.split('/').all(|p| !p.is_empty() && p != "." && p != ".."));
        if s.contains('\0') || !parts_fine {
            return Err(Error::invalid(format!("'{}' is not a guest path", s.escape_debug())).with_hint(
                "write an absolute path without '.', '..' or a trailing '/', such as /root/repo",
            ));
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for GuestPath {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<GuestPath> for String {
    fn from(path: GuestPath) -> Self {
        path.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_paths_are_absolute_and_normal() {
        for good in ["/root/repo", "/a", "/a b/ü"] {
            assert!(good.parse::<GuestPath>().is_ok(), "{good}");
        }
        for bad in ["", "/", "root", "/a/", "//a", "/a/../b", "/./a", "/a\0b"] {
            assert!(bad.parse::<GuestPath>().is_err(), "{bad}");
        }
    }

    #[test]
    fn words_parse_and_name_the_choices() {
        assert_eq!("qemu".parse::<DriverChoice>().unwrap(), DriverChoice::Qemu);
        let error = "vbox".parse::<DriverChoice>().unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("one of: auto firecracker qemu"));
    }

    #[test]
    fn shapes_have_limits() {
        let good = MachineShape { vcpu: 2, memory: Mib(512), disk: Bytes(1 << 30) };
        assert!(good.validate().is_ok());
        assert!(MachineShape { vcpu: 0, ..good }.validate().is_err());
        assert!(MachineShape { memory: Mib(8), ..good }.validate().is_err());
        assert!(MachineShape { disk: Bytes(1), ..good }.validate().is_err());
    }
}
