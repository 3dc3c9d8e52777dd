//! `banger doctor`: what it says of this host and of an installation, and that it changes neither.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use banger_testkit::{Output, Sandbox, tree};
use serde_json::Value;

fn checks(out: &Output) -> Vec<Value> {
    out.json().as_array().unwrap().clone()
}

fn check(out: &Output, name: &str) -> Value {
    let found = checks(out).into_iter().find(|check| check["name"] == name);
    found.unwrap_or_else(|| panic!("no check '{name}': {out}"))
}

fn doctor(sandbox: &Sandbox, more: &[&str]) -> Output {
    sandbox.banger(["doctor", "--json"]).args(more).within(Duration::from_secs(120)).go()
}

#[test]
fn it_starts_nothing_and_writes_nothing() {
    let sandbox = Sandbox::empty();
    let everything = || tree::walk(sandbox.root()).into_iter().map(|entry| entry.path).collect::<Vec<_>>();
    let before = everything();
    let out = doctor(&sandbox, &[]);
    // Given nothing, the first run has everything to make
    assert_eq!(check(&out, "kernel")["status"], "warn");
    assert_eq!(check(&out, "image")["status"], "warn");
    assert!(check(&out, "daemon")["detail"].as_str().unwrap().contains("does not run"), "{out}");
    // And still has
    assert_eq!(everything(), before);
    assert_eq!(sandbox.daemon(), None);
}

#[test]
fn every_check_has_a_hint_unless_it_passed_and_the_status_follows() {
    let sandbox = Sandbox::bare();
    for daemon in [false, true] {
        if daemon {
            sandbox.banger(["daemon", "start"]).go().ok().done();
        }
        let out = doctor(&sandbox, &[]);
        let mut failed = false;
        for check in checks(&out) {
            let status = check["status"].as_str().unwrap();
            assert!(["ok", "warn", "fail"].contains(&status) && check["detail"].is_string(), "{check}");
            assert!(status == "ok" || check["hint"].is_string(), "no hint in {check}");
            failed |= status == "fail";
        }
        assert_eq!(out.code(), i32::from(failed), "{out}");
        for name in [
            "daemon",
            "architecture",
            "memory",
            "kvm",
            "qemu",
            "user namespaces",
            "cage",
            "subordinate ids",
            "disk",
            "kernel",
            "image",
            "network",
            "git",
            "mmdebstrap",
            "depmod",
            "state",
            "defaults",
        ] {
            check(&out, name);
        }
        assert_eq!(check(&out, "kernel")["status"], "ok", "{out}");
    }
}

#[test]
fn what_is_missing_is_named_with_what_to_type() {
    let sandbox = Sandbox::bare();
    let without = sandbox.banger(["doctor", "--json"]).env("BANGER_QEMU", "/no/such/qemu").go().ends_with(1);
    let qemu = check(&without, "qemu");
    assert_eq!(qemu["status"], "fail", "{qemu}");
    assert!(qemu["detail"].as_str().unwrap().contains("/no/such/qemu"), "{qemu}");
    // Given a host whose PATH has nothing: what makes images and kernels is found in sbin, or said with its package.
    let bare = sandbox.banger(["doctor", "--json"]).env("PATH", "/nowhere").go().ends_with(1);
    let git = check(&bare, "git");
    assert_eq!(git["status"], "fail");
    assert!(git["detail"].as_str().unwrap().contains("needed for taking a repository in"), "{git}");
    assert!(git["hint"].as_str().unwrap().contains("git"), "{git}");
    assert_eq!(check(&bare, "depmod")["status"], "ok", "it is in sbin, where ordinary users have no path to");
    // The kernel is there: what pulls one is missed less.
    assert_eq!(check(&bare, "dpkg-deb")["status"], "warn");
}

#[test]
fn a_database_that_no_daemon_could_open_is_told_without_one() {
    let sandbox = Sandbox::bare();
    fs::write(sandbox.state().join("banger.db"), "not a database").unwrap();
    let out = doctor(&sandbox, &[]).ends_with(1);
    let state = check(&out, "state");
    assert_eq!(state["status"], "fail", "{state}");
    assert_eq!(fs::read(sandbox.state().join("banger.db")).unwrap(), b"not a database");
}

#[test]
fn the_trial_of_the_network_starts_the_real_programs_and_leaves_nothing() {
    let sandbox = Sandbox::bare();
    let out = doctor(&sandbox, &["--network"]);
    let trial = check(&out, "network trial");
    assert_eq!(trial["status"], "ok", "{out}");
    assert!(trial["detail"].as_str().unwrap().contains("passt"), "{trial}");
    sandbox.no_vm_is_left();
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    // Given a passt that cannot do its work
    let tools = sandbox.work("tools");
    fs::create_dir_all(&tools).unwrap();
    fs::write(tools.join("passt"), "#!/bin/sh\necho 'cannot open /etc/nothing' >&2\nexit 1\n").unwrap();
    fs::set_permissions(tools.join("passt"), fs::Permissions::from_mode(0o755)).unwrap();
    let sandbox = sandbox.with_tools(&tools);
    let out = doctor(&sandbox, &["--network"]).ends_with(1);
    let trial = check(&out, "network trial");
    assert_eq!(trial["status"], "fail");
    assert!(trial["detail"].as_str().unwrap().contains("cannot open /etc/nothing"), "{trial}");
    sandbox.no_vm_is_left();
}
