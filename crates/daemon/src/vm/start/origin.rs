//! Where a start begins: at the kernel's first instruction, where another machine was, or in one that waits. Must never hold
//! what is not the VM's own once [`Origin::link`] was called.

use std::sync::Arc;

use banger_channel::Session;
use banger_model::Result;
use banger_protocol::agent::AgentHello;
use banger_vmm::Machine;

use super::super::capability::Hooks;
use super::super::handles::Handles;
use super::super::snapshot::Snapshot;

/// Where a start begins.
#[derive(Debug, Clone, Default)]
pub(in crate::vm) enum Origin {
    /// The kernel's first instruction.
    #[default]
    Boot,
    /// The same, on the disks of another VM.
    BootFrom(Snapshot),
    /// Where another VM was.
    Restore(Snapshot),
    /// Where this one was some time ago: the disks of then are there already.
    Back(Snapshot),
    /// Where a template is, and if that cannot be, from the kernel's first instruction.
    Template(Snapshot),
    /// There already, in a machine that was restored from this and halted: see [`Waiting`].
    Spare(Snapshot),
}

impl Origin {
    /// What memory it begins with.
    pub(super) fn snapshot(&self) -> Option<&Snapshot> {
        match self {
            Self::Boot | Self::BootFrom(_) => None,
            Self::Restore(snapshot)
            | Self::Back(snapshot)
            | Self::Template(snapshot)
            | Self::Spare(snapshot) => Some(snapshot),
        }
    }

    /// Whose disks are to be copied.
    pub(super) fn disks(&self) -> Option<&Snapshot> {
        match self {
            Self::Boot | Self::Back(_) | Self::Spare(_) => None,
            Self::BootFrom(snapshot) | Self::Restore(snapshot) | Self::Template(snapshot) => Some(snapshot),
        }
    }

    /// The same from hard links, which stay when the snapshot goes.
    pub(super) fn link(self, to: &std::path::Path) -> Result<Self> {
        Ok(match self {
            Self::Boot => Self::Boot,
            Self::BootFrom(snapshot) => Self::BootFrom(snapshot.link(to)?),
            Self::Restore(snapshot) => Self::Restore(snapshot.link(to)?),
            Self::Back(snapshot) => Self::Back(snapshot.link(to)?),
            Self::Template(snapshot) => Self::Template(snapshot.link(to)?),
            Self::Spare(snapshot) => Self::Spare(snapshot),
        })
    }
}

/// What a start comes to that ends with a halted guest, for another that goes on from there.
pub(in crate::vm) struct Waiting {
    pub(super) machine: Arc<dyn Machine>,
    /// It answered once: see [`Start::rehearse`](super::Start::rehearse).
    pub(super) agent: (Session, AgentHello),
    pub(super) handles: Handles,
    pub(super) plugged: Vec<Box<dyn Hooks>>,
    pub(super) from: Snapshot,
}

impl Waiting {
    /// Its machine.
    pub(in crate::vm) fn machine(&self) -> &Arc<dyn Machine> {
        &self.machine
    }
}
