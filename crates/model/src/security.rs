//! What confines a VM's machine monitor on the host: the layers of its cage, and which are missing.

use serde::{Deserialize, Serialize};

use crate::machine::words;

words! {
    /// One layer of the cage around a machine monitor. Each holds by itself.
    Layer ("a layer of the cage") {
        /// A session of its own: no terminal to reach back to.
        Session = "session",
        /// No open descriptor but those it was given.
        Descriptors = "descriptors",
        /// No environment.
        Environment = "environment",
        /// No privileges to be gained from any program, ever.
        NoNewPrivs = "no_new_privs",
        /// No capability, and none to be had.
        Capabilities = "capabilities",
        /// Limits on what it may take: no core dumps, few descriptors.
        Limits = "rlimits",
        /// User, mount, process, IPC and host-name namespaces of its own.
        Namespaces = "namespaces",
        /// A network namespace of its own, with nothing in it.
        Network = "network",
        /// A root directory with what it needs and nothing else, read-only but for its own disks.
        Root = "root",
        /// Landlock: the same files, also where namespaces are denied; no TCP, no signals to others.
        Landlock = "landlock",
        /// No system calls that a machine monitor has no use for.
        Seccomp = "seccomp",
        /// A control group with limits on memory and processes.
        Cgroup = "cgroup",
    }
}

/// A layer that this host does not give.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MissingLayer {
    /// Which.
    pub layer: Layer,
    /// Why, in a few words.
    pub why: String,
}

/// What holds around one process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Security {
    /// The layers that hold.
    pub layers: Vec<Layer>,
    /// Those that do not.
    pub missing: Vec<MissingLayer>,
}

impl Security {
    /// Whether a layer holds.
    #[must_use]
    pub fn has(&self, layer: Layer) -> bool {
        self.layers.contains(&layer)
    }
}
