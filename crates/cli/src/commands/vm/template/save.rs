//! `banger vm template save`

use banger_model::{Bytes, VmName};
use banger_protocol::api::{SaveTemplate, TemplateView};
use hyper::Method;

use crate::commands::args::VmArg;
use crate::context::Context;
use crate::error::Result;

/// Keep a running VM as a template: its memory, disks, processes and workspace
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The VM runs on. 'banger vm run --template NAME' makes new VMs that go on from that moment, each with an identity of its own."
)]
pub(crate) struct Args {
    #[command(flatten)]
    vm: VmArg,
    /// What the template is called
    #[arg(value_name = "NAME")]
    name: VmName,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = SaveTemplate { vm: args.vm.vm, name: args.name };
    let saved: TemplateView = context.change(Method::POST, "/v1/templates", Some(&request)).await?;
    if context.output.json {
        context.output.document(&saved)?;
    } else {
        let size = Bytes(saved.size_bytes);
        context.output.notice(&format!("template '{}' is saved, {size}", request.name));
    }
    Ok(0)
}
