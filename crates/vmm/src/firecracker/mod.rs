//! Firecracker: finding the binary, its API, and the machine behind it.
//!
//! A machine's Firecracker works in the VM's runtime directory and knows its files by names in there
//! only (links to disks and kernel), so that its snapshot finds the disks of whatever VM goes on from it.

mod api;
mod binary;
mod capture;
mod changes;
mod channel;
mod door;
mod halt;
mod kernel;
mod kernel_arguments;
mod launch;
mod machine;
mod place;
mod quirks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_model::DriverKind;
use rustix::fs::Access;
use tokio::sync::OnceCell;

pub use binary::{FirecrackerInfo, check, locate};

/// For fuzz targets: reads from a peer that may be anything what should be Firecracker's answer about its state, and
/// gives the words of the error.
#[cfg(fuzzing)]
pub async fn judge_answer(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
) -> Option<String> {
    api::judge(stream).await
}

use crate::driver::Words;
use crate::{Cage, Capabilities, Driver, Machine, MachineHandle, MachineSpec, Policy, Result, VmmError};

/// The driver.
#[derive(Debug)]
pub struct FirecrackerDriver {
    program: PathBuf,
    cage: Cage,
    info: OnceCell<FirecrackerInfo>,
}

impl FirecrackerDriver {
    /// A driver that runs this binary (see [`locate`]) in a cage. Nothing is run or looked at yet.
    #[must_use]
    pub fn new(program: PathBuf, cage: Cage) -> Self {
        Self { program, cage, info: OnceCell::new() }
    }

    /// The binary.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What the binary says about itself; asked once.
    ///
    /// # Errors
    /// When it is missing, too old, or does not say its version.
    pub async fn info(&self) -> Result<&FirecrackerInfo> {
        self.info.get_or_try_init(|| check(&self.program)).await
    }
}

/// What of the host a Firecracker may have that boots this machine, apart from its network.
///
/// # Errors
/// When the working directory, which a path is relative to, is not to be found.
pub fn policy(spec: &MachineSpec) -> Result<Policy> {
    place::policy(spec, &spec.kernel, &Words::begin(&spec.log_dir), None, None)
}

/// It takes a tap device and nothing else, which we make in the network namespace of its cage.
fn has_network(cage: &Cage) -> std::result::Result<(), String> {
    if cage.builder().is_none() {
        return Err("its network needs a cage".to_owned());
    }
    match rustix::fs::access(place::TUN, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Ok(()),
        Err(error) => Err(format!("its network needs {}: {error}", place::TUN)),
    }
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Firecracker
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        let FirecrackerInfo { version, warning, .. } = self.info().await?.clone();
        let network = has_network(&self.cage).is_ok();
        Ok(Capabilities {
            version,
            pause: true,
            snapshot: true,
            restore: true,
            network,
            // It emulates none.
            vcpus_take_turns: false,
            warning,
        })
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>> {
        Ok(Arc::new(launch::launch(self.info().await?, &self.cage, spec).await?))
    }

    async fn restore(&self, spec: MachineSpec, snapshot: &Path) -> Result<Arc<dyn Machine>> {
        Ok(Arc::new(launch::restore(self.info().await?, &self.cage, spec, snapshot).await?))
    }

    async fn adopt(&self, handle: &MachineHandle) -> Result<Option<Arc<dyn Machine>>> {
        if handle.driver != DriverKind::Firecracker {
            return Err(VmmError::ForeignHandle { vm: handle.name.to_string() });
        }
        // Without a usable binary its machines still run, and still obey.
        let quirks = self.info().await.map_or_else(|_| quirks::Quirks::unknown(), |info| info.quirks);
        Ok(machine::adopt(handle, quirks)?.map(|machine| Arc::new(machine) as Arc<dyn Machine>))
    }
}
