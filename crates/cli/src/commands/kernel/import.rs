//! `banger kernel import`

use std::ffi::OsString;

use banger_model::{Kernel, KernelName};
use banger_protocol::api::ImportKernel;
use hyper::Method;

use crate::commands::args::existing;
use crate::context::Context;
use crate::error::Result;

/// Take a kernel, and its modules, from a directory
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the kernel
    name: KernelName,
    /// A directory with a kernel (also below boot/) and, when it has modules, lib/modules/RELEASE
    #[arg(value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    source: OsString,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let request = ImportKernel { name: args.name, path: existing(&args.source)? };
    let kernel: Kernel = context.change(Method::POST, "/v1/kernels/import", Some(&request)).await?;
    super::made(&kernel, context)
}
