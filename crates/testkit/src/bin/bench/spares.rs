//! Spares: a warm run that finds one waiting beside one that restores its template.

use banger_testkit::Sandbox;
use banger_testkit::measure::median;

use super::{Line, clocked};

/// How often each is measured.
const ROUNDS: usize = 15;

pub(crate) fn spares(lines: &mut Vec<Line>) {
    eprintln!("bench: warm runs with a spare, and without");
    let with = Sandbox::bare().warm();
    with.configure("[warm]\nspares = 1\n");
    let without = Sandbox::bare().warm();
    let run = |sandbox: &Sandbox| clocked(sandbox.banger(["run", "--rm", "--image", "bare", "--", "true"]));
    for sandbox in [&with, &without] {
        run(sandbox);
        sandbox.template_made();
        run(sandbox);
    }
    let (mut spare, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // Another is there again; a run that comes too early restores.
        with.spares_wait(1);
        spare.push(run(&with));
        with.spares_wait(1);
        plain.push(run(&without));
    }
    let (spare, plain) = (median(spare), median(plain));
    lines.push(Line {
        what: "warm `run --rm -- true` with a spare",
        value: format!("{spare:.0} ms"),
        beside: format!("without: {plain:.0} ms"),
        ratio: Some(spare / plain),
        bound: "1 × that".to_owned(),
        kept: spare <= plain,
    });
    for sandbox in [with, without] {
        sandbox.no_vm_is_left();
    }
}
