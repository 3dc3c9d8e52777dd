//! The virtio-serial port as an asynchronous byte stream. Owns finding, opening and waiting; must
//! never spin on a port that no host has open, and never block on one that nobody reads.
//!
//! The port cannot be registered with tokio itself: without a host it reports a hang-up, which tokio
//! takes for final. It sits in an edge-triggered epoll of its own, and tokio watches that one.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use banger_protocol::boot::AGENT_PORT;
use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
/// Pause between two looks for a port that is not there yet.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// An open port. Both directions must be polled by one task, and reading never ceases while the
/// port is served: the reader wakes the writer.
pub(crate) struct Port {
    port: OwnedFd,
    events: AsyncFd<OwnedFd>,
    may_read: bool,
    write_waits: bool,
}

impl Port {
    /// Opens the agent's port, waiting for as long as it takes to appear.
    pub(crate) async fn open() -> io::Result<Self> {
        loop {
            if let Some(path) = find(Path::new("/sys/class/virtio-ports")) {
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
                match rustix::fs::open(&path, flags, Mode::empty()) {
                    Ok(port) => return Self::new(port),
                    // ENXIO and ENOENT for a moment after the module was loaded, EBUSY while a dying agent has it.
                    Err(Errno::NXIO | Errno::NOENT | Errno::BUSY | Errno::NODEV | Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn new(port: OwnedFd) -> io::Result<Self> {
        let inner = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&inner, &port, epoll::EventData::new_u64(0), flags)?;
        let events = crate::watch::watch(inner, tokio::io::Interest::READABLE)?;
        Ok(Self { port, events, may_read: true, write_waits: false })
    }

    /// Waits until a host has the other end open.
    pub(crate) async fn wait_host(&mut self) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.port, PollFlags::OUT)];
            rustix::event::poll(&mut fds, Some(&NOW))?;
            if !fds[0].revents().contains(PollFlags::HUP) {
                self.may_read = true;
                return Ok(());
            }
            std::future::poll_fn(|cx| self.poll_event(cx)).await?;
        }
    }

    /// Ready when something about the port changed since the last time.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.events.poll_read_ready(cx))?;
            let mut events: [epoll::Event; 1] =
                [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
            let n = match epoll::wait(guard.get_inner().as_fd(), &mut events, Some(&NOW)) {
                Err(Errno::INTR) => continue,
                n => n?,
            };
            if n > 0 {
                return Poll::Ready(Ok(()));
            }
            guard.clear_ready();
        }
    }
}

/// The device whose port has our name.
fn find(class: &Path) -> Option<PathBuf> {
    std::fs::read_dir(class).ok()?.flatten().find_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim_end() == AGENT_PORT).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.may_read {
                match rustix::io::read(&self.port, buf.initialize_unfilled()) {
                    // Zero bytes: the host closed its end.
                    Ok(n) => {
                        buf.advance(n);
                        return Poll::Ready(Ok(()));
                    }
                    Err(Errno::AGAIN) => self.may_read = false,
                    Err(Errno::INTR) => continue,
                    Err(e) => return Poll::Ready(Err(e.into())),
                }
            }
            ready!(self.poll_event(cx))?;
            self.may_read = true;
            if std::mem::take(&mut self.write_waits) {
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(mut self: Pin<&mut Self>, _cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match rustix::io::write(&self.port, buf) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // The next event finds its way here through the reader.
                    self.write_waits = true;
                    return Poll::Pending;
                }
                n => return Poll::Ready(n.map_err(io::Error::from)),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn the_port_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (port, name) in [("vport0p1", "org.other\n"), ("vport0p2", "banger.agent\n")] {
            std::fs::create_dir(dir.path().join(port)).unwrap();
            std::fs::write(dir.path().join(port).join("name"), name).unwrap();
        }
        assert_eq!(find(dir.path()), Some(PathBuf::from("/dev/vport0p2")));
        assert_eq!(find(&dir.path().join("none")), None);
    }

    /// A socket pair stands for the port: it has the same readiness, but its hang-up is final.
    #[tokio::test]
    async fn both_directions_make_progress_under_backpressure() {
        let (host, guest) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        guest.set_nonblocking(true).unwrap();
        let port = Port::new(guest.into()).unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let echo = async {
            let (mut from, mut to) = tokio::io::split(port);
            let (mut a, mut b) = (Vec::new(), sent.clone());
            let read = async { from.read_to_end(&mut a).await.map(drop) };
            let write = async { to.write_all(&b).await };
            tokio::try_join!(read, write).unwrap();
            b.clear();
            a
        };
        let mut host = tokio::net::UnixStream::from_std(host).unwrap();
        let other = async {
            let (mut from, mut to) = host.split();
            let mut got = vec![0; sent.len()];
            let write = async { to.write_all(&sent).await };
            let read = async { from.read_exact(&mut got).await.map(drop) };
            tokio::try_join!(read, write).unwrap();
            to.shutdown().await.unwrap();
            got
        };
        let (at_guest, at_host) = tokio::join!(echo, other);
        assert!(at_guest == sent && at_host == sent);
    }
}
