//! A root directory of our own: an empty file system in memory, with the places of the description mounted at the paths
//! that they have outside, and made read-only. What is not there cannot be opened, whoever asks.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::super::description::{Access, Description, LeftOut};
use super::{Fatal, during};

/// Where the new root is put until it is one. Any directory will do: it is private to us by now.
const STANDS: &[&str] = &["/tmp", "/run", "/mnt", "/proc"];

/// A place of the host's, cut out.
struct Piece {
    path: PathBuf,
    tree: OwnedFd,
    directory: bool,
}

/// Changes the root, and says which places are not in it. What the host refuses before the change leaves the old one, with
/// the reason.
pub(super) fn change(description: &Description) -> Result<Result<Vec<LeftOut>, String>, Fatal> {
    let mut left_out = Vec::new();
    let prepared = match prepare(description, &mut left_out) {
        Ok(prepared) => prepared,
        Err((what, error)) => return Ok(Err(format!("{what}: {error}"))),
    };
    enter(&prepared, description).map_err(during("enter its root directory"))?;
    Ok(Ok(left_out))
}

type Refusal = (&'static str, io::Error);

fn refused<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Refusal {
    move |error| (what, error.into())
}

/// The new root, attached and filled, but nobody's root yet.
fn prepare(description: &Description, left_out: &mut Vec<LeftOut>) -> Result<OwnedFd, Refusal> {
    // Nothing that we mount is seen outside, and nothing that is mounted outside later is seen here.
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(refused("mounts cannot be made private"))?;
    // All pieces before the stand is covered: one may lie below it.
    let pieces = pieces(description, left_out).map_err(refused("a file cannot be mounted"))?;
    let root = empty().map_err(refused("no file system in memory"))?;
    for piece in &pieces {
        place(&root, piece).map_err(refused("a file cannot be mounted in the new root"))?;
    }
    // The working directory, too, has the path it has outside: the daemon finds processes by it.
    directories(&root, Path::new(&description.directory)).map_err(refused("no working directory"))?;
    for empty in &description.mount_points {
        directories(&root, Path::new(empty)).map_err(refused("no place for the program's own mounts"))?;
    }
    // There is no process table, but programs ask it where they themselves are.
    directories(&root, Path::new("/proc/self")).map_err(refused("no place for the program's own name"))?;
    symlinkat(&description.program, &root, "proc/self/exe")
        .map_err(refused("the program cannot be named"))?;
    // passt of 2024 and newer reads who it is in its user namespace, and ends where it cannot.
    ids(&root).map_err(refused("no place for the user namespace's map"))?;
    protect(&root, libc::MOUNT_ATTR_RDONLY, false).map_err(refused("the new root cannot be protected"))?;
    Ok(root)
}

/// Copies the maps of this process's user namespace to where the program looks for its own.
fn ids(root: &OwnedFd) -> io::Result<()> {
    for name in ["uid_map", "gid_map"] {
        let path = Path::new("proc/self").join(name);
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(openat(root, &path, flags, Mode::from_raw_mode(0o444))?);
        // Without a process table outside there is nothing to copy, and an empty map maps nobody.
        file.write_all(&std::fs::read(Path::new("/").join(&path)).unwrap_or_default())?;
    }
    Ok(())
}

fn pieces(description: &Description, left_out: &mut Vec<LeftOut>) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    for wanted in &description.places {
        let path = PathBuf::from(&wanted.path);
        // What is not there, or not for us, may be of no use to the program. If it is, our error will say so.
        let mut leave = |errno: Option<i32>| {
            left_out.push(LeftOut { path: wanted.path.clone(), errno: errno.unwrap_or(libc::ENOENT) });
        };
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) => {
                leave(error.raw_os_error());
                continue;
            }
        };
        let deep = if meta.is_dir() { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | deep;
        let tree = match rustix::mount::open_tree(CWD, &path, flags) {
            Ok(tree) => tree,
            Err(error @ (Errno::NOENT | Errno::ACCESS)) => {
                leave(Some(error.raw_os_error()));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let more = match wanted.access {
            Access::Read => libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_RDONLY,
            Access::Write | Access::Room => libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
            Access::Device => libc::MOUNT_ATTR_NOEXEC,
        };
        protect(&tree, libc::MOUNT_ATTR_NOSUID | more, meta.is_dir())?;
        pieces.push(Piece { path, tree, directory: meta.is_dir() });
    }
    Ok(pieces)
}

/// An empty file system, attached.
fn empty() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "1m"), ("nr_inodes", "4096"), ("mode", "0755")] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let mut last = Errno::NOENT;
    for stand in STANDS {
        match rustix::mount::move_mount(&root, "", CWD, *stand, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH) {
            Ok(()) => return Ok(root),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// Mounts a piece at its path below `root`.
fn place(root: &OwnedFd, piece: &Piece) -> io::Result<()> {
    let path = below(&piece.path);
    if piece.directory {
        directories(root, &piece.path)?;
    } else {
        directories(root, piece.path.parent().unwrap_or(Path::new("/")))?;
        // It may be there already, in a directory that was mounted before.
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match openat(root, path, flags, Mode::from_raw_mode(0o600)) {
            Ok(_) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Links in what was mounted before lead within the new root, never to the old.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let at = openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&piece.tree, "", &at, "", flags)?)
}

/// Makes a directory and those above it.
fn directories(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let mut above: Vec<&Path> = below(path).ancestors().filter(|p| !p.as_os_str().is_empty()).collect();
    above.reverse();
    for directory in above {
        match mkdirat(root, directory, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST | Errno::ROFS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn below(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Adds attributes to a mount, and to those below it.
fn protect(mount: impl AsFd, attributes: u64, deep: bool) -> io::Result<()> {
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if deep { libc::AT_RECURSIVE } else { 0 };
    #[expect(unsafe_code, reason = "mount_setattr has no wrapper")]
    // SAFETY: the path is an empty C string and the structure is of the size given; both outlive the call, which only
    // reads them.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes it the root, and lets the old one go.
fn enter(root: &OwnedFd, description: &Description) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // The old root is then on top of the new one, at the same place, and is taken off (pivot_root(2), NOTES).
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    rustix::process::chdir(Path::new(&description.directory))?;
    Ok(())
}
