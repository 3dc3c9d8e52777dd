//! The agent's port as a byte stream that ends when the guest closes the port. QEMU's socket alone would stay open then,
//! and whoever waits for an answer of an agent that was killed would wait for ever.
//! Must never end a stream that was connected after the port was closed.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::watch;

/// A connection to the agent.
pub(super) struct AgentPort {
    stream: UnixStream,
    /// Ready when the guest has closed the port; `None` once it was.
    closed: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl AgentPort {
    /// `closings` counts how often the guest closed the port.
    pub(super) fn over(stream: UnixStream, mut closings: watch::Receiver<u64>) -> Self {
        closings.mark_unchanged();
        let closed = async move {
            if closings.changed().await.is_err() {
                // Nobody hears the machine any more: the socket alone tells.
                std::future::pending::<()>().await;
            }
        };
        Self { stream, closed: Some(Box::pin(closed)) }
    }
}

impl fmt::Debug for AgentPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentPort").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl AsyncRead for AgentPort {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What the agent said before it went comes first.
        if let ready @ Poll::Ready(_) = Pin::new(&mut self.stream).poll_read(cx, buf) {
            return ready;
        }
        let Some(closed) = &mut self.closed else { return Poll::Ready(Ok(())) };
        std::task::ready!(closed.as_mut().poll(cx));
        self.closed = None;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AgentPort {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn ends_when_the_guest_closes_the_port_and_not_before() {
        let closings = watch::Sender::new(0);
        closings.send_modify(|n| *n += 1);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut port = AgentPort::over(ours, closings.subscribe());
        theirs.write_all(b"last words").await.unwrap();
        let mut first = [0; 4];
        port.read_exact(&mut first).await.unwrap();
        closings.send_modify(|n| *n += 1);
        let mut rest = Vec::new();
        port.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&first[..], &rest[..]), (&b"last"[..], &b" words"[..]));
        assert_eq!(port.read(&mut first).await.unwrap(), 0);
    }
}
