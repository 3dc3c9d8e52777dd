//! Long work as operations: begun and left alone, listed, watched, waited for, cancelled, and found in the log.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::time::Duration;

use banger_testkit::{Sandbox, wait};
use rustix::process::Signal;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// A daemon in which these steps do not begin until their operation is cancelled.
fn hold(sandbox: &Sandbox, steps: &[&str]) {
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    let faults: Vec<String> = steps.iter().map(|step| format!("{step}=hold")).collect();
    sandbox.banger(["daemon", "start"]).env("BANGER_FAULT", faults.join(",")).go().ok().done();
}

fn under_way(sandbox: &Sandbox) -> Vec<Value> {
    let list = sandbox.banger(["operation", "list", "--json"]).go().ok().json();
    list.as_array().unwrap().clone()
}

/// The one operation that stands at this stage.
fn at_stage(sandbox: &Sandbox, stage: &str) -> Value {
    let mut found = None;
    wait::must(&format!("one is at {stage}"), SOON, || {
        found = under_way(sandbox).into_iter().find(|op| op["stage"] == stage);
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn work_goes_on_alone_and_is_listed_watched_waited_for_cancelled_and_found_in_the_log() {
    let sandbox = Sandbox::bare();
    sandbox.banger(["daemon", "start"]).go().ok().done();
    let mut watcher = sandbox.banger(["events", "--json"]).within(Duration::from_secs(300)).start();
    watcher.until_stdout("\"watching\"");

    // Given a create that nobody waits for
    let args = ["vm", "create", "--name", "alone", "--image", "bare", "--vcpu", "1", "--detach"];
    let op = sandbox.banger(args).go().ok().text().to_owned();
    assert!(op.starts_with("op-"), "{op}");
    // When it is waited for, then the VM runs
    sandbox.banger(["operation", "wait", &op]).within(Duration::from_secs(120)).go().ok().done();
    let vm = sandbox.existing("alone");
    assert_eq!(vm.show()["state"], "running");
    let shown = sandbox.banger(["operation", "show", &op, "--json"]).go().ok().json();
    assert_eq!(
        (&shown["state"], &shown["kind"], &shown["vm"]),
        (&"done".into(), &"create".into(), &"alone".into())
    );
    // and whoever watched has seen its stages and the VM's states under its id.
    watcher.until_stdout("\"state\":\"done\"");
    let lines: Vec<Value> = String::from_utf8(watcher.stdout_so_far())
        .unwrap()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let states = |kind: &str, of: &dyn Fn(&Value) -> Option<String>| -> Vec<String> {
        lines.iter().filter(|line| line["type"] == kind).filter_map(of).collect()
    };
    let stages = states("operation", &|line| {
        let ours = line["operation"]["id"] == *op;
        ours.then(|| line["operation"]["stage"].as_str().map(str::to_owned)).flatten()
    });
    assert!(["launch", "boot"].iter().all(|stage| stages.iter().any(|s| s == stage)), "{stages:?}");
    let changes = states("vm", &|line| {
        (line["op_id"] == *op).then(|| line["state"].as_str().map(str::to_owned)).flatten()
    });
    assert_eq!(changes, ["created", "starting", "running"]);
    watcher.signal(Signal::INT);
    watcher.wait().ends_with(130).done();

    // Given a start that goes no further, when it is cancelled, then it has unwound and the VM is as it was.
    vm.verb("stop", &[]).ok().done();
    hold(&sandbox, &["start.launch", "start.boot", "restart.power_off"]);
    let op = sandbox.banger(["vm", "start", "alone", "--detach"]).go().ok().text().to_owned();
    assert_eq!(at_stage(&sandbox, "launch")["id"], *op);
    assert_eq!(vm.show()["state"], "starting");
    let other = sandbox.banger(["vm", "delete", "alone"]).start();
    sandbox.banger(["operation", "cancel", &op]).go().ok().done();
    other.wait().ok().done();
    let shown = sandbox.banger(["operation", "show", &op, "--json"]).go().ok().json();
    assert_eq!((&shown["state"], &shown["error"]["code"]), (&"cancelled".into(), &"cancelled".into()));
    sandbox.banger(["operation", "wait", &op]).go().ends_with(1).says(&["cancelled"]).done();
    sandbox.no_vm_is_left();

    // A client that leaves cancels what it waits for: with a signal, and by dying.
    let args = ["vm", "create", "--name", "left", "--image", "bare", "--no-start"];
    sandbox.banger(args).go().ok().done();
    let vm = sandbox.existing("left");
    let client = sandbox.banger(["vm", "start", "left"]).start();
    at_stage(&sandbox, "boot");
    client.signal(Signal::KILL);
    client.wait().ends_with(137).done();
    wait::must("it has unwound", SOON, || under_way(&sandbox).is_empty());
    assert_eq!((&vm.show()["state"], &vm.show()["last_error"]), (&"created".into(), &Value::Null));

    // An error names its operation, and the log has all about it and nothing else.
    let out =
        sandbox.banger(["vm", "create", "--name", "left", "--image", "bare", "--json"]).go().ends_with(1);
    let error = out.json_error();
    assert_eq!(error["code"], "already_exists", "{error}");
    let op = error["op_id"].as_str().unwrap().to_owned();
    let log = sandbox.banger(["daemon", "logs", "--op", &op]).go().ok();
    assert!(log.text().lines().count() >= 1, "{log}");
    for line in log.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let spans = line["spans"].as_array().cloned().unwrap_or_default();
        assert!(line["fields"]["op_id"] == *op || spans.iter().any(|span| span["op_id"] == *op), "{line}");
    }
    assert!(log.text().contains("already_exists"), "{log}");
    sandbox.banger(["daemon", "logs", "--op", "op-000000000000"]).go().ends_with(1).done();
    sandbox.banger(["operation", "show", "op-000000000000"]).go().ends_with(1).says(&["hint:"]).done();

    // What an agent says of an operation is found by its id too.
    vm.verb("start", &[]).ok().done();
    let out = vm.exec_with(&["--json"], ["/nothing/there"]).go().ends_with(127);
    let list = sandbox.banger(["operation", "list", "-a", "-q"]).go().ok();
    assert!(list.text().lines().all(|id| id.starts_with("op-")), "{list} {out}");
    let stop = sandbox.banger(["vm", "stop", "left", "--json"]).go().ok();
    let stops: Vec<Value> =
        sandbox.banger(["operation", "list", "-a", "--json"]).go().ok().json().as_array().unwrap().clone();
    let op = stops.iter().rfind(|op| op["kind"] == "stop").unwrap()["id"].as_str().unwrap().to_owned();
    let log = sandbox.banger(["daemon", "logs", "--op", &op]).go().ok();
    let id = vm.show()["id"].clone();
    let agents: Vec<Value> = log
        .text()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["vm_id"] == id)
        .collect();
    assert!(agents.iter().any(|line| line["console"].as_str().unwrap().contains("shutdown")), "{log} {stop}");

    // A daemon that ends cancels what goes on alone, and leaves nothing of it.
    hold(&sandbox, &["start.boot"]);
    sandbox.banger(["vm", "start", "left", "--detach"]).go().ok().done();
    at_stage(&sandbox, "boot");
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    assert_eq!(sandbox.processes().len(), 0, "{:?}", sandbox.processes());
    assert_eq!(vm.show()["state"], "stopped");
    vm.delete();
    sandbox.no_vm_is_left();
}
