//! Everything that can go wrong with a root file system, and how it is told to users.
//! Must never swallow what a tool said: its last lines travel in the error.

use std::io;
use std::path::{Path, PathBuf};

use banger_host::programs::Missing;
use banger_model::{Bytes, Error, ErrorCode, Sha256, is_disk_full};

/// A failure of this crate's image side.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The request is wrong, whatever the state of the world.
    #[error("{message}")]
    Invalid {
        /// One sentence.
        message: String,
        /// What to type next.
        hint: Option<String>,
    },
    /// What should be imported cannot be.
    #[error("cannot import {}: {reason}", path.display())]
    BadSource {
        /// What was to be imported, or the part of it that is wrong.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A program that is needed is not installed.
    #[error(transparent)]
    ToolMissing(#[from] Missing),
    /// The host does not let an ordinary user do it.
    #[error("{message}")]
    HostRefuses {
        /// One sentence.
        message: String,
        /// What to type next.
        hint: String,
    },
    /// A program failed.
    #[error("{tool} failed ({status}): {}", if tail.is_empty() { "it said nothing" } else { tail })]
    ToolFailed {
        /// The program.
        tool: &'static str,
        /// How it ended.
        status: String,
        /// The last lines that mean something; none, if it said nothing.
        tail: String,
    },
    /// The archive has no such package.
    #[error("{release} has no package '{package}'")]
    UnknownPackage {
        /// The package as it was asked for.
        package: String,
        /// The release it was sought in.
        release: String,
    },
    /// Not enough room.
    #[error("{what} needs about {needed} in {}, and only {available} are free", dir.display())]
    NoSpace {
        /// What needs it.
        what: &'static str,
        /// Where.
        dir: PathBuf,
        /// How much.
        needed: Bytes,
        /// How much there is.
        available: Bytes,
    },
    /// The caller asked to stop.
    #[error("{what} was cancelled")]
    Cancelled {
        /// What was.
        what: &'static str,
    },
    /// There is no such image file.
    #[error("the file of image {digest} is not in {}", dir.display())]
    Missing {
        /// Its digest.
        digest: Sha256,
        /// Where it should be.
        dir: PathBuf,
    },
    /// An image file is not what its name says.
    #[error("image {digest} is damaged: its content has digest {found}")]
    Damaged {
        /// Its digest.
        digest: Sha256,
        /// What the content has.
        found: Sha256,
    },
    /// The host failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, such as `read`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// Result with [`ImageError`].
pub(crate) type Result<T, E = ImageError> = std::result::Result<T, E>;

impl ImageError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn errno(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_owned();
        move |errno| Self::Io { action, path, source: errno.into() }
    }

    pub(crate) fn bad_source(path: &Path, reason: impl Into<String>) -> Self {
        Self::BadSource { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        let message = error.to_string();
        let (code, hint) = match error {
            ImageError::Invalid { hint, .. } => (ErrorCode::InvalidArgument, hint),
            ImageError::BadSource { .. } => (ErrorCode::InvalidArgument, None),
            ImageError::ToolMissing(missing) => (ErrorCode::Unavailable, Some(missing.hint())),
            ImageError::HostRefuses { hint, .. } => (ErrorCode::Unavailable, Some(hint)),
            ImageError::ToolFailed { .. } => (ErrorCode::Unavailable, None),
            ImageError::UnknownPackage { package, .. } => (
                ErrorCode::InvalidArgument,
                Some(format!("look for the right name with: apt-cache search {package}")),
            ),
            ImageError::NoSpace { dir, .. } => {
                (ErrorCode::Unavailable, Some(format!("make room in {}", dir.display())))
            }
            ImageError::Cancelled { .. } => (ErrorCode::Cancelled, None),
            ImageError::Missing { .. } => {
                (ErrorCode::ImageMissing, Some("build or import the image again".to_owned()))
            }
            ImageError::Damaged { .. } => {
                (ErrorCode::Internal, Some("delete the image, then build or import it again".to_owned()))
            }
            ImageError::Io { ref source, .. } if is_disk_full(source) => (
                ErrorCode::Unavailable,
                Some("free some space and try again; nothing was changed".to_owned()),
            ),
            ImageError::Io { ref source, .. } if source.kind() == io::ErrorKind::AlreadyExists => {
                (ErrorCode::AlreadyExists, None)
            }
            ImageError::Io { .. } => (ErrorCode::Internal, None),
        };
        Self { code, message, hint }
    }
}
