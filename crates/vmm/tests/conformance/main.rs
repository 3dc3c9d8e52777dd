//! One set of scenarios for all drivers, in two levels: *machine* needs no stock kernel, *guest*
//! boots one with our agent. Prints how many ran and passed for each driver and level.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test's helpers may fail it"
)]

mod bench;
#[path = "../guest/mod.rs"]
mod guest;
mod identity;
mod machine;
mod real;
mod scripted;
mod snapshots;

use std::io::Write;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use banger_model::Accel;
use banger_vmm::Cage;
use banger_vmm::firecracker::{self, FirecrackerDriver};
use banger_vmm::kvm::KvmStatus;
use banger_vmm::qemu::{self, QemuDriver};

use bench::Subject;

type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A scenario and its name, which is a sentence.
pub(crate) struct Scenario {
    name: &'static str,
    run: fn(Subject) -> Run,
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::Scenario { name: stringify!($name), run: |subject| Box::pin($name(subject)) }),*]
    };
}
pub(crate) use scenarios;

/// Past the capture of the test harness: whoever runs the suite is to see it.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The cage as users have it.
fn cage() -> Cage {
    Cage::beside(Path::new(env!("CARGO_BIN_EXE_banger-cage")).parent().unwrap(), Vec::new())
}

fn qemu() -> Result<Subject, String> {
    let program =
        qemu::locate(std::env::var_os("BANGER_QEMU").as_deref(), std::env::var_os("PATH").as_deref())
            .map_err(|error| error.to_string())?;
    Ok(Subject {
        name: "qemu",
        driver: Arc::new(QemuDriver::new(program, cage())),
        accel: Accel::Tcg,
        power_off: guest::power_off(),
        reset: guest::reset(),
    })
}

fn firecracker() -> Result<Subject, String> {
    let wanted =
        std::env::var_os("BANGER_FIRECRACKER").ok_or("no firecracker (BANGER_FIRECRACKER is unset)")?;
    let program = firecracker::locate(Some(&wanted), None).map_err(|error| error.to_string())?;
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        return Err(format!("/dev/kvm cannot be opened: {error}"));
    }
    Ok(Subject {
        name: "firecracker",
        driver: Arc::new(FirecrackerDriver::new(program, cage())),
        accel: Accel::Kvm,
        // It has no power switch: its kernel's last words are what counts.
        power_off: guest::say("[    1.000000] reboot: System halted\n"),
        reset: guest::reset_line(),
    })
}

/// Runs scenarios one after the other, each to its end whatever became of the one before.
async fn run(level: &str, subject: Result<Subject, String>, driver: &str, scenarios: Vec<Scenario>) {
    let subject = match subject {
        Ok(subject) => subject,
        Err(reason) => {
            say(&format!("conformance: {driver}, {level} level: skipped: {reason}"));
            return;
        }
    };
    // One scenario by itself, by words of its name.
    let wanted = std::env::var("BANGER_SCENARIO").unwrap_or_default().replace(' ', "_");
    let scenarios: Vec<_> = scenarios.into_iter().filter(|s| s.name.contains(&wanted)).collect();
    let version = subject.driver.capabilities().await.expect("a driver that can be used").version;
    let (mut passed, mut failed) = (0, Vec::new());
    for scenario in &scenarios {
        let began = Instant::now();
        let outcome = tokio::spawn((scenario.run)(subject.clone())).await;
        let name = scenario.name.replace('_', " ");
        let took = began.elapsed().as_millis();
        match outcome {
            Ok(()) => passed += 1,
            Err(error) => failed.push(format!("{name}: {error}")),
        }
        println!("  {name} ({took} ms)");
    }
    say(&format!(
        "conformance: {} {version}, {level} level: {} scenarios ran, {passed} passed",
        subject.name,
        scenarios.len()
    ));
    assert!(failed.is_empty(), "{}, {level} level:\n{}", subject.name, failed.join("\n"));
}

fn machine_level() -> Vec<Scenario> {
    machine::scenarios().into_iter().chain(snapshots::scenarios()).collect()
}

/// Nothing by itself: a scenario runs it in another process, and kills that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_killed() {
    let Some(order) = std::env::var_os(snapshots::ORDER) else { return };
    let driver = std::env::var("BANGER_CONFORMANCE_DRIVER").unwrap();
    let subject = if driver == "qemu" { qemu() } else { firecracker() }.unwrap();
    snapshots::be_killed(subject, Path::new(&order)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_machine() {
    run("machine", qemu(), "qemu", machine_level()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firecracker_machine() {
    run("machine", firecracker(), "firecracker", machine_level()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_guest() {
    let subject = qemu().and_then(|subject| real::ingredients().map(|()| subject));
    run("guest", subject, "qemu", real::scenarios()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firecracker_guest() {
    let works = || match banger_vmm::kvm::probe() {
        KvmStatus::Works => Ok(()),
        status => Err(format!("KVM does not work here: {}", status.detail())),
    };
    let subject = firecracker().and_then(|subject| {
        works()?;
        real::ingredients().map(|()| subject)
    });
    run("guest", subject, "firecracker", real::scenarios()).await;
}
