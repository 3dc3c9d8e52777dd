//! What to type so that a layer that does not hold does.

use std::fs;

use banger_model::Layer;

/// What to do about a layer that this host does not give.
#[must_use]
pub fn advice(layer: Layer) -> String {
    match layer {
        Layer::Namespaces | Layer::Network | Layer::Root => namespaces(),
        Layer::Landlock => {
            "boot a kernel with landlock: 5.13 or newer, CONFIG_SECURITY_LANDLOCK, and 'landlock' in the \
                            kernel argument lsm="
                .to_owned()
        }
        Layer::Seccomp => "boot a kernel with CONFIG_SECCOMP_FILTER".to_owned(),
        Layer::Cgroup => {
            // A unit's group is its own; a terminal's is shared with the shell. VMs outlive the daemon.
            "run the daemon in a group of its own: 'banger daemon stop; systemd-run --user -p Delegate=yes -p KillMode=process bangerd'"
                .to_owned()
        }
        Layer::Session
        | Layer::Descriptors
        | Layer::Environment
        | Layer::NoNewPrivs
        | Layer::Capabilities
        | Layer::Limits => "this should hold everywhere: please report it".to_owned(),
    }
}

/// Which of the switches that deny user namespaces is set.
fn namespaces() -> String {
    let is = |name: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{name}")).is_ok_and(|text| text.trim() == value)
    };
    let command = if is("user/max_user_namespaces", "0") {
        "sudo sysctl user.max_user_namespaces=15000"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "sudo sysctl kernel.unprivileged_userns_clone=1"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        "allow user namespaces where banger runs; a container's own filter often denies them"
    };
    command.to_owned()
}
