//! A file or directory as a tar stream. A directory's entries are named relative to it, a single
//! file by its last part. Sockets stay behind.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use banger_model::ByteString;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use tar::{Builder, EntryType, Header};

use super::ArchiveError;
use super::beneath::DIRECTORY;

/// Directories below each other that are descended into: each holds a descriptor.
const MAX_DEPTH: usize = 512;

/// Sends `path`.
///
/// # Errors
/// The first file that cannot be read; the stream then lacks its end mark.
pub(crate) fn pack(path: &ByteString, output: impl Write) -> Result<(), ArchiveError> {
    let given = Path::new(path.as_os_str());
    if !given.is_absolute() || path.as_bytes().contains(&0) {
        return Err(ArchiveError::NotAbsolute(path.clone()));
    }
    // The path itself may go through links: it is the host's choice.
    let meta = std::fs::metadata(given).map_err(ArchiveError::file(path.as_bytes()))?;
    let mut job =
        Job { tar: Builder::new(io::BufWriter::with_capacity(64 * 1024, output)), seen: HashMap::new() };
    if meta.is_dir() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::open(given, flags, Mode::empty()).map_err(ArchiveError::file(path.as_bytes()))?;
        job.entry(EntryType::Directory, b"./", &meta_header(&meta), None, io::empty())
            .map_err(ArchiveError::file(path.as_bytes()))?;
        job.directory(&dir, b"", 0)?;
    } else {
        let name = given.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
        let file = File::open(given).map_err(ArchiveError::file(path.as_bytes()))?;
        job.entry(EntryType::Regular, &name, &meta_header(&meta), None, file)
            .map_err(ArchiveError::file(path.as_bytes()))?;
    }
    job.tar.into_inner().and_then(|mut out| out.flush()).map_err(ArchiveError::Stream)
}

/// What a header needs to know.
struct Meta {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    device: u64,
}

fn meta_header(m: &Metadata) -> Meta {
    Meta { mode: m.mode(), uid: m.uid(), gid: m.gid(), size: m.size(), mtime: m.mtime(), device: m.rdev() }
}

fn stat_header(s: &Stat) -> Meta {
    Meta {
        mode: s.st_mode,
        uid: s.st_uid,
        gid: s.st_gid,
        size: u64::try_from(s.st_size).unwrap_or_default(),
        mtime: s.st_mtime,
        device: s.st_rdev,
    }
}

struct Job<W: Write> {
    tar: Builder<W>,
    /// Files with several names, by device and inode: the first name goes with the contents.
    seen: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Job<W> {
    fn directory(&mut self, dir: &OwnedFd, prefix: &[u8], depth: usize) -> Result<(), ArchiveError> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in Dir::read_from(dir).map_err(ArchiveError::file(prefix))? {
            let entry = entry.map_err(ArchiveError::file(prefix))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort();
        for name in names {
            let path = [prefix, &name].concat();
            match statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.child(dir.as_fd(), &name, path, &stat, depth)?,
                // It went away while we looked.
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(ArchiveError::file(&path)(e)),
            }
        }
        Ok(())
    }

    fn child(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        mut path: Vec<u8>,
        stat: &Stat,
        depth: usize,
    ) -> Result<(), ArchiveError> {
        let meta = stat_header(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            if depth >= MAX_DEPTH {
                let deep = io::Error::other("too many directories below each other");
                return Err(ArchiveError::file(&path)(deep));
            }
            let below = openat(dir, name, DIRECTORY, Mode::empty()).map_err(ArchiveError::file(&path))?;
            path.push(b'/');
            self.entry(EntryType::Directory, &path, &meta, None, io::empty())
                .map_err(ArchiveError::file(&path))?;
            return self.directory(&below, &path, depth + 1);
        }
        if stat.st_nlink > 1
            && let Some(first) = self.seen.get(&(stat.st_dev, stat.st_ino)).cloned()
        {
            let sent = self.entry(EntryType::Link, &path, &meta, Some(&first), io::empty());
            return sent.map_err(ArchiveError::file(&path));
        }
        let sent = match kind {
            FileType::RegularFile => {
                // Non-blocking: it may have become a pipe since.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                openat(dir, name, flags, Mode::empty())
                    .map_err(io::Error::from)
                    .and_then(|fd| self.entry(EntryType::Regular, &path, &meta, None, File::from(fd)))
            }
            FileType::Symlink => readlinkat(dir, name, Vec::new()).map_err(io::Error::from).and_then(|to| {
                self.entry(EntryType::Symlink, &path, &meta, Some(to.to_bytes()), io::empty())
            }),
            FileType::Fifo => self.entry(EntryType::Fifo, &path, &meta, None, io::empty()),
            FileType::CharacterDevice => self.entry(EntryType::Char, &path, &meta, None, io::empty()),
            FileType::BlockDevice => self.entry(EntryType::Block, &path, &meta, None, io::empty()),
            _ => return Ok(()),
        };
        sent.map_err(ArchiveError::file(&path))?;
        if stat.st_nlink > 1 {
            self.seen.insert((stat.st_dev, stat.st_ino), path);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        kind: EntryType,
        path: &[u8],
        meta: &Meta,
        link: Option<&[u8]>,
        contents: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(meta.mode & 0o7777);
        header.set_uid(u64::from(meta.uid));
        header.set_gid(u64::from(meta.gid));
        header.set_mtime(u64::try_from(meta.mtime).unwrap_or_default());
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(rustix::fs::major(meta.device))?;
            header.set_device_minor(rustix::fs::minor(meta.device))?;
        }
        let size = if kind == EntryType::Regular { meta.size } else { 0 };
        header.set_size(size);
        let path = Path::new(std::ffi::OsStr::from_bytes(path));
        match link {
            Some(to) => self.tar.append_link(&mut header, path, Path::new(std::ffi::OsStr::from_bytes(to))),
            // Exactly as many bytes as the header says, whatever happens to the file meanwhile.
            None => self.tar.append_data(&mut header, path, contents.chain(io::repeat(0)).take(size)),
        }
    }
}
