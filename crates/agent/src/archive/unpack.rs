//! A tar stream into a directory. Replaces what is in the way, file by file; a directory stays and
//! takes the archive's mode.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use banger_protocol::agent::UnpackSpec;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use super::ArchiveError;
use super::beneath::{Below, DIRECTORY, parts};
use crate::scan::seen::{self, Recorder};

const CHUNK: usize = 64 * 1024;

/// Unpacks a stream to its end.
///
/// # Errors
/// The first entry that cannot be written; what came before it stays.
pub fn unpack(spec: &UnpackSpec, input: impl Read) -> Result<(), ArchiveError> {
    let dest = &spec.dest;
    let path = Path::new(dest.as_os_str());
    if !path.is_absolute() || dest.as_bytes().contains(&0) {
        return Err(ArchiveError::NotAbsolute(dest.clone()));
    }
    if spec.must_be_empty && std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(ArchiveError::NotEmpty(dest.clone()));
    }
    std::fs::create_dir_all(path).map_err(ArchiveError::file(dest.as_bytes()))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, flags, Mode::empty()).map_err(ArchiveError::file(dest.as_bytes()))?;
    into_directory(top, Recorder::default(), input)
}

/// Unpacks a stream to its end into a directory that is held open; what is left there is told to `seen`, which has it
/// on record also when the stream breaks off.
pub(super) fn into_directory(top: OwnedFd, seen: Recorder, input: impl Read) -> Result<(), ArchiveError> {
    let mut job = Job {
        below: Below::new(top),
        owners: rustix::process::geteuid().is_root(),
        directories: Vec::new(),
        buffer: vec![0; CHUNK],
        seen,
    };
    let unpacked = job.entries(input);
    job.finish(unpacked)
}

/// What an entry says about its owner, mode and time.
#[derive(Clone, Copy)]
struct Meta {
    mode: Mode,
    owner: Option<(Uid, Gid)>,
    mtime: i64,
}

struct Job {
    below: Below,
    owners: bool,
    /// Directories get their mode and time last: they may be read-only, and writing changes their time.
    directories: Vec<(Vec<u8>, Meta)>,
    buffer: Vec<u8>,
    seen: Recorder,
}

impl Job {
    fn entries(&mut self, input: impl Read) -> Result<(), ArchiveError> {
        let mut archive = Archive::new(input);
        for entry in archive.entries().map_err(ArchiveError::Stream)? {
            self.entry(&mut entry.map_err(ArchiveError::Stream)?)?;
        }
        // What follows the end mark is padding; the sender should not be cut off.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(ArchiveError::Stream).map(drop)
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ArchiveError> {
        let path = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let parts = parts(&path)?;
        let meta = self.meta(entry).map_err(ArchiveError::Stream)?;
        let Some((name, parents)) = parts.split_last() else {
            // The directory itself.
            self.directories.push((Vec::new(), meta));
            return Ok(());
        };
        if kind.is_dir() {
            self.make_directory(&path, parents, name)?;
            self.seen.directory(&parts.join(&b'/'));
            self.directories.push((parts.join(&b'/'), meta));
            return Ok(());
        }
        if kind.is_hard_link() {
            return self.link(entry, &path, parents, name);
        }
        let dir = self.below.directory(parents, true)?;
        clear(dir, name).map_err(ArchiveError::file(&path))?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(dir, *name, flags, Mode::RUSR | Mode::WUSR);
                let file = File::from(file.map_err(ArchiveError::file(&path))?);
                let size = entry.size();
                fill(&file, entry, size, &mut self.buffer, &path)?;
                let settled = settle(file.as_fd(), meta).and_then(|()| rustix::fs::fstat(&file));
                self.seen.file(&parts.join(&b'/'), &settled.map_err(ArchiveError::file(&path))?);
                Ok(())
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                rustix::fs::symlinkat(target, dir, *name).map_err(ArchiveError::file(&path))?;
                let settled = settle_at(dir, name, meta, false)
                    .and_then(|()| rustix::fs::statat(dir, *name, AtFlags::SYMLINK_NOFOLLOW));
                self.seen.file(&parts.join(&b'/'), &settled.map_err(ArchiveError::file(&path))?);
                Ok(())
            }
            EntryType::Fifo | EntryType::Char | EntryType::Block => {
                let (file_type, device) = special(entry).map_err(ArchiveError::Stream)?;
                rustix::fs::mknodat(dir, *name, file_type, meta.mode, device)
                    .map_err(ArchiveError::file(&path))?;
                settle_at(dir, name, meta, true).map_err(ArchiveError::file(&path))
            }
            _ => Err(ArchiveError::UnknownKind(path.into())),
        }
    }

    fn meta<R: Read>(&self, entry: &Entry<'_, R>) -> io::Result<Meta> {
        let header = entry.header();
        let id = |n: u64| u32::try_from(n).map_err(|_| io::Error::other("an owner's number is too large"));
        let owner = if self.owners {
            Some((Uid::from_raw(id(header.uid()?)?), Gid::from_raw(id(header.gid()?)?)))
        } else {
            None
        };
        Ok(Meta {
            mode: Mode::from_raw_mode(header.mode()? & 0o7777),
            owner,
            mtime: i64::try_from(header.mtime()?).unwrap_or_default(),
        })
    }

    fn make_directory(&mut self, path: &[u8], parents: &[&[u8]], name: &[u8]) -> Result<(), ArchiveError> {
        let dir = self.below.directory(parents, true)?;
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdirat(dir, name, mode) {
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(ArchiveError::file(path))?;
                if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                    return Ok(());
                }
                rustix::fs::unlinkat(dir, name, AtFlags::empty())
                    .and_then(|()| rustix::fs::mkdirat(dir, name, mode))
                    .map_err(ArchiveError::file(path))
            }
            made => made.map_err(ArchiveError::file(path)),
        }
    }

    fn link<R: Read>(
        &mut self,
        entry: &Entry<'_, R>,
        path: &[u8],
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), ArchiveError> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = parts(&target)?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(ArchiveError::Escapes(path.to_vec().into()));
        };
        let from = self.below.directory(target_parents, false)?;
        let from: OwnedFd = from.try_clone_to_owned().map_err(ArchiveError::file(path))?;
        let dir = self.below.directory(parents, true)?;
        if (target_parents, *target_name) == (parents, name) {
            return Ok(());
        }
        clear(dir, name).map_err(ArchiveError::file(path))?;
        // Without AT_SYMLINK_FOLLOW a link to a symlink is one to the symlink itself.
        rustix::fs::linkat(from, *target_name, dir, name, AtFlags::empty()).map_err(ArchiveError::file(path))
    }

    /// The record, and when all went well modes and times of directories.
    fn finish(mut self, unpacked: Result<(), ArchiveError>) -> Result<(), ArchiveError> {
        let settled = unpacked.and_then(|()| self.settle_directories());
        if self.seen.is_on() {
            let top = self.below.directory(&[], false)?;
            let recorded = std::mem::take(&mut self.seen).finish(top).map_err(ArchiveError::file(seen::FILE));
            return settled.and(recorded);
        }
        settled
    }

    /// The deepest first.
    fn settle_directories(&mut self) -> Result<(), ArchiveError> {
        let mut directories = std::mem::take(&mut self.directories);
        directories.sort_by(|(a, _), (b, _)| b.cmp(a));
        self.below.forget();
        for (path, meta) in directories {
            let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
            let Some((name, parents)) = parts.split_last() else {
                let dir = self.below.directory(&[], false)?;
                settle(dir, meta).map_err(ArchiveError::file(&path))?;
                continue;
            };
            let dir = self.below.directory(parents, false)?;
            // A later entry may have put something else in its place.
            if let Ok(fd) = rustix::fs::openat(dir, *name, DIRECTORY, Mode::empty()) {
                settle(fd.as_fd(), meta).map_err(ArchiveError::file(&path))?;
            }
        }
        Ok(())
    }
}

/// Writes a file's contents, with holes where the archive has long runs of zeros.
fn fill(
    mut file: &File,
    input: &mut impl Read,
    size: u64,
    buffer: &mut [u8],
    path: &[u8],
) -> Result<(), ArchiveError> {
    let mut done = 0;
    while done < size {
        let want = usize::try_from(size - done).unwrap_or(usize::MAX).min(buffer.len());
        let n = match input.read(&mut buffer[..want]) {
            Ok(0) => return Err(ArchiveError::Stream(io::ErrorKind::UnexpectedEof.into())),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(ArchiveError::Stream(e)),
        };
        let piece = &buffer[..n];
        let zeros = n >= 4096 && piece.iter().all(|b| *b == 0);
        if zeros { file.seek(SeekFrom::Current(n as i64)).map(drop) } else { file.write_all(piece) }
            .map_err(ArchiveError::file(path))?;
        done += n as u64;
    }
    file.set_len(size).map_err(ArchiveError::file(path))
}

/// Removes what is in the way of a new entry. A directory that is not empty is an error.
fn clear(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
        Err(e) => Err(e),
    }
}

fn special<R: Read>(entry: &Entry<'_, R>) -> io::Result<(FileType, u64)> {
    let header = entry.header();
    let device = || -> io::Result<u64> {
        let (major, minor) =
            (header.device_major()?.unwrap_or_default(), header.device_minor()?.unwrap_or_default());
        Ok(rustix::fs::makedev(major, minor))
    };
    Ok(match header.entry_type() {
        EntryType::Char => (FileType::CharacterDevice, device()?),
        EntryType::Block => (FileType::BlockDevice, device()?),
        _ => (FileType::Fifo, 0),
    })
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner first: changing it clears the set-id bits of the mode.
fn settle(fd: BorrowedFd<'_>, meta: Meta) -> Result<(), Errno> {
    if let Some((uid, gid)) = meta.owner {
        rustix::fs::fchown(fd, Some(uid), Some(gid))?;
    }
    rustix::fs::fchmod(fd, meta.mode)?;
    rustix::fs::futimens(fd, &times(meta.mtime))
}

fn settle_at(dir: BorrowedFd<'_>, name: &[u8], meta: Meta, mode: bool) -> Result<(), Errno> {
    if let Some((uid, gid)) = meta.owner {
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if mode {
        // Just made by us under this name, and no symbolic link.
        rustix::fs::chmodat(dir, name, meta.mode, AtFlags::empty())?;
    }
    rustix::fs::utimensat(dir, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
}
