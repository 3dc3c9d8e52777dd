//! The writable disks that VMs own: sparse ext4 files.
//! Must never touch a file that exists already, except to grow it.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use banger_model::Bytes;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::{ImageError, Result};
use crate::job;

/// Below this there is no room for a journal worth having.
const MIN: u64 = 16 << 20;
/// mke2fs(8): the file is all holes, so nothing needs zeroing, now or by the guest's kernel later.
const PREZEROED: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1";
/// The same for e2fsprogs before 1.47, which do not know the last word.
const LAZY: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUse {
    /// What a VM writes above its image.
    System,
    /// The user's home, which survives a change of image.
    Work,
}

impl DiskUse {
    fn noun(self) -> &'static str {
        match self {
            Self::System => "system disk",
            Self::Work => "work disk",
        }
    }

    /// So that people who look at the file know whose it is.
    fn label(self) -> &'static str {
        match self {
            Self::System => "banger-system",
            Self::Work => "banger-work",
        }
    }
}

/// A disk that a VM owns.
#[derive(Debug)]
pub struct VmDisk;

impl VmDisk {
    /// Makes a sparse ext4 file of `size` at `path`, mode 0600: some 5 ms and 200 KB, whatever the size.
    ///
    /// mkfs.ext4 writes so little into a hole (no reserved group descriptors, no zeroing) that a template to
    /// copy would save nothing, and every disk gets a UUID of its own.
    ///
    /// # Errors
    /// `invalid_argument` below 16 MiB, `already_exists` when there is a file, `unavailable` without mkfs.ext4.
    pub fn create(path: &Path, size: Bytes, purpose: DiskUse) -> Result<()> {
        if size.0 < MIN {
            return Err(ImageError::Invalid {
                message: format!("a {} of {size} is too small", purpose.noun()),
                hint: Some(format!("use at least {}", Bytes(MIN))),
            });
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(ImageError::io("make", path))?;
        let made = file
            .set_len(size.0)
            .map_err(ImageError::io("size", path))
            .and_then(|()| format(path, size, purpose.label()));
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Makes the disk of a *stopped* VM larger: one system call, of which a crash leaves all or nothing. The agent
    /// grows the file system on it at the next boot. A disk that has the size is left alone.
    ///
    /// # Errors
    /// `invalid_argument` when `size` is smaller than the disk.
    pub fn extend(path: &Path, size: Bytes, purpose: DiskUse) -> Result<()> {
        let now = fs::metadata(path).map_err(ImageError::io("look at", path))?.len();
        if size.0 < now {
            return Err(ImageError::Invalid {
                message: format!("a {} of {} cannot shrink to {size}", purpose.noun(), Bytes(now)),
                hint: Some("disks only grow".to_owned()),
            });
        }
        if size.0 == now {
            return Ok(());
        }
        let file = OpenOptions::new().write(true).open(path).map_err(ImageError::io("open", path))?;
        file.set_len(size.0).map_err(ImageError::io("size", path))
    }

    /// Makes a file at `to`, mode 0600, with the content of a disk that no machine writes to just now: by reflink where
    /// the file system has it, else of what is not zero, block by block. A failure leaves no file. Not flushed: only a
    /// crash of the host could tell.
    ///
    /// # Errors
    /// When there is a file already, no disk to copy, or no room.
    pub fn copy(from: &Path, to: &Path) -> Result<()> {
        let source = File::open(from).map_err(ImageError::io("open", from))?;
        let target = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)
            .map_err(ImageError::io("make", to))?;
        let copied = match rustix::fs::ioctl_ficlone(&target, &source) {
            Ok(()) => Ok(()),
            Err(_) => copy_data(&source, &target),
        };
        copied.map_err(|error| {
            let _ = fs::remove_file(to);
            ImageError::io("copy a disk to", to)(error)
        })
    }
}

/// A file system's block; what is smaller would not make a hole.
const BLOCK: u64 = 4096;
/// Read at once.
const CHUNK: usize = 256 << 10;

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data - data % BLOCK,
            Err(Errno::NXIO) => return Ok(()),
            // A file system that knows no holes.
            Err(_) => at,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(data)).unwrap_or(size);
        at = data;
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let n = source.read_at(buffer.get_mut(..wanted).unwrap_or_default(), at)?;
            if n == 0 {
                return Ok(());
            }
            write_blocks(target, buffer.get(..n).unwrap_or_default(), at)?;
            at += n as u64;
        }
    }
    Ok(())
}

/// Writes what is not zero, neighbouring blocks at once.
fn write_blocks(target: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let block = usize::try_from(BLOCK).unwrap_or(CHUNK);
    let is_zero = |from: usize| bytes.iter().skip(from).take(block).all(|byte| *byte == 0);
    let mut from = 0;
    while from < bytes.len() {
        let mut to = from;
        while to < bytes.len() && !is_zero(to) {
            to += block;
        }
        let run = bytes.get(from..to.min(bytes.len())).unwrap_or_default();
        target.write_all_at(run, at + from as u64)?;
        from = to.max(from + block);
    }
    Ok(())
}

fn format(path: &Path, size: Bytes, label: &str) -> Result<()> {
    let mut output = mkfs(path, size, label, PREZEROED)?;
    if !output.status.success() && !mentions_bad_option(&output) {
        return Err(failed("mkfs.ext4", &output));
    }
    if !output.status.success() {
        output = mkfs(path, size, label, LAZY)?;
    }
    if output.status.success() { Ok(()) } else { Err(failed("mkfs.ext4", &output)) }
}

fn mkfs(path: &Path, size: Bytes, label: &str, extended: &str) -> Result<Output> {
    let words =
        ["-q", "-F", "-m", "0", "-O", "^resize_inode", "-J", journal(size), "-L", label, "-E", extended];
    let mut args: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
    args.push(path.as_os_str());
    run("mkfs.ext4", &args)
}

/// 64 MiB is what mke2fs chooses for 1 to 32 GiB; it would take up to 1 GiB beyond, which buys nothing here.
fn journal(size: Bytes) -> &'static str {
    match size.0 {
        n if n >= 1 << 30 => "size=64",
        n if n >= 256 << 20 => "size=16",
        _ => "size=4",
    }
}

fn run(tool: &'static str, args: &[&OsStr]) -> Result<Output> {
    let program = job::find(tool).ok_or(ImageError::ToolMissing { tool, package: "e2fsprogs" })?;
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(ImageError::io("start", Path::new(tool)))
}

fn mentions_bad_option(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stderr).contains("extended option")
}

fn failed(tool: &'static str, output: &Output) -> ImageError {
    let said = [output.stderr.as_slice(), output.stdout.as_slice()].concat();
    let tail = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    ImageError::ToolFailed { tool, status: output.status.to_string(), tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    fn has_mkfs() -> bool {
        let found = job::find("mkfs.ext4").is_some();
        if !found {
            eprintln!("skipped: mkfs.ext4 is not installed");
        }
        found
    }

    #[test]
    fn a_disk_of_any_size_costs_kilobytes_and_is_private_from_birth() {
        if !has_mkfs() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (name, size) in [("small", 16 << 20), ("usual", 8 << 30), ("large", 256u64 << 30)] {
            let path = dir.path().join(name);
            VmDisk::create(&path, Bytes(size), DiskUse::System).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.len(), size);
            assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
            assert!(meta.blocks() * 512 < 4 << 20, "{name}: {} bytes on disk", meta.blocks() * 512);
            let check = run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).unwrap();
            assert!(check.status.success(), "{name}: {}", failed("e2fsck", &check));
        }
    }

    #[test]
    fn a_copy_has_the_content_and_the_holes_and_is_private_from_birth() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("b"));
        let disk = File::create(&from).unwrap();
        disk.set_len(64 << 20).unwrap();
        // Data in a hole, zeros that take room, more than is read at once, and the very end.
        disk.write_all_at(b"superblock", 1024).unwrap();
        disk.write_all_at(&vec![0; 4 << 20], 8 << 20).unwrap();
        disk.write_all_at(&vec![7; 700_000], 20_000_000).unwrap();
        disk.write_all_at(b"z", (64 << 20) - 1).unwrap();
        disk.sync_all().unwrap();
        VmDisk::copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        let meta = fs::metadata(&to).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        assert!(meta.blocks() * 512 < 2 << 20, "{} bytes on disk", meta.blocks() * 512);
        assert!(VmDisk::copy(&from, &to).is_err(), "one that is there is left alone");
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(VmDisk::copy(&dir.path().join("none"), &dir.path().join("c")).is_err());
        assert!(!dir.path().join("c").exists());
    }

    #[test]
    fn a_file_that_is_there_already_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "precious").unwrap();
        let error: banger_model::Error =
            VmDisk::create(&path, Bytes(1 << 30), DiskUse::System).unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(VmDisk::create(&dir.path().join("tiny"), Bytes(1 << 20), DiskUse::Work).is_err());
        assert!(!dir.path().join("tiny").exists());
    }

    #[test]
    fn a_disk_grows_and_never_shrinks_and_keeps_what_is_on_it() {
        if !has_mkfs() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        VmDisk::create(&path, Bytes(1 << 30), DiskUse::Work).unwrap();
        VmDisk::extend(&path, Bytes(20 << 30), DiskUse::Work).unwrap();
        VmDisk::extend(&path, Bytes(20 << 30), DiskUse::Work).unwrap();
        let check = run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("banger-work"), "{said}");
        let error: banger_model::Error =
            VmDisk::extend(&path, Bytes(1 << 30), DiskUse::Work).unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::InvalidArgument);
        assert_eq!(fs::metadata(&path).unwrap().len(), 20 << 30);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 < 4 << 20, "a larger disk costs nothing");
    }
}
