//! `banger vm list`, `banger ps`

use banger_model::VmView;
use jiff::Timestamp;

use crate::context::Context;
use crate::error::Result;
use crate::table::{ago, or_dash, size, table};

/// List the VMs that run
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Also those that do not run
    #[arg(short, long)]
    all: bool,
}

pub(crate) async fn run(args: Args, context: &Context) -> Result<u8> {
    let path = if args.all { "/v1/vms?all=true" } else { "/v1/vms" };
    let vms: Vec<VmView> = context.client()?.get(path).await?;
    context.output.list(&vms, |vm| vm.id.to_string(), |all| render(all, Timestamp::now()))
}

fn render(vms: &[VmView], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = vms
        .iter()
        .map(|vm| {
            vec![
                vm.id.to_string(),
                vm.name.to_string(),
                vm.state.to_string(),
                vm.image.to_string(),
                or_dash(vm.network.guest_ip.as_deref()),
                vm.vcpu.to_string(),
                size(u64::from(vm.memory_mib) << 20),
                size(vm.disk_bytes),
                or_dash(vm.workspace.as_ref().map(|w| w.source_path.to_string_lossy())),
                ago(vm.created_at, now),
            ]
        })
        .collect();
    let heading = ["ID", "NAME", "STATE", "IMAGE", "IP", "VCPU", "MEM", "DISK", "WORKSPACE", "CREATED"];
    table(&heading, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_one_line_under_the_headings() {
        let vm: VmView = serde_json::from_value(serde_json::json!({
            "id": "0123456789ab", "name": "web", "state": "running", "driver": "qemu", "accel": "tcg",
            "image": "debian", "kernel": "debian-cloud", "vcpu": 2, "memory_mib": 1024, "disk_bytes": 8589934592_u64,
            "network": {"mode": "user", "guest_ip": "10.0.2.15", "nat": false, "host_access": false},
            "workspace": null, "pid": 7, "created_at": "2026-01-01T00:00:00Z", "started_at": null,
            "boot": null, "last_error": null,
        }))
        .unwrap();
        let now = "2026-01-01T00:02:00Z".parse().unwrap();
        assert_eq!(
            render(&[vm], now),
            "ID            NAME  STATE    IMAGE   IP         VCPU  MEM    DISK   WORKSPACE  CREATED\n\
             0123456789ab  web   running  debian  10.0.2.15  2     1 GiB  8 GiB  -          2 min ago\n"
        );
    }
}
