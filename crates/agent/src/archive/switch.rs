//! What arrived for a workspace that is there, put in its place. Everything waits below `.git` until it is whole; from
//! then on it is put in place also when the machine dies in between, by whoever comes to the workspace next. Must never
//! follow a symbolic link.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Timespec, Timestamps, syncfs};
use rustix::io::Errno;

use super::ArchiveError;
use super::beneath::{Below, DIRECTORY};
use super::copy_in::{remove, remove_below};
use crate::scan::seen::Recorder;

/// Where new files wait, below the workspace's repository; and how that is called where they cannot.
const NEW: &[u8] = b"banger-new";
const WAITING: &[u8] = b".git/banger-new";
/// Below that: the files, and the list of paths to remove, which is there when everything is; its name changes when they are gone.
const TREE: &[u8] = b"tree";
const LIST: &[u8] = b"list";
const REMOVED: &[u8] = b"removed";
/// The longest list that is read, bytes.
const MAX_LIST: u64 = 1 << 30;

/// Copies in, and questions about which copy is there: one at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Waits for the copy that is under way: one whose stream has ended still has to be put in place.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// New files of a workspace, waiting.
pub(super) struct Waiting {
    top: OwnedFd,
    dir: OwnedFd,
}

impl Waiting {
    /// Makes room for them; what an earlier time left must have been dealt with by [`finish`].
    pub(super) fn open(top: OwnedFd) -> Result<Self, ArchiveError> {
        let failed = ArchiveError::file::<Errno>;
        let git = rustix::fs::openat(&top, ".git", DIRECTORY, Mode::empty()).map_err(failed(b".git"))?;
        match remove_below(&git, NEW) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(WAITING)(e)),
        }
        rustix::fs::mkdirat(&git, NEW, Mode::RWXU).map_err(failed(WAITING))?;
        let dir = rustix::fs::openat(&git, NEW, DIRECTORY, Mode::empty()).map_err(failed(WAITING))?;
        rustix::fs::mkdirat(&dir, TREE, Mode::RWXU).map_err(failed(WAITING))?;
        Ok(Self { top, dir })
    }

    /// The directory to unpack into.
    pub(super) fn tree(&self) -> Result<OwnedFd, ArchiveError> {
        rustix::fs::openat(&self.dir, TREE, DIRECTORY, Mode::empty()).map_err(ArchiveError::file(WAITING))
    }

    /// Gives it up.
    pub(super) fn discard(self) {
        // The next one begins with removing it.
        if let Ok(git) = rustix::fs::openat(&self.top, ".git", DIRECTORY, Mode::empty()) {
            let _ = remove_below(&git, NEW);
        }
    }

    /// Everything has arrived: removes `list` (paths, each ended by a NUL) and puts the new files in place.
    pub(super) fn put(self, list: &[u8]) -> Result<(), ArchiveError> {
        let written = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = b"list.next";
            let file = rustix::fs::openat(&self.dir, &next[..], flags, Mode::RUSR | Mode::WUSR)?;
            File::from(file).write_all(list)?;
            // What is promised by the list's name must be there after the machine's death.
            syncfs(&self.dir)?;
            rustix::fs::renameat(&self.dir, &next[..], &self.dir, LIST)?;
            Ok::<_, io::Error>(())
        };
        if let Err(e) = written() {
            self.discard();
            return Err(ArchiveError::file(WAITING)(e));
        }
        roll(&self.top, &self.dir)
    }
}

/// Ends what was begun and is whole; what is not whole stays, and is nobody's business but the next copy's.
///
/// # Errors
/// What cannot be written.
pub(crate) fn finish(root: &Path) -> Result<(), ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(top) = rustix::fs::open(root, flags, Mode::empty()) else { return Ok(()) };
    let below = Below::new(match top.try_clone() {
        Ok(top) => top,
        Err(e) => return Err(ArchiveError::file(WAITING)(e)),
    })
    .directory(&[b".git", NEW], false)
    .map(|dir| dir.try_clone_to_owned());
    let Ok(Ok(dir)) = below else { return Ok(()) };
    let has = |name: &[u8]| rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
    if has(LIST) || has(REMOVED) { roll(&top, &dir) } else { Ok(()) }
}

/// Puts everything in place, as often as it takes.
fn roll(top: &OwnedFd, dir: &OwnedFd) -> Result<(), ArchiveError> {
    let failed = |e: Errno| ArchiveError::file(WAITING)(e);
    // One at a time; who waited finds nothing left to do.
    rustix::fs::flock(dir, FlockOperation::LockExclusive).map_err(failed)?;
    if let Some(list) = paths(dir, LIST)? {
        let mut below = Below::new(top.try_clone().map_err(ArchiveError::file(WAITING))?);
        for path in list.split(|b| *b == 0).filter(|path| !path.is_empty()) {
            remove(&mut below, path)?;
        }
        // Not once more: something else may be in their place by then.
        rustix::fs::renameat(dir, LIST, dir, REMOVED).map_err(failed)?;
    }
    let Some(removed) = paths(dir, REMOVED)? else { return Ok(()) };
    let mut seen = Recorder::again();
    removed.split(|b| *b == 0).filter(|path| !path.is_empty()).for_each(|path| seen.removed(path));
    let tree = rustix::fs::openat(dir, TREE, DIRECTORY, Mode::empty()).map_err(failed)?;
    place(&tree, top, b"", &mut seen)?;
    seen.finish(top.as_fd()).map_err(ArchiveError::file(WAITING))?;
    rustix::fs::unlinkat(dir, REMOVED, AtFlags::empty()).map_err(failed)?;
    let git = rustix::fs::openat(top, ".git", DIRECTORY, Mode::empty()).map_err(failed)?;
    remove_below(&git, NEW).map_err(failed)
}

/// A list of paths, if it is there.
fn paths(dir: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(ArchiveError::file(WAITING)(e)),
    };
    let mut paths = Vec::new();
    File::from(file).take(MAX_LIST).read_to_end(&mut paths).map_err(ArchiveError::file(WAITING))?;
    Ok(Some(paths))
}

/// Moves what is in `from` to `to`, the directory of the workspace that is called `path`.
fn place(from: &OwnedFd, to: &OwnedFd, path: &[u8], seen: &mut Recorder) -> Result<(), ArchiveError> {
    let failed = ArchiveError::file::<Errno>;
    let entries = rustix::fs::Dir::read_from(from).map_err(failed(path))?;
    let mut names: Vec<Vec<u8>> = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed(path))?.file_name().to_bytes().to_vec();
        if !matches!(&name[..], b"." | b"..") {
            names.push(name);
        }
    }
    // The repository after the files, and its index after all else of it.
    names.sort_by_key(|name| (name == b".git", name == b"index", name.clone()));
    for name in names {
        let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
        let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&path))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let into =
                directory(to, &name, Mode::from_raw_mode(stat.st_mode & 0o7777)).map_err(failed(&path))?;
            let from = rustix::fs::openat(from, &name, DIRECTORY, Mode::empty()).map_err(failed(&path))?;
            place(&from, &into, &path, seen)?;
            continue;
        }
        clear(to, &name).map_err(failed(&path))?;
        match rustix::fs::renameat(from, &name, to, &name) {
            // The guest has mounted something below its workspace.
            Err(Errno::XDEV) => copy(from, to, &name).map_err(ArchiveError::file(&path))?,
            moved => moved.map_err(failed(&path))?,
        }
        let now = rustix::fs::statat(to, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed(&path))?;
        seen.file(&path, &now);
    }
    Ok(())
}

/// A directory in the workspace, in place of whatever else is there.
fn directory(to: &OwnedFd, name: &[u8], mode: Mode) -> Result<OwnedFd, Errno> {
    match rustix::fs::mkdirat(to, name, mode) {
        Err(Errno::EXIST) => match rustix::fs::openat(to, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::unlinkat(to, name, AtFlags::empty())?;
                rustix::fs::mkdirat(to, name, mode)?;
            }
            there => {
                let there = there?;
                rustix::fs::fchmod(&there, mode)?;
                return Ok(there);
            }
        },
        made => made?,
    }
    rustix::fs::openat(to, name, DIRECTORY, Mode::empty())
}

/// Makes room for a file: a link or file would be replaced by itself, a directory that is empty is not.
fn clear(to: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(to, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Moves a file or link to another file system.
fn copy(from: &OwnedFd, to: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        let target = rustix::fs::readlinkat(from, name, Vec::new())?;
        rustix::fs::symlinkat(target, to, name)?;
    } else {
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
        let mut target = File::from(rustix::fs::openat(to, name, write, Mode::RUSR | Mode::WUSR)?);
        io::copy(&mut source, &mut target)?;
        rustix::fs::fchmod(&target, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    }
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    rustix::fs::unlinkat(from, name, AtFlags::empty())?;
    Ok(())
}
