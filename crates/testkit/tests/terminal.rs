//! Terminals and signals: what a person at a keyboard relies on.

use banger_testkit::terminal::Terminal;
use banger_testkit::{Sandbox, wait};
use rustix::process::Signal;
use std::time::Duration;

const CAUGHT: &str = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done";

#[test]
fn keys_sizes_and_ctrl_c_reach_the_guest_and_the_terminal_is_sane_afterwards() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("tty", "bare", &[]);

    // Ctrl-C goes to the guest's process group, not to banger.
    let mut terminal = Terminal::run(vm.exec_with(&["-t"], ["sh", "-c", CAUGHT]), 24, 80);
    terminal.sees("ready");
    assert!(terminal.is_raw(), "keys must reach the guest one by one");
    terminal.types(b"\x03");
    terminal.sees("caught");
    assert_eq!(terminal.status(), 9);
    terminal.is_as_before();

    // A command that does not catch it is killed by it.
    let mut terminal = Terminal::run(vm.exec_with(&["-t"], ["sleep", "600"]), 24, 80);
    wait::must("sleep runs", Duration::from_secs(20), || vm.sh("pidof sleep").go().code() == 0);
    terminal.types(b"\x03");
    assert_eq!(terminal.status(), 130);
    terminal.is_as_before();

    // The size is right from the start and follows the window.
    let script = "stty size; trap 'stty size' WINCH; echo ready; while :; do sleep 0.1; done";
    let mut terminal = Terminal::run(vm.exec_with(&["-t"], ["sh", "-c", script]), 33, 77);
    terminal.sees("33 77");
    terminal.sees("ready");
    terminal.resize(44, 99);
    terminal.sees("44 99");
    terminal.types(b"\x03");
    terminal.status();
    terminal.is_as_before();

    // A shell is a shell.
    let mut terminal = Terminal::run(sandbox.banger(["shell", "tty"]), 24, 80);
    terminal.types(b"echo $((6*7)) $TERM\n");
    terminal.sees("42 xterm");
    terminal.types(b"exit 5\n");
    assert_eq!(terminal.status(), 5);
    terminal.is_as_before();

    // When banger itself is told to go, it leaves the terminal as it found it, and no guest process.
    let mut terminal = Terminal::run(vm.exec_with(&["-t"], ["sleep", "601"]), 24, 80);
    wait::must("sleep runs", Duration::from_secs(20), || vm.sh("pidof sleep").go().code() == 0);
    terminal.signal(Signal::TERM);
    assert_ne!(terminal.status(), 0);
    terminal.is_as_before();
    wait::must("the guest's process is gone", Duration::from_secs(20), || {
        vm.sh("pidof sleep").go().code() != 0
    });
    vm.delete();
}

#[test]
fn signals_are_passed_on_without_a_terminal_too() {
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("signals", "bare", &[]);
    let mut running = vm.sh(CAUGHT).start();
    running.until_stdout("ready");
    running.signal(Signal::INT);
    let out = running.wait().ends_with(9);
    assert!(out.text().ends_with("caught"), "{out}");

    let mut running = vm.sh("echo ready; sleep 600").start();
    running.until_stdout("ready");
    running.signal(Signal::TERM);
    running.wait().ends_with(143).done();
    wait::must("the whole group got it", Duration::from_secs(20), || vm.sh("pidof sleep").go().code() != 0);

    // A client that vanishes takes its command with it.
    let mut running = vm.sh("echo ready; sleep 602").start();
    running.until_stdout("ready");
    running.signal(Signal::KILL);
    running.wait().ends_with(137).done();
    wait::must("no orphan in the guest", Duration::from_secs(20), || vm.sh("pidof sleep").go().code() != 0);
    vm.delete();
}

#[test]
fn rm_deletes_after_ctrl_c_too() {
    let sandbox = Sandbox::bare();
    let run =
        || sandbox.banger(["run", "--rm", "--image", "bare", "--", "sh", "-c", "echo ready; sleep 600"]);
    let gone = || wait::must("the VM is gone", Duration::from_secs(30), || sandbox.vm_names().is_empty());

    // In a terminal, while the command runs.
    let tty =
        sandbox.banger(["run", "--rm", "-t", "--image", "bare", "--", "sh", "-c", "echo ready; sleep 600"]);
    let mut terminal = Terminal::run(tty, 24, 80);
    terminal.sees("ready");
    terminal.types(b"\x03");
    assert_eq!(terminal.status(), 130);
    terminal.is_as_before();
    gone();

    // By a signal to banger, while the command runs.
    let mut running = run().start();
    running.until_stdout("ready");
    running.signal(Signal::INT);
    running.wait().ends_with(130).done();
    gone();

    // While it boots.
    let running = run().start();
    wait::must("the VM is there", Duration::from_secs(20), || !sandbox.vm_names().is_empty());
    running.signal(Signal::INT);
    assert_ne!(running.wait().code(), 0);
    gone();

    // When banger is killed outright, the daemon sees it go.
    let mut running = run().start();
    running.until_stdout("ready");
    running.signal(Signal::KILL);
    running.wait().ends_with(137).done();
    gone();
    sandbox.no_vm_is_left();
}
