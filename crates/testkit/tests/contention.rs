//! Many clients at once: one name, four machines, no error but those that are documented.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use banger_testkit::{Output, Sandbox, random};

/// What two commands on one VM may say to each other (docs/cli.md, "Errors").
const DOCUMENTED: &[&str] = &["not_running", "busy"];

fn code(out: &Output) -> String {
    out.json_error()["code"].as_str().unwrap().to_owned()
}

#[test]
fn of_fifty_who_want_one_name_one_gets_it() {
    let sandbox = Sandbox::bare();
    // The daemon is there: this is about names, not about fifty who start a daemon.
    sandbox.banger(["vm", "list"]).go().ok().done();
    let create = || {
        let words = ["vm", "create", "--name", "same", "--image", "bare", "--network", "none", "--json"];
        sandbox.banger(words).within(Duration::from_secs(180)).start()
    };
    let all: Vec<_> = (0..50).map(|_| create()).collect();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for one in all {
        let out = one.wait();
        let end = if out.code() == 0 { "made".to_owned() } else { code(&out) };
        *ends.entry(end).or_default() += 1;
    }
    assert_eq!(ends, BTreeMap::from([("already_exists".to_owned(), 49), ("made".to_owned(), 1)]));
    let vm = sandbox.existing("same");
    assert_eq!(vm.show()["state"], "running");
    vm.exec(["true"]).go().ok().done();
    vm.delete();
    sandbox.no_vm_is_left();
}

/// `BANGER_CONTENTION_SECONDS=60` makes it the whole minute that is promised; `make soak` does.
#[test]
fn sixteen_clients_on_four_machines_meet_no_error_but_the_documented() {
    let seconds = std::env::var("BANGER_CONTENTION_SECONDS").map_or(15, |s| s.parse().unwrap());
    let sandbox = Sandbox::bare();
    let names = ["one", "two", "three", "four"];
    for name in names {
        let words = ["vm", "create", "--no-start", "--name", name, "--image", "bare", "--network", "none"];
        sandbox.banger(words).go().ok().done();
    }
    let end = Instant::now() + Duration::from_secs(seconds);
    let met: Mutex<BTreeMap<String, usize>> = Mutex::default();
    let client = |number: u64| {
        for turn in 0u64.. {
            if Instant::now() >= end {
                return;
            }
            let dice = random::bytes(2, number * 1_000_003 + turn * 2 + 1);
            let name = names[usize::from(dice[0]) % names.len()];
            let words: &[&str] = match dice[1] % 8 {
                0..=2 => &["vm", "list", "-a"],
                3..=4 => &["vm", "show", name],
                5..=6 => &["vm", "start", name],
                _ => &["vm", "stop", name],
            };
            let run = sandbox.banger(words).arg("--json").within(Duration::from_secs(180));
            let out = run.go();
            let says = if out.code() == 0 { "done".to_owned() } else { code(&out) };
            assert!(says == "done" || DOCUMENTED.contains(&says.as_str()), "client {number}: {out}");
            *met.lock().unwrap().entry(format!("{} {says}", words[1])).or_default() += 1;
        }
    };
    std::thread::scope(|scope| {
        for number in 0..16 {
            let client = &client;
            scope.spawn(move || client(number));
        }
    });
    let met = met.into_inner().unwrap();
    println!("in {seconds} s: {met:?}");
    assert!(met.contains_key("start done") && met.contains_key("stop done"), "{met:?}");
    let log = std::fs::read_to_string(sandbox.state().join("bangerd.log")).unwrap();
    assert!(!log.contains("database is locked") && !log.contains("panicked"), "{}", sandbox.log_tail());
    // Nothing hangs behind them: each machine still does what it is told.
    for name in names {
        let vm = sandbox.existing(name);
        vm.verb("start", &[]).ok().done();
        vm.exec(["true"]).go().ok().done();
        vm.delete();
    }
    sandbox.no_vm_is_left();
}
