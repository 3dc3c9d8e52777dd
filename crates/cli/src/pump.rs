//! Moves bytes between this process's standard streams and async code, through bounded channels and
//! on threads of their own, so that a slow reader or writer never stops signals from being handled.
//!
//! Never puts a standard stream into non-blocking mode: it is shared with whoever started us.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::{Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio;
use tokio::sync::{mpsc, oneshot};

/// Bytes read from stdin at once.
const CHUNK: usize = 64 * 1024;
/// Chunks under way in one direction; with [`CHUNK`] the bound on what is buffered.
const DEPTH: usize = 4;

/// Which standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Standard output.
    Stdout,
    /// Standard error; when nobody reads it, what is written is dropped.
    Stderr,
}

/// Writes to stdout and stderr in order.
#[derive(Debug)]
pub(crate) struct OutputPump {
    queue: mpsc::Sender<(Target, Bytes)>,
    done: oneshot::Receiver<io::Result<()>>,
}

impl OutputPump {
    /// Starts the writing thread.
    pub(crate) fn spawn() -> Self {
        let (queue, mut chunks) = mpsc::channel::<(Target, Bytes)>(DEPTH);
        let (told, done) = oneshot::channel();
        std::thread::spawn(move || {
            let mut result = Ok(());
            while let Some((target, bytes)) = chunks.blocking_recv() {
                let written = match target {
                    Target::Stdout => write_all(stdio::stdout(), &bytes),
                    Target::Stderr => write_all(stdio::stderr(), &bytes).or(Ok(())),
                };
                if written.is_err() {
                    result = written;
                    break;
                }
            }
            let _ = told.send(result);
        });
        Self { queue, done }
    }

    /// The queue, to wait for room in it. Every clone must be dropped before [`OutputPump::finish`].
    pub(crate) fn queue(&self) -> mpsc::Sender<(Target, Bytes)> {
        self.queue.clone()
    }

    /// Writes a chunk to stdout.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        match self.queue.send((Target::Stdout, bytes)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failed().await),
        }
    }

    /// Resolves when writing failed, with the reason.
    pub(crate) async fn failed(&mut self) -> io::Error {
        match (&mut self.done).await {
            Ok(Err(error)) => error,
            _ => io::Error::other("the writing thread ended"),
        }
    }

    /// Waits until everything is written.
    pub(crate) async fn finish(self) -> io::Result<()> {
        drop(self.queue);
        self.done.await.unwrap_or(Ok(()))
    }
}

/// Starts reading stdin. The channel closes at its end; a read error ends it likewise.
pub(crate) fn stdin() -> mpsc::Receiver<Bytes> {
    let (queue, chunks) = mpsc::channel(DEPTH);
    std::thread::spawn(move || {
        let mut buffer = BytesMut::new();
        loop {
            buffer.resize(CHUNK, 0);
            let fd = stdio::stdin();
            match rustix::io::read(fd, &mut buffer[..]) {
                Ok(0) => break,
                Ok(n) => {
                    if queue.blocking_send(buffer.split_to(n).freeze()).is_err() {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(fd, PollFlags::IN),
                Err(_) => break,
            }
        }
    });
    chunks
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who shares the stream made it non-blocking.
            Err(Errno::AGAIN) => wait(fd, PollFlags::OUT),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn wait(fd: BorrowedFd<'_>, flags: PollFlags) {
    let _ = poll(&mut [PollFd::new(&fd, flags)], None);
}
