//! `handles.json` in a VM's directory: what must be torn down although nobody remembers it.
//! Written (to the disk, renamed into place) before a thing is acquired where its name is known beforehand, else at
//! once after; the mark in every process's command line covers the moment between. Must never name a process by its
//! pid alone.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use banger_model::Security;
use banger_vmm::MachineHandle;
use banger_vmm::process::ProcessId;
use serde::{Deserialize, Serialize};

/// What a running VM holds on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Handles {
    /// The network's processes.
    pub(crate) network: Vec<ProcessId>,
    /// What holds around them.
    #[serde(default)]
    pub(crate) network_security: BTreeMap<String, Security>,
    /// The control group that all of them are in.
    #[serde(default)]
    pub(crate) group: Option<PathBuf>,
    /// The VMM.
    pub(crate) machine: Option<MachineHandle>,
    /// Whether its vCPUs may stand still by our doing.
    #[serde(default)]
    pub(crate) halted: bool,
    /// Whether its processes stood still when its user paused it.
    #[serde(default)]
    pub(crate) frozen: bool,
}

impl Handles {
    fn path(vm_dir: &Path) -> PathBuf {
        vm_dir.join("handles.json")
    }

    /// Reads them; a VM that holds nothing has no file, and a file that cannot be read says
    /// nothing that the marks in the process table do not say as well.
    pub(crate) fn load(vm_dir: &Path) -> Option<Self> {
        let bytes = std::fs::read(Self::path(vm_dir)).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(handles) => Some(handles),
            Err(error) => {
                tracing::warn!(dir = %vm_dir.display(), %error, "handles.json is unreadable");
                Some(Self::default())
            }
        }
    }

    pub(crate) fn save(&self, vm_dir: &Path) -> io::Result<()> {
        let path = Self::path(vm_dir);
        let next = path.with_extension("json.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(&next, &path)?;
        // The name, too, is on the disk before the thing that it names is made.
        File::open(vm_dir)?.sync_all()
    }

    pub(crate) fn clear(vm_dir: &Path) -> io::Result<()> {
        match std::fs::remove_file(Self::path(vm_dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_survive_and_damaged_ones_still_say_that_there_was_something() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Handles::load(dir.path()), None);
        let handles = Handles {
            network: vec![ProcessId { pid: 7, start_time: 8, boot_id: "b".into() }],
            group: Some("/sys/fs/cgroup/x".into()),
            machine: None,
            halted: true,
            frozen: true,
            ..Handles::default()
        };
        handles.save(dir.path()).unwrap();
        assert_eq!(Handles::load(dir.path()), Some(handles));
        std::fs::write(Handles::path(dir.path()), b"{").unwrap();
        assert_eq!(Handles::load(dir.path()), Some(Handles::default()));
        Handles::clear(dir.path()).unwrap();
        Handles::clear(dir.path()).unwrap();
        assert_eq!(Handles::load(dir.path()), None);
    }
}
