//! Virtual machine monitors: the `Driver` trait and its implementations, the KVM probe, and the
//! identity of the processes we start.
//!
//! Owns everything that knows what a VMM's command line, control socket or pid is. Must never
//! decide *whether* a VM should run, read the environment, or store anything.

mod binary;
pub mod cage;
mod choose;
pub mod console;
mod driver;
mod error;
mod exit;
pub mod firecracker;
pub mod kvm;
pub mod process;
pub mod qemu;
mod snapshot;
mod sockets;
pub mod sparse;
mod spawn;

pub use cage::{Cage, Policy};
pub use choose::{Choice, choose};
pub use driver::{
    AgentIo, Capabilities, Disk, DiskRole, Driver, ExitInfo, ExitReason, Last, Machine, MachineHandle,
    MachineSpec, NetDevice, Words,
};
pub use error::{Result, VmmError};
pub use exit::ChildExit;
pub use rustix::process::Signal;
pub use snapshot::{DiskLayout, Layout, MemoryFile};
pub use spawn::{Spawned, Standalone};
