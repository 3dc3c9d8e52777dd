//! `make soak MINUTES=n`: random operations of two clients on real VMs, and somebody who kills daemons,
//! machines and their networks at random. Every round ends with the truth, and the last with nothing
//! left. `BANGER_SOAK_SEED` throws the same dice again (what meets what is still a matter of time).

#![expect(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use banger_testkit::leaks::Thing;
use banger_testkit::random::Dice;
use banger_testkit::repo::Repo;
use banger_testkit::{Output, Sandbox, truth};
use rustix::process::{Pid, Signal, kill_process};

const NAMES: [&str; 3] = ["ash", "elm", "oak"];
/// What each of the two clients asks in a round.
const ASKS: usize = 5;
/// What these may say to each other, to a dying daemon and to a dying machine.
const DOCUMENTED: [&str; 10] = [
    "not_found",
    "already_exists",
    "not_running",
    "busy",
    "unavailable",
    "boot_failed",
    "guest_failed",
    "cancelled",
    "timeout",
    "invalid_argument",
];

struct Soak {
    sandbox: Sandbox,
    repo: Repo,
    ends: Mutex<BTreeMap<String, usize>>,
    paths: AtomicUsize,
}

impl Soak {
    fn ask(&self, dice: &mut Dice) {
        let name = *dice.one(&NAMES);
        let (repo, path) = (self.repo.dir().to_string_lossy(), self.paths.fetch_add(1, Ordering::Relaxed));
        let guest = format!("/srv/{path}");
        let network = *dice.one(&["user", "none"]);
        let create = [
            "vm",
            "create",
            "--name",
            name,
            "--image",
            "bare",
            "--vcpu",
            "1",
            "--network",
            network,
            "--json",
        ];
        let words: Vec<&str> = match dice.below(20) {
            0..=4 => create.to_vec(),
            5 => create.iter().copied().chain(["--no-start"]).collect(),
            6..=9 => vec!["vm", "start", name, "--json"],
            10..=11 => vec!["vm", "stop", name, "--json"],
            12..=13 => vec!["vm", "restart", name, "--json"],
            14 => vec!["vm", "kill", name, "--json"],
            15 => vec!["vm", "delete", name, "--json"],
            16 => vec!["vm", "delete", "-f", name, "--json"],
            17 => vec!["vm", "exec", name, "--json", "--", "sh", "-c", "sync; echo alive"],
            18 => vec!["vm", "workspace", "prepare", name, &repo, "--guest-path", &guest, "--json"],
            _ => vec!["run", "--rm", "--image", "bare", "--json", "--", "true"],
        };
        let run = self.sandbox.banger(&words).within(Duration::from_secs(240));
        // Now and then somebody presses Ctrl-C.
        let out = if dice.below(6) == 0 {
            let running = run.start();
            std::thread::sleep(Duration::from_millis(dice.below(2500)));
            let _ = rustix::process::kill_process(
                Pid::from_raw(i32::try_from(running.pid()).unwrap()).unwrap(),
                Signal::INT,
            );
            running.wait()
        } else {
            run.go()
        };
        self.note(&words, &out);
    }

    fn note(&self, words: &[&str], out: &Output) {
        let verb = if words[0] == "run" { "run" } else { words[1] };
        let interrupted = out.code() == 130;
        let end = if out.code() == 0 {
            "done".to_owned()
        } else if interrupted {
            "interrupted".to_owned()
        } else {
            let text = out.err();
            let last = text.lines().last().unwrap_or_default();
            let error: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
            let code = error["error"]["code"].as_str().unwrap_or("nothing").to_owned();
            assert!(DOCUMENTED.contains(&code.as_str()), "not an error that is documented: {out}");
            code
        };
        *self.ends.lock().unwrap().entry(format!("{verb} {end}")).or_default() += 1;
    }

    /// Kills one process of ours: the daemon, or one that runs for a VM.
    fn strike(&self, dice: &mut Dice) {
        let (what, pid) = if dice.below(2) == 0 {
            ("daemon", self.sandbox.daemon())
        } else {
            let all: Vec<Thing> = self.sandbox.processes();
            let of_vms: Vec<_> = all.iter().filter(|p| p.detail.contains("banger-vm-")).collect();
            if of_vms.is_empty() {
                return;
            }
            ("process of a VM", dice.one(&of_vms).key.parse().ok())
        };
        let Some(pid) = pid.and_then(|p| Pid::from_raw(i32::try_from(p).unwrap_or_default())) else { return };
        if kill_process(pid, Signal::KILL).is_ok() {
            *self.ends.lock().unwrap().entry(format!("killed: {what}")).or_default() += 1;
        }
    }

    fn round(&self, seed: u64) {
        let client = |number: u64| {
            let mut dice = Dice::new(seed * 3 + number);
            (0..ASKS).for_each(|_| self.ask(&mut dice));
        };
        std::thread::scope(|scope| {
            for number in 0..2 {
                scope.spawn(move || client(number));
            }
            scope.spawn(|| {
                let mut dice = Dice::new(seed * 3 + 2);
                for _ in 0..dice.below(4) {
                    std::thread::sleep(Duration::from_millis(dice.below(5000)));
                    self.strike(&mut dice);
                }
            });
        });
    }

    /// What runs answers; what is fsynced is there for ever.
    fn alive(&self) {
        for name in self.sandbox.vm_names() {
            let vm = self.sandbox.existing(&name);
            if vm.show()["state"] == "running" {
                assert_eq!(vm.exec(["echo", "alive"]).go().ok().text(), "alive");
            }
        }
    }
}

#[test]
#[ignore = "for make soak: it takes as long as it is told to"]
fn random_operations_and_random_kills_leave_the_truth_and_nothing_else() {
    let minutes: u64 = std::env::var("BANGER_SOAK_MINUTES").map_or(3, |m| m.parse().unwrap());
    let random =
        || u64::from(std::process::id()) ^ u64::from(std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos());
    let seed = std::env::var("BANGER_SOAK_SEED").map_or_else(|_| random(), |s| s.parse().unwrap());
    println!("soak: {minutes} min, BANGER_SOAK_SEED={seed}");
    let sandbox = Sandbox::bare();
    let repo = Repo::make(&sandbox.work("repo"));
    let soak = Soak { sandbox, repo, ends: Mutex::default(), paths: AtomicUsize::new(0) };
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut rounds = 0;
    while Instant::now() < end {
        soak.round(seed.wrapping_add(rounds));
        let wrong = truth::untruths(&soak.sandbox);
        assert!(wrong.is_empty(), "after round {rounds} of seed {seed}:\n{}", wrong.join("\n"));
        soak.alive();
        rounds += 1;
    }
    let log = std::fs::read_to_string(soak.sandbox.state().join("bangerd.log")).unwrap();
    assert!(!log.contains("panicked") && !log.contains("database is locked"), "seed {seed}");
    for name in soak.sandbox.vm_names() {
        soak.sandbox.existing(&name).delete();
    }
    soak.sandbox.no_vm_is_left();
    println!("soak: {rounds} rounds, nothing left. {:?}", soak.ends.lock().unwrap());
}
