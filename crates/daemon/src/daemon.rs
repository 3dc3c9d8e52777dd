//! The composition root: makes the services, joins them, serves until told to end. Nothing below
//! reaches back to it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_model::{Error, Result};
use banger_store::Store;
use banger_vmm::cage::group::Groups;
use banger_vmm::firecracker::{self, FirecrackerDriver};
use banger_vmm::qemu::{self, QemuDriver};
use banger_vmm::{Cage, Driver};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::artifacts::Artifacts;
use crate::config::{Config, Host};
use crate::doctor::AGENT;
use crate::fault::{self, Death, Faults};
use crate::operations::Operations;
use crate::startup::Dirs;
use crate::vm::{Parts, Vms};
use crate::workspace::Workspaces;

/// How long requests under way have when the daemon ends.
const DRAIN: Duration = Duration::from_secs(3);

/// All services.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) dirs: Dirs,
    pub(crate) config: Config,
    pub(crate) operations: Arc<Operations>,
    pub(crate) vms: Arc<Vms>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) workspaces: Workspaces,
    pub(crate) started: Instant,
    pub(crate) shutdown: CancellationToken,
}

impl Daemon {
    /// The daemon as it is installed: our own companions, the drivers of this build.
    pub(crate) async fn open(dirs: Dirs) -> Result<Arc<Self>> {
        let host = Host::measure();
        let config = Config::load(|key| std::env::var_os(key), host)?;
        if let Some(file) = &config.absent {
            tracing::warn!("BANGER_CONFIG names {}, which is not there", file.display());
        }
        let companions = companions()?;
        let groups = Groups::take();
        match &groups {
            Ok(_) => tracing::info!("each VM has a control group"),
            Err(why) => tracing::info!(why, "no control groups"),
        }
        let cage = Cage::beside(&companions, config.require.value.clone()).with_groups(groups);
        let drivers = drivers(&config, &cage);
        let faults = faults(|key| std::env::var_os(key), Death::Process)?;
        Self::assemble(dirs, config, host, drivers, (companions, cage), faults).await
    }

    /// Opens the database, joins the services and brings the world into agreement with the records.
    pub(crate) async fn assemble(
        dirs: Dirs,
        config: Config,
        host: Host,
        drivers: Vec<Arc<dyn Driver>>,
        (companions, cage): (PathBuf, Cage),
        faults: Faults,
    ) -> Result<Arc<Self>> {
        refuse_emptied(&dirs)?;
        let store = Arc::new(Store::open(&dirs.state.database())?);
        let agent = companions.join(AGENT);
        let shutdown = CancellationToken::new();
        let artifacts = Arc::new(Artifacts::new(store.clone(), &dirs, agent.clone()));
        let operations = Operations::new(faults);
        let vms = Arc::new(Vms::new(Parts {
            store: store.clone(),
            artifacts: artifacts.clone(),
            dirs: dirs.clone(),
            config: config.clone(),
            host,
            drivers,
            companions,
            cage,
            operations: operations.clone(),
            shutdown: shutdown.clone(),
        }));
        // Interrupted builds know best how their leftovers go; what is in scratch then goes plainly.
        artifacts.sweep();
        vms.reconcile().await?;
        tokio::spawn(vms.clone().cap_consoles());
        tokio::spawn(vms.clone().resume_stalled());
        tokio::spawn(vms.clone().watch_clock());
        tokio::spawn(vms.clone().watch_host_network());
        tokio::spawn(vms.clone().reconcile_for_ever());
        tokio::spawn(vms.clone().keep_spares());
        let templates = vms.clone();
        tokio::spawn(async move { templates.drop_useless_templates().await });
        let workspaces = Workspaces::new(store, dirs.state.clone());
        let started = Instant::now();
        Ok(Arc::new(Self { dirs, config, operations, vms, artifacts, workspaces, started, shutdown }))
    }

    /// Binds the socket. We hold the lock, so one that is there belongs to nobody.
    pub(crate) fn bind(&self) -> Result<UnixListener> {
        let path = self.dirs.runtime.socket();
        let failed = |e: std::io::Error| {
            Error::unavailable(format!("the socket {} cannot be bound: {e}", path.display()))
        };
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        UnixListener::bind(&path).map_err(failed)
    }

    /// Ends as by a stop request on SIGTERM and SIGINT.
    pub(crate) fn obey_signals(&self) {
        let shutdown = self.shutdown.clone();
        tokio::spawn(async move {
            ended_by_signal().await;
            shutdown.cancel();
        });
    }

    /// Serves until a stop request. VMs run on.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) -> Result<()> {
        let router = api::router(self.clone());
        let token = self.shutdown.clone();
        let ending = token.clone();
        let serve =
            axum::serve(listener, router).with_graceful_shutdown(async move { ending.cancelled().await });
        // What is under way unwinds while there is somebody to do it; what goes on none the less (a stop, a delete) is
        // finished by the next daemon.
        let drained = async {
            token.cancelled().await;
            let unwound = tokio::time::timeout(DRAIN, self.operations.cancel_all()).await;
            if unwound.is_err() {
                tracing::info!("operations were cut off");
            }
            self.vms.end_spares().await;
        };
        let served = async {
            let served = tokio::select! {
                served = serve.into_future() => served.map_err(|e| Error::internal(format!("serving failed: {e}"))),
                () = async { token.cancelled().await; tokio::time::sleep(DRAIN).await } => {
                    tracing::info!("requests were cut off");
                    Ok(())
                }
            };
            token.cancel();
            served
        };
        tokio::join!(served, drained).0?;
        let _ = std::fs::remove_file(self.dirs.runtime.socket());
        tracing::info!("daemon ended");
        Ok(())
    }
}

/// The faults that the environment asks for: none, but in tests.
pub(crate) fn faults(env: impl Fn(&str) -> Option<OsString>, death: Death) -> Result<Faults> {
    let asked = env(fault::VARIABLE).map(|text| text.to_string_lossy().into_owned());
    Faults::parse(asked.as_deref(), &crate::steps::steps(), death)
}

async fn ended_by_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// An empty database file beside VMs that exist was cut by something else than us: taking it for a
/// new one would orphan them.
fn refuse_emptied(dirs: &Dirs) -> Result<()> {
    let path = dirs.state.database();
    let emptied = std::fs::metadata(&path).is_ok_and(|m| m.len() == 0);
    let has_vms = std::fs::read_dir(dirs.state.vms()).is_ok_and(|mut d| d.next().is_some());
    if emptied && has_vms {
        let reason = "it is empty, and there are VMs".to_owned();
        return Err(banger_store::StoreError::Corrupt { path, reason }.into());
    }
    Ok(())
}

/// The drivers of this build.
pub(crate) fn drivers(config: &Config, cage: &Cage) -> Vec<Arc<dyn Driver>> {
    vec![Arc::new(firecracker_driver(config, cage.clone())), Arc::new(qemu_driver(config, cage.clone()))]
}

/// It is there even when its program is not: machines of it that run are adopted all the same.
fn firecracker_driver(config: &Config, cage: Cage) -> FirecrackerDriver {
    let wanted = config.firecracker.value.as_ref().map(|p| p.as_os_str());
    let program = firecracker::locate(wanted, std::env::var_os("PATH").as_deref());
    let program = program.unwrap_or_else(|error| {
        tracing::info!(%error, "no Firecracker");
        config.firecracker.value.clone().unwrap_or_else(|| PathBuf::from("/usr/bin/firecracker"))
    });
    FirecrackerDriver::new(program, cage)
}

fn qemu_driver(config: &Config, cage: Cage) -> QemuDriver {
    let wanted = config.qemu.value.as_ref().map(|p| p.as_os_str());
    let program = qemu::locate(wanted, std::env::var_os("PATH").as_deref());
    let program = program.unwrap_or_else(|error| {
        tracing::warn!(%error, "no QEMU yet");
        config.qemu.value.clone().unwrap_or_else(|| PathBuf::from("/usr/bin/qemu-system-x86_64"))
    });
    QemuDriver::new(program, cage)
}

/// Where the programs are that belong to this daemon (the guest agent, the network guard): beside
/// our own, or where `make install` puts them.
pub(crate) fn companions() -> Result<PathBuf> {
    let own =
        std::env::current_exe().map_err(|e| Error::internal(format!("our own path is unknown: {e}")))?;
    let beside = own.parent().map(PathBuf::from).unwrap_or_default();
    let installed = beside.join("../lib/banger");
    Ok(if !beside.join(AGENT).is_file() && installed.join(AGENT).is_file() { installed } else { beside })
}
