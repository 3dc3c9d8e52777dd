//! The banger command: arguments in, one request to the daemon, its answer out.
//!
//! Owns the process: how it starts, which status it ends with. All logic lives in the modules.

mod client;
mod commands;
mod context;
mod daemon_start;
mod error;
mod exec_stream;
mod log_document;
mod many;
mod output;
mod place;
mod process;
mod progress;
mod pump;
mod signals;
mod table;
mod tame;
mod terminal;
mod usage;

use std::process::ExitCode;

fn main() -> ExitCode {
    process::main().into()
}
