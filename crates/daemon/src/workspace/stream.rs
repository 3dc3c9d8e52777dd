//! Streams to and from a guest that are given up when nobody wants them any more, or when the guest stands still. Must
//! never count the time that the host itself takes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use banger_model::{Error, ErrorCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::op::cancelled;

/// How long an agent may neither take nor say anything while it unpacks, compares or runs git: it may have to remove an old
/// copy, or to read a file of many gigabytes, before it gets on.
pub(super) const STILL: Duration = Duration::from_secs(600);

/// The error for a guest whose agent stood still for so long.
pub(super) fn stands_still(limit: Duration) -> Error {
    Error::new(ErrorCode::Timeout, format!("the guest's agent has said nothing for {} s", limit.as_secs()))
        .with_hint("see what its machine does with 'banger vm logs --console', or end it with 'banger vm kill' and try again")
}

/// A reader or writer that fails as soon as its operation is cancelled, so that a thread that
/// waits on a silent guest is let go.
pub(super) struct Cancellable<T> {
    pub(super) inner: T,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    pulse: Option<(Arc<Pulse>, usize)>,
}

/// When two streams of one request last got on.
#[derive(Debug)]
pub(super) struct Pulse {
    /// Which of them wait for the guest, and since when nothing happened.
    state: Mutex<([bool; 2], Instant)>,
}

impl Pulse {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(([false; 2], Instant::now())) })
    }

    fn note(&self, which: usize, waits: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = state.0.get_mut(which)
            && (!waits || !*before)
        {
            *before = waits;
            state.1 = Instant::now();
        }
    }

    /// Ends when the host has waited so long for the guest without anything coming or going.
    pub(super) async fn stops(&self, limit: Duration) {
        loop {
            let (waits, since) = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let idle = if waits.contains(&true) { since.elapsed() } else { Duration::ZERO };
            match limit.checked_sub(idle).filter(|left| !left.is_zero()) {
                Some(left) => tokio::time::sleep(left).await,
                None => return,
            }
        }
    }
}

impl<T> Cancellable<T> {
    pub(super) fn new(inner: T, token: &CancellationToken) -> Self {
        Self { inner, cancelled: Box::pin(token.clone().cancelled_owned()), pulse: None }
    }

    /// The same as one of two streams (0 or 1) that are watched together.
    pub(super) fn watched(self, pulse: &Arc<Pulse>, which: usize) -> Self {
        Self { pulse: Some((pulse.clone(), which)), ..self }
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(std::io::Error::other(cancelled())),
            Poll::Pending => Ok(()),
        }
    }

    fn noted<R>(&self, poll: Poll<R>) -> Poll<R> {
        if let Some((pulse, which)) = &self.pulse {
            pulse.note(*which, poll.is_pending());
        }
        poll
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cancellable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_cancelled(cx)?;
        let poll = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.noted(poll)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cancellable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_cancelled(cx)?;
        let poll = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.noted(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_time_that_the_guest_takes_counts() {
        let limit = Duration::from_secs(60);
        let (pulse, token) = (Pulse::new(), CancellationToken::new());
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut reader = Cancellable::new(ours, &token).watched(&pulse, 0);
        // Given a host that does something else for an hour.
        let idle = tokio::time::timeout(Duration::from_secs(3600), pulse.stops(limit)).await;
        assert!(idle.is_err());
        // Given a guest that says a byte now and then, for longer than the limit.
        let mut byte = [0];
        let talk = async {
            for _ in 0..10 {
                tokio::time::sleep(limit / 2).await;
                theirs.write_all(b"x").await.unwrap();
                reader.read_exact(&mut byte).await.unwrap();
            }
        };
        let listen = async {
            tokio::select! { () = talk => true, () = pulse.stops(limit) => false }
        };
        assert!(listen.await, "it got on");
        // And one that says nothing.
        let began = Instant::now();
        let silent =
            tokio::select! { _ = reader.read_exact(&mut byte) => false, () = pulse.stops(limit) => true };
        assert!(silent && began.elapsed() >= limit);
    }
}
