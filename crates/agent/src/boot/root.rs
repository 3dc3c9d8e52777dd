//! The root file system: the read-only base below a writable disk as an overlay, the kernel's modules, and the
//! kernel's own file systems. Must never write to the base; what is missing in it is made in the overlay.

use std::ffi::CString;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use super::cmdline::BootConfig;
use super::disks::Disks;
use super::error::{BootError, Result};
use super::ext4;

/// Where the pieces are put together, in the initramfs.
const BASE: &str = "/base";
const SYSTEM: &str = "/system";
const ROOT: &str = "/root";

const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// The kernel's file systems that the initramfs itself needs.
pub(super) fn mount_initramfs() -> Result<()> {
    for dir in ["/proc", "/sys", "/dev"] {
        make_dir(dir, 0o755)?;
    }
    attach("proc", "/proc", "proc", PLAIN, "")?;
    attach("sysfs", "/sys", "sysfs", PLAIN, "")?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")
}

/// Mounts base and system disk and puts the overlay together. Says whether the system disk is new.
pub(super) fn assemble(config: &BootConfig, disks: &Disks) -> Result<bool> {
    for dir in [BASE, SYSTEM, ROOT] {
        make_dir(dir, 0o755)?;
    }
    attach(&disks.base, BASE, &config.base_fs, MountFlags::RDONLY, "")?;
    match &disks.system {
        // What a boot that was cut off left in the journal is replayed by the mount.
        Some(disk) => {
            // The disk began as a file of holes: there is nothing for the kernel to zero in the background.
            attach(disk, SYSTEM, "ext4", MountFlags::empty(), "noinit_itable")?;
            ext4::fill_device(disk, Path::new(SYSTEM));
        }
        None => attach("tmpfs", SYSTEM, "tmpfs", MountFlags::empty(), "mode=0755")?,
    }
    let (upper, work) = (format!("{SYSTEM}/upper"), format!("{SYSTEM}/work"));
    let new = !Path::new(&upper).exists();
    make_dir(&upper, 0o755)?;
    make_dir(&work, 0o700)?;
    if new {
        // The root directory's mode and owner come from the upper layer.
        copy_root_mode(BASE, &upper)?;
    }
    // redirect_dir lets directories of the base be renamed; xino keeps inode numbers and st_dev whole, so that
    // find -xdev, du -x and git see one file system (kernel: Documentation/filesystems/overlayfs.rst).
    let options = format!("lowerdir={BASE},upperdir={upper},workdir={work},redirect_dir=on,xino=on");
    attach("overlay", ROOT, "overlay", MountFlags::empty(), &options)?;
    Ok(new)
}

/// Makes the overlay the root of this process and of the kernel's own helpers. Never undone.
pub(super) fn enter() -> Result<()> {
    rustix::process::chdir(ROOT).map_err(BootError::os("enter the new root"))?;
    mount_move(".", "/").map_err(BootError::os("move the new root into place"))?;
    rustix::process::chroot(".").map_err(BootError::os("change to the new root"))?;
    rustix::process::chdir("/").map_err(BootError::os("enter the new root"))
}

/// The kernel's file systems in the new root, with the directories a bare image lacks.
pub(super) fn furnish() -> Result<()> {
    for dir in ["/proc", "/sys", "/dev", "/run", "/etc", "/var"] {
        make_dir(dir, 0o755)?;
    }
    make_dir("/root", 0o700)?;
    make_dir("/tmp", 0o1777)?;
    attach("proc", "/proc", "proc", PLAIN, "")?;
    attach("sysfs", "/sys", "sysfs", PLAIN, "")?;
    attach("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    make_dir("/dev/pts", 0o755)?;
    make_dir("/dev/shm", 0o1777)?;
    // Group 5 is tty wherever there is such a group; grantpt(3) expects it.
    let terminals = MountFlags::NOSUID | MountFlags::NOEXEC;
    attach("devpts", "/dev/pts", "devpts", terminals, "gid=5,mode=620,ptmxmode=666")?;
    let memory = MountFlags::NOSUID | MountFlags::NODEV;
    attach("tmpfs", "/dev/shm", "tmpfs", memory, "mode=1777")?;
    attach("tmpfs", "/run", "tmpfs", memory, "mode=0755,size=20%")?;
    // A kernel without cgroups boots as well.
    let _ = attach("cgroup2", "/sys/fs/cgroup", "cgroup2", PLAIN, "nsdelegate");
    for (name, target) in [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
        let _ = symlink(format!("/proc/self/{target}"), format!("/dev/{name}"));
    }
    Ok(())
}

/// Mounts the kernel's modules where modprobe looks for them.
pub(super) fn mount_modules(device: &Path) -> Result<()> {
    make_dir("/lib", 0o755)?;
    make_dir("/lib/modules", 0o755)?;
    attach(
        device,
        "/lib/modules",
        "squashfs",
        MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID,
        "",
    )
}

/// Makes a directory unless there is one, whatever the umask.
fn make_dir(path: &str, mode: u32) -> Result<()> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && Path::new(path).is_dir() => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(BootError::os(format!("make the directory {path}")))
}

fn copy_root_mode(from: &str, to: &str) -> Result<()> {
    let metadata = std::fs::metadata(from).map_err(BootError::os(format!("read {from}")))?;
    std::fs::set_permissions(to, metadata.permissions())
        .map_err(BootError::os(format!("set the mode of {to}")))
}

/// mount(2) with words for what failed.
pub(super) fn attach(
    source: impl AsRef<Path>,
    target: &str,
    fs: &str,
    flags: MountFlags,
    options: &str,
) -> Result<()> {
    let source = source.as_ref();
    let data =
        CString::new(options).map_err(|_| BootError::Invalid("mount options with a zero byte".into()))?;
    mount(source, target, fs, flags, data.as_c_str())
        .map_err(BootError::os(format!("mount {} ({fs}) at {target}", source.display())))
}
