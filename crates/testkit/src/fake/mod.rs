//! A driver without a guest: real processes that only sleep, marked as VMMs are, and an agent that
//! is a task of this process. For unit and model tests of the lifecycle; never for scenarios.
//!
//! Owns the [`World`]: the machines, which outlive any daemon over it as real ones do, what the
//! test wants the next of them to do, and the record of what must never happen. Must never end a
//! machine because a daemon went away.

mod agent;
mod driver;
mod world;

pub use driver::FakeDriver;
pub use world::{Fate, World};
