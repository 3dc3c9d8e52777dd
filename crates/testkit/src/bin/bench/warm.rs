//! Warm start: a run that goes on from a template beside one that boots, and what a clone writes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use banger_testkit::guests::pss_kib;
use banger_testkit::measure::median;
use banger_testkit::{Sandbox, Vm};

use super::{Line, clocked, mib};
use crate::raw::RawQemu;

/// How often each kind of run is measured.
const ROUNDS: usize = 20;
/// Clones that idle at the same time.
const CLONES: usize = 8;
pub(crate) const RUN: [&str; 4] = ["run", "--rm", "--image", "bare"];

pub(crate) fn warm(lines: &mut Vec<Line>) {
    eprintln!("bench: warm runs beside cold ones, bare image");
    let sandbox = Sandbox::bare().warm();
    let cold = || clocked(sandbox.banger([&RUN[..], &["--cold", "--", "true"]].concat()));
    let warm = || clocked(sandbox.banger([&RUN[..], &["--", "true"]].concat()));
    warm();
    sandbox.template_made();
    warm();
    let (mut colds, mut warms) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        colds.push(cold());
        warms.push(warm());
    }
    warms.sort_by(f64::total_cmp);
    let slow = warms[ROUNDS * 95 / 100 - 1];
    let (cold_ms, warm_ms) = (median(colds), median(warms));
    lines.push(Line {
        what: "warm `run --rm -- true`, bare image",
        value: format!("{warm_ms:.0} ms"),
        beside: format!("the same with --cold: {cold_ms:.0} ms"),
        ratio: Some(warm_ms / cold_ms),
        bound: "0.1 × cold".to_owned(),
        kept: warm_ms / cold_ms <= 0.1,
    });
    lines.push(Line {
        what: "… the 19th of 20, by time",
        value: format!("{slow:.0} ms"),
        beside: format!("median: {warm_ms:.0} ms"),
        ratio: Some(slow / warm_ms),
        bound: "1.5 × median".to_owned(),
        kept: slow / warm_ms <= 1.5,
    });
    let vm = made(&sandbox, "clone", &[]);
    let floor_ms = floor(&sandbox, &vm);
    lines.push(Line {
        what: "warm `run --rm -- true`, bare image, once more",
        value: format!("{warm_ms:.0} ms"),
        beside: format!("QEMU alone until the same snapshot runs: {floor_ms:.0} ms"),
        ratio: Some(warm_ms / floor_ms),
        bound: "3 × floor".to_owned(),
        kept: warm_ms / floor_ms <= 3.0,
    });
    let id = vm.show()["id"].as_str().unwrap_or_default().to_owned();
    let dir = fs::read_dir(sandbox.state().join("vms").join(id)).expect("the VM's directory");
    // A link to the template's memory is not the clone's.
    let own = dir.flatten().filter_map(|entry| entry.metadata().ok()).filter(|m| m.nlink() == 1);
    let written = own.map(|m| m.blocks() * 512).sum::<u64>();
    vm.delete();
    lines.push(Line {
        what: "on the disk for a warm clone",
        value: format!("{:.2} MiB", mib(written)),
        beside: String::new(),
        ratio: None,
        bound: "4 MiB".to_owned(),
        kept: written <= 4 << 20,
    });
    lines.push(shared(&sandbox));
    sandbox.no_vm_is_left();
}

/// The snapshot that a VM went on from, in a QEMU started by hand; milliseconds.
pub(crate) fn floor(sandbox: &Sandbox, vm: &Vm<'_>) -> f64 {
    let id = vm.show()["id"].as_str().unwrap_or_default().to_owned();
    let state = sandbox.state().join("vms").join(id).join("restored/state");
    let work = sandbox.work("raw");
    fs::create_dir_all(&work).expect("a directory");
    let raw = RawQemu::of(monitor(vm), &state, &work);
    raw.restore();
    median((0..ROUNDS).map(|_| raw.restore()).collect())
}

/// What clones take of the host's memory, each, beside a VM that booted.
fn shared(sandbox: &Sandbox) -> Line {
    let cold = made(sandbox, "cold", &["--cold"]);
    let clones: Vec<Vm<'_>> = (0..CLONES).map(|n| made(sandbox, &format!("clone-{n}"), &[])).collect();
    // Until what follows a start has been done in all of them.
    std::thread::sleep(Duration::from_secs(2));
    let cold_kib = pss_kib(monitor(&cold));
    let each = clones.iter().map(|clone| pss_kib(monitor(clone))).max().unwrap_or_default();
    for vm in clones.into_iter().chain([cold]) {
        vm.delete();
    }
    let ratio = mib(each) / mib(cold_kib);
    Line {
        what: "memory of an idle clone, one of 8 (PSS, the largest)",
        value: format!("{:.0} MiB", mib(each * 1024)),
        beside: format!("of a VM that booted: {:.0} MiB", mib(cold_kib * 1024)),
        ratio: Some(ratio),
        bound: "0.25 × cold".to_owned(),
        kept: ratio <= 0.25,
    }
}

/// A VM of the shape that the runs have.
pub(crate) fn made<'a>(sandbox: &'a Sandbox, name: &str, more: &[&str]) -> Vm<'a> {
    let create = ["vm", "create", "--name", name, "--image", "bare"];
    sandbox.banger(create).args(more).within(Duration::from_secs(180)).go().ok().done();
    sandbox.existing(name)
}

/// The process of a VM's machine monitor.
pub(crate) fn monitor(vm: &Vm<'_>) -> u32 {
    vm.show()["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("it runs")
}
