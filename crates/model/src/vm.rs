//! A VM: the durable record, and the view of it that users and scripts get.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::machine::words;
use crate::{
    Accel, ByteString, Bytes, DriverKind, ErrorCode, GuestPath, ImageName, KernelName, MachineShape,
    NetworkMode, Security, Sha256, VmId, VmName,
};

words! {
    /// The states a VM can be seen in.
    VmState ("a VM state") {
        /// It was made and never started.
        Created = "created",
        /// A start is under way.
        Starting = "starting",
        /// Its VMM lives and its agent answered.
        Running = "running",
        /// Its vCPUs are halted; memory is kept.
        Paused = "paused",
        /// A stop is under way.
        Stopping = "stopping",
        /// It ran and is off.
        Stopped = "stopped",
        /// It ended in a way nobody asked for; `last_error` says how.
        Error = "error",
    }
}

words! {
    /// What was begun with a VM and is not done: whoever finds it without anybody at work on it finishes it by
    /// removing the VM.
    Unfinished ("an unfinished change of a VM") {
        /// It is being made, all or nothing.
        Creating = "creating",
        /// It is being deleted; there is no way back.
        Deleting = "deleting",
        /// It is booted only to become a template; nobody sees it.
        Template = "template",
        /// It waits to become somebody's; nobody sees it.
        Spare = "spare",
    }
}

impl Unfinished {
    /// Whether it is the daemon's own, which no user ever asked for.
    #[must_use]
    pub fn is_hidden(self) -> bool {
        matches!(self, Self::Template | Self::Spare)
    }
}

words! {
    /// What was begun with a workspace.
    Copying ("an unfinished copy of a workspace") {
        /// It is copied in for the first time.
        Anew = "anew",
        /// It is brought up to date.
        Update = "update",
    }
}

words! {
    /// How a workspace is copied in.
    WorkspaceMode ("a workspace mode") {
        /// Recent history, and the working tree with its changes.
        ShallowOverlay = "shallow_overlay",
        /// Everything, with submodules.
        FullCopy = "full_copy",
        /// The repository without files.
        MetadataOnly = "metadata_only",
    }
}

words! {
    /// Whether a boot ran the kernel from its first instruction or restored a snapshot.
    BootKind ("a kind of boot") {
        /// From the first instruction.
        Cold = "cold",
        /// From a snapshot.
        Warm = "warm",
    }
}

/// The repository in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Workspace {
    /// Where it is in the guest.
    pub guest_path: GuestPath,
    /// The repository's top directory on the host.
    pub source_path: ByteString,
    /// The commit that `workspace export` diffs against.
    pub base_commit: String,
    /// The branch checked out in the guest, if any.
    pub branch: Option<String>,
    /// How it was copied in.
    pub mode: WorkspaceMode,
    /// When.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub prepared_at: Timestamp,
    /// Whether it is mounted read-only in the guest.
    #[serde(default)]
    pub readonly: bool,
    /// What was begun with it and is not known to be done; users see none that is not whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schema(ignore))]
    pub unfinished: Option<Copying>,
}

/// How the last start went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Boot {
    /// Cold or warm.
    pub kind: BootKind,
    /// Milliseconds from the start request to the agent's first answer.
    pub ready_ms: u64,
}

/// Why a VM is in `error`, or what its last failed start said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct LastError {
    /// The stable code.
    pub code: ErrorCode,
    /// One sentence.
    pub message: String,
}

/// The VM that another one was forked from, as it was called then; it may be gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Parent {
    /// Its identity.
    pub id: VmId,
    /// Its name at that moment.
    pub name: VmName,
}

/// The durable record: intent and identity, nothing that is only true right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// Identity.
    pub id: VmId,
    /// Name, unique.
    pub name: VmName,
    /// The state last reached or aimed at; what is true right now is asked of the OS.
    pub state: VmState,
    /// Which driver it has; it keeps it.
    pub driver: DriverKind,
    /// The accelerator of the last start.
    pub accel: Option<Accel>,
    /// The image's name when the VM was made.
    pub image: ImageName,
    /// The image's digest: what it boots from even when the name moves on.
    pub image_digest: Sha256,
    /// The kernel's name.
    pub kernel: KernelName,
    /// Size.
    pub shape: MachineShape,
    /// Size of the disk that is mounted on the user's home and survives a rebuild.
    pub work_disk: Option<Bytes>,
    /// Which system disk it has: 0 at first, one more with each rebuild. The disk's file has it in its name, so that
    /// a rebuild changes image and disk in one commit.
    pub system_generation: u32,
    /// Which work disk it has: one more with each snapshot that is restored.
    pub work_generation: u32,
    /// What it was forked from.
    pub parent: Option<Parent>,
    /// Network.
    pub network: NetworkMode,
    /// Whether the guest may reach the host's own services.
    pub host_access: bool,
    /// Deleted when the run that made it ends.
    pub ephemeral: bool,
    /// What was begun with it and is not done.
    pub unfinished: Option<Unfinished>,
    /// The repository in it.
    pub workspace: Option<Workspace>,
    /// Made.
    pub created_at: Timestamp,
    /// Last started.
    pub started_at: Option<Timestamp>,
    /// How the last start went.
    pub boot: Option<Boot>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
}

impl Vm {
    /// Whether it is the daemon's own, which no user ever asked for.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.unfinished.is_some_and(Unfinished::is_hidden)
    }

    /// The workspace, if there is one and it is whole: one that is brought up to date is so before and after.
    #[must_use]
    pub fn whole_workspace(&self) -> Option<&Workspace> {
        self.workspace.as_ref().filter(|workspace| workspace.unfinished != Some(Copying::Anew))
    }
}

/// The network of a VM as users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct NetworkView {
    /// Mode.
    pub mode: NetworkMode,
    /// The guest's own address, where it has one.
    pub guest_ip: Option<String>,
    /// Whether the helper masquerades for it (bridge mode).
    pub nat: bool,
    /// Whether the guest may reach the host's own services.
    pub host_access: bool,
    /// What confines each program of its network on the host, while it runs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub security: BTreeMap<String, Security>,
}

/// One VM as `show` and `list` print it (CLI.md, "JSON of one VM").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VmView {
    /// Identity.
    pub id: VmId,
    /// Name.
    pub name: VmName,
    /// State.
    pub state: VmState,
    /// Driver.
    pub driver: DriverKind,
    /// Accelerator of the current or last run.
    pub accel: Option<Accel>,
    /// Image name.
    pub image: ImageName,
    /// Kernel name.
    pub kernel: KernelName,
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Size of the writable system disk, bytes.
    pub disk_bytes: u64,
    /// Size of the disk on the user's home, bytes; null when it has none.
    #[serde(default)]
    pub work_disk_bytes: Option<u64>,
    /// Network.
    pub network: NetworkView,
    /// The repository in it.
    pub workspace: Option<Workspace>,
    /// The VMM's process id while it lives.
    pub pid: Option<u32>,
    /// What confines the VMM while it lives.
    #[serde(default)]
    pub security: Option<Security>,
    /// Made, RFC 3339 UTC.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// Last started.
    #[cfg_attr(feature = "schema", schema(value_type = Option<String>, format = DateTime))]
    pub started_at: Option<Timestamp>,
    /// How the last start went.
    pub boot: Option<Boot>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
    /// What it was forked from; null for one that was not.
    #[serde(default)]
    pub parent: Option<Parent>,
}
