//! The host's working tree, changed path by path below one directory descriptor.
//!
//! Owns every write of an apply. Must never go through a symbolic link, leave the repository, or
//! replace what is not what was inspected.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use banger_model::ByteString;
use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use crate::{Result, WorkspaceError};

/// The directory in the repository's git directory where new contents wait.
const STAGING: &str = "banger-apply";
/// Below the one directory, through no link of any kind (openat2(2)).
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is at a path of the working tree.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Here {
    /// Nothing.
    Absent,
    /// A file.
    File(Stat),
    /// A symbolic link.
    Link(Stat),
    /// A directory.
    Directory,
    /// A socket, a device or a pipe.
    Special,
    /// Something that is no directory stands in place of one above it; so many bytes of the path
    /// name it.
    Blocked(usize),
}

impl Here {
    /// Whether this is a file or link that was just put here, `then` its state before, and has not been written to since. Its
    /// change time is that of its coming here.
    pub(crate) fn is_put(&self, then: &Stat) -> bool {
        let state = |s: &Stat| (s.st_dev, s.st_ino, s.st_mode, s.st_size, s.st_mtime, s.st_mtime_nsec);
        matches!(self, Self::File(now) | Self::Link(now) if state(now) == state(then))
    }

    fn is_same(&self, other: &Self) -> bool {
        let state = |s: &Stat| {
            (
                s.st_dev,
                s.st_ino,
                s.st_mode,
                s.st_size,
                s.st_mtime,
                s.st_mtime_nsec,
                s.st_ctime,
                s.st_ctime_nsec,
            )
        };
        match (self, other) {
            (Self::File(a), Self::File(b)) | (Self::Link(a), Self::Link(b)) => state(a) == state(b),
            (Self::Absent | Self::Blocked(_), Self::Absent | Self::Blocked(_)) => true,
            (Self::Directory, Self::Directory) => true,
            _ => false,
        }
    }
}

/// A working tree held open at its top.
#[derive(Debug)]
pub(crate) struct WorkTree {
    top: PathBuf,
    root: OwnedFd,
}

impl WorkTree {
    pub(crate) fn open(top: &Path) -> Result<Self> {
        let root = rustix::fs::open(top, DIR, Mode::empty())
            .map_err(|e| WorkspaceError::io("open", top, e.into()))?;
        Ok(Self { top: top.to_owned(), root })
    }

    /// What is at a path.
    pub(crate) fn look(&self, path: &[u8]) -> Result<Here> {
        let failed = |e: Errno| self.failed("look at", path, e);
        for slash in path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at) {
            match self.stat(&path[..slash]).map_err(failed)? {
                None => return Ok(Here::Absent),
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                Some(_) => return Ok(Here::Blocked(slash)),
            }
        }
        let Some(stat) = self.stat(path).map_err(failed)? else { return Ok(Here::Absent) };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Here::File(stat),
            FileType::Symlink => Here::Link(stat),
            FileType::Directory => Here::Directory,
            _ => Here::Special,
        })
    }

    fn stat(&self, path: &[u8]) -> Result<Option<Stat>, Errno> {
        let (dir, name) = split(path);
        let found = self
            .directory(dir)
            .and_then(|fd| rustix::fs::statat(fd, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// A directory of the tree (empty: the top), reached through directories only.
    fn directory(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        if dir.is_empty() {
            return self.root.try_clone().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
        }
        rustix::fs::openat2(&self.root, OsStr::from_bytes(dir), DIR, Mode::empty(), RESOLVE)
    }

    /// All files and links below a directory.
    pub(crate) fn below(&self, dir: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (mut found, mut ahead) = (Vec::new(), vec![dir.to_vec()]);
        while let Some(dir) = ahead.pop() {
            let mut list = || -> Result<(), Errno> {
                let mut entries = Dir::read_from(self.directory(&dir)?)?;
                while let Some(entry) = entries.read() {
                    let entry = entry?;
                    let name = entry.file_name().to_bytes();
                    if matches!(name, b"." | b"..") {
                        continue;
                    }
                    let path = [&dir[..], b"/", name].concat();
                    let is_dir = self
                        .stat(&path)?
                        .is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
                    if is_dir { ahead.push(path) } else { found.push(path) }
                }
                Ok(())
            };
            list().map_err(|e| self.failed("list", &dir, e))?;
        }
        Ok(found)
    }

    /// A file's content, if it is still the one that was inspected.
    pub(crate) fn read(&self, path: &[u8], here: &Here) -> Result<Vec<u8>> {
        let (dir, name) = split(path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = self
            .directory(dir)
            .and_then(|fd| rustix::fs::openat(fd, OsStr::from_bytes(name), flags, Mode::empty()));
        let mut file = File::from(open.map_err(|e| self.failed("read", path, e))?);
        let mut content = Vec::new();
        file.read_to_end(&mut content)
            .map_err(|e| WorkspaceError::io("read", self.top.join(OsStr::from_bytes(path)), e))?;
        self.expect(path, here)?;
        Ok(content)
    }

    fn expect(&self, path: &[u8], here: &Here) -> Result<()> {
        if self.look(path)?.is_same(here) {
            Ok(())
        } else {
            Err(WorkspaceError::Changed(ByteString(path.to_vec())))
        }
    }

    /// Removes a file or link that is still the one inspected, and the directories that this
    /// empties.
    pub(crate) fn remove(&self, path: &[u8], here: &Here) -> Result<()> {
        self.expect(path, here)?;
        let (mut dir, name) = split(path);
        self.directory(dir)
            .and_then(|fd| rustix::fs::unlinkat(fd, OsStr::from_bytes(name), AtFlags::empty()))
            .map_err(|e| self.failed("remove", path, e))?;
        while !dir.is_empty() {
            let (above, name) = split(dir);
            let removed = self
                .directory(above)
                .and_then(|fd| rustix::fs::unlinkat(fd, OsStr::from_bytes(name), AtFlags::REMOVEDIR));
            if removed.is_err() {
                // Not empty, or somebody's: it stays.
                break;
            }
            dir = above;
        }
        Ok(())
    }

    /// Puts what waits in `staging` at a path, in place of what was inspected there. Returns its state before that.
    pub(crate) fn put(&self, staging: &Staging, n: usize, path: &[u8], here: &Here) -> Result<Stat> {
        let (dir, name) = split(path);
        let name = OsStr::from_bytes(name);
        let failed = |e: Errno| self.failed("write", path, e);
        let fd = self.make_directories(dir).map_err(failed)?;
        self.remove_empty(path).map_err(failed)?;
        let staged = n.to_string();
        let stat =
            rustix::fs::statat(&staging.dir, staged.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let moved = match here {
            // A file in whose place a directory comes is gone by now.
            Here::File(_) | Here::Link(_) => {
                self.expect(path, here)?;
                rustix::fs::renameat(&staging.dir, staged.as_str(), &fd, name).map_err(failed)
            }
            _ => rustix::fs::renameat_with(&staging.dir, staged.as_str(), &fd, name, RenameFlags::NOREPLACE)
                .map_err(|e| match e {
                    Errno::EXIST => WorkspaceError::Changed(ByteString(path.to_vec())),
                    e => failed(e),
                }),
        };
        moved.map(|()| stat)
    }

    /// Opens a directory, making what is missing with the modes of the directories above.
    fn make_directories(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        let mut at = self.directory(b"")?;
        for part in dir.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            let name = OsStr::from_bytes(part);
            let open = |at: &OwnedFd| rustix::fs::openat2(at, name, DIR, Mode::empty(), RESOLVE);
            at = match open(&at) {
                Err(Errno::NOENT) => {
                    let mode = Mode::from_raw_mode(rustix::fs::fstat(&at)?.st_mode & 0o2777);
                    rustix::fs::mkdirat(&at, name, Mode::RWXU)?;
                    let made = open(&at)?;
                    rustix::fs::fchmod(&made, mode)?;
                    made
                }
                other => other?,
            };
        }
        Ok(at)
    }

    /// Removes a directory at `path` that holds nothing but directories.
    fn remove_empty(&self, path: &[u8]) -> Result<(), Errno> {
        let Some(stat) = self.stat(path)? else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let mut entries = Dir::read_from(self.directory(path)?)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.remove_empty(&[path, b"/", name].concat())?;
            }
        }
        let (dir, name) = split(path);
        rustix::fs::unlinkat(self.directory(dir)?, OsStr::from_bytes(name), AtFlags::REMOVEDIR)
    }

    /// The permissions a file at `path` gets: those of the file there, else as the directory above
    /// suggests; with or without the executable bits.
    pub(crate) fn mode_for(&self, path: &[u8], here: &Here, executable: bool) -> Result<Mode> {
        let bits = match here {
            Here::File(stat) => stat.st_mode & 0o777,
            _ => {
                let mut dir = split(path).0;
                let stat = loop {
                    if dir.is_empty() {
                        break rustix::fs::fstat(&self.root).map_err(|e| self.failed("look at", path, e))?;
                    }
                    match self.stat(dir).map_err(|e| self.failed("look at", path, e))? {
                        Some(stat) => break stat,
                        None => dir = split(dir).0,
                    }
                };
                stat.st_mode & 0o666
            }
        };
        let bits = if executable { bits | (bits & 0o444) >> 2 } else { bits & !0o111 };
        Ok(Mode::from_raw_mode(bits | 0o600))
    }

    fn failed(&self, action: &'static str, path: &[u8], e: Errno) -> WorkspaceError {
        WorkspaceError::io(action, self.top.join(OsStr::from_bytes(path)), e.into())
    }
}

/// A directory and the name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    }
}

/// New contents, whole and beside the tree, before the first path is changed. Its lock keeps two
/// applies to one repository apart; what a killed one left is removed by the next.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    dir: OwnedFd,
    _lock: File,
}

impl Staging {
    /// Room in `git_dir`, or in the working tree's top where that is another file system.
    pub(crate) fn open(git_dir: &Path, top: &Path) -> Result<Self> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |e: Errno| WorkspaceError::io("make room for new files in", path.clone(), e.into())
        };
        let device = |path: &Path| rustix::fs::stat(path).map(|s| s.st_dev).map_err(failed(path));
        let near = device(git_dir)? == device(top)?;
        let (home, name) = if near { (git_dir, STAGING.to_owned()) } else { (top, format!(".{STAGING}")) };
        let lock = File::open(git_dir).map_err(|e| WorkspaceError::io("open", git_dir, e))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
            Errno::AGAIN => WorkspaceError::Applying(top.to_owned()),
            e => failed(git_dir)(e),
        })?;
        let path = home.join(name);
        match std::fs::symlink_metadata(&path) {
            Ok(_) => std::fs::remove_dir_all(&path).map_err(|e| WorkspaceError::io("remove", &path, e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(WorkspaceError::io("look at", path, e)),
        }
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(failed(&path))?;
        let flags = DIR | OFlags::NOFOLLOW;
        let dir = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed(&path))?;
        Ok(Self { path, dir, _lock: lock })
    }

    /// A file that will be the nth. Returns the SHA-256 of its content.
    pub(crate) fn file(&self, n: usize, mode: Mode, content: &mut dyn Read) -> Result<[u8; 32]> {
        let failed = |e: io::Error| WorkspaceError::io("write", self.path.join(n.to_string()), e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.dir, n.to_string(), flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| failed(e.into()))?;
        let mut file = File::from(fd);
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 64 << 10]);
        loop {
            let n = content.read(&mut buffer).map_err(failed)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(failed)?;
        }
        rustix::fs::fchmod(file.as_fd(), mode).map_err(|e| failed(e.into()))?;
        Ok(hash.finalize().into())
    }

    /// A link that will be the nth.
    pub(crate) fn link(&self, n: usize, target: &[u8]) -> Result<()> {
        rustix::fs::symlinkat(OsStr::from_bytes(target), &self.dir, n.to_string())
            .map_err(|e| WorkspaceError::io("write", self.path.join(n.to_string()), e.into()))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next apply.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}
