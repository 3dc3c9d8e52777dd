//! Start: a table of steps. Each has a name, what it does and how it is undone. When a step fails,
//! it and all before it are undone in reverse order, every undo runs, and the errors are joined.

use std::sync::Arc;
use std::time::{Duration, Instant};

use banger_channel::Session;
use banger_image::SystemDisk;
use banger_image::kernel::BootFiles;
use banger_model::{Boot, BootKind, Error, ErrorCode, LastError, NetworkMode, Result, Vm, VmState};
use banger_network::{UserNetwork, UserNetworkHandle, UserNetworkSpec, guard, passt};
use banger_protocol::agent::{AgentHello, Request};
use banger_vmm::{Disk, DiskRole, ExitInfo, Machine, MachineSpec, NetDevice};
use futures_util::future::BoxFuture;

use super::handles::Handles;
use super::live::{boot_failed, greet};
use super::{VmLock, Vms};
use crate::artifacts::blocking;
use crate::op::Op;

/// What the steps of one start share.
struct Start<'a> {
    op: &'a Op,
    vm: Vm,
    began: Instant,
    files: Option<BootFiles>,
    handles: Handles,
    made_disk: bool,
    network: Option<UserNetworkHandle>,
    config: Option<banger_protocol::agent::NetworkConfig>,
    machine: Option<Arc<dyn Machine>>,
    agent: Option<(Session, AgentHello)>,
    boot: Option<Boot>,
}

type Run = for<'a> fn(&'a Arc<Vms>, &'a mut Start<'_>) -> BoxFuture<'a, Result<()>>;

struct Step {
    name: &'static str,
    message: &'static str,
    run: Run,
    undo: Option<Run>,
}

/// In order. The crash tests and `--timings` know the steps by these names.
const STEPS: &[Step] = &[
    Step { name: "preflight", message: "checking", run: |v, s| Box::pin(v.preflight(s)), undo: None },
    Step {
        name: "system_disk",
        message: "making the system disk",
        run: |v, s| Box::pin(v.make_disk(s)),
        undo: Some(|v, s| Box::pin(v.unmake_disk(s))),
    },
    Step {
        name: "runtime_dir",
        message: "making room for sockets",
        run: |v, s| Box::pin(v.make_runtime_dir(s)),
        undo: Some(|v, s| Box::pin(async move { v.tear_down(&s.vm.id).await })),
    },
    Step {
        name: "network",
        message: "setting up the network",
        run: |v, s| Box::pin(v.start_network(s)),
        undo: None,
    },
    Step { name: "launch", message: "launching the machine", run: |v, s| Box::pin(v.launch(s)), undo: None },
    Step { name: "boot", message: "booting", run: |v, s| Box::pin(v.await_agent(s)), undo: None },
    Step {
        name: "guest_network",
        message: "configuring the guest's network",
        run: |v, s| Box::pin(v.configure_guest(s)),
        undo: None,
    },
    Step { name: "record", message: "recording", run: |v, s| Box::pin(v.record_running(s)), undo: None },
];

impl Vms {
    /// Starts a VM that is not running.
    ///
    /// # Errors
    /// `boot_failed` with the console's tail, or what the failing step says; the VM is then in
    /// `error` and holds nothing on the host.
    pub(crate) async fn start(self: &Arc<Self>, op: &Op, reference: &str) -> Result<Vm> {
        let id = self.find(reference)?.id;
        let lock = self.lock(op, &id).await?;
        let vm = self.find(id.as_str())?;
        if self.live(&id).is_some_and(|l| l.machine().exited().is_none()) {
            op.notice(format!("VM '{}' is running already", vm.name));
            return Ok(vm);
        }
        self.start_locked(op, vm, &lock).await
    }

    /// Starts a VM whose lock is held.
    pub(super) async fn start_locked(self: &Arc<Self>, op: &Op, vm: Vm, _lock: &VmLock) -> Result<Vm> {
        let id = vm.id.clone();
        // Whatever an earlier run left (a VMM whose end nobody saw) goes first.
        self.tear_down(&id).await?;
        self.store.modify_vm(&id, |vm| {
            vm.state = VmState::Starting;
            vm.last_error = None;
        })?;
        let mut start = Start {
            op,
            vm,
            began: Instant::now(),
            files: None,
            handles: Handles::default(),
            made_disk: false,
            network: None,
            config: None,
            machine: None,
            agent: None,
            boot: None,
        };
        let outcome = self.run_steps(&mut start).await;
        let Err(error) = outcome else {
            return self.store.vm(&id)?.ok_or_else(|| Error::internal("a started VM has no record"));
        };
        // Who asked has gone: that is no fault of the VM's.
        let (state, last_error) = match error.code {
            ErrorCode::Cancelled if start.vm.started_at.is_none() => (VmState::Created, None),
            ErrorCode::Cancelled => (VmState::Stopped, None),
            code => (VmState::Error, Some(LastError { code, message: error.message.clone() })),
        };
        self.store.modify_vm(&id, |vm| {
            vm.state = state;
            vm.last_error = last_error;
        })?;
        Err(error)
    }

    async fn run_steps(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        for (index, step) in STEPS.iter().enumerate() {
            start.op.stage(step.name, format!("{} ({})", step.message, start.vm.name), None);
            let began = Instant::now();
            let op = start.op;
            let outcome = op.or_cancelled((step.run)(self, start)).await;
            op.timed(step.name, began.elapsed());
            if let Err(error) = outcome {
                tracing::warn!(step = step.name, %error, "a start step failed; undoing");
                return Err(self.undo(start, index, error).await);
            }
        }
        Ok(())
    }

    /// Undoes the failing step and all before it; the failing one may have half succeeded.
    async fn undo(self: &Arc<Self>, start: &mut Start<'_>, failed: usize, mut error: Error) -> Error {
        for step in STEPS.iter().take(failed + 1).rev() {
            let Some(undo) = step.undo else { continue };
            if let Err(also) = undo(self, start).await {
                tracing::error!(step = step.name, error = %also, "an undo failed");
                error.message = format!("{}; and undoing '{}' failed: {also}", error.message, step.name);
            }
        }
        error
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
        self.artifacts.image_file(&vm.image_digest)?;
        start.files = Some(self.artifacts.boot_files(&vm.kernel).await?);
        Ok(())
    }

    async fn make_disk(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let dir = self.dirs.state.vm(&start.vm.id);
        let (path, size) = (dir.join("system.ext4"), start.vm.shape.disk);
        start.made_disk = blocking(move || {
            make_dir(&dir)?;
            if path.exists() {
                return Ok(false);
            }
            // Made beside its name, so that a half-made disk is never taken for a whole one.
            let next = path.with_extension("ext4.new");
            remove_file(&next)?;
            SystemDisk::create(&next, size)?;
            std::fs::rename(&next, &path).map_err(|e| failed("name", &path, &e))?;
            Ok(true)
        })
        .await?;
        Ok(())
    }

    async fn unmake_disk(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let dir = self.dirs.state.vm(&start.vm.id);
        remove_file(&dir.join("system.ext4.new"))?;
        if start.made_disk { remove_file(&dir.join("system.ext4")) } else { Ok(()) }
    }

    async fn make_runtime_dir(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        make_dir(&self.dirs.runtime.vm(&start.vm.id))?;
        self.save_handles(start)
    }

    async fn start_network(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        match start.vm.network {
            NetworkMode::None => return Ok(()),
            NetworkMode::Bridge => return Err(no_bridge()),
            NetworkMode::User => {}
        }
        let network = UserNetwork::start(UserNetworkSpec {
            vm_id: start.vm.id.clone(),
            host_access: start.vm.host_access,
            log: self.dirs.state.vm(&start.vm.id).join("network.log"),
            passt: passt::locate(std::env::var_os("PATH").as_deref())?,
            guard: guard::locate(&self.companions)?,
        })
        .await?;
        start.handles.network.clone_from(&network.processes);
        start.config = Some(network.config.clone());
        start.network = Some(network);
        self.save_handles(start)
    }

    async fn launch(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        self.launch_machine(start, false).await
    }

    async fn launch_machine(self: &Arc<Self>, start: &mut Start<'_>, verbose_console: bool) -> Result<()> {
        let vm = &start.vm;
        let dir = self.dirs.state.vm(&vm.id);
        let files = start.files.as_ref().ok_or_else(|| Error::internal("no boot files"))?;
        let image = self.artifacts.image_file(&vm.image_digest)?;
        let fs = banger_model::RootFsType::Squashfs;
        let mut disks = vec![
            Disk { role: DiskRole::Base { fs }, path: image, read_only: true },
            Disk { role: DiskRole::System, path: dir.join("system.ext4"), read_only: false },
        ];
        if let Some(path) = files.modules.clone() {
            disks.push(Disk { role: DiskRole::Modules, path, read_only: true });
        }
        let spec = MachineSpec {
            id: vm.id.clone(),
            name: vm.name.clone(),
            shape: vm.shape,
            accel: vm.accel.unwrap_or(banger_model::Accel::Tcg),
            kernel: files.kernel.clone(),
            initramfs: files.initramfs.clone(),
            disks,
            network: start
                .network
                .take()
                .map(|n| NetDevice { mac: n.config.mac.clone(), backend: n.backend }),
            runtime_dir: self.dirs.runtime.vm(&vm.id),
            log_dir: dir,
            verbose_console,
        };
        let machine = self.driver(vm.driver)?.launch(spec).await?;
        start.handles.machine = Some(machine.handle().clone());
        start.machine = Some(machine);
        self.save_handles(start)
    }

    /// Waits for the agent's answer. A boot that says nothing until the limit is ended and tried
    /// once more with the kernel's messages on the console: emulated machines hang now and then
    /// before their first instruction (FACTS). One that ends by itself is not tried again.
    async fn await_agent(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let limit = self.config.boot_timeout.value;
        if !self.answered(start, limit).await? {
            tracing::warn!(vm = %start.vm.name, "the guest said nothing; booting it once more");
            start.op.notice(format!(
                "VM '{}' gave no sign of life within {} s: trying once more",
                start.vm.name,
                limit.as_secs()
            ));
            self.tear_down(&start.vm.id).await?;
            start.handles = Handles::default();
            self.make_runtime_dir(start).await?;
            self.start_network(start).await?;
            self.launch_machine(start, true).await?;
            if !self.answered(start, limit).await? {
                let tail = self.console_tail(&start.vm.id).await;
                return Err(boot_failed(
                    &start.vm,
                    &format!("its agent did not answer within {} s, twice", limit.as_secs()),
                    &tail,
                ));
            }
        }
        let ready_ms = u64::try_from(start.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        start.boot = Some(Boot { kind: BootKind::Cold, ready_ms });
        Ok(())
    }

    /// Whether the agent answered in time; an error when the machine ended instead.
    async fn answered(self: &Arc<Self>, start: &mut Start<'_>, limit: Duration) -> Result<bool> {
        let machine = start.machine.clone().ok_or_else(|| Error::internal("no machine"))?;
        tokio::select! {
            biased;
            greeted = tokio::time::timeout(limit, greet(&*machine)) => match greeted {
                Ok(Ok(agent)) => {
                    start.agent = Some(agent);
                    Ok(true)
                }
                Ok(Err(error)) => {
                    // The channel breaks when the VMM ends; then its end is the story.
                    match tokio::time::timeout(Duration::from_secs(1), machine.wait()).await {
                        Ok(exit) => Err(self.ended_in_boot(start, &exit).await),
                        Err(_) => Err(error),
                    }
                }
                Err(_) => Ok(false),
            },
            exit = machine.wait() => Err(self.ended_in_boot(start, &exit).await),
        }
    }

    async fn ended_in_boot(self: &Arc<Self>, start: &Start<'_>, exit: &ExitInfo) -> Error {
        let tail = self.console_tail(&start.vm.id).await;
        boot_failed(&start.vm, exit.reason.as_str(), &tail)
    }

    async fn configure_guest(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let (Some(config), Some((session, _))) = (start.config.clone(), start.agent.as_ref()) else {
            return Ok(());
        };
        session.call(&Request::ConfigureNetwork(config)).await?;
        Ok(())
    }

    async fn record_running(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let (Some(machine), Some((session, hello))) = (start.machine.take(), start.agent.take()) else {
            return Err(Error::internal("a start without a machine"));
        };
        tracing::info!(vm = %start.vm.name, kernel = hello.kernel, guest_uptime_ms = hello.uptime_ms,
            init = ?hello.init, "guest ready");
        let boot = start.boot;
        self.store.modify_vm(&start.vm.id, |vm| {
            vm.state = VmState::Running;
            vm.started_at = Some(jiff::Timestamp::now());
            vm.boot = boot;
        })?;
        self.watch(start.vm.id.clone(), machine, Some(session));
        Ok(())
    }

    fn save_handles(&self, start: &Start<'_>) -> Result<()> {
        let dir = self.dirs.state.vm(&start.vm.id);
        start.handles.save(&dir).map_err(|e| failed("write handles.json in", &dir, &e))
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
    let full = matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    let plain = Error::unavailable(format!("cannot {what} {}: {error}", path.display()));
    if full { plain.with_hint("free some space and try again") } else { plain }
}
