//! Doctor: what works on this host, what does not, and what to type next. Changes nothing.

use std::path::{Path, PathBuf};

use banger_image::kernel::DEFAULT_KERNEL;
use banger_model::{Bytes, Error, Layer};
use banger_protocol::api::{Check, CheckStatus};
use banger_vmm::kvm::KvmStatus;
use banger_vmm::{Cage, Capabilities, VmmError};

use crate::artifacts::Artifacts;
use crate::config::{Config, Setting};
use crate::startup::Dirs;
use crate::vm::{Vms, capability};

/// Programs that images and disks are made with, and the Debian packages that have them.
const TOOLS: &[(&str, &str, &str)] = &[
    ("mkfs.ext4", "e2fsprogs", "VMs get no disk"),
    ("sqfstar", "squashfs-tools", "images cannot be built or imported"),
    ("mksquashfs", "squashfs-tools", "kernels cannot be taken in"),
    ("mmdebstrap", "mmdebstrap", "images cannot be built"),
    ("git", "git", "repositories cannot be copied in"),
];

/// Runs all checks.
pub(crate) async fn run(
    vms: &Vms,
    artifacts: &Artifacts,
    config: &Config,
    dirs: &Dirs,
    agent: &Path,
) -> Vec<Check> {
    let mut checks = vec![kvm(&vms.kvm().await)];
    for driver in vms.drivers() {
        checks.push(driver_check(driver.kind().as_str(), driver.capabilities().await, config));
    }
    checks.push(cage(vms.cage(), dirs).await);
    checks.push(disk(dirs));
    checks.push(agent_binary(agent));
    checks.push(match artifacts.list_kernels() {
        Ok(kernels) if kernels.iter().any(|k| k.name == config.kernel.value) => {
            ok("kernel", format!("'{}' is here", config.kernel.value))
        }
        Ok(_) if config.kernel.value.as_str() == DEFAULT_KERNEL => warn(
            "kernel",
            format!("'{DEFAULT_KERNEL}' is not here yet: the first run pulls it"),
            format!("banger kernel pull {DEFAULT_KERNEL}"),
        ),
        Ok(_) => fail(
            "kernel",
            Error::not_found(format!("the default kernel '{}' is not here", config.kernel.value))
                .with_hint("banger kernel list --available"),
        ),
        Err(error) => fail("kernel", error),
    });
    checks.push(match artifacts.list_images() {
        Ok(images) if images.iter().any(|i| i.name == config.image.value) => {
            ok("image", format!("'{}' is here", config.image.value))
        }
        Ok(_) => warn(
            "image",
            format!("'{}' is not here yet: the first run builds it", config.image.value),
            "banger image build debian".to_owned(),
        ),
        Err(error) => fail("image", error),
    });
    for check in capability::ALL.iter().filter_map(|c| c.doctor) {
        checks.push(check().await);
    }
    checks.extend(TOOLS.iter().map(|(tool, package, without)| program(tool, package, without)));
    checks
        .push(ok("daemon", format!("pid {}, state in {}", std::process::id(), dirs.state.path().display())));
    checks.push(defaults(config));
    checks
}

/// A check that passed.
pub(crate) fn ok(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Ok, detail, hint: None }
}

fn warn(name: &str, detail: String, hint: String) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Warn, detail, hint: Some(hint) }
}

/// A check that failed.
pub(crate) fn fail(name: &str, error: Error) -> Check {
    Check { name: name.to_owned(), status: CheckStatus::Fail, detail: error.message, hint: error.hint }
}

fn driver_check(name: &str, asked: banger_vmm::Result<Capabilities>, config: &Config) -> Check {
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
        // Nobody has to have it, but who names one wants it.
        Err(error @ VmmError::FirecrackerMissing { .. }) if config.firecracker.value.is_none() => {
            let error = Error::from(error);
            warn(name, format!("{}: VMs run in QEMU", error.message), error.hint.unwrap_or_default())
        }
        Err(error) => fail(name, error.into()),
    }
}

fn kvm(status: &KvmStatus) -> Check {
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

/// Builds a cage as one for a machine monitor, and says which of its layers hold.
async fn cage(cage: Cage, dirs: &Dirs) -> Check {
    let scratch = dirs.state.scratch();
    let probed = tokio::task::spawn_blocking(move || cage.probe(&scratch)).await;
    let security = match probed {
        Ok(Ok(security)) => security,
        Ok(Err(error)) => return fail("cage", error.into()),
        Err(error) => return fail("cage", Error::internal(error.to_string())),
    };
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

fn disk(dirs: &Dirs) -> Check {
    const LITTLE: u64 = 1 << 30;
    const COMFORTABLE: u64 = 8 << 30;
    let path = dirs.state.path();
    let stat = match rustix::fs::statvfs(path) {
        Ok(stat) => stat,
        Err(e) => return fail("disk", Error::unavailable(format!("{}: {e}", path.display()))),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let detail = format!("{} free in {}", Bytes(free), path.display());
    let hint = "free some space, or set BANGER_STATE_DIR to a larger disk";
    if free < LITTLE {
        fail("disk", Error::unavailable(detail).with_hint(hint))
    } else if free < COMFORTABLE {
        warn("disk", detail, hint.to_owned())
    } else {
        ok("disk", detail)
    }
}

fn agent_binary(agent: &Path) -> Check {
    if agent.is_file() {
        ok("agent", agent.display().to_string())
    } else {
        fail(
            "agent",
            Error::unavailable(format!("the guest agent {} is missing", agent.display()))
                .with_hint("install banger again ('make install'): bangerd and banger-agent belong together"),
        )
    }
}

fn program(tool: &str, package: &str, without: &str) -> Check {
    let search = std::env::var_os("PATH").unwrap_or_default();
    // Administrators' tools are often not on an ordinary user's PATH, and are found there all the same.
    let sbin = [PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")];
    match std::env::split_paths(&search).chain(sbin).map(|dir| dir.join(tool)).find(|p| p.is_file()) {
        Some(path) => ok(tool, path.display().to_string()),
        None => fail(
            tool,
            Error::unavailable(format!("{tool} is not installed: {without}"))
                .with_hint(format!("sudo apt-get install {package}")),
        ),
    }
}

fn defaults(config: &Config) -> Check {
    fn line<T: ToString>(name: &str, setting: &Setting<T>) -> String {
        format!("{name} {} ({})", setting.value.to_string(), setting.origin)
    }
    let program = |name: &str, setting: &Setting<Option<PathBuf>>| {
        let path = setting.value.as_ref().map_or_else(|| "from PATH".to_owned(), |p| p.display().to_string());
        format!("{name} {path} ({})", setting.origin)
    };
    let mut parts = vec![
        line("vcpu", &config.vcpu),
        line("memory", &config.memory),
        line("disk", &config.disk),
        line("image", &config.image),
        line("kernel", &config.kernel),
        line("driver", &config.driver),
        line("network", &config.network),
        format!("boot timeout {} s ({})", config.boot_timeout.value.as_secs(), config.boot_timeout.origin),
        program("qemu", &config.qemu),
        program("firecracker", &config.firecracker),
        format!("warm start {} ({})", if config.warm.value { "on" } else { "off" }, config.warm.origin),
        line("template budget", &config.warm_budget),
        line("spares", &config.warm_spares),
    ];
    parts.extend(
        config.image_drivers.iter().map(|(image, driver)| format!("driver of '{image}' {driver} (config)")),
    );
    if let Some(file) = &config.file {
        parts.push(format!("config file {}", file.display()));
    }
    if let Some(file) = &config.absent {
        parts.push(format!("BANGER_CONFIG names {}, which is not there", file.display()));
        let hint = "correct BANGER_CONFIG or write that file, then 'banger daemon stop'; the next command starts a daemon with it";
        return warn("defaults", parts.join(", "), hint.to_owned());
    }
    ok("defaults", parts.join(", "))
}
