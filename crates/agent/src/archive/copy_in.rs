//! A workspace into the guest: a new one beside its place and then there in one step, or an earlier one brought up to
//! date. Must never replace anything but an earlier copy, and never leave half of a new one in its place.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use banger_protocol::agent::CopyIn;
use rustix::fs::{AtFlags, Mode, OFlags, syncfs};
use rustix::io::Errno;

use super::ArchiveError;
use super::beneath::{Below, DIRECTORY, parts};
use super::switch::{self, Waiting};
use super::{mounts, unpack};
use crate::scan::seen::{self, Recorder};

/// Copies a workspace in.
///
/// # Errors
/// What cannot be written. A new copy then leaves nothing, and one that was to be brought up to date is as it was; or, when it
/// was being put in place already, that is ended by whoever comes next.
pub fn copy_in(spec: &CopyIn, input: impl Read) -> Result<(), ArchiveError> {
    let bytes = spec.root.as_bytes();
    let root = Path::new(spec.root.as_os_str());
    if !root.is_absolute() || bytes.contains(&0) || root.file_name().is_none() {
        return Err(ArchiveError::NotAbsolute(spec.root.clone()));
    }
    let _turn = switch::turn();
    let was_protected = mounts::lift(root).map_err(ArchiveError::file(bytes))?;
    switch::finish(root)?;
    let copied = if spec.update { update(spec, root, input) } else { anew(spec, root, input) };
    // The host records that it is there: it must be after the machine's death, too.
    let copied =
        copied.and_then(|()| open(root).and_then(|top| Ok(syncfs(top)?)).map_err(ArchiveError::file(bytes)));
    let protect = if copied.is_ok() { spec.readonly } else { was_protected };
    let protected = if protect { mounts::protect(root) } else { Ok(()) };
    copied.and(protected.map_err(ArchiveError::file(bytes)))
}

/// Whether a directory holds a workspace that was copied in.
pub(crate) fn is_copy(root: &Path) -> bool {
    let record =
        root.join(Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(seen::FILE)));
    std::fs::symlink_metadata(record).is_ok_and(|m| m.is_file())
}

/// Whether a directory is absent or has nothing in it.
pub(crate) fn is_vacant(root: &Path) -> io::Result<bool> {
    match std::fs::read_dir(root) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(e) => Err(e),
    }
}

fn anew(spec: &CopyIn, root: &Path, input: impl Read) -> Result<(), ArchiveError> {
    let bytes = spec.root.as_bytes();
    let failed = |e: io::Error| ArchiveError::file(bytes)(e);
    let vacant = is_vacant(root).map_err(failed)?;
    let replaceable = vacant || (spec.replace && is_copy(root));
    if !replaceable {
        return Err(ArchiveError::NotEmpty(spec.root.clone()));
    }
    let parent = root.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(failed)?;
    let (new, old) = (beside(root, "new"), beside(root, "old"));
    // What a copy that was cut off left.
    for left in [&new, &old] {
        remove_tree(left).map_err(failed)?;
    }
    if is_mount_point(root, parent) {
        return in_place(root, vacant, input).map_err(|e| relabel(e, bytes));
    }
    std::fs::DirBuilder::new().mode(0o755).create(&new).map_err(failed)?;
    let copied = open(&new)
        .map_err(failed)
        .and_then(|top| unpack::into_directory(top, Recorder::default(), input))
        .and_then(|()| {
            if !vacant {
                std::fs::rename(root, &old).map_err(failed)?;
            }
            std::fs::rename(&new, root).map_err(failed)
        });
    let cleared = [&new, &old].map(|left| remove_tree(left));
    copied?;
    cleared.into_iter().collect::<io::Result<()>>().map_err(failed)
}

/// A copy right into a directory that cannot be renamed.
fn in_place(root: &Path, vacant: bool, input: impl Read) -> Result<(), ArchiveError> {
    let failed = |e: io::Error| ArchiveError::file(b"")(e);
    if !vacant {
        clear(root).map_err(failed)?;
    }
    let top = open(root).map_err(failed)?;
    unpack::into_directory(top, Recorder::default(), input).inspect_err(|_| {
        let _ = clear(root);
    })
}

fn update(spec: &CopyIn, root: &Path, mut input: impl Read) -> Result<(), ArchiveError> {
    let failed = |e: io::Error| ArchiveError::file(spec.root.as_bytes())(e);
    if !is_copy(root) {
        return Err(ArchiveError::NoCopy(spec.root.clone()));
    }
    let mut list = Vec::new();
    (&mut input).take(spec.remove_bytes).read_to_end(&mut list).map_err(ArchiveError::Stream)?;
    if list.len() as u64 != spec.remove_bytes {
        return Err(ArchiveError::Stream(io::ErrorKind::UnexpectedEof.into()));
    }
    let waiting = Waiting::open(open(root).map_err(failed)?)?;
    match waiting.tree().and_then(|tree| unpack::into_directory(tree, Recorder::off(), input)) {
        Ok(()) => waiting.put(&list),
        Err(e) => {
            waiting.discard();
            Err(e)
        }
    }
}

/// Removes a path, whatever it is, and the directories above it that are empty then.
pub(super) fn remove(below: &mut Below, path: &[u8]) -> Result<(), ArchiveError> {
    let parts = parts(path)?;
    let mut depth = parts.len();
    while let Some((name, parents)) = parts.get(..depth).and_then(<[_]>::split_last) {
        let dir = match below.directory(parents, false) {
            Ok(dir) => dir,
            // Something is in the way above it: then it is not there.
            Err(ArchiveError::Escapes(_)) => return Ok(()),
            Err(ArchiveError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let removed = if depth < parts.len() {
            rustix::fs::unlinkat(dir, *name, AtFlags::REMOVEDIR)
        } else {
            match rustix::fs::unlinkat(dir, *name, AtFlags::empty()) {
                Err(Errno::ISDIR) => remove_below(dir, name),
                other => other,
            }
        };
        match removed {
            Ok(()) => below.forget(),
            Err(Errno::NOENT) if depth == parts.len() => {}
            Err(_) if depth < parts.len() => return Ok(()),
            Err(e) => return Err(ArchiveError::file(path)(e)),
        }
        depth -= 1;
    }
    Ok(())
}

/// A directory with all that is in it, without following a link.
pub(super) fn remove_below(dir: impl std::os::fd::AsFd, name: &[u8]) -> Result<(), Errno> {
    let fd = rustix::fs::openat(&dir, name, DIRECTORY, Mode::empty())?;
    let names: Vec<_> = rustix::fs::Dir::read_from(&fd)?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_bytes().to_vec()))
        .filter(|name| name != b"." && name != b"..")
        .collect();
    for name in names {
        match rustix::fs::unlinkat(&fd, name.as_slice(), AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_below(&fd, &name)?,
            other => other?,
        }
    }
    drop(fd);
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(dir, flags, Mode::empty())?)
}

/// A hidden name next to a directory, the same each time, so that what was left is found.
fn beside(root: &Path, what: &str) -> PathBuf {
    let mut name = OsString::from(format!(".banger-{what}-"));
    name.push(root.file_name().unwrap_or_default());
    root.with_file_name(name)
}

fn is_mount_point(root: &Path, parent: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
    device(root).is_some_and(|dev| Some(dev) != device(parent))
}

fn clear(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        remove_tree(&entry?.path())?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let gone = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    gone.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

/// An error without a path is about the workspace itself.
fn relabel(error: ArchiveError, root: &[u8]) -> ArchiveError {
    match error {
        ArchiveError::File { path, source } if path.as_bytes().is_empty() => ArchiveError::file(root)(source),
        other => other,
    }
}
