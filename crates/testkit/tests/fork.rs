//! Moments of a VM: paused and resumed, kept and gone back to, gone on from by others. Whatever is done, the VM that it
//! was done to is what it was.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use banger_testkit::repo::Repo;
use banger_testkit::{Output, Sandbox, Vm, truth, wait};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How often what must always work is done.
const ROUNDS: u32 = 10;
const SOON: Duration = Duration::from_secs(60);
/// A process that lives through all of it: it counts, and where it was restored or copied it goes on counting.
const COUNTER: &str = "(n=0; while :; do n=$((n+1)); echo $n >/dev/shm/count.new; mv /dev/shm/count.new /dev/shm/count; \
                       sleep 0.1; done) </dev/null >/dev/null 2>&1 &";

fn count(vm: &Vm<'_>) -> u64 {
    vm.says("cat /dev/shm/count").parse().unwrap()
}

fn counts_on(vm: &Vm<'_>) {
    let before = count(vm);
    wait::must("the counter goes on", SOON, || count(vm) > before);
}

fn banger(sandbox: &Sandbox, words: &[&str]) -> Output {
    sandbox.banger(["vm"]).args(words).within(Duration::from_secs(120)).go()
}

fn refused(out: &Output, code: &str) -> Value {
    let error = out.json_error();
    assert_eq!(error["code"], code, "{error}");
    error
}

fn all_is_true(sandbox: &Sandbox) {
    let wrong = truth::untruths(sandbox);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(fs::read_dir(sandbox.state().join("tmp")).unwrap().count(), 0, "something is left in tmp");
}

#[test]
fn a_paused_vm_stands_still_and_goes_on_with_the_time_it_is() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("still", "bare", &[]);
    vm.says(COUNTER);
    for round in 0..ROUNDS {
        vm.verb("pause", &[]).ok().done();
        assert_eq!(vm.show()["state"], "paused");
        if round == 0 {
            all_is_true(&sandbox);
            // Whatever needs the guest says so, and what to do.
            for words in [
                &["exec", "still", "--json", "--", "true"][..],
                &["start", "still", "--json"],
                &["workspace", "export", "still", "--json"],
            ] {
                let error = refused(&banger(&sandbox, words), "not_running");
                assert!(error["hint"].as_str().unwrap().contains("banger vm resume still"), "{error}");
            }
            assert_eq!(refused(&banger(&sandbox, &["delete", "still", "--json"]), "busy")["code"], "busy");
            // A second pause is none, and another daemon finds it as it is.
            vm.verb("pause", &[]).ok().done();
            sandbox.banger(["daemon", "stop"]).go().ok().done();
            assert_eq!(vm.show()["state"], "paused");
            // While it stands still time goes by.
            std::thread::sleep(Duration::from_secs(2));
        }
        vm.verb("resume", &[]).ok().done();
        assert_eq!(vm.show()["state"], "running");
        vm.has_the_time();
    }
    counts_on(&vm);
    // A command that streams stands still with it, and loses nothing.
    let mut stream = vm.sh("for i in $(seq 1 30); do echo $i; sleep 0.05; done").start();
    stream.until_stdout("3\n");
    vm.verb("pause", &[]).ok().done();
    vm.verb("resume", &[]).ok().done();
    let all: Vec<String> = (1..=30).map(|n| n.to_string()).collect();
    assert_eq!(stream.wait().ok().text(), all.join("\n"));
    // It can be stopped and restarted as it is.
    vm.says("echo kept >/kept");
    vm.verb("pause", &[]).ok().done();
    vm.verb("restart", &[]).ok().done();
    assert_eq!(vm.says("cat /kept"), "kept", "it was powered off in good order");
    vm.verb("pause", &[]).ok().done();
    vm.is_sound();
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn a_vm_goes_back_to_any_moment_that_was_kept() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("back", "bare", &["--memory", "256M", "--work-disk", "64M"]);
    let machine_id = || vm.says("hostname; ip link | grep ether");
    let (who, dir) = (machine_id(), vm.dir());
    vm.says(COUNTER);
    let snapshot = |verb: &str, name: &str| banger(&sandbox, &["snapshot", verb, "back", name, "--json"]);
    for round in 0..ROUNDS {
        let name = format!("s{round}");
        vm.says(&format!("echo {round} >/root/round; echo {round} >/dev/shm/round"));
        let then = count(&vm);
        let made = snapshot("create", &name).ok().json();
        assert_eq!((&made["name"], &made["kind"]), (&name.as_str().into(), &"full".into()), "{made}");
        vm.says("echo wrong >/root/round; echo wrong >/dev/shm/round; sync; echo 0 >/dev/shm/count");
        snapshot("restore", &name).ok().done();
        let shown = vm.show();
        assert_eq!((&shown["state"], &shown["boot"]["kind"]), (&"running".into(), &"warm".into()), "{shown}");
        assert_eq!(vm.says("cat /root/round /dev/shm/round"), format!("{round}\n{round}"));
        assert!(count(&vm) >= then, "the processes of then");
        vm.has_the_time();
        if round >= 2 {
            snapshot("delete", &name).ok().done();
        }
    }
    counts_on(&vm);
    assert_eq!(machine_id(), who, "it is the same machine as ever");
    all_is_true(&sandbox);
    // Also long ago, and from being off.
    vm.verb("kill", &[]).ok().done();
    snapshot("restore", "s0").ok().done();
    assert_eq!(vm.says("cat /root/round /dev/shm/round"), "0\n0");
    // Names: taken, unknown, impossible.
    refused(&snapshot("create", "s0"), "already_exists");
    refused(&snapshot("restore", "none"), "not_found");
    refused(&snapshot("delete", "none"), "not_found");
    let listed = banger(&sandbox, &["snapshot", "list", "back", "--json"]).ok().json();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["s0", "s1"]);

    // Of the disks alone: the guest's latest words are in it, and it is off afterwards.
    vm.says("echo disk >/root/round");
    banger(&sandbox, &["snapshot", "create", "back", "disk", "--disk-only"]).ok().done();
    vm.says("echo wrong >/root/round; sync");
    let size = fs::metadata(dir.join("snapshots/disk")).is_ok();
    assert!(size && !dir.join("snapshots/disk/memory").exists());
    snapshot("restore", "disk").ok().done();
    assert_eq!(vm.show()["state"], "stopped");
    // Larger disks come and go.
    banger(&sandbox, &["set", "back", "--disk-size", "9G", "--work-disk", "96M"]).ok().done();
    vm.verb("start", &[]).ok().done();
    assert_eq!(vm.says("cat /root/round"), "disk");
    snapshot("restore", "s1").ok().done();
    let shown = vm.show();
    assert_eq!(
        (&shown["disk_bytes"], &shown["work_disk_bytes"]),
        (&(8_u64 << 30).into(), &(64 << 20).into())
    );
    assert_eq!(vm.says("cat /root/round /dev/shm/round"), "1\n1");

    // A memory file that was cut off is no obstacle: it boots from the disks of then.
    let memory = dir.join("snapshots/s0/memory");
    fs::remove_file(dir.join("snapshots/s0/state")).unwrap();
    fs::write(dir.join("snapshots/s0/state"), "").unwrap();
    assert!(memory.exists());
    let out = banger(&sandbox, &["snapshot", "restore", "back", "s0"]).ok();
    assert!(out.err().contains("boots from its disks"), "{out}");
    assert_eq!(vm.show()["boot"]["kind"], "cold");
    assert_eq!(vm.says("cat /root/round; test -e /dev/shm/round || echo gone"), "0\ngone");
    all_is_true(&sandbox);
    vm.is_sound();
    vm.delete();
    sandbox.no_vm_is_left();
}

/// What tells a machine from others.
fn identity(vm: &Vm<'_>) -> Vec<String> {
    let ids = "hostname; ip link | awk '/ether/{print $2}'; head -c 16 /dev/urandom | od -An -tx1; \
               cat /proc/sys/kernel/random/uuid";
    vm.says(ids).lines().map(str::to_owned).collect()
}

#[test]
fn a_fork_goes_on_from_there_as_a_machine_of_its_own() {
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("project"));
    let create = ["--memory", "512M", "--work-disk", "64M"];
    let mother = sandbox.vm("mother", "bare", &create);
    let prepare = sandbox.banger(["vm", "workspace", "prepare", "mother"]).arg(repo.dir());
    prepare.within(SOON).go().ok().done();
    mother.says(
        "echo mother >/kept; echo mother >/root/kept; echo made >/root/project/made 2>/dev/null || true",
    );
    mother.says(COUNTER);
    let who = identity(&mother);
    let exported = |name: &str| {
        let out = sandbox.banger(["vm", "workspace", "export", name, "--json"]).within(SOON).go().ok().json();
        let files = out["files"].as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap().to_owned());
        files.collect::<Vec<String>>()
    };
    let guest_path = mother.show()["workspace"]["guest_path"].as_str().unwrap().to_owned();
    mother.says(&format!("echo new >{guest_path}/from-mother"));

    // Given a command that streams, a fork does not disturb it
    let mut stream = mother.sh("for i in $(seq 1 100); do echo line $i; sleep 0.05; done").start();
    stream.until_stdout("line 5\n");
    let then = count(&mother);
    let child = banger(&sandbox, &["fork", "mother", "--name", "child", "--json"]).ok().json();
    let all: Vec<String> = (1..=100).map(|n| format!("line {n}")).collect();
    assert_eq!(stream.wait().ok().text(), all.join("\n"));
    // and the child is there with all that its parent had
    assert_eq!((&child["name"], &child["state"]), (&"child".into(), &"running".into()), "{child}");
    assert_eq!((&child["parent"]["name"], &child["parent"]["id"]), (&"mother".into(), &mother.show()["id"]));
    assert_eq!(mother.show()["parent"], Value::Null);
    assert_eq!(child["boot"]["kind"], "warm");
    let child = sandbox.existing("child");
    assert_eq!(child.says("cat /kept /root/kept"), "mother\nmother");
    assert!(count(&child) >= then);
    counts_on(&child);
    child.has_the_time();
    child.says(&format!("echo new >{guest_path}/from-child"));
    assert_eq!(exported("child"), ["from-child", "from-mother"]);
    assert_eq!(exported("mother"), ["from-mother"]);

    // A fork of a fork of a fork, three at once
    banger(&sandbox, &["fork", "child", "--name", "grandchild"]).ok().done();
    sandbox.existing("grandchild").says("echo grandchild >/kept");
    let many = banger(&sandbox, &["fork", "grandchild", "--name", "g", "--count", "3", "--json"]).ok().json();
    assert_eq!(many.as_array().unwrap().len(), 3, "{many}");
    let family = ["mother", "child", "grandchild", "g-1", "g-2", "g-3"].map(|name| sandbox.existing(name));
    let identities: Vec<Vec<String>> = family.iter().map(identity).collect();
    assert_eq!(identities[0][..2], who[..2], "the mother is who she was");
    for which in 0..who.len() {
        let different: BTreeSet<&String> = identities.iter().map(|identity| &identity[which]).collect();
        assert_eq!(different.len(), family.len(), "{identities:?}");
    }
    for (vm, name) in family.iter().zip(["mother", "child", "grandchild", "g-1", "g-2", "g-3"]) {
        let kept = if name.starts_with('g') { "grandchild" } else { "mother" };
        assert_eq!(vm.says("cat /kept; hostname"), format!("{kept}\n{name}"));
        counts_on(vm);
    }
    all_is_true(&sandbox);

    // A name that is taken: nothing is begun
    let names = sandbox.vm_names();
    refused(&banger(&sandbox, &["fork", "mother", "--name", "child", "--json"]), "already_exists");
    refused(
        &banger(&sandbox, &["fork", "mother", "--name", "g", "--count", "5", "--json"]),
        "already_exists",
    );
    assert_eq!(sandbox.vm_names(), names);
    all_is_true(&sandbox);

    // Who is left when a parent goes does not notice
    for name in ["child", "grandchild", "g-2"] {
        sandbox.existing(name).delete();
    }
    let rest = ["mother", "g-1", "g-3"].map(|name| sandbox.existing(name));
    rest.iter().for_each(counts_on);
    assert_eq!(rest[1].show()["parent"]["name"], "grandchild");
    // Everybody's disks are sound, and a restart is a boot from them
    rest[1].says("echo own >/kept");
    rest[1].is_sound();
    rest[1].verb("start", &[]).ok().done();
    assert_eq!(rest[1].says("cat /kept; hostname"), "own\ng-1");
    rest[2].is_sound();
    rest[0].is_sound();
    for vm in rest {
        vm.delete();
    }
    assert_eq!(fs::read_dir(sandbox.state().join("vms")).unwrap().count(), 0);
    sandbox.no_vm_is_left();
}

#[test]
fn a_fork_of_a_guest_that_writes_loses_nothing_on_either_side() {
    const MIB: usize = 1 << 20;
    let sandbox = Sandbox::bare();
    let mother = sandbox.vm("writer", "bare", &["--memory", "512M"]);
    // Given a guest in the midst of writing
    mother.says("yes 0123456789abcdef | head -c 1048576 >/dev/shm/part; \
         (for i in $(seq 100); do cat /dev/shm/part; sleep 0.03; done >/big; sync; touch /done) </dev/null >/dev/null 2>&1 &",
    );
    let written = |vm: &Vm<'_>| vm.says("stat -c %s /big 2>/dev/null || echo 0").parse::<usize>().unwrap();
    wait::must("it has begun", SOON, || written(&mother) > MIB);
    // When it is forked, and again while paused
    banger(&sandbox, &["fork", "writer", "--name", "one"]).ok().done();
    mother.verb("pause", &[]).ok().done();
    banger(&sandbox, &["fork", "writer", "--name", "two"]).ok().done();
    assert_eq!(mother.show()["state"], "paused");
    mother.verb("resume", &[]).ok().done();
    // Then each writes it to the end, and it is what it should be
    let mut part = "0123456789abcdef\n".repeat(MIB / 16);
    part.truncate(MIB);
    let expected = Sha256::digest(part.repeat(100));
    let expected: String = expected.iter().map(|byte| format!("{byte:02x}")).collect();
    let all = [mother, sandbox.existing("one"), sandbox.existing("two")];
    for vm in &all {
        wait::must("it has written all", SOON, || vm.says("test -e /done && echo yes || echo no") == "yes");
        assert_eq!(vm.says("sha256sum /big | cut -d' ' -f1"), expected);
        vm.has_the_time();
        vm.is_sound();
    }
    for vm in all {
        vm.delete();
    }
    sandbox.no_vm_is_left();
}
