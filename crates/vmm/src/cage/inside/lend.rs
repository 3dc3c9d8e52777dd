//! A program that opens a file for writing and then only reads it gets it for reading: its call is held, and whoever
//! started the cage answers it with a descriptor of its own. The program itself never may open it so.

use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// Offsets in what a filter sees of a call (seccomp(2), `struct seccomp_data`).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of the third argument: `openat`'s flags.
const FLAGS: u32 = 32;
/// `AUDIT_ARCH_X86_64`.
const X86_64: u32 = 0xc000_003e;

/// Holds calls that open a file for reading and writing and say nothing else, as no part of QEMU does but the one that
/// opens memory files. The descriptor is to hear of them.
pub(super) fn hold() -> io::Result<OwnedFd> {
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let is = |value, to_else| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, to_else, value);
    let end = |action| step(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    let number = u32::try_from(libc::SYS_openat).unwrap_or(u32::MAX);
    let mut filter = [
        load(ARCHITECTURE),
        is(X86_64, 5),
        load(NUMBER),
        is(number, 3),
        load(FLAGS),
        is(libc::O_RDWR.unsigned_abs(), 1),
        end(libc::SECCOMP_RET_USER_NOTIF),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    let length = u16::try_from(filter.len()).unwrap_or(0);
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    #[expect(unsafe_code, reason = "a filter with a listener has no safe wrapper")]
    // SAFETY: the program points to as many instructions as it says, which outlive the call; the kernel checks them. What
    // it returns is a new descriptor that nobody else owns.
    unsafe {
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let fd = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program);
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn step(code: u32, to_then: u8, to_else: u8, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: to_then, jf: to_else, k: value }
}
