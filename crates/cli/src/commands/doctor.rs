//! `banger doctor`: what works on this host, and what to type next. It starts no daemon, and works when none can start.

use std::process::{Command, Stdio};

use banger_model::Error;
use banger_protocol::api::{Check, CheckStatus, DaemonStatus};

use crate::client::Client;
use crate::context::Context;
use crate::daemon_start::program;
use crate::error::{CliError, Result};
use crate::place::Place;

/// Check whether this machine is ready, and say what to type next
///
/// Changes nothing and starts nothing, unless one of the trials is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also start a VM's network as a VM gets it, in its sandbox, and end it again
    #[arg(long)]
    network: bool,
}

pub(crate) async fn run(args: &Args, context: &Context) -> Result<u8> {
    let checks = match asked(args, context).await {
        Ok(checks) => checks,
        Err(error) => {
            let mut checks = match error.bodies() {
                [body, ..] => vec![daemon(CheckStatus::Fail, body.message.clone(), body.hint.clone())],
                [] => return Err(error),
            };
            // What keeps a daemon from starting is often one of the things that are checked without one.
            let others = without_daemon().unwrap_or_default();
            checks.extend(others.into_iter().filter(|check| check.name != "daemon"));
            checks
        }
    };
    if context.output.json {
        context.output.document(&checks)?;
    } else {
        for check in &checks {
            context.output.check(check)?;
        }
    }
    Ok(u8::from(checks.iter().any(|c| c.status == CheckStatus::Fail)))
}

/// The checks of a daemon that runs, or is to run for a trial; else those of the daemon's program.
async fn asked(args: &Args, context: &Context) -> Result<Vec<Check>> {
    let checks = if args.network {
        Some(context.client()?.get("/v1/doctor?network=true").await?)
    } else {
        Client::without_start(Place::from_env()?).get_if_running::<Vec<Check>>("/v1/doctor").await?
    };
    let mut checks = match checks {
        Some(checks) => checks,
        None => without_daemon()?,
    };
    if !checks.iter().any(|check| check.name == "daemon") {
        checks.insert(0, running().await?);
    }
    Ok(checks)
}

/// Whether a daemon runs, and whether it is of our version.
async fn running() -> Result<Check> {
    let client = Client::without_start(Place::from_env()?);
    let Some(status) = client.get_if_running::<DaemonStatus>("/v1/daemon").await? else {
        let detail = "it does not run; the next command that needs it starts it".to_owned();
        return Ok(daemon(CheckStatus::Ok, detail, None));
    };
    let (ours, theirs) = (env!("CARGO_PKG_VERSION"), status.version.unwrap_or_default());
    let pid = status.pid.unwrap_or_default();
    if theirs == ours {
        return Ok(daemon(CheckStatus::Ok, format!("it runs, pid {pid}, version {ours}"), None));
    }
    let detail = format!("it runs, pid {pid}, with version {theirs}, and this program has version {ours}");
    let hint = "'banger daemon stop' ends it and leaves VMs alone; the next command starts the new one";
    Ok(daemon(CheckStatus::Warn, detail, Some(hint.to_owned())))
}

/// Asks the daemon's program, which looks at everything that a daemon would, and changes nothing.
fn without_daemon() -> Result<Vec<Check>> {
    let program = program();
    let mut command = Command::new(&program);
    let run = command.arg("--doctor").stdin(Stdio::null()).stderr(Stdio::null()).output();
    let failed = |why: String| {
        CliError::from(
            Error::unavailable(format!("{} cannot be asked: {why}", program.display()))
                .with_hint("install banger again: 'banger' and 'bangerd' belong together"),
        )
    };
    let output = run.map_err(|error| failed(error.to_string()))?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| failed(format!("it gave no checks ({})", output.status)))
}

fn daemon(status: CheckStatus, detail: String, hint: Option<String>) -> Check {
    Check { name: "daemon".to_owned(), status, detail, hint }
}
