//! Images and kernels: bodies of `/v1/images…` and `/v1/kernels…`.

use banger_model::{ByteString, ImageName, KernelName};
use serde::{Deserialize, Serialize};

/// `POST /v1/images/build`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct BuildImage {
    /// The distribution: `debian`.
    pub distro: String,
    /// The image's name; the distribution's when absent.
    #[serde(default)]
    pub name: Option<ImageName>,
    /// The release, such as `bookworm`.
    #[serde(default)]
    pub release: Option<String>,
    /// Packages besides the default ones.
    #[serde(default)]
    pub include: Vec<String>,
    /// Leave out the default development packages: only systemd and what it needs.
    #[serde(default)]
    pub minimal: bool,
}

/// `POST /v1/images/import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Its name.
    pub name: ImageName,
    /// An absolute path: a directory, a tar archive (plain, gzip, zstd or xz) or a squashfs file.
    pub path: ByteString,
}

/// `POST /v1/kernels/pull`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PullKernel {
    /// A name from the catalog, such as `debian-cloud`.
    pub name: KernelName,
    /// Pull again although it is there.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/kernels/import`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportKernel {
    /// Its name.
    pub name: KernelName,
    /// An absolute path: a directory that holds a kernel (`vmlinuz*`, `bzImage` or `vmlinux*`,
    /// also below `boot/`) and, when it has modules, `lib/modules/<release>`.
    pub path: ByteString,
}

/// A kernel that can be pulled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AvailableKernel {
    /// Its name.
    pub name: KernelName,
    /// What it is.
    pub description: String,
    /// Whether it is here already.
    pub present: bool,
}
