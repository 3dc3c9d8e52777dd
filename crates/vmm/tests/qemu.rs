//! The QEMU driver against the real QEMU, with guests of a few instructions: they boot in no time
//! and need no kernel package.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test's helpers may fail it"
)]

mod guest;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Accel, Bytes, MachineShape, Mib, VmId};
use banger_vmm::qemu::{QemuDriver, locate};
use banger_vmm::{
    Cage, Disk, DiskRole, Driver, ExitReason, Machine, MachineSpec, NetDevice, Signal, VmmError, console,
    process,
};
use tokio::io::AsyncWriteExt;

/// The cage as users have it.
fn cage() -> Cage {
    Cage::beside(Path::new(env!("CARGO_BIN_EXE_banger-cage")).parent().unwrap(), Vec::new())
}

/// A VM's directories, a guest, and a driver; `None` (and a word about it) without QEMU.
struct Bench {
    dir: tempfile::TempDir,
    driver: QemuDriver,
    id: VmId,
}

impl Bench {
    fn new(number: u8) -> Option<Self> {
        match locate(None, std::env::var_os("PATH").as_deref()) {
            Ok(program) => Some(Self {
                dir: tempfile::tempdir().unwrap(),
                driver: QemuDriver::new(program, cage()),
                id: VmId::from_random([0xee, 0, std::process::id() as u8, 0, 0, number]),
            }),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn spec(&self, code: &[u8]) -> MachineSpec {
        let file = |name: &str, contents: &[u8]| -> PathBuf {
            let path = self.dir.path().join(name);
            fs::write(&path, contents).unwrap();
            path
        };
        MachineSpec {
            id: self.id.clone(),
            name: "bench".parse().unwrap(),
            shape: MachineShape { vcpu: 1, memory: Mib(64), disk: Bytes(64 << 20) },
            accel: Accel::Tcg,
            kernel: file("kernel", &guest::kernel(code)),
            initramfs: file("initramfs", b"nothing"),
            disks: vec![Disk {
                role: DiskRole::System,
                path: file("a, \"b\".img", &[0; 1 << 16]),
                read_only: false,
            }],
            network: None,
            runtime_dir: self.dir.path().to_owned(),
            log_dir: self.dir.path().to_owned(),
            verbose_console: false,
            rescue: false,
        }
    }

    async fn launch(&self, code: &[u8]) -> Arc<dyn Machine> {
        self.driver.launch(self.spec(code)).await.unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("it takes too long")
}

async fn console_says(path: &Path, words: &str) {
    soon(async {
        while !console::tail(path, 100).iter().any(|line| line.contains(words)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// The sessions of a process and of ourselves, and the files it has open.
fn session(pid: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap().to_owned()
}

#[tokio::test]
async fn a_machine_runs_by_itself_and_quits_when_told() {
    let Some(bench) = Bench::new(1) else { return };
    let leak = fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    // When it is launched
    let machine = bench.launch(&guest::say("hello from the guest\n")).await;
    // Then the guest runs, the agent's socket takes what we write, and the control socket obeys
    console_says(&bench.path("console.log"), "hello from the guest").await;
    let mut agent = soon(machine.connect_agent()).await.unwrap();
    agent.write_all(b"early").await.unwrap();
    soon(machine.pause()).await.unwrap();
    soon(machine.resume()).await.unwrap();
    // And the VMM leads its own session and has none of our descriptors
    let pid = machine.handle().process.pid;
    assert_eq!(session(pid), pid.to_string());
    let cwd = fs::canonicalize(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(cwd, fs::canonicalize(bench.dir.path()).unwrap());
    assert!(!open_files(pid).iter().any(|f| f.contains("cargo") || f.ends_with("/dev/null (r)")));
    assert_eq!(process::find_marked(&bench.id).unwrap(), [machine.handle().process.clone()]);
    // When it is told to stop
    soon(machine.stop()).await.unwrap();
    let exit = machine.exited().unwrap();
    assert_eq!((exit.reason, exit.code), (ExitReason::Host, Some(0)));
    assert!(process::find_marked(&bench.id).unwrap().is_empty());
    // Then stopping and killing again is no error, and commands say that it is off
    soon(machine.stop()).await.unwrap();
    machine.kill(Signal::KILL).await.unwrap();
    assert!(matches!(soon(machine.pause()).await, Err(VmmError::NotRunning { .. })));
}

fn open_files(pid: u32) -> Vec<String> {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|e| fs::read_link(e.path()).ok())
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

#[tokio::test]
async fn the_guests_own_end_is_told_apart() {
    for (number, code, reason) in
        [(2, guest::power_off(), ExitReason::GuestShutdown), (3, guest::reset(), ExitReason::GuestReset)]
    {
        let Some(bench) = Bench::new(number) else { return };
        let machine = bench.launch(&code).await;
        let exit = soon(machine.wait()).await;
        assert_eq!((exit.reason, exit.code), (reason, Some(0)), "{reason:?}");
    }
}

#[tokio::test]
async fn a_killed_vmm_is_noticed_and_reaped() {
    let Some(bench) = Bench::new(4) else { return };
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

#[tokio::test]
async fn another_daemon_takes_a_machine_over() {
    let Some(bench) = Bench::new(5) else { return };
    // Given a machine whose launcher dropped everything but the handle, as text
    let machine = bench.launch(&guest::idle()).await;
    let handle = serde_json::to_string(machine.handle()).unwrap();
    drop(machine);
    // When another driver adopts it
    let handle = serde_json::from_str(&handle).unwrap();
    let machine = soon(bench.driver.adopt(&handle)).await.unwrap().unwrap();
    // Then it obeys, and its end is heard with the reason
    soon(machine.connect_agent()).await.unwrap();
    soon(machine.pause()).await.unwrap();
    soon(machine.resume()).await.unwrap();
    soon(machine.stop()).await.unwrap();
    assert_eq!(soon(machine.wait()).await.reason, ExitReason::Host);
    assert!(soon(bench.driver.adopt(&handle)).await.unwrap().is_none());
}

#[tokio::test]
async fn a_vmm_that_dies_at_once_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new(6) else { return };
    fs::write(bench.path("vmm.log"), "words of an earlier run\n").unwrap();
    let mut spec = bench.spec(&guest::idle());
    spec.disks[0].path = bench.path("absent.img");
    let error = soon(bench.driver.launch(spec)).await.unwrap_err();
    assert!(matches!(error, VmmError::DiedAtStart { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("absent.img") && text.contains("exit status 1"), "{text}");
    assert!(!text.contains("earlier run"), "{text}");
    assert!(!bench.path("qmp.sock").exists() && !bench.path("agent.sock").exists());
    assert!(process::find_marked(&bench.id).unwrap().is_empty());
}

#[tokio::test]
async fn two_machines_cannot_write_to_one_disk() {
    let Some(bench) = Bench::new(7) else { return };
    let first = bench.launch(&guest::idle()).await;
    let runtime = tempfile::tempdir().unwrap();
    let mut second = bench.spec(&guest::idle());
    second.runtime_dir = runtime.path().to_owned();
    let error = soon(bench.driver.launch(second)).await.unwrap_err().to_string();
    assert!(error.contains("lock"), "{error}");
    soon(first.stop()).await.unwrap();
}

#[tokio::test]
async fn a_cancelled_launch_leaves_nothing() {
    let Some(bench) = Bench::new(8) else { return };
    // Given launches that are dropped a little later each time
    for delay in [0, 1, 5, 20, 60] {
        let launch = bench.driver.launch(bench.spec(&guest::idle()));
        if let Ok(done) = tokio::time::timeout(Duration::from_millis(delay), launch).await {
            soon(done.unwrap().stop()).await.unwrap();
        }
        // Then there is no process
        assert!(process::find_marked(&bench.id).unwrap().is_empty(), "after {delay} ms");
    }
}

#[tokio::test]
async fn the_network_ends_with_the_machine() {
    use tokio::io::AsyncReadExt;
    let Some(bench) = Bench::new(9) else { return };
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut spec = bench.spec(&guest::idle());
    spec.network = Some(NetDevice { mac: "52:54:00:12:34:56".into(), backend: theirs.into() });
    let machine = bench.driver.launch(spec).await.unwrap();
    machine.kill(Signal::KILL).await.unwrap();
    // The peer sees the end of the connection: nobody else holds the machine's side.
    ours.set_nonblocking(true).unwrap();
    let mut ours = tokio::net::UnixStream::from_std(ours).unwrap();
    let mut rest = Vec::new();
    soon(ours.read_to_end(&mut rest)).await.unwrap();
    machine.wait().await;
}
