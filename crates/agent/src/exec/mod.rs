//! Commands: started, connected to a stream, watched to their end. One task each, event-driven.
//! Must never leave a process group behind when nobody listens any more.

pub(crate) mod account;
mod command;
mod spawn;
mod stdio;

use std::future::pending;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use banger_channel::GuestStream;
use banger_model::ErrorCode;
use banger_protocol::agent::frame::Lane;
use banger_protocol::agent::{Control, ExecSpec, ExitStatus, Reply};
use bytes::BytesMut;
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::unix::pipe;

use command::Command;
use spawn::{Child, signal_group};
use stdio::{Ends, Terminal};

use crate::standstill::{Leave, Life, Standstill};

/// After the command's end its descendants may hold its streams; their silence this long ends the request.
const QUIET: Duration = Duration::from_millis(50);
/// Silent periods that count as the end.
const QUIETS: u32 = 2;
/// A pipe holds at most this much of what the command itself wrote (`/proc/sys/fs/pipe-max-size`).
const BACKLOG: u64 = 1 << 20;
/// Between SIGHUP and SIGKILL.
const MERCY: Duration = Duration::from_secs(2);
/// Reads begin with this size and grow while they are filled.
const FIRST_READ: usize = 4 * 1024;
const LARGEST_READ: usize = 64 * 1024;

/// Runs a command for the host and tells it the outcome.
pub(crate) async fn run(spec: ExecSpec, stream: &GuestStream, standstill: &Standstill) {
    // First who is gone: in a copy of this machine nobody asks for the command any more.
    let leave = tokio::select! {
        biased;
        _ = stream.ended() => return,
        leave = standstill.leave() => leave,
    };
    let life = standstill.life();
    // On a thread of its own: a program on a file system that hangs must not keep the agent from answering others.
    let started = tokio::task::spawn_blocking(move || {
        let started = start(&spec, &leave);
        drop(leave);
        started
    });
    let started = started.await.unwrap_or_else(|e| Err(Refusal::Io(io::Error::other(e))));
    let answer = match started {
        Ok(running) => match running.attend(stream, &life).await {
            Some(status) => Reply::Exited(status),
            None => return,
        },
        Err(Refusal::Status(status)) => Reply::Exited(status),
        Err(Refusal::Io(e)) => {
            let message = format!("the guest cannot make the streams of a command: {e}");
            Reply::Error { code: ErrorCode::GuestFailed, message }
        }
    };
    // It fails only when nobody listens any more.
    let _ = stream.reply(&answer).await;
}

enum Refusal {
    Status(ExitStatus),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

fn start(spec: &ExecSpec, leave: &Leave) -> Result<Running, Refusal> {
    let mut command = Command::resolve(spec, Path::new("/etc")).map_err(Refusal::Status)?;
    let (ends, child_ends) = match spec.tty {
        Some(size) => stdio::terminal(size, command.uid())?,
        None => stdio::pipes(spec.stdin)?,
    };
    let child = command.start(child_ends.borrow(), spec.tty.is_some(), leave).map_err(Refusal::Status)?;
    let pid = child.pid;
    let running = Running { ends, leader: Leader::new(child)? };
    crate::boot::expose_to_oom(pid.as_raw_nonzero().get().unsigned_abs());
    Ok(running)
}

/// The first process of the command's group.
struct Leader {
    pid: Pid,
    pidfd: AsyncFd<std::os::fd::OwnedFd>,
}

impl Leader {
    fn new(child: Child) -> io::Result<Self> {
        match crate::watch::watch(child.pidfd, Interest::READABLE) {
            Ok(pidfd) => Ok(Self { pid: child.pid, pidfd }),
            Err(e) => {
                // Unwatched it must not live.
                signal_group(child.pid, libc::SIGKILL);
                let _ = rustix::process::waitpid(Some(child.pid), rustix::process::WaitOptions::empty());
                Err(e)
            }
        }
    }

    /// Waits for its end, without reaping it: until that, its number belongs to nobody else.
    async fn ended(&self) {
        // An error means that there is nothing to wait for.
        let _ = self.pidfd.readable().await;
    }

    fn reap(&self) -> ExitStatus {
        use std::os::fd::AsFd as _;
        let fd = self.pidfd.get_ref().as_fd();
        match waitid(WaitId::PidFd(fd), WaitIdOptions::EXITED) {
            Ok(Some(status)) => describe(&status),
            _ => ExitStatus::NotExecutable("the guest lost track of the command".into()),
        }
    }

    /// Hangs the group up, gives it time, and ends it.
    async fn hang_up(self) {
        signal_group(self.pid, libc::SIGHUP);
        // A stopped process would never see it.
        signal_group(self.pid, libc::SIGCONT);
        tokio::time::sleep(MERCY).await;
        signal_group(self.pid, libc::SIGKILL);
        self.ended().await;
        self.reap();
    }
}

fn describe(status: &WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (_, Some(signal)) => ExitStatus::Signal(signal),
        (Some(code), None) => ExitStatus::Code(code),
        (None, None) => ExitStatus::NotExecutable("the guest lost track of the command".into()),
    }
}

struct Running {
    ends: Ends,
    leader: Leader,
}

/// What the output has done lately.
#[derive(Default)]
struct Flow {
    bytes: AtomicU64,
    /// The host takes nothing at the moment.
    stalled: AtomicBool,
}

impl Running {
    /// Carries bytes, signals and sizes until the command has ended and its output is delivered;
    /// `None` when nobody listens any more and it is to end.
    async fn attend(self, stream: &GuestStream, life: &Life) -> Option<ExitStatus> {
        let pid = self.leader.pid;
        let _ = stream.reply(&Reply::Started { pid: pid.as_raw_nonzero().get().unsigned_abs() }).await;
        let leader = self.leader;
        let (out_flow, err_flow) = (Flow::default(), Flow::default());
        let status = match self.ends {
            Ends::Pipes { stdin, stdout, stderr } => {
                let output = async {
                    tokio::join!(
                        carry(Source::Pipe(stdout), Lane::Out, stream, life, &out_flow),
                        carry(Source::Pipe(stderr), Lane::Err, stream, life, &err_flow)
                    );
                };
                let input = feed_pipe(stdin, stream);
                let control = obey(stream, |control| {
                    if let Control::Signal { signal } = control {
                        signal_group(pid, signal);
                    }
                });
                conclude(&leader, stream, life, [&out_flow, &err_flow], output, input, control).await
            }
            Ends::Terminal(terminal) => {
                let terminal = &terminal;
                let output = carry(Source::Terminal(terminal), Lane::Out, stream, life, &out_flow);
                let input = feed_terminal(terminal, stream);
                let control = obey(stream, |control| match control {
                    Control::Signal { signal } => signal_group(terminal.foreground().unwrap_or(pid), signal),
                    Control::Resize(size) => {
                        let _ = terminal.resize(size);
                    }
                });
                conclude(&leader, stream, life, [&out_flow, &err_flow], output, input, control).await
            }
        };
        // From here the streams are closed: the descendants of a command whose host is gone notice at once.
        if status.is_none() {
            leader.hang_up().await;
        }
        status
    }
}

/// Runs all parts of a command until its end.
async fn conclude(
    leader: &Leader,
    stream: &GuestStream,
    life: &Life,
    flows: [&Flow; 2],
    output: impl Future<Output = ()>,
    input: impl Future<Output = ()>,
    control: impl Future<Output = ()>,
) -> Option<ExitStatus> {
    let mut output = std::pin::pin!(output);
    let (mut delivered, mut alone) = (false, false);
    {
        let mut beside = std::pin::pin!(async {
            tokio::join!(input, control);
            pending::<()>().await;
        });
        loop {
            tokio::select! {
                () = leader.ended() => break,
                _ = stream.ended(), if !alone => {
                    alone = life.goes_on_alone().await;
                    if !alone {
                        return None;
                    }
                }
                () = &mut output, if !delivered => delivered = true,
                () = &mut beside => {}
            }
        }
    }
    let status = leader.reap();
    stream.ignore_input();
    let moved = || flows.map(|f| f.bytes.load(Ordering::Relaxed));
    let at_end = moved();
    let (mut last, mut quiet) = (at_end, 0);
    while !delivered {
        tokio::select! {
            () = &mut output => delivered = true,
            _ = stream.ended() => return Some(status),
            () = tokio::time::sleep(QUIET) => {
                let now = moved();
                let stalled = flows.iter().any(|f| f.stalled.load(Ordering::Relaxed));
                quiet = if now == last && !stalled { quiet + 1 } else { 0 };
                last = now;
                // What comes after a full pipe cannot be the command's own.
                let foreign = now.iter().zip(at_end).all(|(now, then)| *now == then || now - then > BACKLOG);
                if quiet >= QUIETS || (foreign && now != at_end) {
                    break;
                }
            }
        }
    }
    if !delivered {
        let _ = stream.finish(Lane::Out);
        let _ = stream.finish(Lane::Err);
    }
    Some(status)
}

/// Where output comes from.
enum Source<'a> {
    Pipe(pipe::Receiver),
    Terminal(&'a Terminal),
}

impl Source<'_> {
    async fn read(&mut self, buf: &mut BytesMut, size: usize) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read_buf(buf).await,
            Self::Terminal(terminal) => {
                buf.resize(size, 0);
                let n = terminal.read(buf).await?;
                buf.truncate(n);
                Ok(n)
            }
        }
    }
}

/// Carries output to the host until the source ends. That of a command that goes on alone goes nowhere.
async fn carry(mut source: Source<'_>, lane: Lane, stream: &GuestStream, life: &Life, flow: &Flow) {
    let mut size = FIRST_READ;
    loop {
        let mut buf = BytesMut::with_capacity(size);
        let n = match source.read(&mut buf, size).await {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        flow.stalled.store(true, Ordering::Relaxed);
        if stream.send(lane, buf.freeze()).await.is_err() && !life.goes_on_alone().await {
            return;
        }
        flow.stalled.store(false, Ordering::Relaxed);
        flow.bytes.fetch_add(n as u64, Ordering::Relaxed);
        if n == size {
            size = (size * 2).min(LARGEST_READ);
        }
    }
    let _ = stream.finish(lane);
}

/// Carries input to the command. What it does not want is dropped, so that the host is never stuck with it.
async fn feed_pipe(mut stdin: Option<pipe::Sender>, stream: &GuestStream) {
    while let Ok(Some(data)) = stream.input().await {
        if let Some(pipe) = &mut stdin
            && pipe.write_all(&data).await.is_err()
        {
            stdin = None;
        }
    }
}

async fn feed_terminal(terminal: &Terminal, stream: &GuestStream) {
    let mut unfinished = false;
    while let Ok(Some(data)) = stream.input().await {
        unfinished = data.last().is_some_and(|b| *b != b'\n' && *b != b'\r');
        if terminal.write(&data).await.is_err() {
            return;
        }
    }
    let _ = terminal.write(&terminal.end_of_input(unfinished)).await;
}

async fn obey(stream: &GuestStream, act: impl Fn(Control)) {
    while let Ok(control) = stream.control().await {
        act(control);
    }
}
