//! Where things live. Only names are made here; whoever uses a directory creates and checks it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Error, Result, VmId};

/// `sun_path` holds 108 bytes (unix(7)); the longest name we bind below the runtime directory is
/// `vms/<12>/agent.sock`, so the directory itself must leave room for it.
const RUNTIME_DIR_MAX: usize = 108 - "/vms/000000000000/agent.sock".len() - 1;

/// The durable directory: database, VMs, images, kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir(PathBuf);

/// The directory of sockets and locks: mode 0700, short, gone after a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

/// The state directory: `BANGER_STATE_DIR`, else `$XDG_STATE_HOME/banger`, else `~/.local/state/banger`.
///
/// # Errors
/// `invalid_argument` when a variable holds a relative path; `unavailable` when there is no home.
pub fn state_dir_from(env: impl Fn(&str) -> Option<OsString>) -> Result<StateDir> {
    if let Some(dir) = absolute(&env, "BANGER_STATE_DIR")? {
        return Ok(StateDir(dir));
    }
    if let Some(dir) = absolute(&env, "XDG_STATE_HOME")? {
        return Ok(StateDir(dir.join("banger")));
    }
    match absolute(&env, "HOME")? {
        Some(home) => Ok(StateDir(home.join(".local/state/banger"))),
        None => Err(Error::unavailable("there is no home directory for banger's state")
            .with_hint("set BANGER_STATE_DIR to an absolute path")),
    }
}

/// Where the runtime directory may be, best first: `BANGER_RUNTIME_DIR` alone when it is set,
/// else below `$XDG_RUNTIME_DIR`, `/run/user/<uid>`, and at last `/tmp/banger-<uid>`. The first
/// whose parent exists is the one.
///
/// # Errors
/// `invalid_argument` for a relative path, or one too long to hold sockets.
pub fn runtime_dir_candidates(env: impl Fn(&str) -> Option<OsString>, uid: u32) -> Result<Vec<RuntimeDir>> {
    if let Some(dir) = absolute(&env, "BANGER_RUNTIME_DIR")? {
        if dir.as_os_str().len() > RUNTIME_DIR_MAX {
            return Err(Error::invalid(format!(
                "BANGER_RUNTIME_DIR is {} bytes long; sockets below it fit only when it has at most {RUNTIME_DIR_MAX}",
                dir.as_os_str().len()
            ))
            .with_hint("choose a shorter path, such as one in /run or /tmp"));
        }
        return Ok(vec![RuntimeDir(dir)]);
    }
    let mut all = Vec::new();
    if let Some(dir) = absolute(&env, "XDG_RUNTIME_DIR")?
        && dir.as_os_str().len() + "/banger".len() <= RUNTIME_DIR_MAX
    {
        all.push(RuntimeDir(dir.join("banger")));
    }
    all.push(RuntimeDir(PathBuf::from(format!("/run/user/{uid}/banger"))));
    all.push(RuntimeDir(PathBuf::from(format!("/tmp/banger-{uid}"))));
    Ok(all)
}

fn absolute(env: &impl Fn(&str) -> Option<OsString>, key: &str) -> Result<Option<PathBuf>> {
    match env(key).filter(|v| !v.is_empty()).map(PathBuf::from) {
        Some(path) if !path.is_absolute() => {
            Err(Error::invalid(format!("{key} is not an absolute path: {}", path.display()))
                .with_hint(format!("write it from '/' on, such as {key}=\"$PWD/{}\"", path.display())))
        }
        other => Ok(other),
    }
}

impl StateDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The SQLite database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.0.join("banger.db")
    }
    /// The daemon's log: JSON, a line an event.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.0.join("bangerd.log")
    }
    /// The lock that makes the daemon one per state directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("bangerd.lock")
    }
    /// Everything durable that belongs to one VM.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> PathBuf {
        self.vms().join(id.as_str())
    }
    /// The parent of all VM directories.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }
    /// Content-addressed root file systems.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }
    /// Kernels with their modules and initramfs.
    #[must_use]
    pub fn kernels(&self) -> PathBuf {
        self.0.join("kernels")
    }
    /// Snapshots that new VMs go on from.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.0.join("templates")
    }
    /// Scratch space on the same file system as everything above; emptied at daemon start.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.0.join("tmp")
    }
}

impl RuntimeDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
    /// The daemon's API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("bangerd.sock")
    }
    /// The lock that makes the daemon one per runtime directory.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.0.join("bangerd.lock")
    }
    /// The sockets of one VM.
    #[must_use]
    pub fn vm(&self, id: &VmId) -> PathBuf {
        self.vms().join(id.as_str())
    }
    /// What a VM's network reads of the host's: a copy of its resolv.conf(5).
    #[must_use]
    pub fn vm_network(&self, id: &VmId) -> PathBuf {
        self.vm(id).join("net")
    }
    /// The parent of all VMs' socket directories.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.0.join("vms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        move |key| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| OsString::from(v))
    }

    #[test]
    fn our_own_variables_win_over_xdg_and_home() {
        let home = ("HOME", "/home/me");
        let xdg = ("XDG_STATE_HOME", "/xdg");
        assert_eq!(state_dir_from(env(&[home])).unwrap().path(), Path::new("/home/me/.local/state/banger"));
        assert_eq!(state_dir_from(env(&[home, xdg])).unwrap().path(), Path::new("/xdg/banger"));
        assert_eq!(
            state_dir_from(env(&[home, xdg, ("BANGER_STATE_DIR", "/s")])).unwrap().path(),
            Path::new("/s")
        );
        assert!(state_dir_from(env(&[("BANGER_STATE_DIR", "s")])).is_err());
        assert!(state_dir_from(env(&[])).is_err());
    }

    #[test]
    fn a_runtime_directory_too_long_for_sockets_is_refused_before_anything_is_bound() {
        let long = format!("/{}", "r".repeat(RUNTIME_DIR_MAX));
        assert!(runtime_dir_candidates(env(&[("BANGER_RUNTIME_DIR", &long)]), 0).is_err());
        let fits = &long[..RUNTIME_DIR_MAX];
        let dir = runtime_dir_candidates(env(&[("BANGER_RUNTIME_DIR", fits)]), 0).unwrap().remove(0);
        let deepest = dir.vm(&VmId::from_random([0; 6])).join("agent.sock");
        assert!(deepest.as_os_str().len() < 108);
    }
}
