//! The writable disks that VMs own: sparse ext4 files.
//! Must never touch a file that exists already, except to grow it.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Output, Stdio};

use banger_host::programs;
use banger_model::Bytes;

use crate::error::{ImageError, Result};

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
    programs::command(tool)?
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
        let found = programs::find("mkfs.ext4").is_ok();
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
