//! Descriptors that a parent gives to a program of ours by their numbers.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The descriptor with this number, if it is one that was given to this process. To be called at the start of `main`,
/// once for each number.
#[must_use]
pub fn descriptor(number: &str) -> Option<OwnedFd> {
    let number: RawFd = number.parse().ok().filter(|n| *n > 2)?;
    #[expect(unsafe_code, reason = "descriptors that a parent gives are known by number only")]
    // SAFETY: it is only asked whether it is open, and it is taken when it is; it is beyond the standard three, nothing
    // in this process owns a descriptor yet, and each number is taken once.
    let fd = unsafe {
        rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(number)).ok()?;
        OwnedFd::from_raw_fd(number)
    };
    Some(fd)
}
