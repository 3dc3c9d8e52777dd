//! `banger vm exec`, `banger exec`

use std::ffi::OsString;

use banger_model::{Error, ErrorCode};
use banger_protocol::agent::ExitStatus;
use serde_json::json;

use super::workspace;
use crate::commands::args::{ExecArgs, RefreshArgs, TerminalArgs, VmArg};
use crate::context::Context;
use crate::error::{CliError, Result};
use crate::exec_stream::{self, Local, Run};
use crate::signals::Signals;

/// Run a command in a VM
#[derive(Debug, clap::Args)]
#[command(
    after_help = "stdin is passed on whenever it is not a terminal. The exit status is the command's, 128+N when signal N ended it; 125 when banger failed, 126 when the command cannot be executed, 127 when there is no such command. With --json the command's output goes to stderr, and stdout carries {\"exit_code\",\"signal\"}."
)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmArg,
    #[command(flatten)]
    terminal: TerminalArgs,
    #[command(flatten)]
    exec: ExecArgs,
    #[command(flatten)]
    refresh: RefreshArgs,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, value_parser = clap::builder::OsStringValueParser::new())]
    command: Vec<OsString>,
}

#[cfg(test)]
impl Args {
    pub(crate) fn command(&self) -> &[OsString] {
        &self.command
    }
    pub(crate) fn interactive(&self) -> bool {
        self.terminal.interactive
    }
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    in_vm(&args.which.vm, args.exec, args.command, &args.terminal, &args.refresh, context).await
}

/// Runs a command (or, without one, a login shell) in a VM and tells how it ended.
pub(super) async fn in_vm(
    vm: &str,
    exec: ExecArgs,
    command: Vec<OsString>,
    terminal: &TerminalArgs,
    refresh: &RefreshArgs,
    context: &Context,
) -> Result<u8> {
    let mut signals = Signals::all()?;
    let client = context.client()?;
    let (request, raw) = exec.into_request(command, terminal);
    if refresh.auto_prepare {
        let prepared = tokio::select! {
            prepared = workspace::refresh(vm, refresh.force, context) => prepared?,
            signal = signals.next_ending() => return Err(CliError::interrupted(signal)),
        };
        workspace::tell(&prepared, context);
    }
    let local = Local { raw, stdout_taken: context.output.json };
    let watch = context.output.chatty() && !refresh.auto_prepare;
    let run = Run { vm, request: &request, local, watch };
    let ended = exec_stream::run(&client, run, &mut signals, |notice| context.output.notice(notice)).await?;
    let status = status(&ended)?;
    if context.output.json {
        context.output.document(&document(&ended))?;
    }
    Ok(status)
}

/// The exit status that stands for how a command ended.
///
/// # Errors
/// With status 126 or 127 when there was no command to run.
pub(super) fn status(ended: &ExitStatus) -> Result<u8> {
    match ended {
        ExitStatus::Code(code) => Ok(u8::try_from(code & 0xff).unwrap_or(1)),
        ExitStatus::Signal(signal) => Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        ExitStatus::NotFound(why) => Err(CliError::from(
            Error::not_found(why.clone())
                .with_hint("the program must be in the guest: check the image and PATH"),
        )
        .with_status(127)),
        ExitStatus::NotExecutable(why) => {
            Err(CliError::from(Error::new(ErrorCode::GuestFailed, why.clone())).with_status(126))
        }
    }
}

/// How a command ended, as JSON.
pub(super) fn document(ended: &ExitStatus) -> serde_json::Value {
    match ended {
        ExitStatus::Code(code) => json!({ "exit_code": code & 0xff, "signal": null }),
        ExitStatus::Signal(signal) => json!({ "exit_code": 128 + signal, "signal": signal }),
        ExitStatus::NotFound(_) => json!({ "exit_code": 127, "signal": null }),
        ExitStatus::NotExecutable(_) => json!({ "exit_code": 126, "signal": null }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_shells_and_dockers() {
        assert_eq!(status(&ExitStatus::Code(42)).unwrap(), 42);
        assert_eq!(status(&ExitStatus::Code(255)).unwrap(), 255);
        assert_eq!(status(&ExitStatus::Signal(15)).unwrap(), 143);
        assert_eq!(status(&ExitStatus::NotFound("x".into())).unwrap_err().status(125), 127);
        assert_eq!(status(&ExitStatus::NotExecutable("x".into())).unwrap_err().status(125), 126);
    }
}
