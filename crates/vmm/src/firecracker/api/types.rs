//! The calls and answers that we use, as Firecracker's API description has them. Paths are relative
//! to the VMM's working directory, so that a snapshot finds its files in another one.

use std::path::Path;
use std::time::Duration;

use hyper::Method;
use serde::{Deserialize, Serialize};

use super::{ANSWER, MEMORY};

/// A call that changes something and returns nothing.
pub(crate) trait Call: Serialize + Sync {
    fn path(&self) -> String;

    fn method(&self) -> Method {
        Method::PUT
    }

    fn limit(&self) -> Duration {
        ANSWER
    }
}

macro_rules! calls {
    ($($type:ty => $path:literal;)*) => {
        $(impl Call for $type {
            fn path(&self) -> String {
                $path.to_owned()
            }
        })*
    };
}

calls! {
    MachineConfig => "/machine-config";
    BootSource<'_> => "/boot-source";
    Vsock<'_> => "/vsock";
    Entropy => "/entropy";
    Balloon => "/balloon";
    Action => "/actions";
}

#[derive(Debug, Serialize)]
pub(crate) struct MachineConfig {
    pub(crate) vcpu_count: u32,
    pub(crate) mem_size_mib: u32,
}

#[derive(Debug, Serialize)]
pub(crate) struct BootSource<'a> {
    pub(crate) kernel_image_path: &'a str,
    pub(crate) initrd_path: &'a str,
    pub(crate) boot_args: &'a str,
}

#[derive(Debug, Serialize)]
pub(crate) struct Drive<'a> {
    pub(crate) drive_id: &'a str,
    pub(crate) path_on_host: &'a str,
    pub(crate) is_root_device: bool,
    pub(crate) is_read_only: bool,
    pub(crate) cache_type: CacheType,
}

#[derive(Debug, Serialize)]
pub(crate) enum CacheType {
    /// The guest's flushes reach the host's disk.
    Writeback,
}

impl Call for Drive<'_> {
    fn path(&self) -> String {
        format!("/drives/{}", self.drive_id)
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Vsock<'a> {
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: &'a str,
}

/// The random number device, with its defaults.
#[derive(Debug, Serialize)]
pub(crate) struct Entropy {}

/// Memory that the guest gives back.
#[derive(Debug, Serialize)]
pub(crate) struct Balloon {
    pub(crate) amount_mib: u32,
    pub(crate) deflate_on_oom: bool,
    pub(crate) free_page_reporting: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct NetworkInterface<'a> {
    pub(crate) iface_id: &'a str,
    pub(crate) guest_mac: &'a str,
    pub(crate) host_dev_name: &'a str,
}

impl Call for NetworkInterface<'_> {
    fn path(&self) -> String {
        format!("/network-interfaces/{}", self.iface_id)
    }
}

#[derive(Debug, Serialize)]
#[serde(tag = "action_type")]
pub(crate) enum Action {
    InstanceStart,
}

/// Halts the vCPUs or lets them run.
#[derive(Debug, Serialize)]
#[serde(tag = "state")]
pub(crate) enum ChangeState {
    Paused,
    Resumed,
}

impl Call for ChangeState {
    fn path(&self) -> String {
        "/vm".to_owned()
    }

    fn method(&self) -> Method {
        Method::PATCH
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct CreateSnapshot<'a> {
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: &'a Path,
    pub(crate) mem_file_path: &'a Path,
}

#[derive(Debug, Serialize)]
pub(crate) enum SnapshotType {
    /// All of the memory.
    Full,
    /// The pages that are in core (mincore(2)), written above what the file has: dirty pages are not tracked.
    Diff,
}

impl Call for CreateSnapshot<'_> {
    fn path(&self) -> String {
        "/snapshot/create".to_owned()
    }

    fn limit(&self) -> Duration {
        MEMORY
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct LoadSnapshot<'a> {
    pub(crate) snapshot_path: &'a Path,
    pub(crate) mem_backend: MemoryBackend<'a>,
    pub(crate) resume_vm: bool,
}

/// The memory file is mapped privately: it is never written to.
#[derive(Debug, Serialize)]
#[serde(tag = "backend_type")]
pub(crate) enum MemoryBackend<'a> {
    File { backend_path: &'a Path },
}

impl Call for LoadSnapshot<'_> {
    fn path(&self) -> String {
        "/snapshot/load".to_owned()
    }

    fn limit(&self) -> Duration {
        MEMORY
    }
}

/// What the machine says it does.
#[derive(Debug, Deserialize)]
pub(crate) struct Instance {
    pub(crate) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum State {
    #[serde(rename = "Not started")]
    NotStarted,
    Running,
    Paused,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VersionAnswer {
    pub(crate) firecracker_version: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Fault {
    pub(crate) fault_message: String,
}
