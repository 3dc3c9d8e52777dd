//! `banger vm rebuild`

use banger_model::{ImageName, VmView};
use banger_protocol::api::RebuildVm;
use clap_complete::engine::ArgValueCompleter;
use hyper::Method;

use crate::client::path;
use crate::commands::args::VmArg;
use crate::commands::completion;
use crate::context::Context;
use crate::error::Result;

/// Put a VM that is off on an image, with a new system disk; its work disk, which has the homes, stays
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: VmArg,
    /// The image [default: the one it has, as it is now]
    #[arg(long, add = ArgValueCompleter::new(completion::images))]
    image: Option<ImageName>,
    /// Rebuild a VM without a work disk: everything in it is lost
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = RebuildVm { image: args.image, force: args.force };
    let url = path("vms", &args.vm.vm, "/rebuild");
    let vm: VmView = context.change(Method::POST, &url, Some(&request)).await?;
    if context.output.json {
        context.output.document(&vm)?;
        return Ok(0);
    }
    context.output.notice(&format!("'{}' has a new system disk, of image '{}'", vm.name, vm.image));
    Ok(0)
}
