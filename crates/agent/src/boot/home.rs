//! The homes on a disk of their own: root's and all below `/home`. Filled from the image's on first use, then mounted over
//! them. Must never take a half-filled home for a whole one, and never boot without the disk: work would go where a
//! rebuild ends it.

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
/// On the disk: root's home. Beside it is what ext4 keeps for itself.
const HOME: &str = "home";
/// On the disk: everybody else's.
const HOMES: &str = "homes";
/// Where those are in the guest.
const EVERYBODY: &str = "/home";
/// A home that is being filled.
const FILLING: &str = "home.new";

/// Mounts the disk on root's home and on `/home` in the new root. On the first boot of a system disk (`first_boot`) the
/// homes of users whom the disk does not know come to it.
pub(super) fn mount(device: &Path, first_boot: bool) -> Result<()> {
    fs::DirBuilder::new().mode(0o700).create(DOOR).map_err(BootError::os(format!("make {DOOR}")))?;
    // As on the system disk: what is in a home works as it did before.
    root::attach(device, DOOR, "ext4", MountFlags::empty(), "")?;
    let (disk, everybody) = (Path::new(DOOR), Path::new(EVERYBODY));
    ext4::fill_device(device, disk);
    let home = find(Path::new("/"));
    let fresh = cover(everybody, disk, HOMES)?;
    if first_boot && !fresh {
        add_homes(everybody, disk).map_err(to_disk(everybody))?;
    }
    bind(disk, HOMES, everybody)?;
    if !home.starts_with(everybody) {
        cover(&home, disk, HOME)?;
        bind(disk, HOME, &home)?;
    }
    // The homes alone hold the file system now, so that unmounted homes are an unmounted disk.
    unmount(DOOR, UnmountFlags::DETACH).map_err(BootError::os(format!("leave {DOOR}")))?;
    let _ = fs::remove_dir(DOOR);
    Ok(())
}

/// Sees to it that a directory is there, and on the disk too; whether it was new to the disk.
fn cover(dir: &Path, disk: &Path, name: &str) -> Result<bool> {
    fs::create_dir_all(dir).map_err(BootError::os(format!("make {}", dir.display())))?;
    fill(dir, disk, name).map_err(to_disk(dir))
}

fn bind(disk: &Path, name: &str, dir: &Path) -> Result<()> {
    mount_bind(disk.join(name), dir)
        .map_err(BootError::os(format!("mount the work disk at {}", dir.display())))?;
    guest::keep_mount(Path::new("/run"), &guest::mount_unit(dir));
    Ok(())
}

fn to_disk(dir: &Path) -> impl FnOnce(io::Error) -> BootError {
    BootError::os(format!("copy {} to the work disk", dir.display()))
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

/// Fills a directory of the disk with what is in `from`, if it is not there yet; whether it was not.
fn fill(from: &Path, disk: &Path, name: impl AsRef<Path>) -> io::Result<bool> {
    let whole = disk.join(name);
    if whole.is_dir() {
        return Ok(false);
    }
    let filling = disk.join(FILLING);
    match fs::remove_dir_all(&filling) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    copy_dir(from, &filling)?;
    // All of it is on the disk before it has its name.
    rustix::fs::syncfs(File::open(disk)?)?;
    fs::rename(&filling, &whole)?;
    File::open(whole.parent().unwrap_or(disk))?.sync_all()?;
    Ok(true)
}

/// Brings the homes of a new image's users to a disk that has others already. What the disk has stays.
fn add_homes(everybody: &Path, disk: &Path) -> io::Result<()> {
    for entry in fs::read_dir(everybody)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fill(&entry.path(), disk, Path::new(HOMES).join(entry.file_name()))?;
        }
    }
    Ok(())
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
        assert!(fill(&home, disk.path(), HOME).unwrap());
        let whole = disk.path().join(HOME);
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
        assert!(!fill(&home, disk.path(), HOME).unwrap());
        assert_eq!(fs::read_to_string(whole.join("work")).unwrap(), "mine");
        assert_eq!(fs::read_to_string(whole.join(".bashrc")).unwrap(), "alias ll='ls -l'\n");
    }

    #[test]
    fn users_of_another_image_get_their_homes_and_the_others_keep_theirs() {
        // Given a disk with the home of one user, who worked there
        let (disk, one, two) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(one.path().join("ann")).unwrap();
        fs::write(one.path().join("ann/.profile"), "of the first").unwrap();
        assert!(fill(one.path(), disk.path(), HOMES).unwrap());
        let homes = disk.path().join(HOMES);
        fs::write(homes.join("ann/work"), "mine").unwrap();
        // When another image comes with her and with somebody else
        for user in ["ann", "bob"] {
            fs::create_dir(two.path().join(user)).unwrap();
            fs::write(two.path().join(user).join(".profile"), "of the second").unwrap();
        }
        add_homes(two.path(), disk.path()).unwrap();
        // Then hers is as it was, and his is the image's
        let read = |path: &str| fs::read_to_string(homes.join(path)).unwrap();
        assert_eq!((read("ann/.profile"), read("ann/work")), ("of the first".into(), "mine".into()));
        assert_eq!(read("bob/.profile"), "of the second");
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
