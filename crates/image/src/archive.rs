//! Tar archives as images: decompressed, checked and passed on as they stream.
//! Must never unpack anything on the host, nor accept an archive that ends early or reaches outside.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::path::Path;
use std::rc::Rc;

use tar::EntryType;

use crate::context::Context;
use crate::entries::{Entries, Entry, PAX_CAPABILITY};
use crate::error::{ImageError, Result};
use crate::squash::{self, Finished, Squash};
use crate::workdir::WorkDir;

const BLOCK: usize = 512;

/// What a file is, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Squashfs,
    Tar,
    Gzip,
    Zstd,
    Xz,
    Unknown,
}

/// Looks at the first bytes.
pub(crate) fn kind(file: &mut File) -> io::Result<Kind> {
    let mut head = Vec::with_capacity(BLOCK);
    Read::by_ref(file).take(BLOCK as u64).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(match head.as_slice() {
        [b'h', b's', b'q', b's', ..] => Kind::Squashfs,
        [0x1f, 0x8b, ..] => Kind::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Kind::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Kind::Xz,
        // tar(5): "ustar" at 257 in POSIX and GNU archives; the oldest ones have only their checksum.
        head if head.len() == BLOCK && (&head[257..262] == b"ustar" || has_checksum(head)) => Kind::Tar,
        _ => Kind::Unknown,
    })
}

fn has_checksum(block: &[u8]) -> bool {
    let field = block[148..156].iter().filter(|b| b.is_ascii_digit()).map(|b| u32::from(b - b'0'));
    let stored = field.fold(0u32, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit));
    let blank = (148..156).len() as u32 * u32::from(b' ');
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum();
    block[0] != 0 && stored == sum + blank
}

/// Makes an image of the archive at `path`.
pub(crate) fn import(
    path: &Path,
    file: File,
    kind: Kind,
    dir: WorkDir,
    ctx: &Context<'_>,
) -> Result<Finished> {
    let total = file.metadata().map_err(ImageError::io("look at", path))?.len();
    let meter = Meter { file: BufReader::with_capacity(1 << 17, file), read: Rc::default() };
    let read = Rc::clone(&meter.read);
    let mut stream: Box<dyn Read> = match kind {
        Kind::Gzip => Box::new(flate2::read::MultiGzDecoder::new(meter)),
        Kind::Zstd => Box::new(zstd::Decoder::new(meter).map_err(ImageError::io("read", path))?),
        Kind::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(meter)),
        Kind::Tar | Kind::Squashfs | Kind::Unknown => Box::new(meter),
    };
    let mut squash = Squash::start(dir)?;
    let mut input = squash.input(ctx)?;
    let copied = copy(path, &mut stream, &mut input, &|| {
        if let Some(done) = (read.get() * 100).checked_div(total) {
            ctx.report("import", format!("packing {}", path.display()), u8::try_from(done.min(100)).ok());
        }
    });
    let broken = input.is_broken();
    drop(input);
    if ctx.is_cancelled() {
        return Err(ImageError::Cancelled { what: "the import" });
    }
    match copied {
        // The writer went away: it says why.
        Err(_) if broken => {}
        Err(error) => return Err(error),
        Ok(()) => {}
    }
    let finished = squash.finish("the import", ctx)?;
    squash::check(&finished.path(), path)?;
    Ok(finished)
}

/// Copies the archive from `stream` to `out`, entry by entry. `path` is what errors name.
pub(crate) fn copy(path: &Path, stream: &mut dyn Read, out: &mut dyn Write, tick: &dyn Fn()) -> Result<()> {
    let damaged = |error: io::Error| ImageError::bad_source(path, format!("the archive is damaged: {error}"));
    let mut tail = Tail { from: stream, last: [0; BLOCK], len: 0 };
    let mut entries = Entries::new(out);
    let mut archive = tar::Archive::new(&mut tail);
    for (index, entry) in archive.entries().map_err(damaged)?.enumerate() {
        let mut entry = entry.map_err(damaged)?;
        if index.is_multiple_of(256) {
            tick();
        }
        if let Some((described, kind)) = describe(path, &mut entry)? {
            if let Some(conflict) = entries.conflict(&described, kind) {
                return Err(refuse(path, &described.name, &conflict));
            }
            entries.write(described, kind, &mut entry).map_err(damaged)?;
        }
    }
    // An archive ends with blocks of zeros (tar(5)); one that just stops has lost its tail.
    if tail.len == 0 || !tail.len.is_multiple_of(BLOCK as u64) || tail.last.iter().any(|byte| *byte != 0) {
        return Err(ImageError::bad_source(path, "the archive is truncated: its end is missing"));
    }
    if entries.files() == 0 {
        return Err(ImageError::bad_source(path, "there is no file in it"));
    }
    // What follows is padding, but a compressed stream's checksum comes after it.
    io::copy(tail.from, &mut io::sink()).map_err(damaged)?;
    entries.finish().map_err(damaged)
}

/// Our own entry for one of the archive's; `None` when it stands for no file.
fn describe<R: Read>(path: &Path, entry: &mut tar::Entry<'_, R>) -> Result<Option<(Entry, EntryType)>> {
    let raw = entry.path_bytes().into_owned();
    let kind = match entry.header().entry_type() {
        EntryType::XGlobalHeader => return Ok(None),
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse if raw.ends_with(b"/") => {
            // The oldest archives have no type for directories.
            EntryType::Directory
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => EntryType::Regular,
        kind @ (EntryType::Link | EntryType::Symlink | EntryType::Char | EntryType::Block) => kind,
        kind @ (EntryType::Directory | EntryType::Fifo) => kind,
        other => {
            return Err(refuse(
                path,
                &raw,
                &format!("has type {:#04x}, which no file system has", other.as_byte()),
            ));
        }
    };
    let Some(name) = inside(&raw).map_err(|why| refuse(path, &raw, why))? else { return Ok(None) };
    let link = match (kind, entry.link_name_bytes()) {
        (EntryType::Link, Some(target)) => {
            let why = "is a hard link to something outside of the archive";
            Some(inside(&target).ok().flatten().ok_or_else(|| refuse(path, &name, why))?)
        }
        (EntryType::Symlink, Some(target)) => Some(target.into_owned()),
        (EntryType::Link | EntryType::Symlink, None) => return Err(refuse(path, &name, "links to nothing")),
        _ => None,
    };
    let damaged = |error: io::Error| ImageError::bad_source(path, format!("the archive is damaged: {error}"));
    let header = entry.header();
    let device = match kind {
        EntryType::Char | EntryType::Block => Some((
            header.device_major().map_err(damaged)?.unwrap_or(0),
            header.device_minor().map_err(damaged)?.unwrap_or(0),
        )),
        _ => None,
    };
    let mut described = Entry {
        name,
        link,
        capability: None,
        mode: header.mode().map_err(damaged)?,
        uid: header.uid().map_err(damaged)?,
        gid: header.gid().map_err(damaged)?,
        mtime: header.mtime().unwrap_or(0),
        size: if kind == EntryType::Regular { entry.size() } else { 0 },
        device,
    };
    extend(&mut described, entry).map_err(damaged)?;
    Ok(Some((described, kind)))
}

/// Takes over what a pax header says; names and size are in the entry already.
fn extend<R: Read>(described: &mut Entry, entry: &mut tar::Entry<'_, R>) -> io::Result<()> {
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        let value = extension.value_bytes();
        let whole = || std::str::from_utf8(value).ok()?.split('.').next()?.parse::<u64>().ok();
        match extension.key() {
            Ok("uid") => described.uid = whole().unwrap_or(described.uid),
            Ok("gid") => described.gid = whole().unwrap_or(described.gid),
            Ok("mtime") => described.mtime = whole().unwrap_or(described.mtime),
            Ok(PAX_CAPABILITY) => described.capability = Some(value.to_vec()),
            _ => {}
        }
    }
    Ok(())
}

/// The name without `.` and double slashes; `None` for the root itself.
fn inside(name: &[u8]) -> std::result::Result<Option<Vec<u8>>, &'static str> {
    if name.starts_with(b"/") {
        return Err("has an absolute path");
    }
    if name.contains(&0) {
        return Err("has a NUL in its path");
    }
    let parts: Vec<&[u8]> =
        name.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.iter().any(|part| *part == b"..") {
        return Err("reaches outside of the archive");
    }
    Ok(Some(parts.join(&b'/')).filter(|name| !name.is_empty()))
}

fn refuse(path: &Path, name: &[u8], why: &str) -> ImageError {
    ImageError::bad_source(path, format!("its entry '{}' {why}", name.escape_ascii()))
}

/// Counts what is read of the file, compressed or not.
struct Meter {
    file: BufReader<File>,
    read: Rc<Cell<u64>>,
}

impl Read for Meter {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

/// Remembers the last block that went by.
struct Tail<'a> {
    from: &'a mut dyn Read,
    last: [u8; BLOCK],
    len: u64,
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buffer)?;
        let bytes = &buffer[..n];
        self.len += n as u64;
        let keep = bytes.len().min(BLOCK);
        self.last.rotate_left(keep);
        self.last[BLOCK - keep..].copy_from_slice(&bytes[bytes.len() - keep..]);
        Ok(n)
    }
}
