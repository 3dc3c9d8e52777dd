//! The agent's server, through the whole channel: a session on a socket pair, the server at its other end.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod archive;
mod copy_in;
mod exec;
mod fixture;
