//! A repository's settings as git resolves them, read once.

use std::collections::HashMap;

use crate::Result;
use crate::git::Git;

/// The most bytes of settings that are read.
const CAP: u64 = 16 << 20;

/// All settings: the last value of each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings(HashMap<Vec<u8>, Vec<u8>>);

impl Settings {
    pub(crate) fn read(git: &Git) -> Result<Self> {
        Ok(Self::parse(&git.output(&["config", "--list", "-z"], CAP)?))
    }

    fn parse(raw: &[u8]) -> Self {
        let mut all = HashMap::new();
        for line in raw.split(|b| *b == 0).filter(|line| !line.is_empty()) {
            // A name alone means that it is so.
            let (name, value) = match line.iter().position(|b| *b == b'\n') {
                Some(at) => (&line[..at], &line[at + 1..]),
                None => (line, &b"true"[..]),
            };
            all.insert(name.to_vec(), value.to_vec());
        }
        Self(all)
    }

    /// One value. `name` as git prints it: in lower case, but for what is between the first dot and the last.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name.as_bytes()).map(Vec::as_slice)
    }

    /// Whether a setting says no.
    pub(crate) fn is_off(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| {
            ["false", "no", "off", "0", ""].iter().any(|no| v.eq_ignore_ascii_case(no.as_bytes()))
        })
    }

    /// Whether it is a partial clone: objects may be missing that only a remote has.
    pub(crate) fn is_partial(&self) -> bool {
        self.0.keys().any(|name| {
            name == b"extensions.partialclone"
                || (name.starts_with(b"remote.") && name.ends_with(b".promisor"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts_and_a_name_alone_is_a_yes() {
        let raw = b"core.filemode\nfalse\0core.bare\0core.filemode\ntrue\0branch.A.b.remote\nx\ny\0";
        let settings = Settings::parse(raw);
        assert_eq!(settings.get("core.filemode"), Some(&b"true"[..]));
        assert_eq!((settings.get("core.bare"), settings.get("core.none")), (Some(&b"true"[..]), None));
        assert!(!settings.is_off("core.filemode") && !settings.is_off("core.none") && !settings.is_partial());
        assert_eq!(settings.get("branch.A.b.remote"), Some(&b"x\ny"[..]));
        assert!(Settings::parse(b"core.filemode\nOff\0").is_off("core.filemode"));
    }
}
