//! The *machine* level: what a driver does with a machine, whatever runs in it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, ErrorCode};
use banger_vmm::{ExitReason, MachineSpec, NetDevice, Signal, VmmError, console, process};

use crate::bench::{Bench, Subject, console_says, counts_beyond, last_number, mode, read, soon, until};
use crate::{Scenario, guest, scenarios};

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        a_machine_runs_by_itself_and_quits_when_told,
        the_guests_own_end_is_told_apart,
        a_paused_machine_stands_still,
        a_killed_vmm_is_noticed_and_reaped,
        another_daemon_takes_a_machine_over,
        every_failure_to_start_says_why_and_leaves_nothing,
        two_machines_cannot_write_to_one_disk,
        a_network_ends_with_its_machine,
        a_cancelled_launch_leaves_nothing,
        a_long_path_to_the_sockets_is_no_matter,
        a_console_is_cut_under_a_running_machine,
        a_machine_takes_over_the_directory_of_a_dead_one,
    ]
}

/// The session that a process is in.
fn session(pid: u32) -> String {
    let stat = read(Path::new(&format!("/proc/{pid}/stat")));
    stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned()
}

fn open_files(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    entries.filter_map(|e| fs::read_link(e.path()).ok()).map(|t| t.to_string_lossy().into_owned()).collect()
}

async fn a_machine_runs_by_itself_and_quits_when_told(subject: Subject) {
    let bench = Bench::new(&subject);
    let leaked = bench.file("leaked", b"");
    let leak = fs::File::open(&leaked).unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // When it is launched
    let machine = bench.launch(&guest::say("hello from the guest\n")).await;
    // Then the guest runs
    console_says(&bench.console(), "hello from the guest").await;
    assert!(machine.exited().is_none() && !machine.stalled());
    // And the VMM leads its own session, carries the VM's mark, and has none of our descriptors
    let pid = machine.handle().process.pid;
    assert_eq!(machine.handle().driver, subject.driver.kind());
    assert_eq!(session(pid), pid.to_string());
    assert!(!open_files(pid).iter().any(|f| Path::new(f) == leaked), "{:?}", open_files(pid));
    let environment = read(Path::new(&format!("/proc/{pid}/environ")));
    assert!(!environment.contains("CARGO"), "{environment}");
    assert_eq!(process::find_marked(&bench.id).unwrap(), [machine.handle().process.clone()]);
    // And whatever it made is nobody else's
    for entry in fs::read_dir(bench.runtime()).unwrap().chain(fs::read_dir(bench.logs()).unwrap()) {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_socket() || kind.is_file() {
            assert_eq!(
                mode(&entry.path()) & 0o177,
                if kind.is_socket() { mode(&entry.path()) & 0o100 } else { 0 },
                "{:?}",
                entry.path()
            );
        }
    }
    // When it is told to stop
    soon(machine.stop()).await.unwrap();
    assert_eq!(machine.exited().unwrap().reason, ExitReason::Host);
    assert_eq!(bench.processes(), 0);
    // Then stopping and killing again is no error, and commands say that it is off
    soon(machine.stop()).await.unwrap();
    machine.kill(Signal::KILL).await.unwrap();
    for refused in [soon(machine.pause()).await, soon(machine.resume()).await] {
        assert!(matches!(refused, Err(VmmError::NotRunning { .. })), "{refused:?}");
    }
    assert!(soon(machine.connect_agent()).await.is_err());
}

async fn the_guests_own_end_is_told_apart(subject: Subject) {
    for (code, reason) in
        [(&subject.power_off, ExitReason::GuestShutdown), (&subject.reset, ExitReason::GuestReset)]
    {
        let bench = Bench::new(&subject);
        let machine = bench.launch(code).await;
        assert_eq!(soon(machine.wait()).await.reason, reason);
        assert_eq!(bench.processes(), 0);
    }
}

async fn a_paused_machine_stands_still(subject: Subject) {
    let bench = Bench::new(&subject);
    let machine = bench.launch(&guest::count()).await;
    for _ in 0..3 {
        counts_beyond(&bench, last_number(&bench) + 2).await;
        // When it is paused, and what it has said so far is written
        soon(machine.pause()).await.unwrap();
        soon(machine.pause()).await.expect("a paused machine can be paused");
        assert!(soon(machine.is_paused()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = read(&bench.console());
        tokio::time::sleep(Duration::from_millis(200)).await;
        // Then it says nothing more, until it is resumed
        assert_eq!(read(&bench.console()), before);
        soon(machine.resume()).await.unwrap();
        soon(machine.resume()).await.expect("a running machine can be resumed");
        assert!(!soon(machine.is_paused()).await.unwrap());
        counts_beyond(&bench, last_number(&bench)).await;
    }
    // And a paused machine can be stopped
    soon(machine.pause()).await.unwrap();
    soon(machine.stop()).await.unwrap();
    assert_eq!(bench.processes(), 0);
}

async fn a_killed_vmm_is_noticed_and_reaped(subject: Subject) {
    let bench = Bench::new(&subject);
    let machine = bench.launch(&guest::idle()).await;
    let waiting = tokio::spawn({
        let machine = Arc::clone(&machine);
        async move { machine.wait().await }
    });
    machine.kill(Signal::KILL).await.unwrap();
    let exit = soon(waiting).await.unwrap();
    assert_eq!((exit.reason, exit.code, exit.signal), (ExitReason::Unknown, None, Some(9)));
    let pid = machine.handle().process.pid;
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "a zombie is left");
}

async fn another_daemon_takes_a_machine_over(subject: Subject) {
    for (code, reason) in
        [(guest::count(), ExitReason::Host), (subject.power_off.clone(), ExitReason::GuestShutdown)]
    {
        let bench = Bench::new(&subject);
        // Given a machine whose launcher dropped everything but the handle, as text
        let machine = bench.launch(&code).await;
        let handle = serde_json::to_string(machine.handle()).unwrap();
        drop(machine);
        // When another one adopts it
        let handle = serde_json::from_str(&handle).unwrap();
        let Some(machine) = soon(subject.driver.adopt(&handle)).await.unwrap() else {
            assert_eq!(reason, ExitReason::GuestShutdown, "a machine that runs is adopted");
            continue;
        };
        // Then it obeys, and its end is heard with the reason
        if reason == ExitReason::Host {
            soon(machine.pause()).await.unwrap();
            let paused = last_number(&bench);
            soon(machine.resume()).await.unwrap();
            counts_beyond(&bench, paused + 2).await;
            soon(machine.stop()).await.unwrap();
        }
        let told = soon(machine.wait()).await.reason;
        // A VMM that ends before anybody listens again takes its reason with it.
        assert!(told == reason || (reason != ExitReason::Host && told == ExitReason::Unknown), "{told:?}");
        // And then there is nothing to adopt any more
        assert!(soon(subject.driver.adopt(&handle)).await.unwrap().is_none());
    }
}

async fn every_failure_to_start_says_why_and_leaves_nothing(subject: Subject) {
    let bench = Bench::new(&subject);
    fs::write(bench.logs().join("vmm.log"), "words of an earlier run\n").unwrap();
    let absent = bench.files().join("absent.img");
    let without_disk = || {
        let mut spec = bench.spec(&guest::idle());
        spec.disks[0].path = absent.clone();
        spec
    };
    let without_kernel =
        || MachineSpec { kernel: bench.files().join("absent.img"), ..bench.spec(&guest::idle()) };
    let nonsense =
        || MachineSpec { kernel: bench.file("nonsense", &[7; 9000]), ..bench.spec(&guest::idle()) };
    let without_initramfs = || MachineSpec { initramfs: absent.clone(), ..bench.spec(&guest::idle()) };
    for (spec, words) in
        [(without_disk(), "absent.img"), (without_kernel(), ""), (nonsense(), ""), (without_initramfs(), "")]
    {
        let error = soon(subject.driver.launch(spec)).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words) && !text.contains("earlier run") && text.len() > 30, "{text}");
        bench.assert_nothing_left(&text);
    }
}

async fn a_network_ends_with_its_machine(subject: Subject) {
    use tokio::io::AsyncReadExt;
    let bench = Bench::new(&subject);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let network = NetDevice { mac: "52:54:00:12:34:56".into(), backend: theirs.into() };
    let spec = MachineSpec { network: Some(network), ..bench.spec(&guest::idle()) };
    let launched = soon(subject.driver.launch(spec)).await;
    if subject.driver.capabilities().await.unwrap().network {
        launched.unwrap().kill(Signal::KILL).await.unwrap();
    } else {
        // What a driver cannot do, it refuses with a hint.
        let error: Error = launched.unwrap_err().into();
        assert_eq!(error.code, ErrorCode::Unsupported);
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("--network none")), "{error:?}");
        bench.assert_nothing_left("a refusal");
    }
    // The peer sees the end of the connection: nobody else holds the machine's side.
    ours.set_nonblocking(true).unwrap();
    let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
    soon(ours.read_to_end(&mut Vec::new())).await.unwrap();
}

async fn two_machines_cannot_write_to_one_disk(subject: Subject) {
    let bench = Bench::new(&subject);
    let first = bench.launch(&guest::idle()).await;
    let other = Bench::new(&subject);
    let mut second = other.spec(&guest::idle());
    second.disks = bench.spec(&guest::idle()).disks;
    let error = soon(subject.driver.launch(second)).await.unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
    other.assert_nothing_left(&error);
    // And the lock is the machine's: it goes with it, and only with it
    let handle = first.handle().clone();
    drop(first);
    let mut second = other.spec(&guest::idle());
    second.disks = bench.spec(&guest::idle()).disks;
    assert!(soon(subject.driver.launch(second)).await.is_err());
    soon(subject.driver.adopt(&handle)).await.unwrap().unwrap().stop().await.unwrap();
    let mut second = other.spec(&guest::idle());
    second.disks = bench.spec(&guest::idle()).disks;
    soon(soon(subject.driver.launch(second)).await.unwrap().stop()).await.unwrap();
}

async fn a_cancelled_launch_leaves_nothing(subject: Subject) {
    let bench = Bench::new(&subject);
    // Given launches that are dropped a little later each time
    for delay in [0, 1, 2, 5, 10, 20, 60] {
        let launch = subject.driver.launch(bench.spec(&guest::idle()));
        match tokio::time::timeout(Duration::from_millis(delay), launch).await {
            Ok(done) => soon(done.unwrap().stop()).await.unwrap(),
            Err(_) => assert!(bench.left().is_empty(), "after {delay} ms: {:?}", bench.left()),
        }
        // Then there is no process
        assert_eq!(bench.processes(), 0, "after {delay} ms");
    }
}

async fn a_long_path_to_the_sockets_is_no_matter(subject: Subject) {
    let bench = Bench::new(&subject);
    let deep = bench.files().join("d".repeat(120));
    fs::create_dir(&deep).unwrap();
    let spec = MachineSpec { runtime_dir: deep, ..bench.spec(&guest::count()) };
    let machine = soon(subject.driver.launch(spec)).await.unwrap();
    let handle = machine.handle().clone();
    drop(machine);
    let machine = soon(subject.driver.adopt(&handle)).await.unwrap().unwrap();
    soon(machine.pause()).await.unwrap();
    soon(machine.resume()).await.unwrap();
    counts_beyond(&bench, last_number(&bench) + 2).await;
    soon(machine.stop()).await.unwrap();
}

async fn a_console_is_cut_under_a_running_machine(subject: Subject) {
    let bench = Bench::new(&subject);
    let machine = bench.launch(&guest::count()).await;
    until(|| bench.console().metadata().is_ok_and(|m| m.len() > 900)).await;
    assert!(console::enforce_cap(&bench.console(), 800).unwrap());
    // Then it goes on where its reader looks, without a gap of zeros
    let now = last_number(&bench);
    counts_beyond(&bench, now + 20).await;
    let text = fs::read(bench.console()).unwrap();
    assert!(text.starts_with(b"[... earlier output was cut ...]\n") && !text.contains(&0));
    soon(machine.stop()).await.unwrap();
}

async fn a_machine_takes_over_the_directory_of_a_dead_one(subject: Subject) {
    let bench = Bench::new(&subject);
    for round in 0..2 {
        let words = format!("round {round}\n");
        let machine = bench.launch(&guest::say(&words)).await;
        console_says(&bench.console(), words.trim()).await;
        machine.kill(Signal::KILL).await.unwrap();
        soon(machine.wait()).await;
    }
    // And what the first one said is still there
    console_says(&bench.console(), "round 0").await;
}
