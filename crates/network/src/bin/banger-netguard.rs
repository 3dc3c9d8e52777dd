//! The guard between a VMM and passt (see the library's `guard`): `banger-netguard GUEST-FD HOST-FD`.
//! Takes two connected sockets and nothing else; opens no file and no socket of its own.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(guest), Some(host), None) = (socket(args.next()), socket(args.next()), args.next()) else {
        complain("usage: banger-netguard GUEST-FD HOST-FD; bangerd starts it, with two sockets");
        return ExitCode::from(2);
    };
    if let Err(error) = rustix::thread::set_no_new_privs(true) {
        complain(&format!("cannot give up gaining privileges: {error}"));
        return ExitCode::FAILURE;
    }
    match banger_network::guard::run(&guest, &host) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// The descriptor with this number, if it is one that was given to us.
fn socket(number: Option<String>) -> Option<UnixStream> {
    let number: RawFd = number?.parse().ok().filter(|n| *n > 2)?;
    #[expect(unsafe_code, reason = "descriptors that a parent gives are known by number only")]
    // SAFETY: it is only asked whether it is open, and it is taken when it is; it is beyond the standard three, nothing
    // in this process owns a descriptor yet, and each number is taken once.
    let fd = unsafe {
        rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(number)).ok()?;
        OwnedFd::from_raw_fd(number)
    };
    Some(fd.into())
}

#[expect(clippy::print_stderr, reason = "this is the program's only way to say anything; it goes to its log")]
fn complain(what: &str) {
    eprintln!("banger-netguard: {what}");
}
