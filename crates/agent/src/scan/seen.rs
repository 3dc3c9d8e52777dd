//! What was copied in: the exact state in which the agent left each file, kept in the workspace's
//! `.git`, where no ordinary tool looks.
//!
//! Owns the question whether a file was touched since. The change time is compared to the
//! nanosecond, which no tool can set; what is not recorded, or not understood, counts as touched.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags, Stat};

use super::tracked::{self, Id};

/// Where the record is, below the workspace.
pub(crate) const FILE: &[u8] = b".git/banger-seen";
const INDEX: &[u8] = b".git/index";
/// The largest record that is read, bytes.
const MAX: u64 = 1 << 30;
const MAGIC: &[u8] = b"banger seen 1\n";
const END: &[u8] = b"\nend\n";
const FIXED: usize = 4 + 5 * 8 + 32;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([i64; 5]);

impl Stamp {
    /// Of a file as it is now.
    pub(crate) fn of(stat: &Stat) -> Self {
        let ns = |sec: i64, nsec: i64| sec.wrapping_mul(1_000_000_000).wrapping_add(nsec);
        let (mtime, ctime) = (nanoseconds(stat.st_mtime_nsec), nanoseconds(stat.st_ctime_nsec));
        Self([
            ns(stat.st_mtime, mtime),
            ns(stat.st_ctime, ctime),
            stat.st_size,
            stat.st_ino.cast_signed(),
            i64::from(stat.st_mode),
        ])
    }
}

fn nanoseconds<T: TryInto<i64>>(n: T) -> i64 {
    n.try_into().unwrap_or(0)
}

/// What is recorded of one path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) stamp: Stamp,
    /// The object that the host's git knew this file to be; zeros when it was not one.
    pub(crate) id: Id,
}

/// All of them.
pub(crate) type Record = HashMap<Vec<u8>, Seen>;

/// Reads a record; `None` when there is none or it is not whole.
pub(super) fn parse(raw: &[u8]) -> Option<Record> {
    let mut rest = raw.strip_prefix(MAGIC)?.strip_suffix(END)?;
    let mut record = Record::new();
    while !rest.is_empty() {
        let fixed = rest.get(..FIXED)?;
        let len = u32::from_le_bytes(fixed[..4].try_into().ok()?) as usize;
        let mut stamp = [0; 5];
        for (n, slot) in stamp.iter_mut().enumerate() {
            *slot = i64::from_le_bytes(fixed[4 + 8 * n..12 + 8 * n].try_into().ok()?);
        }
        let id = fixed[44..].try_into().ok()?;
        record.insert(rest.get(FIXED..FIXED + len)?.to_vec(), Seen { stamp: Stamp(stamp), id });
        rest = &rest[FIXED + len..];
    }
    Some(record)
}

/// Takes the state of each file that is unpacked.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    on: bool,
    is_off: bool,
    /// Whether an index came with the files: an older one, or the guest's, vouches for none of them.
    index: bool,
    files: Vec<(Vec<u8>, Stamp)>,
    removed: Vec<Vec<u8>>,
}

impl Recorder {
    /// Of a workspace that has a record already.
    pub(crate) fn again() -> Self {
        Self { on: true, ..Self::default() }
    }

    /// One that takes nothing.
    pub(crate) fn off() -> Self {
        Self { is_off: true, ..Self::default() }
    }

    /// A path that was taken away.
    pub(crate) fn removed(&mut self, path: &[u8]) {
        self.removed.push(path.to_vec());
    }

    /// A directory of the archive: `.git` at the top makes it a workspace, worth a record.
    pub(crate) fn directory(&mut self, path: &[u8]) {
        self.on |= path == b".git" && !self.is_off;
    }

    /// A file or link as it was left.
    pub(crate) fn file(&mut self, path: &[u8], stat: &Stat) {
        self.index |= path == INDEX;
        let wanted = !in_git_dir(path) || is_head(path);
        if self.on && wanted {
            self.files.push((path.to_vec(), Stamp::of(stat)));
        }
    }

    /// Whether there is anything to write.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Writes the record, over what an earlier one says of other files. `top` is the workspace.
    pub(crate) fn finish(self, top: BorrowedFd<'_>) -> io::Result<()> {
        let index = if self.index { read(top, INDEX)?.unwrap_or_default() } else { Vec::new() };
        let mut vouched: HashMap<Vec<u8>, Id> = HashMap::new();
        // Ids have one of two lengths; an index is understood with its own only.
        if let Some(entries) = tracked::parse(&index, 20).or_else(|| tracked::parse(&index, 32)) {
            // The host vouches for a file by saying its time.
            let sure = entries.into_iter().filter(|(_, e)| e.is_plain && e.mtime != 0);
            vouched.extend(sure.map(|(path, entry)| (path, entry.id)));
        }
        let mut record = read(top, FILE)?.and_then(|raw| parse(&raw)).unwrap_or_default();
        for path in self.removed {
            record.remove(&path);
        }
        for (path, stamp) in self.files {
            let id = vouched.get(&path).copied().unwrap_or_default();
            record.insert(path, Seen { stamp, id });
        }
        let new = b".git/banger-seen.new";
        let _ = rustix::fs::unlinkat(top, &new[..], rustix::fs::AtFlags::empty());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(top, &new[..], flags, Mode::RUSR | Mode::WUSR)?;
        let mut out = BufWriter::new(File::from(file));
        out.write_all(MAGIC)?;
        for (path, seen) in &record {
            out.write_all(&u32::try_from(path.len()).unwrap_or(u32::MAX).to_le_bytes())?;
            for word in seen.stamp.0 {
                out.write_all(&word.to_le_bytes())?;
            }
            out.write_all(&seen.id)?;
            out.write_all(path)?;
        }
        out.write_all(END)?;
        out.flush()?;
        rustix::fs::renameat(top, &new[..], top, FILE)?;
        Ok(())
    }
}

/// Whether a path is in a `.git`, at whatever depth.
fn in_git_dir(path: &[u8]) -> bool {
    path.split(|b| *b == b'/').any(|name| name == b".git")
}

/// What says which commit a submodule is at.
fn is_head(path: &[u8]) -> bool {
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    matches!(name, b"HEAD" | b"packed-refs")
}

fn read(top: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::openat(top, path, flags, Mode::empty()) {
        Ok(file) => {
            let mut raw = Vec::new();
            File::from(file).take(MAX).read_to_end(&mut raw)?;
            Ok(Some(raw))
        }
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_record_survives_and_a_cut_one_is_none() {
        // Given a workspace of which two files were recorded, one after the other.
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".git")).unwrap();
        let top = File::open(dir.path()).unwrap();
        let stat = rustix::fs::fstat(&top).unwrap();
        for path in [&b"a\nb"[..], b"c"] {
            let mut recorder = Recorder::default();
            recorder.directory(b".git");
            recorder.file(path, &stat);
            recorder.file(b".git/objects/x", &stat);
            recorder.finish(top.as_fd()).unwrap();
        }
        // Then both are known, and nothing of `.git`.
        let raw = std::fs::read(dir.path().join(".git/banger-seen")).unwrap();
        let record = parse(&raw).unwrap();
        assert_eq!(record.len(), 2);
        assert_eq!(record[&b"a\nb"[..]].stamp, Stamp::of(&stat));
        for cut in [0, 10, MAGIC.len() + 3, raw.len() - 1] {
            assert!(parse(&raw[..cut]).is_none(), "{cut}");
        }
    }
}
