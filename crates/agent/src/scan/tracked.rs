//! The paths git would call tracked: those of the guest's own index; without one, the base's.
//!
//! Owns reading both. The index is the guest's and may be anything: what is not understood is
//! taken as not there, which costs time and is never wrong.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Read};

use sha2::{Digest, Sha256};

use super::ScanError;

/// An object id; SHA-1 ids leave the end zero.
pub(super) type Id = [u8; 32];

/// `S_IFGITLINK`.
pub(super) const GITLINK: u32 = 0o160_000;

/// What is known of one path.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Known {
    /// Mode and object in the base.
    pub(super) base: Option<(u32, Id)>,
    /// The index's entry.
    pub(super) index: Option<Indexed>,
    /// Whether the walk has met it.
    pub(super) seen: bool,
}

/// An index entry without conflict.
#[derive(Debug, Clone, Copy)]
pub(super) struct Indexed {
    pub(super) id: Id,
    pub(super) mode: u32,
    /// 0, or 1 to 3 in a conflict.
    pub(super) stage: u16,
    /// Seconds, low 32 bits.
    pub(super) mtime: u32,
    /// Outside the sparse checkout: absent without being deleted.
    pub(super) is_skipped: bool,
    /// Whether it tells the state of a file (not so in a conflict).
    pub(super) is_plain: bool,
}

/// All tracked paths.
#[derive(Debug, Default)]
pub(super) struct Tracked {
    pub(super) paths: HashMap<Vec<u8>, Known>,
    dirs: HashSet<Vec<u8>>,
    has_index: bool,
}

impl Tracked {
    /// Reads the base listing.
    pub(super) fn from_base(base: impl Read) -> Result<Self, ScanError> {
        let (mut tracked, mut base, mut line) = (Self::default(), BufReader::new(base), Vec::new());
        loop {
            line.clear();
            if base.read_until(0, &mut line).map_err(ScanError::Stream)? == 0 {
                return Ok(tracked);
            }
            let (mode, id, path) = listed(&line).ok_or(ScanError::Base("a line is not git's"))?;
            tracked.know(path).base = Some((mode, id));
        }
    }

    /// Adds the index's paths.
    pub(super) fn add_index(&mut self, raw: &[u8], id_len: usize) {
        // A half understood index would be half the truth.
        if let Some(entries) = parse(raw, id_len) {
            self.has_index = true;
            for (path, entry) in entries {
                self.know(&path).index = Some(entry);
            }
        }
    }

    fn know(&mut self, path: &[u8]) -> &mut Known {
        if !self.paths.contains_key(path) {
            let slashes = path.iter().enumerate().rev().filter(|(_, b)| **b == b'/');
            for (at, _) in slashes {
                if !self.dirs.insert(path[..at].to_vec()) {
                    break;
                }
            }
        }
        self.paths.entry(path.to_vec()).or_default()
    }

    /// Whether git would call this path tracked, so that no ignore rule hides it. A path of the
    /// base that the guest took out of its index and ignores is gone, as `git add` would have it.
    pub(super) fn has(&self, path: &[u8]) -> bool {
        let known = self.paths.get(path);
        known.is_some_and(|k| if self.has_index { k.index.is_some() } else { k.base.is_some() })
    }

    /// Whether a tracked path is below this directory.
    pub(super) fn is_above(&self, dir: &[u8]) -> bool {
        self.dirs.contains(dir)
    }

    /// The commit of the submodule that the base has at this path.
    pub(super) fn submodule(&self, path: &[u8]) -> Option<Id> {
        let (mode, id) = self.paths.get(path)?.base?;
        (mode == GITLINK).then_some(id)
    }
}

/// `mode SP type SP id TAB path NUL`.
fn listed(line: &[u8]) -> Option<(u32, Id, &[u8])> {
    let line = line.strip_suffix(&[0])?;
    let tab = line.iter().position(|b| *b == b'\t')?;
    let text = std::str::from_utf8(&line[..tab]).ok()?;
    let mut words = text.split(' ');
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let hex = words.nth(1)?.as_bytes();
    let id = hex_id(hex, 20).or_else(|| hex_id(hex, 32))?;
    Some((mode, id, &line[tab + 1..])).filter(|(_, _, path)| !path.is_empty())
}

/// An id of this many bytes in hexadecimal.
pub(super) fn hex_id(hex: &[u8], id_len: usize) -> Option<Id> {
    let hex = std::str::from_utf8(hex).ok().filter(|hex| hex.len() == 2 * id_len && hex.is_ascii())?;
    let mut id = Id::default();
    for (slot, at) in id.iter_mut().zip((0..hex.len()).step_by(2)) {
        *slot = u8::from_str_radix(&hex[at..at + 2], 16).ok()?;
    }
    Some(id)
}

/// The entries of an index of version 2, 3 or 4 (gitformat-index(5)).
pub(super) fn parse(raw: &[u8], id_len: usize) -> Option<Vec<(Vec<u8>, Indexed)>> {
    const STAT: usize = 40;
    let word = |at: usize| Some(u32::from_be_bytes(raw.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_be_bytes(raw.get(at..at + 2)?.try_into().ok()?));
    let version = word(4)?;
    if raw.get(..4)? != b"DIRC" || !matches!(version, 2..=4) {
        return None;
    }
    let count = word(8)? as usize;
    let (mut entries, mut at, mut last) = (Vec::with_capacity(count.min(raw.len() / STAT)), 12, Vec::new());
    for _ in 0..count {
        let start = at;
        let flags = half(start + STAT + id_len)?;
        let is_extended = flags & 0x4000 != 0;
        let extended = if is_extended { half(start + STAT + id_len + 2)? } else { 0 };
        let mut name = start + STAT + id_len + if is_extended { 4 } else { 2 };
        if version == 4 {
            let (strip, len) = offset(raw.get(name..)?)?;
            last.truncate(last.len().checked_sub(strip)?);
            name += len;
        } else {
            last.clear();
        }
        let end = name + raw.get(name..)?.iter().position(|b| *b == 0)?;
        last.extend_from_slice(raw.get(name..end)?);
        at = if version == 4 { end + 1 } else { start + ((end - start + 8) & !7) };
        let mut id = Id::default();
        id.get_mut(..id_len)?.copy_from_slice(raw.get(start + STAT..start + STAT + id_len)?);
        let entry = Indexed {
            id,
            mode: word(start + 24)?,
            stage: (flags >> 12) & 3,
            mtime: word(start + 8)?,
            is_skipped: extended & 0x4000 != 0,
            is_plain: flags & 0x3000 == 0 && extended & 0x2000 == 0,
        };
        entries.push((last.clone(), entry));
    }
    Some(entries)
}

/// SHA-256, in hexadecimal, of what `git ls-files -s -z` says of an index.
pub(super) fn staged(raw: &[u8]) -> Option<String> {
    let (id_len, entries) =
        parse(raw, 20).map(|e| (20, e)).or_else(|| parse(raw, 32).map(|entries| (32, entries)))?;
    let mut sum = Sha256::new();
    for (path, entry) in entries {
        sum.update(format!("{:06o} {} {}\t", entry.mode, hex::encode(&entry.id[..id_len]), entry.stage));
        sum.update(path);
        sum.update([0]);
    }
    Some(hex::encode(sum.finalize()))
}

/// The variable-length number before a name in version 4, and its length.
fn offset(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = usize::from(bytes.first()? & 0x7f);
    let mut len = 1;
    while bytes.get(len - 1)? & 0x80 != 0 {
        let byte = bytes.get(len)?;
        value = value.checked_add(1)?.checked_mul(128)? + usize::from(byte & 0x7f);
        len += 1;
    }
    Some((value, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_listing_is_read_and_a_broken_one_refused() {
        let id = "0123456789abcdef0123456789abcdef01234567";
        let given = format!("100755 blob {id}\ta/b\tc\n\0160000 commit {id}\tsub\0");
        let tracked = Tracked::from_base(given.as_bytes()).unwrap();
        assert_eq!(tracked.paths[&b"a/b\tc\n"[..]].base.unwrap().0, 0o100_755);
        assert!(
            tracked.is_above(b"a")
                && tracked.submodule(b"sub").is_some()
                && tracked.submodule(b"a").is_none()
        );
        for bad in ["x\0", "100644 blob 12\ta\0", "100644 blob 0123\0", &given[..55]] {
            assert!(Tracked::from_base(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn rubbish_is_no_index() {
        assert!(parse(b"", 20).is_none());
        assert!(parse(b"DIRC\0\0\0\x02\xff\xff\xff\xff", 20).is_none());
        let mut compressed = b"DIRC\0\0\0\x04\0\0\0\x01".to_vec();
        compressed.extend([0; 62]);
        compressed.extend([0x05, b'a', 0]);
        assert!(parse(&compressed, 20).is_none(), "takes away more than there was");
    }
}
