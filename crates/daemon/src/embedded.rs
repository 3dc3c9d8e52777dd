//! A daemon within somebody else's process, over drivers of theirs: the same services, API and
//! records as `bangerd`'s. For tests of the lifecycle that need no virtual machine; ending the
//! runtime that serves it is this daemon's SIGKILL. Must never touch the process around it: no
//! signal handler, no log, no umask.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use banger_model::Result;
use banger_vmm::{Cage, Driver};
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::config::{Config, Host};
use crate::daemon::{self, Daemon};
use crate::fault::Death;
use crate::startup::{Dirs, Lock};

/// A daemon that is open and serves nobody yet.
#[derive(Debug)]
pub struct Embedded {
    daemon: Arc<Daemon>,
    listener: UnixListener,
    died: watch::Receiver<bool>,
    _lock: Lock,
}

impl Embedded {
    /// Opens the installation that these variables name (`BANGER_STATE_DIR` and so on) and
    /// reconciles it; `companions` is where the guest agent and the network guard are. Must run in
    /// the runtime that will serve it.
    ///
    /// # Errors
    /// What keeps `bangerd` from starting: directories, another daemon's lock, the database.
    pub async fn open(
        env: impl Fn(&str) -> Option<OsString>,
        drivers: Vec<Arc<dyn Driver>>,
        companions: PathBuf,
    ) -> Result<Self> {
        let dirs = Dirs::open(&env)?;
        let lock = Lock::take(&dirs)?;
        let host = Host::measure();
        let config = Config::load(&env, host)?;
        let (tell, died) = watch::channel(false);
        let faults = daemon::faults(&env, Death::Embedded(tell))?;
        let cage = Cage::beside(&companions, config.require.value.clone());
        let daemon = Daemon::assemble(dirs, config, host, drivers, (companions, cage), faults).await?;
        let listener = daemon.bind()?;
        Ok(Self { daemon, listener, died, _lock: lock })
    }

    /// Becomes true when a fault point (`BANGER_FAULT`) wants this daemon killed: then its runtime must be ended.
    #[must_use]
    pub fn died(&self) -> watch::Receiver<bool> {
        self.died.clone()
    }

    /// Serves until a stop request.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn serve(self) -> Result<()> {
        self.daemon.serve(self.listener).await
    }
}
