//! What people leave in a machine is there again: after a stop without anybody's fsync, and after
//! the machine was killed, everything that was.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::fmt::Write as _;
use std::time::Duration;

use banger_testkit::{Sandbox, Vm, wait};
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

/// Writes files 0…N-1, each with a line that no other has, and flushes nothing.
const WRITE: &str = "mkdir -p /many && cd /many && i=0; while [ $i -lt 10000 ]; do \
    echo \"file $i of 10000\" >f$((100000 + i)) || exit 1; i=$((i + 1)); done";
/// All of them, in order.
const READ: &str = "cd /many && ls | wc -l && ls | xargs cat | sha256sum";

fn expected() -> String {
    let mut all = String::new();
    for i in 0..10_000 {
        writeln!(all, "file {i} of 10000").unwrap();
    }
    let digest = Sha256::digest(all.as_bytes());
    digest.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn kill_vmm(vm: &Vm<'_>) {
    let pid = vm.show()["pid"].as_u64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    wait::must("the end is seen", Duration::from_secs(20), || vm.show()["state"] != "running");
}

#[test]
fn what_was_written_before_a_stop_or_fsynced_before_a_kill_is_there() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("keeper", "bare", &["--network", "none"]);

    // Given 10 000 small files written just now and not flushed, when it is stopped and started
    vm.sh(WRITE).within(Duration::from_secs(120)).go().ok().done();
    vm.verb("stop", &[]).ok().done();
    vm.verb("start", &[]).ok().done();
    // Then all are there with their content.
    let read = vm.sh(READ).within(Duration::from_secs(120)).go().ok();
    let mut lines = read.text().lines();
    assert_eq!(lines.next().map(str::trim), Some("10000"), "{read}");
    assert!(lines.next().unwrap().starts_with(&expected()), "{read}");

    // Given a program that writes and fsyncs, and says so each time, and much that is not flushed
    let script = "mkdir -p /synced && cd /synced && i=0; while :; do echo \"unsynced $i\" >/synced/noise; \
        echo \"line $i\" | dd of=f$i conv=fsync 2>/dev/null && echo \"synced $i\"; i=$((i + 1)); done";
    let mut writer = vm.sh(script).start();
    writer.until_stdout("synced 40\n");
    // When its VMM is killed in the middle
    kill_vmm(&vm);
    let out = writer.wait().ends_with(125);
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    let last: u32 = said.lines().last().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(vm.show()["state"], "error", "a machine that was killed did not stop in good order");
    // Then the file system mounts again, and what was said to be synced is there.
    vm.verb("start", &[]).ok().done();
    let script = format!(
        "cd /synced && i=0; while [ $i -le {last} ]; do read line <f$i && [ \"$line\" = \"line $i\" ] || \
         {{ echo \"f$i: '$line'\"; exit 1; }}; i=$((i + 1)); done; echo still writable >/new && cat /new"
    );
    assert_eq!(vm.sh(&script).go().ok().text(), "still writable");
    let read = vm.sh(READ).within(Duration::from_secs(120)).go().ok();
    assert!(read.text().contains(&expected()), "{read}");
    vm.delete();
    sandbox.no_vm_is_left();
}
