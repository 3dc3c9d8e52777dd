//! VM names: DNS labels, checked at every edge and never rewritten.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A VM's name: a DNS label (RFC 1123) of 1–63 of `a-z0-9-`, no leading or trailing `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// A readable name picked by a random number, for VMs that were given none.
    #[must_use]
    pub fn generate(random: u64) -> Self {
        let pick = |list: &[&'static str], n: u64| {
            let index = usize::try_from(n % list.len() as u64).unwrap_or(0);
            list.get(index).copied().unwrap_or("vm")
        };
        let adjective = pick(ADJECTIVES, random);
        let animal = pick(ANIMALS, random >> 20);
        Self(format!("{adjective}-{animal}-{:02x}", (random >> 40) & 0xff))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = |why: &str| {
            Err(Error::invalid(format!("'{}' is not a VM name: {why}", s.escape_debug()))
                .with_hint("use 1 to 63 of a-z, 0-9 and '-', not beginning or ending with '-'"))
        };
        if s.is_empty() {
            return bad("it is empty");
        }
        if s.len() > 63 {
            return bad("it is longer than 63 characters");
        }
        if let Some(c) = s.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            return bad(&format!("it contains '{}'", c.escape_debug()));
        }
        if s.starts_with('-') || s.ends_with('-') {
            return bad("it begins or ends with '-'");
        }
        Ok(Self(s.to_owned()))
    }
}

impl TryFrom<String> for VmName {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const ADJECTIVES: &[&str] = &[
    "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp", "deft", "eager",
    "early", "fair", "fleet", "fond", "frank", "fresh", "gentle", "glad", "grand", "keen", "kind", "light",
    "lively", "lucky", "merry", "mild", "neat", "nimble", "noble", "plucky", "proud", "quick", "quiet",
    "rapid", "ready", "sharp", "shy", "sleek", "smart", "snug", "solid", "spry", "steady", "sunny", "swift",
    "tidy", "trusty", "vivid", "warm", "wise", "witty", "young", "zesty",
];

const ANIMALS: &[&str] = &[
    "badger", "bat", "bear", "beaver", "bison", "crane", "crow", "deer", "dove", "duck", "eagle", "egret",
    "elk", "falcon", "ferret", "finch", "fox", "gecko", "goat", "goose", "hare", "hawk", "heron", "horse",
    "ibex", "jay", "kite", "lark", "lemur", "lion", "lynx", "marten", "mole", "moose", "moth", "newt",
    "otter", "owl", "panda", "pike", "puffin", "raven", "robin", "seal", "shrew", "sloth", "stoat", "stork",
    "swan", "tapir", "tern", "tiger", "toad", "trout", "vole", "wolf", "wren", "yak",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for good in ["a", "0", "calm-otter", &"x".repeat(63)] {
            assert!(good.parse::<VmName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a b", "ä", "a\nb", &"x".repeat(64)] {
            let error = bad.parse::<VmName>().unwrap_err();
            assert!(error.hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn generated_names_are_valid() {
        for n in (0..u64::MAX).step_by(usize::MAX / 997) {
            let name = VmName::generate(n);
            assert_eq!(name.as_str().parse::<VmName>().unwrap(), name);
        }
    }
}
