//! VMs: bodies of `/v1/vms…`.

use banger_model::{
    Accel, ByteString, Bytes, DriverChoice, GuestPath, ImageName, KernelName, Mib, NetworkMode, VmName,
    VmView, WorkspaceMode,
};
use serde::{Deserialize, Serialize};

use super::ErrorBody;
use crate::agent::TermSize;

/// `POST /v1/vms`: make a VM, and unless told otherwise start it and copy a repository in. All or
/// nothing: when any part fails, no VM is left.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateVm {
    /// Name; generated when absent.
    pub name: Option<VmName>,
    /// Image; the default image when absent (built when it is not there).
    pub image: Option<ImageName>,
    /// Kernel; the default kernel when absent (pulled when it is not there).
    pub kernel: Option<KernelName>,
    /// Driver; `auto` when absent.
    pub driver: Option<DriverChoice>,
    /// Accelerator; the best that works when absent.
    pub accel: Option<Accel>,
    /// Virtual CPUs.
    pub vcpu: Option<u32>,
    /// Memory, MiB.
    pub memory: Option<Mib>,
    /// Size of the writable system disk, bytes.
    pub disk_size: Option<Bytes>,
    /// Size of a second disk on the user's home, which survives a rebuild; none when absent.
    pub work_disk: Option<Bytes>,
    /// Network; `user` when absent.
    pub network: Option<NetworkMode>,
    /// Masquerade for it (bridge mode only).
    pub nat: bool,
    /// Let the guest reach the host's own services.
    pub host_access: bool,
    /// Make it, but do not start it.
    pub no_start: bool,
    /// The VM belongs to this connection: the daemon keeps the event stream open after `result`,
    /// and deletes the VM when the client closes it.
    pub rm: bool,
    /// A repository to copy in once it runs.
    pub workspace: Option<PrepareRequest>,
    /// Never restore a template.
    pub cold: bool,
    /// Restore this template, which somebody saved; it says what image, kernel and size the VM has.
    pub template: Option<VmName>,
}

/// The result of [`CreateVm`] and of a start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct CreatedVm {
    /// The VM.
    #[serde(flatten)]
    pub vm: VmView,
    /// How long each step took.
    pub timings: Vec<Timing>,
}

/// How long one step took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Timing {
    /// The step's name.
    pub step: String,
    /// Milliseconds.
    pub ms: f64,
}

/// `POST /v1/vms/{vm}/stop` and `/restart`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopVm {
    /// How long the guest has to power off, milliseconds; 10 000 when absent. Its disks are
    /// flushed before it is ended.
    pub timeout_ms: Option<u64>,
}

/// `POST /v1/vms/{vm}/set`: another size for a VM that is off. What is absent stays; disks only grow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SetVm {
    /// Virtual CPUs.
    pub vcpu: Option<u32>,
    /// Memory, MiB.
    pub memory: Option<Mib>,
    /// Size of the writable system disk, bytes.
    pub disk_size: Option<Bytes>,
    /// Size of the disk on the user's home, bytes; one that is not there yet is made, and gets what is in the home.
    pub work_disk: Option<Bytes>,
    /// Another driver, for the same disks.
    pub driver: Option<DriverChoice>,
}

/// `POST /v1/vms/{vm}/rebuild`: a new system disk for a VM that is off. Its work disk stays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RebuildVm {
    /// The image; what the name of the present one means now when absent.
    pub image: Option<ImageName>,
    /// Rebuild it although it has no work disk and everything in it is lost.
    pub force: bool,
}

/// `POST /v1/vms/{vm}/fork`: VMs that go on from where this one is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ForkVm {
    /// The child's name, with `-1`, `-2`, … behind it when there are several; generated when absent.
    pub name: Option<VmName>,
    /// How many children; 1 when absent.
    pub count: Option<u32>,
}

/// The result of [`ForkVm`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ForkedVm {
    /// The children that run.
    pub vms: Vec<VmView>,
    /// Why others do not; nothing is left of them.
    pub failed: Vec<ErrorBody>,
    /// How long the parent's processes stood still, milliseconds.
    pub paused_ms: f64,
}

/// `POST /v1/vms/{vm}/snapshots`: keep a VM's present moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Its name, unique for the VM.
    pub name: VmName,
    /// The disks alone, although it runs.
    #[serde(default)]
    pub disk_only: bool,
}

/// What a snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// Memory, processes and disks: the VM runs after a restore.
    Full,
    /// Its disks: the VM is off after a restore.
    Disks,
}

/// A snapshot of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct SnapshotView {
    /// Its name.
    pub name: VmName,
    /// What it is of.
    pub kind: SnapshotKind,
    /// When it was taken.
    #[cfg_attr(feature = "schema", schema(value_type = String, format = DateTime))]
    pub created_at: jiff::Timestamp,
    /// What it takes on the host's disk, bytes.
    pub bytes: u64,
}

/// `POST /v1/vms/{vm}/kill`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct KillVm {
    /// The signal for the VMM, such as `TERM`; `KILL` when absent.
    pub signal: Option<String>,
}

/// `POST /v1/vms/{vm}/exec`, upgraded to the [`crate::exec`] stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments; empty: the user's login shell.
    pub argv: Vec<ByteString>,
    /// Environment, added to the guest's base environment.
    pub env: Vec<(ByteString, ByteString)>,
    /// Working directory; the workspace when the VM has one, else the user's home.
    pub workdir: Option<ByteString>,
    /// User name or id; root when absent.
    pub user: Option<String>,
    /// A terminal of this size.
    pub tty: Option<TermSize>,
    /// Whether stdin frames will come.
    pub stdin: bool,
    /// End the command after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// `POST /v1/vms/{vm}/workspace/prepare`, and `POST /v1/workspace/plan` for a dry run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PrepareRequest {
    /// An absolute path in a git repository on the host.
    pub path: ByteString,
    /// How; `shallow_overlay` when absent.
    #[serde(default)]
    pub mode: Option<WorkspaceMode>,
    /// Where to; `/root/repo` when absent.
    #[serde(default)]
    pub guest_path: Option<GuestPath>,
    /// Check out a new branch of this name in the guest.
    #[serde(default)]
    pub branch: Option<String>,
    /// Where that branch begins; HEAD when absent.
    #[serde(default)]
    pub from: Option<String>,
    /// Copy untracked files too (never ignored ones).
    #[serde(default)]
    pub include_untracked: bool,
    /// Mount the copy read-only.
    #[serde(default)]
    pub readonly: bool,
}

/// What a prepare would copy, and what one did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct PreparePlan {
    /// The repository's top directory.
    pub source_path: ByteString,
    /// Where it goes.
    pub guest_path: GuestPath,
    /// How.
    pub mode: WorkspaceMode,
    /// The recorded base.
    pub base_commit: String,
    /// The branch in the guest.
    pub branch: Option<String>,
    /// Commits of history that go along.
    pub depth: u32,
    /// Working-tree files, in order.
    pub files: Vec<ByteString>,
    /// Their bytes.
    pub bytes: u64,
    /// Untracked files that stay behind.
    pub skipped_untracked: u64,
}

/// What a prepare did: the whole workspace, and what of it was sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Prepared {
    /// The workspace as it is in the guest.
    #[serde(flatten)]
    pub plan: PreparePlan,
    /// Whether a copy that was there was brought up to date.
    pub updated: bool,
    /// Files that were sent.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Files that were removed in the guest.
    pub removed: u64,
}

/// `POST /v1/vms/{vm}/workspace/export`, answered by [`super::EXPORT`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExportRequest {
    /// Diff against this revision of the host repository instead of the recorded base.
    pub base: Option<String>,
    /// The workspace's path in the guest, when it is not the recorded one.
    pub guest_path: Option<GuestPath>,
    /// The most bytes of changed contents; 1 GiB when absent.
    pub max_bytes: Option<u64>,
}

/// What an export found (CLI.md, `workspace export --json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ExportSummary {
    /// The commit the patch applies to.
    pub base_commit: String,
    /// Whether there is anything.
    pub has_changes: bool,
    /// Each changed path.
    pub files: Vec<FileChange>,
    /// Length of the patch.
    pub patch_bytes: u64,
    /// Changed files for which the host's repository has a filter program (Git LFS): the patch has
    /// what is in the guest's files. Filters run when the host's user runs `git add`.
    #[serde(default)]
    pub unfiltered: Vec<ByteString>,
    /// Repositories that the guest made within the workspace. They stay behind, as for `git add`.
    #[serde(default)]
    pub skipped_repositories: u64,
    /// The first few of them.
    #[serde(default)]
    pub skipped_paths: Vec<ByteString>,
}

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct FileChange {
    /// The path, relative to the repository.
    pub path: ByteString,
    /// What happened to it.
    pub change: ChangeKind,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// New.
    Added,
    /// Other content.
    Modified,
    /// Gone.
    Deleted,
    /// A file became a link or the reverse.
    Typechange,
    /// Only the executable bit.
    Mode,
}

/// `POST /v1/vms/{vm}/workspace/apply`: the guest's change to the host's repository.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ApplyRequest {
    /// Diff against this revision of the host repository instead of the recorded base.
    pub base: Option<String>,
    /// The workspace's path in the guest, when it is not the recorded one.
    pub guest_path: Option<GuestPath>,
    /// The most bytes of changed contents; 1 GiB when absent.
    pub max_bytes: Option<u64>,
    /// Merge files that changed on both sides, with conflict markers where they must be.
    pub three_way: bool,
    /// Make a commit on a new branch of this name, and leave the working tree alone.
    pub branch: Option<String>,
    /// Bring the guest's commits to the branch instead of one commit of everything.
    pub commits: bool,
    /// Say what would be done.
    pub dry_run: bool,
}

/// What an apply did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ApplySummary {
    /// The host repository's top directory.
    pub target: ByteString,
    /// The commit the change was compared with.
    pub base_commit: String,
    /// Whether there was anything.
    pub has_changes: bool,
    /// Each path of the change.
    pub files: Vec<AppliedFile>,
    /// How many files have conflict markers now.
    pub conflicts: u64,
    /// The ref that keeps what was replaced in the working tree.
    pub backup: Option<String>,
    /// The new branch.
    pub branch: Option<String>,
    /// Its new commits, oldest first.
    pub commits: Vec<AppliedCommit>,
    /// With `commits`: files that the guest changed and did not commit. They stay behind.
    pub uncommitted: u64,
    /// Whether nothing was written.
    pub dry_run: bool,
    /// As in [`ExportSummary`].
    pub unfiltered: Vec<ByteString>,
    /// As in [`ExportSummary`].
    pub skipped_repositories: u64,
    /// As in [`ExportSummary`].
    pub skipped_paths: Vec<ByteString>,
}

/// One path of a change, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AppliedFile {
    /// The path, relative to the repository.
    pub path: ByteString,
    /// What the guest did to it.
    pub change: ChangeKind,
    /// What was done to the host's.
    pub outcome: Outcome,
}

/// What was done to a path of the host's working tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is as in the guest now.
    Applied,
    /// Nothing was done: it was so already, or only the host has changed it since both sides were the same.
    Unchanged,
    /// Both sides' changes are in it.
    Merged,
    /// Both sides' changes are in it, with conflict markers.
    Conflict,
    /// It is on the branch; the working tree was not touched.
    Committed,
}

/// A commit that was brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AppliedCommit {
    /// Its id.
    pub id: String,
    /// The first line of its message.
    pub subject: ByteString,
}
