//! The user's home on a disk of its own: filled from the image's home on first use, then mounted over it. Must never
//! take a half-filled home for a whole one, and never boot without the disk: work would go where a rebuild ends it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, unmount};
use rustix::process::{Gid, Uid};

use super::error::{BootError, Result};
use super::{ext4, guest, root};
use crate::exec::account;

/// Where the whole disk is seen while it is looked at.
const DOOR: &str = "/run/banger-home";
/// The home on the disk; beside it is what ext4 keeps for itself.
const HOME: &str = "home";
/// A home that is being filled.
const FILLING: &str = "home.new";

/// Mounts the disk on the home of the user that commands run as by default, in the new root.
pub(super) fn mount(device: &Path) -> Result<()> {
    let home = find(Path::new("/"));
    fs::DirBuilder::new().mode(0o700).create(DOOR).map_err(BootError::os(format!("make {DOOR}")))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    root::attach(device, DOOR, "ext4", flags, "")?;
    ext4::fill_device(device, Path::new(DOOR));
    fs::create_dir_all(&home).map_err(BootError::os(format!("make {}", home.display())))?;
    let whole = fill(&home, Path::new(DOOR))
        .map_err(BootError::os(format!("copy {} to the work disk", home.display())))?;
    mount_bind(&whole, &home).map_err(BootError::os(format!("mount the work disk at {}", home.display())))?;
    // The home alone holds the file system now, so that an unmounted home is an unmounted disk.
    unmount(DOOR, UnmountFlags::DETACH).map_err(BootError::os(format!("leave {DOOR}")))?;
    let _ = fs::remove_dir(DOOR);
    guest::keep_mount(Path::new("/run"), &guest::mount_unit(&home));
    Ok(())
}

/// The default user's home; an image that has none, or none that could be mounted on, gets `/root`.
fn find(root: &Path) -> PathBuf {
    let named = account::find(&root.join("etc"), "root").map(|account| account.home).unwrap_or_default();
    let path = Path::new(OsStr::from_bytes(&named));
    let parts = path.components().skip(1);
    let fine = path.is_absolute()
        && parts.clone().count() > 0
        && parts.clone().all(|part| matches!(part, std::path::Component::Normal(_)));
    if fine { path.to_owned() } else { PathBuf::from("/root") }
}

/// The home on the disk, filled with what is in `home` when there is none yet.
fn fill(home: &Path, disk: &Path) -> io::Result<PathBuf> {
    let whole = disk.join(HOME);
    if whole.is_dir() {
        return Ok(whole);
    }
    let filling = disk.join(FILLING);
    match fs::remove_dir_all(&filling) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    copy_dir(home, &filling)?;
    // All of it is on the disk before it has its name.
    rustix::fs::syncfs(File::open(disk)?)?;
    fs::rename(&filling, &whole)?;
    File::open(disk)?.sync_all()?;
    Ok(whole)
}

/// Copies a directory with owners, modes and times. Sockets, pipes and devices stay behind.
fn copy_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, copy) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_dir(&source, &copy)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &copy)?;
            own(&source, &copy)?;
        } else if kind.is_file() {
            let mut reader = File::open(&source)?;
            io::copy(&mut reader, &mut File::create_new(&copy)?)?;
            own(&source, &copy)?;
        }
    }
    own(from, to)
}

/// Gives a copy what its original has besides its content. The mode comes after the owner, which clears bits of it.
fn own(from: &Path, to: &Path) -> io::Result<()> {
    let meta = from.symlink_metadata()?;
    let (owner, group) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
    rustix::fs::chownat(CWD, to, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if !meta.is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(meta.atime(), meta.atime_nsec()),
        last_modification: time(meta.mtime(), meta.mtime_nsec()),
    };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_home(root: &Path) -> PathBuf {
        let home = root.join("root");
        fs::create_dir_all(home.join(".config/deep")).unwrap();
        fs::write(home.join(".bashrc"), "alias ll='ls -l'\n").unwrap();
        fs::write(home.join(".config/deep/run"), "#!/bin/sh\n").unwrap();
        symlink("../nowhere", home.join(".link")).unwrap();
        fs::set_permissions(home.join(".config/deep/run"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        home
    }

    #[test]
    fn a_new_disk_gets_the_images_home_once() {
        // Given an image's home, a new disk, and what a boot that was cut off left on it
        let (root, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let home = image_home(root.path());
        fs::create_dir(disk.path().join(FILLING)).unwrap();
        fs::write(disk.path().join(FILLING).join("half"), "").unwrap();
        // When it is filled
        let whole = fill(&home, disk.path()).unwrap();
        // Then everything is there with its mode, and nothing half
        assert_eq!(fs::read_to_string(whole.join(".bashrc")).unwrap(), "alias ll='ls -l'\n");
        assert_eq!(fs::read_link(whole.join(".link")).unwrap(), Path::new("../nowhere"));
        let mode = |path: &str| whole.join(path).metadata().unwrap().mode() & 0o7777;
        assert_eq!((mode(""), mode(".config/deep/run")), (0o700, 0o4755));
        let time = |path: &Path| path.join(".bashrc").metadata().unwrap().modified().unwrap();
        assert_eq!(time(&whole), time(&home));
        assert!(!whole.join("half").exists() && !disk.path().join(FILLING).exists());
        // And another image's home does not touch it
        fs::write(whole.join("work"), "mine").unwrap();
        fs::write(home.join(".bashrc"), "of another image").unwrap();
        fill(&home, disk.path()).unwrap();
        assert_eq!(fs::read_to_string(whole.join("work")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(whole.join(".bashrc")).unwrap(), "alias ll='ls -l'\n");
    }

    #[test]
    fn the_home_is_that_of_the_default_user_where_a_disk_can_be_mounted() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        for (home, expected) in [
            ("/root", "/root"),
            ("/home/boss", "/home/boss"),
            ("/", "/root"),
            ("/root/../etc", "/root"),
            ("x", "/root"),
        ] {
            fs::write(root.path().join("etc/passwd"), format!("root:x:0:0:root:{home}:/bin/sh\n")).unwrap();
            assert_eq!(find(root.path()), Path::new(expected), "{home}");
        }
    }
}
