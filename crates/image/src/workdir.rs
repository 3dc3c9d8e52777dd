//! Scratch directories that somebody can clear away after a crash.
//! Must never touch a directory whose owner is alive.

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use banger_host::programs;
use rustix::fs::{FlockOperation, flock};

use crate::error::{ImageError, Result};

const LOCK: &str = ".lock";
/// A directory this young without a lock has an owner who has not locked it yet.
const YOUNG: Duration = Duration::from_secs(60);

/// A directory of our own, gone with this value; locked so that [`sweep`] knows that it is in use.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Makes `<parent>/<prefix><random>`, with `mode` from birth.
    pub(crate) fn new(parent: &Path, prefix: &str, mode: u32) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(fs::Permissions::from_mode(mode))
            .tempdir_in(parent)
            .map_err(ImageError::io("make a scratch directory in", parent))?;
        // The daemon's umask took away what the mode gives to others; who needs it must get it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode))
            .map_err(ImageError::io("open", dir.path()))?;
        let lock_path = dir.path().join(LOCK);
        let lock = File::create_new(&lock_path).map_err(ImageError::io("make", &lock_path))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(ImageError::errno("lock", &lock_path))?;
        Ok(Self { path: dir.keep(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "scratch directory left behind");
        }
    }
}

/// Makes `path` and its parents, 0700 where they are new.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(ImageError::io("make", path))
}

/// Removes the directories of this user in `parent` that begin with `prefix` and have no living owner.
pub(crate) fn sweep(parent: &Path, prefix: &str) -> Result<usize> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(ImageError::Io { action: "list", path: parent.to_owned(), source }),
    };
    let me = rustix::process::geteuid().as_raw();
    let (mut removed, mut failed) = (0, None);
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Ok(meta) = fs::symlink_metadata(entry.path()) else { continue };
        if !name.as_encoded_bytes().starts_with(prefix.as_bytes()) || !meta.is_dir() || meta.uid() != me {
            continue;
        }
        if !is_abandoned(&entry.path(), &meta) {
            continue;
        }
        match remove_tree(&entry.path()) {
            Ok(()) => removed += 1,
            // The rest goes all the same.
            Err(error) => failed = Some(ImageError::io("remove", &entry.path())(error)),
        }
    }
    failed.map_or(Ok(removed), Err)
}

fn is_abandoned(dir: &Path, meta: &fs::Metadata) -> bool {
    match File::open(dir.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => meta.modified().ok().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > YOUNG),
    }
}

/// Removes a tree, also one in which directories belong to the subordinate ids of this user.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            // Root of the user's own namespace may empty those, but not list or change `path`, which is this user's.
            let inside = fs::read_dir(path)?.flatten().map(|entry| entry.path());
            let mut helper = programs::command("mmdebstrap").map_err(std::io::Error::other)?;
            let _ = helper
                .args(["--unshare-helper", "rm", "-rf", "--one-file-system", "--"])
                .args(inside)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sweeping_takes_the_dead_and_leaves_the_living() {
        let parent = tempfile::tempdir().unwrap();
        let living = WorkDir::new(parent.path(), "w-", 0o700).unwrap();
        let dead = parent.path().join("w-dead");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join(LOCK)).unwrap();
        fs::write(dead.join("left"), "over").unwrap();
        let newborn = parent.path().join("w-new");
        fs::create_dir(&newborn).unwrap();
        let other = parent.path().join("x-other");
        fs::create_dir(&other).unwrap();

        assert_eq!(sweep(parent.path(), "w-").unwrap(), 1);

        assert!(!dead.exists());
        assert!(living.path().exists() && newborn.exists() && other.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
