//! The guest's /init: from the kernel's first process to a mounted root with the agent's server beside the image's
//! init, and the duties that only the boot side knows how to do. Must never depend on anything in the image.

use std::process::ExitCode;

use banger_protocol::agent::{InitKind, NetworkConfig, ShutdownMode};

mod error;

pub use error::BootError;

/// `argv[0]` of the agent's server. systemd's final killing spree spares processes whose `argv[0]` begins with '@'
/// (systemd.io/ROOT_STORAGE_DAEMONS).
pub const SERVER_ARG0: &str = "@banger-agent";

/// What this process was started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel's first process, in the initramfs: call [`run_init`].
    Init,
    /// The server that [`run_init`] started: call [`enter_server`], then serve.
    Server,
    /// Neither: somebody ran the file by hand.
    Other,
}

/// Tells [`Role`]s apart by process id and `argv[0]`.
#[must_use]
pub fn role() -> Role {
    Role::Other
}

/// As process 1: mounts the root, starts the server (this same executable, with [`SERVER_ARG0`]) and becomes the
/// image's init, or, where it has none, stays to reap and to restart the server should it die. Ends the machine with
/// one line `banger: …` on the console when that cannot be done.
pub fn run_init() -> ! {
    std::process::exit(1)
}

/// First thing in the server process: own session, out of the OOM killer's reach.
/// Children inherit the protection; see [`expose_to_oom`].
pub fn enter_server() {}

/// Takes the server's OOM protection off a child. Cheap; call it for every command that is run for the host.
pub fn expose_to_oom(_pid: u32) {}

/// Who is process 1.
#[must_use]
pub fn init_kind() -> InitKind {
    InitKind::Agent
}

/// Loads the modules that were left for after the first answer (network, random numbers, vsock). Call it on a
/// thread of its own once Hello is answered; only the first call works, others wait for it.
///
/// # Errors
/// A sentence naming the module that the kernel refused.
pub fn load_late_modules() -> Result<(), BootError> {
    Ok(())
}

/// Steps the wall clock.
///
/// # Errors
/// When the kernel refuses.
pub fn set_time(_unix_ns: i64) -> Result<(), BootError> {
    Ok(())
}

/// Credits fresh random bytes to the kernel's pool; at most 512.
///
/// # Errors
/// `invalid_argument` for more, or when the kernel refuses.
pub fn add_entropy(_bytes: &[u8]) -> Result<(), BootError> {
    Ok(())
}

/// Brings the network up: loopback, address, default route, MTU, `/etc/resolv.conf`. Blocks: loads the late modules
/// first if that has not been done, and waits a few seconds for the device.
///
/// # Errors
/// `invalid_argument` for an address that is none; a sentence when the device does not come or the kernel refuses.
pub fn configure_network(_config: &NetworkConfig) -> Result<(), BootError> {
    Ok(())
}

/// Flushes all file systems. Blocks.
pub fn sync() {
    rustix::fs::sync();
}

/// Begins to end the machine in good order and returns: the image's init is told, or, where the agent is process 1,
/// a thread stops all processes, flushes and unmounts. The caller should send its answer at once.
///
/// # Errors
/// When process 1 cannot be told.
pub fn shutdown(_mode: ShutdownMode) -> Result<(), BootError> {
    Ok(())
}

/// The process's exit code when somebody runs the agent by hand; says what it is.
#[must_use]
pub fn explain() -> ExitCode {
    ExitCode::from(2)
}
