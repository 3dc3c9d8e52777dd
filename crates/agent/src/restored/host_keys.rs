//! A restored guest's ssh host keys, made by the image's own tools: two machines with one key are one to whoever connects.
//! Must never leave a guest without keys that had some, and never touch those that the user put elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const DIR: &str = "etc/ssh";
const PROGRAM: &str = "usr/bin/ssh-keygen";
const SERVER_PID: &[&str] = &["run/sshd.pid", "var/run/sshd.pid"];
/// The quick ones first.
const KINDS: &[KeyKind] = &[KeyKind("ed25519"), KeyKind("ecdsa"), KeyKind("rsa")];

/// A kind of key, as ssh-keygen(1) calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyKind(&'static str);

impl KeyKind {
    fn path(self, root: &Path) -> PathBuf {
        root.join(DIR).join(format!("ssh_host_{}_key", self.0))
    }
}

/// Removes the keys below `root`, if others can be made there; the kinds that there were.
pub(super) fn remove(root: &Path) -> Vec<KeyKind> {
    let kinds = found(root);
    for kind in &kinds {
        let private = kind.path(root);
        let _ = fs::remove_file(&private);
        let _ = fs::remove_file(private.with_extension("pub"));
    }
    kinds
}

/// The kinds that can be made anew.
pub(super) fn found(root: &Path) -> Vec<KeyKind> {
    let kinds: Vec<KeyKind> = KINDS.iter().copied().filter(|kind| kind.path(root).is_file()).collect();
    if kinds.is_empty() || !root.join(PROGRAM).is_file() { Vec::new() } else { kinds }
}

/// Makes keys of these kinds, and tells a server that runs.
pub(super) fn generate(root: &Path, kinds: &[KeyKind], hostname: &str, log: &impl Fn(&str)) {
    for kind in kinds {
        let made = Command::new(root.join(PROGRAM))
            .args(["-q", "-N", "", "-t", kind.0, "-C", &format!("root@{hostname}"), "-f"])
            .arg(kind.path(root))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        match made {
            Ok(status) if status.success() => {}
            Ok(status) => log(&format!("the ssh host key ({}) could not be made: {status}", kind.0)),
            Err(error) => log(&format!("the ssh host key ({}) could not be made: {error}", kind.0)),
        }
    }
    if !kinds.is_empty()
        && let Some(pid) = server(root)
    {
        // It reads its keys again; connections stay.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::HUP);
    }
}

/// The server's process, if it is one.
fn server(root: &Path) -> Option<rustix::process::Pid> {
    let text = SERVER_PID.iter().find_map(|path| fs::read_to_string(root.join(path)).ok())?;
    let pid: i32 = text.trim().parse().ok()?;
    let comm = fs::read_to_string(root.join(format!("proc/{pid}/comm"))).ok()?;
    (comm.trim() == "sshd").then(|| rustix::process::Pid::from_raw(pid))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn image(with_program: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in [DIR, "usr/bin"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        for name in ["ssh_host_rsa_key", "ssh_host_rsa_key.pub", "ssh_host_ed25519_key", "sshd_config"] {
            fs::write(root.path().join(DIR).join(name), "old").unwrap();
        }
        if with_program {
            let program = root.path().join(PROGRAM);
            let script =
                "#!/bin/sh\nfor last; do :; done\necho \"new $5\" >\"$last\"\necho public >\"$last.pub\"\n";
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        root
    }

    #[test]
    fn the_kinds_that_were_there_are_made_anew() {
        let root = image(true);
        let kinds = remove(root.path());
        // Nothing of the old keys is left when processes go on
        let left: Vec<_> =
            fs::read_dir(root.path().join(DIR)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["sshd_config"]);
        generate(root.path(), &kinds, "calm-otter", &|line| panic!("{line}"));
        let read = |name: &str| fs::read_to_string(root.path().join(DIR).join(name));
        assert_eq!(read("ssh_host_rsa_key").unwrap(), "new rsa\n");
        assert_eq!(read("ssh_host_rsa_key.pub").unwrap(), "public\n");
        assert_eq!(read("ssh_host_ed25519_key").unwrap(), "new ed25519\n");
        assert!(read("ssh_host_ecdsa_key").is_err());
    }

    #[test]
    fn where_none_can_be_made_the_old_ones_stay() {
        let root = image(false);
        assert_eq!(remove(root.path()), []);
        assert!(root.path().join(DIR).join("ssh_host_rsa_key").is_file());
    }

    #[test]
    fn only_an_ssh_server_is_told() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("run")).unwrap();
        fs::write(root.path().join("run/sshd.pid"), "41\n").unwrap();
        assert_eq!(server(root.path()), None);
        fs::create_dir_all(root.path().join("proc/41")).unwrap();
        fs::write(root.path().join("proc/41/comm"), "cron\n").unwrap();
        assert_eq!(server(root.path()), None);
        fs::write(root.path().join("proc/41/comm"), "sshd\n").unwrap();
        assert_eq!(server(root.path()).map(|pid| pid.as_raw_nonzero().get()), Some(41));
    }
}
