//! Identities: of a VM and of an operation. Made from random bytes that the caller brings.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an id from six random bytes.
            #[must_use]
            pub fn from_random(bytes: [u8; 6]) -> Self {
                Self(format!("{}{}", $prefix, hex::encode(bytes)))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(s: &str) -> Result<Self> {
                let hex = s.strip_prefix($prefix).unwrap_or("");
                if hex.len() == 12 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
                    Ok(Self(s.to_owned()))
                } else {
                    Err(Error::invalid(format!("'{s}' is not {}", $what)))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(s: String) -> Result<Self> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

hex_id!(
    /// A VM's identity: 12 hexadecimal digits, never reused.
    VmId, "", "a VM id"
);
hex_id!(
    /// An operation's identity, `op-` and 12 hexadecimal digits: in every log line and error.
    OpId, "op-", "an operation id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_fixed_width_lower_hex() {
        let id = VmId::from_random([0, 1, 2, 0xfd, 0xfe, 0xff]);
        assert_eq!(id.as_str(), "000102fdfeff");
        assert_eq!("000102fdfeff".parse::<VmId>().unwrap(), id);
        for bad in ["", "000102FDFEFF", "000102fdfef", "../../../etc", "op-000102fdfeff"] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
        assert_eq!(OpId::from_random([0; 6]).to_string(), "op-000000000000");
    }
}
