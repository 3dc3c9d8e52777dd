//! How a guest reaches the outside, and what it must not reach.
//!
//! A user-mode network is three processes: the guard reads the guest's frames and drops what no guest may send; the
//! responder answers what the host answers itself; passt carries the rest.
//!
//! Owns the network processes of a VM and the addresses a guest gets. Must never let a guest reach
//! the host's loopback unless that was asked for.

mod addresses;
mod error;
pub mod guard;
pub mod host;
pub mod inherited;
pub mod passt;
mod probe;
pub mod responder;
mod user;

use std::path::{Path, PathBuf};

pub use addresses::{GuestAddresses, mac_for};
pub use error::{NetworkError, Result};
pub use user::{UserNetwork, UserNetworkHandle, UserNetworkSpec};

/// A program of ours, in the directory where our others are.
fn companion(dir: &Path, name: &str) -> Result<PathBuf> {
    let file = dir.join(name);
    if banger_host::programs::is_program(&file) {
        Ok(file)
    } else {
        Err(NetworkError::CompanionMissing { looked: file.display().to_string() })
    }
}
