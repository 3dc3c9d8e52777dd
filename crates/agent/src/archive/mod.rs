//! Files in and out as tar streams. Must never write or read outside the directory it was given,
//! whatever the archive or the tree contains: every step goes through a directory descriptor and
//! follows no symbolic link.

mod beneath;
mod copy_in;
mod mounts;
mod pack;
mod switch;
mod unpack;

use std::io;

use banger_model::{ByteString, Error, ErrorCode, is_disk_full};

pub use copy_in::copy_in;
pub(crate) use copy_in::{is_copy, is_vacant};
pub(crate) use mounts::protect;
pub(crate) use pack::pack;
pub(crate) use switch::{finish, turn};
pub use unpack::unpack;

/// Why files could not be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The path in the request is none that can be used.
    #[error("'{}' is not an absolute path", .0.to_string_lossy())]
    NotAbsolute(ByteString),
    /// The destination must be empty and is not.
    #[error("{} in the guest is not empty", .0.to_string_lossy())]
    NotEmpty(ByteString),
    /// There is no workspace to bring up to date.
    #[error("{} in the guest is no copy of a repository any more", .0.to_string_lossy())]
    NoCopy(ByteString),
    /// An entry would leave the directory.
    #[error("the archive's entry '{}' leads out of its directory", .0.to_string_lossy())]
    Escapes(ByteString),
    /// An entry of a kind that has no place in a directory tree.
    #[error("the archive's entry '{}' is of an unknown kind", .0.to_string_lossy())]
    UnknownKind(ByteString),
    /// The stream broke or is no tar stream.
    #[error("the archive cannot be read: {0}")]
    Stream(io::Error),
    /// A file system of the guest has no room.
    #[error("the guest's disk is full: '{}' could not be written", .0.to_string_lossy())]
    Full(ByteString),
    /// A file could not be written or read.
    #[error("'{}' in the guest: {source}", .path.to_string_lossy())]
    File {
        /// Which.
        path: ByteString,
        /// Why.
        source: io::Error,
    },
}

impl ArchiveError {
    fn file<E: Into<io::Error>>(path: &[u8]) -> impl FnOnce(E) -> Self {
        move |e| {
            let (path, source) = (ByteString(path.to_vec()), e.into());
            if is_disk_full(&source) { Self::Full(path) } else { Self::File { path, source } }
        }
    }
}

impl From<ArchiveError> for Error {
    fn from(e: ArchiveError) -> Self {
        let code = match &e {
            ArchiveError::NotAbsolute(_) | ArchiveError::Escapes(_) | ArchiveError::UnknownKind(_) => {
                ErrorCode::InvalidArgument
            }
            ArchiveError::NotEmpty(_) => ErrorCode::AlreadyExists,
            ArchiveError::NoCopy(_) => ErrorCode::NotFound,
            ArchiveError::Full(_) => ErrorCode::Unavailable,
            ArchiveError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorCode::NotFound
            }
            ArchiveError::Stream(_) | ArchiveError::File { .. } => ErrorCode::GuestFailed,
        };
        Self::new(code, e.to_string())
    }
}
