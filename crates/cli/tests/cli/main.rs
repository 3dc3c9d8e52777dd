//! The binary against a scripted daemon: real arguments, a real socket, real frames; no VM.
#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of a test fail it")]

mod daemon;
mod errors;
mod exec;
mod many;
mod run;
mod scripted;
mod terminal;
mod workspace;
