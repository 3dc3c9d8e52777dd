//! `banger daemon status`: never starts it, and works when it cannot be started.

use std::time::Duration;

use banger_model::ByteString;
use banger_protocol::api::DaemonStatus;

use crate::client::Client;
use crate::context::Context;
use crate::error::Result;
use crate::place::Place;
use crate::table::{fields, or_dash, span};

/// Show whether the daemon runs, and where its files are
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let place = Place::from_env()?;
    let status = match Client::without_start(place.clone()).get_if_running("/v1/daemon").await? {
        Some(status) => status,
        None => DaemonStatus {
            running: false,
            pid: None,
            version: None,
            socket: ByteString::from(place.socket().into_os_string()),
            state_dir: ByteString::from(place.state.path().as_os_str().to_owned()),
            uptime_s: None,
        },
    };
    show(&status, context)
}

/// Prints a status.
pub(super) fn show(status: &DaemonStatus, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(status)?;
    } else {
        context.output.bytes(
            fields(&[
                ("running", if status.running { "yes" } else { "no" }.to_owned()),
                ("pid", or_dash(status.pid)),
                ("version", or_dash(status.version.as_deref())),
                ("socket", status.socket.to_string_lossy().into_owned()),
                ("state", status.state_dir.to_string_lossy().into_owned()),
                ("uptime", or_dash(status.uptime_s.map(|s| span(Duration::from_secs(s))))),
            ])
            .as_bytes(),
        )?;
    }
    Ok(0)
}
