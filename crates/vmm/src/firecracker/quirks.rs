//! What tells one version of Firecracker from another: the range that is supported, and what a
//! version lacks or breaks. The one place for it; everybody else asks [`Quirks`].

use std::fmt;

/// The oldest version that the conformance suite was run with.
pub(super) const OLDEST: Version = Version(1, 15, 0);
/// The newest one.
pub(super) const NEWEST: Version = Version(1, 17, 0);

/// A released version, or what will become one (`1.17.0-dev` counts as 1.17.0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(pub(super) u32, pub(super) u32, pub(super) u32);

impl Version {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(['.', '-']).map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Self(next()?, next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What a version lacks or breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Quirks {
    /// It boots an uncompressed ELF only, no bzImage.
    pub(super) elf_only: bool,
    /// After a pause and resume without a snapshot between them, no connection from the host reaches
    /// the guest any more: so its vCPUs are halted by stopping the whole process.
    pub(super) pause_deafens: bool,
}

/// A fault, or a lack, from the first version that has it to the first that does not.
struct Row {
    from: Version,
    until: Version,
    set: fn(&mut Quirks),
}

const TABLE: &[Row] = &[
    Row { from: Version(0, 0, 0), until: Version(1, 17, 0), set: |q| q.elf_only = true },
    Row { from: Version(1, 16, 0), until: Version(1, 17, 0), set: |q| q.pause_deafens = true },
];

impl Quirks {
    /// Those of a version that cannot be asked any more: the careful way.
    pub(super) fn unknown() -> Self {
        Self { elf_only: true, pause_deafens: true }
    }

    pub(super) fn of(version: Version) -> Self {
        let mut quirks = Self { elf_only: false, pause_deafens: false };
        for row in TABLE.iter().filter(|row| row.from <= version && version < row.until) {
            (row.set)(&mut quirks);
        }
        quirks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_has_its_own_faults() {
        let of = |text| {
            let quirks = Quirks::of(Version::parse(text).unwrap());
            (quirks.elf_only, quirks.pause_deafens)
        };
        assert_eq!(of("1.15.1"), (true, false));
        assert_eq!(of("1.16.0"), (true, true));
        assert_eq!(of("1.16.1"), (true, true));
        assert_eq!(of("1.17.0-dev"), (false, false));
        assert_eq!(of("1.18.0"), (false, false));
        for nonsense in ["", "1", "1.2", "a.b.c", "1.2.x", "99999999999.0.0"] {
            assert_eq!(Version::parse(nonsense), None, "{nonsense}");
        }
    }
}
