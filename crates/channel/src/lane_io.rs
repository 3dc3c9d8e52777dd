//! A stream's lanes as tokio readers and writers, for callers that want plain bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use banger_protocol::agent::Reply;
use banger_protocol::agent::frame::{Lane, MAX_PAYLOAD};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{ChannelError, StreamEvent, StreamReceiver, StreamSender};

/// Answers kept for later; a guest that sends more is cut off.
const MAX_KEPT: usize = 16;

/// The In lane of a stream as a writer. Shutting it down finishes the lane; dropping it does not.
#[derive(Debug)]
pub struct InWriter {
    sender: StreamSender,
}

impl InWriter {
    pub(crate) fn new(sender: StreamSender) -> Self {
        Self { sender }
    }
}

impl AsyncWrite for InWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let given = Bytes::copy_from_slice(&buf[..buf.len().min(MAX_PAYLOAD)]);
        let mut rest = given.clone();
        ready!(self.sender.poll_send(cx, &mut rest))?;
        Poll::Ready(Ok(given.len() - rest.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.sender.finish_now().map_err(io::Error::from))
    }
}

/// The Out lane of a stream as a reader. It ends without an error only at the lane's own end: a
/// stream that breaks off, or a [`Reply::Error`] before that, is a read error.
#[derive(Debug)]
pub struct OutReader {
    receiver: StreamReceiver,
    piece: Bytes,
    ended: bool,
    kept: Vec<Reply>,
}

impl OutReader {
    pub(crate) fn new(receiver: StreamReceiver) -> Self {
        Self { receiver, piece: Bytes::new(), ended: false, kept: Vec::new() }
    }

    /// Reads the stream to its close, dropping what data is left, and returns the answer.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] for a [`Reply::Error`], [`ChannelError::Ended`] when there was no answer.
    pub async fn reply(mut self) -> Result<Reply, ChannelError> {
        while let Some(event) = self.receiver.next().await? {
            if let StreamEvent::Message(reply) = event {
                self.keep(reply)?;
            }
        }
        match self.kept.drain(..).next() {
            Some(Reply::Error { code, message }) => Err(ChannelError::Guest { code, message }),
            Some(reply) => Ok(reply),
            None => Err(ChannelError::Ended),
        }
    }

    fn keep(&mut self, reply: Reply) -> Result<(), ChannelError> {
        if self.kept.len() >= MAX_KEPT {
            return Err(ChannelError::Violation("more messages than anybody asked for"));
        }
        self.kept.push(reply);
        Ok(())
    }
}

impl AsyncRead for OutReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.piece.is_empty() && !self.ended {
            match ready!(self.receiver.poll_next(cx))? {
                Some(StreamEvent::Data(Lane::Out, data)) => self.piece = data,
                Some(StreamEvent::Eof(Lane::Out)) => self.ended = true,
                Some(StreamEvent::Data(..) | StreamEvent::Eof(_)) => {}
                Some(StreamEvent::Message(Reply::Error { code, message })) => {
                    let error = ChannelError::Guest { code, message: message.clone() };
                    self.keep(Reply::Error { code, message })?;
                    return Poll::Ready(Err(error.into()));
                }
                Some(StreamEvent::Message(reply)) => self.keep(reply)?,
                None => return Poll::Ready(Err(ChannelError::Ended.into())),
            }
        }
        let n = self.piece.len().min(buf.remaining());
        buf.put_slice(&self.piece[..n]);
        self.piece.advance(n);
        Poll::Ready(Ok(()))
    }
}
