//! What can go wrong with a guest's network, and what to type then.

use std::io;
use std::path::PathBuf;

use banger_host::programs::Missing;
use banger_model::{Error, ErrorCode};
use banger_vmm::VmmError;

/// Result with [`NetworkError`].
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;

/// A failure of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// No passt.
    #[error(transparent)]
    PasstMissing(#[from] Missing),
    /// A passt without an option that we need.
    #[error("{program} cannot be used: {why}", program = .program.display())]
    PasstUnusable {
        /// The binary.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// One of our own binaries is not beside the others.
    #[error("a part of banger is missing: {looked} is not an executable file")]
    CompanionMissing {
        /// Where we looked.
        looked: String,
    },
    /// passt ended before the guest could use it.
    #[error("the network of VM {vm} could not be set up with passt: {how}{}", last_words(.log))]
    DiedAtStart {
        /// The VM's id.
        vm: String,
        /// How it ended, and what it missed in its sandbox.
        how: String,
        /// The last lines of its log.
        log: String,
    },
    /// The socket between passt and the VMM could not be made.
    #[error("cannot make the socket between passt and the machine monitor: {source}")]
    Socket {
        /// Why.
        source: io::Error,
    },
    /// What the responder reads could not be written.
    #[error("cannot write the copy of the host's resolv.conf in {}: {source}", .dir.display())]
    Resolv {
        /// Where.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The process could not be started or signalled.
    #[error(transparent)]
    Process(#[from] VmmError),
}

fn last_words(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its last words: {log}") }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let message = error.to_string();
        match error {
            NetworkError::PasstMissing(missing) => Self::unavailable(message)
                .with_hint(format!("{}; or run without a network: '--network none'", missing.hint())),
            NetworkError::PasstUnusable { .. } => Self::unavailable(message).with_hint(
                "banger needs a passt of 2023 or newer; or run without a network: '--network none'",
            ),
            NetworkError::CompanionMissing { .. } => Self::unavailable(message)
                .with_hint("install banger again, or run without a network: '--network none'"),
            NetworkError::DiedAtStart { .. } => Self::new(ErrorCode::Unavailable, message).with_hint(
                "'banger doctor --network' tries it and says more; '--network none' runs without one",
            ),
            NetworkError::Socket { .. } | NetworkError::Resolv { .. } => Self::internal(message),
            NetworkError::Process(inner) => inner.into(),
        }
    }
}
