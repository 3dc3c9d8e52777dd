//! Control groups: what a VM's programs may take. As root, where version 2 has the controllers for it, in a group that
//! the test makes and gives to itself; elsewhere it says why not.
#![expect(clippy::unwrap_used, reason = "a test's helpers may fail it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use banger_model::{Layer, Mib, VmId};
use banger_vmm::cage::group::{self, Groups, Limits};
use banger_vmm::process::{ProcessId, mark};
use banger_vmm::{Cage, Policy, Spawned, Standalone, VmmError};

fn cage(required: Vec<Layer>) -> Cage {
    Cage::beside(Path::new(env!("CARGO_BIN_EXE_banger-cage")).parent().unwrap(), required)
}

fn id() -> VmId {
    VmId::from_random([0xec, 0, 0, 0, 0, 1])
}

/// A shell and a child of its, in a cage.
fn start(cage: &Cage, dir: &Path) -> Result<Spawned, VmmError> {
    let mut policy = Policy::nothing(mark(&id()));
    policy.read.push("/bin/sleep".into());
    let shell = Standalone::new(Path::new("/bin/sh"), &dir.join("log"), dir);
    shell.args(["-c", "/bin/sleep 600 & wait"]).caged(cage, policy).spawn()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

/// A group like one that systemd gives to a service with `Delegate=yes`.
struct Given(PathBuf);

impl Given {
    fn new() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let at = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let at = words.next()?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(at))
        });
        let at = at.ok_or("no control groups of version 2 are mounted")?;
        let given = fs::read_to_string(at.join("cgroup.subtree_control")).map_err(|e| e.to_string())?;
        for controller in ["memory", "pids"] {
            if !given.split_ascii_whitespace().any(|c| c == controller) {
                return Err(format!("groups below {} have no '{controller}' controller", at.display()));
            }
        }
        let own = at.join(format!("bt-group-{}", std::process::id()));
        fs::create_dir(&own).map_err(|e| format!("{}: {e}", own.display()))?;
        // As systemd marks it; elsewhere nobody asks for that.
        let flags = rustix::fs::XattrFlags::empty();
        let _ = rustix::fs::setxattr(&own, "trusted.delegate", b"1", flags);
        Ok(Self(own))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
            let _ = group::remove(&entry.path());
        }
        let _ = group::remove(&self.0);
    }
}

#[test]
fn each_vm_has_a_control_group_with_limits_and_nothing_of_it_stays() {
    let given = match Given::new() {
        Ok(given) => given,
        Err(why) => return println!("skipped: {why}"),
    };
    // A process moves itself: it has to be another one than all tests'.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo 0 > \"$1\"/cgroup.procs && shift && exec \"$@\"", "sh"]).arg(&given.0);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "in_a_group_of_its_own", "--nocapture"]);
    let output = command.env("GIVEN", &given.0).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Not a test: started by the one above.
#[test]
#[ignore = "a part of the other test"]
fn in_a_group_of_its_own() {
    let given = PathBuf::from(std::env::var_os("GIVEN").unwrap());
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Given a group with one that an earlier process left
    fs::create_dir(given.join("banger-vm-left")).unwrap();
    let groups = Groups::take().unwrap();
    // Then this process is below it, nothing is left, and one that starts there finds the same
    assert_eq!(read(&given.join("bangerd/cgroup.procs")), std::process::id().to_string());
    assert!(!given.join("banger-vm-left").exists());
    assert_eq!(Groups::take().unwrap(), groups);

    // When a VM's programs start
    groups.make(&mark(&id()), Limits { memory: Mib(64), vcpu: 2 }).unwrap();
    let own = groups.of(&mark(&id()));
    let cage = cage(vec![Layer::Cgroup]).with_groups(Ok(groups.clone()));
    let shell = start(&cage, dir.path()).unwrap();
    assert!(shell.security().has(Layer::Cgroup), "{:?}", shell.security());
    // Then they, and what they start, are in a group with limits
    let inside = || read(&own.join("cgroup.procs"));
    while inside().lines().count() < 2 {
        std::thread::yield_now();
    }
    assert!(inside().lines().any(|pid| pid == shell.process().pid.to_string()), "{}", inside());
    let memory: u64 = read(&own.join("memory.max")).parse().unwrap();
    assert!((64 << 20..4 << 30).contains(&memory), "{memory}");
    assert_eq!(read(&own.join("memory.oom.group")), "1");
    assert!(read(&own.join("pids.max")).parse::<u32>().unwrap() < 1000);
    if own.join("cpu.weight").exists() {
        assert_eq!(read(&own.join("cpu.weight")), "200");
    }
    // And neither the daemon's own programs nor a doctor's look are in the way of its end
    assert!(cage.probe().unwrap().has(Layer::Cgroup));
    let members: Vec<ProcessId> =
        inside().lines().map(|pid| ProcessId::of(pid.parse().unwrap()).unwrap().unwrap()).collect();
    let _released = shell.release();
    group::remove(&own).unwrap();
    assert!(!own.exists());
    assert!(members.iter().all(|process| !process.is_alive()));
    let left: Vec<_> = fs::read_dir(&given).unwrap().flatten().filter(|e| e.path().is_dir()).collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_control_group_that_is_required_and_missing_keeps_the_program_from_starting() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let cage = cage(vec![Layer::Cgroup]).with_groups(Err("nobody gave it one".to_owned()));
    let error = start(&cage, dir.path()).unwrap_err();
    assert!(matches!(&error, VmmError::CageIncomplete { layer: Layer::Cgroup, .. }), "{error:?}");
    assert!(error.to_string().contains("nobody gave it one"), "{error}");
    let error: banger_model::Error = error.into();
    assert!(error.hint.unwrap().contains("Delegate=yes"));
}
