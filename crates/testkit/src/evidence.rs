//! What can still be seen when a banger does not end: asked for before anything is killed, and told along with the failure.
//! Must never hang or fail itself.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bin_dir;
use crate::leaks::Scope;

/// What it takes to ask an installation.
#[derive(Debug)]
pub(crate) struct Witness {
    banger: OsString,
    environment: Vec<(OsString, OsString)>,
    state: PathBuf,
}

impl Witness {
    /// One for this command of an installation with this state directory.
    pub(crate) fn of(command: &Command, state: PathBuf) -> Self {
        let environment =
            command.get_envs().filter_map(|(k, v)| Some((k.to_owned(), v?.to_owned()))).collect();
        Self { banger: bin_dir().join("banger").into_os_string(), environment, state }
    }

    /// What the VMs say, and what their processes do.
    pub(crate) fn tell(&self) -> String {
        let mut told = String::new();
        let all: serde_json::Value =
            serde_json::from_str(&self.ask(&["vm", "list", "-a", "--json"])).unwrap_or_default();
        for vm in all.as_array().into_iter().flatten() {
            let [name, id, state] = ["name", "id", "state"].map(|key| vm[key].as_str().unwrap_or_default());
            let _ = writeln!(told, "--- VM {name}: {state}");
            for line in threads(id) {
                let _ = writeln!(told, "{line}");
            }
            let console =
                fs::read_to_string(self.state.join("vms").join(id).join("console.log")).unwrap_or_default();
            let lines: Vec<&str> = console.lines().collect();
            let _ = writeln!(told, "{}", lines[lines.len().saturating_sub(5)..].join("\n"));
            if state == "running" {
                let script = "cat /proc/uptime; for p in /proc/[0-9]*; do \
                    if grep -qs . $p/cmdline; then tr '\\0' ' ' <$p/cmdline; echo; \
                    grep -E '^(Pid|PPid|State|Sig)' $p/status; fi; done";
                let _ = writeln!(told, "{}", self.ask(&["vm", "exec", name, "--", "sh", "-c", script]));
            }
        }
        told
    }

    /// What it says within some seconds.
    fn ask(&self, args: &[&str]) -> String {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "20"]).arg(&self.banger).args(args);
        match command.env_clear().envs(self.environment.iter().map(|(k, v)| (k, v))).output() {
            Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).into_owned(),
            Ok(out) => format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)),
            Err(error) => error.to_string(),
        }
    }
}

/// What the threads of the processes that carry this id are at: name, state, ticks computed, and where in the kernel they wait.
fn threads(id: &str) -> Vec<String> {
    let entries = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let marked = Scope { markers: vec![id.to_owned()], dirs: Vec::new() }.processes();
    let tasks = marked.iter().flat_map(|process| entries(Path::new("/proc").join(&process.key).join("task")));
    let line = |task: PathBuf| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        let (name, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let place = fs::read_to_string(task.join("wchan")).unwrap_or_default();
        Some(format!("{name}) {} {}+{} {place}", fields.first()?, fields.get(11)?, fields.get(12)?))
    };
    tasks.filter_map(line).collect()
}
