//! What the cage costs: the launch of a machine, to its first instruction, with the cage and without it.

use std::path::Path;
use std::time::Instant;

use banger_model::Accel;
use banger_testkit::bin_dir;
use banger_testkit::measure::{median, ms};
use banger_vmm::qemu::{self, QemuDriver};
use banger_vmm::{Cage, Driver, Signal};

use crate::restore::spec;
use crate::{Line, ROUNDS, guest};

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
    let spec = spec(dir, &guest::idle(), Accel::Tcg, 64);
    let began = Instant::now();
    let machine = driver.launch(spec).await.expect("it launches");
    let took = ms(began.elapsed());
    machine.kill(Signal::KILL).await.expect("it can be killed");
    machine.wait().await;
    took
}
