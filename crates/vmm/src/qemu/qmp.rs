//! The QEMU Machine Protocol (QEMU's docs/interop/qmp-spec.txt): one JSON object a line; a
//! greeting, then answers and events mixed. Must never believe that the other side is well-behaved:
//! lines are capped, answers have a deadline.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::heard::Heard;
use crate::driver::ExitReason;

/// The longest line we read, bytes; real ones are a few hundred.
const LINE_MAX: u64 = 1 << 20;
/// How long an answer may take.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long it may take until a machine's state is out or in, or its disks are flushed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum QmpError {
    /// The other side closed the connection.
    #[error("the connection was closed")]
    Closed,
    /// No answer in time.
    #[error("no answer within {0} s")]
    Late(u64),
    /// The command was refused.
    #[error("{0}")]
    Refused(String),
}

/// A connection. Dropping it closes it.
#[derive(Debug)]
pub(super) struct Qmp {
    commands: mpsc::Sender<Command>,
    heard: Arc<Heard>,
    task: JoinHandle<()>,
    /// The socket below, for what goes beside the bytes.
    socket: Option<OwnedFd>,
}

#[derive(Debug)]
struct Command {
    id: u64,
    line: String,
    answer: oneshot::Sender<Result<Value, QmpError>>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    id: Option<u64>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Takes over a fresh connection to a machine's socket.
    pub(super) async fn over(stream: UnixStream, heard: Arc<Heard>) -> Result<Self, QmpError> {
        let socket = stream.as_fd().try_clone_to_owned().map_err(|_| QmpError::Closed)?;
        let mut qmp = Self::start(stream, heard).await?;
        qmp.socket = Some(socket);
        Ok(qmp)
    }

    /// Gives it a descriptor; returns the set that it has it in, by which a command can name it as a file.
    pub(super) async fn give(&self, fd: OwnedFd) -> Result<u64, QmpError> {
        let socket = self.socket.as_ref().ok_or(QmpError::Closed)?;
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        beside.push(SendAncillaryMessage::ScmRights(&fds));
        // It needs a byte to go with: white space between two commands.
        let byte = [IoSlice::new(b" ")];
        rustix::net::sendmsg(socket, &byte, &mut beside, SendFlags::empty()).map_err(|_| QmpError::Closed)?;
        let answer = self.execute("add-fd").await?;
        let set = answer.get("fdset-id").and_then(Value::as_u64);
        set.ok_or_else(|| QmpError::Refused("it does not say where it put a descriptor".to_owned()))
    }

    /// Takes over a fresh connection: waits for the greeting and leaves negotiation mode. `heard`
    /// is updated by what the machine says of itself.
    pub(super) async fn start<S>(stream: S, heard: Arc<Heard>) -> Result<Self, QmpError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (commands, queue) = mpsc::channel(8);
        let (greeted, greeting) = oneshot::channel();
        let task = tokio::spawn({
            let heard = Arc::clone(&heard);
            async move {
                serve(stream, queue, greeted, Arc::clone(&heard)).await;
                heard.ring();
            }
        });
        let qmp = Self { commands, heard, task, socket: None };
        match tokio::time::timeout(ANSWER, greeting).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(QmpError::Closed),
            Err(_) => return Err(QmpError::Late(ANSWER.as_secs())),
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Runs a command without arguments.
    pub(super) async fn execute(&self, command: &str) -> Result<Value, QmpError> {
        self.exchange(json!({ "execute": command }), ANSWER).await
    }

    /// Runs a command with arguments.
    pub(super) async fn execute_with(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.exchange(json!({ "execute": command, "arguments": arguments }), ANSWER).await
    }

    /// Runs a command that writes to disks before it answers.
    pub(super) async fn patiently(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.exchange(json!({ "execute": command, "arguments": arguments }), PATIENCE).await
    }

    /// Waits until the machine has said something of itself.
    pub(super) async fn until<T>(&self, said: impl Fn(&Heard) -> Option<T>) -> Result<T, QmpError> {
        let mut news = self.heard.news();
        let wait = async {
            loop {
                news.borrow_and_update();
                if let Some(answer) = said(&self.heard) {
                    return Ok(answer);
                }
                // The end of the connection is news, too: `serve` tells it.
                if self.commands.is_closed() {
                    return Err(QmpError::Closed);
                }
                news.changed().await.map_err(|_| QmpError::Closed)?;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Err(QmpError::Late(PATIENCE.as_secs())))
    }

    async fn exchange(&self, mut command: Value, limit: Duration) -> Result<Value, QmpError> {
        let (answer, answered) = oneshot::channel();
        let id = fresh_id();
        if let Some(command) = command.as_object_mut() {
            command.insert("id".to_owned(), id.into());
        }
        let line = format!("{command}\n");
        let exchange = async {
            self.commands.send(Command { id, line, answer }).await.map_err(|_| QmpError::Closed)?;
            answered.await.map_err(|_| QmpError::Closed)?
        };
        tokio::time::timeout(limit, exchange).await.unwrap_or(Err(QmpError::Late(limit.as_secs())))
    }

    /// Whether the connection still stands.
    pub(super) fn is_open(&self) -> bool {
        !self.task.is_finished()
    }

    /// Waits, not for long, until everything that the machine said before its end has been read,
    /// and gives the reason.
    pub(super) async fn last_words(&mut self) -> ExitReason {
        let _ = tokio::time::timeout(Duration::from_secs(1), &mut self.task).await;
        self.heard.reason()
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An id that no other command had, of this process or one before: the answer to a command whose sender went away comes to
/// whoever connects next.
fn fresh_id() -> u64 {
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        AtomicU64::new(u64::try_from(now.as_micros()).unwrap_or_default())
    });
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// One command is under way at a time.
async fn serve<S>(
    stream: S,
    mut queue: mpsc::Receiver<Command>,
    greeted: oneshot::Sender<()>,
    heard: Arc<Heard>,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let mut greeted = Some(greeted);
    let mut waiting: Option<(u64, oneshot::Sender<Result<Value, QmpError>>)> = None;
    // Kept across turns: reading a line is not cancel-safe, but what it has read stays in here.
    let mut buffer = Vec::new();
    loop {
        let room = LINE_MAX.saturating_sub(buffer.len() as u64);
        let mut limited = (&mut reader).take(room);
        tokio::select! {
            read = limited.read_until(b'\n', &mut buffer) => {
                match read {
                    Ok(n) if n > 0 && buffer.last() == Some(&b'\n') => {}
                    // The end, an error, or a line beyond the cap.
                    _ => return,
                }
                let line = serde_json::from_slice::<Line>(&buffer);
                buffer.clear();
                let Ok(line) = line else { return };
                if line.greeting.is_some() && let Some(greeted) = greeted.take() {
                    let _ = greeted.send(());
                } else if let Some(event) = line.event {
                    heard.note(&event, &line.data);
                    heard.ring();
                } else if let Some((_, answer)) = waiting.take_if(|(id, _)| line.id == Some(*id)) {
                    let _ = answer.send(match (line.answer, line.error) {
                        (_, Some(refusal)) => Err(QmpError::Refused(refusal.desc)),
                        (answer, None) => Ok(answer.unwrap_or_default()),
                    });
                }
            }
            command = queue.recv(), if waiting.is_none() => {
                let Some(command) = command else { return };
                if writer.write_all(command.line.as_bytes()).await.is_err() {
                    return;
                }
                waiting = Some((command.id, command.answer));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#;

    fn cell() -> Arc<Heard> {
        Arc::default()
    }

    /// A server that expects lines and answers with others.
    async fn scripted(stream: DuplexStream, script: &[(&str, &str)]) {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(format!("{GREETING}\r\n").as_bytes()).await.unwrap();
        for (expected, answer) in script {
            let got: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            assert_eq!(got["execute"], json!(expected));
            writer.write_all(answer.replace("ID", &got["id"].to_string()).as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn answers_find_their_commands_between_events() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            let events = "{\"event\": \"RESUME\", \"timestamp\": {}}\r\n";
            scripted(
                theirs,
                &[
                    ("qmp_capabilities", "{\"id\": ID, \"return\": {}}\r\n"),
                    (
                        "query-status",
                        &format!(
                            "{events}{{\"id\": ID, \"return\": {{\"status\": \"running\"}}}}\r\n{events}"
                        ),
                    ),
                    (
                        "stop",
                        "{\"id\": ID, \"error\": {\"class\": \"GenericError\", \"desc\": \"not now\"}}\r\n",
                    ),
                ],
            )
            .await;
        });
        let qmp = Qmp::start(ours, cell()).await.unwrap();
        assert_eq!(qmp.execute("query-status").await.unwrap(), json!({"status": "running"}));
        assert_eq!(qmp.execute("stop").await, Err(QmpError::Refused("not now".into())));
        server.await.unwrap();
        // The server is gone now.
        assert_eq!(qmp.execute("cont").await, Err(QmpError::Closed));
    }

    #[tokio::test]
    async fn an_answer_to_somebody_who_went_away_is_nobodys() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            // Given one that was asked before us, and answers that to us
            let late = "{\"return\": {}, \"id\": 7}\n{\"return\": {}}\n";
            let stop = format!("{late}{{\"id\": ID, \"error\": {{\"desc\": \"not now\"}}}}\n");
            let hello = format!("{late}{{\"id\": ID, \"return\": {{}}}}\n");
            scripted(theirs, &[("qmp_capabilities", &hello), ("stop", &stop)]).await;
        });
        let qmp = Qmp::start(ours, cell()).await.unwrap();
        assert_eq!(qmp.execute("stop").await, Err(QmpError::Refused("not now".into())));
        server.await.unwrap();
    }

    #[tokio::test]
    async fn the_machine_says_why_it_ends() {
        for (event, expected) in [
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#,
                ExitReason::GuestShutdown,
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#,
                ExitReason::GuestReset,
            ),
            (
                r#"{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}}"#,
                ExitReason::Host,
            ),
            (r#"{"event": "STOP"}"#, ExitReason::Unknown),
        ] {
            let (ours, theirs) = tokio::io::duplex(4096);
            let answer = format!("{{\"id\": ID, \"return\": {{}}}}\n{event}\n");
            let server =
                tokio::spawn(async move { scripted(theirs, &[("qmp_capabilities", &answer)]).await });
            let mut qmp = Qmp::start(ours, cell()).await.unwrap();
            server.await.unwrap();
            assert_eq!(qmp.last_words().await, expected);
        }
    }

    #[tokio::test]
    async fn what_the_machine_says_is_waited_for_until_it_goes_away() {
        let (ours, theirs) = tokio::io::duplex(4096);
        let server = tokio::spawn(async move {
            let active = r#"{"event": "MIGRATION", "data": {"status": "active"}}"#;
            let completed = r#"{"event": "MIGRATION", "data": {"status": "completed"}}"#;
            let answer = format!("{{\"id\": ID, \"return\": {{}}}}\n{active}\n{completed}\n");
            scripted(theirs, &[("qmp_capabilities", &answer), ("stop", "{\"id\": ID, \"return\": {}}\n")])
                .await;
        });
        let qmp = Qmp::start(ours, cell()).await.unwrap();
        assert_eq!(qmp.until(Heard::migration).await.as_deref(), Ok("completed"));
        qmp.execute("stop").await.unwrap();
        server.await.unwrap();
        // The server is gone now.
        assert_eq!(qmp.until(|_| None::<()>).await, Err(QmpError::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_and_nonsense_are_errors_not_hangs() {
        let (ours, _theirs) = tokio::io::duplex(64);
        assert_eq!(Qmp::start(ours, cell()).await.unwrap_err(), QmpError::Late(ANSWER.as_secs()));
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"SSH-2.0-nonsense\r\n").await.unwrap();
        assert_eq!(Qmp::start(ours, cell()).await.unwrap_err(), QmpError::Closed);
    }

    #[tokio::test]
    async fn an_endless_line_ends_the_connection() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let flood = tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
        assert_eq!(Qmp::start(ours, cell()).await.unwrap_err(), QmpError::Closed);
        flood.await.unwrap();
    }
}
