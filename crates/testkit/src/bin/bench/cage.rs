//! What the cage costs: the launch of a machine, to its first instruction, with the cage and without it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use banger_model::{Accel, Bytes, MachineShape, Mib, VmId};
use banger_testkit::bin_dir;
use banger_testkit::measure::{median, ms};
use banger_vmm::qemu::{self, QemuDriver};
use banger_vmm::{Cage, Disk, DiskRole, Driver, MachineSpec, Signal};

use crate::{Line, ROUNDS};

#[path = "../../../../vmm/tests/guest/mod.rs"]
#[expect(dead_code, reason = "of its guests, the one that idles is enough here")]
mod guest;

/// The most that it may add to a start.
const BOUND_MS: f64 = 15.0;

pub(crate) fn cage(lines: &mut Vec<Line>) {
    eprintln!("bench: a machine's launch with and without its cage");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (caged, bare) = runtime.block_on(measure());
    let cost = caged - bare;
    lines.push(Line {
        what: "launch of a caged machine",
        value: format!("{caged:.1} ms"),
        beside: format!("without the cage: {bare:.1} ms"),
        ratio: None,
        bound: format!("+{BOUND_MS:.0} ms"),
        kept: cost <= BOUND_MS,
    });
}

/// Medians of launches in turns.
async fn measure() -> (f64, f64) {
    let program = qemu::locate(None, std::env::var_os("PATH").as_deref()).expect("QEMU");
    let caged = QemuDriver::new(program.clone(), Cage::beside(&bin_dir(), Vec::new()));
    let bare = QemuDriver::new(program, Cage::none());
    let dir = tempfile::tempdir().expect("a directory");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS * 2 {
        let times = (launch(&caged, dir.path()).await, launch(&bare, dir.path()).await);
        // The first of each finds out what later ones know.
        if round > 0 {
            with.push(times.0);
            without.push(times.1);
        }
    }
    (median(with), median(without))
}

async fn launch(driver: &QemuDriver, dir: &Path) -> f64 {
    let spec = spec(dir);
    let began = Instant::now();
    let machine = driver.launch(spec).await.expect("it launches");
    let took = ms(began.elapsed());
    machine.kill(Signal::KILL).await.expect("it can be killed");
    machine.wait().await;
    took
}

fn spec(dir: &Path) -> MachineSpec {
    let file = |name: &str, contents: &[u8]| -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, contents).expect("a file");
        path
    };
    MachineSpec {
        id: VmId::from_random([0xee, 1, 0, 0, 0, 0]),
        name: "bench".parse().expect("a name"),
        shape: MachineShape { vcpu: 1, memory: Mib(64), disk: Bytes(1 << 20) },
        accel: Accel::Tcg,
        kernel: file("kernel", &guest::kernel(&guest::idle())),
        initramfs: file("initramfs", b"nothing"),
        disks: vec![Disk {
            role: DiskRole::System,
            path: file("system.img", &[0; 1 << 16]),
            read_only: false,
        }],
        network: None,
        runtime_dir: dir.to_owned(),
        log_dir: dir.to_owned(),
        verbose_console: false,
        rescue: false,
        paused: false,
    }
}
