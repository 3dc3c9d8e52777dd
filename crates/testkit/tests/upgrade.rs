//! Another version: of the database that a daemon finds, and of the agent in a VM that it takes over.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_daemon::embedded::Embedded;
use banger_model::{ErrorCode, VmId};
use banger_protocol::ProtocolVersion;
use banger_protocol::agent::{AgentHello, VERSION};
use banger_testkit::fake::{FakeDriver, World};
use banger_testkit::{Output, Sandbox, as_invoker, bin_dir, wait, workspace_dir};
use banger_vmm::Driver;
use tokio::runtime::Runtime;

/// Where SQLite keeps `PRAGMA user_version` (sqlite.org/fileformat2.html, 1.3).
const USER_VERSION: std::ops::Range<usize> = 60..64;

/// What the first release wrote.
fn first_database() -> Vec<u8> {
    as_invoker(|| fs::read(workspace_dir().join("crates/store/tests/golden/schema-1.db"))).unwrap()
}

fn newer_database() -> Vec<u8> {
    let mut bytes = first_database();
    bytes[USER_VERSION].copy_from_slice(&999u32.to_be_bytes());
    bytes
}

fn torn_database() -> Vec<u8> {
    let mut bytes = first_database();
    bytes[4096..8192].fill(0xa5);
    bytes
}

fn check(sandbox: &Sandbox) -> Output {
    sandbox.program(bin_dir().join("bangerd")).arg("--check-migrations").go()
}

/// Every file of the state directory with its bytes.
fn files(sandbox: &Sandbox) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(sandbox.state()).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

#[test]
fn an_old_database_is_announced_copied_and_used() {
    // Given none at all, then that of the first release
    let sandbox = Sandbox::empty();
    let database = sandbox.state().join("banger.db");
    let out = check(&sandbox).ok();
    assert!(out.text().contains("not there yet"), "{out}");
    assert!(!sandbox.state().exists(), "a look leaves nothing");
    sandbox.make_state();
    fs::write(&database, first_database()).unwrap();
    // When it is looked at
    let out = check(&sandbox).ok();
    // Then it says what would be done, and does nothing
    let copy = sandbox.state().join("banger.db.v1.bak");
    for word in ["schema 1", "work disks", copy.to_str().unwrap()] {
        assert!(out.text().contains(word), "{word}: {out}");
    }
    assert_eq!(files(&sandbox), BTreeMap::from([(database.clone(), first_database())]));
    // And a daemon does that, and has what was in it
    let listed = sandbox.banger(["vm", "list", "-a", "--json"]).go().ok().json();
    let names: Vec<&str> = listed.as_array().unwrap().iter().map(|vm| vm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["vm-1", "vm-2"]);
    assert_eq!(listed[0]["image"], "debian");
    // Its files are not here: that is what the list says, and what can be deleted.
    assert_eq!(listed[0]["state"], "error", "{listed}");
    assert!(check(&sandbox).ok().text().contains("nothing to do"));
    // And the way back: stop, put the copy in its place, and the old version has what it had
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    assert!(check(&sandbox).ok().text().contains("nothing to do"));
    fs::rename(&copy, &database).unwrap();
    assert!(check(&sandbox).ok().text().contains("schema 1"));
    for name in ["vm-1", "vm-2"] {
        sandbox.banger(["vm", "delete", name]).go().ok().done();
    }
    sandbox.no_vm_is_left();
}

#[test]
fn a_newer_or_damaged_database_is_refused_and_left_as_it_is() {
    for (bytes, code, word) in
        [(newer_database(), "unsupported", "newer"), (torn_database(), "unavailable", "damaged")]
    {
        let sandbox = Sandbox::empty();
        let database = sandbox.state().join("banger.db");
        sandbox.make_state();
        fs::write(&database, &bytes).unwrap();
        // When it is looked at, then that is said with what to do
        let out = check(&sandbox).ends_with(1);
        assert!(out.err().contains(word) && out.err().contains("hint: "), "{out}");
        assert_eq!(files(&sandbox), BTreeMap::from([(database.clone(), bytes.clone())]));
        // And a command that needs a daemon says the same
        let error = sandbox.banger(["ps", "--json"]).go().ends_with(1).json_error();
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
        assert!(error["hint"].is_string(), "{error}");
        // And not a byte of it is another one, nor is there anything beside it
        let mut after = files(&sandbox);
        assert_eq!(after.remove(&database), Some(bytes));
        let others: Vec<&PathBuf> = after.keys().filter(|path| name(path).starts_with("banger.db")).collect();
        assert_eq!(others, Vec::<&PathBuf>::new());
    }
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// A daemon in this process, over machines that only sleep.
fn daemon(sandbox: &Sandbox, world: &World) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let env: HashMap<String, String> = sandbox.environment().into_iter().collect();
    let open = || {
        let driver: Arc<dyn Driver> = Arc::new(FakeDriver::new(world.clone()));
        runtime.block_on(Embedded::open(|key| env.get(key).map(Into::into), vec![driver], bin_dir()))
    };
    // A program that another test is just starting has this process's locks until it is itself.
    let opened = wait::until(Duration::from_secs(10), || match open() {
        Err(error) if error.code == ErrorCode::Busy => None,
        opened => Some(opened),
    });
    let embedded = opened.unwrap().unwrap();
    runtime.spawn(embedded.serve());
    runtime
}

#[test]
fn a_daemon_works_with_the_older_agent_of_a_vm_it_takes_over_and_refuses_one_of_another_major() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let (sandbox, world) = (Sandbox::bare(), World::new());
    // Given a VM whose daemon is gone, and whose agent is of the first release and knows little
    let first = daemon(&sandbox, &world);
    let vm = sandbox.vm("old", "bare", &["--network", "none"]);
    let id: VmId = vm.show()["id"].as_str().unwrap().parse().unwrap();
    first.shutdown_timeout(Duration::from_secs(20));
    world.agent(&id, ProtocolVersion { major: 1, minor: 0 }, &["hello", "exec", "shutdown"]);
    // When another takes it over
    let second = daemon(&sandbox, &world);
    // Then commands run
    assert_eq!(vm.show()["state"], "running");
    assert_eq!(vm.exec(["still", "here"]).go().ok().text(), "still here");
    // And what the agent cannot do is said, with a way out
    let repo = banger_testkit::repo::Repo::make(&sandbox.work("project"));
    let prepare = sandbox.banger(["vm", "workspace", "prepare", "old", "--json"]).arg(repo.dir());
    let error = prepare.go().ends_with(1).json_error();
    assert_eq!(error["code"], "unsupported", "{error}");
    assert!(error["hint"].as_str().unwrap().contains("banger vm restart"), "{error}");
    let long = vm.exec_with(&["--json"], ["and", &"x".repeat(100_000)]).go().ends_with(125).json_error();
    assert_eq!(long["code"], "unsupported", "{long}");
    assert!(long["hint"].as_str().unwrap().contains("banger vm restart"), "{long}");
    assert_eq!(vm.exec(["and", "here"]).go().ok().text(), "and here");

    // Given one of another major version
    second.shutdown_timeout(Duration::from_secs(20));
    world.agent(&id, ProtocolVersion { major: VERSION.major + 1, minor: 0 }, AgentHello::CAPABILITIES);
    let third = daemon(&sandbox, &world);
    // Then it is refused, the VM runs on, and a restart brings the present agent
    let refused = vm.exec_with(&["--json"], ["x"]).go().ends_with(125);
    assert_eq!(refused.json_error()["code"], "unsupported", "{refused}");
    assert!(refused.err().contains("banger vm restart"), "{refused}");
    assert_eq!(vm.show()["state"], "running");
    vm.verb("restart", &["--timeout", "1s"]).ok().done();
    assert_eq!(vm.exec(["again"]).go().ok().text(), "again");
    vm.delete();
    sandbox.no_vm_is_left();
    third.shutdown_timeout(Duration::from_secs(20));
    // The next daemon would: this one was killed.
    fs::remove_file(sandbox.runtime().join("bangerd.sock")).unwrap();
}
