//! `banger vm shell`, `banger shell`

use super::exec;
use crate::commands::args::{ExecArgs, RefreshArgs, TerminalArgs, VmArg};
use crate::context::Context;
use crate::error::Result;

/// Open a login shell on a terminal in a VM
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    #[command(flatten)]
    exec: ExecArgs,
    #[command(flatten)]
    refresh: RefreshArgs,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let terminal = TerminalArgs { tty: true, ..TerminalArgs::default() };
    exec::in_vm(&args.which.vm, args.exec, Vec::new(), &terminal, &args.refresh, context).await
}
