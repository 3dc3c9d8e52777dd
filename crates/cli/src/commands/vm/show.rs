//! `banger vm show`

use banger_model::VmView;

use crate::client::path;
use crate::commands::args::VmsArg;
use crate::context::Context;
use crate::error::Result;
use crate::many;
use crate::table::{fields, or_dash, seconds, size};

/// Show VMs in full
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    which: VmsArg,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let client = context.client()?;
    let vms = args.which.vms;
    let results =
        many::each(
            &client,
            &vms,
            |client, vm| async move { client.get::<VmView>(&path("vms", &vm, "")).await },
        )
        .await?;
    many::finish(context, &vms, results, |vm| context.output.bytes(render(vm).as_bytes()))
}

fn render(vm: &VmView) -> String {
    let mut lines = vec![
        ("id", vm.id.to_string()),
        ("name", vm.name.to_string()),
        ("state", vm.state.to_string()),
        ("driver", vm.accel.map_or_else(|| vm.driver.to_string(), |accel| format!("{}, {accel}", vm.driver))),
        ("image", vm.image.to_string()),
        ("kernel", vm.kernel.to_string()),
        ("vcpu", vm.vcpu.to_string()),
        ("memory", size(u64::from(vm.memory_mib) << 20)),
        ("disk", size(vm.disk_bytes)),
        ("work disk", or_dash(vm.work_disk_bytes.map(size))),
        ("network", network(vm)),
        ("pid", or_dash(vm.pid)),
        ("created", vm.created_at.to_string()),
        ("started", or_dash(vm.started_at)),
    ];
    if let Some(boot) = vm.boot {
        lines.push(("boot", format!("{}, ready in {}", boot.kind, seconds(boot.ready_ms))));
    }
    if let Some(w) = &vm.workspace {
        lines.push(("workspace", format!("{} from {}", w.guest_path, w.source_path.to_string_lossy())));
        lines.push(("base", w.base_commit.clone()));
        lines.push(("branch", or_dash(w.branch.as_deref())));
    }
    if let Some(parent) = &vm.parent {
        lines.push(("parent", format!("{} ({})", parent.name, parent.id)));
    }
    if let Some(error) = &vm.last_error {
        lines.push(("last error", format!("{} ({})", error.message, error.code)));
    }
    fields(&lines)
}

fn network(vm: &VmView) -> String {
    let mut text = vm.network.mode.to_string();
    if let Some(ip) = &vm.network.guest_ip {
        text.push_str(&format!(", {ip}"));
    }
    if vm.network.nat {
        text.push_str(", nat");
    }
    if vm.network.host_access {
        text.push_str(", host access");
    }
    text
}
