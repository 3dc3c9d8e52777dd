//! Machines that run: the session with the agent, made when first needed and again when it broke,
//! and the watcher that turns the end of a VMM into a state.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use banger_channel::Session;
use banger_model::{Error, ErrorCode, LastError, Result, Security, Vm, VmId, VmState};
use banger_protocol::agent::{AgentHello, Identity, VERSION};
use banger_vmm::{ExitInfo, ExitReason, Machine, console};

use super::Vms;
use super::clock;
use super::handles::Handles;
use super::pause::paused;
use super::start::failed;
use crate::op::{Op, random_bytes};

/// How long an agent that has answered before may take to answer again.
const REANSWER: Duration = Duration::from_secs(10);
/// Lines of the console in an error.
const CONSOLE_LINES: usize = 15;
/// Lines of the console that are looked at: a panic's trace is long.
const TRACE_LINES: usize = 400;
/// The guest's console in a directory of logs.
const CONSOLE: &str = "console.log";
/// How the line between two boots begins.
const BOOT_MARK: &str = "[banger: booted again at ";

/// A machine that runs, and the one session with its agent.
#[derive(Debug)]
pub(crate) struct Live {
    machine: Arc<dyn Machine>,
    /// What holds around the programs of its network.
    network: BTreeMap<String, Security>,
    session: tokio::sync::Mutex<Option<Session>>,
    /// Whether its user halted it.
    paused: AtomicBool,
    /// Whether its processes stood still before that.
    frozen: AtomicBool,
}

impl Live {
    /// The VMM.
    #[must_use]
    pub(crate) fn machine(&self) -> &Arc<dyn Machine> {
        &self.machine
    }

    /// What holds around the programs of its network.
    pub(crate) fn network_security(&self) -> BTreeMap<String, Security> {
        self.network.clone()
    }

    /// The session with the agent, for the requests of one operation.
    ///
    /// # Errors
    /// As [`Live::agent`].
    pub(crate) async fn agent_for(&self, op: &Op) -> Result<Session> {
        Ok(self.agent().await?.for_operation(op.id()))
    }

    /// Whether its user halted it.
    #[must_use]
    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Whether its processes stood still before it was halted.
    #[must_use]
    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::Release);
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::Release);
    }

    /// The session with the agent. Waits at most as long as an agent that works needs.
    ///
    /// # Errors
    /// `guest_failed` when the agent does not answer, `not_running` while it is paused, `unavailable` while it waits
    /// for disk space.
    async fn agent(&self) -> Result<Session> {
        if self.is_paused() {
            return Err(paused(&self.machine.handle().name));
        }
        self.agent_halted().await
    }

    /// The same for whoever lets a paused machine go on.
    pub(super) async fn agent_halted(&self) -> Result<Session> {
        self.not_stalled()?;
        let mut slot = self.session.lock().await;
        if let Some(session) = slot.as_ref().filter(|s| !s.is_closed()) {
            return Ok(session.clone());
        }
        let name = &self.machine.handle().name;
        match tokio::time::timeout(REANSWER, greet(&*self.machine, None)).await {
            Ok(Ok((session, _))) => Ok(slot.insert(session).clone()),
            Ok(Err(e)) => Err(e),
            Err(_) => Err(Error::new(
                ErrorCode::GuestFailed,
                format!("the agent in VM '{name}' did not answer within {} s", REANSWER.as_secs()),
            )
            .with_hint(format!("'banger vm logs {name} --console' shows what the guest says"))),
        }
    }
}

/// Connects to the agent and exchanges hellos, however long that takes: the caller sets the limit. A guest that was
/// restored learns who it is.
pub(crate) async fn greet(
    machine: &dyn Machine,
    identity: Option<Identity>,
) -> Result<(Session, AgentHello)> {
    let io = machine.connect_agent().await?;
    introduce(Session::connect(io, random_bytes()).await?, identity).await
}

/// The second half of [`greet`], and all of it for an agent that was greeted before.
pub(super) async fn introduce(session: Session, identity: Option<Identity>) -> Result<(Session, AgentHello)> {
    let agent = session.hello(clock::now(), random_bytes::<64>().to_vec(), identity).await?;
    clock::correct(&session, &agent).await?;
    if agent.version != VERSION {
        tracing::info!(theirs = %agent.version, ours = %VERSION, agent = agent.agent, "an agent of another version");
    }
    Ok((session, agent))
}

impl Vms {
    /// Takes a machine into the list of those that run, and watches over it.
    pub(super) fn watch(self: &Arc<Self>, id: VmId, machine: Arc<dyn Machine>, session: Option<Session>) {
        let session = tokio::sync::Mutex::new(session);
        let network = Handles::load(&self.dirs.state.vm(&id)).unwrap_or_default().network_security;
        let live = Arc::new(Live {
            machine,
            network,
            session,
            paused: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
        });
        self.live_map().insert(id.clone(), live.clone());
        let vms = self.clone();
        tokio::spawn(async move {
            let exit = live.machine.wait().await;
            vms.ended(id, &live, exit).await;
        });
    }

    /// A VMM ended. When a stop or delete is under way it holds the lock and has dealt with it by
    /// the time we get it; else nobody asked for this, and the record must say what happened.
    async fn ended(self: &Arc<Self>, id: VmId, live: &Arc<Live>, exit: ExitInfo) {
        let lock = self.lock_of(&id).lock_owned().await;
        let ours = self.live(&id).is_some_and(|current| Arc::ptr_eq(&current, live));
        if !ours {
            return;
        }
        let name = live.machine().handle().name.to_string();
        let settle = |op: Op| async move {
            self.settle_ended(&op, &id, exit, &lock).await;
            Ok(())
        };
        let _ = self.operations.run("machine_end", &name, settle).await;
    }

    async fn settle_ended(self: &Arc<Self>, op: &Op, id: &VmId, exit: ExitInfo, lock: &super::VmLock) {
        let said = self.console(id).await;
        let panicked = said.panicked;
        tracing::info!(vm_id = %id, reason = exit.reason.as_str(), signal = exit.signal, "machine ended");
        if let Err(error) = self.tear_down(op, id).await {
            tracing::warn!(vm_id = %id, %error, "teardown after the machine's end was not clean");
        }
        if exit.reason == ExitReason::GuestReset && !panicked {
            self.boot_again(op, id, lock).await;
            return;
        }
        let failure = match exit.reason {
            ExitReason::GuestShutdown | ExitReason::Host if !panicked => None,
            _ => Some(unexpected_end(&exit, panicked, &said.lines)),
        };
        let state = if failure.is_some() { VmState::Error } else { VmState::Stopped };
        if let Some(failure) = &failure {
            tracing::warn!(vm_id = %id, code = %failure.code, error = failure.message, "a machine ended unasked");
        }
        let recorded = self.change(op, id, |vm| {
            vm.state = state;
            vm.last_error = failure;
        });
        if let Err(error) = recorded {
            tracing::error!(vm_id = %id, %error, "the end of a machine could not be recorded");
        }
    }

    /// The guest rebooted: the VMM ends at that, and the machine is started anew on its disks.
    async fn boot_again(self: &Arc<Self>, op: &Op, id: &VmId, lock: &super::VmLock) {
        tracing::info!(vm_id = %id, "the guest rebooted: booting it again");
        if let Ok(Some(vm)) = self.store.vm(id)
            && let Err(error) = self.start_locked(op, vm, lock).await
        {
            tracing::warn!(vm_id = %id, %error, "the reboot failed");
        }
    }

    /// What the console says of the last boot.
    pub(super) async fn console(&self, id: &VmId) -> Said {
        console_of(self.dirs.state.vm(id)).await
    }

    /// Keeps the consoles of all running VMs under their cap, for ever.
    pub(crate) async fn cap_consoles(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        loop {
            tick.tick().await;
            let ids: Vec<VmId> = self.live_map().keys().cloned().collect();
            for id in ids {
                for log in ["console.log", "vmm.log", "metrics.log", "network.log"] {
                    let path = self.dirs.state.vm(&id).join(log);
                    if let Err(error) = console::enforce_cap(&path, console::DEFAULT_CAP) {
                        tracing::debug!(vm_id = %id, %error, "a log could not be capped");
                    }
                }
            }
        }
    }
}

/// What a console says of a machine's last boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The last lines, or those that tell of the panic; made harmless for terminals.
    pub(super) lines: Vec<String>,
    /// Whether the kernel panicked.
    pub(super) panicked: bool,
}

impl Said {
    fn of(all: &[String]) -> Self {
        let boot = all.iter().rposition(|line| line.contains(BOOT_MARK)).map_or(0, |mark| mark + 1);
        let lines = all.get(boot..).unwrap_or_default();
        let panic = lines.iter().position(|line| line.contains("Kernel panic"));
        // Behind the panic's own line there is a long trace: what led to it tells more.
        let end = panic.map_or(lines.len(), |at| lines.len().min(at + CONSOLE_LINES / 2));
        let from = end.saturating_sub(CONSOLE_LINES);
        Self { lines: lines.get(from..end).unwrap_or_default().to_vec(), panicked: panic.is_some() }
    }
}

/// What the console in a directory of logs says of the last boot.
pub(super) async fn console_of(dir: PathBuf) -> Said {
    let path = dir.join(CONSOLE);
    let read = move || Said::of(&console::tail(&path, TRACE_LINES));
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Marks in the console that another boot begins here, so that nobody takes an old panic for a new one.
pub(super) fn mark_boot(dir: &Path) -> Result<()> {
    let path = dir.join(CONSOLE);
    if !std::fs::metadata(&path).is_ok_and(|m| m.len() > 0) {
        return Ok(());
    }
    let marked = OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| writeln!(file, "\r\n{BOOT_MARK}{:.0}]\r", jiff::Timestamp::now()));
    match marked {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("write", &path, &e)),
        _ => Ok(()),
    }
}

fn unexpected_end(exit: &ExitInfo, panicked: bool, tail: &[String]) -> LastError {
    let what = match (panicked, exit.signal) {
        (true, _) => "the guest's kernel panicked".to_owned(),
        (false, Some(9)) => {
            "the machine monitor was killed by signal 9: by somebody, or by a host that ran out of memory"
                .to_owned()
        }
        (false, Some(signal)) => format!("the machine monitor was killed by signal {signal}"),
        (false, None) => exit.reason.as_str().to_owned(),
    };
    let message = if tail.is_empty() {
        what
    } else {
        format!("{what}; the console's last lines:\n{}", tail.join("\n"))
    };
    LastError { code: ErrorCode::GuestFailed, message }
}

/// A boot failure with what the console said.
pub(crate) fn boot_failed(vm: &Vm, why: &str, tail: &[String]) -> Error {
    let said = if tail.is_empty() {
        "; the console is empty".to_owned()
    } else {
        format!("; the console's last lines:\n{}", tail.join("\n"))
    };
    Error::new(ErrorCode::BootFailed, format!("VM '{}' did not boot: {why}{said}", vm.name))
        .with_hint("'banger doctor' checks the host; another kernel or image: '--kernel', '--image'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(lines: &[&str]) -> Said {
        Said::of(&lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_old_boots_panic_is_not_this_ones() {
        let mark = format!("{BOOT_MARK}2026-01-01T00:00:00Z]");
        let lines = ["Kernel panic - not syncing: old", "trace", &mark, "hello"];
        assert_eq!(said(&lines), Said { lines: vec!["hello".to_owned()], panicked: false });
        assert!(said(&lines[..2]).panicked);
        assert_eq!(said(&[]), Said::default());
    }

    #[test]
    fn a_panics_own_words_are_not_pushed_out_by_its_trace() {
        let trace = vec!["frame"; 100];
        let said = said(&[&["sysrq: Trigger a crash", "Kernel panic - not syncing: x"], &trace[..]].concat());
        assert!(said.panicked && said.lines.len() <= CONSOLE_LINES);
        assert!(said.lines.iter().any(|line| line.contains("sysrq")), "{said:?}");
    }

    #[test]
    fn a_second_boot_is_marked_in_the_console_and_a_first_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        mark_boot(dir.path()).unwrap();
        let path = dir.path().join(CONSOLE);
        assert!(!path.exists());
        std::fs::write(&path, "login: ").unwrap();
        mark_boot(dir.path()).unwrap();
        let lines = console::tail(&path, 10);
        assert!(lines.len() == 2 && lines[1].starts_with(BOOT_MARK), "{lines:?}");
    }
}
