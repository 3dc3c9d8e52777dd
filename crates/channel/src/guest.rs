//! The guest's end: one host at a time, one handler per stream. A new session ends the old one's
//! streams at whatever byte it begins.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use banger_model::{ErrorCode, OpId};
use banger_protocol::agent::frame::{Kind, Lane, SYNC_MAGIC, ack, token};
use banger_protocol::agent::{
    Context, Control, MAX_OPENING, Opening, Reply, Request, decode, decode_opening, decode_whole, encode,
};
use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::runtime::Handle;

use crate::ChannelError;
use crate::deframe::{Deframer, Unit};
use crate::mux::Mux;
use crate::stream::{Incoming, Stream, Want};

/// Streams that one session may have open.
pub const MAX_STREAMS: usize = 1024;
/// The lanes on which the host sends.
const FROM_HOST: [bool; 3] = [true, false, false];

/// Carries requests out.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Handles one request. The stream is closed when this returns. It must return soon after
    /// [`GuestStream::ended`] does: nobody listens any more.
    fn handle(&self, request: Request, stream: GuestStream) -> impl Future<Output = ()> + Send;
}

/// Serves sessions on a byte stream, one after another, until it ends. Every stream is ended when
/// this returns or is dropped.
///
/// # Errors
/// When reading or writing fails. The end of the byte stream is no error.
pub async fn serve<T, H>(io: T, handler: H) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Send + Unpin,
    H: Handler,
{
    let (from, to) = tokio::io::split(io);
    let mux = EndOnDrop(Arc::new(Mux::default()));
    // One task for both directions: a batch is never being gathered while a session begins.
    tokio::select! {
        end = mux.0.write_all(to) => end,
        end = read_all(&mux.0, from, &handler) => end,
    }
}

struct EndOnDrop(Arc<Mux>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end_all(&gone(), true);
    }
}

fn gone() -> ChannelError {
    ChannelError::Closed("the host is gone".into())
}

async fn read_all<R: AsyncRead + Unpin, H: Handler>(
    mux: &Arc<Mux>,
    mut from: R,
    handler: &H,
) -> io::Result<()> {
    let mut frames = Deframer::new(SYNC_MAGIC);
    let mut session = 0;
    loop {
        while let Some(unit) = frames.next() {
            match unit {
                Unit::Lost => mux.end_all(&gone(), true),
                Unit::Found(nonce) => {
                    mux.end_all(&gone(), true);
                    session = token(&nonce);
                    frames.enter(session);
                    mux.preamble(ack(&nonce));
                }
                Unit::Frame(header, payload) if header.kind == Kind::Open => {
                    open(mux, session, header.stream, &payload, handler);
                }
                Unit::Frame(header, payload) => {
                    let Some(stream) = mux.get(header.stream) else { continue };
                    if header.kind == Kind::Reset {
                        stream.kill(ChannelError::Reset, true);
                        mux.remove(&stream);
                    } else if let Err(rule) = stream.accept(header.kind, header.lane, payload) {
                        let answer =
                            refusal(ErrorCode::InvalidArgument, format!("the stream was reset: {rule}"));
                        stream.reset(ChannelError::Violation(rule), answer);
                    }
                }
            }
        }
        if from.read_buf(frames.space()).await? == 0 {
            return Ok(());
        }
    }
}

fn open<H: Handler>(mux: &Arc<Mux>, session: u32, id: u32, payload: &[u8], handler: &H) {
    if mux.len() >= MAX_STREAMS {
        return mux.refuse(
            id,
            session,
            refusal(ErrorCode::Busy, format!("the agent serves {MAX_STREAMS} streams already")),
        );
    }
    let opening = match decode_opening(payload) {
        Ok(opening) => opening,
        Err(e) => return mux.refuse(id, session, unknown(&e)),
    };
    let Some(stream) = mux.add(id, session, FROM_HOST) else {
        let answer = refusal(ErrorCode::InvalidArgument, "the stream was opened twice".into());
        if let Some(stream) = mux.get(id) {
            stream.reset(ChannelError::Violation("a stream opened twice"), answer);
        }
        return;
    };
    let handler = handler.clone();
    tokio::spawn(async move {
        let close = CloseOnDrop(Arc::clone(&stream));
        let whole = match opening {
            Opening::Whole(whole) => Some(*whole),
            Opening::Long(bytes) => take_long(&stream, bytes).await,
        };
        if let Some((request, context)) = whole {
            handler.handle(request, GuestStream { stream, op_id: context.op_id }).await;
        }
        drop(close);
    });
}

/// A request that comes on the In lane, before what else comes there. `None` when the stream is over or was reset.
async fn take_long(stream: &Arc<Stream>, bytes: u64) -> Option<(Request, Context)> {
    let broke = |rule| {
        let answer = refusal(ErrorCode::InvalidArgument, format!("the stream was reset: {rule}"));
        stream.reset(ChannelError::Violation(rule), answer);
    };
    let Some(mut left) = usize::try_from(bytes).ok().filter(|bytes| *bytes <= MAX_OPENING) else {
        broke("a request longer than any may be");
        return None;
    };
    // No longer than what has come, whatever was announced.
    let mut request = Vec::new();
    while left > 0 {
        match poll_fn(|cx| stream.poll_next(cx, Want::AtMost(left))).await.ok()? {
            Some(Incoming::Data(_, piece)) => {
                left -= piece.len();
                request.extend_from_slice(&piece);
            }
            _ => {
                broke("a request that ends before its length");
                return None;
            }
        }
    }
    match decode_whole(&request) {
        Ok(whole) => Some(whole),
        Err(e) => {
            stream.reset(ChannelError::Violation("a request that nobody knows"), unknown(&e));
            None
        }
    }
}

struct CloseOnDrop(Arc<Stream>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn unknown(why: &str) -> Bytes {
    refusal(ErrorCode::Unsupported, format!("this agent does not know the request: {why}"))
}

fn refusal(code: ErrorCode, message: String) -> Bytes {
    encode(&Reply::Error { code, message }).unwrap_or_default().into()
}

/// The guest's side of a stream. Clones share it.
#[derive(Debug, Clone)]
pub struct GuestStream {
    stream: Arc<Stream>,
    op_id: Option<OpId>,
}

impl GuestStream {
    /// The host's operation that this is part of, if it said so.
    #[must_use]
    pub fn op_id(&self) -> Option<&OpId> {
        self.op_id.as_ref()
    }

    /// The next bytes of the In lane, or `None` at its end. Cancel-safe. The host gets credit for
    /// data when it is taken here.
    ///
    /// # Errors
    /// When the stream was reset or its session ended.
    pub async fn input(&self) -> Result<Option<Bytes>, ChannelError> {
        match poll_fn(|cx| self.stream.poll_next(cx, Want::Lanes)).await? {
            Some(Incoming::Data(_, data)) => Ok(Some(data.freeze())),
            Some(Incoming::Eof(_) | Incoming::Message(_)) => Ok(None),
            None => Err(ChannelError::Ended),
        }
    }

    /// The next message. Cancel-safe. Messages overtake data that nobody has taken yet.
    ///
    /// # Errors
    /// When the stream was reset or its session ended, or the message is none of ours.
    pub async fn control(&self) -> Result<Control, ChannelError> {
        match poll_fn(|cx| self.stream.poll_next(cx, Want::Messages)).await? {
            Some(Incoming::Message(bytes)) => decode(&bytes).map_err(ChannelError::Malformed),
            _ => Err(ChannelError::Ended),
        }
    }

    /// Sends bytes, waiting for credit as needed.
    ///
    /// # Errors
    /// When the stream was reset or its session ended.
    pub async fn send(&self, lane: Lane, mut data: Bytes) -> Result<(), ChannelError> {
        while !data.is_empty() {
            poll_fn(|cx| self.stream.poll_send(cx, lane, &mut data)).await?;
        }
        Ok(())
    }

    /// No more bytes on this lane.
    ///
    /// # Errors
    /// As [`GuestStream::send`].
    pub fn finish(&self, lane: Lane) -> Result<(), ChannelError> {
        self.stream.eof(lane)
    }

    /// Sends an answer, after all data sent before it.
    ///
    /// # Errors
    /// As [`GuestStream::send`].
    pub async fn reply(&self, reply: &Reply) -> Result<(), ChannelError> {
        let bytes = Bytes::from(encode(reply).map_err(ChannelError::Malformed)?);
        poll_fn(|cx| self.stream.poll_message(cx, &bytes)).await
    }

    /// Returns when the stream was reset or its session ended.
    pub async fn ended(&self) -> ChannelError {
        poll_fn(|cx| self.stream.poll_dead(cx)).await
    }

    /// Stops listening: what the host still sends is dropped, so that it never waits for credit.
    pub fn ignore_input(&self) {
        self.stream.discard();
    }

    /// The In lane for a thread that may block. Messages stay where they are.
    #[must_use]
    pub fn blocking_reader(&self, runtime: Handle) -> LaneReader {
        LaneReader { stream: self.clone(), runtime, piece: Bytes::new(), ended: false }
    }

    /// A lane for a thread that may block.
    #[must_use]
    pub fn blocking_writer(&self, runtime: Handle, lane: Lane) -> LaneWriter {
        LaneWriter { stream: self.clone(), runtime, lane }
    }
}

/// The In lane as a blocking reader. Use it on a thread of the blocking pool only.
#[derive(Debug)]
pub struct LaneReader {
    stream: GuestStream,
    runtime: Handle,
    piece: Bytes,
    ended: bool,
}

impl io::Read for LaneReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.piece.is_empty() || self.ended {
                let n = self.piece.len().min(buf.len());
                buf[..n].copy_from_slice(&self.piece[..n]);
                self.piece.advance(n);
                return Ok(n);
            }
            match self.runtime.block_on(self.stream.input())? {
                Some(data) => self.piece = data,
                None => self.ended = true,
            }
        }
    }
}

/// A lane as a blocking writer. Use it on a thread of the blocking pool only. Buffers nothing.
#[derive(Debug)]
pub struct LaneWriter {
    stream: GuestStream,
    runtime: Handle,
    lane: Lane,
}

impl io::Write for LaneWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(&buf[..buf.len().min(banger_protocol::agent::frame::MAX_PAYLOAD)]);
        let n = piece.len();
        self.runtime.block_on(self.stream.send(self.lane, piece))?;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
