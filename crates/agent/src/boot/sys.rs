//! The system calls that have no safe wrapper elsewhere. Each function is one call with its checks.
//! Must never hold policy: what to do with a signal or a failure is the caller's.
#![expect(unsafe_code, reason = "a leaf module that wraps system calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// A set of signals.
pub(super) struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// The set of these signal numbers.
    pub(super) fn of(signals: &[i32]) -> io::Result<Self> {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the whole set that it is given a valid pointer to.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in signals {
            // SAFETY: `set` is initialised; a bad number is refused with EINVAL.
            if unsafe { libc::sigaddset(&raw mut set, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(set))
    }

    /// Blocks these signals on the calling thread, so that [`Self::wait`] can take them.
    pub(super) fn block(&self) -> io::Result<()> {
        // SAFETY: the set is initialised and outlives the call; the old mask is not asked for.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Unblocks these signals on the calling thread.
    pub(super) fn unblock(&self) -> io::Result<()> {
        // SAFETY: as in `block`.
        match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Takes one pending signal of the set, waiting for it as long as needed.
    pub(super) fn wait(&self) -> io::Result<i32> {
        loop {
            // SAFETY: the set is initialised; no siginfo is asked for.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.0, std::ptr::null_mut()) };
            if signal >= 0 {
                return Ok(signal);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

/// The n-th real-time signal, as systemd(1) counts them ("SIGRTMIN+n").
pub(super) fn realtime_signal(n: i32) -> i32 {
    libc::SIGRTMIN() + n
}

/// Sends a signal to a process, or, as kill(2) says, to all but process 1 and the caller for -1.
pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes two numbers and touches no memory of ours.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Which side of a fork this is.
pub(super) enum Fork {
    /// With the child's process id.
    Parent(u32),
    /// In the child's group already.
    Child,
}

/// `CLONE_INTO_CGROUP` of linux/sched.h: more than the 32 bits that the C library's constants have.
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks into a control group (clone(2)). Refuses where there are more threads than this one, which
/// the child would not have.
pub(super) fn fork_into(group: BorrowedFd<'_>) -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // SAFETY: zeros are a valid value of a structure of numbers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = CLONE_INTO_CGROUP;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = group.as_raw_fd() as u64;
    // SAFETY: without CLONE_VM the child has its own copy of all memory, and no other thread held a lock at the fork.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(u32::try_from(pid).unwrap_or_default())),
    }
}

/// `RNDADDENTROPY` of random(4): `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// The most bytes credited at once.
pub(super) const ENTROPY_MAX: usize = 512;

/// `struct rand_pool_info` of linux/random.h with room for the bytes.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: libc::c_int,
    bytes: libc::c_int,
    buffer: [u8; ENTROPY_MAX],
}

/// Credits up to [`ENTROPY_MAX`] bytes to the kernel's pool; `device` is an open `/dev/random`.
pub(super) fn add_entropy(device: &std::fs::File, bytes: &[u8]) -> io::Result<()> {
    let mut info = RandPoolInfo { entropy_bits: 0, bytes: 0, buffer: [0; ENTROPY_MAX] };
    let Some(room) = info.buffer.get_mut(..bytes.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    room.copy_from_slice(bytes);
    info.bytes = i32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    info.entropy_bits = info.bytes * 8;
    // SAFETY: the structure is laid out as the ioctl reads it, and `bytes` is within its buffer.
    match unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const info) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `RNDRESEEDCRNG` of random(4): `_IO('R', 0x07)`.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// Makes the kernel's random numbers depend on what was credited from now on, rather than within the next minutes.
pub(super) fn reseed(device: &std::fs::File) -> io::Result<()> {
    // SAFETY: the ioctl takes no argument.
    match unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `EXT4_IOC_RESIZE_FS` of linux/ext4.h: `_IOW('f', 16, __u64)`.
const EXT4_IOC_RESIZE_FS: libc::Ioctl = 0x4008_6610;

/// Grows the mounted ext4 file system that `on` is open on to this many of its blocks.
pub(super) fn resize_ext4(on: &std::fs::File, blocks: u64) -> io::Result<()> {
    // SAFETY: the ioctl reads one 64-bit number, which lives until it returns.
    match unsafe { libc::ioctl(on.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over a file descriptor that the parent left open for us. Call it once for each number.
pub(super) fn inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD on any number is harmless; it tells whether the descriptor is open.
    if fd < 3 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is open, and the caller is the only one in this process that knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
