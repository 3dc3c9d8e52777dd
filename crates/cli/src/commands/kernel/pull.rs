//! `banger kernel pull`

use banger_model::{Kernel, KernelName};
use banger_protocol::api::PullKernel;
use clap_complete::engine::ArgValueCompleter;
use hyper::Method;

use crate::commands::{completion, operation};
use crate::context::Context;
use crate::error::Result;

/// Get a kernel from the catalog
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its name in 'banger kernel list --available', such as debian-cloud
    #[arg(add = ArgValueCompleter::new(completion::catalog))]
    name: KernelName,
    /// Get it again although it is there
    #[arg(short, long)]
    force: bool,
    /// Do not wait: print the id of the operation that does it
    #[arg(short, long)]
    detach: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = PullKernel { name: args.name, force: args.force };
    if args.detach {
        return operation::detached("/v1/kernels/pull", &request, context).await;
    }
    let kernel: Kernel = context.change(Method::POST, "/v1/kernels/pull", Some(&request)).await?;
    super::made(&kernel, context)
}
