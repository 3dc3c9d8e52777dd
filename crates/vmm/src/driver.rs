//! What a driver is: the machine it is asked for, the machine it gives back, and the handle by
//! which another daemon finds that machine again. Must not know any particular VMM.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use banger_model::{Accel, DriverKind, Error, MachineShape, RootFsType, Security, VmId, VmName};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::process::ProcessId;
use crate::snapshot::Layout;
use crate::{Result, Signal};

/// Everything a driver needs to start one machine.
#[derive(Debug)]
pub struct MachineSpec {
    /// The VM's identity; marks the VMM process (see [`crate::process::find_marked`]).
    pub id: VmId,
    /// Its name: the guest's first hostname, and what errors call it.
    pub name: VmName,
    /// vCPUs and memory. The disk size is the daemon's business: the file has it already.
    pub shape: MachineShape,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// Our initramfs for it.
    pub initramfs: PathBuf,
    /// Block devices, in the order the guest sees them.
    pub disks: Vec<Disk>,
    /// The network device; `None` means no device at all.
    pub network: Option<NetDevice>,
    /// Where the control and agent sockets go; exists, 0700, short enough for `sun_path`.
    pub runtime_dir: PathBuf,
    /// Where `vmm.log` and `console.log` go; exists, 0700.
    pub log_dir: PathBuf,
    /// Print the kernel's messages on the console. For the retry after a boot that said nothing.
    pub verbose_console: bool,
    /// Start nothing in the guest but the agent: for getting files out of one that cannot boot.
    pub rescue: bool,
}

/// What a disk is for; also its virtio serial, by which the guest finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskRole {
    /// The image's read-only root file system.
    Base {
        /// Its file system type.
        fs: RootFsType,
    },
    /// The VM's own writable disk (ext4).
    System,
    /// The VM's own disk for the user's home (ext4).
    Work,
    /// The kernel's modules (squashfs).
    Modules,
}

impl DiskRole {
    /// The virtio-blk serial (at most 20 bytes).
    #[must_use]
    pub fn serial(self) -> &'static str {
        match self {
            Self::Base { .. } => "base",
            Self::System => "system",
            Self::Work => "work",
            Self::Modules => "modules",
        }
    }
}

/// One block device, a raw file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What it is for.
    pub role: DiskRole,
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may write to it.
    pub read_only: bool,
}

/// The guest's network device.
#[derive(Debug)]
pub struct NetDevice {
    /// Its MAC address, `52:54:00:…`.
    pub mac: String,
    /// A connected stream socket that carries ethernet frames, each behind its length as a
    /// 32-bit big-endian number (the framing of QEMU's stream socket and of passt).
    pub backend: OwnedFd,
}

/// What a driver can do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The VMM's version, as it says it.
    pub version: String,
    /// vCPUs can be halted and continued.
    pub pause: bool,
    /// A running machine can be written to files.
    pub snapshot: bool,
    /// A machine can begin from such files.
    pub restore: bool,
    /// A machine can have a network device.
    pub network: bool,
    /// Emulated vCPUs take turns: one does more than several.
    #[serde(default)]
    pub vcpus_take_turns: bool,
    /// One line about what is doubtful with this version, such as that it is newer than what was tried.
    #[serde(default)]
    pub warning: Option<String>,
}

/// What the caller does in a snapshot as the last thing before the vCPUs halt. Its failure is the
/// snapshot's failure.
pub type Last<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

/// Bytes to and from the agent in the guest.
pub trait AgentIo: AsyncRead + AsyncWrite + Send + Unpin + Debug {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + Debug> AgentIo for T {}

/// A kind of VMM.
#[async_trait]
pub trait Driver: Send + Sync + Debug {
    /// Which kind.
    fn kind(&self) -> DriverKind;

    /// What it can do here. Runs the VMM's binary once; the answer is kept.
    ///
    /// # Errors
    /// When the binary is missing or cannot be asked.
    async fn capabilities(&self) -> Result<Capabilities>;

    /// Starts a machine. When this returns the guest's first instructions run, and the VMM lives
    /// on without us: it has its own session and none of our descriptors. When this fails, or its
    /// future is dropped, no process and no socket of the machine is left.
    ///
    /// # Errors
    /// When the VMM is missing, cannot be started, or ends at once (its last words are in the error).
    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>>;

    /// Starts a machine that goes on where a snapshotted one was, with the same layout but a
    /// directory, an identity and disks of its own (the disks as they were at that moment). As with
    /// [`Driver::launch`], the guest runs when this returns, and a failure leaves nothing. The files of
    /// the snapshot are only read, but they must stay, at this path, for as long as the machine lives; links to them do.
    ///
    /// # Errors
    /// `unsupported` when the snapshot is of another VMM, version or layout: then boot cold.
    async fn restore(&self, spec: MachineSpec, snapshot: &Path) -> Result<Arc<dyn Machine>>;

    /// Takes over a machine that another daemon launched. `None`: its process is gone (its sockets
    /// may still lie around).
    ///
    /// # Errors
    /// When the handle belongs to another driver or the process cannot be looked at.
    async fn adopt(&self, handle: &MachineHandle) -> Result<Option<Arc<dyn Machine>>>;
}

/// A machine whose VMM was alive when we got it. Dropping it does nothing to the VMM.
#[async_trait]
pub trait Machine: Send + Sync + Debug {
    /// How another daemon finds it again.
    fn handle(&self) -> &MachineHandle;

    /// The same machine for whoever calls it by another name: one that waited for a user has got one.
    fn called(&self, name: VmName) -> Arc<dyn Machine>;

    /// Connects to the agent's channel. One connection at a time: a second one waits until the
    /// first is closed. Before the guest has opened its side either this waits, or what is written
    /// does; whoever calls sets the limit.
    ///
    /// # Errors
    /// When the socket is gone.
    async fn connect_agent(&self) -> Result<Box<dyn AgentIo>>;

    /// Whether the VMM has halted the machine because the file of one of its disks cannot grow: the
    /// host's disk is full. [`Machine::resume`] tries again what could not be written.
    fn stalled(&self) -> bool;

    /// Halts the vCPUs.
    ///
    /// # Errors
    /// When the VMM does not obey.
    async fn pause(&self) -> Result<()>;

    /// Lets the vCPUs run again.
    ///
    /// # Errors
    /// When the VMM does not obey.
    async fn resume(&self) -> Result<()>;

    /// Whether the vCPUs are halted, by whomever: a daemon that died in the middle of a snapshot, or
    /// a disk that is full. Of a machine that is taken over this is the truth, not what was recorded.
    ///
    /// # Errors
    /// When the VMM does not say.
    async fn is_paused(&self) -> Result<bool>;

    /// Writes memory and device state to files in `dir`, which exists, is 0700 and has none of them; they
    /// are 0600, and holes where the memory is zero. All that can be done while the machine runs is done
    /// first; then `last` is awaited, and only then the vCPUs halt. The machine is paused afterwards,
    /// whatever it was before: now is the moment to copy its disks; [`Machine::resume`] lets it go on. A
    /// failure leaves none of the files, and a machine that ran goes on by itself. The files survive
    /// this process, not a power cut.
    ///
    /// # Errors
    /// `unsupported` for a machine that cannot be snapshotted; that of `last`, as it is.
    async fn snapshot(&self, dir: &Path, last: Last<'_>) -> Result<()>;

    /// Asks the VMM to flush its block layer and quit, and waits until its process has ended. The
    /// guest is not asked: what it has not flushed itself is lost, as by pulling the plug.
    ///
    /// # Errors
    /// `timeout` when the process still lives after ten seconds; then [`Machine::kill`] it. A
    /// machine that has ended already is no error.
    async fn stop(&self) -> Result<()>;

    /// Sends the VMM a signal, by pidfd. A process that has ended already is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    async fn kill(&self, signal: Signal) -> Result<()>;

    /// Waits until the VMM's process has ended, however long that takes. Works for adopted
    /// machines too. May be called many times, also at once.
    async fn wait(&self) -> ExitInfo;

    /// How it ended, if it has.
    fn exited(&self) -> Option<ExitInfo>;
}

/// Enough to find a running machine again from another process. Stored in `handles.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineHandle {
    /// The VM.
    pub vm: VmId,
    /// The VM's name, for messages.
    pub name: VmName,
    /// Which driver.
    pub driver: DriverKind,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// The VMM's process.
    pub process: ProcessId,
    /// The VMM's control socket (QMP).
    pub control_socket: PathBuf,
    /// The agent channel's socket.
    pub agent_socket: PathBuf,
    /// What holds around the process.
    #[serde(default)]
    pub security: Security,
    /// What the machine consists of; empty in a handle written before there was this.
    #[serde(default)]
    pub layout: Layout,
    /// Where its words are; empty in a handle written before there was this.
    #[serde(default)]
    pub words: Words,
}

/// Where the words of one machine begin in files that its predecessors wrote to as well.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// The directory of `console.log` and `vmm.log`.
    pub dir: PathBuf,
    /// The length of `console.log` before the machine.
    pub console_start: u64,
    /// The length of `vmm.log` before the machine.
    pub log_start: u64,
}

impl Words {
    /// Those of a machine that is about to start.
    pub(crate) fn begin(dir: &Path) -> Self {
        let mut words = Self { dir: dir.to_owned(), ..Self::default() };
        let length = |path: PathBuf| path.metadata().map_or(0, |m| m.len());
        words.console_start = length(words.console());
        words.log_start = length(words.log());
        words
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("vmm.log")
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.dir.join("metrics.log")
    }
}

/// How a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitInfo {
    /// Why the machine ended, as far as the VMM said before.
    pub reason: ExitReason,
    /// The process's exit code; `None` for a process that was not our child, or died by a signal.
    pub code: Option<i32>,
    /// The signal that ended it; `None` if none or not known.
    pub signal: Option<i32>,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// The guest rebooted, or its kernel panicked and rebooted: the two look alike from outside.
    GuestReset,
    /// The guest told the VMM that it panicked.
    GuestPanic,
    /// We asked the VMM to quit, or somebody ended it by a signal that it handles.
    Host,
    /// The VMM did not say: it was killed, or it crashed, or it ended while nobody listened.
    Unknown,
}

impl ExitReason {
    /// A few words for messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GuestShutdown => "the guest powered off",
            Self::GuestReset => "the guest rebooted or its kernel panicked",
            Self::GuestPanic => "the guest's kernel panicked",
            Self::Host => "the machine monitor was told to quit",
            Self::Unknown => "the machine monitor ended without saying why",
        }
    }
}
