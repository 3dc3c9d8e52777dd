//! User mode: passt, a guard before it and a responder beside it, for each guest. They are joined to each other and to
//! the VMM by socket pairs, so that they need no path and no root, and end when the VMM does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_model::{Security, VmId};
use banger_protocol::agent::NetworkConfig;
use banger_vmm::process::{ProcessId, mark};
use banger_vmm::{Cage, Policy, Spawned, Standalone, console};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::addresses::GuestAddresses;
use crate::{NetworkError, Result, host, passt, probe};

/// When a passt that neither answers nor ends is given up. Its first answer takes milliseconds; on a host that is overloaded
/// a thousand times it still arrives.
const CEILING: Duration = Duration::from_secs(60);
/// How long a passt that closed its socket may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Lines of the log in an error.
const LAST_WORDS: usize = 4;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNetworkSpec {
    /// The VM; marks the processes.
    pub vm_id: VmId,
    /// Whether the gateway address leads to the host's own loopback.
    pub host_access: bool,
    /// Where messages go (appended, made 0600); its directory is the processes' working directory.
    /// Keep it short with [`banger_vmm::console::enforce_cap`].
    pub log: PathBuf,
    /// The passt binary (see [`crate::passt::locate`]).
    pub passt: PathBuf,
    /// The guard's binary (see [`crate::guard::locate`]).
    pub guard: PathBuf,
    /// The responder's binary (see [`crate::responder::locate`]).
    pub responder: PathBuf,
    /// A directory of this network's alone, for what the responder reads: see [`crate::host::publish`].
    pub resolv: PathBuf,
    /// What the processes run in.
    pub cage: Cage,
}

/// A network of user mode that is not there yet, but has the end that a VMM may begin with.
#[derive(Debug)]
pub struct UserNetwork {
    spec: UserNetworkSpec,
    guest_side: OwnedFd,
}

/// A guest's network that has answered. It ends by itself when the VMM's end, and every copy of that, is closed.
#[derive(Debug)]
pub struct UserNetworkHandle {
    /// The processes, for `handles.json`. They are reaped by the daemon that started them.
    pub processes: Vec<ProcessId>,
    /// What holds around each program of them.
    pub security: BTreeMap<String, Security>,
}

impl UserNetwork {
    /// Nothing but the socket: beside it there is the VMM's end, for frames behind 32-bit big-endian lengths.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn plan(spec: UserNetworkSpec) -> Result<(Self, OwnedFd)> {
        let (backend, guest_side) = pair(SocketType::STREAM)?;
        Ok((Self { spec, guest_side }, backend))
    }

    /// What the agent is told.
    #[must_use]
    pub fn config(&self) -> NetworkConfig {
        GuestAddresses::of(&self.spec.vm_id).config()
    }

    /// Starts it and waits for its first answer. When this fails, or its future is dropped,
    /// nothing is left.
    ///
    /// # Errors
    /// When a binary is missing, or the network does not answer.
    pub async fn start(self) -> Result<UserNetworkHandle> {
        let Self { spec, guest_side } = self;
        let dir = spec.log.parent().unwrap_or(Path::new("/"));
        let log_start = std::fs::metadata(&spec.log).map_or(0, |m| m.len());
        let (guard_side, passt_side) = pair(SocketType::STREAM)?;
        let (guard_end, responder_end) = pair(SocketType::SEQPACKET)?;
        host::publish(&host::resolv_conf(), &spec.resolv)
            .map_err(|source| NetworkError::Resolv { dir: spec.resolv.clone(), source })?;

        let program = passt::build_for_this_host(&spec.passt);
        let mut passt = Standalone::new(&program, &spec.log, dir).called(marked("passt", &spec.vm_id));
        let fd = passt.give(passt_side);
        let died = |how: String, log: Vec<String>| {
            let missed = passt::missed(&log).map(|missed| format!("; {missed}")).unwrap_or_default();
            let (vm, how) = (spec.vm_id.to_string(), how + &missed);
            NetworkError::DiedAtStart { vm, how, log: log.join("; ") }
        };
        let last_words = || console::tail_from(&spec.log, log_start, LAST_WORDS);
        // One that ends before we have looked at it has said why all the same.
        let passt = passt.args(passt::arguments(fd, spec.host_access));
        let passt = passt.caged(&spec.cage, passt_policy(&spec.vm_id)).spawn().map_err(|error| {
            let log = last_words();
            if log.is_empty() { error.into() } else { died(error.to_string(), log) }
        })?;
        // While passt gets ready.
        let reads = [spec.resolv.clone().into_os_string()];
        let responder = companion(&spec, &spec.responder, responder_policy(&spec), [responder_end], reads)?;
        // Asked here, on the guard's side of it: the guest may be there already and would take the answer for its own.
        let addresses = GuestAddresses::of(&spec.vm_id);
        let answered = tokio::select! {
            answered = probe::gateway_answers(&guard_side, &addresses) => answered.is_ok(),
            () = passt.ended() => false,
            () = tokio::time::sleep(CEILING) => false,
        };
        if !answered {
            let ended = passt.post_mortem(LAST_BREATH, last_words).await;
            let how = ended.map_or_else(|| "it does not answer".to_owned(), |how| format!("it ended: {how}"));
            return Err(died(how, last_words()));
        }

        let nothing = Policy::nothing(mark(&spec.vm_id));
        let guard = companion(&spec, &spec.guard, nothing, [guest_side, guard_side, guard_end], [])?;
        let security = [("passt", &passt), ("banger-responder", &responder), ("banger-netguard", &guard)];
        let security = security.map(|(name, spawned)| (name.to_owned(), spawned.security().clone())).into();
        let processes = [passt, responder, guard].map(stand_alone).into();
        Ok(UserNetworkHandle { processes, security })
    }
}

/// Starts one of our own programs. Its arguments are the numbers of the descriptors that it gets, and what follows them.
fn companion<const N: usize, const M: usize>(
    spec: &UserNetworkSpec,
    program: &Path,
    policy: Policy,
    ends: [OwnedFd; N],
    more: [OsString; M],
) -> Result<Spawned> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let dir = spec.log.parent().unwrap_or(Path::new("/"));
    let mut start = Standalone::new(program, &spec.log, dir).called(marked(&name, &spec.vm_id));
    let numbers = ends.map(|end| start.give(end).to_string());
    Ok(start.args(numbers).args(more).caged(&spec.cage, policy).spawn()?)
}

/// The responder asks the host's name servers, which it reads in a directory that is written from outside.
fn responder_policy(spec: &UserNetworkSpec) -> Policy {
    let mut policy = Policy::nothing(mark(&spec.vm_id));
    policy.read.push(spec.resolv.clone());
    policy.hosts_network = true;
    policy
}

/// passt opens sockets in the host's network for the guest. It then empties its root directory and filters its own
/// system calls, for which it makes namespaces inside ours.
fn passt_policy(id: &VmId) -> Policy {
    let mut policy = Policy::nothing(mark(id));
    policy.hosts_network = true;
    policy.nests = true;
    policy.mount_points.push(passt::MOUNTS_OVER.into());
    policy.descriptors = 1 << 16;
    policy
}

/// The program's name for itself: passt looks there for which of its modes is meant.
fn marked(program: &str, id: &VmId) -> String {
    format!("{program}:{}", mark(id))
}

/// Lets it live, and reaps it when it ends.
fn stand_alone(spawned: Spawned) -> ProcessId {
    let (process, _) = spawned.release();
    let id = process.clone();
    tokio::spawn(async move {
        if let Err(error) = process.wait().await {
            tracing::warn!(%error, "the end of a network process could not be waited for");
        }
    });
    id
}

fn pair(kind: SocketType) -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|e| NetworkError::Socket { source: e.into() })
}
