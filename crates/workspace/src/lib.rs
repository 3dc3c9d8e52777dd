//! The developer's repository into a guest, and the guest's change out as one patch.
//!
//! Owns every call of host git ([`git`], sealed) and what is believed of a guest's answer. Must
//! never write to the source repository, and never run git in a tree that a guest wrote.

pub mod apply;
mod cancel;
pub mod capture;
mod error;
pub mod export;
mod git;
mod settings;
mod source;
mod watch;

pub use cancel::Cancel;
pub use error::WorkspaceError;

/// Result with this crate's error.
pub type Result<T, E = WorkspaceError> = std::result::Result<T, E>;
