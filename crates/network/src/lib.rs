//! How a guest reaches the outside, and what it must not reach.
//!
//! Owns the network processes of a VM and the addresses a guest gets. Must never let a guest reach
//! the host's loopback unless that was asked for.

mod addresses;
mod error;
pub mod guard;
pub mod passt;
mod probe;
mod user;

pub use addresses::{GuestAddresses, mac_for};
pub use error::{NetworkError, Result};
pub use user::{UserNetwork, UserNetworkHandle, UserNetworkSpec};
