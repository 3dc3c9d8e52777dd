//! Directories as images: walked in a fixed order into a tar stream.
//! Must never skip what it cannot read, follow a symbolic link, or pack a file that changes meanwhile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::EntryType;

use crate::context::Context;
use crate::entries::{Entries, Entry};
use crate::error::{ImageError, Result};
use crate::squash::{self, Finished, Squash};
use crate::workdir::WorkDir;

const CAPABILITY: &str = "security.capability";

/// Makes an image of the directory at `root`. Its own mode and owner do not matter: `/` is root's, 0755.
pub(crate) fn import(root: &Path, dir: WorkDir, ctx: &Context<'_>) -> Result<Finished> {
    ctx.report("import", format!("looking at {}", root.display()), None);
    let mut found = Found::default();
    collect(root, Path::new(""), &mut found, ctx)?;
    if found.files == 0 {
        return Err(ImageError::bad_source(root, "there is no file in it"));
    }
    let mut squash = Squash::start(dir)?;
    let mut input = squash.input(ctx)?;
    let packed = Packer::new(root, &mut input).pack(&found, ctx);
    let broken = input.is_broken();
    drop(input);
    if ctx.is_cancelled() {
        return Err(ImageError::Cancelled { what: "the import" });
    }
    match packed {
        // The writer went away: it says why.
        Err(_) if broken => {}
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    let finished = squash.finish("the import", ctx)?;
    squash::check(&finished.path(), root)?;
    Ok(finished)
}

/// What the first walk saw.
#[derive(Default)]
struct Found {
    /// Paths below the root: parents first, each directory's entries in byte order.
    paths: Vec<PathBuf>,
    files: u64,
    bytes: u64,
}

fn collect(root: &Path, below: &Path, found: &mut Found, ctx: &Context<'_>) -> Result<()> {
    if ctx.is_cancelled() {
        return Err(ImageError::Cancelled { what: "the import" });
    }
    let dir = root.join(below);
    let listed: io::Result<Vec<OsString>> =
        fs::read_dir(&dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    let mut names = listed.map_err(|error| unreadable(&dir, &error))?;
    names.sort();
    for name in names {
        let path = below.join(name);
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).map_err(|error| unreadable(&full, &error))?;
        found.paths.push(path.clone());
        if meta.is_dir() {
            collect(root, &path, found, ctx)?;
        } else {
            found.files += 1;
            found.bytes += meta.len();
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> ImageError {
    ImageError::bad_source(path, format!("it cannot be read ({error})"))
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    entries: Entries<W>,
    /// The first path of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    me: u32,
}

impl<'a, W: Write> Packer<'a, W> {
    fn new(root: &'a Path, out: W) -> Self {
        let me = rustix::process::geteuid().as_raw();
        Self { root, entries: Entries::new(out), links: HashMap::new(), me }
    }

    fn pack(mut self, found: &Found, ctx: &Context<'_>) -> Result<()> {
        let (mut done, mut shown) = (0u64, None);
        for path in &found.paths {
            let full = self.root.join(path);
            let meta = fs::symlink_metadata(&full).map_err(|error| unreadable(&full, &error))?;
            self.entry(path, &full, &meta)?;
            if meta.is_file() {
                done += meta.len();
            }
            let percent = (done * 100).checked_div(found.bytes).and_then(|p| u8::try_from(p.min(100)).ok());
            if percent != shown {
                ctx.report("import", format!("packing {}", self.root.display()), percent);
                shown = percent;
            }
        }
        self.entries.finish().map_err(ImageError::io("pack", self.root))
    }

    fn entry(&mut self, path: &Path, full: &Path, meta: &Metadata) -> Result<()> {
        let kind = meta.file_type();
        let mut entry = self.describe(path, meta);
        if kind.is_dir() {
            return self.write(full, entry, EntryType::Directory);
        }
        if kind.is_socket() {
            // A socket is a process's, not a file system's.
            return Ok(());
        }
        if meta.nlink() > 1 {
            let id = (meta.dev(), meta.ino());
            if let Some(first) = self.links.get(&id) {
                entry.link = Some(first.as_os_str().as_bytes().to_vec());
                return self.write(full, entry, EntryType::Link);
            }
            self.links.insert(id, path.to_owned());
        }
        if kind.is_symlink() {
            let target = fs::read_link(full).map_err(|error| unreadable(full, &error))?;
            entry.link = Some(target.into_os_string().into_vec());
            return self.write(full, entry, EntryType::Symlink);
        }
        if kind.is_file() {
            return self.file(full, meta, entry);
        }
        if kind.is_fifo() {
            return self.write(full, entry, EntryType::Fifo);
        }
        if self.me != 0 {
            return Err(ImageError::bad_source(full, "only root may import a device"));
        }
        entry.device = Some((rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())));
        self.write(full, entry, if kind.is_char_device() { EntryType::Char } else { EntryType::Block })
    }

    /// A file whose size or identity is not the one just seen is an error: half old, half new helps nobody.
    fn file(&mut self, full: &Path, meta: &Metadata, mut entry: Entry) -> Result<()> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(full)
            .map_err(|error| unreadable(full, &error))?;
        let now = file.metadata().map_err(|error| unreadable(full, &error))?;
        let changed = || ImageError::bad_source(full, "it changed while it was read");
        if !now.is_file() || (now.dev(), now.ino(), now.len()) != (meta.dev(), meta.ino(), meta.len()) {
            return Err(changed());
        }
        entry.capability = capability(&file, full)?;
        entry.size = meta.len();
        let mut source = Source { file: &file, failed: None };
        let written = self.entries.write(entry, EntryType::Regular, &mut source);
        if let Some(error) = source.failed {
            return Err(unreadable(full, &error));
        }
        match written {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
            Err(error) => return Err(ImageError::io("pack", full)(error)),
            Ok(()) => {}
        }
        let after = file.metadata().map_err(|error| unreadable(full, &error))?;
        let stamp = |meta: &Metadata| (meta.len(), meta.mtime(), meta.mtime_nsec());
        if stamp(&after) == stamp(&now) { Ok(()) } else { Err(changed()) }
    }

    fn write(&mut self, full: &Path, entry: Entry, kind: EntryType) -> Result<()> {
        self.entries.write(entry, kind, &mut io::empty()).map_err(ImageError::io("pack", full))
    }

    fn describe(&self, path: &Path, meta: &Metadata) -> Entry {
        // An ordinary user unpacked it, and whose files these were is lost: they are root's.
        let mine = self.me != 0 && meta.uid() == self.me;
        let (uid, gid) = if mine { (0, 0) } else { (meta.uid(), meta.gid()) };
        Entry {
            name: path.as_os_str().as_bytes().to_vec(),
            mode: meta.mode(),
            uid: uid.into(),
            gid: gid.into(),
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
            ..Entry::default()
        }
    }
}

/// The file's capabilities, `None` when it has none or its file system knows none.
fn capability(file: &File, path: &Path) -> Result<Option<Vec<u8>>> {
    // The kernel's struct vfs_ns_cap_data has 24 bytes.
    let mut value = [0u8; 64];
    match rustix::fs::fgetxattr(file, CAPABILITY, &mut value[..]) {
        Ok(n) => Ok(value.get(..n).map(<[u8]>::to_vec)),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(ImageError::errno("read the attributes of", path)(errno)),
    }
}

/// A file whose read errors are told apart from the writer's.
struct Source<'a> {
    file: &'a File,
    failed: Option<io::Error>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer);
        if let Err(error) = &read
            && error.kind() != io::ErrorKind::Interrupted
        {
            self.failed = Some(io::Error::new(error.kind(), error.to_string()));
        }
        read
    }
}
