//! Templates: bodies of `/v1/templates…`.

use banger_model::{Accel, DriverKind, ImageName, KernelName, NetworkMode, VmId, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A template: what a new VM goes on from, instead of booting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct TemplateView {
    /// Identity: `@` and the name of one that was saved; of the others, what it was made of, hashed.
    pub id: String,
    /// The name that it was saved by; null for one that was made by itself.
    pub name: Option<VmName>,
    /// The VM that it was saved from; null for one that was made by itself.
    pub saved_from: Option<VmName>,
    /// Image.
    pub image: ImageName,
    /// Kernel.
    pub kernel: KernelName,
    /// Driver.
    pub driver: DriverKind,
    /// Accelerator.
    pub accel: Accel,
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Size of the writable system disk, bytes.
    pub disk_bytes: u64,
    /// Network.
    pub network: NetworkMode,
    /// What it takes on the host's disk, bytes.
    pub size_bytes: u64,
    /// Made, RFC 3339 UTC.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: Timestamp,
    /// Last restored; when it was made, if it never was.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub used_at: Timestamp,
    /// The machines that wait, restored and halted, for VMs that will go on from it: the identities that these will have.
    #[serde(default)]
    pub spares: Vec<VmId>,
}

/// `POST /v1/templates`: keep a running VM as a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SaveTemplate {
    /// The VM.
    pub vm: String,
    /// What the template is called.
    pub name: VmName,
}

/// `POST /v1/templates/prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PruneTemplates {
    /// Those that somebody saved, too.
    pub all: bool,
}

/// What a prune did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PrunedTemplates {
    /// The identities of those that are gone.
    pub deleted: Vec<String>,
    /// What they took on the host's disk, bytes.
    pub freed_bytes: u64,
}
