//! Fixtures for the scenarios in `tests/`, which run real VMs through the real `banger`.
//!
//! Owns the throw-away installations ([`Sandbox`]), what they need that is slow to make
//! ([`seed`]), and the proof that nothing stays behind ([`leaks`]). Must never be used by a crate
//! that ships, never mock a VM, and never end a process that it cannot show to be its own.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a fixture that cannot do its part fails the test that uses it"
)]

pub mod account;
pub mod apt;
pub mod bare;
mod clock;
mod clones;
pub mod dns;
mod evidence;
pub mod fake;
pub mod guests;
pub mod habitat;
mod identity;
pub mod leaks;
pub mod measure;
pub mod outside;
mod place;
mod programs;
pub mod random;
pub mod repo;
pub mod run;
mod sandbox;
pub mod seed;
pub mod terminal;
pub mod tree;
pub mod truth;
pub mod user;
pub mod wait;

pub use identity::{as_invoker, become_user, is_root, stay_invoker};
pub use programs::bin_dir;
pub use run::{Feed, Output, Run, Running};
pub use sandbox::{Sandbox, Vm, test_run, workspace_dir};
pub use seed::Seed;

/// Ends a scenario early, saying why, when this host cannot run it.
#[macro_export]
macro_rules! skip_unless {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            eprintln!("skipped: {}", format_args!($($reason)+));
            return;
        }
    };
}
