//! Start: a table of steps. Each has a name, what it does and how it is undone. When a step fails,
//! it and all before it are undone in reverse order, every undo runs, and the errors are joined. A VM boots, or goes on
//! from where another one was: see [`Origin`].

use std::sync::Arc;
use std::time::Instant;

use banger_channel::Session;
use banger_image::DiskUse;
use banger_image::kernel::BootFiles;
use banger_model::{Boot, Error, ErrorCode, LastError, Result, Vm, VmState, is_disk_full};
use banger_protocol::agent::{AgentHello, Request};
use banger_vmm::Machine;
use banger_vmm::cage::group::Limits;
use banger_vmm::process::mark;
use futures_util::future::BoxFuture;

use super::capability::{self, Context, Hooks, StepName};
use super::disk;
use super::handles::Handles;
use super::host_network;
use super::pause::paused;
use super::reconcile::directory_gone;
use super::snapshot::Snapshot;
use super::teardown;
use super::{VmLock, Vms};
use crate::artifacts::blocking;
use crate::op::Op;

mod launch;
mod origin;
mod rescue;

pub(super) use launch::RESTORED;
pub(super) use origin::{Origin, Waiting};

/// What a machine is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Its user.
    Run,
    /// Getting files out: only the agent is started, and the record is not touched. See [`rescue`].
    Rescue,
    /// Becoming a template: nobody's data is ever in it, and it reaches no network.
    Template,
    /// Waiting, restored and halted, for whoever will be its user.
    Spare,
}

/// What the steps of one start share.
pub(super) struct Start<'a> {
    op: &'a Op,
    vm: Vm,
    began: Instant,
    files: Option<BootFiles>,
    handles: Handles,
    disk: disk::Making,
    /// The hooks of [`capability::ALL`], in its order.
    plugged: Vec<Box<dyn Hooks>>,
    machine: Option<Arc<dyn Machine>>,
    agent: Option<(Session, AgentHello)>,
    boot: Option<Boot>,
    origin: Origin,
    purpose: Purpose,
}

type Run = for<'a> fn(&'a Arc<Vms>, &'a mut Start<'_>) -> BoxFuture<'a, Result<()>>;

/// One step of a start.
#[derive(Clone, Copy)]
struct Step {
    name: StepName,
    work: Work,
}

/// What a step does.
#[derive(Clone, Copy)]
enum Work {
    /// Something that every start needs.
    Own { run: Run, undo: Option<Run> },
    /// A hook of the capability with this index.
    PrepareHost(usize),
    /// A hook of the capability with this index.
    ConfigureGuest(usize),
}

/// A line of the table.
enum Line {
    Step(Step),
    /// Here each capability prepares the host.
    PrepareHost,
    /// Here each capability that wants to configures the guest.
    ConfigureGuest,
}

const fn own(name: &'static str, message: &'static str, run: Run, undo: Option<Run>) -> Line {
    Line::Step(Step { name: StepName { name, message }, work: Work::Own { run, undo } })
}

/// In order.
const TABLE: &[Line] = &[
    own("starting", "beginning", |v, s| Box::pin(v.record_starting(s)), None),
    own("preflight", "checking", |v, s| Box::pin(v.preflight(s)), None),
    own(
        "system_disk",
        "making the system disk",
        |v, s| Box::pin(v.make_disk(s)),
        Some(|v, s| Box::pin(v.unmake_disk(s))),
    ),
    own(
        "runtime_dir",
        "making room for sockets",
        |v, s| Box::pin(v.make_runtime_dir(s)),
        Some(|v, s| Box::pin(async move { v.tear_down(s.op, &s.vm.id).await })),
    ),
    Line::PrepareHost,
    own(
        "launch",
        "launching the machine",
        |v, s| Box::pin(v.launch(s)),
        // Nothing that a capability made is taken from under a machine that still runs.
        Some(|v, s| Box::pin(async move { v.tear_down(s.op, &s.vm.id).await })),
    ),
    own("boot", "booting", |v, s| Box::pin(v.await_agent(s)), None),
    Line::ConfigureGuest,
    own("workspace_readonly", "protecting the workspace", |v, s| Box::pin(v.protect_workspace(s)), None),
    own("running", "recording", |v, s| Box::pin(v.record_running(s)), None),
];

/// The names of those steps that are another thing where a machine goes on from a snapshot.
pub(super) const RESTORED_STEPS: [&str; 4] = ["system_disk", "launch", "boot", "running"];

/// The steps that a spare has before it when it gets its user; those that make something are behind it.
const SPARE_STEPS: [&str; 3] = ["starting", "boot", "running"];

/// The names of a start's steps, the teardown of what an earlier run left first. The crash tests and `--timings` know
/// them by these.
pub(super) fn step_names() -> Vec<String> {
    let own = steps().into_iter().map(|step| step.name.name.to_owned());
    teardown::steps().into_iter().chain(own).collect()
}

/// Whether a step is one of a start for this purpose, which goes on from a snapshot or does not.
fn has(purpose: Purpose, origin: &Origin, step: &Step) -> bool {
    // The memory of a guest that goes on has all that an agent was ever told.
    let tells = matches!(step.work, Work::ConfigureGuest(_)) || step.name.name == "workspace_readonly";
    let records = ["starting", "running"].contains(&step.name.name);
    let restored = origin.snapshot().is_some();
    match purpose {
        Purpose::Run if matches!(origin, Origin::Spare(_)) => SPARE_STEPS.contains(&step.name.name),
        Purpose::Run => !tells || !restored,
        Purpose::Rescue => rescue::has(step),
        Purpose::Template => !records,
        Purpose::Spare => !tells && !records,
    }
}

/// The steps of every start.
fn steps() -> Vec<Step> {
    let capabilities = || capability::ALL.iter().enumerate();
    let mut steps = Vec::new();
    for line in TABLE {
        match line {
            Line::Step(step) => steps.push(*step),
            Line::PrepareHost => steps
                .extend(capabilities().map(|(i, c)| Step { name: c.host_step, work: Work::PrepareHost(i) })),
            Line::ConfigureGuest => steps.extend(
                capabilities()
                    .filter_map(|(i, c)| Some(Step { name: c.guest_step?, work: Work::ConfigureGuest(i) })),
            ),
        }
    }
    steps
}

impl Vms {
    /// Starts a VM that is not running.
    ///
    /// # Errors
    /// `boot_failed` with the console's tail, or what the failing step says; the VM is then in
    /// `error` and holds nothing on the host.
    pub(crate) async fn start(self: &Arc<Self>, op: &Op, reference: &str) -> Result<Vm> {
        let (vm, lock) = self.locked(op, reference).await?;
        if let Some(live) = self.alive(&vm.id) {
            if live.is_paused() {
                return Err(paused(&vm.name));
            }
            op.notice(format!("VM '{}' is running already", vm.name));
            return Ok(vm);
        }
        let never_ran = vm.started_at.is_none() && !disk::system(&self.dirs.state.vm(&vm.id), &vm).exists();
        if never_ran {
            let first = self.first(&vm, None, false).await;
            return self.start_first(op, vm, &lock, first, None).await;
        }
        self.start_locked(op, vm, &lock).await
    }

    /// Boots a VM whose lock is held.
    pub(super) async fn start_locked(self: &Arc<Self>, op: &Op, vm: Vm, lock: &VmLock) -> Result<Vm> {
        self.start_from(op, vm, lock, Origin::Boot, None).await
    }

    /// Starts a VM whose lock is held, by these boot files if the caller has just looked for them. One that goes on from a
    /// snapshot has no disks yet: it gets those of the snapshot.
    pub(super) async fn start_from(
        self: &Arc<Self>,
        op: &Op,
        vm: Vm,
        _lock: &VmLock,
        origin: Origin,
        files: Option<BootFiles>,
    ) -> Result<Vm> {
        let id = vm.id.clone();
        // Whatever an earlier run left (a VMM whose end nobody saw) goes first.
        op.about(&vm.name);
        self.tear_down(op, &id).await?;
        let mut start = Start { files, ..Start::new(op, vm, origin.clone(), Purpose::Run) };
        let mut outcome = self.run_steps(&mut start).await;
        if let (Err(error), Origin::Template(template)) = (&outcome, origin)
            && error.code != ErrorCode::Cancelled
        {
            let instead = self.without_template(op, template, error);
            start = Start::new(op, start.vm, instead, Purpose::Run);
            outcome = self.run_steps(&mut start).await;
        }
        let Err(error) = outcome else {
            return self.store.vm(&id)?.ok_or_else(|| Error::internal("a started VM has no record"));
        };
        // Who asked has gone: that is no fault of the VM's.
        let (state, last_error) = match error.code {
            ErrorCode::Cancelled if start.vm.started_at.is_none() => (VmState::Created, None),
            ErrorCode::Cancelled => (VmState::Stopped, None),
            code => (VmState::Error, Some(LastError { code, message: error.message.clone() })),
        };
        let recorded = self.change(op, &id, |vm| {
            vm.state = state;
            vm.last_error = last_error;
        });
        if let Err(also) = recorded {
            tracing::error!(vm_id = %id, error = %also, "a failed start could not be recorded");
        }
        Err(error)
    }

    /// Starts a VM whose lock is held by letting a machine that waits under its id go on. When that fails the machine
    /// may still be there: what the caller does next tears it down.
    pub(super) async fn start_waiting(self: &Arc<Self>, op: &Op, vm: Vm, waiting: Waiting) -> Result<Vm> {
        let id = vm.id.clone();
        op.about(&vm.name);
        let mut start = Start::of_waiting(op, vm, waiting);
        self.run_steps(&mut start).await?;
        self.store.vm(&id)?.ok_or_else(|| Error::internal("a started VM has no record"))
    }

    pub(super) async fn run_steps(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let mut steps = steps();
        steps.retain(|step| has(start.purpose, &start.origin, step));
        for (index, Step { name: StepName { name, message }, work }) in steps.iter().enumerate() {
            start.op.stage(name, format!("{message} ({})", start.vm.name), None);
            let began = Instant::now();
            let op = start.op;
            let id = start.vm.id.clone();
            let outcome = op.or_cancelled(self.step(op, &id, name, self.run_step(work, start))).await;
            op.timed(name, began.elapsed());
            if let Err(error) = outcome {
                tracing::warn!(step = name, %error, "a start step failed; undoing");
                let begun = steps.get(..=index).unwrap_or_default();
                return Err(self.undo(start, begun, error).await);
            }
        }
        Ok(())
    }

    async fn run_step(self: &Arc<Self>, work: &Work, start: &mut Start<'_>) -> Result<()> {
        match work {
            Work::Own { run, .. } => run(self, start).await,
            Work::PrepareHost(index) => self.prepare_host(start, *index).await,
            Work::ConfigureGuest(index) => match (start.plugged.get_mut(*index), &start.agent) {
                (Some(hooks), Some((agent, _))) => {
                    hooks.configure_guest(&agent.for_operation(start.op.id())).await
                }
                _ => Err(Error::internal("a guest without an agent")),
            },
        }
    }

    /// Undoes the failing step and all before it; the failing one may have half succeeded.
    async fn undo(self: &Arc<Self>, start: &mut Start<'_>, begun: &[Step], mut error: Error) -> Error {
        for Step { name: StepName { name, .. }, work } in begun.iter().rev() {
            let undone = match work {
                Work::Own { undo: Some(undo), .. } => undo(self, start).await,
                Work::PrepareHost(index) => match start.capability(self, *index) {
                    Some((hooks, cx)) => hooks.undo_prepare_host(cx).await,
                    None => Ok(()),
                },
                Work::Own { undo: None, .. } | Work::ConfigureGuest(_) => Ok(()),
            };
            if let Err(also) = undone {
                tracing::error!(step = name, error = %also, "an undo failed");
                error.message = format!("{}; and undoing '{name}' failed: {also}", error.message);
            }
        }
        error
    }

    async fn prepare_host(self: &Arc<Self>, start: &mut Start<'_>, index: usize) -> Result<()> {
        if let Some((hooks, cx)) = start.capability(self, index) {
            hooks.prepare_host(cx).await?;
        }
        self.save_handles(start)
    }

    async fn record_starting(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        self.change(start.op, &start.vm.id, |vm| {
            vm.state = VmState::Starting;
            vm.last_error = None;
        })?;
        Ok(())
    }

    async fn preflight(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let vm = &start.vm;
        if vm.shape.memory.0 > self.host.memory.0 {
            return Err(Error::new(
                ErrorCode::Unavailable,
                format!("VM '{}' wants {}, and this host has {}", vm.name, vm.shape.memory, self.host.memory),
            )
            .with_hint("give it less with --memory"));
        }
        let dir = self.dirs.state.vm(&vm.id);
        if vm.unfinished.is_none() && !dir.is_dir() {
            return Err(directory_gone(vm, &dir));
        }
        self.artifacts.image_file(&vm.image_digest)?;
        let files = match start.files.take() {
            Some(files) => files,
            None => self.artifacts.boot_files(&vm.kernel).await?,
        };
        if !matches!(start.origin, Origin::Boot) {
            let origin = std::mem::take(&mut start.origin);
            start.origin = blocking(move || origin.link(&dir.join(RESTORED))).await?;
        }
        if let Some(snapshot) = start.origin.snapshot() {
            snapshot.check(vm, &files)?;
        }
        start.files = Some(files);
        for index in 0..start.plugged.len() {
            if let Some((hooks, cx)) = start.capability(self, index) {
                hooks.preflight(cx).await?;
            }
        }
        Ok(())
    }

    async fn make_disk(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let dir = self.dirs.state.vm(&start.vm.id);
        disk::remove_stale(&dir, &start.vm)?;
        let path = disk::system(&dir, &start.vm);
        match start.origin.disks() {
            None => start.disk.make(path, start.vm.shape.disk, DiskUse::System).await,
            Some(snapshot) => start.disk.copy(Snapshot::system_disk(snapshot.dir()), path).await,
        }
    }

    async fn unmake_disk(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        start.disk.undo(disk::system(&self.dirs.state.vm(&start.vm.id), &start.vm)).await
    }

    async fn make_runtime_dir(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        make_dir(&self.dirs.runtime.vm(&start.vm.id))?;
        let mark = mark(&start.vm.id);
        start.handles.group = self.cage.groups().map(|groups| groups.of(&mark));
        self.save_handles(start)?;
        let limits = Limits { memory: start.vm.shape.memory, vcpu: start.vm.shape.vcpu };
        // Where it is required nothing starts without it, and says so itself.
        if let Some(Err(error)) = self.cage.groups().map(|groups| groups.make(&mark, limits)) {
            tracing::warn!(vm = %start.vm.name, %error, "a VM has no control group");
        }
        Ok(())
    }

    /// A workspace that was copied in to be read only is mounted so in every boot.
    async fn protect_workspace(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let readonly = start.vm.workspace.as_ref().filter(|workspace| workspace.readonly);
        if let (Some(workspace), Some((agent, _))) = (readonly, &start.agent) {
            agent.call(&Request::Protect { path: workspace.guest_path.as_str().into() }).await?;
        }
        Ok(())
    }

    async fn record_running(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let (Some(machine), Some((session, hello))) = (start.machine.take(), start.agent.take()) else {
            return Err(Error::internal("a start without a machine"));
        };
        tracing::info!(vm = %start.vm.name, kernel = hello.kernel, guest_uptime_ms = hello.uptime_ms,
            init = ?hello.init, "guest ready");
        let boot = start.boot;
        self.change(start.op, &start.vm.id, |vm| {
            vm.state = VmState::Running;
            vm.started_at = Some(jiff::Timestamp::now());
            vm.boot = boot;
        })?;
        self.watch(start.vm.id.clone(), machine, Some(session));
        host_network::notice(start.op, &start.vm);
        Ok(())
    }

    fn save_handles(&self, start: &Start<'_>) -> Result<()> {
        let dir = self.dirs.state.vm(&start.vm.id);
        start.handles.save(&dir).map_err(|e| failed("write handles.json in", &dir, &e))
    }
}

impl<'a> Start<'a> {
    pub(super) fn new(op: &'a Op, vm: Vm, origin: Origin, purpose: Purpose) -> Self {
        Self {
            op,
            vm,
            began: Instant::now(),
            files: None,
            handles: Handles::default(),
            disk: disk::Making::default(),
            plugged: capability::ALL.iter().map(|c| (c.plug)()).collect(),
            machine: None,
            agent: None,
            boot: None,
            origin,
            purpose,
        }
    }

    /// A start by which one that waits gets its user.
    pub(super) fn of_waiting(op: &'a Op, vm: Vm, waiting: Waiting) -> Self {
        let Waiting { machine, agent, handles, plugged, from } = waiting;
        let (machine, agent) = (Some(machine.called(vm.name.clone())), Some(agent));
        Self { machine, agent, handles, plugged, ..Self::new(op, vm, Origin::Spare(from), Purpose::Run) }
    }

    /// The halted machine, once the steps have run.
    pub(super) fn into_waiting(self) -> Option<Waiting> {
        let from = self.origin.snapshot()?.clone();
        let (machine, agent) = (self.machine?, self.agent?);
        Some(Waiting { machine, agent, handles: self.handles, plugged: self.plugged, from })
    }

    /// The machine, the session with its agent and what it was booted from, once the steps have run.
    pub(super) fn take(&mut self) -> Option<(Arc<dyn Machine>, Session, BootFiles)> {
        Some((self.machine.take()?, self.agent.take()?.0, self.files.take()?))
    }

    /// A capability's hooks, and what they may use.
    fn capability<'s>(
        &'s mut self,
        vms: &'s Arc<Vms>,
        index: usize,
    ) -> Option<(&'s mut Box<dyn Hooks>, Context<'s>)> {
        let hooks = self.plugged.get_mut(index)?;
        let Self { vm, handles, purpose, .. } = self;
        Some((hooks, Context { vms, vm, handles, disks: self.origin.disks(), purpose: *purpose }))
    }
}

/// The one sentence about what is not there yet.
pub(super) fn no_bridge() -> Error {
    Error::new(ErrorCode::Unsupported, "bridge networking is not available yet")
        .with_hint("use '--network user' or '--network none'")
}

pub(super) fn make_dir(path: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(path).map_err(|e| failed("make", path, &e))
}

pub(super) fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path, &e)),
        _ => Ok(()),
    }
}

pub(super) fn failed(what: &str, path: &std::path::Path, error: &std::io::Error) -> Error {
    let plain = Error::unavailable(format!("cannot {what} {}: {error}", path.display()));
    if is_disk_full(error) { plain.with_hint("free some space and try again") } else { plain }
}
