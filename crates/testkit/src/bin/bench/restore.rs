//! What our drivers add to a restore, and to a launch of Firecracker where there is one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use banger_model::{Accel, Bytes, MachineShape, Mib, VmId};
use banger_testkit::bin_dir;
use banger_testkit::measure::{median, ms};
use banger_vmm::firecracker::{self, FirecrackerDriver};
use banger_vmm::qemu::{self, QemuDriver};
use banger_vmm::{Cage, Disk, DiskRole, Driver, Last, Machine, MachineSpec, Signal};

use crate::raw::{RawFirecracker, RawQemu};
use crate::{Line, ROUNDS, guest};

/// Of a restore or launch: what our driver may take, with all its checks, of what the VMM itself takes.
const RATIO: f64 = 1.3;
/// Memory of the machine that is snapshotted, and what of it is written to, MiB.
const MEMORY: u32 = 512;
const DIRTY: u32 = 100;
pub(crate) fn restore(lines: &mut Vec<Line>) {
    eprintln!("bench: a restore, and what the VMM itself takes");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let program = qemu::locate(None, std::env::var_os("PATH").as_deref()).expect("QEMU");
    let driver = QemuDriver::new(program, Cage::beside(&bin_dir(), Vec::new()));
    let (ours, raw) = runtime.block_on(qemu(&driver));
    lines.push(against_floor("restore of a QEMU machine", ours, "QEMU itself", raw));
    if let Some(program) = firecracker() {
        // What the cage costs has a line of its own; against so small a machine monitor it would be all that is seen.
        let driver = FirecrackerDriver::new(program, Cage::none());
        let (launches, restores) = runtime.block_on(firecrackers(&driver));
        lines.push(against_floor(
            "launch of a Firecracker machine, without the cage",
            launches.0,
            "the API by hand",
            launches.1,
        ));
        lines.push(against_floor(
            "restore of a Firecracker machine, without the cage",
            restores.0,
            "the API by hand",
            restores.1,
        ));
    } else {
        eprintln!("bench: skipped: no Firecracker that runs here (BANGER_FIRECRACKER, /dev/kvm)");
    }
}

fn against_floor(what: &'static str, ours: Vec<f64>, floor: &str, raw: Vec<f64>) -> Line {
    let (ours, raw) = (median(ours), median(raw));
    Line {
        what,
        value: format!("{ours:.1} ms"),
        beside: format!("{floor}: {raw:.1} ms"),
        ratio: Some(ours / raw),
        bound: format!("{RATIO} × that"),
        kept: ours / raw <= RATIO,
    }
}

fn firecracker() -> Option<PathBuf> {
    let wanted = std::env::var_os("BANGER_FIRECRACKER")?;
    std::fs::File::options().read(true).write(true).open("/dev/kvm").ok()?;
    firecracker::locate(Some(&wanted), None).ok()
}

/// Restores by us and by hand in turns.
async fn qemu(driver: &QemuDriver) -> (Vec<f64>, Vec<f64>) {
    let home = tempfile::tempdir().expect("a directory");
    let place = |name: &str| made(&home.path().join(name));
    let code = guest::count_in(DIRTY);
    let machine = driver.launch(spec(&place("first"), &code, Accel::Tcg, MEMORY)).await.expect("it launches");
    says_a_number(&home.path().join("first/console.log")).await;
    let snapshot = place("snapshot");
    machine.snapshot(&snapshot, nothing()).await.expect("a snapshot");
    end(&*machine).await;
    let other = place("other");
    let clone = || spec(&other, b"no kernel", Accel::Tcg, MEMORY);
    let machine = driver.restore(clone(), &snapshot).await.expect("it goes on");
    let raw = RawQemu::of(machine.handle().process.pid, &snapshot.join("state"), &other);
    end(&*machine).await;
    let (mut ours, mut raws) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * 2 {
        ours.push(clocked_start(driver.restore(clone(), &snapshot)).await);
        raws.push(raw.restore());
    }
    (ours, raws)
}

/// Launches and restores, each by us and by hand.
async fn firecrackers(driver: &FirecrackerDriver) -> ((Vec<f64>, Vec<f64>), (Vec<f64>, Vec<f64>)) {
    let home = tempfile::tempdir().expect("a directory");
    let dir = made(&home.path().join("vm"));
    let snapshot = made(&home.path().join("snapshot"));
    let spec = || spec(&dir, &guest::idle(), Accel::Kvm, 64);
    let machine = driver.launch(spec()).await.expect("it launches");
    machine.snapshot(&snapshot, nothing()).await.expect("a snapshot");
    end(&*machine).await;
    // Links to everything lie where it ran.
    let raw = RawFirecracker { program: driver.program().to_owned(), dir: dir.join("run") };
    let put = |path, body: &str| ("PUT", path, body.to_owned());
    let boot = [
        put("/machine-config", r#"{"vcpu_count": 1, "mem_size_mib": 64}"#),
        put(
            "/boot-source",
            r#"{"kernel_image_path": "kernel", "initrd_path": "initramfs", "boot_args": ""}"#,
        ),
        put(
            "/drives/system",
            r#"{"drive_id": "system", "path_on_host": "disk-system", "is_root_device": false, "is_read_only": false}"#,
        ),
        put("/vsock", r#"{"guest_cid": 3, "uds_path": "vsock.sock"}"#),
        put("/entropy", "{}"),
        put("/balloon", r#"{"amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true}"#),
        put("/actions", r#"{"action_type": "InstanceStart"}"#),
    ];
    let [state, memory] = ["state", "memory"].map(|name| snapshot.join(name).display().to_string());
    let backend = format!(r#"{{"backend_type": "File", "backend_path": "{memory}"}}"#);
    let load = format!(r#"{{"snapshot_path": "{state}", "mem_backend": {backend}, "resume_vm": true}}"#);
    let load = [("PUT", "/snapshot/load", load)];
    let (mut launches, mut restores) = ((Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS * 2 {
        launches.0.push(clocked_start(driver.launch(spec())).await);
        launches.1.push(raw.calls(&boot));
        restores.0.push(clocked_start(driver.restore(spec(), &snapshot)).await);
        restores.1.push(raw.calls(&load));
    }
    (launches, restores)
}

async fn clocked_start(start: impl Future<Output = banger_vmm::Result<Arc<dyn Machine>>>) -> f64 {
    let began = Instant::now();
    let machine = start.await.expect("it starts");
    let took = ms(began.elapsed());
    end(&*machine).await;
    took
}

async fn end(machine: &dyn Machine) {
    machine.kill(Signal::KILL).await.expect("it can be killed");
    machine.wait().await;
}

fn nothing() -> Last<'static> {
    Box::pin(async { Ok(()) })
}

/// All its memory has been written to when it says its first number.
async fn says_a_number(console: &Path) {
    while guest::numbers(&std::fs::read_to_string(console).unwrap_or_default()).is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

fn made(dir: &Path) -> PathBuf {
    std::fs::create_dir(dir).expect("a directory");
    dir.to_owned()
}

/// A machine with a guest of a few instructions, all in one directory, its sockets below it.
pub(crate) fn spec(dir: &Path, code: &[u8], accel: Accel, memory: u32) -> MachineSpec {
    let file = |name: &str, contents: &[u8]| -> PathBuf {
        let path = dir.join(name);
        // As on any host, a kernel is the one that was there at the last start.
        if std::fs::read(&path).ok().as_deref() != Some(contents) {
            std::fs::write(&path, contents).expect("a file");
        }
        path
    };
    std::fs::create_dir_all(dir.join("run")).expect("a directory");
    MachineSpec {
        id: VmId::from_random([0xee, 1, 0, 0, 0, 0]),
        name: "bench".parse().expect("a name"),
        shape: MachineShape { vcpu: 1, memory: Mib(memory), disk: Bytes(1 << 20) },
        accel,
        kernel: file("the-kernel", &guest::kernel(code)),
        initramfs: file("the-initramfs", b"nothing"),
        disks: vec![Disk {
            role: DiskRole::System,
            path: file("system.img", &[0; 1 << 16]),
            read_only: false,
        }],
        network: None,
        runtime_dir: dir.join("run"),
        log_dir: dir.to_owned(),
        verbose_console: false,
        rescue: false,
    }
}
