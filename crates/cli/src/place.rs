//! Where the daemon of this user lives, from the environment. Must never create anything.

use std::path::PathBuf;

use banger_model::{Error, Result, RuntimeDir, StateDir, runtime_dir_candidates, state_dir_from};

/// The directories the daemon and we agree on.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Sockets.
    pub(crate) runtime: RuntimeDir,
    /// Database and logs.
    pub(crate) state: StateDir,
}

impl Place {
    /// From the environment, by the rule of [`runtime_dir_candidates`]: the first whose parent exists.
    pub(crate) fn from_env() -> Result<Self> {
        let state = state_dir_from(|key| std::env::var_os(key))?;
        let candidates =
            runtime_dir_candidates(|key| std::env::var_os(key), rustix::process::geteuid().as_raw())?;
        let only = candidates.len() == 1;
        let runtime = candidates
            .into_iter()
            .find(|dir| only || dir.path().parent().is_some_and(std::path::Path::is_dir))
            .ok_or_else(|| {
                Error::unavailable("there is no place for the daemon's socket")
                    .with_hint("set BANGER_RUNTIME_DIR to a directory only you can write to")
            })?;
        Ok(Self { runtime, state })
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime.socket()
    }
}
