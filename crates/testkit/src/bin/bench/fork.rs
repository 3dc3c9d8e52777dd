//! Forks: how long until a child answers, and how long its parent stands still for it, beside a cold run.

use std::process::Stdio;

use banger_testkit::Sandbox;
use banger_testkit::measure::{median, ms, time};

use super::{Line, clocked};

/// How often each thing is measured.
const ROUNDS: usize = 15;
/// What the parent has written to its memory since it booted.
const DIRTY: &str = "dd if=/dev/urandom of=/dev/shm/dirty bs=1M count=100";

pub(crate) fn fork(lines: &mut Vec<Line>) {
    eprintln!("bench: a fork of a VM of 512 MiB with 100 MiB written to");
    let sandbox = Sandbox::bare();
    let parent = sandbox.vm("parent", "bare", &["--memory", "512M"]);
    parent.sh(DIRTY).go().ok().done();
    let cold = || {
        let run = ["run", "--rm", "--image", "bare", "--memory", "512M", "--cold", "--", "true"];
        clocked(sandbox.banger(run))
    };
    cold();
    let (mut colds, mut forks, mut pauses) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        colds.push(cold());
        let mut pause = 0.0;
        let forked = time(|| {
            pause = forked(&sandbox);
            clocked(sandbox.banger(["vm", "exec", "child", "--", "true"]));
        });
        forks.push(ms(forked));
        pauses.push(pause);
        sandbox.existing("child").delete();
    }
    parent.exec(["true"]).go().ok().done();
    parent.delete();
    let (cold, fork, pause) = (median(colds), median(forks), median(pauses));
    for (what, took, part) in [
        ("`vm fork` of 512 MiB, 100 MiB written to, to the child's first answer", fork, 0.25),
        ("… its parent stands still for", pause, 0.1),
    ] {
        lines.push(Line {
            what,
            value: format!("{took:.0} ms"),
            beside: format!("cold `run --rm -- true`: {cold:.0} ms"),
            ratio: Some(took / cold),
            bound: format!("{part} × cold"),
            kept: took / cold <= part,
        });
    }
    sandbox.no_vm_is_left();
}

/// Forks the parent; how long it stood still, milliseconds, as the command says.
fn forked(sandbox: &Sandbox) -> f64 {
    let mut command = sandbox.banger(["vm", "fork", "parent", "--name", "child"]).into_command();
    let out = command.stdin(Stdio::null()).output().expect("the program runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let words: Vec<&str> = said.split_whitespace().collect();
    let number = words.windows(2).find(|pair| pair[1] == "ms").and_then(|pair| pair[0].parse().ok());
    number.unwrap_or_else(|| panic!("no pause is told: {said}"))
}
