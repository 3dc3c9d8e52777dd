//! The binary against a scripted daemon.
fn main() {}
