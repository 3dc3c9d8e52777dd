//! Warm start: a run that goes on from a template beside one that boots, and what a clone writes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use banger_testkit::measure::median;
use banger_testkit::{Sandbox, wait};

use super::{Line, clocked, mib};

/// How often each kind of run is measured.
const ROUNDS: usize = 15;
/// How long the daemon may take to make a template on a busy host.
const MADE: Duration = Duration::from_secs(300);
const RUN: [&str; 4] = ["run", "--rm", "--image", "bare"];

pub(crate) fn warm(lines: &mut Vec<Line>) {
    eprintln!("bench: warm runs beside cold ones, bare image");
    let sandbox = Sandbox::bare().warm();
    let cold = || clocked(sandbox.banger([&RUN[..], &["--cold", "--", "true"]].concat()));
    let warm = || clocked(sandbox.banger([&RUN[..], &["--", "true"]].concat()));
    warm();
    let count = |words: &[&str]| sandbox.banger(words).go().ok().json().as_array().map_or(0, Vec::len);
    wait::must("a template is made", MADE, || {
        count(&["vm", "template", "list", "--json"]) == 1 && count(&["operation", "list", "--json"]) == 0
    });
    warm();
    let (mut colds, mut warms) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        colds.push(cold());
        warms.push(warm());
    }
    warms.sort_by(f64::total_cmp);
    let slow = warms[ROUNDS * 95 / 100];
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
        what: "the slowest of 20 warm runs",
        value: format!("{slow:.0} ms"),
        beside: format!("median: {warm_ms:.0} ms"),
        ratio: Some(slow / warm_ms),
        bound: "1.5 × median".to_owned(),
        kept: slow / warm_ms <= 1.5,
    });
    let vm = sandbox.vm("clone", "bare", &[]);
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
    sandbox.no_vm_is_left();
}
