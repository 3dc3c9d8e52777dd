//! What to type so that a layer that does not hold does.

use banger_model::Layer;

/// What to do about a layer that this host does not give.
#[must_use]
pub fn advice(layer: Layer) -> String {
    match layer {
        Layer::Namespaces | Layer::Network | Layer::Root => banger_host::user_namespaces::why_denied().hint,
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
