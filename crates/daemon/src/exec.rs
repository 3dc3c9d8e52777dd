//! Exec: joins a client's upgraded connection to a stream of the agent. Buffered are one frame of
//! output and one window of stdin: a client that does not read stalls its own command, a command
//! that does not read gives its client no credit, and signals overtake both.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use banger_channel::{ChannelError, StreamEvent, StreamReceiver, StreamSender};
use banger_model::{Error, ErrorCode, Result, Vm};
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{Control, ExecSpec, ExitStatus, Reply, Request, TermSize};
use banger_protocol::api::{ErrorBody, ExecRequest};
use banger_protocol::exec::{HEADER_LEN, Kind, MAX_PAYLOAD, STDIN_WINDOW, header, parse_header};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::op::Op;
use crate::vm::Live;

/// SIGKILL (signal(7)).
const SIGKILL: i32 = 9;
/// How long a command that overran its time has to be gone.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A command that the agent was asked to run.
#[derive(Debug)]
pub(crate) struct Exec {
    sender: StreamSender,
    receiver: StreamReceiver,
    timeout: Option<Duration>,
    vm: String,
    /// Whether the VM goes with its client.
    ephemeral: bool,
}

/// Asks the agent to run a command. It begins in the workspace when there is one.
///
/// # Errors
/// `guest_failed` when the agent does not answer.
pub(crate) async fn open(op: &Op, vm: &Vm, live: &Live, request: ExecRequest) -> Result<Exec> {
    if request.argv.iter().chain(request.env.iter().flat_map(|(k, v)| [k, v])).any(|s| s.0.contains(&0)) {
        return Err(Error::invalid("an argument or variable contains a NUL byte"));
    }
    if let Some((key, _)) = request.env.iter().find(|(k, _)| k.0.is_empty() || k.0.contains(&b'=')) {
        return Err(Error::invalid(format!("'{}' is not a variable's name", key.to_string_lossy())));
    }
    let workspace = vm.whole_workspace().map(|w| w.guest_path.as_str().into());
    let spec = ExecSpec {
        argv: request.argv,
        env: request.env,
        cwd: request.workdir.or(workspace),
        user: request.user,
        tty: request.tty,
        stdin: request.stdin,
        op_id: op.id().to_string(),
    };
    let agent = op.or_cancelled(live.agent_for(op)).await?;
    let timeout = request.timeout_ms.map(Duration::from_millis);
    let request = Request::Exec(spec);
    // It waits for the guest to take a command that is long.
    let opened = op.or_cancelled(async { agent.open(&request).await.map_err(|e| not_begun(e, vm)) });
    let (sender, receiver) = match timeout {
        Some(limit) => {
            tokio::time::timeout(limit, opened).await.map_err(|_| overran(vm.name.as_str(), limit))??
        }
        None => opened.await?,
    };
    Ok(Exec { sender, receiver, timeout, vm: vm.name.to_string(), ephemeral: vm.ephemeral })
}

fn not_begun(error: ChannelError, vm: &Vm) -> Error {
    match error {
        ChannelError::TooLong { size, max } => Error::invalid(format!(
            "the command, its arguments and its environment have {size} bytes, more than {max}"
        ))
        .with_hint(format!(
            "pass a script or a list through stdin: 'banger exec -i {} -- sh <FILE'",
            vm.name
        )),
        other => other.into(),
    }
}

impl Exec {
    /// Carries bytes until the command has ended or the client has gone. When the client goes
    /// first the stream is reset, and the agent ends the command.
    pub(crate) async fn join(self, op: &Op, io: impl AsyncRead + AsyncWrite + Send + Unpin) {
        let Self { sender, mut receiver, timeout, vm, ephemeral } = self;
        let (reader, mut writer) = tokio::io::split(io);
        let ended = {
            let stdin = Stdin::default();
            let (queue, chunks) = mpsc::unbounded_channel();
            let (taken, credit) = mpsc::unbounded_channel();
            let lost = |error| lost(error, &vm, ephemeral);
            let output = carry_output(&mut receiver, &mut writer, credit, lost);
            let input = carry_input(reader, &sender, &stdin, queue);
            let feed = feed_stdin(chunks, &sender, &stdin, taken);
            let overrun = async {
                match timeout {
                    Some(limit) => tokio::time::sleep(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = output => Some(ended),
                () = input => None,
                () = async { feed.await; std::future::pending().await } => None,
                () = overrun => Some(Err(overran(&vm, timeout.unwrap_or_default()))),
            }
        };
        let last = match ended {
            None => {
                tracing::info!(vm, "the client of a command went away");
                return;
            }
            Some(Ok(Some(status))) => {
                tracing::debug!(vm, ?status, "command ended");
                serde_json::to_vec(&status).map(|json| (Kind::Exit, json))
            }
            // The client cannot be written to any more.
            Some(Ok(None)) => return,
            Some(Err(error)) => {
                if error.code == ErrorCode::Timeout {
                    end(&sender, &mut receiver).await;
                }
                tracing::info!(vm, %error, "exec failed");
                serde_json::to_vec(&ErrorBody::new(error, Some(op.id().clone())))
                    .map(|json| (Kind::Error, json))
            }
        };
        if let Ok((kind, json)) = last {
            let _ = write_frame(&mut writer, kind, &json).await;
            let _ = writer.shutdown().await;
        }
    }
}

/// The stream broke under a command that ran.
fn lost(error: ChannelError, vm: &str, ephemeral: bool) -> Error {
    if !matches!(error, ChannelError::Closed(_) | ChannelError::Desync) {
        return error.into();
    }
    let message = format!("VM '{vm}' or the agent in it went away while the command ran ({error})");
    Error::unavailable(message).with_hint(if ephemeral {
        "without '--rm' the VM is kept, and its log: 'banger logs VM --console'".to_owned()
    } else {
        format!(
            "'banger vm show {vm}' shows what became of it, 'banger logs {vm} --console' what its guest said"
        )
    })
}

fn overran(vm: &str, limit: Duration) -> Error {
    Error::new(
        ErrorCode::Timeout,
        format!("the command in VM '{vm}' ran longer than {} s and was ended", limit.as_secs_f64()),
    )
    .with_hint("give it more with --timeout")
}

/// Kills the command and reads what is left, so that it is gone when the client is told.
async fn end(sender: &StreamSender, receiver: &mut StreamReceiver) {
    let _ = sender.control(Control::Signal { signal: SIGKILL }).await;
    let drained = async { while let Ok(Some(_)) = receiver.next().await {} };
    let _ = tokio::time::timeout(KILL_GRACE, drained).await;
}

/// Bytes of stdin that the client sent and the guest has not taken.
#[derive(Debug, Default)]
struct Stdin {
    under_way: AtomicUsize,
}

/// The guest's output to the client, and credit for stdin; `None` when the client cannot be
/// written to.
async fn carry_output(
    receiver: &mut StreamReceiver,
    writer: &mut (impl AsyncWrite + Unpin),
    mut credit: mpsc::UnboundedReceiver<u32>,
    lost: impl Fn(ChannelError) -> Error,
) -> Result<Option<ExitStatus>> {
    loop {
        let event = tokio::select! {
            biased;
            Some(bytes) = credit.recv() => {
                if write_frame(writer, Kind::Credit, &bytes.to_le_bytes()).await.is_err() {
                    return Ok(None);
                }
                continue;
            }
            event = receiver.next() => event.map_err(&lost)?,
        };
        let sent = match event {
            Some(StreamEvent::Data(Lane::Err, data)) => write_frame(writer, Kind::Stderr, &data).await,
            Some(StreamEvent::Data(_, data)) => write_frame(writer, Kind::Stdout, &data).await,
            Some(StreamEvent::Message(Reply::Started { .. })) => {
                write_frame(writer, Kind::Started, &[]).await
            }
            Some(StreamEvent::Message(Reply::Exited(status))) => return Ok(Some(status)),
            Some(StreamEvent::Message(Reply::Error { code, message })) => {
                return Err(Error::new(code, message));
            }
            Some(StreamEvent::Message(_) | StreamEvent::Eof(_)) => Ok(()),
            None => {
                return Err(Error::new(
                    ErrorCode::GuestFailed,
                    "the agent ended the command without a status",
                ));
            }
        };
        if sent.is_err() {
            return Ok(None);
        }
    }
}

/// The client's frames; returns when the client is gone or breaks the protocol. Never waits for
/// the command to read: stdin goes to a queue that is no longer than the client's window.
async fn carry_input(
    mut reader: impl AsyncRead + Unpin,
    sender: &StreamSender,
    stdin: &Stdin,
    queue: mpsc::UnboundedSender<Bytes>,
) {
    let mut queue = Some(queue);
    loop {
        let mut head = [0; HEADER_LEN];
        if reader.read_exact(&mut head).await.is_err() {
            return;
        }
        let Ok((kind, len)) = parse_header(head) else { return };
        let mut payload = BytesMut::zeroed(len);
        if reader.read_exact(&mut payload).await.is_err() {
            return;
        }
        match kind {
            Kind::Stdin => {
                if stdin.under_way.fetch_add(len, Ordering::Relaxed) + len > STDIN_WINDOW {
                    tracing::warn!("a client sent more stdin than it has credit for");
                    return;
                }
                if let Some(queue) = &queue {
                    let _ = queue.send(payload.freeze());
                }
            }
            Kind::StdinEof => queue = None,
            Kind::Resize => {
                if let [a, b, c, d] = payload[..] {
                    let size =
                        TermSize { rows: u16::from_le_bytes([a, b]), cols: u16::from_le_bytes([c, d]) };
                    let _ = sender.control(Control::Resize(size)).await;
                }
            }
            Kind::Signal => {
                if let Ok(bytes) = <[u8; 4]>::try_from(&payload[..]) {
                    let _ = sender.control(Control::Signal { signal: i32::from_le_bytes(bytes) }).await;
                }
            }
            _ => return,
        }
    }
}

/// Stdin to the guest as fast as it is taken. What a command does not want to read any more is
/// dropped, and its client given credit all the same.
async fn feed_stdin(
    mut chunks: mpsc::UnboundedReceiver<Bytes>,
    sender: &StreamSender,
    stdin: &Stdin,
    taken: mpsc::UnboundedSender<u32>,
) {
    let mut wanted = true;
    while let Some(chunk) = chunks.recv().await {
        let len = chunk.len();
        wanted = wanted && sender.send(chunk).await.is_ok();
        stdin.under_way.fetch_sub(len, Ordering::Relaxed);
        let _ = taken.send(u32::try_from(len).unwrap_or(u32::MAX));
    }
    let _ = sender.finish().await;
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), kind: Kind, data: &[u8]) -> std::io::Result<()> {
    for piece in Pieces(data, true) {
        let mut frame = BytesMut::with_capacity(HEADER_LEN + piece.len());
        frame.extend_from_slice(&header(kind, piece.len()));
        frame.extend_from_slice(piece);
        let frame: Bytes = frame.freeze();
        writer.write_all(&frame).await?;
    }
    writer.flush().await
}

/// Pieces of at most one frame; an empty payload is one empty piece.
struct Pieces<'a>(&'a [u8], bool);

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a [u8];
    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() && !self.1 {
            return None;
        }
        self.1 = false;
        let (piece, rest) = self.0.split_at(self.0.len().min(MAX_PAYLOAD));
        self.0 = rest;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_fit_frames_and_empty_payloads_are_sent() {
        let data = vec![1; MAX_PAYLOAD * 2 + 1];
        assert_eq!(Pieces(&data, true).map(<[u8]>::len).collect::<Vec<_>>(), [MAX_PAYLOAD, MAX_PAYLOAD, 1]);
        assert_eq!(Pieces(&[], true).count(), 1);
    }
}
