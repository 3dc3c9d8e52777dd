//! `make bench`: what banger costs, each number beside a floor or a peer measured in the same run.
//!
//! Prints a table on stdout, progress on stderr; the status is 1 when a promised bound is broken.
//! Given `run`, `exec`, `rest`, `fork`, `many`, `export`, `prepare`, `prepare-many`, `cage`, `restore`, `warm` or `spares`, it measures that part only. Medians of [`ROUNDS`] runs; what is compared is run in turns, so that a busy moment hits both.

#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that cannot measure ends by saying why"
)]

mod cage;
mod export;
mod floor;
mod fork;
#[path = "../../../../vmm/tests/guest/mod.rs"]
#[expect(dead_code, reason = "the benchmark needs some of these guests")]
mod guest;
mod many;
mod peer;
mod raw;
mod repositories;
mod restore;
mod spares;
mod warm;
mod workspace;

use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use banger_testkit::guests::rss_kib;
use banger_testkit::measure::{median, ms, time};
use banger_testkit::{Run, Sandbox, Seed, become_user, bin_dir};

/// How often each thing is measured.
const ROUNDS: usize = 9;

/// One line of the table.
struct Line {
    what: &'static str,
    value: String,
    beside: String,
    ratio: Option<f64>,
    bound: String,
    kept: bool,
}

/// Measures some things and adds their lines.
type Part = fn(&mut Vec<Line>);

fn main() -> ExitCode {
    // What is promised is promised to an ordinary user.
    become_user();
    let mut lines = Vec::new();
    let wanted = std::env::args().nth(1);
    let parts: [(&str, Part); 12] = [
        ("run", cold_run),
        ("exec", exec_against_ssh),
        ("rest", at_rest),
        ("fork", fork::fork),
        ("many", many::many),
        ("prepare", workspace::sources),
        ("prepare-many", workspace::small_files),
        ("export", export::export),
        ("cage", cage::cage),
        ("restore", restore::restore),
        ("warm", warm::warm),
        ("spares", spares::spares),
    ];
    if let Some(wanted) = wanted.as_deref().filter(|w| parts.iter().all(|(name, _)| name != w)) {
        let names = parts.map(|(name, _)| name).join(", ");
        eprintln!("there is no part '{wanted}'; there are {names}");
        return ExitCode::from(2);
    }
    for (name, measure) in parts {
        if wanted.as_deref().is_none_or(|w| w == name) {
            measure(&mut lines);
        }
    }

    println!("| what | median | beside it | ratio | bound | |");
    println!("|---|---|---|---|---|---|");
    for line in &lines {
        let ratio = line.ratio.map_or_else(String::new, |r| format!("{r:.2}"));
        let verdict = if line.kept { "ok" } else { "BROKEN" };
        println!(
            "| {} | {} | {} | {ratio} | {} | {verdict} |",
            line.what, line.value, line.beside, line.bound
        );
    }
    println!("medians of {ROUNDS}; ratios are the comparable part, times belong to this machine");
    if lines.iter().all(|l| l.kept) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a command to its end, without a pipe or a poll in the way of the clock.
fn clocked(run: Run) -> f64 {
    let mut command = run.into_command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    clocked_command(&mut command)
}

fn clocked_command(command: &mut Command) -> f64 {
    let mut status = None;
    let took = time(|| status = Some(command.status().expect("the program runs")));
    assert!(status.is_some_and(|s| s.success()), "{command:?} failed");
    ms(took)
}

fn cold_run(lines: &mut Vec<Line>) {
    eprintln!("bench: a cold run on the bare image, and its floor");
    let sandbox = Sandbox::bare();
    let run = || sandbox.banger(["run", "--rm", "--image", "bare", "--", "true"]);
    // The first run makes what later ones find (initramfs, page cache).
    clocked(run());
    let floor = floor::Floor::of(&sandbox);
    floor.boot();
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        floors.push(floor.boot());
        ours.push(clocked(run()));
    }
    let (ours, floor_ms) = (median(ours), median(floors));
    let ratio = ours / floor_ms;
    lines.push(Line {
        what: "cold `run --rm -- true`, bare image",
        value: format!("{ours:.0} ms"),
        beside: format!("QEMU to power-off: {floor_ms:.0} ms"),
        ratio: Some(ratio),
        bound: "1.3 × floor".to_owned(),
        kept: ratio <= 1.3,
    });
    let size = floor.initramfs_bytes();
    lines.push(Line {
        what: "initramfs",
        value: format!("{:.2} MiB", mib(size)),
        beside: String::new(),
        ratio: None,
        bound: "8 MiB".to_owned(),
        kept: size <= 8 << 20,
    });
    sandbox.no_vm_is_left();
}

fn exec_against_ssh(lines: &mut Vec<Line>) {
    eprintln!("bench: exec against ssh into the same guest");
    let sandbox = Sandbox::with(&Seed::sshd());
    let vm = sandbox.vm("peer", "sshd", &["--host-access", "--memory", "1G"]);
    let ssh = peer::Ssh::into(&sandbox, &vm);
    let ours = || vm.exec(["true"]);
    let (mut execs, mut sshs) = (Vec::new(), Vec::new());
    clocked(ours());
    clocked_command(&mut ssh.command("true"));
    for _ in 0..ROUNDS * 2 {
        execs.push(clocked(ours()));
        sshs.push(clocked_command(&mut ssh.command("true")));
    }
    let (exec, ssh_ms) = (median(execs), median(sshs));
    drop(ssh);
    vm.delete();
    lines.push(Line {
        what: "`exec -- true`, whole process",
        value: format!("{exec:.1} ms"),
        beside: format!("ssh, open master: {ssh_ms:.1} ms"),
        ratio: Some(exec / ssh_ms),
        bound: "0.5 × ssh".to_owned(),
        kept: exec / ssh_ms <= 0.5,
    });
}

fn at_rest(lines: &mut Vec<Line>) {
    eprintln!("bench: start-up, memory at rest, sizes");
    let sandbox = Sandbox::empty();
    let (mut versions, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 3 {
        floors.push(clocked(sandbox.program("true")));
        versions.push(clocked(sandbox.banger(["version"])));
    }
    let (version, floor) = (median(versions), median(floors));
    lines.push(Line {
        what: "`banger version`",
        value: format!("{version:.1} ms"),
        beside: format!("`true`: {floor:.1} ms"),
        ratio: Some(version / floor),
        bound: "10 ms".to_owned(),
        kept: version <= 10.0,
    });
    sandbox.banger(["vm", "list"]).go().ok().done();
    std::thread::sleep(Duration::from_secs(2));
    let daemon = rss_kib(sandbox.daemon().expect("the daemon runs"));
    lines.push(Line {
        what: "idle daemon, resident",
        value: format!("{:.1} MiB", mib(daemon * 1024)),
        beside: String::new(),
        ratio: None,
        bound: "20 MiB".to_owned(),
        kept: daemon <= 20 * 1024,
    });
    let agent = std::fs::metadata(bin_dir().join("banger-agent")).expect("the agent is built").len();
    lines.push(Line {
        what: "static agent",
        value: format!("{:.2} MiB", mib(agent)),
        beside: String::new(),
        ratio: None,
        bound: "4 MiB".to_owned(),
        kept: agent <= 4 << 20,
    });
}

#[expect(clippy::cast_precision_loss, reason = "sizes for people")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
