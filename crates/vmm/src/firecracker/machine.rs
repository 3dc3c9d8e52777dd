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

use super::api::{ApiError, ChangeState, Client, CreateSnapshot, SnapshotType, State};
use super::quirks::Quirks;
use super::{channel, halt, place};
use crate::process::wait_pidfd;
use crate::snapshot::{About, Files, Halted, Layout};
use crate::sockets::Cleanup;
use crate::{
    AgentIo, ExitInfo, ExitReason, Last, Machine, MachineHandle, Result, Signal, VmmError, console, sparse,
};

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

    /// Halts it and writes its memory and state; its version.
    async fn write(&self, files: &Files) -> Result<String> {
        if self.quirks.pause_deafens || self.handle.process.is_stopped() {
            self.signal(Signal::CONT)?;
        }
        // With the quirk, too: a snapshot between pause and resume makes its vsock hear again.
        self.change(ChangeState::Paused).await?;
        let failed = |error: ApiError| self.failed("snapshot", &error);
        let version = self.client.version().await.map_err(failed)?;
        // It may write in rooms of its own only; what it has written is moved from there.
        let [memory, state] = place::snapshot(&self.handle.words);
        let [memory, state] = [memory, state].map(|path| std::path::absolute(&path).unwrap_or(path));
        let _leftovers = Cleanup::of(&[&memory, &state]);
        let call = CreateSnapshot {
            snapshot_type: SnapshotType::Full,
            snapshot_path: &state,
            mem_file_path: &memory,
        };
        self.client.put(&call).await.map_err(|error| match &error {
            ApiError::Refused(why) if why.contains(NO_SPACE) => {
                VmmError::file("write", &memory)(std::io::ErrorKind::StorageFull.into())
            }
            _ => failed(error),
        })?;
        let (to, moves) = (
            files.memory.clone(),
            [(memory.clone(), files.memory.clone()), (state.clone(), files.state.clone())],
        );
        let moved = tokio::task::spawn_blocking(move || {
            for (from, to) in moves {
                match std::fs::rename(&from, &to) {
                    Ok(()) => {}
                    // Another file system.
                    Err(_) => {
                        std::fs::remove_file(&to).map_err(VmmError::file("remove", &to))?;
                        sparse::copy(&from, &to)?;
                    }
                }
            }
            // It writes every page, also those that the guest never touched.
            sparse::dig(&to)
        });
        moved.await.unwrap_or_else(|e| Err(VmmError::file("move", &files.memory)(e.into())))?;
        Ok(version)
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
        Layout::known(&self.handle)?;
        let dir = std::path::absolute(dir).map_err(VmmError::file("find", dir))?;
        let files = Files::begin(&dir)?;
        last.await.map_err(|error| VmmError::Callers(Box::new(error)))?;
        let paused = self.is_paused().await?;
        let other = self.clone();
        let halted = Halted::unless_kept((!paused).then_some(async move {
            if let Err(error) = other.resume().await {
                tracing::warn!(%error, "a machine stays halted after a snapshot that failed");
            }
        }));
        let written = self.write(&files).await;
        halted.conclude(written.and_then(|version| files.finish(About::machine(&self.handle, version)))).await
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
