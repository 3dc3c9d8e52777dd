//! Many VMs: what the list costs beside a command that does nothing, and what a daemon's start
//! costs beside that of a daemon without any VM.

use banger_testkit::Sandbox;
use banger_testkit::measure::median;

use super::{Line, ROUNDS, clocked};

/// VMs that are stopped; two more run.
const STOPPED: usize = 200;

pub(crate) fn many(lines: &mut Vec<Line>) {
    eprintln!("bench: the list and the daemon's start with {STOPPED} VMs");
    let (sandbox, without) = (Sandbox::bare(), Sandbox::empty());
    let flags = ["--image", "bare", "--network", "none"];
    for n in 0..STOPPED {
        let create = sandbox.banger(["vm", "create", "--no-start", "--name", &format!("stopped-{n}")]);
        create.args(flags).go().ok().done();
    }
    let running = ["runs-1", "runs-2"].map(|name| sandbox.vm(name, "bare", &["--network", "none"]));

    let (mut versions, mut lists, mut wholes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        versions.push(clocked(sandbox.banger(["version"])));
        lists.push(clocked(sandbox.banger(["ps"])));
        wholes.push(clocked(sandbox.banger(["ps", "-a"])));
    }
    let (version, list, whole) = (median(versions), median(lists), median(wholes));
    lines.push(Line {
        what: "`banger ps` with 200 VMs, 2 of them running",
        value: format!("{list:.1} ms (`ps -a`: {whole:.1} ms)"),
        beside: format!("`banger version`: {version:.1} ms"),
        ratio: Some(list / version),
        bound: "3 × version".to_owned(),
        kept: list / version <= 3.0,
    });

    let start = |sandbox: &Sandbox| {
        sandbox.banger(["daemon", "stop"]).go().ok().done();
        clocked(sandbox.banger(["daemon", "start"]))
    };
    without.banger(["daemon", "start"]).go().ok().done();
    let (mut starts, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(start(&without));
        starts.push(start(&sandbox));
    }
    // It is not a fast start that has forgotten something.
    assert_eq!(sandbox.vm_names().len(), STOPPED + running.len());
    for vm in running {
        vm.exec(["true"]).go().ok().done();
        vm.delete();
    }
    let (took, floor) = (median(starts), median(floors));
    lines.push(Line {
        what: "daemon start, 200 VMs stopped and 2 running",
        value: format!("{took:.1} ms"),
        beside: format!("the same without a VM: {floor:.1} ms"),
        ratio: Some(took / floor),
        bound: "3 × floor".to_owned(),
        kept: took / floor <= 3.0,
    });
    let mut names = sandbox.vm_names();
    while !names.is_empty() {
        let some = names.split_off(names.len().saturating_sub(50));
        sandbox.banger(["vm", "delete"]).args(some).go().ok().done();
    }
    sandbox.no_vm_is_left();
}
