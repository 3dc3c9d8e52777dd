//! A running QEMU: started or taken over, controlled by QMP, watched by pidfd.
//!
//! Owns the connection to the control socket and the reaping of the process. Must never end the
//! VMM because this process, or a value in it, goes away.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use banger_model::{Accel, DriverKind, VmName};
use serde_json::Value;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, watch};

use super::agent_port::AgentPort;
use super::arguments::{Descriptors, Memory, arguments};
use super::binary::QemuInfo;
use super::capture;
use super::clock::HostClock;
use super::confinement::policy;
use super::heard::Heard;
use super::kernel_arguments::Boot;
use super::migration;
use super::qmp::{self, Qmp, QmpError};
use crate::cage::Cage;
use crate::driver::Words;
use crate::process::{ProcessId, wait_pidfd};
use crate::snapshot::{Layout, MemoryFile};
use crate::sockets::{self, Cleanup, listen};
use crate::spawn::{Spawned, Standalone, open_log};
use crate::{
    AgentIo, ExitInfo, ExitReason, Last, Machine, MachineHandle, MachineSpec, Result, Signal, VmmError,
    console,
};

/// How long a VMM may take to flush its disks and quit.
const STOP: Duration = Duration::from_secs(10);
/// How long after its last word a VMM's process may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Lines of the VMM's log in an error.
const LAST_WORDS: usize = 4;

#[derive(Debug)]
pub(super) struct QemuMachine {
    handle: MachineHandle,
    control: Arc<Control>,
    exit: watch::Receiver<Option<ExitInfo>>,
}

/// The control connection, made anew when it was lost.
#[derive(Debug)]
pub(super) struct Control {
    connection: AsyncMutex<Option<Qmp>>,
    heard: Arc<Heard>,
}

/// How a machine begins.
#[derive(Debug)]
pub(super) enum Begin<'a> {
    /// By booting.
    Boot,
    /// Where the snapshotted one was.
    Restore {
        /// Its device state.
        state: &'a Path,
        /// Its memory.
        memory: MemoryFile,
    },
}

pub(super) async fn launch(
    info: &QemuInfo,
    cage: &Cage,
    spec: MachineSpec,
    clock: &HostClock,
    how: Begin<'_>,
) -> Result<QemuMachine> {
    let program = &info.program;
    let control_socket = spec.runtime_dir.join("qmp.sock");
    let agent_socket = spec.runtime_dir.join("agent.sock");
    let words = Words::begin(&spec.log_dir);
    let made = Cleanup::of(&[&control_socket, &agent_socket]);
    let mut layout = Layout::of(&spec, super::DEVICES);
    let mut state = None;
    let memory = match &how {
        Begin::Boot => Memory::Anonymous,
        Begin::Restore { state: path, memory } => {
            state = Some(File::open(path).map_err(VmmError::file("open", path))?);
            layout.memory_file = Some(memory.clone());
            Memory::Clone { path: &memory.path, read_only: info.reads_memory_only }
        }
    };

    let mut qemu = Standalone::new(program, &words.log(), &spec.log_dir).private();
    if spec.accel == Accel::Tcg {
        // A guest that boots touches little of each of its memory's huge pages, and the host has to find and clear
        // them whole: a cold boot took 2.5 s with them and 2.15 s without, medians on a host whose hypervisor takes
        // free memory back. Under KVM they pay, by fewer nested page faults.
        qemu.small_pages();
    }
    let mut fds = Descriptors {
        control: qemu.give(listen(&control_socket)?),
        agent: qemu.give(listen(&agent_socket)?),
        network: None,
    };
    if let Some(network) = &spec.network {
        fds.network = Some(qemu.give(duplicate(&network.backend)?));
    }
    let incoming = state.map(|state| qemu.give(state.into()));
    let tsc_khz = match spec.accel {
        Accel::Tcg => clock.khz().await,
        // KVM tells its guests.
        Accel::Kvm => None,
    };
    let boot = Boot { tsc_khz, verbose: spec.verbose_console, rescue: spec.rescue };
    let console = words.console();
    let args = arguments(&spec, &console, fds, memory, boot, info.sees_changed_code)?;
    // What is not there yet cannot be given.
    drop(open_log(&console)?);
    let mut policy = policy(program, &spec, &console);
    if let Memory::Clone { path, read_only } = memory {
        policy.read.push(path.to_owned());
        // An older QEMU opens it for writing, though its mapping is private.
        policy.lent = (!read_only).then(|| path.to_owned());
    }
    let spawned = qemu.args(args).caged(cage, policy).spawn()?;
    // QEMU has its own copy now; ours would keep the network's other side from seeing its end.
    let mut spec = spec;
    drop(spec.network.take());

    let heard = Arc::<Heard>::default();
    let connected = begin(&control_socket, &heard, incoming).await;
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => return Err(explain(&spec, spawned, &words, error).await),
    };
    let security = spawned.security().clone();
    let (process, pidfd) = spawned.release();
    made.keep();
    let handle = MachineHandle {
        vm: spec.id,
        name: spec.name,
        driver: DriverKind::Qemu,
        accel: spec.accel,
        process,
        control_socket,
        agent_socket,
        layout,
        words,
        security,
    };
    let control = Control { connection: AsyncMutex::new(Some(connection)), heard };
    Ok(QemuMachine::watch(handle, control, pidfd))
}

pub(super) fn adopt(handle: &MachineHandle) -> Result<Option<QemuMachine>> {
    let Some(pidfd) = handle.process.open_pidfd()? else { return Ok(None) };
    let control = Control { connection: AsyncMutex::new(None), heard: Arc::default() };
    let machine = QemuMachine::watch(handle.clone(), control, Some(pidfd));
    // At once, so that the machine's reason for ending is heard; but a VMM that does not answer
    // must not keep a daemon from starting.
    let control = Arc::downgrade(&machine.control);
    let socket = handle.control_socket.clone();
    let name = handle.name.clone();
    tokio::spawn(async move {
        let Some(control) = control.upgrade() else { return };
        match control.execute(&socket, "query-status").await {
            Ok(status) => control.heard.status(&status),
            Err(error) => {
                tracing::warn!(vm = %name, %error, "an adopted machine monitor does not answer yet");
            }
        }
    });
    Ok(Some(machine))
}

/// Why QEMU did not greet us: most often because it has ended, and its log says why.
async fn explain(spec: &MachineSpec, spawned: Spawned, words: &Words, error: QmpError) -> VmmError {
    let vm = spec.name.to_string();
    let said = || console::tail_from(&words.log(), words.log_start, LAST_WORDS);
    match spawned.post_mortem(LAST_BREATH, said).await {
        Some(status) => VmmError::DiedAtStart { vm, status, log: said().join("; ") },
        None if matches!(error, QmpError::Late(_)) => {
            VmmError::Timeout { vm, what: "greet us", seconds: qmp::ANSWER.as_secs() }
        }
        None => VmmError::Control { vm, command: "qmp_capabilities".into(), message: error.to_string() },
    }
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone().map_err(VmmError::file("duplicate", Path::new("the network descriptor")))
}

async fn connect(socket: &Path, heard: &Arc<Heard>) -> Result<Qmp, QmpError> {
    let stream = sockets::connect(socket).await.map_err(|_| QmpError::Closed)?;
    Qmp::over(stream, Arc::clone(heard)).await
}

/// Connects and lets the guest begin, or go on from the state behind a descriptor.
async fn begin(socket: &Path, heard: &Arc<Heard>, incoming: Option<RawFd>) -> Result<Qmp, QmpError> {
    let qmp = connect(socket, heard).await?;
    if let Some(fd) = incoming {
        migration::load(&qmp, fd).await?;
    }
    qmp.execute("cont").await?;
    Ok(qmp)
}

impl Control {
    pub(super) async fn execute(&self, socket: &Path, command: &str) -> Result<Value, QmpError> {
        let connection = self.connected(socket).await?;
        match connection.as_ref() {
            Some(qmp) => qmp.execute(command).await,
            None => Err(QmpError::Closed),
        }
    }

    /// Runs a command that flushes the disks before it answers.
    pub(super) async fn patiently(&self, socket: &Path, command: &str) -> Result<Value, QmpError> {
        let connection = self.connected(socket).await?;
        match connection.as_ref() {
            Some(qmp) => qmp.patiently(command, Value::Object(serde_json::Map::new())).await,
            None => Err(QmpError::Closed),
        }
    }

    /// The connection, for as long as the guard is held.
    pub(super) async fn connected(&self, socket: &Path) -> Result<MutexGuard<'_, Option<Qmp>>, QmpError> {
        let mut connection = self.connection.lock().await;
        if !connection.as_ref().is_some_and(Qmp::is_open) {
            // Closed before a new one is made: QEMU serves one at a time.
            *connection = None;
            *connection = Some(connect(socket, &self.heard).await?);
        }
        Ok(connection)
    }
}

impl QemuMachine {
    fn watch(handle: MachineHandle, control: Control, pidfd: Option<OwnedFd>) -> Self {
        let (tell, exit) = watch::channel(None);
        let control = Arc::new(control);
        let heard = Arc::clone(&control.heard);
        // Weak: dropping the machine closes the control connection, so that somebody else can
        // have it; the process is still reaped.
        let weak = Arc::downgrade(&control);
        tokio::spawn(supervise(handle.process.clone(), pidfd, weak, heard, tell));
        Self { handle, control, exit }
    }

    async fn command(&self, command: &str) -> Result<()> {
        match self.control.execute(&self.handle.control_socket, command).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(command, &error)),
        }
    }

    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    pub(super) fn failed(&self, command: &str, error: &QmpError) -> VmmError {
        let vm = self.handle.name.to_string();
        if !self.handle.process.is_alive() {
            return VmmError::NotRunning { vm };
        }
        VmmError::Control { vm, command: command.to_owned(), message: error.to_string() }
    }
}

/// Waits for the process's end, and tells it together with what the machine said before.
async fn supervise(
    process: ProcessId,
    pidfd: Option<OwnedFd>,
    control: Weak<Control>,
    heard: Arc<Heard>,
    tell: watch::Sender<Option<ExitInfo>>,
) {
    let waited = match pidfd {
        Some(pidfd) => wait_pidfd(pidfd, process.pid).await,
        None => Ok(None),
    };
    let exit = waited.unwrap_or_else(|error| {
        tracing::warn!(%error, "the end of a machine monitor could not be waited for");
        None
    });
    if let Some(control) = control.upgrade()
        && let Some(qmp) = control.connection.lock().await.as_mut()
    {
        qmp.last_words().await;
    }
    let info = ExitInfo {
        reason: heard.reason(),
        code: exit.and_then(|e| e.code),
        signal: exit.and_then(|e| e.signal),
    };
    tell.send_replace(Some(info));
}

#[async_trait]
impl Machine for QemuMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn called(&self, name: VmName) -> Arc<dyn Machine> {
        let handle = MachineHandle { name, ..self.handle.clone() };
        Arc::new(Self { handle, control: Arc::clone(&self.control), exit: self.exit.clone() })
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentIo>> {
        let path = &self.handle.agent_socket;
        let stream = sockets::connect(path).await.map_err(VmmError::socket("connect to", path))?;
        Ok(Box::new(AgentPort::over(stream, self.control.heard.closings())))
    }

    fn stalled(&self) -> bool {
        self.control.heard.stalled()
    }

    async fn pause(&self) -> Result<()> {
        self.command("stop").await
    }

    async fn resume(&self) -> Result<()> {
        self.command("cont").await
    }

    async fn is_paused(&self) -> Result<bool> {
        let status = self.control.execute(&self.handle.control_socket, "query-status").await;
        let status = status.map_err(|error| self.failed("query-status", &error))?;
        self.control.heard.status(&status);
        Ok(status.get("running").and_then(Value::as_bool) == Some(false))
    }

    async fn snapshot(&self, dir: &Path, last: Last<'_>) -> Result<()> {
        capture::capture(self, dir, last).await
    }

    async fn stop(&self) -> Result<()> {
        match self.command("quit").await {
            Ok(()) => {}
            Err(VmmError::NotRunning { .. }) => return Ok(()),
            // QEMU quits in good order on SIGTERM, too; and the answer to `quit` may be lost.
            Err(error) => {
                tracing::debug!(vm = %self.handle.name, %error, "'quit' was not answered; sending SIGTERM");
                self.handle.process.signal(Signal::TERM)?;
            }
        }
        match tokio::time::timeout(STOP, self.wait()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(VmmError::Timeout {
                vm: self.handle.name.to_string(),
                what: "quit",
                seconds: STOP.as_secs(),
            }),
        }
    }

    async fn kill(&self, signal: Signal) -> Result<()> {
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
