//! `banger vm run`, `banger run`: create, boot, copy the repository in, run a command or a shell.

use std::ffi::OsString;
use std::time::Duration;

use banger_model::{Error, ErrorCode, VmView};
use banger_protocol::agent::ExitStatus;
use banger_protocol::api::{CreateVm, CreatedVm, ExecRequest, PreparePlan};
use hyper::Method;
use serde_json::Value;
use tokio::time::timeout;

use super::{exec, timings, workspace};
use crate::client::{Client, Held, path};
use crate::commands::args::{ExecArgs, MachineArgs, TerminalArgs, WorkspaceArgs};
use crate::context::Context;
use crate::error::{CliError, Result, WRONG_USAGE};
use crate::exec_stream::{self, Local, Run};
use crate::signals::Signals;
use crate::terminal;

/// How long the deletion of `--rm` may take.
const DELETE_LIMIT: Duration = Duration::from_secs(30);

/// Run a command, or a shell, in a new VM with a copy of a repository
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without CMD it is a login shell: on a terminal when stdin is one, else reading its commands from stdin. Without --rm the VM goes on running.\n\nThe exit status is the command's, 128+N when signal N ended it; 125 when banger failed, 126 when the command cannot be executed, 127 when there is no such command. With --json the command's output goes to stderr, and stdout carries the VM with exit_code and signal."
)]
pub(crate) struct Args {
    /// A path in a git repository that is copied in [default: nothing is copied]
    #[arg(value_hint = clap::ValueHint::DirPath)]
    path: Option<OsString>,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    workspace: WorkspaceArgs,
    #[command(flatten)]
    terminal: TerminalArgs,
    #[command(flatten)]
    exec: ExecArgs,
    /// Delete the VM when the command has ended
    #[arg(long)]
    rm: bool,
    /// Leave the VM running in the background and print its name
    #[arg(short, long, conflicts_with_all = ["rm", "command", "interactive", "tty", "env", "workdir", "user", "timeout"])]
    detach: bool,
    /// Show how long each step of the start took
    #[arg(long)]
    timings: bool,
    /// The command and its arguments
    #[arg(value_name = "CMD", last = true, value_parser = clap::builder::OsStringValueParser::new())]
    command: Vec<OsString>,
}

pub(crate) async fn run(mut args: Args, context: &Context) -> Result<u8> {
    let mut signals = Signals::all()?;
    if let (None, Some(flag)) = (&args.path, args.workspace.given()) {
        return Err(CliError::from(
            Error::invalid(format!("{flag} needs the PATH of a repository"))
                .with_hint(format!("write 'banger run . {flag} …' for the one you are in")),
        )
        .with_status(WRONG_USAGE));
    }
    let dry_run = args.workspace.dry_run;
    let repository = match args.path.take() {
        Some(path) => Some(args.workspace.into_request(&path)?),
        None => None,
    };
    let client = context.client()?;
    if dry_run {
        let plan = context.change(Method::POST, "/v1/workspace/plan", repository.as_ref());
        let plan: PreparePlan = until_signal(&mut signals, plan).await?;
        return workspace::show_plan(&plan, context);
    }
    args.terminal.tty |= args.command.is_empty() && terminal::stdin_is_terminal();
    let interactive = args.terminal.tty;
    let (request, raw) = args.exec.into_request(args.command, &args.terminal);

    let wanted = CreateVm { rm: args.rm, workspace: repository, ..args.machine.into_request() };
    let (created, held) = until_signal(&mut signals, create(&client, &wanted, context)).await?;
    if args.timings && !context.output.json {
        timings::show(&created.timings, context);
    }
    if args.detach {
        return detached(&created, args.timings, context);
    }

    let local = Local { raw, stdout_taken: context.output.json };
    let command = Run { vm: created.vm.id.as_str(), request: &request, local, watch: false };
    let ended = exec_stream::run(&client, command, &mut signals, |_| ()).await;
    let deleted = if args.rm { delete(&client, &created, held, &mut signals).await } else { Ok(()) };
    let told = tell(&created, &ended, args.timings, context);
    if !args.rm {
        remind(&created, &request, interactive, ended.is_ok(), context);
    }
    let status = ended.and_then(|ended| exec::status(&ended));
    match (status, deleted) {
        // The command's own failure says more than a VM that is left.
        (Ok(0), Err(error)) => Err(error),
        (status, Err(error)) => {
            context.output.notice(&format!(
                "the VM '{}' is left: {}",
                created.vm.name,
                first_message(&error)
            ));
            status
        }
        (status, Ok(())) => told.and(status),
    }
}

async fn create(client: &Client, wanted: &CreateVm, context: &Context) -> Result<(CreatedVm, Held)> {
    let mut progress = context.board.track(None);
    client.change_held(Method::POST, "/v1/vms", Some(wanted), &mut progress).await
}

/// Does something that a signal cancels.
async fn until_signal<T>(signals: &mut Signals, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        result = work => result,
        signal = signals.next_ending() => Err(CliError::interrupted(signal)),
    }
}

fn detached(created: &CreatedVm, with_timings: bool, context: &Context) -> Result<u8> {
    if context.output.json {
        context.output.document(&timings::document(created, with_timings)?)?;
    } else {
        context.output.line(created.vm.name.as_str())?;
    }
    Ok(0)
}

/// The document of `--json`.
fn tell(
    created: &CreatedVm,
    ended: &Result<ExitStatus>,
    with_timings: bool,
    context: &Context,
) -> Result<()> {
    let (true, Ok(ended)) = (context.output.json, ended) else { return Ok(()) };
    let mut document = timings::document(created, with_timings)?;
    if let (Value::Object(all), Value::Object(end)) = (&mut document, exec::document(ended)) {
        all.extend(end);
    }
    context.output.document(&document)
}

/// Deletes the VM on a connection of its own, so that an interrupt of the command does not stop it.
async fn delete(client: &Client, created: &CreatedVm, held: Held, signals: &mut Signals) -> Result<()> {
    let url = path("vms", created.vm.id.as_str(), "?force=true");
    let gone = async {
        match client.call::<VmView>(Method::DELETE, &url).await {
            Err(error) if error.code() != Some(ErrorCode::NotFound) => Err(error),
            _ => Ok(()),
        }
    };
    let result = tokio::select! {
        result = timeout(DELETE_LIMIT, gone) => result.unwrap_or_else(|_| {
            Err(Error::new(ErrorCode::Timeout, format!("the VM '{}' is not deleted yet", created.vm.name))
                .with_hint("the daemon goes on with it; 'banger ps -a' shows whether it is done")
                .into())
        }),
        signal = signals.next_ending() => Err(CliError::interrupted(signal)),
    };
    // Only now: had it been closed before, the daemon would have begun to delete by itself.
    drop(held);
    result
}

fn remind(
    created: &CreatedVm,
    request: &ExecRequest,
    interactive: bool,
    ended_well: bool,
    context: &Context,
) {
    let name = &created.vm.name;
    let shell = request.argv.is_empty() && interactive;
    if shell || !ended_well || terminal::stderr_is_terminal() {
        context.output.notice(&format!(
            "the VM '{name}' still runs: 'banger shell {name}' goes back, 'banger vm delete -f {name}' ends it"
        ));
    }
}

fn first_message(error: &CliError) -> String {
    error.bodies().first().map(|b| b.message.clone()).unwrap_or_default()
}
