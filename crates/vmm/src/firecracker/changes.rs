//! Hears of changes to a file or directory (inotify(7)). Must never keep whoever waits from going on: the kernel takes
//! some 10 ms to let go of a watch, which is left to a thread that nobody waits for.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

/// What changes from now on.
pub(super) struct Changes {
    /// There until this goes away.
    fd: Option<AsyncFd<OwnedFd>>,
}

impl Changes {
    pub(super) fn of(path: &Path, kind: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, path, kind)?;
        Ok(Self { fd: Some(crate::process::watch_fd(fd)?) })
    }

    /// Returns when there has been one since this was made, or since the last one was told.
    pub(super) async fn next(&self) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        loop {
            let mut ready = fd.readable().await?;
            let mut events = [0_u8; 4096];
            match rustix::io::read(ready.get_inner(), &mut events) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        let fd = fd.into_inner();
        // Without a runtime nobody is kept waiting.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(fd)));
        }
    }
}
