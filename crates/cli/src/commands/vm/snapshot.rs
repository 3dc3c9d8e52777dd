//! `banger vm snapshot …`

use banger_model::{VmName, VmView};
use banger_protocol::api::{CreateSnapshot, SnapshotKind, SnapshotView};
use clap::Subcommand;
use hyper::Method;
use jiff::Timestamp;

use crate::client::path;
use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, size, table};

/// The snapshot commands.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(CreateArgs),
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Restore(RestoreArgs),
    Delete(DeleteArgs),
}

/// Keep a VM's present moment: memory, processes and disks; the VM runs on
///
/// Of a VM that is off there are only the disks. Snapshots go with their VM.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    vm: VmArg,
    /// The snapshot's name
    name: VmName,
    /// Only the disks, although it runs: a restore leaves the VM off
    #[arg(long)]
    disk_only: bool,
}

/// List a VM's snapshots, oldest first
#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    vm: VmArg,
}

/// Put a VM back to a snapshot's moment, running or not: what it did since is lost
///
/// A VM that runs is ended for it without being asked. Afterwards it runs, with the processes of then and the time of
/// now; after a snapshot of disks it is off.
#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    vm: VmArg,
    /// The snapshot's name
    name: VmName,
}

/// Delete a snapshot; the VM stays as it is
#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    vm: VmArg,
    /// The snapshot's name
    name: VmName,
}

impl SnapshotCommand {
    pub(crate) async fn run(self, context: &Context) -> Result<u8> {
        match self {
            Self::Create(args) => create(args, context).await,
            Self::List(args) => list(args, context).await,
            Self::Restore(args) => restore(args, context).await,
            Self::Delete(args) => delete(args, context).await,
        }
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<u8> {
    let request = CreateSnapshot { name: args.name, disk_only: args.disk_only };
    let url = path("vms", &args.vm.vm, "/snapshots");
    let made: SnapshotView = context.change(Method::POST, &url, Some(&request)).await?;
    if context.output.json {
        context.output.document(&made)?;
    } else {
        context.output.notice(&format!("snapshot '{}' of {}", made.name, kind(made.kind)));
    }
    Ok(0)
}

async fn list(args: ListArgs, context: &Context) -> Result<u8> {
    let all: Vec<SnapshotView> = context.client()?.get(&path("vms", &args.vm.vm, "/snapshots")).await?;
    context.output.list(&all, |snapshot| snapshot.name.to_string(), |all| render(all, Timestamp::now()))
}

async fn restore(args: RestoreArgs, context: &Context) -> Result<u8> {
    let url = path("vms", &args.vm.vm, &format!("/snapshots/{}/restore", args.name));
    let vm: VmView = context.change(Method::POST, &url, None::<&()>).await?;
    if context.output.json {
        context.output.document(&vm)?;
    } else {
        context.output.notice(&format!("'{}' is back at '{}' and {}", vm.name, args.name, vm.state));
    }
    Ok(0)
}

async fn delete(args: DeleteArgs, context: &Context) -> Result<u8> {
    let url = path("vms", &args.vm.vm, &format!("/snapshots/{}", args.name));
    let gone: SnapshotView = context.change(Method::DELETE, &url, None::<&()>).await?;
    if context.output.json {
        context.output.document(&gone)?;
    } else {
        context.output.notice(&format!("snapshot '{}' is deleted", gone.name));
    }
    Ok(0)
}

fn kind(kind: SnapshotKind) -> &'static str {
    match kind {
        SnapshotKind::Full => "memory and disks",
        SnapshotKind::Disks => "disks",
    }
}

fn render(all: &[SnapshotView], now: Timestamp) -> String {
    let row = |s: &SnapshotView| {
        vec![s.name.to_string(), kind(s.kind).to_owned(), size(s.bytes), ago(s.created_at, now)]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table(&["NAME", "OF", "SIZE", "CREATED"], &rows)
}
