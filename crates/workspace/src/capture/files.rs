//! Working-tree files as they are now, read without following any link.
//!
//! Owns the promise that a file which changes while it is read is noticed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use banger_model::ByteString;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::index::Stamp;
use super::tarball::Tarball;
use crate::{Cancel, Result, WorkspaceError};

/// Files up to this are read whole before they are sent, so that a retry costs nothing.
const SMALL: u64 = 1 << 20;
/// At most so long is a tick of the kernel's clock, twice over.
pub(crate) const TICK: Duration = Duration::from_millis(20);
/// How often a file that changes is read again.
const TRIES: u32 = 4;

/// A working tree held open at its top.
#[derive(Debug)]
pub(crate) struct Tree {
    top: PathBuf,
    root: OwnedFd,
    /// The directory of the last path, since paths come sorted.
    near: Option<(Vec<u8>, OwnedFd)>,
    /// The latest time that a file gets in the guest, seconds: git distrusts what is as young as its index.
    latest: u64,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File { executable: bool },
    Link,
    Directory,
    Special,
}

/// A path's kind and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) kind: Kind,
    pub(crate) stamp: Stamp,
}

impl Found {
    /// The modification time in whole seconds, none before 1970.
    pub(crate) fn mtime(&self) -> u64 {
        u64::try_from(self.stamp.mtime.0).unwrap_or(0)
    }

    /// Whether a change after `now`, when it was read, could leave this very state: a file's change time may
    /// be older than the moment of the change by a tick of the kernel's clock.
    pub(crate) fn is_unsure(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(
            u64::try_from(self.stamp.ctime.0).unwrap_or(0),
            u32::try_from(self.stamp.ctime.1).unwrap_or(0),
        );
        changed + TICK >= now
    }

    pub(crate) fn of(stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File { executable: stat.st_mode & 0o100 != 0 },
            FileType::Symlink => Kind::Link,
            FileType::Directory => Kind::Directory,
            _ => Kind::Special,
        };
        let stamp = Stamp {
            mtime: (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: (stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
        };
        Self { kind, stamp }
    }
}

impl Tree {
    pub(crate) fn open(top: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(top, flags, Mode::empty())
            .map_err(|e| WorkspaceError::io("open", top, e.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        Ok(Self { top: top.to_owned(), root, near: None, latest: now.saturating_sub(1) })
    }

    /// The modification time as the tar stream says it.
    pub(crate) fn time(&self, found: &Found) -> u64 {
        found.mtime().min(self.latest)
    }

    /// What is at `path`; nothing when it, or a directory above it, is not there (a link in place
    /// of a directory is not a directory).
    pub(crate) fn look(&mut self, path: &[u8]) -> Result<Option<Found>> {
        let what = match self.at(path, |dir, name| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
            Err(e) => return Err(self.failed("look at", path, e.into())),
            Ok(stat) => Some(Found::of(&stat)),
        };
        Ok(what)
    }

    /// Runs `act` on the directory of `path` and its last component.
    fn at<T>(&mut self, path: &[u8], act: impl Fn(&OwnedFd, &OsStr) -> Result<T, Errno>) -> Result<T, Errno> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        let name = OsStr::from_bytes(name);
        if dir.is_empty() {
            return act(&self.root, name);
        }
        if self.near.as_ref().is_none_or(|(near, _)| near != dir) {
            self.near = None;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut fd: Option<OwnedFd> = None;
            for part in dir.split(|b| *b == b'/') {
                let above = fd.as_ref().unwrap_or(&self.root);
                fd = Some(rustix::fs::openat(above, OsStr::from_bytes(part), flags, Mode::empty())?);
            }
            self.near = fd.map(|fd| (dir.to_vec(), fd));
        }
        match &self.near {
            Some((_, fd)) => act(fd, name),
            None => Err(Errno::NOENT),
        }
    }

    /// Writes what is at `path` as one entry called `name`; returns the state that was sent. A file that changes
    /// meanwhile is sent again; the last entry of a name is the one that counts.
    pub(crate) fn send<W: Write>(
        &mut self,
        path: &[u8],
        name: &[u8],
        executable: Option<bool>,
        tar: &mut Tarball<W>,
        cancel: &Cancel,
    ) -> Result<Found> {
        for attempt in 0..TRIES {
            cancel.check()?;
            if attempt > 0 {
                // A file that is replaced by rename or rewritten is whole again in a moment.
                self.near = None;
                std::thread::sleep(Duration::from_millis(20 << attempt));
            }
            let Some(found) = self.look(path)? else { continue };
            let sent = match found.kind {
                Kind::Link => self.send_link(path, name, found, tar)?,
                Kind::File { executable: now } => {
                    let mode = if executable.unwrap_or(now) { 0o755 } else { 0o644 };
                    self.send_file(path, name, found, mode, tar, cancel)?
                }
                Kind::Directory => false,
                Kind::Special => return Err(WorkspaceError::Special(ByteString(name.to_vec()))),
            };
            if sent {
                return Ok(found);
            }
        }
        Err(WorkspaceError::Changed(ByteString(name.to_vec())))
    }

    fn send_link<W: Write>(
        &mut self,
        path: &[u8],
        name: &[u8],
        found: Found,
        tar: &mut Tarball<W>,
    ) -> Result<bool> {
        let Ok(target) = self.at(path, |dir, name| rustix::fs::readlinkat(dir, name, Vec::new())) else {
            return Ok(false);
        };
        tar.link(name, target.as_bytes(), self.time(&found)).map_err(WorkspaceError::Stream)?;
        Ok(self.look(path)? == Some(found))
    }

    fn send_file<W: Write>(
        &mut self,
        path: &[u8],
        name: &[u8],
        found: Found,
        mode: u32,
        tar: &mut Tarball<W>,
        cancel: &Cancel,
    ) -> Result<bool> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match self.at(path, |dir, name| rustix::fs::openat(dir, name, flags, Mode::empty())) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(self.failed("read", path, e.into())),
        };
        let size = found.stamp.size;
        let same = |file: &File| rustix::fs::fstat(file).is_ok_and(|stat| Found::of(&stat) == found);
        if !same(&file) {
            return Ok(false);
        }
        if size <= SMALL {
            let mut data = Vec::with_capacity(size as usize + 1);
            (&mut file).take(size + 1).read_to_end(&mut data).map_err(|e| self.failed("read", path, e))?;
            let whole = data.len() as u64 == size && same(&file);
            if whole {
                tar.file(name, mode, self.time(&found), &data).map_err(WorkspaceError::Stream)?;
            }
            return Ok(whole);
        }
        tar.begin(name, mode, self.time(&found), size).map_err(WorkspaceError::Stream)?;
        let sent = copy(&mut file, size, tar, cancel).map_err(|e| e.or(|e| self.failed("read", path, e)))?;
        tar.end(size).map_err(WorkspaceError::Stream)?;
        Ok(sent && same(&file))
    }

    fn failed(&self, action: &'static str, path: &[u8], e: io::Error) -> WorkspaceError {
        WorkspaceError::io(action, self.top.join(OsStr::from_bytes(path)), e)
    }
}

/// A copy that stopped: by the reader's fault, or by another.
enum Stopped {
    Reading(io::Error),
    Other(WorkspaceError),
}

impl Stopped {
    fn or(self, reading: impl FnOnce(io::Error) -> WorkspaceError) -> WorkspaceError {
        match self {
            Self::Reading(e) => reading(e),
            Self::Other(e) => e,
        }
    }
}

/// Copies exactly `size` bytes, filling up with zeros when the file is shorter: then `false`.
fn copy<W: Write>(
    file: &mut File,
    size: u64,
    tar: &mut Tarball<W>,
    cancel: &Cancel,
) -> Result<bool, Stopped> {
    let (mut buf, mut left, mut whole) = (vec![0; 256 << 10], size, true);
    while left > 0 {
        cancel.check().map_err(Stopped::Other)?;
        let want = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut n = if whole { file.read(&mut buf[..want]).map_err(Stopped::Reading)? } else { 0 };
        if n == 0 {
            whole = false;
            n = want;
            buf[..n].fill(0);
        }
        tar.data(&buf[..n]).map_err(|e| Stopped::Other(WorkspaceError::Stream(e)))?;
        left -= n as u64;
    }
    Ok(whole)
}

/// A file in scratch, which nobody else writes.
pub(crate) fn send_ours<W: Write>(
    file: &Path,
    name: &[u8],
    mtime: u64,
    tar: &mut Tarball<W>,
    cancel: &Cancel,
) -> Result<()> {
    let reading = |e| WorkspaceError::io("read", file, e);
    let mut open = File::open(file).map_err(reading)?;
    let size = open.metadata().map_err(reading)?.len();
    tar.begin(name, 0o444, mtime, size).map_err(WorkspaceError::Stream)?;
    if !copy(&mut open, size, tar, cancel).map_err(|e| e.or(reading))? {
        return Err(reading(io::ErrorKind::UnexpectedEof.into()));
    }
    tar.end(size).map_err(WorkspaceError::Stream)
}
