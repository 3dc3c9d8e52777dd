//! The life of VMs, and what is left of them: nothing.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use banger_testkit::{Sandbox, Vm, tree, wait};
use banger_vmm::process::ProcessId;
use rustix::process::{Pid, Signal, kill_process};

fn state(vm: &Vm<'_>) -> String {
    vm.show()["state"].as_str().unwrap().to_owned()
}

fn signal(pid: u64, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

fn kill(pid: u64) {
    signal(pid, Signal::KILL);
    // A dying process may still accept a connection.
    let pid = u32::try_from(pid).unwrap();
    wait::must("it is dead", Duration::from_secs(10), || ProcessId::of(pid).unwrap().is_none());
}

#[test]
fn a_vm_goes_through_all_its_states_and_keeps_its_files() {
    let sandbox = Sandbox::bare();
    sandbox.banger(["vm", "create", "--no-start", "--name", "life", "--image", "bare"]).go().ok().done();
    let vm = sandbox.existing("life");
    assert_eq!(state(&vm), "created");
    vm.exec(["true"]).go().ends_with(125).says(&["life", "banger vm start"]).done();
    vm.verb("start", &[]).ok().done();
    assert_eq!(state(&vm), "running");
    vm.sh("echo kept >/kept").go().ok().done();
    let first = vm.show();

    vm.verb("stop", &[]).ok().done();
    let stopped = vm.show();
    assert_eq!((&stopped["state"], &stopped["pid"]), (&"stopped".into(), &serde_json::Value::Null));
    assert_eq!(sandbox.banger(["ps", "-q"]).go().ok().text(), "", "ps lists what runs");
    assert_eq!(sandbox.vm_names(), ["life"], "-a lists the others too");

    vm.verb("start", &[]).ok().done();
    assert_eq!(vm.exec(["cat", "/kept"]).go().ok().text(), "kept", "stop flushed the guest's disk");
    let boot_id = || vm.exec(["cat", "/proc/sys/kernel/random/boot_id"]).go().ok().text().to_owned();
    let before = boot_id();
    vm.verb("restart", &[]).ok().done();
    assert_ne!(boot_id(), before);
    assert_ne!(vm.show()["pid"], first["pid"]);

    vm.verb("kill", &[]).ok().done();
    assert_ne!(state(&vm), "running");
    vm.verb("start", &[]).ok().done();
    assert_eq!(vm.exec(["cat", "/kept"]).go().ok().text(), "kept");

    // A machine that dies behind our back is noticed, said, and can be started again.
    kill(vm.show()["pid"].as_u64().unwrap());
    wait::must("it is seen", Duration::from_secs(10), || state(&vm) != "running");
    assert_eq!(vm.show()["pid"], serde_json::Value::Null);
    vm.verb("start", &[]).ok().done();

    vm.verb("delete", &[]).ends_with(1).says(&["life", "-f"]).done();
    assert_eq!(state(&vm), "running");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn several_references_run_at_once_and_the_good_ones_go_through() {
    let sandbox = Sandbox::bare();
    let vms = [
        sandbox.vm("one", "bare", &["--network", "none"]),
        sandbox.vm("two", "bare", &["--network", "none"]),
    ];
    let out = sandbox.banger(["vm", "stop", "one", "missing", "two"]).go();
    out.ends_with(1).says(&["missing"]).done();
    assert!(vms.iter().all(|vm| state(vm) == "stopped"));
    sandbox.banger(["vm", "start", "one", "two"]).within(Duration::from_secs(120)).go().ok().done();
    assert!(vms.iter().all(|vm| state(vm) == "running"));
    sandbox
        .banger(["vm", "delete", "-f", "one", "missing", "two"])
        .go()
        .ends_with(1)
        .says(&["missing"])
        .done();
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn twenty_runs_in_a_row_and_four_at_once_leave_nothing() {
    let sandbox = Sandbox::bare();
    let run =
        || sandbox.banger(["run", "--rm", "--image", "bare", "--", "true"]).within(Duration::from_secs(120));
    for _ in 0..20 {
        run().go().ok().done();
    }
    sandbox.no_vm_is_left();
    let four: Vec<_> = (0..4).map(|_| run().start()).collect();
    for one in four {
        one.wait().ok().done();
    }
    assert_eq!(sandbox.vm_names(), Vec::<String>::new());
    sandbox.no_vm_is_left();
}

#[test]
fn a_vm_has_the_vcpus_that_were_asked_for_or_as_many_as_are_of_use() {
    let sandbox = Sandbox::bare();
    let vcpus = |flags: &[&str]| {
        let count = "grep -c ^processor /proc/cpuinfo; grep '^physical id' /proc/cpuinfo | sort -u | wc -l";
        let run = sandbox.banger(["run", "--rm", "--image", "bare", "--network", "none"]).args(flags);
        run.args(["--", "sh", "-c", count]).go().ok().text().to_owned()
    };
    // Emulated ones that take turns are of no use; otherwise it is what doctor says.
    let checks = sandbox.banger(["doctor", "--json"]).go().json();
    let said = |name: &str| {
        let check = checks.as_array().unwrap().iter().find(|c| c["name"] == name);
        check.unwrap()["detail"].as_str().unwrap().to_owned()
    };
    let emulated = said("kvm").contains("software emulation");
    let usual = if emulated && said("qemu").contains("take turns") {
        "1".to_owned()
    } else {
        said("defaults").split_once("vcpu ").unwrap().1.split(' ').next().unwrap().to_owned()
    };
    assert_eq!(vcpus(&[]), format!("{usual}\n1"));
    assert_eq!(vcpus(&["--vcpu", "3"]), "3\n1", "cores of one processor");
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    sandbox.configure("[vm_defaults]\nvcpu = 2\n");
    assert_eq!(vcpus(&[]), "2\n1");
}

#[test]
fn vms_outlive_the_daemon_and_another_daemon_finds_them() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("survivor", "bare", &[]);
    vm.sh("echo kept >/tmp/kept; sleep 1000 >/dev/null 2>&1 &").go().ok().done();
    let pid = vm.show()["pid"].clone();

    // Given a daemon that is killed while a command runs, and one that is killed idle.
    for round in 0..2 {
        let mut under_way = (round == 0).then(|| vm.sh("echo ready; sleep 600").start());
        if let Some(running) = &mut under_way {
            running.until_stdout("ready");
        }
        let daemon = sandbox.daemon().unwrap();
        kill(u64::from(daemon));
        if let Some(running) = under_way {
            running.wait().ends_with(125).done();
        }
        // When the next command comes, then the VM runs on and answers.
        let out = vm.exec(["cat", "/tmp/kept"]).go().ok();
        assert_eq!(out.text(), "kept");
        assert_ne!(sandbox.daemon().unwrap(), daemon);
        assert_eq!(vm.show()["pid"], pid);
        assert_eq!(state(&vm), "running");
    }
    // A daemon that is stopped in good order leaves VMs running too.
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    assert_eq!(vm.exec(["cat", "/tmp/kept"]).go().ok().text(), "kept");

    // A machine that dies while no daemon looks is seen by the next.
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    kill(pid.as_u64().unwrap());
    assert_ne!(state(&vm), "running");
    vm.delete();
    sandbox.no_vm_is_left();
}

#[test]
fn files_and_sockets_are_private_from_birth() {
    let sandbox = Sandbox::bare();
    // Given a shell that would give everything to everybody.
    let banger = banger_testkit::bin_dir().join("banger");
    let script = "umask 000; exec \"$0\" vm create --name private --image bare";
    sandbox.program("sh").args(["-c", script]).arg(&banger).go().ok().done();
    let mut open = Vec::new();
    for dir in [sandbox.state(), sandbox.runtime()] {
        for entry in tree::walk(&dir) {
            // Links have no mode of their own; what the seed shares by hard link is its own business.
            let shared = !entry.dir && entry.links > 1;
            if !entry.link && !shared && entry.mode & 0o077 != 0 {
                open.push(format!("{:o} {}", entry.mode, entry.path.display()));
            }
        }
    }
    // Nobody but who may open our sockets can speak to any of our processes.
    let listening: Vec<String> = sandbox.processes().iter().flat_map(|p| listens(&p.key)).collect();
    let mut home = tree::walk(&sandbox.home());
    // What is banger's, and what the sandbox keeps there for itself.
    let known = [sandbox.state(), sandbox.runtime(), sandbox.work(""), sandbox.tmp()];
    home.retain(|entry| !known.iter().any(|dir| dir.starts_with(&entry.path) || entry.path.starts_with(dir)));
    let home: Vec<_> = home
        .into_iter()
        .map(|entry| entry.path)
        .filter(|path| path.parent() != Some(sandbox.root()))
        .collect();
    sandbox.existing("private").delete();
    assert_eq!(open, Vec::<String>::new());
    assert_eq!(listening, Vec::<String>::new());
    assert_eq!(home, Vec::<std::path::PathBuf>::new(), "the user's home is the user's");
}

/// The TCP addresses at which a process waits for connections, in its own network.
fn listens(pid: &str) -> Vec<String> {
    const LISTEN: &str = "0A";
    let proc = Path::new("/proc").join(pid);
    let sockets: BTreeSet<String> = fs::read_dir(proc.join("fd"))
        .into_iter()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|to| Some(to.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let mut found = Vec::new();
    for table in ["net/tcp", "net/tcp6"] {
        for line in fs::read_to_string(proc.join(table)).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&LISTEN) && fields.get(9).is_some_and(|inode| sockets.contains(*inode)) {
                found.push(format!("{pid} listens at {}", fields[1]));
            }
        }
    }
    found
}

#[test]
fn a_process_that_listens_is_seen() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(listens(&std::process::id().to_string()).len(), 1, "{socket:?}");
}

#[test]
fn a_daemon_that_ends_or_is_replaced_while_a_command_streams_costs_that_command_and_nothing_else() {
    let sandbox = Sandbox::bare();
    // Given an installation of its own, as its programs will be replaced
    let bin = sandbox.work("bin");
    fs::create_dir(&bin).unwrap();
    for program in fs::read_dir(banger_testkit::bin_dir()).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(program.path(), bin.join(program.file_name())).unwrap();
    }
    let banger = |args: &[&str]| sandbox.program(bin.join("banger")).args(args);
    let create = ["vm", "create", "--name", "streams", "--image", "bare", "--vcpu", "1"];
    banger(&create).within(Duration::from_secs(120)).go().ok().done();
    let vm = sandbox.existing("streams");
    let pid = vm.show()["pid"].clone();
    for how in ["asked", "terminated", "killed", "replaced"] {
        let old = sandbox.daemon().unwrap();
        let script = "echo ready; while sleep 1; do echo line; done";
        let mut streams = banger(&["exec", "streams", "--", "sh", "-c", script]).start();
        streams.until_stdout("ready");
        // When the daemon ends in the middle of it
        match how {
            "terminated" => signal(u64::from(old), Signal::TERM),
            "killed" => signal(u64::from(old), Signal::KILL),
            "replaced" => {
                // as an update does it: another file in the old one's place, then an end for the old one.
                let (next, program) = (bin.join("next"), bin.join("bangerd"));
                let mut newer = fs::read(&program).unwrap();
                newer.extend_from_slice(b"a newer build");
                fs::write(&next, newer).unwrap();
                fs::set_permissions(&next, fs::metadata(&program).unwrap().permissions()).unwrap();
                fs::rename(&next, &program).unwrap();
                banger(&["daemon", "stop"]).go().ok().done();
            }
            _ => banger(&["daemon", "stop"]).go().ok().done(),
        }
        // then that command says so, and the next one finds the same machine.
        streams.wait().ends_with(125).says(&["daemon", "hint:"]).done();
        assert_eq!(banger(&["exec", "streams", "--", "echo", "again"]).go().ok().text(), "again", "{how}");
        let new = sandbox.daemon().unwrap();
        assert_ne!(new, old, "{how}");
        assert_eq!((&vm.show()["pid"], state(&vm).as_str()), (&pid, "running"), "{how}");
        if how == "replaced" {
            let (runs, is) = (
                fs::metadata(format!("/proc/{new}/exe")).unwrap(),
                fs::metadata(bin.join("bangerd")).unwrap(),
            );
            assert_eq!((runs.dev(), runs.ino()), (is.dev(), is.ino()), "the newer build serves now");
        }
    }
    vm.delete();
    sandbox.no_vm_is_left();
}
