//! The host's answers to a guest (see the library's `responder`): `banger-responder GUARD-FD DIRECTORY`. Takes the guard's
//! socket and the directory with the copy of the host's resolv.conf.

use std::path::Path;
use std::process::ExitCode;

use banger_network::{inherited, responder};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [number, dir] = args.as_slice() else { return usage() };
    let Some(guard) = inherited::descriptor(number) else { return usage() };
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        complain(&format!("cannot give up gaining privileges: {error}"));
        return ExitCode::FAILURE;
    }
    match responder::run(guard, Path::new(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    complain("usage: banger-responder GUARD-FD DIRECTORY; bangerd starts it, with a socket");
    ExitCode::from(2)
}

#[expect(clippy::print_stderr, reason = "this is the program's only way to say anything; it goes to its log")]
fn complain(what: &str) {
    eprintln!("banger-responder: {what}");
}
