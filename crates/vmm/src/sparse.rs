//! Files that are mostly nothing, machines' disks and memories: copied and kept without room for their zeros. Must never
//! change what a reader finds in one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::{Result, VmmError};

/// A file system's block; what is smaller would not make a hole.
const BLOCK: usize = 4096;
/// Read at once.
const CHUNK: usize = 256 << 10;
/// Fewer zeros than this stay, where they are there: each hole is a piece of a file more.
const HOLE: u64 = 64 << 10;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Makes a file at `to`, mode 0600, with the content of one that nobody writes to just now: by reflink where the file system
/// has it, else of what is not zero. A failure leaves no file. Not flushed: only a crash of the host could tell. Blocks.
///
/// # Errors
/// When there is a file already, nothing to copy, or no room.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let source = File::open(from).map_err(VmmError::file("open", from))?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to);
    let target = target.map_err(VmmError::file("make", to))?;
    fill(&target, &source).map_err(|error| {
        let _ = fs::remove_file(to);
        VmmError::file("make a copy at", to)(error)
    })
}

/// Gives an empty file the content of another in the same way. Blocks.
///
/// # Errors
/// As [`copy`].
pub(crate) fn fill(target: &File, source: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    target.set_len(source.metadata()?.size())?;
    each_run(source, |at, run| match run {
        Run::Bytes(bytes) => target.write_all_at(bytes, at),
        Run::Zeros(_) => Ok(()),
    })
}

/// Turns the zeros of a file into holes. Blocks.
///
/// # Errors
/// When it cannot be read or written to.
pub(crate) fn dig(path: &Path) -> Result<()> {
    let dig = || {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        each_run(&file, |at, run| match run {
            Run::Zeros(length) if length >= HOLE => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&file, flags, at, length) {
                    // A file system without holes keeps the zeros.
                    Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            Run::Zeros(_) | Run::Bytes(_) => Ok(()),
        })
    };
    dig().map_err(VmmError::file("make holes in", path))
}

/// A piece of a file, whole blocks but at its end.
enum Run<'a> {
    /// With something in each block.
    Bytes(&'a [u8]),
    /// This much of nothing.
    Zeros(u64),
}

/// Goes through a file's data, leaving its holes out, neighbouring blocks at once.
fn each_run(file: &File, mut tell: impl FnMut(u64, Run<'_>) -> io::Result<()>) -> io::Result<()> {
    let size = file.metadata()?.size();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        // To the next byte that is not in a hole, rounded down to a whole block.
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK as u64,
            Err(Errno::NXIO) => return Ok(()),
            // A file system that knows no holes.
            Err(_) => at,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap_or(size).next_multiple_of(BLOCK as u64);
        at = at.max(data);
        while at < end.min(size) {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let n = read_full(file, buffer.get_mut(..wanted).unwrap_or_default(), at)?;
            if n == 0 {
                return Ok(());
            }
            split(buffer.get(..n).unwrap_or_default(), at, &mut tell)?;
            at += n as u64;
        }
    }
    Ok(())
}

/// Reads whole blocks, but at the end of the file.
fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

fn split(bytes: &[u8], at: u64, tell: &mut impl FnMut(u64, Run<'_>) -> io::Result<()>) -> io::Result<()> {
    let is_zero = |from: usize| {
        let block = bytes.get(from..bytes.len().min(from + BLOCK)).unwrap_or_default();
        ZEROS.get(..block.len()) == Some(block)
    };
    let mut from = 0;
    while from < bytes.len() {
        let zero = is_zero(from);
        let mut to = from + BLOCK;
        while to < bytes.len() && is_zero(to) == zero {
            to += BLOCK;
        }
        let run = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
        tell(at + from as u64, if zero { Run::Zeros(run.len() as u64) } else { Run::Bytes(run) })?;
        from = to;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const SIZE: u64 = (64 << 20) + 100;

    fn room(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * 512
    }

    /// Data in a hole, zeros that take room, more than is read at once, and the very end, which is no whole block.
    fn disk(path: &Path) {
        let disk = File::create(path).unwrap();
        disk.set_len(SIZE).unwrap();
        disk.write_all_at(b"superblock", 1024).unwrap();
        disk.write_all_at(&vec![0; 4 << 20], 8 << 20).unwrap();
        disk.write_all_at(&vec![7; 700_000], 20_000_000).unwrap();
        disk.write_all_at(b"z", SIZE - 1).unwrap();
        disk.sync_all().unwrap();
    }

    #[test]
    fn a_copy_has_the_content_and_the_holes_and_is_private_from_birth() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, full] = ["a", "b", "full"].map(|name| dir.path().join(name));
        disk(&from);
        copy(&from, &to).unwrap();
        let expected = fs::read(&from).unwrap();
        assert!(fs::read(&to).unwrap() == expected);
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(room(&to) < 2 << 20, "{} bytes on disk", room(&to));
        assert!(copy(&from, &to).is_err(), "one that is there is left alone");
        assert!(fs::read(&to).unwrap() == expected);
        assert!(copy(&dir.path().join("none"), &dir.path().join("c")).is_err());
        assert!(!dir.path().join("c").exists());
        // Of a file without holes, into one that is there
        fs::write(&full, &expected).unwrap();
        let target = OpenOptions::new().write(true).truncate(true).open(&to).unwrap();
        fill(&target, &File::open(&full).unwrap()).unwrap();
        assert!(fs::read(&to).unwrap() == expected && room(&to) < 2 << 20);
    }

    #[test]
    fn zeros_become_holes_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let [from, full] = ["a", "full"].map(|name| dir.path().join(name));
        disk(&from);
        let expected = fs::read(&from).unwrap();
        fs::write(&full, &expected).unwrap();
        assert!(room(&full) >= SIZE);
        dig(&full).unwrap();
        assert!(fs::read(&full).unwrap() == expected);
        assert!(room(&full) < 2 << 20, "{} bytes on disk", room(&full));
    }
}
