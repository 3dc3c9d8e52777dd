//! The host's end: a session, and the two halves of a stream. Treats every guest byte as hostile.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{self, Poll};

use banger_model::{ErrorCode, OpId};
use banger_protocol::agent::frame::{ACK_MAGIC, Kind, Lane, MAX_PAYLOAD, Nonce, flush_and_sync, token};
use banger_protocol::agent::{
    AgentHello, Context, Control, ExitStatus, HostHello, Identity, LONG_REQUESTS, MAX_OPENING, Reply,
    Request, VERSION, decode, encode, encode_long, encode_opening,
};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::deframe::{Deframer, Unit};
use crate::lane_io::{InWriter, OutReader};
use crate::mux::Mux;
use crate::stream::{Incoming, Stream, Want};
use crate::{ChannelError, MAX_STREAMS};

/// The lanes on which the guest sends.
const FROM_GUEST: [bool; 3] = [false, true, true];
/// The longest sentence taken from the guest, characters.
const MAX_SENTENCE: usize = 400;

/// A session with the agent of one VM. Clones share it; it ends when the last clone and the last
/// stream half are gone, or when the byte stream does.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    /// The operation that its requests are part of.
    context: Option<Context>,
}

/// Ends the session's tasks when nobody holds it any more.
struct Shared {
    mux: Arc<Mux>,
    token: u32,
    next: AtomicU32,
    over: watch::Receiver<Option<ChannelError>>,
    tasks: [AbortHandle; 2],
    /// What the agent said of itself.
    agent: OnceLock<AgentHello>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("streams", &self.shared.mux.len())
            .field("closed", &self.is_closed())
            .finish()
    }
}

impl Session {
    /// Takes the byte stream over from whoever had it and waits for the agent to answer, however
    /// long that takes: the caller sets the timeout, and dropping the future is safe at any moment.
    /// `nonce` must be random.
    ///
    /// # Errors
    /// [`ChannelError::Closed`] when the byte stream ends before the answer.
    pub async fn connect<T>(io: T, nonce: Nonce) -> Result<Self, ChannelError>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut from, mut to) = tokio::io::split(io);
        let mut frames = Deframer::new(ACK_MAGIC);
        // Both at once: a guest that is stuck writing an old frame reads nothing until somebody reads that.
        let greet = async {
            to.write_all(&flush_and_sync(&nonce)).await?;
            to.flush().await
        };
        let answer = async {
            loop {
                while let Some(unit) = frames.next() {
                    if unit == Unit::Found(nonce) {
                        return Ok(());
                    }
                }
                if from.read_buf(frames.space()).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        tokio::try_join!(greet, answer).map_err(|e| closed(&e))?;
        frames.enter(token(&nonce));

        let mux = Arc::new(Mux::default());
        let (over_tx, over) = watch::channel(None);
        let over_tx = Arc::new(over_tx);
        // When one direction ends the other must let go, too: QEMU takes no new connection while this one is open.
        let writer = tokio::spawn({
            let (mux, over_tx, mut over) = (Arc::clone(&mux), Arc::clone(&over_tx), over.clone());
            async move {
                tokio::select! {
                    Err(e) = mux.write_all(to) => end(&mux, &over_tx, &closed(&e)),
                    _ = over.wait_for(Option::is_some) => {}
                }
            }
        });
        let reader = tokio::spawn({
            let (mux, mut over) = (Arc::clone(&mux), over.clone());
            async move {
                tokio::select! {
                    why = read_all(&mux, from, frames) => end(&mux, &over_tx, &why),
                    _ = over.wait_for(Option::is_some) => {}
                }
            }
        });
        let tasks = [writer.abort_handle(), reader.abort_handle()];
        let (token, next, agent) = (token(&nonce), AtomicU32::new(1), OnceLock::new());
        let shared = Arc::new(Shared { mux, token, next, over, tasks, agent });
        Ok(Self { shared, context: None })
    }

    /// The same session for the requests of one operation, whose id the agent then puts before what it logs about them.
    #[must_use]
    pub fn for_operation(&self, op_id: &OpId) -> Self {
        let context = Context { op_id: Some(op_id.clone()) };
        Self { shared: self.shared.clone(), context: Some(context) }
    }

    /// Exchanges introductions. An agent of another minor version is spoken to as far as it goes: from here on a
    /// request that it did not announce is refused before it is sent. A guest that was restored gets its identity with it.
    ///
    /// # Errors
    /// [`ChannelError::Incompatible`] when the agent is of another major version, [`ChannelError::TooOld`] when it took
    /// no notice of the identity.
    pub async fn hello(
        &self,
        unix_ns: i64,
        entropy: Vec<u8>,
        identity: Option<Identity>,
    ) -> Result<AgentHello, ChannelError> {
        let apart = |theirs: String| {
            let message = format!("the agent in the guest speaks protocol {theirs}, this banger {VERSION}");
            ChannelError::Incompatible(message)
        };
        let needs_identity = identity.is_some();
        match self.call(&Request::Hello(HostHello { version: VERSION, unix_ns, entropy, identity })).await {
            Ok(Reply::Hello(agent)) if agent.version.major == VERSION.major => {
                if needs_identity && !agent.capabilities.iter().any(|name| name == "freeze") {
                    return Err(ChannelError::TooOld { request: "identity", agent: agent.agent });
                }
                self.shared.agent.get_or_init(|| agent.clone());
                Ok(agent)
            }
            Ok(Reply::Hello(agent)) => Err(apart(agent.version.to_string())),
            Ok(_) => Err(ChannelError::Violation("a hello was answered with something else")),
            // An agent refuses a host of another major too, in a sentence of its own.
            Err(ChannelError::Guest { code: ErrorCode::Unsupported, message }) => {
                Err(apart(format!("of another version ('{message}')")))
            }
            Err(other) => Err(other),
        }
    }

    /// Refuses what the agent does not know.
    fn knows(&self, request: &'static str) -> Result<(), ChannelError> {
        match self.shared.agent.get() {
            Some(agent) if !agent.capabilities.iter().any(|name| name == request) => {
                Err(ChannelError::TooOld { request, agent: agent.agent.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Begins a stream. Its first message, data or end tells how the guest took the request. Waits only with a request that
    /// is longer than a frame: until the guest has taken nearly all of it. Dropping the future is safe at any moment.
    ///
    /// # Errors
    /// When the session is over or carries too many streams, and when the guest wants no such request.
    pub async fn open(&self, req: &Request) -> Result<(StreamSender, StreamReceiver), ChannelError> {
        self.knows(req.name())?;
        let request = encode_opening(req, self.context.as_ref()).map_err(ChannelError::Malformed)?;
        if request.len() <= MAX_PAYLOAD {
            return self.begin(request.into());
        }
        if request.len() > MAX_OPENING {
            return Err(ChannelError::TooLong { size: request.len(), max: MAX_OPENING });
        }
        self.knows(LONG_REQUESTS)?;
        let announcement = encode_long(request.len()).map_err(ChannelError::Malformed)?;
        let (sender, receiver) = self.begin(announcement.into())?;
        sender.send(request.into()).await?;
        Ok((sender, receiver))
    }

    /// Begins a stream with the payload of its first frame.
    fn begin(&self, opening: Bytes) -> Result<(StreamSender, StreamReceiver), ChannelError> {
        let mux = &self.shared.mux;
        if mux.len() >= MAX_STREAMS {
            return Err(ChannelError::TooManyStreams(MAX_STREAMS));
        }
        let stream = loop {
            let id = self.shared.next.fetch_add(2, Ordering::Relaxed);
            if let Some(stream) = mux.add(id, self.shared.token, FROM_GUEST) {
                break stream;
            }
        };
        // After the add: a session that ends from here on ends this stream too.
        if let Some(why) = self.shared.over.borrow().clone() {
            mux.remove(&stream);
            return Err(why);
        }
        stream.open(opening);
        let handle = Arc::new(Handle { stream, _session: self.clone() });
        Ok((StreamSender { handle: Arc::clone(&handle) }, StreamReceiver { handle }))
    }

    /// Opens a stream for a request with one answer and no data, and waits for the answer.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] for a [`Reply::Error`], [`ChannelError::Ended`] for no answer at all.
    pub async fn call(&self, req: &Request) -> Result<Reply, ChannelError> {
        let (_sender, mut receiver) = self.open(req).await?;
        let mut answer = None;
        while let Some(event) = receiver.next().await? {
            match event {
                StreamEvent::Message(Reply::Error { code, message }) => {
                    return Err(ChannelError::Guest { code, message });
                }
                StreamEvent::Message(reply) => answer = answer.or(Some(reply)),
                StreamEvent::Data(..) | StreamEvent::Eof(_) => {}
            }
        }
        answer.ok_or(ChannelError::Ended)
    }

    /// Waits until the session is over.
    pub async fn closed(&self) {
        let mut over = self.shared.over.clone();
        // An error means that both tasks are gone.
        let _ = over.wait_for(Option::is_some).await;
    }

    /// Whether the session is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.over.borrow().is_some()
    }
}

fn closed(e: &io::Error) -> ChannelError {
    ChannelError::Closed(match e.kind() {
        io::ErrorKind::UnexpectedEof => "the VM's end of it is gone".into(),
        _ => e.to_string(),
    })
}

fn end(mux: &Mux, over: &watch::Sender<Option<ChannelError>>, why: &ChannelError) {
    over.send_if_modified(|over| {
        let first = over.is_none();
        if first {
            *over = Some(why.clone());
        }
        first
    });
    mux.end_all(why, false);
}

/// Takes frames in until the byte stream ends, and says why it did.
async fn read_all<R: AsyncRead + Unpin>(mux: &Mux, mut from: R, mut frames: Deframer) -> ChannelError {
    loop {
        while let Some(unit) = frames.next() {
            match unit {
                Unit::Frame(header, payload) => {
                    if let Some(stream) = mux.get(header.stream) {
                        accept(mux, &stream, header.kind, header.lane, payload);
                    }
                }
                Unit::Lost | Unit::Found(_) => return ChannelError::Desync,
            }
        }
        match from.read_buf(frames.space()).await {
            Ok(0) => return closed(&io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) => return closed(&e),
        }
    }
}

fn accept(mux: &Mux, stream: &Arc<Stream>, kind: Kind, lane: Lane, payload: BytesMut) {
    match kind {
        Kind::Reset => {
            let why = match read_reply(&payload) {
                Ok(Reply::Error { code, message }) => ChannelError::Guest { code, message },
                _ => ChannelError::Reset,
            };
            stream.kill(why, false);
            mux.remove(stream);
        }
        _ => match stream.accept(kind, lane, payload) {
            Ok(()) if kind == Kind::Close => mux.remove(stream),
            Ok(()) => {}
            Err(rule) => stream.reset(ChannelError::Violation(rule), Bytes::new()),
        },
    }
}

/// Shared by the halves; when both are gone the stream is reset, unless the guest had closed it.
struct Handle {
    stream: Arc<Stream>,
    _session: Session,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stream.reset(ChannelError::Reset, Bytes::new());
    }
}

/// The host's sending half of a stream. Its methods take `&self`: a task that waits for credit with
/// [`StreamSender::send`] does not keep another from [`StreamSender::control`].
pub struct StreamSender {
    handle: Arc<Handle>,
}

impl StreamSender {
    /// Sends bytes on the In lane, waiting for credit as needed. Cancelling it may leave a part sent.
    ///
    /// # Errors
    /// When the stream or its session is over; [`ChannelError::Ended`] when the guest closed it, for
    /// instance because the command ended.
    pub async fn send(&self, data: Bytes) -> Result<(), ChannelError> {
        let mut data = data;
        while !data.is_empty() {
            poll_fn(|cx| self.poll_send(cx, &mut data)).await?;
        }
        Ok(())
    }

    /// No more bytes will come on the In lane.
    ///
    /// # Errors
    /// As [`StreamSender::send`].
    pub async fn finish(&self) -> Result<(), ChannelError> {
        self.handle.stream.eof(Lane::In)
    }

    /// Sends a message within the stream.
    ///
    /// # Errors
    /// As [`StreamSender::send`].
    pub async fn control(&self, control: Control) -> Result<(), ChannelError> {
        let bytes = Bytes::from(encode(&control).map_err(ChannelError::Malformed)?);
        poll_fn(|cx| self.handle.stream.poll_message(cx, &bytes)).await
    }

    /// The In lane as a writer; shutting it down finishes the lane.
    #[must_use]
    pub fn writer(self) -> InWriter {
        InWriter::new(self)
    }

    pub(crate) fn poll_send(
        &self,
        cx: &mut task::Context<'_>,
        data: &mut Bytes,
    ) -> Poll<Result<(), ChannelError>> {
        self.handle.stream.poll_send(cx, Lane::In, data)
    }

    pub(crate) fn finish_now(&self) -> Result<(), ChannelError> {
        self.handle.stream.eof(Lane::In)
    }
}

impl std::fmt::Debug for StreamSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StreamSender").field(&self.handle.stream).finish()
    }
}

/// What comes out of a stream, in order within a lane.
#[derive(Debug, Clone, PartialEq)]
pub enum StreamEvent {
    /// Bytes.
    Data(Lane, Bytes),
    /// No more bytes on this lane.
    Eof(Lane),
    /// An answer. Its texts are the guest's, shortened and without control characters.
    Message(Reply),
}

/// The host's receiving half of a stream.
pub struct StreamReceiver {
    handle: Arc<Handle>,
}

impl StreamReceiver {
    /// The next event; `None` once the guest closed the stream in good order. Cancel-safe. The guest
    /// gets credit for data when it is taken here, so a slow caller stalls this stream only.
    ///
    /// # Errors
    /// [`ChannelError::Guest`] or [`ChannelError::Reset`] when the guest reset the stream, and whatever ended the session.
    pub async fn next(&mut self) -> Result<Option<StreamEvent>, ChannelError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub(crate) fn poll_next(
        &mut self,
        cx: &mut task::Context<'_>,
    ) -> Poll<Result<Option<StreamEvent>, ChannelError>> {
        let event = match std::task::ready!(self.handle.stream.poll_next(cx, Want::Any))? {
            None => return Poll::Ready(Ok(None)),
            Some(Incoming::Data(lane, data)) => StreamEvent::Data(lane, data.freeze()),
            Some(Incoming::Eof(lane)) => StreamEvent::Eof(lane),
            Some(Incoming::Message(bytes)) => StreamEvent::Message(read_reply(&bytes)?),
        };
        Poll::Ready(Ok(Some(event)))
    }

    /// The Out lane as a reader that keeps the answer for afterwards. Bytes on Err are dropped.
    #[must_use]
    pub fn reader(self) -> OutReader {
        OutReader::new(self)
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        self.handle.stream.discard();
    }
}

impl std::fmt::Debug for StreamReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StreamReceiver").field(&self.handle.stream).finish()
    }
}

/// A guest's message with its texts made fit to be shown.
fn read_reply(bytes: &[u8]) -> Result<Reply, ChannelError> {
    let mut reply: Reply = decode(bytes).map_err(|e| ChannelError::Malformed(sentence(&e)))?;
    match &mut reply {
        Reply::Error { message, .. } => *message = sentence(message),
        Reply::Exited(ExitStatus::NotFound(text) | ExitStatus::NotExecutable(text)) => *text = sentence(text),
        Reply::Hello(hello) => {
            for text in [&mut hello.agent, &mut hello.kernel, &mut hello.boot_id] {
                *text = sentence(text);
            }
            hello.capabilities.truncate(64);
            for text in &mut hello.capabilities {
                *text = sentence(text);
            }
        }
        _ => {}
    }
    Ok(reply)
}

/// Guest text in an error reaches a terminal: no escape sequences, no flood.
fn sentence(text: &str) -> String {
    text.chars().take(MAX_SENTENCE).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
