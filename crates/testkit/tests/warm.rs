//! Warm start: what goes on from a template is a machine of its own, as fast as that may be; a template that cannot be
//! used costs a notice and a boot, never a start.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use banger_testkit::{Output, Run, Sandbox, Vm, truth, wait};
use serde_json::Value;

/// How many go on from one template.
const CLONES: usize = 10;
const SOON: Duration = Duration::from_secs(120);
const SHAPE: &[&str] = &["--image", "bare", "--memory", "256M"];

fn templates(sandbox: &Sandbox) -> Vec<Value> {
    sandbox.banger(["vm", "template", "list", "--json"]).go().ok().json().as_array().unwrap().clone()
}

fn is_idle(sandbox: &Sandbox) -> bool {
    sandbox.banger(["operation", "list", "--json"]).go().ok().json().as_array().unwrap().is_empty()
}

/// Waits until the daemon has made a template, and is done with it.
fn made(sandbox: &Sandbox) -> PathBuf {
    wait::must("a template is made", SOON, || templates(sandbox).len() == 1 && is_idle(sandbox));
    let dirs = fs::read_dir(sandbox.state().join("templates")).unwrap();
    let dirs: Vec<PathBuf> = dirs.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(dirs.len(), 1, "{dirs:?}");
    dirs.into_iter().next().unwrap()
}

fn run(sandbox: &Sandbox, flags: &[&str], script: &str) -> Output {
    let run = sandbox.banger(["vm", "run", "--rm"]).args(SHAPE).args(flags);
    run.args(["--", "sh", "-c", script]).within(SOON).go()
}

fn says(vm: &Vm<'_>, script: &str) -> String {
    vm.sh(script).within(SOON).go().ok().text().to_owned()
}

fn kind(vm: &Vm<'_>) -> String {
    vm.show()["boot"]["kind"].as_str().unwrap_or_default().to_owned()
}

/// Seconds of the host's clock, with a tenth to spare on either side.
fn seconds(spare: f64) -> f64 {
    (SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() + spare).floor()
}

#[test]
fn clones_of_one_template_are_machines_of_their_own() {
    let sandbox = Sandbox::bare().warm();
    // Whoever comes first boots, and nothing of theirs is in the template.
    let first = sandbox.vm("first-of-all", "bare", &SHAPE[2..]);
    assert_eq!(kind(&first), "cold");
    says(&first, "echo a-secret-of-the-first-user >/dev/shm/secret; cp /dev/shm/secret /root/");
    let template = made(&sandbox);
    for file in ["memory", "system.ext4"] {
        for word in ["a-secret-of-the-first-user", "first-of-all"] {
            let found = Run::new("grep").args(["-c", "-a", "-F", word]).arg(template.join(file)).go();
            assert_eq!((found.code(), found.text()), (1, "0"), "{word} is in {file}");
        }
    }
    first.delete();

    let clones: Vec<Vm<'_>> =
        (0..CLONES).map(|n| sandbox.vm(&format!("clone-{n}"), "bare", &SHAPE[2..])).collect();
    let mut seen: [BTreeSet<String>; 5] = Default::default();
    for vm in &clones {
        assert_eq!(kind(vm), "warm");
        let early = seconds(-0.1);
        let time: f64 = says(vm, "date +%s").parse().unwrap();
        assert!((early..=seconds(0.1)).contains(&time), "{time} is not the host's time");
        let told = says(
            vm,
            "head -c 32 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid; hostname; cat /etc/hostname; \
             cat /sys/class/net/eth0/address",
        );
        assert_eq!(told.lines().count(), seen.len(), "{told}");
        for (set, line) in seen.iter_mut().zip(told.lines()) {
            set.insert(line.to_owned());
        }
        assert_eq!(told.lines().nth(2), told.lines().nth(3), "{told}");
        says(
            vm,
            "dd if=/dev/urandom of=/root/written bs=64k count=16 2>/dev/null; mkdir /root/d; echo x >/root/d/x",
        );
    }
    for (what, set) in seen.iter().enumerate() {
        assert_eq!(set.len(), CLONES, "line {what}: {set:?}");
    }
    // They do not notice that it is gone, nor that another daemon serves them.
    sandbox.banger(["vm", "template", "prune"]).go().ok().done();
    assert_eq!(templates(&sandbox).len(), 0);
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    for vm in &clones {
        assert_eq!(says(vm, "cat /root/d/x"), "x");
    }
    let vms = sandbox.state().join("vms");
    for vm in clones {
        vm.verb("stop", &[]).ok().done();
        let disk = vms.join(vm.show()["id"].as_str().unwrap()).join("system.ext4");
        Run::new("/sbin/e2fsck").args(["-f", "-n"]).arg(&disk).go().ok().done();
        vm.delete();
    }
    let wrong = truth::untruths(&sandbox);
    assert!(wrong.is_empty(), "{wrong:#?}");
    sandbox.no_vm_is_left();
}

#[test]
fn a_template_that_cannot_be_used_costs_a_notice_and_a_boot() {
    let sandbox = Sandbox::bare().warm();
    let offered = "template could not be used";
    run(&sandbox, &[], "exit 0").ok().done();
    let template = made(&sandbox);
    // As it was made; then cut, written to, and half gone: each time the run is what it would have been.
    let warm = run(&sandbox, &["--timings"], "exit 42").ends_with(42);
    assert!(!warm.err().contains(offered) && !warm.err().contains("guest_network"), "{}", warm.err());
    type Harm = fn(&std::path::Path);
    let harms: [(&str, Harm); 3] = [
        ("cut", |dir| {
            let file = fs::File::options().write(true).open(dir.join("memory")).unwrap();
            file.set_len(1 << 20).unwrap();
        }),
        ("written to", |dir| {
            let file = fs::File::options().write(true).open(dir.join("memory")).unwrap();
            file.write_all_at(b"banger", 1 << 20).unwrap();
        }),
        ("half gone", |dir| fs::remove_file(dir.join("state")).unwrap()),
    ];
    for (what, harm) in harms {
        assert_eq!(made(&sandbox), template);
        harm(&template);
        let out = run(&sandbox, &["--timings"], "exit 42").ends_with(42);
        assert!(out.err().contains(offered), "{what}: {}", out.err());
        assert!(out.err().contains("guest_network"), "{what}: it did not boot: {}", out.err());
    }
    // Another that is as good is there again; whoever does not want it does not get it.
    made(&sandbox);
    let cold = run(&sandbox, &["--cold", "--timings"], "exit 42").ends_with(42);
    assert!(cold.err().contains("guest_network"), "{}", cold.err());
    sandbox.no_vm_is_left();
}

#[test]
fn a_saved_template_is_what_was_saved() {
    let sandbox = Sandbox::bare().warm();
    let vm = sandbox.vm("tools", "bare", &[&SHAPE[2..], &["--cold"]].concat());
    says(&vm, "echo installed >/root/tool; echo up >/dev/shm/service");
    let save = || sandbox.banger(["vm", "template", "save", "tools", "ready", "--json"]).within(SOON).go();
    save().ok().done();
    assert_eq!(save().json_error()["code"], "already_exists");
    vm.delete();
    let script = "cat /root/tool /dev/shm/service; hostname";
    let from = |flags: &[&str]| {
        let run = sandbox.banger(["vm", "run", "--rm", "--template", "ready"]).args(flags);
        run.args(["--", "sh", "-c", script]).within(SOON).go()
    };
    let names: BTreeSet<String> = (0..3)
        .map(|_| {
            let said = from(&[]).ok().text().to_owned();
            assert!(said.starts_with("installed\nup\n"), "{said}");
            said
        })
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert_eq!(from(&["--memory", "512M", "--json"]).json_error()["code"], "invalid_argument");
    // What it needs stays while it is there.
    let busy = sandbox.banger(["image", "delete", "bare", "--json"]).go();
    assert_eq!(busy.json_error()["code"], "busy");
    sandbox.banger(["vm", "template", "delete", "ready"]).go().ok().done();
    assert_eq!(from(&["--json"]).json_error()["code"], "not_found");
    sandbox.no_vm_is_left();
}
