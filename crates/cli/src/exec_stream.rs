//! One command in a guest, from this process's point of view: stdin in, output out, signals and
//! window size along, and how it ended.
//!
//! Nothing is buffered without bound: a full stdout stops the reading of the connection, a guest
//! that does not read gives no credit for more stdin. Output is written before the end is told.

use std::sync::Arc;
use std::time::Duration;

use banger_protocol::agent::ExitStatus;
use banger_protocol::api::{ErrorBody, ExecRequest};
use banger_protocol::exec::{HEADER_LEN, Kind, MAX_PAYLOAD, STDIN_WINDOW, header, parse_header};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::client::{Client, path};
use crate::error::{CliError, Result};
use crate::pump::{self, OutputPump, Target};
use crate::signals::{CONT, INT, Signals, WINCH, is_ending};
use crate::terminal::{self, RawMode};

/// How long an ending signal may be stuck behind stdin that the guest does not read, before we
/// leave; leaving ends the command.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(2);

/// How the local side behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Local {
    /// The keyboard belongs to the guest: raw mode.
    pub(crate) raw: bool,
    /// stdout carries something else: the guest's output goes to stderr.
    pub(crate) stdout_taken: bool,
}

/// A command to run in a VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    /// The VM.
    pub(crate) vm: &'a str,
    /// The command.
    pub(crate) request: &'a ExecRequest,
    /// The local side.
    pub(crate) local: Local,
    /// Whether somebody wants to hear that the host's repository has moved on.
    pub(crate) watch: bool,
}

/// A frame for the daemon, and who wants to know that it is on its way.
struct Outgoing {
    kind: Kind,
    payload: Bytes,
    sent: Option<oneshot::Sender<()>>,
}

/// Runs a command in a guest and says how it ended; `tell` gets what the daemon has to say before it begins.
///
/// # Errors
/// What the daemon reports, a signal that made us leave, or standard output that cannot be written.
pub(crate) async fn run(
    client: &Client,
    run: Run<'_>,
    signals: &mut Signals,
    tell: impl Fn(&str),
) -> Result<ExitStatus> {
    let Run { vm, request, local, watch } = run;
    let url = path("vms", vm, if watch { "/exec?watch=true" } else { "/exec" });
    let (stream, early, notice) = tokio::select! {
        upgraded = client.upgrade(&url, request) => upgraded?,
        signal = signals.next_ending() => return Err(CliError::interrupted(signal)),
    };
    if let Some(notice) = notice {
        tell(&notice);
    }
    let (reader, writer) = stream.into_split();
    let (controls, queue) = mpsc::unbounded_channel();
    let credit = Arc::new(Semaphore::new(STDIN_WINDOW));
    let stdin = request.stdin.then(|| Stdin { chunks: pump::stdin(), pending: None, credit: credit.clone() });
    let _sender = AbortOnDrop(tokio::spawn(feed(writer, queue, stdin)));
    let mut output = OutputPump::spawn();
    let mut frames = Frames { reader, buffer: BytesMut::from(&early[..]) };
    let mut steering = Steering {
        controls,
        started: false,
        interrupted: false,
        tty: request.tty.is_some(),
        raw: None,
        stuck: None,
        credit,
    };

    let ended = until_end(&mut frames, &mut output, &mut steering, local, signals).await;
    if let Err(Stop::Now(error)) = ended {
        return Err(error);
    }
    let written = tokio::select! {
        written = output.finish() => written,
        signal = signals.next_ending() => return Err(CliError::interrupted(signal)),
    };
    match ended {
        Ok(status) => written.map(|()| status).map_err(|e| CliError::stdout(&e)),
        Err(Stop::Now(error) | Stop::Drained(error)) => Err(error),
    }
}

/// Why there is no exit status.
enum Stop {
    /// Leave at once.
    Now(CliError),
    /// Leave when the output that did come is written.
    Drained(CliError),
}

async fn until_end(
    frames: &mut Frames,
    output: &mut OutputPump,
    steering: &mut Steering,
    local: Local,
    signals: &mut Signals,
) -> Result<ExitStatus, Stop> {
    let stdout = if local.stdout_taken { Target::Stderr } else { Target::Stdout };
    let mut waiting: Option<(Target, Bytes)> = None;
    let room = output.queue();
    loop {
        tokio::select! {
            biased;
            signal = signals.next() => steering.signal(signal).map_err(Stop::Now)?,
            leave = steering.stuck() => {
                if let Some(signal) = leave {
                    return Err(Stop::Now(CliError::interrupted(signal)));
                }
            }
            error = output.failed() => return Err(Stop::Now(CliError::stdout(&error))),
            permit = room.reserve(), if waiting.is_some() => {
                // A queue that is closed has an error, which the branch above tells.
                if let (Ok(permit), Some(chunk)) = (permit, waiting.take()) {
                    permit.send(chunk);
                }
            }
            frame = frames.next(), if waiting.is_none() => match frame.map_err(Stop::Drained)? {
                (Kind::Stdout, bytes) => waiting = Some((stdout, bytes)),
                (Kind::Stderr, bytes) => waiting = Some((Target::Stderr, bytes)),
                (Kind::Started, _) => steering.begin(local.raw),
                (Kind::Credit, bytes) => steering.credit(&bytes).map_err(Stop::Drained)?,
                (kind, payload) => return last(kind, &payload).map_err(Stop::Drained),
            },
        }
    }
}

/// The meaning of a frame that ends the stream.
fn last(kind: Kind, payload: &[u8]) -> Result<ExitStatus> {
    match kind {
        Kind::Exit => serde_json::from_slice(payload).map_err(CliError::protocol),
        Kind::Error => {
            let body: ErrorBody = serde_json::from_slice(payload).map_err(CliError::protocol)?;
            Err(CliError::from_daemon(body))
        }
        kind => Err(CliError::protocol(format!("a {kind:?} frame from the daemon"))),
    }
}

/// What signals mean at this moment.
struct Steering {
    controls: mpsc::UnboundedSender<Outgoing>,
    /// The command runs in the guest.
    started: bool,
    /// One interrupt was passed on already.
    interrupted: bool,
    tty: bool,
    raw: Option<RawMode>,
    /// An ending signal that is not on its way yet, and until when it may wait.
    stuck: Option<(i32, Instant, oneshot::Receiver<()>)>,
    /// Bytes of stdin that may be sent.
    credit: Arc<Semaphore>,
}

impl Steering {
    /// The command runs: until now the keyboard's interrupt cancelled, from now on it is the guest's.
    fn begin(&mut self, raw: bool) {
        self.started = true;
        if raw && self.raw.is_none() {
            self.raw = RawMode::enter().ok();
            self.resize();
        }
    }

    /// The guest took some stdin: as much more may follow.
    fn credit(&self, payload: &[u8]) -> Result<()> {
        let bytes = payload.try_into().map_or(usize::MAX, |n| u32::from_le_bytes(n) as usize);
        if bytes > STDIN_WINDOW.saturating_sub(self.credit.available_permits()) {
            return Err(CliError::protocol("more credit than bytes were sent"));
        }
        self.credit.add_permits(bytes);
        Ok(())
    }

    /// Passes the signal on, or says that it is time to leave.
    fn signal(&mut self, signal: i32) -> Result<()> {
        if signal == CONT {
            if let Some(raw) = &self.raw {
                raw.again();
                self.resize();
            }
            return Ok(());
        }
        if signal == WINCH {
            if self.tty {
                self.resize();
            }
            return Ok(());
        }
        // In raw mode the keyboard's interrupts are bytes; a signal is somebody else's wish.
        let second = signal == INT && self.interrupted;
        if is_ending(signal) && (!self.started || self.raw.is_some() || second) {
            return Err(CliError::interrupted(signal));
        }
        self.interrupted |= signal == INT;
        let (told, sent) = oneshot::channel();
        self.send(Kind::Signal, Bytes::copy_from_slice(&signal.to_le_bytes()), Some(told));
        if is_ending(signal) {
            self.stuck = Some((signal, Instant::now() + SIGNAL_PATIENCE, sent));
        }
        Ok(())
    }

    fn resize(&self) {
        let size = terminal::size();
        let mut payload = BytesMut::with_capacity(4);
        payload.extend_from_slice(&size.rows.to_le_bytes());
        payload.extend_from_slice(&size.cols.to_le_bytes());
        self.send(Kind::Resize, payload.freeze(), None);
    }

    fn send(&self, kind: Kind, payload: Bytes, sent: Option<oneshot::Sender<()>>) {
        // A connection that cannot be written to is about to end on the reading side.
        let _ = self.controls.send(Outgoing { kind, payload, sent });
    }

    /// Resolves with a signal when it was stuck for too long, with nothing when it is on its way.
    async fn stuck(&mut self) -> Option<i32> {
        let Some((signal, until, sent)) = &mut self.stuck else { return std::future::pending().await };
        let late = tokio::select! {
            _ = sent => None,
            () = sleep_until(*until) => Some(*signal),
        };
        self.stuck = None;
        late
    }
}

/// Writes stdin and control frames; control frames overtake stdin that is not begun.
async fn feed(
    mut writer: OwnedWriteHalf,
    mut controls: mpsc::UnboundedReceiver<Outgoing>,
    mut stdin: Option<Stdin>,
) {
    loop {
        let outgoing = tokio::select! {
            biased;
            control = controls.recv() => match control {
                Some(control) => control,
                None => return,
            },
            chunk = next_chunk(&mut stdin) => match chunk {
                Some(payload) => Outgoing { kind: Kind::Stdin, payload, sent: None },
                None => {
                    stdin = None;
                    Outgoing { kind: Kind::StdinEof, payload: Bytes::new(), sent: None }
                }
            },
        };
        debug_assert!(outgoing.payload.len() <= MAX_PAYLOAD);
        let head = header(outgoing.kind, outgoing.payload.len());
        if writer.write_all_buf(&mut Buf::chain(&head[..], outgoing.payload)).await.is_err() {
            return;
        }
        if let Some(sent) = outgoing.sent {
            let _ = sent.send(());
        }
    }
}

async fn next_chunk(stdin: &mut Option<Stdin>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.next().await,
        None => std::future::pending().await,
    }
}

/// What is read from stdin, as fast as the guest gives credit for it.
struct Stdin {
    chunks: mpsc::Receiver<Bytes>,
    pending: Option<Bytes>,
    credit: Arc<Semaphore>,
}

impl Stdin {
    /// The next chunk; none at the end. Cancel-safe.
    async fn next(&mut self) -> Option<Bytes> {
        if self.pending.is_none() {
            self.pending = self.chunks.recv().await;
        }
        let len = u32::try_from(self.pending.as_ref()?.len()).unwrap_or(u32::MAX);
        if let Ok(permits) = self.credit.acquire_many(len).await {
            permits.forget();
        }
        self.pending.take()
    }
}

/// Cuts the connection's bytes into frames.
struct Frames {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Frames {
    /// The next frame. Cancel-safe.
    async fn next(&mut self) -> Result<(Kind, Bytes)> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<HEADER_LEN>() {
                let (kind, len) = parse_header(*head).map_err(CliError::protocol)?;
                if self.buffer.len() >= HEADER_LEN + len {
                    self.buffer.advance(HEADER_LEN);
                    return Ok((kind, self.buffer.split_to(len).freeze()));
                }
            }
            self.buffer.reserve(HEADER_LEN + MAX_PAYLOAD);
            match self.reader.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(CliError::daemon_gone("the connection closed while the command ran")),
                Ok(_) => {}
                Err(e) => return Err(CliError::daemon_gone(&e.to_string())),
            }
        }
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
