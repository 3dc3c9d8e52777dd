//! Whether what banger says of its VMs is true, by the process table and the disk, and whether
//! anything is there that belongs to none of them. While VMs live: [`crate::Sandbox`]'s own check is for
//! after they are gone.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::leaks::{Kind, Thing};
use crate::{Sandbox, wait};

/// How long the daemon has to come to rest.
const REST: Duration = Duration::from_secs(20);

/// What is wrong, a line each; nothing when all is true. Waits for what is still under way.
#[must_use]
pub fn untruths(sandbox: &Sandbox) -> Vec<String> {
    let mut wrong = Vec::new();
    let settled = wait::until(REST, || {
        wrong = look(sandbox);
        wrong.is_empty().then_some(())
    });
    if settled.is_some() { Vec::new() } else { wrong }
}

fn look(sandbox: &Sandbox) -> Vec<String> {
    let listed = sandbox.banger(["vm", "list", "-a", "--json"]).go();
    if listed.code() != 0 {
        return vec![format!("the list cannot be had: {listed}")];
    }
    let listed = listed.json();
    let all = listed.as_array().cloned().unwrap_or_default();
    let mut wrong: Vec<String> = all.iter().flat_map(|vm| untrue(sandbox, vm)).collect();
    wrong.extend(strays(sandbox, &all).iter().map(|thing| format!("belongs to no VM: {thing}")));
    wrong
}

fn text<'a>(vm: &'a Value, key: &str) -> &'a str {
    vm.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// What is not true of one VM.
fn untrue(sandbox: &Sandbox, vm: &Value) -> Vec<String> {
    let (name, id, state) = (text(vm, "name"), text(vm, "id"), text(vm, "state"));
    let mut wrong = Vec::new();
    let mut say = |what: String| wrong.push(format!("VM {name} ({id}) is {state}: {what}"));
    let pid = vm.get("pid").and_then(Value::as_u64);
    let machines = sandbox.marked(id);
    let running = matches!(state, "running" | "paused");
    if !["created", "running", "paused", "stopped", "error"].contains(&state) {
        say("nobody is at work on it".to_owned());
    }
    match (running, pid) {
        (true, Some(pid)) if machines.iter().any(|m| m.key == pid.to_string()) => {}
        (false, None) => {}
        _ => say(format!("its pid is {pid:?}")),
    }
    if !running && !machines.is_empty() {
        say(format!("it has processes: {machines:?}"));
    }
    let explained = vm.get("last_error").is_some_and(|e| !text(e, "message").is_empty());
    if (state == "error") != explained {
        say(format!("last_error is {}", vm.get("last_error").unwrap_or(&Value::Null)));
    }
    let (dir, sockets) = (sandbox.state().join("vms").join(id), sandbox.runtime().join("vms").join(id));
    if !dir.is_dir() {
        say("its directory is gone".to_owned());
    }
    for held in [dir.join("handles.json"), sockets] {
        if held.exists() != running {
            say(format!("{} is there: {}", held.display(), held.exists()));
        }
    }
    wrong
}

/// What is there beside the VMs, their files, and what runs for them.
fn strays(sandbox: &Sandbox, vms: &[Value]) -> Vec<Thing> {
    let known: Vec<&str> = vms.iter().map(|vm| text(vm, "id")).collect();
    let up =
        |id: &&&str| vms.iter().any(|vm| text(vm, "id") == **id && vm.get("pid").is_some_and(Value::is_u64));
    let mentions = |thing: &Thing, id: &str| thing.key.contains(id) || thing.detail.contains(id);
    let mut left = sandbox.left_while_serving();
    left.retain(|thing| {
        let owner = known.iter().find(|id| mentions(thing, id));
        match (thing.kind, owner) {
            (_, None) => true,
            // Its own files may be there, running or not.
            (Kind::File, Some(id))
                if Path::new(&thing.key).starts_with(sandbox.state().join("vms").join(id)) =>
            {
                half_made(Path::new(&thing.key))
            }
            (_, Some(id)) => !up(&id),
        }
    });
    left
}

/// A file that was to be renamed into place and never was.
fn half_made(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "new") && fs::symlink_metadata(path).is_ok()
}
