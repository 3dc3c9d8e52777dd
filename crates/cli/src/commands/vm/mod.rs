//! `banger vm …`

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod kill;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod pause;
pub(crate) mod rebuild;
pub(crate) mod restart;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod set;
pub(crate) mod shell;
pub(crate) mod show;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod stop;
mod template;
mod timings;
mod workspace;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

/// The VM commands.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    Run(Box<run::Args>),
    Create(create::Args),
    Start(start::Args),
    Stop(stop::Args),
    Restart(restart::Args),
    Kill(kill::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Fork(fork::Args),
    /// Keep moments of a VM, and put it back to them
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    Delete(delete::Args),
    Set(set::Args),
    Rebuild(rebuild::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Show(show::Args),
    Exec(exec::Args),
    Shell(shell::Args),
    Logs(logs::Args),
    /// What new VMs go on from, instead of booting
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Copy a repository in, take its change out
    #[command(subcommand)]
    Workspace(workspace::WorkspaceCommand),
}

impl VmCommand {
    /// The commands for which any interrupt is the end.
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Run(args) => run::run(*args, context).await,
            Self::Exec(args) => exec::run(args, context).await,
            Self::Shell(args) => shell::run(args, context).await,
            Self::Create(args) => create::run(args, context).await,
            Self::Start(args) => start::run(args, context).await,
            Self::Stop(args) => stop::run(args, context).await,
            Self::Restart(args) => restart::run(args, context).await,
            Self::Kill(args) => kill::run(args, context).await,
            Self::Pause(args) => pause::run(args, context).await,
            Self::Resume(args) => resume::run(args, context).await,
            Self::Delete(args) => delete::run(args, context).await,
            Self::Fork(args) => fork::run(args, context).await,
            Self::Snapshot(command) => command.run(context).await,
            Self::Set(args) => set::run(args, context).await,
            Self::Rebuild(args) => rebuild::run(args, context).await,
            Self::List(args) => list::run(args, context).await,
            Self::Show(args) => show::run(args, context).await,
            Self::Logs(args) => logs::run(args, context).await,
            Self::Template(command) => command.run(context).await,
            Self::Workspace(command) => command.run(context).await,
        }
    }
}
