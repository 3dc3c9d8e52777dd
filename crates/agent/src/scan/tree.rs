//! Looking at a tree without following any link.
//!
//! Owns every open of the scan: each component is opened below its parent with `O_NOFOLLOW`, so a
//! link that is swapped in meanwhile leads nowhere.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// A tree held open at its top.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    near: Option<(Vec<u8>, OwnedFd)>,
}

/// A name in a directory.
pub(super) struct Name {
    pub(super) name: Vec<u8>,
    pub(super) is_dir: bool,
}

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(root, flags, Mode::empty())?, near: None })
    }

    /// The names in a directory (empty: the top), sorted.
    pub(super) fn names(&mut self, dir: &[u8]) -> Result<Vec<Name>, Errno> {
        let mut names = Vec::new();
        self.near = None;
        self.in_dir(dir, |fd| {
            let mut entries = Dir::read_from(fd)?;
            while let Some(entry) = entries.read() {
                let entry = entry?;
                let name = entry.file_name().to_bytes().to_vec();
                if matches!(&name[..], b"." | b"..") {
                    continue;
                }
                let mut kind = entry.file_type();
                if kind == FileType::Unknown {
                    let stat = rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                    kind = FileType::from_raw_mode(stat.st_mode);
                }
                names.push(Name { name, is_dir: kind == FileType::Directory });
            }
            Ok(())
        })?;
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    /// What is at a path; nothing when it or a directory above it is absent or a link.
    pub(super) fn look(&mut self, path: &[u8]) -> Result<Option<Stat>, Errno> {
        let found = self.at(path, |fd, name| rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW));
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens a file for reading; it may be anything but a link.
    pub(super) fn file(&mut self, path: &[u8]) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        self.at(path, |fd, name| rustix::fs::openat(fd, name, flags, Mode::empty())).map(File::from)
    }

    /// A link's target.
    pub(super) fn target(&mut self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        self.at(path, |fd, name| rustix::fs::readlinkat(fd, name, Vec::new()))
            .map(std::ffi::CString::into_bytes)
    }

    fn at<T>(&mut self, path: &[u8], act: impl Fn(&OwnedFd, &OsStr) -> Result<T, Errno>) -> Result<T, Errno> {
        let (dir, name) = match path.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&path[..0], path),
        };
        self.in_dir(dir, |fd| act(fd, OsStr::from_bytes(name)))
    }

    fn in_dir<T>(
        &mut self,
        dir: &[u8],
        mut act: impl FnMut(&OwnedFd) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if dir.is_empty() {
            return act(&self.root);
        }
        if self.near.as_ref().is_none_or(|(near, _)| near != dir) {
            self.near = None;
            let mut fd: Option<OwnedFd> = None;
            for part in dir.split(|b| *b == b'/') {
                let above = fd.as_ref().unwrap_or(&self.root);
                fd = Some(rustix::fs::openat(above, OsStr::from_bytes(part), DIR, Mode::empty())?);
            }
            self.near = fd.map(|fd| (dir.to_vec(), fd));
        }
        match &self.near {
            Some((_, fd)) => act(fd),
            None => Err(Errno::NOENT),
        }
    }
}
