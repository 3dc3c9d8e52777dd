//! A running Firecracker: started or taken over, controlled by its API, watched by pidfd and by its
//! console. Must never end the VMM because this process, or a value in it, goes away.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use banger_model::VmName;
use tokio::sync::watch;

use super::api::{ApiError, ChangeState, Client, CreateSnapshot, State};
use super::quirks::Quirks;
use super::{capture, channel, halt, place};
use crate::process::wait_pidfd;
use crate::{AgentIo, ExitInfo, ExitReason, Last, Machine, MachineHandle, Result, Signal, VmmError, console};

/// How long a VMM may take to end, or to stand still.
const STOP: Duration = Duration::from_secs(10);
/// Between two looks whether a process that is stopped has; it takes some microseconds.
const STOPPING: Duration = Duration::from_millis(1);
/// It knows no call to end it and handles no signal; and in its cage it is process 1 of a pid namespace,
/// which the kernel shields from every signal that is not handled, but for this one and SIGSTOP.
const END: Signal = Signal::KILL;
/// What it says at its end (its log) when the guest reset the machine.
const GOOD_END: &str = "exiting successfully";
/// How the system's error for a full disk ends.
const NO_SPACE: &str = "(os error 28)";
/// Lines of its log that are looked at for that.
const LAST_WORDS: usize = 8;

#[derive(Debug, Clone)]
pub(super) struct FirecrackerMachine {
    handle: MachineHandle,
    client: Client,
    quirks: Quirks,
    /// Whether we told it to end.
    told: Arc<AtomicBool>,
    exit: watch::Receiver<Option<ExitInfo>>,
}

pub(super) fn adopt(handle: &MachineHandle, quirks: Quirks) -> Result<Option<FirecrackerMachine>> {
    let Some(pidfd) = handle.process.open_pidfd()? else { return Ok(None) };
    // What a snapshot left that nobody waits for any more.
    place::clear_room(&handle.words);
    Ok(Some(FirecrackerMachine::watch(handle.clone(), Some(pidfd), quirks)))
}

impl FirecrackerMachine {
    pub(super) fn watch(handle: MachineHandle, pidfd: Option<OwnedFd>, quirks: Quirks) -> Self {
        let (tell, exit) = watch::channel(None);
        let told = Arc::<AtomicBool>::default();
        let client = Client::new(&handle.control_socket);
        tokio::spawn(supervise(handle.clone(), pidfd, Arc::clone(&told), tell));
        Self { handle, client, quirks, told, exit }
    }

    fn vm(&self) -> String {
        self.handle.name.to_string()
    }

    fn failed(&self, command: &str, error: &ApiError) -> VmmError {
        if !self.handle.process.is_alive() {
            return VmmError::NotRunning { vm: self.vm() };
        }
        match error {
            ApiError::Late(seconds) => VmmError::Timeout { vm: self.vm(), what: "answer", seconds: *seconds },
            _ => VmmError::Control { vm: self.vm(), command: command.to_owned(), message: error.to_string() },
        }
    }

    /// Halts the vCPUs or lets them run, and makes sure of it.
    async fn change(&self, change: ChangeState) -> Result<()> {
        let (command, wanted) = match change {
            ChangeState::Paused => ("pause", State::Paused),
            ChangeState::Resumed => ("resume", State::Running),
        };
        let failed = |error: ApiError| self.failed(command, &error);
        if self.client.instance().await.map_err(failed)?.state == wanted {
            return Ok(());
        }
        self.client.put(&change).await.map_err(failed)?;
        match self.client.instance().await.map_err(failed)?.state {
            state if state == wanted => Ok(()),
            state => Err(failed(ApiError::Garbled(format!("it says that it is {state:?} after that")))),
        }
    }

    /// Its version, as it says it.
    pub(super) async fn version(&self) -> Result<String> {
        self.client.version().await.map_err(|error| self.failed("GET /version", &error))
    }

    /// Halts the vCPUs for a snapshot: with the quirk, too, for a snapshot between pause and resume makes its
    /// vsock hear again.
    pub(super) async fn halt(&self) -> Result<()> {
        if self.quirks.pause_deafens || self.handle.process.is_stopped() {
            self.signal(Signal::CONT)?;
        }
        self.change(ChangeState::Paused).await
    }

    /// Lets it write what the call says.
    pub(super) async fn write(&self, call: CreateSnapshot<'_>) -> Result<()> {
        let memory = call.mem_file_path;
        self.client.put(&call).await.map_err(|error| match &error {
            ApiError::Refused(why) if why.contains(NO_SPACE) => {
                VmmError::file("write", memory)(std::io::ErrorKind::StorageFull.into())
            }
            _ => self.failed("snapshot", &error),
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        match self.handle.process.signal(signal)? {
            true => Ok(()),
            false => Err(VmmError::NotRunning { vm: self.vm() }),
        }
    }
}

/// Waits for the process's end, and ends it when the guest has halted; tells why it ended.
async fn supervise(
    handle: MachineHandle,
    pidfd: Option<OwnedFd>,
    told: Arc<AtomicBool>,
    tell: watch::Sender<Option<ExitInfo>>,
) {
    let words = &handle.words;
    let ended = async {
        match pidfd {
            Some(pidfd) => wait_pidfd(pidfd, handle.process.pid).await,
            None => Ok(None),
        }
    };
    tokio::pin!(ended);
    let console = words.console();
    let (waited, halted) = tokio::select! {
        waited = &mut ended => (waited, false),
        () = halt::halted(&console, words.console_start) => {
            if let Err(error) = handle.process.signal(END) {
                tracing::warn!(vm = %handle.name, %error, "the monitor of a machine that halted stays");
            }
            (ended.await, true)
        }
    };
    let exit = waited.unwrap_or_else(|error| {
        tracing::warn!(%error, "the end of a machine monitor could not be waited for");
        None
    });
    let (code, signal) = exit.map_or((None, None), |e| (e.code, e.signal));
    let reason = if halted {
        ExitReason::GuestShutdown
    } else if told.load(Ordering::Relaxed) {
        ExitReason::Host
    } else if code.is_none_or(|code| code == 0) && signal.is_none() && ended_well(&handle) {
        // The one way to end by itself with success: the guest pulled the reset line.
        ExitReason::GuestReset
    } else {
        ExitReason::Unknown
    };
    tell.send_replace(Some(ExitInfo { reason, code, signal }));
}

fn ended_well(handle: &MachineHandle) -> bool {
    let log = console::tail_from(&handle.words.log(), handle.words.log_start, LAST_WORDS);
    log.iter().any(|line| line.contains(GOOD_END))
}

#[async_trait]
impl Machine for FirecrackerMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn called(&self, name: VmName) -> Arc<dyn Machine> {
        let handle = MachineHandle { name, ..self.handle.clone() };
        Arc::new(Self { handle, ..self.clone() })
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentIo>> {
        let stream = channel::connect(&self.vm(), &self.handle.agent_socket, &self.handle.process).await?;
        Ok(Box::new(stream))
    }

    fn stalled(&self) -> bool {
        // A write that the host has no room for fails in the guest at once.
        false
    }

    async fn pause(&self) -> Result<()> {
        if self.quirks.pause_deafens {
            // The whole process, vCPUs and all: its vsock notices nothing.
            self.signal(Signal::STOP)?;
            let stopped = async {
                while self.handle.process.is_alive() && !self.handle.process.is_stopped() {
                    tokio::time::sleep(STOPPING).await;
                }
            };
            let late = |_| VmmError::Timeout { vm: self.vm(), what: "halt", seconds: STOP.as_secs() };
            return tokio::time::timeout(STOP, stopped).await.map_err(late);
        }
        self.change(ChangeState::Paused).await
    }

    async fn resume(&self) -> Result<()> {
        if self.quirks.pause_deafens || self.handle.process.is_stopped() {
            self.signal(Signal::CONT)?;
        }
        self.change(ChangeState::Resumed).await
    }

    async fn is_paused(&self) -> Result<bool> {
        if self.handle.process.is_stopped() {
            return Ok(true);
        }
        let instance = self.client.instance().await.map_err(|error| self.failed("GET /", &error))?;
        Ok(instance.state == State::Paused)
    }

    async fn snapshot(&self, dir: &Path, last: Last<'_>) -> Result<()> {
        capture::capture(self, dir, last).await
    }

    async fn stop(&self) -> Result<()> {
        self.told.store(true, Ordering::Relaxed);
        // All that the guest has written is in the host's page cache: there is nothing to flush.
        self.handle.process.signal(END)?;
        match tokio::time::timeout(STOP, self.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(VmmError::Timeout { vm: self.vm(), what: "quit", seconds: STOP.as_secs() }),
        }
    }

    async fn kill(&self, signal: Signal) -> Result<()> {
        let signal = if signal == Signal::TERM {
            self.told.store(true, Ordering::Relaxed);
            END
        } else {
            signal
        };
        self.handle.process.signal(signal).map(|_| ())
    }

    async fn wait(&self) -> ExitInfo {
        let mut exit = self.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|info| info.clone());
        // The sender lives as long as the process, or the runtime is going down.
        told.unwrap_or(ExitInfo { reason: ExitReason::Unknown, code: None, signal: None })
    }

    fn exited(&self) -> Option<ExitInfo> {
        self.exit.borrow().clone()
    }
}
