//! `banger vm kill`

use banger_model::VmView;
use banger_protocol::api::KillVm;
use hyper::Method;

use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;

/// End VMs at once, without asking the guest
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
    /// The signal for the VM's process, such as TERM [default: KILL]
    #[arg(short, long, value_name = "SIGNAL")]
    signal: Option<String>,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let vms = args.which.vms;
    let request = KillVm { signal: args.signal.map(|s| plain(&s)) };
    let results = many::change(context, "vms", &vms, (Method::POST, "/kill"), Some(&request)).await?;
    many::finish(context, &vms, results, |vm: &VmView| {
        context.output.notice(&format!("'{}' is {}", vm.name, vm.state));
        Ok(())
    })
}

/// `SIGTERM` and `term` mean `TERM`.
fn plain(signal: &str) -> String {
    let upper = signal.to_ascii_uppercase();
    upper.strip_prefix("SIG").unwrap_or(&upper).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn signals_are_named_as_kill_names_them() {
        for name in ["TERM", "SIGTERM", "term", "sigterm"] {
            assert_eq!(super::plain(name), "TERM");
        }
    }
}
