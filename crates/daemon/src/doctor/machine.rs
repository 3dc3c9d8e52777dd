//! Checks of what runs VMs: KVM, the drivers, and the sandbox around them.

use banger_model::{Error, Layer, Security};
use banger_protocol::api::{Check, CheckStatus};
use banger_vmm::kvm::KvmStatus;
use banger_vmm::{Cage, Capabilities, VmmError};

use super::{fail, ok, warn};
use crate::config::Config;

pub(super) fn kvm(status: &KvmStatus) -> Check {
    if matches!(status, KvmStatus::Works) {
        return ok("kvm", "guest code ran in a tiny VM".to_owned());
    }
    let why = match status {
        KvmStatus::Emulated { detail } => format!("emulated, and stock kernels fail: {detail}"),
        other => other.detail(),
    };
    Check {
        name: "kvm".to_owned(),
        status: CheckStatus::Warn,
        detail: format!("{why}; guests run in software emulation, many times slower"),
        hint: status.hint(),
    }
}

pub(super) fn driver(name: &str, asked: banger_vmm::Result<Capabilities>, config: &Config) -> Check {
    match asked {
        Ok(Capabilities { version, warning: None, vcpus_take_turns: true, .. }) => ok(
            name,
            format!(
                "version {version}; without KVM its vCPUs take turns, and a VM has one unless asked for more"
            ),
        ),
        Ok(Capabilities { version, warning: None, .. }) => ok(name, format!("version {version}")),
        Ok(Capabilities { version, warning: Some(warning), .. }) => {
            let hint = "should it misbehave: '--driver qemu'".to_owned();
            warn(name, format!("version {version}: {warning}"), hint)
        }
        // Nobody has to have it, but a configuration that names one wants it.
        Err(error @ VmmError::FirecrackerMissing { .. }) if config.firecracker.value.is_none() => {
            let error = Error::from(error);
            warn(name, format!("{}: VMs run in QEMU", error.message), error.hint.unwrap_or_default())
        }
        Err(error) => fail(name, error.into()),
    }
}

/// Builds a sandbox as one for a VMM, and says which of its layers hold, and whether user namespaces are to be had.
pub(super) async fn cage(cage: &Cage) -> Vec<Check> {
    let cage = cage.clone();
    match tokio::task::spawn_blocking(move || cage.probe()).await {
        Ok(Ok(security)) => vec![namespaces(&security), layers(&security)],
        Ok(Err(error)) => vec![fail("cage", error.into())],
        Err(error) => vec![fail("cage", Error::internal(error.to_string()))],
    }
}

fn namespaces(security: &Security) -> Check {
    let name = "user namespaces";
    match security.missing.iter().find(|missing| missing.layer == Layer::Namespaces) {
        None => ok(name, "this user may make them".to_owned()),
        Some(missing) => {
            let without = "VMs have no network and run in a weaker sandbox, and images cannot be built";
            let error = Error::unavailable(format!("{}: {without}", missing.why));
            fail(name, error.with_hint(banger_vmm::cage::advice(Layer::Namespaces)))
        }
    }
}

fn layers(security: &Security) -> Check {
    let layers: Vec<&str> = security.layers.iter().map(|layer| layer.as_str()).collect();
    let missing: Vec<String> = security.missing.iter().map(|m| format!("{} ({})", m.layer, m.why)).collect();
    let detail = match missing.as_slice() {
        [] => layers.join(", "),
        missing => format!("{}; missing: {}", layers.join(", "), missing.join("; ")),
    };
    // Control groups limit what a guest takes, not what it reaches.
    match security.missing.iter().find(|m| m.layer != Layer::Cgroup) {
        Some(worst) => warn("cage", detail, banger_vmm::cage::advice(worst.layer)),
        None => ok("cage", detail),
    }
}
