//! Before anything else: directories of the right owner and mode, the lock that makes the daemon
//! one per runtime directory, and the log. Must not touch the database.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
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
        let dirs = Self::find(env)?;
        let Self { state, runtime, .. } = &dirs;
        for dir in [state.path(), runtime.path()] {
            make_private(dir, uid)?;
        }
        apart(state, runtime)?;
        for dir in
            [state.vms(), state.images(), state.kernels(), state.templates(), state.scratch(), runtime.vms()]
        {
            make_private(&dir, uid)?;
        }
        Ok(dirs)
    }

    /// Finds the directories that the environment names. Nothing is made or looked at.
    ///
    /// # Errors
    /// When a variable is wrong, or there is no place for sockets.
    pub(crate) fn find(env: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
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
    if meta.is_symlink() {
        let leads = std::fs::canonicalize(dir).map_err(failed)?;
        return Err(Error::unavailable(format!("{} is a symbolic link", dir.display()))
            .with_hint(format!("name the directory itself: {}", leads.display())));
    }
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

/// Refuses one directory for both: each has a lock and a directory of VMs by the same names.
fn apart(state: &StateDir, runtime: &RuntimeDir) -> Result<()> {
    let identity = |dir: &Path| std::fs::metadata(dir).map(|meta| (meta.dev(), meta.ino())).ok();
    if identity(state.path()) != identity(runtime.path()) {
        return Ok(());
    }
    Err(Error::invalid(format!("{} is both the state and the runtime directory", state.path().display()))
        .with_hint("give BANGER_STATE_DIR and BANGER_RUNTIME_DIR a directory each"))
}

/// Held for the daemon's life: one daemon per runtime directory (its sockets) and per state
/// directory (its records). The files stay when the daemon ends: removing a lock file would let
/// two daemons hold "the" lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _files: [File; 2],
}

impl Lock {
    /// Takes both locks and writes into them whose they are.
    ///
    /// # Errors
    /// `busy` when another daemon serves at our sockets: whoever wants one may use that. `unavailable` when one with
    /// other sockets has the state directory: waiting for it would not help.
    pub(crate) fn take(dirs: &Dirs) -> Result<Self> {
        // A process that ends closes in the order of opening. The state's lock must be the first to go: who
        // finds our sockets free must not find their records taken.
        let (state_path, runtime_path) = (dirs.state.lock(), dirs.runtime.lock());
        let state = open_lock(&state_path)?;
        let runtime = open_lock(&runtime_path)?;
        if let Some(owner) = lock(&runtime, &runtime_path)? {
            let message =
                format!("another daemon (pid {}) serves {}", owner.pid, dirs.runtime.path().display());
            return Err(Error::new(ErrorCode::Busy, message));
        }
        if let Some(owner) = lock(&state, &state_path)? {
            let message = format!(
                "another daemon (pid {}) has the state directory {}",
                owner.pid,
                dirs.state.path().display()
            );
            let hint = match owner.runtime {
                Some(its) => format!("to use that one, set BANGER_RUNTIME_DIR={its}"),
                None => "set BANGER_RUNTIME_DIR to that daemon's".to_owned(),
            };
            return Err(Error::unavailable(message).with_hint(hint));
        }
        for (file, path) in [(&state, &state_path), (&runtime, &runtime_path)] {
            sign(file, dirs.runtime.path()).map_err(|e| lock_failed(path, &e))?;
        }
        Ok(Self { _files: [state, runtime] })
    }
}

/// Whose a lock is.
struct Owner {
    pid: String,
    /// Its runtime directory.
    runtime: Option<String>,
}

fn lock_failed(path: &Path, error: &std::io::Error) -> Error {
    Error::unavailable(format!("the lock {}: {error}", path.display()))
}

fn open_lock(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map_err(|e| lock_failed(path, &e))
}

/// Takes a lock, or says whose it is.
fn lock(file: &File, path: &Path) -> Result<Option<Owner>> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = std::fs::read(path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let (pid, runtime) = text.split_once('\n').unwrap_or((&text, ""));
            let runtime = Some(runtime.trim_end_matches('\n').to_owned()).filter(|dir| !dir.is_empty());
            Ok(Some(Owner { pid: pid.to_owned(), runtime }))
        }
        Err(e) => Err(lock_failed(path, &e.into())),
    }
}

/// Writes our pid and where our sockets are.
fn sign(mut file: &File, runtime: &Path) -> std::io::Result<()> {
    file.set_len(0)?;
    let pid = format!("{}\n", std::process::id());
    file.write_all(&[pid.as_bytes(), runtime.as_os_str().as_bytes(), b"\n"].concat())
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
        assert_eq!(
            make_private(&link, uid).unwrap_err().hint.as_deref(),
            Some("name the directory itself: /")
        );
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
        assert_eq!(Lock::take(&dirs("s2", "r1")).unwrap_err().code, ErrorCode::Busy);
        let taken = Lock::take(&dirs("s1", "r2")).unwrap_err();
        let its = dir.path().join("r1").display().to_string();
        assert_eq!(taken.code, ErrorCode::Unavailable);
        assert_eq!(taken.hint, Some(format!("to use that one, set BANGER_RUNTIME_DIR={its}")));
        drop(first);
        Lock::take(&dirs("s1", "r1")).unwrap();
        let one = dirs("both", "both");
        assert_eq!(apart(&one.state, &one.runtime).unwrap_err().code, ErrorCode::InvalidArgument);
    }
}
