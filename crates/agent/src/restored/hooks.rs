//! The image's own hooks: programs in `/etc/banger/restored.d` that run after a restored guest has its identity, in the order
//! of their names, one after the other. Must never stop at one that fails.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use banger_protocol::agent::Identity;

const DIR: &str = "etc/banger/restored.d";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs them. They write to the console.
pub(super) fn run(root: &Path, identity: &Identity, log: &impl Fn(&str)) {
    for hook in find(root) {
        let name = hook.file_name().unwrap_or_default().to_string_lossy().escape_debug().to_string();
        let ended = command(&hook, identity).spawn().and_then(|mut child| {
            crate::boot::expose_to_oom(child.id());
            child.wait()
        });
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => log(&format!("the hook {name} ended with {status}")),
            Err(error) => log(&format!("the hook {name} cannot run: {error}")),
        }
    }
}

/// Whether there may be one.
pub(super) fn are_any(root: &Path) -> bool {
    root.join(DIR).is_dir()
}

/// Those that can be run, by name.
fn find(root: &Path) -> Vec<PathBuf> {
    let mut hooks: Vec<PathBuf> = fs::read_dir(root.join(DIR))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
        .collect();
    hooks.sort();
    hooks
}

fn command(hook: &Path, identity: &Identity) -> Command {
    let mut command = Command::new(hook);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
    command.env("BANGER_VM_NAME", &identity.hostname);
    if let Some(id) = &identity.machine_id {
        command.env("BANGER_MACHINE_ID", id);
    }
    if let Some(network) = &identity.network {
        command.env("BANGER_GUEST_ADDRESS", &network.address).env("BANGER_GUEST_MAC", &network.mac);
    }
    let console =
        || std::io::stderr().as_fd().try_clone_to_owned().map_or_else(|_| Stdio::null(), Stdio::from);
    command.current_dir("/").stdin(Stdio::null()).stdout(console()).stderr(console());
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn hooks_run_by_name_and_one_that_fails_stops_none() {
        // Given hooks out of order, one that fails, and a file that is none
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(DIR);
        fs::create_dir_all(&dir).unwrap();
        let out = root.path().join("out");
        let put = |name: &str, mode, last: &str| {
            let script = format!("#!/bin/sh\necho {name} $BANGER_VM_NAME >>{}\n{last}\n", out.display());
            fs::write(dir.join(name), script).unwrap();
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        put("20-second", 0o755, "");
        put("10-first", 0o755, "exit 3");
        put("15-notes", 0o644, "");
        // When they are run
        let said = RefCell::new(Vec::new());
        let identity =
            Identity { hostname: "calm-otter".into(), machine_id: None, network: None, rehearsal: false };
        run(root.path(), &identity, &|line| said.borrow_mut().push(line.to_owned()));
        // Then
        assert_eq!(fs::read_to_string(&out).unwrap(), "10-first calm-otter\n20-second calm-otter\n");
        assert_eq!(said.into_inner(), ["the hook 10-first ended with exit status: 3"]);
    }

    #[test]
    fn an_image_without_hooks_is_fine() {
        let root = tempfile::tempdir().unwrap();
        assert!(find(root.path()).is_empty());
    }
}
