//! What was copied in, and when: kept with the VM, so that an apply may replace the user's own uncommitted changes
//! that went along, and nothing that came after. What cannot be read counts as not copied.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::capture::Captured;
use crate::{Result, WorkspaceError};

const MAGIC: &[u8] = b"banger copied 1\n";
/// The largest record that is read, bytes.
const MAX: u64 = 1 << 30;
/// A file's change time may be older than the moment of the change by a tick of the kernel's clock
/// (at most 10 ms).
const TICK: Duration = Duration::from_millis(10);

/// The paths of the working tree that were copied, and the moment before the first of them was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Since the Unix epoch.
    began: Duration,
    /// Each ended by a NUL.
    paths: Vec<u8>,
}

impl Copied {
    /// Nothing was copied, or nobody knows.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { began: Duration::ZERO, paths: Vec::new() }
    }

    /// Of a capture whose files were read from `began` on. One with another starting point than HEAD copied nothing
    /// of the working tree.
    #[must_use]
    pub fn of(captured: &Captured, began: SystemTime) -> Self {
        let mut paths = Vec::new();
        for path in captured.plan.files.iter().filter(|_| captured.overlay) {
            paths.extend_from_slice(path.as_bytes());
            paths.push(0);
        }
        Self { began: began.duration_since(UNIX_EPOCH).unwrap_or_default(), paths }
    }

    /// Writes it to a file, whole or not at all.
    ///
    /// # Errors
    /// A failing disk.
    pub fn save(&self, file: &Path) -> Result<()> {
        let next = file.with_extension("next");
        let write = || {
            let mut out = File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
            let nanoseconds = u64::try_from(self.began.as_nanos()).unwrap_or(0);
            out.write_all(MAGIC)?;
            out.write_all(&nanoseconds.to_le_bytes())?;
            out.write_all(&self.paths)?;
            out.sync_data()?;
            std::fs::rename(&next, file)
        };
        write().map_err(|e| WorkspaceError::io("write", file, e))
    }

    /// Reads one that was saved.
    #[must_use]
    pub fn load(file: &Path) -> Self {
        let read = || {
            let mut raw = Vec::new();
            File::open(file).ok()?.take(MAX).read_to_end(&mut raw).ok()?;
            let (began, paths) = raw.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
            Some(Self { began: Duration::from_nanos(u64::from_le_bytes(*began)), paths: paths.to_vec() })
        };
        read().unwrap_or(Self::nothing())
    }

    /// All paths.
    pub(super) fn paths(&self) -> HashSet<&[u8]> {
        // What follows the last NUL is no whole path.
        self.paths.split_inclusive(|b| *b == 0).filter_map(|p| p.strip_suffix(&[0])).collect()
    }

    /// Whether something that last changed then (seconds and nanoseconds) has not changed since it was read.
    pub(super) fn is_before(&self, changed: (i64, i64)) -> bool {
        let then = || Some(Duration::new(u64::try_from(changed.0).ok()?, u32::try_from(changed.1).ok()?));
        then().zip(self.began.checked_sub(TICK)).is_some_and(|(then, limit)| then < limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_and_a_cut_one_has_fewer_paths() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("copied");
        assert_eq!(Copied::load(&file), Copied::nothing());
        let copied =
            Copied { began: Duration::from_nanos(1_700_000_000_123_456_789), paths: b"a\nb\0c\0".to_vec() };
        copied.save(&file).unwrap();
        assert_eq!(Copied::load(&file), copied);
        let whole = std::fs::read(&file).unwrap();
        for (cut, paths) in [(whole.len() - 1, 1), (MAGIC.len() + 8, 0), (MAGIC.len() + 7, 0), (3, 0)] {
            std::fs::write(&file, &whole[..cut]).unwrap();
            assert_eq!(Copied::load(&file).paths().len(), paths, "{cut}");
        }
    }

    #[test]
    fn a_change_within_a_tick_of_the_reading_counts_as_after_it() {
        let copied = Copied { began: Duration::from_millis(5_000), paths: Vec::new() };
        assert!(copied.is_before((4, 989_000_000)));
        assert!(
            !copied.is_before((4, 990_000_000)) && !copied.is_before((5, 0)) && !copied.is_before((-1, 0))
        );
        assert!(!Copied::nothing().is_before((0, 0)));
    }
}
