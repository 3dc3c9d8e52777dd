//! What a guest does to itself, and what is done to its machine behind our back: told as what it is, and no obstacle to
//! the next start.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_testkit::{Sandbox, Vm, as_invoker, is_root, skip_unless, wait};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn becomes(vm: &Vm<'_>, state: &str) -> Value {
    wait::must(&format!("it is {state}"), SOON, || vm.show()["state"] == state);
    vm.show()
}

/// In `error`, with the reason's words.
fn is_in_error(vm: &Vm<'_>, words: &[&str]) {
    let shown = becomes(vm, "error");
    assert_eq!(
        (&shown["pid"], &shown["last_error"]["code"]),
        (&Value::Null, &"guest_failed".into()),
        "{shown}"
    );
    let message = shown["last_error"]["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "'{word}' is not in: {message}");
    }
}

fn starts_again(vm: &Vm<'_>) {
    vm.verb("start", &[]).ok().done();
    let shown = vm.show();
    assert_eq!((&shown["state"], &shown["last_error"]), (&"running".into(), &Value::Null));
    assert_eq!(vm.exec(["cat", "/kept"]).go().ok().text(), "kept");
}

fn pid_of(number: &Value) -> Pid {
    Pid::from_raw(i32::try_from(number.as_u64().unwrap()).unwrap()).unwrap()
}

#[test]
fn what_a_guest_does_to_itself_is_told_as_what_it_is() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("moody", "bare", &[]);
    vm.sh("echo kept >/kept; sync").go().ok().done();
    let boot_id = || vm.exec(["cat", "/proc/sys/kernel/random/boot_id"]).go();

    // Its agent is killed: who waits for a command is told, and the agent that comes up instead is found.
    vm.sh("kill -KILL $PPID; sleep 60").go().ends_with(125).says(&["'moody'", "went away", "hint:"]).done();
    assert_eq!(vm.exec(["cat", "/kept"]).go().ok().text(), "kept");

    // It powers itself off: that is no error.
    vm.sh("kill -USR2 1; sleep 30").go().done();
    let shown = becomes(&vm, "stopped");
    assert_eq!((&shown["pid"], &shown["last_error"]), (&Value::Null, &Value::Null));
    starts_again(&vm);

    // It reboots: it is there again by itself.
    let reboots = || {
        let before = boot_id().ok().text().to_owned();
        vm.sh("kill -TERM 1; sleep 30").go().done();
        wait::must("it is there again", Duration::from_secs(60), || {
            let now = boot_id();
            now.code() == 0 && now.text() != before
        });
        let shown = vm.show();
        assert_eq!((&shown["state"], &shown["last_error"]), (&"running".into(), &Value::Null), "{shown}");
        assert_eq!(vm.exec(["cat", "/kept"]).go().ok().text(), "kept");
    };
    reboots();

    // Its kernel panics: an error with the kernel's own words, and a start is all it takes.
    vm.sh("echo c >/proc/sysrq-trigger; sleep 30").go().ends_with(125).done();
    is_in_error(&vm, &["panic", "sysrq"]);
    starts_again(&vm);
    // The old panic is still in the console, and is not taken for a new one.
    assert!(sandbox.banger(["logs", "moody", "--console"]).go().ok().text().contains("Kernel panic"));
    reboots();

    // Its agent does not obey: what it wrote is what it had flushed, and the stop takes no longer than it was given.
    let stuck = vm.sh("kill -STOP $PPID; sleep 60").start();
    let banger = banger_testkit::bin_dir().join("banger");
    wait::must("the agent stands still", SOON, || {
        let probe = sandbox
            .program("timeout")
            .args(["-s", "KILL", "2"])
            .arg(&banger)
            .args(["exec", "moody", "--", "true"]);
        probe.go().code() == 137
    });
    let began = Instant::now();
    let out = vm.verb("stop", &["--timeout", "2s"]).ok();
    assert!(began.elapsed() < Duration::from_secs(20), "{out}");
    assert!(out.err().contains("did not power off"), "{out}");
    stuck.wait().ends_with(125).done();
    becomes(&vm, "stopped");
    starts_again(&vm);
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn what_is_done_to_a_machine_behind_our_back_is_told_too() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("victim", "bare", &[]);
    vm.sh("echo kept >/kept; sync").go().ok().done();
    let pid = vm.show()["pid"].clone();

    // Its VMM is killed while it works.
    let running = vm.sh("echo ready; sleep 60").start();
    kill_process(pid_of(&pid), Signal::KILL).unwrap();
    let shown = vm.show();
    assert!(shown["state"] != "stopped", "a machine that was killed is never said to have stopped: {shown}");
    is_in_error(&vm, &["signal 9"]);
    running.wait().ends_with(125).done();
    starts_again(&vm);

    // The host runs out of memory, which here is a cgroup's.
    if let Some(cgroup) = Cgroup::new(&sandbox) {
        cgroup.take(&vm.show()["pid"], 24 << 20);
        let eat =
            "dd if=/dev/zero of=/dev/shm/big bs=1M count=200 || dd if=/dev/zero of=/big bs=1M count=200";
        vm.sh(eat).go().ends_with(125).done();
        is_in_error(&vm, &["memory"]);
        starts_again(&vm);
    }

    // A daemon that finds no image, or no directory, says so; a delete is all that such a VM is good for.
    vm.verb("stop", &[]).ok().done();
    let id = vm.show()["id"].as_str().unwrap().to_owned();
    let dir = sandbox.state().join("vms").join(&id);
    let aside = sandbox.work("aside");
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    fs::rename(&dir, &aside).unwrap();
    let shown = becomes(&vm, "error");
    assert!(shown["last_error"]["message"].as_str().unwrap().contains("gone"), "{shown}");
    vm.verb("start", &[]).ends_with(1).says(&["gone", "banger vm delete"]).done();
    vm.delete();
    fs::remove_dir_all(aside).unwrap();
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());

    let args = ["vm", "create", "--no-start", "--name", "imageless", "--image", "bare"];
    sandbox.banger(args).go().ok().done();
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    let images = sandbox.state().join("images");
    for entry in fs::read_dir(&images).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let vm = sandbox.existing("imageless");
    let shown = becomes(&vm, "error");
    assert_eq!(shown["last_error"]["code"], "image_missing", "{shown}");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn after_the_host_has_rebooted_all_handles_are_dead_and_nothing_else_is_touched() {
    skip_unless!(is_root(), "another boot id needs a mount namespace");
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("slept", "bare", &[]);
    vm.sh("echo kept >/kept; sync").go().ok().done();
    let shown = vm.show();
    let id = shown["id"].as_str().unwrap().to_owned();
    // Given a host that has lost its power: no process, no runtime directory, and the records as they were
    let daemon = sandbox.daemon().unwrap();
    kill_process(Pid::from_raw(i32::try_from(daemon).unwrap()).unwrap(), Signal::KILL).unwrap();
    for thing in sandbox.processes() {
        let pid = Pid::from_raw(thing.key.parse().unwrap()).unwrap();
        let _ = kill_process(pid, Signal::KILL);
    }
    wait::must("nothing runs", SOON, || sandbox.processes().is_empty());
    let runtime = sandbox.runtime();
    fs::remove_dir_all(&runtime).unwrap();
    // and a process of somebody else's that now has the pid and even the start time of the VM's.
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let handles = sandbox.state().join("vms").join(&id).join("handles.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&handles).unwrap()).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
    let start: u64 = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap().parse().unwrap();
    become_it(&mut json, bystander.id(), start);
    fs::write(&handles, json.to_string()).unwrap();

    // When the next daemon starts under another boot id
    let other = sandbox.work("boot_id");
    fs::write(&other, "01234567-89ab-4cde-8f01-23456789abcd\n").unwrap();
    let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
    let prefix = ["unshare", "-m", "sh", "-c", script, other.to_str().unwrap()];
    let banger = banger_testkit::bin_dir().join("banger");
    let rebooted = |args: &[&str]| sandbox.program_through(&prefix, &banger).args(args).go();
    let list = rebooted(&["ps", "-a", "--json"]).ok().json();
    // Then the VM is stopped, the bystander lives, and the VM starts with its files.
    assert_eq!((&list[0]["state"], &list[0]["last_error"]), (&"stopped".into(), &Value::Null), "{list}");
    let alive = Pid::from_raw(i32::try_from(bystander.id()).unwrap()).unwrap();
    test_kill_process(alive).unwrap();
    assert!(bystander.try_wait().unwrap().is_none(), "it was touched");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
    starts_again(&vm);
    vm.delete();
    sandbox.no_vm_is_left();
}

/// Every process in these handles is another one now.
fn become_it(json: &mut Value, pid: u32, start: u64) {
    match json {
        Value::Object(map) => {
            if map.contains_key("pid") {
                map.insert("pid".into(), pid.into());
                for (key, value) in map.iter_mut() {
                    if key.contains("start") {
                        *value = start.into();
                    }
                }
            }
            map.values_mut().for_each(|value| become_it(value, pid, start));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| become_it(value, pid, start)),
        _ => {}
    }
}

/// A memory cgroup of the sandbox's own, where the host lets us make one.
struct Cgroup(std::path::PathBuf);

impl Cgroup {
    fn new(sandbox: &Sandbox) -> Option<Self> {
        let name = sandbox.root().file_name()?.to_owned();
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let dir = if v1.join("memory.limit_in_bytes").exists() { v1.join(name) } else { return None };
        as_invoker(|| fs::create_dir(&dir)).ok()?;
        Some(Self(dir))
    }

    /// From now on this process gets so much more memory, and no more.
    fn take(&self, pid: &Value, bytes: u64) {
        as_invoker(|| {
            fs::write(self.0.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
            fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
        });
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let gone = wait::until(SOON, || as_invoker(|| fs::remove_dir(&self.0)).ok());
        assert!(gone.is_some() || std::thread::panicking(), "{} stays", self.0.display());
    }
}
