//! The one error shape that crosses rooms: a stable code, one sentence, and what to type next.

use serde::{Deserialize, Serialize};

/// The stable codes scripts may match on (CLI.md, "Everywhere").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// Nothing by that reference.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// A reference matches more than one thing.
    Ambiguous,
    /// The request is wrong, whatever the state of the world.
    InvalidArgument,
    /// The VM must be running for this.
    NotRunning,
    /// Something else is using it.
    Busy,
    /// Both sides changed the same thing.
    Conflict,
    /// A part of the host or a peer that is needed does not answer or is absent.
    Unavailable,
    /// This driver, image or host cannot do it.
    Unsupported,
    /// It took longer than allowed.
    Timeout,
    /// The caller went away or asked to stop.
    Cancelled,
    /// The image or kernel is not there and could not be had.
    ImageMissing,
    /// The guest did not come up.
    BootFailed,
    /// The guest or its agent reported a failure.
    GuestFailed,
    /// A bug or a host failure that nobody foresaw.
    Internal,
}

impl ErrorCode {
    /// The code as it is written on the wire and shown to users.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Ambiguous => "ambiguous",
            Self::InvalidArgument => "invalid_argument",
            Self::NotRunning => "not_running",
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::ImageMissing => "image_missing",
            Self::BootFailed => "boot_failed",
            Self::GuestFailed => "guest_failed",
            Self::Internal => "internal",
        }
    }
}

impl std::fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as users see it. Library crates have their own error enums and turn into this at
/// the service boundary; `hint` is data so that the CLI decides how it looks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// The stable code.
    pub code: ErrorCode,
    /// One sentence, lower case, no final full stop.
    pub message: String,
    /// What to type next, if anything helps.
    pub hint: Option<String>,
}

/// Result with the user-facing [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether there was no room for what was to be written: on the disk, or in its user's share of it.
#[must_use]
pub fn is_disk_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

impl Error {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// `invalid_argument`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    /// `not_found`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// `unavailable`.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Unavailable, message)
    }

    /// `internal`: a bug or an unforeseen host failure.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, message)
    }
}
