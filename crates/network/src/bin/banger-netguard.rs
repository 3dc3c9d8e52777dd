//! The guard between a VMM and passt (see the library's `guard`): `banger-netguard GUEST-FD PASST-FD RESPONDER-FD`.
//! Takes three connected sockets and nothing else; opens no file and no socket of its own.

use std::process::ExitCode;

use banger_network::{guard, inherited};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let fds: Vec<_> = args.iter().filter_map(|number| inherited::descriptor(number)).collect();
    let Ok([guest, passt, responder]) = <[_; 3]>::try_from(fds) else {
        complain(
            "usage: banger-netguard GUEST-FD PASST-FD RESPONDER-FD; bangerd starts it, with three sockets",
        );
        return ExitCode::from(2);
    };
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        complain(&format!("cannot give up gaining privileges: {error}"));
        return ExitCode::FAILURE;
    }
    match guard::run(&guest.into(), &passt.into(), &responder) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is the program's only way to say anything; it goes to its log")]
fn complain(what: &str) {
    eprintln!("banger-netguard: {what}");
}
