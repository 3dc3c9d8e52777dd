//! From the command line to an exit status. The only place that maps one to the other.

use std::ffi::{OsStr, OsString};
use std::panic::AssertUnwindSafe;

use banger_model::{Error, ErrorCode};
use clap::{CommandFactory as _, FromArgMatches as _};
use clap_complete::CompleteEnv;

use crate::commands::{Cli, Command, completion};
use crate::context::Context;
use crate::error::{CliError, Result, WRONG_USAGE};
use crate::output::Output;
use crate::{terminal, usage};

/// Runs the process and says which status it ends with.
pub(crate) fn main() -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Does nothing unless a shell's completion asks; then it answers and ends the process.
    CompleteEnv::with_factory(Cli::command).var(completion::ASKED).complete();
    // Before parsing: wrong usage is told in the form that was asked for, too.
    let wants_json = args.iter().skip(1).take_while(|a| *a != "--").any(|a| a == OsStr::new("--json"));
    let cli = match Cli::command().try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        Err(error) => return misused(&error, Output::new(wants_json, false)),
    };
    let output = Output::new(cli.json, cli.quiet);
    let usual = cli.command.failure_status();
    report_panics(output);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| run(cli.command, output)));
    match ended {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => {
            output.error(&error);
            error.status(usual)
        }
        // The hook has said it.
        Err(_) => usual,
    }
}

fn run(command: Command, output: Output) -> Result<u8> {
    let context = Context::new(output);
    let command = match command.run_alone(&context) {
        Ok(result) => return result,
        Err(command) => *command,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal(format!("cannot start the event loop: {e}")))?;
    let result = runtime.block_on(command.run(&context));
    // A thread may still sit in a read of stdin; the process ends without it.
    runtime.shutdown_background();
    result
}

fn misused(error: &clap::Error, output: Output) -> u8 {
    if !error.use_stderr() {
        // --help and --version.
        return match error.print() {
            Ok(()) => 0,
            Err(e) => CliError::stdout(&e).status(1),
        };
    }
    if output.json {
        output.error(&usage::as_error(error));
    } else {
        match usage::hint(error) {
            Some(hint) => output.aside(&format!("{}\nhint: {hint}\n", usage::brief(error))),
            None => {
                let _ = error.print();
            }
        }
    }
    WRONG_USAGE
}

/// A panic is a bug: the terminal is restored first, then it is told like every other error.
fn report_panics(output: Output) {
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        let place = info.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let what = info.payload_as_str().unwrap_or("unknown");
        let error = Error::new(ErrorCode::Internal, format!("a bug in banger{place}: {what}"))
            .with_hint("please report it with the command that you typed");
        output.error(&error.into());
    }));
}
