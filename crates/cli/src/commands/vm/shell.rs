//! `banger vm shell`, `banger shell`

use super::exec::{document, status};
use crate::commands::args::{ExecArgs, TerminalArgs, VmArg};
use crate::context::Context;
use crate::error::Result;
use crate::exec_stream::{self, Local};
use crate::signals::Signals;

/// Open a login shell on a terminal in a VM
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    #[command(flatten)]
    exec: ExecArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let mut signals = Signals::all()?;
    let client = context.client()?;
    let terminal = TerminalArgs { tty: true, ..TerminalArgs::default() };
    let (request, raw) = args.exec.into_request(Vec::new(), &terminal)?;
    let local = Local { raw, stdout_taken: context.output.json };
    let ended = exec_stream::run(&client, &args.which.vm, &request, local, &mut signals).await?;
    let status = status(&ended)?;
    if context.output.json {
        context.output.document(&document(&ended))?;
    }
    Ok(status)
}
