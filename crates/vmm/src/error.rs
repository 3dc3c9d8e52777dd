//! What can go wrong with a VMM, and what to type then.

use std::io;
use std::path::{Path, PathBuf};

use banger_model::{Error, ErrorCode, Layer, is_disk_full};

/// Result with [`VmmError`].
pub type Result<T, E = VmmError> = std::result::Result<T, E>;

/// A failure of this room.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// No QEMU.
    #[error("QEMU is missing: {looked} is not an executable file")]
    QemuMissing {
        /// Where we looked.
        looked: String,
    },
    /// A QEMU that cannot be used.
    #[error("{program} cannot be used: {why}", program = .program.display())]
    QemuUnusable {
        /// The binary.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// No Firecracker.
    #[error("Firecracker is missing: {looked} is not an executable file")]
    FirecrackerMissing {
        /// Where we looked.
        looked: String,
    },
    /// A Firecracker that cannot be used.
    #[error("{program} cannot be used: {why}", program = .program.display())]
    FirecrackerUnusable {
        /// The binary.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// A machine that this driver cannot make.
    #[error("the {driver} driver cannot run VM '{vm}': {why}")]
    CannotRun {
        /// Which driver.
        driver: &'static str,
        /// The VM's name.
        vm: String,
        /// Why.
        why: String,
        /// What to type.
        hint: &'static str,
    },
    /// A kernel file that cannot be booted.
    #[error("the kernel {path} cannot be unpacked: {why}", path = .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Two machines on one disk.
    #[error("the disk {path} of VM '{vm}' is in use by another machine (its lock is taken)", path = .path.display())]
    DiskInUse {
        /// The VM's name.
        vm: String,
        /// The disk's file.
        path: PathBuf,
    },
    /// The VMM refused what it was to start.
    #[error("the machine monitor refused to start VM '{vm}': {message} ('{call}')")]
    RefusedAtStart {
        /// The VM's name.
        vm: String,
        /// The call.
        call: String,
        /// What it said.
        message: String,
    },
    /// A machine that cannot be snapshotted.
    #[error("VM '{vm}' cannot be snapshotted: {why}")]
    NoSnapshot {
        /// The VM's name.
        vm: String,
        /// Why.
        why: String,
    },
    /// A snapshot from which this machine cannot go on.
    #[error("VM '{vm}' cannot go on from this snapshot: {why}")]
    ForeignSnapshot {
        /// The VM's name.
        vm: String,
        /// Why.
        why: String,
    },
    /// What the caller did in the middle failed; this is it.
    #[error("{0}")]
    Callers(Box<Error>),
    /// This driver is not part of this build.
    #[error("the {driver} driver is not available yet")]
    DriverUnavailable {
        /// Which.
        driver: &'static str,
    },
    /// KVM is needed and does not work.
    #[error("{reason} does not work here: {why}")]
    KvmUnavailable {
        /// What needs it: the beginning of the sentence.
        reason: &'static str,
        /// Why.
        why: String,
        /// What to type.
        hint: String,
    },
    /// The VMM ended before it ran the guest.
    #[error("the machine monitor of VM '{vm}' ended at its start ({status}){}", last_words(.log))]
    DiedAtStart {
        /// The VM's name.
        vm: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}", program = .program.display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Our program that builds cages is not there.
    #[error("{looked} is missing, and no program is run without its cage", looked = .looked.display())]
    CageMissing {
        /// Where we looked.
        looked: PathBuf,
    },
    /// A layer that the configuration requires does not hold.
    #[error("{program} was not started: the configuration requires '{layer}', and {why}", program = .program.display())]
    CageIncomplete {
        /// The program.
        program: PathBuf,
        /// The layer.
        layer: Layer,
        /// Why it does not hold.
        why: String,
        /// What to type.
        hint: String,
    },
    /// A socket of the VM failed.
    #[error("cannot {what} the socket {path}: {source}", path = .path.display())]
    Socket {
        /// Doing what.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory failed.
    #[error("cannot {what} {path}: {source}", path = .path.display())]
    File {
        /// Doing what.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that a VMM's command line cannot carry.
    #[error("the path {path:?} is not UTF-8, and QEMU's command line needs that")]
    PathNotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// The VMM refused or garbled a control command.
    #[error("the machine monitor of VM '{vm}' answered '{command}' with: {message}")]
    Control {
        /// The VM's name.
        vm: String,
        /// The command.
        command: String,
        /// What it said.
        message: String,
    },
    /// The VMM did not do something in time.
    #[error("the machine monitor of VM '{vm}' did not {what} within {seconds} s")]
    Timeout {
        /// The VM's name.
        vm: String,
        /// What it should have done.
        what: &'static str,
        /// How long we waited.
        seconds: u64,
    },
    /// The VMM's process has ended.
    #[error("VM '{vm}' is not running")]
    NotRunning {
        /// The VM's name.
        vm: String,
    },
    /// A handle of another driver.
    #[error("the handle of VM '{vm}' belongs to another driver")]
    ForeignHandle {
        /// The VM's name.
        vm: String,
    },
    /// A process could not be looked at or signalled.
    #[error("cannot {what} process {pid}: {source}")]
    Process {
        /// Doing what.
        what: &'static str,
        /// Which.
        pid: u32,
        /// Why.
        source: io::Error,
    },
}

fn last_words(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; its last words: {log}") }
}

impl VmmError {
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }

    pub(crate) fn socket(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Socket { what, path, source }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::QemuMissing { .. }
            | Self::QemuUnusable { .. }
            | Self::FirecrackerMissing { .. }
            | Self::FirecrackerUnusable { .. }
            | Self::Spawn { .. }
            | Self::CageMissing { .. }
            | Self::CageIncomplete { .. }
            | Self::Socket { .. } => ErrorCode::Unavailable,
            Self::KvmUnavailable { .. } => ErrorCode::Unavailable,
            Self::DriverUnavailable { .. }
            | Self::CannotRun { .. }
            | Self::NoSnapshot { .. }
            | Self::ForeignSnapshot { .. } => ErrorCode::Unsupported,
            Self::DiedAtStart { .. } | Self::RefusedAtStart { .. } | Self::Kernel { .. } => {
                ErrorCode::BootFailed
            }
            Self::DiskInUse { .. } => ErrorCode::Busy,
            Self::PathNotUtf8 { .. } => ErrorCode::InvalidArgument,
            Self::Timeout { .. } => ErrorCode::Timeout,
            Self::NotRunning { .. } => ErrorCode::NotRunning,
            Self::Callers(error) => error.code,
            Self::File { source, .. } if is_disk_full(source) => ErrorCode::Unavailable,
            Self::File { .. } | Self::Control { .. } | Self::ForeignHandle { .. } | Self::Process { .. } => {
                ErrorCode::Internal
            }
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::QemuMissing { .. } => {
                let install = banger_host::programs::install_hint("qemu-system-x86_64");
                return Some(format!("{install}; or set BANGER_QEMU to its path"));
            }
            Self::QemuUnusable { .. } => {
                "banger needs QEMU 7.2 or newer with the microvm machine; set BANGER_QEMU to one"
            }
            Self::FirecrackerMissing { .. } => "set BANGER_FIRECRACKER to its path, or use '--driver qemu'",
            Self::FirecrackerUnusable { .. } => {
                "banger needs Firecracker 1.15 or newer; set BANGER_FIRECRACKER to one"
            }
            Self::CannotRun { hint, .. } => hint,
            Self::Kernel { .. } => "pull the kernel again: 'banger kernel pull --force NAME'",
            Self::DiskInUse { .. } => "'banger vm list' shows what runs",
            Self::RefusedAtStart { .. } => "'banger vm logs' has the machine monitor's own log",
            Self::NoSnapshot { .. } => "stop it and start it again, then try once more",
            Self::ForeignSnapshot { .. } => "start the VM without the snapshot: it boots cold",
            Self::File { source, .. } if is_disk_full(source) => {
                "free some space there: 'banger vm list' shows what can be deleted"
            }
            Self::DriverUnavailable { .. } => "use '--driver qemu' or '--driver auto'",
            Self::KvmUnavailable { hint, .. } | Self::CageIncomplete { hint, .. } => hint,
            Self::CageMissing { .. } => "install banger again ('make install'): its programs belong together",
            Self::DiedAtStart { .. } => {
                "'banger doctor' checks the machine monitors and KVM; 'banger vm logs' has the whole log"
            }
            Self::PathNotUtf8 { .. } => "choose another BANGER_STATE_DIR",
            Self::Timeout { .. } => "end it with 'banger vm kill'",
            Self::NotRunning { vm } => return Some(format!("start it: 'banger vm start {vm}'")),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

impl From<VmmError> for Error {
    fn from(error: VmmError) -> Self {
        if let VmmError::Callers(error) = error {
            return *error;
        }
        let (code, hint) = (error.code(), error.hint());
        let plain = Error::new(code, error.to_string());
        match hint {
            Some(hint) => plain.with_hint(hint),
            None => plain,
        }
    }
}
