//! `banger version`: never touches the daemon or the disk.

use banger_protocol::{api, exec};

use crate::context::Context;
use crate::error::Result;

/// Show the version
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, context: &Context) -> Result<u8> {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        context.output.document(&serde_json::json!({
            "version": version,
            "api_version": api::VERSION.to_string(),
            "exec_version": exec::VERSION.to_string(),
        }))?;
    } else {
        context.output.line(&format!("banger {version}"))?;
    }
    Ok(0)
}
