//! `banger vm logs`, `banger logs`

use bytes::Bytes;
use hyper::Method;

use crate::client::path;
use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::log_document::LogDocument;
use crate::pump::OutputPump;
use crate::tame::Tame;
use crate::terminal;

/// Show a VM's log: its VMM's, or the guest's serial console
///
/// With --json it is {"source","lines"}; with -f besides, one {"line"} a line.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    /// Go on as the log grows
    #[arg(short, long)]
    follow: bool,
    /// The guest's serial console
    #[arg(long)]
    console: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let source = if args.console { "console" } else { "vmm" };
    let query = format!("/logs?source={source}&follow={}", args.follow);
    let mut log =
        context.client()?.stream(Method::GET, &path("vms", &args.which.vm, &query), None::<&()>).await?;
    let mut output = OutputPump::spawn();
    let mut json = context.output.json.then(|| LogDocument::of_text(source, args.follow));
    let mut tame = (json.is_none() && terminal::stdout_is_terminal()).then(Tame::default);
    loop {
        let chunk = tokio::select! {
            chunk = log.next() => chunk?,
            error = output.failed() => return Err(CliError::stdout(&error)),
        };
        match chunk {
            Some(chunk) => {
                let chunk = match (&mut json, &mut tame) {
                    (Some(json), _) => json.feed(&chunk).into(),
                    (None, Some(tame)) => tame.feed(&chunk).into(),
                    (None, None) => chunk,
                };
                output.write(chunk).await.map_err(|e| CliError::stdout(&e))?;
            }
            None => break,
        }
    }
    if let Some(json) = json {
        output.write(json.finish().into()).await.map_err(|e| CliError::stdout(&e))?;
    }
    if let Some(tame) = tame {
        output.write(Bytes::from_static(tame.finish())).await.map_err(|e| CliError::stdout(&e))?;
    }
    output.finish().await.map_err(|e| CliError::stdout(&e))?;
    Ok(0)
}
