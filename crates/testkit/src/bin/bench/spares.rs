//! Spares: a warm run that finds one waiting, beside one that restores its template, one that boots, and a QEMU that is
//! started by hand with the same snapshot; and what waiting costs.

use banger_testkit::Sandbox;
use banger_testkit::guests::pss_kib;
use banger_testkit::measure::median;

use super::warm::{RUN, floor, made, monitor};
use super::{Line, clocked, mib};

/// How often each is measured.
const ROUNDS: usize = 20;

pub(crate) fn spares(lines: &mut Vec<Line>) {
    eprintln!("bench: warm runs with a spare, without, and cold ones");
    let with = Sandbox::bare().warm();
    with.configure("[warm]\nspares = 1\n");
    let without = Sandbox::bare().warm();
    let run =
        |sandbox: &Sandbox, how: &[&str]| clocked(sandbox.banger([&RUN[..], how, &["--", "true"]].concat()));
    for sandbox in [&with, &without] {
        run(sandbox, &[]);
        sandbox.template_made();
        run(sandbox, &[]);
    }
    let (mut spare, mut plain, mut cold) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Another is there again; a run that comes too early restores.
        with.spares_wait(1);
        spare.push(run(&with, &[]));
        with.spares_wait(1);
        plain.push(run(&without, &[]));
        cold.push(run(&without, &["--cold"]));
    }
    spare.sort_by(f64::total_cmp);
    let slow = spare[ROUNDS * 95 / 100 - 1];
    let (spare, plain, cold) = (median(spare), median(plain), median(cold));
    let waiting = with.spares_wait(1).remove(0);
    let monitors = with.processes().into_iter().filter(|p| p.detail.contains(&waiting));
    let waiting_kib =
        monitors.map(|p| pss_kib(p.key.parse().expect("a pid"))).max().expect("a spare's machine");
    let vm = made(&without, "clone", &[]);
    let floor = floor(&without, &vm);
    vm.delete();
    let booted = made(&without, "cold", &["--cold"]);
    let booted_kib = pss_kib(monitor(&booted));
    booted.delete();
    let mut compare = |what, (value, beside): (f64, f64), of: &str, bound: f64, unit: &str| {
        lines.push(Line {
            what,
            value: format!("{value:.0} {unit}"),
            beside: format!("{of}: {beside:.0} {unit}"),
            ratio: Some(value / beside),
            bound: format!("{bound} × that"),
            kept: value / beside <= bound,
        });
    };
    let what = "warm `run --rm -- true` with a spare";
    compare(what, (spare, cold), "the same with --cold", 0.1, "ms");
    compare(what, (spare, floor), "QEMU alone until the same snapshot runs", 3.0, "ms");
    compare(what, (spare, plain), "without", 1.0, "ms");
    compare("… the 19th of 20, by time", (slow, spare), "median", 1.5, "ms");
    let kib = |kib: u64| mib(kib * 1024);
    let memory = (kib(waiting_kib), kib(booted_kib));
    // It shares its template's with nobody yet.
    compare("memory of the only spare that waits (PSS)", memory, "of a VM that booted", 0.5, "MiB");
    for sandbox in [with, without] {
        sandbox.no_vm_is_left();
    }
}
