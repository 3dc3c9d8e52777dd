//! VMs that Firecracker runs, or is asked to run. With a real one in BANGER_FIRECRACKER; without it these are skipped. What
//! a machine can do is in the conformance suite of `crates/vmm`.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use banger_testkit::{Run, Sandbox, become_user, skip_unless, stay_invoker};

/// Whether there is a Firecracker, as users set it up.
fn given() -> bool {
    by_who_may_use_kvm();
    std::env::var_os("BANGER_FIRECRACKER").is_some_and(|path| Path::new(&path).is_file())
}

/// Where /dev/kvm is root's alone, an ordinary user sees nothing of Firecracker: all tests of this program are root's then.
fn by_who_may_use_kvm() {
    let opens = || {
        become_user();
        fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
    };
    if !std::thread::spawn(opens).join().unwrap() {
        stay_invoker();
    }
}

fn banger(sandbox: &Sandbox, args: &[&str]) -> Run {
    let program = std::env::var_os("BANGER_FIRECRACKER").unwrap_or_default();
    sandbox.banger(args).env("BANGER_FIRECRACKER", program)
}

fn check(sandbox: &Sandbox, name: &str) -> serde_json::Value {
    let checks = banger(sandbox, &["doctor", "--json"]).go().json();
    checks.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone()
}

fn driver(sandbox: &Sandbox, vm: &str) -> (String, String) {
    let shown = banger(sandbox, &["vm", "show", vm, "--json"]).go().ok().json();
    (shown["driver"].as_str().unwrap().to_owned(), shown["accel"].as_str().unwrap().to_owned())
}

#[test]
fn a_guest_on_an_emulated_kvm_ends_in_boot_failed_with_its_last_words_and_leaves_nothing() {
    skip_unless!(given(), "no firecracker");
    let sandbox = Sandbox::bare();
    sandbox.configure("[boot]\ntimeout = '90s'\n");
    assert_eq!(check(&sandbox, "firecracker")["status"], "ok");
    let kvm = check(&sandbox, "kvm");
    skip_unless!(
        kvm["detail"].as_str().unwrap().contains("guest code failed"),
        "KVM is no emulation here, or is not there"
    );
    // When it is asked for by name
    let began = Instant::now();
    let words = ["vm", "create", "--driver", "firecracker", "--image", "bare", "--name", "fire", "--json"];
    let out = banger(&sandbox, &words)
        .args(["--vcpu", "1", "--memory", "256M"])
        .within(Duration::from_secs(120))
        .go()
        .ends_with(1);
    // Then it ends soon after the limit, with what the guest said last, and says why
    assert!(began.elapsed() < Duration::from_secs(90 + 30), "{:?}", began.elapsed());
    let error = out.json_error();
    assert_eq!(error["code"], "boot_failed", "{error}");
    let message = error["message"].as_str().unwrap();
    for words in ["KVM is emulated", "the console's last lines", "\n[ "] {
        assert!(message.contains(words), "'{words}' is not in: {message}");
    }
    assert!(error["hint"].as_str().unwrap().contains("--driver qemu"), "{error}");
    // And nothing is left: no VM, no process, no socket
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn a_vm_goes_from_one_driver_to_the_other_with_its_disks() {
    skip_unless!(given(), "no firecracker");
    let sandbox = Sandbox::bare();
    sandbox.configure("[boot]\ntimeout = '25s'\n[images.bare]\ndriver = 'qemu'\n");
    // Given an image whose VMs have a driver of their own, and a VM with something on its disk
    let create = ["vm", "create", "--image", "bare", "--name", "moves"];
    banger(&sandbox, &create).within(Duration::from_secs(120)).go().ok().done();
    assert_eq!(driver(&sandbox, "moves").0, "qemu");
    let write = ["vm", "exec", "moves", "--", "sh", "-c", "echo kept > /root/mark; sync"];
    banger(&sandbox, &write).go().ok().done();
    // When it runs, it stays where it is
    let set = |driver: &str| banger(&sandbox, &["vm", "set", "moves", "--driver", driver, "--json"]);
    assert_eq!(set("firecracker").go().ends_with(1).json_error()["code"], "busy");
    banger(&sandbox, &["vm", "stop", "moves"]).go().ok().done();
    let works = check(&sandbox, "kvm")["status"] == "ok";
    if works || check(&sandbox, "kvm")["detail"].as_str().unwrap().contains("guest code failed") {
        // Then it moves when it is off, and its monitor is the other one
        set("firecracker").go().ok().done();
        assert_eq!(driver(&sandbox, "moves"), ("firecracker".into(), "kvm".into()));
        let start =
            banger(&sandbox, &["vm", "start", "moves", "--json"]).within(Duration::from_secs(120)).go();
        if works {
            start.ok().done();
            banger(&sandbox, &["vm", "stop", "moves"]).go().ok().done();
        } else {
            assert_eq!(start.ends_with(1).json_error()["code"], "boot_failed");
            let log = fs::read_dir(sandbox.state().join("vms")).unwrap().next().unwrap().unwrap().path();
            let log = fs::read_to_string(log.join("vmm.log")).unwrap();
            assert!(log.contains("/network-interfaces/eth0"), "its guest has a network: {log}");
        }
    } else {
        assert_eq!(set("firecracker").go().ends_with(1).json_error()["code"], "unavailable");
    }
    // And back, with all that it had
    set("qemu").go().ok().done();
    banger(&sandbox, &["vm", "start", "moves"]).within(Duration::from_secs(120)).go().ok().done();
    let read = banger(&sandbox, &["vm", "exec", "moves", "--", "cat", "/root/mark"]).go().ok();
    assert_eq!(read.text().trim(), "kept");
    // And what holds around its monitor and its network's processes can be seen
    let shown = banger(&sandbox, &["vm", "show", "moves", "--json"]).go().ok().json();
    let has = |security: &serde_json::Value, layer: &str| {
        security["layers"].as_array().unwrap().iter().any(|l| l == layer)
    };
    assert!(has(&shown["security"], "seccomp") && has(&shown["security"], "network"), "{shown}");
    for program in ["passt", "banger-netguard"] {
        let security = &shown["network"]["security"][program];
        assert!(has(security, "seccomp"), "{program}: {shown}");
        assert_eq!(has(security, "network"), program != "passt", "{shown}");
    }
    banger(&sandbox, &["vm", "delete", "-f", "moves"]).go().ok().done();
    sandbox.no_vm_is_left();
}

#[test]
fn doctor_tells_a_missing_firecracker_from_a_wrong_an_old_and_a_new_one() {
    use std::os::unix::fs::PermissionsExt as _;
    by_who_may_use_kvm();
    let cases = [
        (None, "warn", "missing"),
        (Some("v1.4.0"), "fail", "older than 1.15"),
        (Some("v1.16.1"), "ok", "version 1.16.1"),
        (Some("v1.99.0"), "warn", "newer than what was tried"),
    ];
    for (version, status, words) in cases {
        let sandbox = Sandbox::empty();
        let found = match version {
            None => sandbox.banger(["doctor", "--json"]).without_env("BANGER_FIRECRACKER").go(),
            Some(version) => {
                let program = sandbox.work("firecracker");
                fs::write(&program, format!("#!/bin/sh\necho 'Firecracker {version}'\n")).unwrap();
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
                sandbox.banger(["doctor", "--json"]).env("BANGER_FIRECRACKER", &program).go()
            }
        };
        let checks = found.json();
        let check = checks.as_array().unwrap().iter().find(|c| c["name"] == "firecracker").unwrap();
        assert_eq!(check["status"], status, "{check}");
        assert!(check["detail"].as_str().unwrap().contains(words), "{check}");
        assert!(status == "ok" || !check["hint"].is_null(), "{check}");
        sandbox.banger(["daemon", "stop"]).go().ok().done();
    }
}
