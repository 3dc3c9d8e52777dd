//! The guard: a small process between the VMM and passt that lets through what a guest may send.
//!
//! passt connects to whatever destination a guest's packet names. A guest's own kernel never sends
//! packets to 127.0.0.1 or 0.0.0.0, but a hostile guest writes them itself, and passt (seen with
//! Debian 12's, also with --no-map-gw) then connects to the host's loopback. So no such packet may
//! come to passt.
//!
//! What is for the responder leaves here as well, so that passt never sees it.

mod filter;
mod frames;
mod relay;

use std::path::{Path, PathBuf};

pub use relay::run;

use crate::Result;

const NAME: &str = "banger-netguard";

/// The guard's binary, which is installed beside our others.
///
/// # Errors
/// When it is not in `dir`.
pub fn locate(dir: &Path) -> Result<PathBuf> {
    crate::companion(dir, NAME)
}
