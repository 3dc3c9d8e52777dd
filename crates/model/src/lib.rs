//! banger's vocabulary: records, states and validated newtypes.
//!
//! Owns what a word means (a VM name, a size, a state) and how it is parsed, once, at the edge.
//! Must never do I/O: no files, no clock, no environment, no randomness of its own.

mod bytes;
mod dirs;
mod duration;
mod error;
mod id;
mod image;
mod machine;
mod name;
mod reference;
mod security;
mod size;
mod vm;

pub use bytes::ByteString;
pub use dirs::{RuntimeDir, StateDir, runtime_dir_candidates, state_dir_from};
pub use duration::parse_duration;
pub use error::{Error, ErrorCode, Result, is_disk_full};
pub use id::{OpId, VmId};
pub use image::{Image, ImageName, ImageSource, Kernel, KernelName, RootFsType, Sha256};
pub use machine::{Accel, DriverChoice, DriverKind, GuestPath, MachineShape, NetworkMode};
pub use name::VmName;
pub use reference::resolve;
pub use security::{Layer, MissingLayer, Security};
pub use size::{Bytes, Mib};
pub use vm::{
    Boot, BootKind, Copying, LastError, NetworkView, Parent, Unfinished, Vm, VmState, VmView, Workspace,
    WorkspaceMode,
};
