//! The lifecycle against a model: two clients at once, clients that leave, machines that die and a
//! daemon that dies at any moment, at random, over the fake driver. After every turn what the list
//! says, what runs and what is on disk must be what the reference allows, and nothing else.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails it by panicking"
)]

mod client;
mod reference;
mod sut;

use banger_testkit::Sandbox;
use proptest::test_runner::{Config, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use crate::reference::Model;
use crate::sut::{Lifecycle, TEMPLATE};

/// Cases; `BANGER_MODEL_CASES=1000` for a long look.
const CASES: u32 = 60;
/// How long a failure is made smaller, milliseconds.
const SHRINK_MS: u32 = 60_000;
/// Turns in each.
const TURNS: std::ops::Range<usize> = 4..24;

#[test]
fn the_lifecycle_does_what_the_model_allows() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // What is slow to make and the same for every case: an initramfs, what KVM is worth here.
    let sandbox = Sandbox::bare();
    let vm = sandbox.vm("template", "bare", &["--network", "none"]);
    vm.delete();
    sandbox.banger(["daemon", "stop"]).go().ok().done();
    *TEMPLATE.lock().unwrap() = Some(sandbox.state());

    let cases = std::env::var("BANGER_MODEL_CASES").map_or(CASES, |n| n.parse().unwrap());
    let config = Config { cases, max_shrink_time: SHRINK_MS, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config.clone());
    let strategy = Model::sequential_strategy(TURNS);
    let outcome = runner.run(&strategy, |(state, turns, seen)| {
        Lifecycle::test_sequential(config.clone(), state, turns, seen);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}
