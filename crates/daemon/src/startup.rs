//! Before anything else: directories of the right owner and mode, the lock that makes the daemon
//! one per runtime directory, and the log. Must not touch the database.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_model::{Error, ErrorCode, Result, RuntimeDir, StateDir, runtime_dir_candidates, state_dir_from};
use rustix::fs::FlockOperation;

/// The two directories a daemon lives in.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// Durable.
    pub state: StateDir,
    /// Sockets and locks.
    pub runtime: RuntimeDir,
    /// Downloads that may be fetched again.
    pub cache: PathBuf,
}

impl Dirs {
    /// Finds the directories that the environment names, makes and checks them.
    ///
    /// # Errors
    /// When one cannot be made, belongs to somebody else, or others may write to it.
    pub(crate) fn open(env: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let state = state_dir_from(&env)?;
        let candidates = runtime_dir_candidates(&env, uid)?;
        let mut runtime = None;
        for candidate in candidates {
            let parent_exists = candidate.path().parent().is_some_and(Path::is_dir);
            if parent_exists || env("BANGER_RUNTIME_DIR").is_some() {
                runtime = Some(candidate);
                break;
            }
        }
        let runtime = runtime.ok_or_else(|| {
            Error::unavailable("there is no place for banger's sockets").with_hint("set BANGER_RUNTIME_DIR")
        })?;
        for dir in [state.path(), runtime.path()] {
            make_private(dir, uid)?;
        }
        for dir in
            [state.vms(), state.images(), state.kernels(), state.templates(), state.scratch(), runtime.vms()]
        {
            make_private(&dir, uid)?;
        }
        let cache = match (env("XDG_CACHE_HOME"), env("HOME")) {
            (Some(dir), _) if Path::new(&dir).is_absolute() => PathBuf::from(dir).join("banger"),
            (_, Some(home)) if Path::new(&home).is_absolute() => PathBuf::from(home).join(".cache/banger"),
            _ => state.path().join("cache"),
        };
        Ok(Self { state, runtime, cache })
    }
}

/// Makes a directory 0700 from birth; one that is there must be ours, real, and not writable by
/// others.
fn make_private(dir: &Path, uid: u32) -> Result<()> {
    let other = "choose another BANGER_STATE_DIR or BANGER_RUNTIME_DIR";
    let failed = |e: std::io::Error| {
        Error::unavailable(format!("the directory {} cannot be made: {e}", dir.display())).with_hint(other)
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let meta = std::fs::symlink_metadata(dir).map_err(failed)?;
    if !meta.is_dir() {
        return Err(Error::unavailable(format!("{} is not a directory", dir.display())).with_hint(other));
    }
    if meta.uid() != uid {
        return Err(Error::unavailable(format!(
            "{} belongs to user {}, not to {uid}",
            dir.display(),
            meta.uid()
        ))
        .with_hint(other));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(Error::unavailable(format!("others may write to {}", dir.display()))
            .with_hint(format!("chmod 700 {}", dir.display())));
    }
    Ok(())
}

/// Held for the daemon's life: one daemon per runtime directory (its sockets) and per state
/// directory (its records). The files stay when the daemon ends: removing a lock file would let
/// two daemons hold "the" lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _files: [File; 2],
}

impl Lock {
    /// Takes both locks and writes our pid into them.
    ///
    /// # Errors
    /// `busy` when another daemon has one.
    pub(crate) fn take(dirs: &Dirs) -> Result<Self> {
        let runtime = lock_file(&dirs.runtime.lock(), dirs.runtime.path())?;
        let state = lock_file(&dirs.state.lock(), dirs.state.path()).map_err(|e| {
            e.with_hint("two daemons cannot share a state directory: set BANGER_RUNTIME_DIR to that daemon's")
        })?;
        Ok(Self { _files: [runtime, state] })
    }
}

fn lock_file(path: &Path, of: &Path) -> Result<File> {
    let failed = |e: std::io::Error| Error::unavailable(format!("the lock {}: {e}", path.display()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let owner = std::fs::read_to_string(path).unwrap_or_default();
            let message = format!("another daemon (pid {}) serves {}", owner.trim(), of.display());
            return Err(Error::new(ErrorCode::Busy, message));
        }
        Err(e) => return Err(failed(e.into())),
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)?;
    Ok(file)
}

/// Starts logging: JSON, a line an event, to `bangerd.log`; the last log is kept when it is large.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn start_log(state: &StateDir) -> Result<()> {
    const KEEP: u64 = 16 << 20;
    let path = state.log();
    if std::fs::metadata(&path).is_ok_and(|m| m.len() > KEEP) {
        let _ = std::fs::rename(&path, path.with_extension("log.1"));
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::unavailable(format!("the log {}: {e}", path.display())))?;
    let filter = tracing_subscriber::EnvFilter::try_from_env("BANGER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::sync::Mutex::new(file)).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn directories_are_private_from_birth_and_shared_ones_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let fresh = dir.path().join("a/b");
        make_private(&fresh, uid).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(make_private(&fresh, uid).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/", &link).unwrap();
        assert!(make_private(&link, uid).is_err());
    }

    #[test]
    fn one_daemon_per_runtime_directory_and_per_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = |state: &str, runtime: &str| {
            let (state, runtime) = (dir.path().join(state), dir.path().join(runtime));
            std::fs::create_dir_all(&state).unwrap();
            std::fs::create_dir_all(&runtime).unwrap();
            Dirs {
                state: state_dir_from(|key| (key == "BANGER_STATE_DIR").then(|| state.clone().into()))
                    .unwrap(),
                runtime: runtime_dir_candidates(|_| Some(runtime.clone().into()), 0).unwrap().remove(0),
                cache: dir.path().to_owned(),
            }
        };
        let first = Lock::take(&dirs("s1", "r1")).unwrap();
        for other in [dirs("s2", "r1"), dirs("s1", "r2")] {
            assert_eq!(Lock::take(&other).unwrap_err().code, ErrorCode::Busy);
        }
        drop(first);
        Lock::take(&dirs("s1", "r1")).unwrap();
    }
}
