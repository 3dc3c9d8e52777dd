//! The time: a guest's clock is its host's, within a tenth of a second, whatever became of either meanwhile.

use std::time::Duration;

use banger_testkit::Sandbox;

const HOUR: f64 = 3600.0;
const LIMIT: Duration = Duration::from_secs(120);
const SHAPE: &[&str] = &["--memory", "256M"];

#[test]
fn every_guest_has_the_time_after_the_hosts_clock_was_set() {
    let sandbox = Sandbox::bare().warm().with_own_clock();
    sandbox.configure("[warm]\nspares = 1\n");
    let banger = |words: &[&str]| sandbox.banger(["vm"]).args(words).within(LIMIT).go().ok().done();
    let vm = sandbox.vm("old", "bare", SHAPE);
    assert_eq!(vm.boot_kind(), "cold");
    vm.has_the_time();
    sandbox.template_made();
    let of_template = sandbox.vm("before", "bare", SHAPE);
    assert_eq!(of_template.boot_kind(), "warm");
    let spare = sandbox.spares_wait(1).remove(0);
    banger(&["snapshot", "create", "old", "then"]);
    banger(&["pause", "before"]);
    let ran_on = vm.says("cut -d' ' -f1 /proc/uptime").parse::<f64>().expect("seconds");

    // Given a template, a spare, a snapshot and a halted VM that are an hour old; then who runs is told
    sandbox.step_clock(HOUR);
    vm.gets_the_time();
    let now = vm.says("cut -d' ' -f1 /proc/uptime").parse::<f64>().expect("seconds");
    assert!((ran_on..ran_on + 600.0).contains(&now), "what guests measure by did not jump: {ran_on}, {now}");
    // and who goes on has it from the start.
    let taken = sandbox.vm("taken", "bare", SHAPE);
    assert_eq!(taken.show()["id"], spare.as_str());
    taken.has_the_time();
    let clone = sandbox.vm("clone", "bare", SHAPE);
    assert_eq!(clone.boot_kind(), "warm");
    clone.has_the_time();
    banger(&["resume", "before"]);
    of_template.has_the_time();
    banger(&["snapshot", "restore", "old", "then"]);
    vm.has_the_time();
    banger(&["fork", "before", "--name", "child"]);
    let child = sandbox.existing("child");
    child.has_the_time();

    // Back again, further than it was, while one is paused; and a daemon that begins afterwards.
    banger(&["pause", "child"]);
    sandbox.step_clock(-HOUR);
    for vm in [&vm, &clone, &taken] {
        vm.gets_the_time();
    }
    banger(&["resume", "child"]);
    child.has_the_time();
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    sandbox.step_clock(HOUR);
    vm.gets_the_time();
    clone.verb("restart", &[]).ok().done();
    clone.has_the_time();
    // And one that is led away by so little at a time that no step can be told from what reading it takes.
    for times in 1..=16 {
        sandbox.step_clock(HOUR + f64::from(times) * 0.015);
        std::thread::sleep(Duration::from_millis(1100));
    }
    vm.gets_the_time();
    for vm in [vm, of_template, taken, clone, child] {
        vm.delete();
    }
}
