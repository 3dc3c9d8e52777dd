//! QEMU's microvm machine: finding the binary, its command line, its control protocol, and the
//! machine behind them.

mod agent_port;
mod arguments;
mod binary;
mod capture;
mod clock;
mod confinement;
mod heard;
mod kernel_arguments;
mod machine;
mod memory;
mod migration;
mod qmp;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use banger_model::DriverKind;
use tokio::sync::OnceCell;

pub use binary::{QemuInfo, check, locate};
pub use confinement::policy;

use machine::Begin;

use crate::snapshot::{Files, Layout};
use crate::{Cage, Capabilities, Driver, Machine, MachineHandle, MachineSpec, Result, VmmError};

/// The set of devices that its machines have: see [`Layout::devices`]. Since 1 all vCPUs are cores of one processor.
const DEVICES: u32 = 1;

/// The driver.
#[derive(Debug)]
pub struct QemuDriver {
    program: PathBuf,
    cage: Cage,
    info: OnceCell<QemuInfo>,
    clock: clock::HostClock,
}

impl QemuDriver {
    /// A driver that runs this binary (see [`locate`]) in a cage. Nothing is run or looked at yet.
    #[must_use]
    pub fn new(program: PathBuf, cage: Cage) -> Self {
        Self { program, cage, info: OnceCell::new(), clock: clock::HostClock::start() }
    }

    /// The binary.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// What the binary says about itself; asked once.
    ///
    /// # Errors
    /// When it is missing, too old, or has no microvm machine.
    pub async fn info(&self) -> Result<&QemuInfo> {
        self.info.get_or_try_init(|| check(&self.program)).await
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        let info = self.info().await?;
        Ok(Capabilities {
            version: info.version.clone(),
            pause: true,
            snapshot: true,
            restore: true,
            network: true,
            vcpus_take_turns: !info.sees_changed_code,
            warning: None,
        })
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>> {
        let info = self.info().await?;
        Ok(Arc::new(machine::launch(info, &self.cage, spec, &self.clock, Begin::Boot).await?))
    }

    async fn restore(&self, spec: MachineSpec, snapshot: &Path) -> Result<Arc<dyn Machine>> {
        let files = Files::of(snapshot);
        let info = self.info().await?;
        let memory = files.about(&Layout::of(&spec, DEVICES), &spec, DriverKind::Qemu, &info.version)?;
        let how = Begin::Restore { state: &files.state, memory };
        Ok(Arc::new(machine::launch(info, &self.cage, spec, &self.clock, how).await?))
    }

    async fn adopt(&self, handle: &MachineHandle) -> Result<Option<Arc<dyn Machine>>> {
        if handle.driver != DriverKind::Qemu {
            return Err(VmmError::ForeignHandle { vm: handle.name.to_string() });
        }
        Ok(machine::adopt(handle)?.map(|machine| Arc::new(machine) as Arc<dyn Machine>))
    }
}
