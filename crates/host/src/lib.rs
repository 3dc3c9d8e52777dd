//! What the host has: programs and the packages that have them, user namespaces, subordinate ids.
//!
//! Owns the table of programs (`programs.tsv`) and the look-up of each. Must never install or change anything.

mod distribution;
pub mod programs;
pub mod subordinate_ids;
pub mod user_namespaces;

pub use distribution::Distribution;
