//! The index file as git writes it (gitformat-index(5)), versions 2 and 3, extensions dropped.
//!
//! Owns the entries' stat fields: the guest's git must believe of a file exactly what the host's
//! git knows to be true, and look for itself at everything else.

use std::io::{self, Read};
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;

/// An entry's fields before the object id: ten 32-bit words.
const STAT_LEN: usize = 40;
/// Room for a checksum.
const SUM: usize = 32;
const EXTENDED: u16 = 0x4000;
const INTENT_TO_ADD: u16 = 0x2000;
/// `S_IFGITLINK`: a submodule.
const GITLINK: u32 = 0o160_000;

/// A whole index, in git's own bytes.
#[derive(Debug)]
pub(crate) struct Index {
    raw: Vec<u8>,
    starts: Vec<usize>,
    id_len: usize,
}

/// One entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    words: &'a [u8],
    /// The object's id.
    pub(crate) id: &'a [u8],
    /// The path.
    pub(crate) path: &'a [u8],
    flags: u16,
    extended: u16,
}

impl Entry<'_> {
    fn word(&self, n: usize) -> u32 {
        word(self.words, n * 4)
    }

    /// 0, or 1 to 3 in a conflict.
    pub(crate) fn stage(&self) -> u16 {
        (self.flags >> 12) & 3
    }

    /// The executable bit as the index has it.
    pub(crate) fn executable(&self) -> bool {
        self.word(6) & 0o111 != 0
    }

    pub(crate) fn is_submodule(&self) -> bool {
        self.word(6) & 0o170_000 == GITLINK
    }

    pub(crate) fn is_intent_to_add(&self) -> bool {
        self.extended & INTENT_TO_ADD != 0
    }

    /// Whether git recorded exactly this state of the file as that of the object.
    pub(crate) fn records(&self, stat: &Stamp) -> bool {
        self.word(0) == low(stat.ctime.0)
            && self.word(1) == low(stat.ctime.1)
            && self.word(2) == low(stat.mtime.0)
            && self.word(3) == low(stat.mtime.1)
            && self.word(5) == low(stat.ino)
            && self.word(9) == low(stat.size)
    }
}

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) mtime: (i64, i64),
    pub(crate) ctime: (i64, i64),
    pub(crate) ino: u64,
    pub(crate) size: u64,
}

fn low<T: TryInto<i128>>(n: T) -> u32 {
    n.try_into().map_or(0, |n: i128| (n & 0xffff_ffff) as u32)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

impl Index {
    /// Reads an index that git has just written; `None` when it is not understood.
    pub(crate) fn read(file: &Path, object_format: &str) -> io::Result<Option<Self>> {
        let mut raw = Vec::new();
        let mut open = std::fs::File::open(file)?;
        raw.reserve_exact(usize::try_from(open.metadata()?.len()).unwrap_or(0) + SUM);
        open.read_to_end(&mut raw)?;
        Ok(Self::parse(raw, if object_format == "sha256" { 32 } else { 20 }))
    }

    fn parse(mut raw: Vec<u8>, id_len: usize) -> Option<Self> {
        let known = raw.get(..4)? == b"DIRC" && matches!(word(&raw, 4), 2 | 3);
        let count = word(&raw, 8) as usize;
        if !known || count > raw.len() / STAT_LEN {
            return None;
        }
        let (mut starts, mut at) = (Vec::with_capacity(count), 12);
        for _ in 0..count {
            starts.push(at);
            let flags = half(&raw, at + STAT_LEN + id_len);
            let name = at + STAT_LEN + id_len + if flags & EXTENDED == 0 { 2 } else { 4 };
            let end = name + raw.get(name..)?.iter().position(|b| *b == 0)?;
            at += (end - at + 8) & !7;
        }
        if at > raw.len() {
            return None;
        }
        raw.truncate(at);
        Some(Self { raw, starts, id_len })
    }

    /// The entries, in path order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.starts.len()).map(|n| self.entry(n))
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The nth entry; `n` must be below [`Self::len`].
    pub(crate) fn entry(&self, n: usize) -> Entry<'_> {
        let bytes = &self.raw[self.starts[n]..];
        let after_id = STAT_LEN + self.id_len;
        let flags = half(bytes, after_id);
        let is_extended = flags & EXTENDED != 0;
        let name = &bytes[after_id + if is_extended { 4 } else { 2 }..];
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        Entry {
            words: &bytes[..STAT_LEN],
            id: &bytes[STAT_LEN..after_id],
            path: &name[..end],
            flags,
            extended: if is_extended { half(bytes, after_id + 2) } else { 0 },
        }
    }

    /// Makes the nth entry's stat fields say nothing, so that git will look at the file; but for the
    /// size: git takes a file of another size for modified before it thinks of line ends and filters.
    pub(crate) fn forget(&mut self, n: usize) {
        let start = self.starts[n];
        self.raw[start..start + 24].fill(0);
        self.raw[start + 28..start + 36].fill(0);
    }

    /// The nth entry's file, with this modification time (seconds) and size, is the object.
    pub(crate) fn vouch(&mut self, n: usize, mtime: u32, size: u64) {
        self.forget(n);
        let at = self.starts[n];
        self.raw[at + 8..at + 12].copy_from_slice(&mtime.to_be_bytes());
        self.raw[at + 36..at + 40].copy_from_slice(&low(size).to_be_bytes());
    }

    /// A digest of what is staged, whatever the state of the files: of the output of
    /// `git ls-files -s -z`.
    pub(crate) fn digest(&self) -> String {
        let mut sum = Sha256::new();
        for entry in self.entries() {
            let line = format!("{:06o} {} {}\t", entry.word(6), hex::encode(entry.id), entry.stage());
            sum.update(line.as_bytes());
            sum.update(entry.path);
            sum.update([0]);
        }
        hex::encode(sum.finalize())
    }

    /// The file's bytes, with their checksum.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let sum = if self.id_len == 32 {
            Sha256::digest(&self.raw).to_vec()
        } else {
            Sha1::digest(&self.raw).to_vec()
        };
        self.raw.extend(sum);
        self.raw
    }
}
