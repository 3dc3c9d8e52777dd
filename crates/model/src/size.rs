//! Sizes: `512M`, `4G`, `4GiB`; a bare number is MiB.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

const MIB: u64 = 1 << 20;

fn parse_bytes(s: &str) -> Result<u64> {
    let bad = |why: &str| {
        Error::invalid(format!("'{}' is not a size: {why}", s.escape_debug()))
            .with_hint("write 512M, 4G or 4GiB; a bare number is MiB")
    };
    let digits = s.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = s.split_at(digits);
    let number: u64 = match number.parse() {
        Ok(n) => n,
        Err(_) if number.is_empty() => return Err(bad("it does not begin with a number")),
        Err(_) => return Err(bad("it is too large")),
    };
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => MIB,
        "k" | "kb" | "kib" => 1 << 10,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(bad("the unit is not one of K, M, G, T")),
    };
    if number == 0 {
        return Err(bad("it must be more than zero"));
    }
    number.checked_mul(factor).filter(|n| i64::try_from(*n).is_ok()).ok_or_else(|| bad("it is too large"))
}

/// A number of mebibytes, at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Mib(pub u32);

impl Mib {
    /// The same size in bytes.
    #[must_use]
    pub fn to_bytes(self) -> u64 {
        u64::from(self.0) * MIB
    }
}

impl FromStr for Mib {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bytes = parse_bytes(s)?;
        if !bytes.is_multiple_of(MIB) {
            return Err(Error::invalid(format!("'{s}' is not a whole number of MiB")));
        }
        u32::try_from(bytes / MIB).map(Self).map_err(|_| Error::invalid(format!("'{s}' is too large")))
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// A number of bytes, parsed like every size and shown in the largest binary unit that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        parse_bytes(s).map(Self)
    }
}

impl fmt::Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "one decimal for people")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            n if n >= 1 << 40 => (1u64 << 40, "TiB"),
            n if n >= 1 << 30 => (1 << 30, "GiB"),
            n if n >= 1 << 20 => (1 << 20, "MiB"),
            n if n >= 1 << 10 => (1 << 10, "KiB"),
            n => return write!(f, "{n} B"),
        };
        let value = self.0 as f64 / unit as f64;
        if self.0.is_multiple_of(unit) {
            write!(f, "{value:.0} {name}")
        } else {
            write!(f, "{value:.1} {name}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units_and_a_bare_number_is_mib() {
        for (text, mib) in
            [("512M", 512), ("4G", 4096), ("4GiB", 4096), ("4gb", 4096), ("1024", 1024), ("1T", 1 << 20)]
        {
            assert_eq!(text.parse::<Mib>().unwrap(), Mib(mib), "{text}");
        }
        for bad in
            ["", "0", "0G", "-1", "4X", "G", "1.5G", "99999999999999999999", "9999999999T", "1K", " 4G"]
        {
            assert!(bad.parse::<Mib>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit() {
        assert_eq!(Bytes(4 << 30).to_string(), "4 GiB");
        assert_eq!(Bytes(1536 << 20).to_string(), "1.5 GiB");
        assert_eq!(Bytes(10).to_string(), "10 B");
    }
}
