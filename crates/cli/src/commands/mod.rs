//! The command tree. One file a command; each has its arguments and what it does, nothing else.

mod args;
pub(crate) mod completion;
mod daemon;
mod doctor;
mod events;
mod image;
mod kernel;
mod operation;
mod version;
mod vm;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use clap::{Parser, Subcommand};

use crate::context::Context;
use crate::error::{CliError, Result};
use crate::signals::Signals;

/// Development sandboxes on microVMs: boot a virtual machine with a copy of your repository in it,
/// run a command there, take the change back as a patch
#[derive(Debug, Parser)]
#[command(
    name = "banger",
    version,
    arg_required_else_help = true,
    after_help = "Begin with:\n  banger run --rm . -- make test   run a command in a fresh VM with this repository\n  banger run .                     open a shell there\n  banger doctor                    see whether this machine is ready"
)]
pub(crate) struct Cli {
    /// Print one JSON document on stdout, and errors as JSON
    #[arg(long, global = true, display_order = 900)]
    pub(crate) json: bool,
    /// Leave out notices and progress (of lists: all but the ids)
    #[arg(short, long, global = true, display_order = 901)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands, the daily ones first.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<vm::run::Args>),
    Exec(vm::exec::Args),
    Shell(vm::shell::Args),
    #[command(name = "ps")]
    Ps(vm::list::Args),
    Logs(vm::logs::Args),
    /// Make and use virtual machines
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Root file systems that VMs boot from
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Kernels that VMs boot with
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),
    /// What the daemon is doing, and has done lately
    #[command(subcommand)]
    Operation(operation::OperationCommand),
    Events(events::Args),
    /// The background process that owns the VMs' records
    #[command(subcommand)]
    Daemon(daemon::DaemonCommand),
    Doctor(doctor::Args),
    Version(version::Args),
    Completion(completion::Args),
}

impl Command {
    /// The exit status when banger itself fails: `run` and `exec` leave 1 to the guest's command.
    pub(crate) fn failure_status(&self) -> u8 {
        match self {
            Self::Run(_) | Self::Exec(_) | Self::Vm(vm::VmCommand::Run(_) | vm::VmCommand::Exec(_)) => 125,
            _ => 1,
        }
    }

    /// Does commands that need no daemon and no event loop; gives the others back.
    pub(crate) fn run_alone(self, context: &Context) -> Result<Result<u8>, Box<Self>> {
        match self {
            Self::Version(args) => Ok(version::run(&args, context)),
            Self::Completion(args) => Ok(completion::run(&args, context)),
            other => Err(Box::new(other)),
        }
    }

    /// Does the command. An interrupt drops what it does, which closes its connections, which
    /// cancels it in the daemon; `run`, `exec` and `shell` have their own idea of signals.
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Run(args) | Self::Vm(vm::VmCommand::Run(args)) => {
                Box::pin(vm::run::run(*args, context)).await
            }
            Self::Exec(args) | Self::Vm(vm::VmCommand::Exec(args)) => {
                Box::pin(vm::exec::run(args, context)).await
            }
            Self::Shell(args) | Self::Vm(vm::VmCommand::Shell(args)) => {
                Box::pin(vm::shell::run(args, context)).await
            }
            other => {
                let mut signals = Signals::ending()?;
                tokio::select! {
                    result = Box::pin(other.run_plain(context)) => result,
                    signal = signals.next_ending() => Err(CliError::interrupted(signal)),
                }
            }
        }
    }

    async fn run_plain(self, context: &Context) -> Result<u8> {
        match self {
            Self::Ps(args) => vm::list::run(args, context).await,
            Self::Logs(args) => vm::logs::run(args, context).await,
            Self::Vm(command) => command.run(context).await,
            Self::Image(command) => command.run(context).await,
            Self::Kernel(command) => command.run(context).await,
            Self::Operation(command) => command.run(context).await,
            Self::Events(args) => events::run(&args, context).await,
            Self::Daemon(command) => command.run(context).await,
            Self::Doctor(args) => doctor::run(&args, context).await,
            Self::Version(args) => version::run(&args, context),
            Self::Completion(args) => completion::run(&args, context),
            Self::Run(_) | Self::Exec(_) | Self::Shell(_) => Box::pin(self.run(context)).await,
        }
    }
}
