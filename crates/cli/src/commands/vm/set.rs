//! `banger vm set`

use banger_model::{Bytes, DriverChoice, Mib, VmView};
use banger_protocol::api::SetVm;
use hyper::Method;

use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// Change the size of VMs that are off; disks only grow
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("size").required(true).multiple(true))]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// Virtual CPUs
    #[arg(long, value_name = "N", group = "size", value_parser = clap::value_parser!(u32).range(1..=64))]
    vcpu: Option<u32>,
    /// Memory, such as 512M or 4G
    #[arg(long, value_name = "SIZE", group = "size")]
    memory: Option<Mib>,
    /// Size of the writable disk
    #[arg(long, value_name = "SIZE", group = "size")]
    disk_size: Option<Bytes>,
    /// Size of the disk on the homes (root's and /home); a VM without one gets one, with what is in them
    #[arg(long, value_name = "SIZE", group = "size", alias = "work-disk-size")]
    work_disk: Option<Bytes>,
    /// Run it by another machine monitor, on the same disks
    #[arg(long, group = "size")]
    driver: Option<DriverChoice>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let vms = args.which.vms;
    let Args { vcpu, memory, disk_size, work_disk, driver, .. } = args;
    let request = SetVm { vcpu, memory, disk_size, work_disk, driver };
    let results = many::change(context, "vms", &vms, (Method::POST, "/set"), Some(&request)).await?;
    many::finish(context, &vms, results, |vm: &VmView| {
        context.output.notice(&format!("'{}' is changed: it starts with that", vm.name));
        Ok(())
    })
}
