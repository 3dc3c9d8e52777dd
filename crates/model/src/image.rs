//! Images and kernels: immutable, content-addressed, named.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::machine::words;
use crate::{Bytes, Error, Result};

fn check_name(what: &str, s: &str) -> Result<()> {
    let first = s.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest = s.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
    if first && rest && s.len() <= 100 && !s.contains("..") {
        Ok(())
    } else {
        Err(Error::invalid(format!("'{}' is not {what} name", s.escape_debug()))
            .with_hint("use 1 to 100 of a-z, 0-9, '.', '-' and '_', beginning with a letter or digit"))
    }
}

macro_rules! artifact_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                check_name($what, s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(s: String) -> Result<Self> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

artifact_name!(
    /// An image's name.
    ImageName, "an image"
);
artifact_name!(
    /// A kernel's name.
    KernelName, "a kernel"
);

/// A SHA-256 digest, 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(String);

impl Sha256 {
    /// The digest of 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(hex::encode(bytes))
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        if s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(s))
        } else {
            Err(Error::invalid(format!("'{}' is not a SHA-256 digest", s.escape_debug())))
        }
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

words! {
    /// The format of a root file system, as the guest kernel names it.
    RootFsType ("a root file system type") {
        /// squashfs, read-only and compressed.
        Squashfs = "squashfs",
    }
}

words! {
    /// How an image came to be.
    ImageSource ("an image source") {
        /// `image build`.
        Build = "build",
        /// `image import`.
        Import = "import",
    }
}

/// A root file system: read-only, shared by all VMs that use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Image {
    /// Its name; a later build of the same name takes the name over.
    pub name: ImageName,
    /// Digest of the file; also its address below `images/`.
    pub digest: Sha256,
    /// The file's format.
    pub fs: RootFsType,
    /// The file's size.
    pub size_bytes: Bytes,
    /// How it came to be.
    pub source: ImageSource,
    /// What it was made from, for people: the release and packages, or the imported path.
    pub description: String,
    /// When.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
}

/// A kernel with its modules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// Its name.
    pub name: KernelName,
    /// `uname -r` of it, which is also the name of its modules directory.
    pub release: String,
    /// Digest of the bootable kernel file.
    pub digest: Sha256,
    /// Bytes on disk: kernel, modules image and initramfs.
    pub size_bytes: Bytes,
    /// Whether it came with modules (else all it needs is built in).
    pub has_modules: bool,
    /// Where it came from, for people.
    pub description: String,
    /// When.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifact_names_cannot_leave_their_directory() {
        for good in ["debian", "debian-cloud", "6.1.0-1_x"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-a", "A", "a..b", "a b", &"x".repeat(101)] {
            assert!(bad.parse::<KernelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn digests_are_64_lower_hex() {
        let digest = Sha256::from_bytes([0xab; 32]);
        assert_eq!(Sha256::try_from(digest.as_str().to_owned()).unwrap(), digest);
        assert!(Sha256::try_from("AB".repeat(32)).is_err());
    }
}
