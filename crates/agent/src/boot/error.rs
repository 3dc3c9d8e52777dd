//! What can go wrong while the guest comes up, and in the duties the boot side does for the server.
//! Must never panic: process 1 tells it on the console.

use std::io;

use banger_model::{Error, ErrorCode};

/// A failure of the boot side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel refused.
    #[error("cannot {what}: {source}")]
    Os {
        /// What was tried, such as `mount /proc`.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// Something that must be there is not.
    #[error("{0}")]
    Missing(String),
    /// The host asked for something that makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// Result with [`BootError`].
pub(crate) type Result<T, E = BootError> = std::result::Result<T, E>;

impl BootError {
    /// For `map_err`: names what was tried.
    pub(crate) fn os<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Os { what, source: source.into() }
    }
}

impl From<BootError> for Error {
    fn from(error: BootError) -> Self {
        let code = match error {
            BootError::Invalid(_) => ErrorCode::InvalidArgument,
            BootError::Os { .. } | BootError::Missing(_) => ErrorCode::GuestFailed,
        };
        Error::new(code, error.to_string())
    }
}
