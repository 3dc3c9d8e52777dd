//! Follows the host's network for the VMs that use it: their responders get each new list of name servers, and a start
//! on a host without a way out says so. Must never change anything of the host's.

use std::sync::Arc;
use std::time::Duration;

use banger_model::{NetworkMode, Vm};
use banger_network::host;

use super::Vms;
use crate::op::Op;

/// How often the host's resolv.conf is looked at. It is often a link to a file that another program replaces, in a
/// directory that may come later: looking is simpler than watching, and costs a few system calls.
const TICK: Duration = Duration::from_secs(2);

/// A notice for the start of a VM whose network leads nowhere at present.
pub(super) fn notice(op: &Op, vm: &Vm) {
    if vm.network == NetworkMode::User && !host::has_default_route() {
        op.notice(format!(
            "this host has no default route: the network of VM '{}' leads nowhere until it has one",
            vm.name
        ));
    }
}

impl Vms {
    /// Watches the host's name servers as long as the daemon lives.
    pub(crate) async fn watch_host_network(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        // What was published while no daemon ran may be old.
        let mut published = None;
        loop {
            tick.tick().await;
            let now = host::resolv_conf();
            if published.as_ref() != Some(&now) {
                self.publish_name_servers(&now);
                published = Some(now);
            }
        }
    }

    fn publish_name_servers(&self, resolv_conf: &[u8]) {
        let entries = std::fs::read_dir(self.dirs.runtime.vms()).into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        for id in ids {
            if let Err(error) = host::refresh(resolv_conf, &self.dirs.runtime.vm_network(&id)) {
                tracing::warn!(vm_id = %id, %error, "the host's new name servers could not be published");
            }
        }
    }
}
