//! The guest's records, read and judged one by one.
//!
//! Owns the caps and the checks on each record, and hands contents to a scratch object store. Must
//! never believe a size, a path or an order.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use banger_model::ByteString;
use banger_protocol::agent::scan::{MAX_PATH, RECORD_HEADER_LEN, RecordHeader, RecordKind, decode_header};

use super::Limits;
use super::base::Base;
use super::convert::Facts;
use super::path::{MAX_TARGET, link_objection, objection};
use crate::git::{Git, Running};
use crate::{Result, WorkspaceError};

/// The most bytes of all paths together: they are held in memory.
const MAX_PATHS: u64 = 256 << 20;
/// The most symbolic links.
const MAX_LINKS: usize = 100_000;

/// The mode of a submodule, as git writes it.
pub(crate) const GITLINK: &[u8] = b"160000";

/// The tree mode of a symbolic link.
pub(crate) const LINK: u32 = 0o120_000;

/// What the guest says of one path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A file of this mode; its object is known by this mark until the store is closed.
    File { mode: u32, mark: u64 },
    /// A link with this target.
    Link { target: Vec<u8>, mark: u64 },
    /// Gone.
    Deleted,
}

/// Every changed path.
pub(crate) type Changes = BTreeMap<Vec<u8>, Change>;

/// Reads records up to the end mark; contents go to `store`.
pub(crate) fn read(
    mut records: impl Read,
    limits: &Limits,
    base: &Base,
    store: &mut impl Sink,
) -> Result<Changes> {
    let (mut changes, mut bytes, mut paths, mut links) = (Changes::new(), 0u64, 0u64, 0usize);
    loop {
        let mut header = [0; RECORD_HEADER_LEN];
        records.read_exact(&mut header).map_err(|e| cut_short(e, None))?;
        let header = decode_header(&header).map_err(WorkspaceError::Malformed)?;
        match header.kind {
            RecordKind::End => break,
            RecordKind::Tick => continue,
            RecordKind::Present | RecordKind::Deleted | RecordKind::Submodule => {}
        }
        let path = read_path(&mut records, &header)?;
        if header.kind == RecordKind::Submodule {
            return Err(WorkspaceError::SubmoduleChanged(ByteString(path)));
        }
        if let Some(why) = objection(&path).or_else(|| base_objection(base, &path, header.kind)) {
            return Err(refused(&path, why));
        }
        paths = paths.saturating_add(path.len() as u64);
        let counts = [
            (changes.len() as u64 + 1, limits.max_records, "paths"),
            (paths, MAX_PATHS, "bytes of paths"),
            (links as u64, MAX_LINKS as u64, "symbolic links"),
        ];
        if let Some((_, limit, what)) = counts.into_iter().find(|(count, limit, _)| count > limit) {
            return Err(WorkspaceError::TooMuch { limit, what, path: ByteString(path) });
        }
        bytes = bytes.saturating_add(header.size);
        if bytes > limits.max_bytes {
            return Err(WorkspaceError::TooMuch {
                limit: limits.max_bytes,
                what: "bytes",
                path: ByteString(path),
            });
        }
        let change = match (header.kind, header.mode) {
            (RecordKind::Deleted, _) => Change::Deleted,
            (_, LINK) => {
                links += 1;
                let target = read_target(&mut records, &path, header.size)?;
                let mark = store.put(&path, &mut &target[..], header.size)?;
                Change::Link { target, mark }
            }
            (_, mode) => Change::File { mode, mark: store.put(&path, &mut records, header.size)? },
        };
        if changes.contains_key(&path) {
            return Err(refused(&path, "it was sent twice"));
        }
        changes.insert(path, change);
    }
    check_directories(&changes, base)?;
    Ok(changes)
}

fn read_path(records: &mut impl Read, header: &RecordHeader) -> Result<Vec<u8>> {
    let mut path = vec![0; header.path_len.min(MAX_PATH)];
    records.read_exact(&mut path).map_err(|e| cut_short(e, None))?;
    Ok(path)
}

fn read_target(records: &mut impl Read, path: &[u8], size: u64) -> Result<Vec<u8>> {
    if let Some(why) = link_objection(path) {
        return Err(refused(path, why));
    }
    if size == 0 || size > MAX_TARGET {
        return Err(refused(path, "no symbolic link has a target of that length"));
    }
    let mut target = vec![0; usize::try_from(size).unwrap_or(0)];
    records.read_exact(&mut target).map_err(|e| cut_short(e, Some(path)))?;
    if target.contains(&0) {
        return Err(refused(path, "its link target holds a NUL byte"));
    }
    Ok(target)
}

/// Why the base does not allow a record of this kind at this path.
fn base_objection(base: &Base, path: &[u8], kind: RecordKind) -> Option<&'static str> {
    if kind == RecordKind::Deleted && base.get(path).is_none() {
        return Some("it was deleted but is not in the base");
    }
    let is_submodule = |path: &[u8]| base.get(path).is_some_and(|e| e.mode == GITLINK);
    let below = prefixes(path).any(is_submodule);
    (below || is_submodule(path)).then_some("it is or is in a submodule of the base")
}

/// The directories above a path, outermost first.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at])
}

/// No path may be a file and a directory at once.
fn check_directories(changes: &Changes, base: &Base) -> Result<()> {
    let is_there = |path: &[u8]| match changes.get(path) {
        Some(change) => *change != Change::Deleted,
        None => base.get(path).is_some(),
    };
    for (path, change) in changes {
        if *change == Change::Deleted {
            continue;
        }
        let below = base.below(path).any(|entry| is_there(entry.path));
        if below || prefixes(path).any(is_there) {
            return Err(refused(path, "it would be a file and a directory at once"));
        }
    }
    Ok(())
}

pub(crate) fn refused(path: &[u8], why: &'static str) -> WorkspaceError {
    WorkspaceError::Refused { path: ByteString(path.to_vec()), why }
}

fn cut_short(e: io::Error, path: Option<&[u8]>) -> WorkspaceError {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => WorkspaceError::CutShort(path.map(|path| ByteString(path.to_vec()))),
        _ => WorkspaceError::GuestStream(e),
    }
}

/// Where contents go.
pub(crate) trait Sink {
    /// Takes `size` bytes of what will be at `path`, and returns their mark.
    fn put(&mut self, path: &[u8], content: &mut impl Read, size: u64) -> Result<u64>;
}

/// A scratch object store that takes contents as they come: one `git fast-import`.
pub(crate) struct Store {
    git: Git,
    marks: PathBuf,
    run: Option<Running>,
    facts: Vec<Facts>,
}

/// What a store was given: each mark's object, and what was counted of its content.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    ids: Vec<String>,
    facts: Vec<Facts>,
}

impl Stored {
    /// The object's id and what was counted of the content; mark 1 is the first.
    pub(crate) fn of(&self, mark: u64) -> Option<(&str, &Facts)> {
        let at = usize::try_from(mark).ok()?.checked_sub(1)?;
        Some((self.ids.get(at)?, self.facts.get(at)?))
    }
}

impl Store {
    /// A store behind `git`, a bare repository of our own; `marks` is the file for its table of marks.
    pub(crate) fn new(git: &Git, marks: PathBuf) -> Self {
        // Larger contents are streamed instead of held; and all stay in a pack, since unpacking
        // them would touch what the source has already.
        let git = git.clone().setting("core.bigFileThreshold=1m").setting("fastimport.unpackLimit=0");
        Self { git, marks, run: None, facts: Vec::new() }
    }

    /// Waits until everything is stored.
    pub(crate) fn close(self) -> Result<Stored> {
        let Some(run) = self.run else { return Ok(Stored::default()) };
        run.finish()?;
        let text =
            std::fs::read_to_string(&self.marks).map_err(|e| WorkspaceError::io("read", &self.marks, e))?;
        let mut ids = vec![String::new(); self.facts.len()];
        for line in text.lines() {
            if let Some((mark, id)) = line.strip_prefix(':').and_then(|l| l.split_once(' '))
                && let Some(slot) = mark.parse::<usize>().ok().and_then(|m| ids.get_mut(m.checked_sub(1)?))
            {
                id.clone_into(slot);
            }
        }
        if ids.iter().any(String::is_empty) {
            return Err(WorkspaceError::GitAnswer { verb: "fast-import".into(), repository: self.marks });
        }
        Ok(Stored { ids, facts: self.facts })
    }
}

impl Sink for Store {
    fn put(&mut self, path: &[u8], content: &mut impl Read, size: u64) -> Result<u64> {
        let mark = self.facts.len() as u64 + 1;
        let mut facts = Facts::default();
        let run = match &mut self.run {
            Some(run) => run,
            None => {
                let mut marks = std::ffi::OsString::from("--export-marks=");
                marks.push(&self.marks);
                let marks = marks.to_string_lossy().into_owned();
                self.run.insert(self.git.converse(&["fast-import", "--quiet", &marks])?)
            }
        };
        let written = match run.child.stdin.as_mut() {
            None => Ok(Ok(())),
            Some(pipe) => pass(content, size, mark, &mut facts, pipe),
        };
        self.facts.push(facts.end());
        match written {
            Ok(Ok(())) => Ok(mark),
            Ok(Err(reading)) => Err(cut_short(reading, Some(path))),
            // The pipe broke: git says why when it is waited for.
            Err(writing) => match self.run.take().map(Running::finish) {
                Some(Err(e)) => Err(e),
                _ => Err(WorkspaceError::io("write objects to", &self.marks, writing)),
            },
        }
    }
}

/// One blob in fast-import's language. The outer error is of writing, the inner of reading.
fn pass(
    content: &mut impl Read,
    size: u64,
    mark: u64,
    facts: &mut Facts,
    pipe: &mut impl Write,
) -> io::Result<io::Result<()>> {
    pipe.write_all(format!("blob\nmark :{mark}\ndata {size}\n").as_bytes())?;
    let (mut buf, mut left) = (vec![0; (64 << 10).min(usize::try_from(size).unwrap_or(1).max(1))], size);
    while left > 0 {
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = match content.read(&mut buf[..want]) {
            Ok(0) => return Ok(Err(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Err(e)),
        };
        facts.count(&buf[..n]);
        pipe.write_all(&buf[..n])?;
        left -= n as u64;
    }
    pipe.write_all(b"\n")?;
    Ok(Ok(()))
}
