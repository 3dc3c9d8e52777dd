//! `banger daemon stop`: done when the process is gone. The VMs go on.

use std::os::fd::OwnedFd;
use std::time::Duration;

use banger_model::{Error, ErrorCode};
use banger_protocol::api::DaemonStatus;
use hyper::Method;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::Value;

use crate::client::Client;
use crate::context::Context;
use crate::error::Result;
use crate::place::Place;

/// How long the daemon may take to finish what it does.
const LIMIT: Duration = Duration::from_secs(30);

/// Stop the daemon; running VMs go on, and the next command starts it again
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_: &Args, context: &Context) -> Result<u8> {
    let client = Client::without_start(Place::from_env()?);
    let Some(status) = client.get_if_running::<DaemonStatus>("/v1/daemon").await? else {
        context.output.notice("the daemon does not run");
        return done(false, None, context);
    };
    let pid = status.pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // Held from before the request: afterwards the number could be somebody else's.
    let process = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let _: Value =
        client.change(Method::POST, "/v1/daemon/stop", None::<&()>, &mut context.board.track(None)).await?;
    if let Some(process) = process
        && !tokio::task::spawn_blocking(move || ended(&process)).await.unwrap_or(true)
    {
        return Err(Error::new(
            ErrorCode::Timeout,
            format!("the daemon still runs after {} s", LIMIT.as_secs()),
        )
        .with_hint("'banger daemon logs' shows what it does")
        .into());
    }
    context.output.notice("the daemon has stopped");
    done(true, status.pid, context)
}

fn done(stopped: bool, pid: Option<u32>, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(&serde_json::json!({ "stopped": stopped, "pid": pid }))?;
    }
    Ok(0)
}

/// Whether the process ended within the limit; a pidfd is readable then (pidfd_open(2)).
fn ended(process: &OwnedFd) -> bool {
    let limit = Timespec { tv_sec: LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&limit)) != Ok(0)
}
