//! Every step of every operation × {it fails, the daemon is killed before it, after it, the VMM is killed
//! in it}: after the next command what the list says is true, the VM is usable or can be deleted,
//! and nothing is there that belongs to nobody. The steps are the daemon's own (`bangerd
//! --list-steps`); a step that no cell reaches fails the test as a leak does.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of a test fails it by panicking")]

mod bench;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Instant;

use banger_testkit::{Run, bin_dir};

use crate::bench::Bench;

/// Sandboxes that work at once.
const WORKERS: usize = 2;

/// Operations that are asked for in more than one way, where some of their steps are other things: a create that goes on
/// from a template, and one that is given a spare.
const WAYS: [(&str, &str, &[&str]); 2] = [
    ("create_restored", "create", &["system_disk", "work_disk", "launch", "boot", "running"]),
    ("create_spare", "create", &["reserve", "boot", "running", "finish"]),
];

/// One cell: a step of an operation and what happens there.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    /// The daemon's word, or one of [`WAYS`].
    pub(crate) operation: String,
    pub(crate) step: String,
    pub(crate) action: &'static str,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}={}", self.operation, self.step, self.action)
    }
}

impl Cell {
    /// As the daemon is told.
    pub(crate) fn fault(&self) -> String {
        let operation =
            WAYS.iter().find(|(way, ..)| *way == self.operation).map(|(_, operation, _)| *operation);
        format!("{}.{}={}", operation.unwrap_or(&self.operation), self.step, self.action)
    }
}

/// What a cell came to.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Whether its step ran at all.
    pub(crate) reached: bool,
    /// What is not as it must be.
    pub(crate) wrong: Vec<String>,
}

/// All cells, by operation, in the order of the daemon's steps. With `BANGER_MATRIX_PART=half`, as `make test` has it, every
/// second one: each step is reached, with two actions or so. `make matrix` runs all.
fn cells() -> BTreeMap<String, VecDeque<Cell>> {
    let half = std::env::var("BANGER_MATRIX_PART").is_ok_and(|part| part == "half");
    let mut number = 0;
    let steps = Run::new(bin_dir().join("bangerd")).arg("--list-steps").go().ok();
    // `BANGER_MATRIX=delete` or `=start.launch` looks at these only.
    let wanted = std::env::var("BANGER_MATRIX").unwrap_or_default();
    let mut all: BTreeMap<String, VecDeque<Cell>> = BTreeMap::new();
    let listed = steps.text().lines().map(str::to_owned);
    let ways = WAYS.iter().flat_map(|(way, _, steps)| steps.iter().map(move |step| format!("{way}.{step}")));
    for name in listed.chain(ways).filter(|line| line.starts_with(&wanted)) {
        let (operation, step) = name.split_once('.').unwrap_or_else(|| panic!("'{name}' is no step"));
        let actions = ["fail", "kill-before", "kill-after", "kill-vmm"];
        for action in actions.into_iter().filter(|a| *a != "kill-vmm" || has_machine(operation, step)) {
            let cell = Cell { operation: operation.to_owned(), step: step.to_owned(), action };
            number += 1;
            if half && number % 2 == 0 {
                continue;
            }
            all.entry(operation.to_owned()).or_default().push_back(cell);
        }
    }
    all
}

/// Whether a VMM runs while this step does. A cell that says so and finds none counts as not reached.
fn has_machine(operation: &str, step: &str) -> bool {
    let steps: &[&str] = match operation {
        "create" => &["launch", "boot", "guest_network", "running", "workspace", "finish"],
        "start" => &["launch", "boot", "guest_network", "running"],
        "stop" => &["stopping", "power_off"],
        "restart" => &["stopping", "power_off", "launch", "boot", "guest_network", "running"],
        "kill" => &["signal"],
        "delete" => &["deleting", "processes"],
        "template" => &["launch", "boot", "guest_network", "settle", "snapshot"],
        "template_save" => return step != "publish",
        "prepare" | "export" | "apply" | "pause" | "resume" | "snapshot_create" => return true,
        "fork" => return step != "system_disk",
        "snapshot_restore" => &["copies", "launch", "boot", "running"],
        "create_restored" => &["launch", "boot", "running"],
        "create_spare" => return true,
        "spare" => &["launch", "boot", "rehearse", "ready"],
        // A VM that is off, and a build.
        _ => &[],
    };
    steps.contains(&step)
}

/// The next cell for a bench: in turns, so that what one leaves (a machine that runs) serves the next.
fn next(cells: &Mutex<BTreeMap<String, VecDeque<Cell>>>, last: &str) -> Option<Cell> {
    let mut cells = cells.lock().unwrap();
    let after = cells.range(last.to_owned()..).map(|(name, _)| name.clone()).filter(|name| name != last);
    let order: Vec<String> = after.chain(cells.keys().cloned()).collect();
    order.iter().find_map(|name| cells.get_mut(name).and_then(VecDeque::pop_front))
}

#[test]
fn after_any_crash_at_any_step_the_list_is_true_and_nothing_is_left() {
    let cells = cells();
    let total: usize = cells.values().map(VecDeque::len).sum();
    let counts: Vec<String> = cells.iter().map(|(name, all)| format!("{name} {}", all.len())).collect();
    assert!(total > 0, "no step of that name");
    println!("{total} cells: {}", counts.join(", "));
    let began = Instant::now();
    let (cells, found) = (Mutex::new(cells), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for number in 0..WORKERS.min(total) {
            let (cells, found) = (&cells, &found);
            scope.spawn(move || {
                let mut bench = Bench::new(number);
                let mut last = String::new();
                while let Some(cell) = next(cells, &last) {
                    last.clone_from(&cell.operation);
                    let began = Instant::now();
                    let what = bench.run(&cell);
                    println!("{cell}: {} ({:.1} s)", verdict(&what), began.elapsed().as_secs_f64());
                    found.lock().unwrap().push((cell, what));
                }
                bench.end();
            });
        }
    });
    let found = found.into_inner().unwrap();
    let leaks = found.iter().filter(|(_, f)| !f.wrong.is_empty()).count();
    let missed: Vec<String> = found.iter().filter(|(_, f)| !f.reached).map(|(c, _)| c.to_string()).collect();
    println!(
        "{} cells of {total}, {leaks} with leaks or untruths, {} not reached, {:.0} s",
        found.len(),
        missed.len(),
        began.elapsed().as_secs_f64()
    );
    let wrong: Vec<String> =
        found.iter().flat_map(|(c, f)| f.wrong.iter().map(move |w| format!("{c}: {w}"))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(missed.is_empty(), "no cell reaches these steps: {missed:?}");
}

fn verdict(found: &Found) -> String {
    match (found.reached, found.wrong.is_empty()) {
        (true, true) => "ok".to_owned(),
        (false, true) => "NOT REACHED".to_owned(),
        (_, false) => format!("WRONG: {}", found.wrong.join("; ")),
    }
}
