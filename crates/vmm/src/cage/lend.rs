//! The launcher's half of lending a file: answers calls that are held in the cage. Must never lend anything but the file
//! that it was given, and only for reading; what else is asked for goes on as if nobody had looked.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a program may take from its start until it opens the file.
const LIMIT: Duration = Duration::from_secs(20);

/// A file, open for reading, and the name by which it is asked for.
#[derive(Debug)]
pub(super) struct Lent {
    path: PathBuf,
    file: File,
}

impl Lent {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: File::open(path)? })
    }

    /// Waits for the call in a thread of its own, and answers it. Later ones fail: nobody hears of them.
    pub(super) fn serve(self, listener: OwnedFd) -> io::Result<()> {
        let work = move || {
            let until = Instant::now() + LIMIT;
            let outcome = loop {
                match self.answer(&listener, until) {
                    Ok(false) => {}
                    // A signal came in between, after which the call is made again; or the caller has ended, which is
                    // seen then.
                    Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                    Ok(true) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            if let Err(error) = outcome {
                tracing::warn!(%error, "a file could not be lent to a caged program");
            }
        };
        std::thread::Builder::new().name("lend".to_owned()).spawn(work).map(drop)
    }

    /// Answers one call; true when there is none to wait for any more.
    fn answer(&self, listener: &OwnedFd, until: Instant) -> io::Result<bool> {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut heard = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut heard, Some(&limit)) {
            Ok(0) => return Ok(true),
            Err(rustix::io::Errno::INTR) => return Ok(false),
            other => other?,
        };
        // It has ended.
        if !heard.iter().any(|fd| fd.revents().contains(PollFlags::IN)) {
            return Ok(true);
        }
        #[expect(unsafe_code, reason = "these requests have no safe wrappers")]
        // SAFETY: the kernel wants the first structure zeroed and fills it; the others are complete. Each is of the type
        // that its request is defined with, and outlives the call; both descriptors are borrowed for as long.
        unsafe {
            let mut call: libc::seccomp_notif = std::mem::zeroed();
            request(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call))?;
            let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
            let wanted = self.is_meant(&call);
            if wanted {
                let add = libc::seccomp_notif_addfd {
                    id: call.id,
                    flags: 0,
                    srcfd: self.file.as_raw_fd().unsigned_abs(),
                    newfd: 0,
                    newfd_flags: 0,
                };
                let add = libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ADDFD, &raw const add);
                answer.val = request(add)?.into();
            } else {
                answer.flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).unwrap_or(0);
            }
            request(libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer))?;
            Ok(wanted)
        }
    }

    /// Whether a call names the file. The name is in the caller's memory, who may change it at any time; all that it can
    /// get is this file, for reading, or what its cage has in any case.
    fn is_meant(&self, call: &libc::seccomp_notif) -> bool {
        let name = self.path.as_os_str().as_bytes();
        let mut asked = vec![1; name.len() + 1];
        let [_, at, ..] = call.data.args;
        let read = File::open(format!("/proc/{}/mem", call.pid))
            .and_then(|memory| memory.read_exact_at(&mut asked, at));
        read.is_ok() && asked.strip_suffix(&[0]) == Some(name)
    }
}

fn request(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
