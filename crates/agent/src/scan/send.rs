//! One path at a time: does it differ from the base, and if so, its record.
//!
//! Owns hashing and the record stream. Must never send a file whose content does not fit the size
//! that was announced.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::time::{Duration, Instant};

use banger_model::ByteString;
use banger_protocol::agent::scan::{MAX_PATH, RecordHeader, RecordKind, encode_header};
use banger_protocol::agent::{ScanSpec, ScanSummary};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use sha1::{Digest, Sha1};
use sha2::Sha256;

use super::seen::{Seen, Stamp};
use super::tracked::{Id, Known};
use super::tree::Tree;
use super::{ScanError, unreadable};

/// Files up to this are held in memory, so that they can be read again when they change.
const SMALL: u64 = 1 << 20;
const TRIES: u32 = 4;
/// After so much time without a record the host hears that the scan goes on.
const TICK: Duration = Duration::from_secs(5);

const FILE: u32 = 0o100_644;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_000;

/// The writer of records.
pub(super) struct Sender<W> {
    out: W,
    budget: u64,
    max_bytes: u64,
    id_len: usize,
    summary: ScanSummary,
    /// When the host last heard anything, if it wants to know.
    heard: Option<Instant>,
}

impl<W: Write> Sender<W> {
    pub(super) fn new(out: W, spec: &ScanSpec, id_len: usize) -> Self {
        let summary = ScanSummary { records: 0, bytes: 0, repositories: 0, some_repositories: Vec::new() };
        let heard = spec.ticks.then(Instant::now);
        Self { out, budget: spec.max_bytes, max_bytes: spec.max_bytes, id_len, summary, heard }
    }

    /// Lets the host hear that there is somebody, when it has not for a while.
    pub(super) fn tick(&mut self) -> Result<(), ScanError> {
        if let Some(heard) = &mut self.heard
            && heard.elapsed() >= TICK
        {
            *heard = Instant::now();
            let tick = RecordHeader { kind: RecordKind::Tick, mode: 0, path_len: 0, size: 0 };
            let sent = self.out.write_all(&encode_header(tick)).and_then(|()| self.out.flush());
            return sent.map_err(ScanError::Stream);
        }
        Ok(())
    }

    /// Sends what is at a path unless it is what the base has. `false` when nothing is there that
    /// git could hold.
    pub(super) fn present(
        &mut self,
        tree: &mut Tree,
        path: &[u8],
        known: &Known,
        seen: Option<&Seen>,
    ) -> Result<bool, ScanError> {
        for _ in 0..TRIES {
            let Some(stat) = tree.look(path).map_err(|e| unreadable(path, e.into()))? else {
                return Ok(false);
            };
            let done = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => match tree.target(path) {
                    Ok(target) => self.content(path, LINK, &target, known)?,
                    Err(Errno::NOENT | Errno::INVAL) => false,
                    Err(e) => return Err(unreadable(path, e.into())),
                },
                FileType::RegularFile => is_untouched(&stat, known, seen) || self.file(tree, path, known)?,
                _ => return Ok(false),
            };
            if done {
                return Ok(true);
            }
        }
        Err(ScanError::Changed(ByteString(path.to_vec())))
    }

    fn file(&mut self, tree: &mut Tree, path: &[u8], known: &Known) -> Result<bool, ScanError> {
        let mut file = match tree.file(path) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(unreadable(path, e.into())),
        };
        let failed = |e| unreadable(path, e);
        let stat = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(false);
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mode = mode_of(&stat);
        if size <= SMALL {
            let mut content = Vec::new();
            (&mut file).take(SMALL + 1).read_to_end(&mut content).map_err(failed)?;
            return if is_same(&file, &stat) { self.content(path, mode, &content, known) } else { Ok(false) };
        }
        if let Some((base_mode, base_id)) = known.base
            && canonical(base_mode) == mode
        {
            let mut hash = Hash::new(self.id_len, size);
            let (mut content, mut buf) = ((&mut file).take(size), vec![0; 128 << 10]);
            while let n @ 1.. = content.read(&mut buf).map_err(failed)? {
                hash.update(&buf[..n]);
                self.tick()?;
            }
            if !is_same(&file, &stat) {
                return Ok(false);
            }
            if hash.finish() == base_id {
                return Ok(true);
            }
            file.rewind().map_err(failed)?;
        }
        self.header(RecordKind::Present, mode, path, size)?;
        let sent = copy(&mut file, size, &mut self.out).map_err(|e| match e {
            Copying::Reading(e) => failed(e),
            Copying::Writing(e) => ScanError::Stream(e),
        })?;
        // The record's size is out already: what does not fit it cannot be mended.
        if sent == size && is_same(&file, &stat) {
            Ok(true)
        } else {
            Err(ScanError::Changed(ByteString(path.to_vec())))
        }
    }

    /// A file or link that is in memory.
    fn content(&mut self, path: &[u8], mode: u32, content: &[u8], known: &Known) -> Result<bool, ScanError> {
        if let Some((base_mode, base_id)) = known.base
            && canonical(base_mode) == mode
        {
            let mut hash = Hash::new(self.id_len, content.len() as u64);
            hash.update(content);
            if hash.finish() == base_id {
                return Ok(true);
            }
        }
        self.header(RecordKind::Present, mode, path, content.len() as u64)?;
        self.out.write_all(content).map_err(ScanError::Stream)?;
        Ok(true)
    }

    /// A path of the base that is gone.
    pub(super) fn deleted(&mut self, path: &[u8]) -> Result<(), ScanError> {
        self.header(RecordKind::Deleted, 0, path, 0)
    }

    /// A submodule that is not as it was copied in.
    pub(super) fn submodule(&mut self, path: &[u8]) -> Result<(), ScanError> {
        self.header(RecordKind::Submodule, 0, path, 0)
    }

    /// An untracked repository, which stays behind.
    pub(super) fn repository(&mut self, path: &[u8]) {
        const SOME: usize = 10;
        self.summary.repositories += 1;
        if self.summary.some_repositories.len() < SOME {
            self.summary.some_repositories.push(ByteString(path.to_vec()));
        }
    }

    /// The end record.
    pub(super) fn finish(mut self) -> Result<ScanSummary, ScanError> {
        let end = RecordHeader { kind: RecordKind::End, mode: 0, path_len: 0, size: 0 };
        self.out.write_all(&encode_header(end)).map_err(ScanError::Stream)?;
        self.out.flush().map_err(ScanError::Stream)?;
        Ok(self.summary)
    }

    fn header(&mut self, kind: RecordKind, mode: u32, path: &[u8], size: u64) -> Result<(), ScanError> {
        if path.len() > MAX_PATH {
            return Err(ScanError::LongPath(path.len()));
        }
        self.budget = self.budget.checked_sub(size).ok_or(ScanError::TooMuch(self.max_bytes))?;
        self.summary.records += 1;
        self.summary.bytes += size;
        let header = RecordHeader { kind, mode, path_len: path.len(), size };
        self.out.write_all(&encode_header(header)).map_err(ScanError::Stream)?;
        self.out.write_all(path).map_err(ScanError::Stream)
    }
}

/// Whether this is the base's object as it was copied in, and nobody has touched it since.
fn is_untouched(stat: &Stat, known: &Known, seen: Option<&Seen>) -> bool {
    let (Some((mode, id)), Some(seen)) = (known.base, seen) else { return false };
    id == seen.id && seen.stamp == Stamp::of(stat) && mode_of(stat) == canonical(mode)
}

fn mode_of(stat: &Stat) -> u32 {
    if stat.st_mode & 0o100 == 0 { FILE } else { EXECUTABLE }
}

/// Old trees have modes such as 100664; git takes them for one of the two.
fn canonical(mode: u32) -> u32 {
    match mode & 0o170_000 {
        0o100_000 if mode & 0o100 == 0 => FILE,
        0o100_000 => EXECUTABLE,
        _ => mode,
    }
}

fn is_same(file: &File, before: &Stat) -> bool {
    rustix::fs::fstat(file).is_ok_and(|now| {
        (now.st_size, now.st_mtime, now.st_mtime_nsec, now.st_ctime, now.st_ctime_nsec)
            == (before.st_size, before.st_mtime, before.st_mtime_nsec, before.st_ctime, before.st_ctime_nsec)
    })
}

enum Copying {
    Reading(io::Error),
    Writing(io::Error),
}

fn copy(file: &mut File, size: u64, out: &mut impl Write) -> Result<u64, Copying> {
    let (mut buf, mut sent) = (vec![0; 128 << 10], 0);
    while sent < size {
        let want = buf.len().min(usize::try_from(size - sent).unwrap_or(usize::MAX));
        let n = file.read(&mut buf[..want]).map_err(Copying::Reading)?;
        if n == 0 {
            break;
        }
        out.write_all(&buf[..n]).map_err(Copying::Writing)?;
        sent += n as u64;
    }
    Ok(sent)
}

/// git's hash of a blob.
enum Hash {
    Sha1(Sha1),
    Sha256(Sha256),
}

impl Hash {
    fn new(id_len: usize, size: u64) -> Self {
        let mut hash = if id_len == 32 { Self::Sha256(Sha256::new()) } else { Self::Sha1(Sha1::new()) };
        hash.update(format!("blob {size}\0").as_bytes());
        hash
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha1(hash) => hash.update(bytes),
            Self::Sha256(hash) => hash.update(bytes),
        }
    }

    fn finish(self) -> Id {
        let mut id = Id::default();
        match self {
            Self::Sha1(hash) => id[..20].copy_from_slice(&hash.finalize()),
            Self::Sha256(hash) => id.copy_from_slice(&hash.finalize()),
        }
        id
    }
}
