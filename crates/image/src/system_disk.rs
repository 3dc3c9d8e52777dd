//! The writable disk that every VM owns: one sparse ext4 file.
//! Must never touch a file that exists already, except to grow it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use banger_model::Bytes;

use crate::error::{ImageError, Result};
use crate::job;

/// Below this there is no room for a journal worth having.
const MIN: u64 = 16 << 20;
/// The label, so that people who look at the file know whose it is.
const LABEL: &str = "banger-system";
/// mke2fs(8): the file is all holes, so nothing needs zeroing, now or by the guest's kernel later.
const PREZEROED: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1";
/// The same for e2fsprogs before 1.47, which do not know the last word.
const LAZY: &str = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";

/// A VM's writable system disk.
#[derive(Debug)]
pub struct SystemDisk;

impl SystemDisk {
    /// Makes a sparse ext4 file of `size` at `path`, mode 0600: some 5 ms and 200 KB, whatever the size.
    ///
    /// mkfs.ext4 writes so little into a hole (no reserved group descriptors, no zeroing) that a template to
    /// copy would save nothing, and every disk gets a UUID of its own.
    ///
    /// # Errors
    /// `invalid_argument` below 16 MiB, `already_exists` when there is a file, `unavailable` without mkfs.ext4.
    pub fn create(path: &Path, size: Bytes) -> Result<()> {
        if size.0 < MIN {
            return Err(ImageError::Invalid {
                message: format!("a system disk of {size} is too small"),
                hint: Some(format!("use at least {}", Bytes(MIN))),
            });
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(ImageError::io("make", path))?;
        let made =
            file.set_len(size.0).map_err(ImageError::io("size", path)).and_then(|()| format(path, size));
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Makes the disk of a *stopped* VM larger; what is on it stays.
    ///
    /// # Errors
    /// `invalid_argument` when `size` is smaller than the disk.
    pub fn grow(path: &Path, size: Bytes) -> Result<()> {
        let now = fs::metadata(path).map_err(ImageError::io("look at", path))?.len();
        if size.0 < now {
            return Err(ImageError::Invalid {
                message: format!("a system disk of {} cannot shrink to {size}", Bytes(now)),
                hint: None,
            });
        }
        let file = OpenOptions::new().write(true).open(path).map_err(ImageError::io("open", path))?;
        file.set_len(size.0).map_err(ImageError::io("size", path))?;
        // resize2fs refuses a file system that was not checked since it was mounted; 1 is "repaired".
        let check = run("e2fsck", &["-f".as_ref(), "-p".as_ref(), path.as_os_str()])?;
        if !matches!(check.status.code(), Some(0 | 1)) {
            return Err(failed("e2fsck", &check));
        }
        let resize = run("resize2fs", &[path.as_os_str()])?;
        if resize.status.success() { Ok(()) } else { Err(failed("resize2fs", &resize)) }
    }
}

fn format(path: &Path, size: Bytes) -> Result<()> {
    let mut output = mkfs(path, size, PREZEROED)?;
    if !output.status.success() && !mentions_bad_option(&output) {
        return Err(failed("mkfs.ext4", &output));
    }
    if !output.status.success() {
        output = mkfs(path, size, LAZY)?;
    }
    if output.status.success() { Ok(()) } else { Err(failed("mkfs.ext4", &output)) }
}

fn mkfs(path: &Path, size: Bytes, extended: &str) -> Result<Output> {
    let words =
        ["-q", "-F", "-m", "0", "-O", "^resize_inode", "-J", journal(size), "-L", LABEL, "-E", extended];
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
            SystemDisk::create(&path, Bytes(size)).unwrap();
            let meta = fs::metadata(&path).unwrap();
            assert_eq!(meta.len(), size);
            assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
            assert!(meta.blocks() * 512 < 4 << 20, "{name}: {} bytes on disk", meta.blocks() * 512);
            let check = run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).unwrap();
            assert!(check.status.success(), "{name}: {}", failed("e2fsck", &check));
        }
    }

    #[test]
    fn a_file_that_is_there_already_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, "precious").unwrap();
        let error: banger_model::Error = SystemDisk::create(&path, Bytes(1 << 30)).unwrap_err().into();
        assert_eq!(error.code, banger_model::ErrorCode::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        assert!(SystemDisk::create(&dir.path().join("tiny"), Bytes(1 << 20)).is_err());
        assert!(!dir.path().join("tiny").exists());
    }

    #[test]
    fn a_disk_grows_and_never_shrinks() {
        if !has_mkfs() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        SystemDisk::create(&path, Bytes(1 << 30)).unwrap();
        SystemDisk::grow(&path, Bytes(20 << 30)).unwrap();
        let check = run("e2fsck", &["-f".as_ref(), "-n".as_ref(), path.as_os_str()]).unwrap();
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert!(check.status.success() && said.contains("/5242880 blocks"), "{said}");
        assert!(SystemDisk::grow(&path, Bytes(1 << 30)).is_err());
        assert_eq!(fs::metadata(&path).unwrap().len(), 20 << 30);
    }
}
