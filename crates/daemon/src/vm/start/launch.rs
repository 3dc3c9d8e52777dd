//! The machine of a start: what it consists of, launched or restored, and the wait for its agent. Must never record
//! anything about the VM but its handles.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Accel, Boot, BootKind, Error, Result, RootFsType};
use banger_protocol::agent::{ExecSpec, Identity, Request};
use banger_vmm::process::ProcessId;
use banger_vmm::{Disk, DiskRole, ExitInfo, MachineSpec};

use super::super::capability;
use super::super::disk;
use super::super::handles::Handles;
use super::super::live::{boot_failed, console_of, greet, introduce, mark_boot};
use super::{Origin, Purpose, Start, Vms, make_dir, rescue};
use crate::op::random_bytes;

/// How long a restored guest's agent may take to answer: it did before.
const REANSWER: Duration = Duration::from_secs(15);
/// How many times longer a template's guest may take to boot than anybody else's.
const PATIENCE: u32 = 5;
/// What most commands begin with: a shell that finds a program and runs it, which here does nothing.
const REHEARSAL: &[&str] = &["sh", "-c", "exec true"];
/// Where a restored machine's memory is, below the VM's directory: hard links that nobody else removes.
pub(in crate::vm) const RESTORED: &str = "restored";

impl Vms {
    pub(super) async fn launch(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        self.launch_machine(start, false).await
    }

    async fn launch_machine(self: &Arc<Self>, start: &mut Start<'_>, verbose_console: bool) -> Result<()> {
        let vm = &start.vm;
        let dir = self.dirs.state.vm(&vm.id);
        let log_dir = self.log_dir(start);
        make_dir(&log_dir)?;
        mark_boot(&log_dir)?;
        let files = start.files.as_ref().ok_or_else(|| Error::internal("no boot files"))?;
        let image = self.artifacts.image_file(&vm.image_digest)?;
        let fs = RootFsType::Squashfs;
        let mut disks = vec![
            Disk { role: DiskRole::Base { fs }, path: image, read_only: true },
            Disk { role: DiskRole::System, path: disk::system(&dir, vm), read_only: false },
        ];
        if let Some(path) = files.modules.clone() {
            disks.push(Disk { role: DiskRole::Modules, path, read_only: true });
        }
        // What a guest says before an emulation ends it is all there is to see.
        let verbose_console = verbose_console || self.emulated(vm).await.is_some();
        let mut spec = MachineSpec {
            id: vm.id.clone(),
            name: match start.purpose {
                // Whoever goes on from it writes a name over this one: a longer one makes less work than a shorter one.
                Purpose::Template => "template".parse()?,
                Purpose::Run | Purpose::Rescue | Purpose::Spare => vm.name.clone(),
            },
            shape: vm.shape,
            accel: vm.accel.unwrap_or(Accel::Tcg),
            kernel: files.kernel.clone(),
            initramfs: files.initramfs.clone(),
            disks,
            network: None,
            runtime_dir: self.dirs.runtime.vm(&vm.id),
            log_dir,
            verbose_console,
            rescue: start.purpose == Purpose::Rescue,
        };
        for (hooks, capability) in start.plugged.iter_mut().zip(capability::ALL) {
            if start.purpose == Purpose::Rescue && !capability.in_rescue {
                continue;
            }
            hooks.contribute_to_machine(vm, &mut spec)?;
        }
        let driver = self.driver(vm.driver)?;
        let snapshot = start.origin.snapshot().cloned();
        let launch = async {
            match snapshot {
                None => driver.launch(spec).await,
                Some(snapshot) => driver.restore(spec, snapshot.dir()).await,
            }
        };
        let beside = async {
            for index in 0..start.plugged.len() {
                if let Some((hooks, cx)) = start.capability(self, index) {
                    hooks.beside_launch(cx).await?;
                }
            }
            Ok::<_, Error>(())
        };
        // The machine first: it takes longer, and most of that in a process of its own.
        let (machine, beside) = tokio::join!(launch, beside);
        let machine = machine?;
        if start.purpose == Purpose::Template {
            stand_back(&machine.handle().process);
        }
        start.handles.machine = Some(machine.handle().clone());
        start.machine = Some(machine);
        self.save_handles(start).and(beside)
    }

    /// Waits for the agent's answer. A boot that says nothing until the limit is ended and tried
    /// once more with the kernel's messages on the console: emulated machines hang now and then
    /// before their first instruction (FACTS). One that ends by itself is not tried again.
    pub(super) async fn await_agent(self: &Arc<Self>, start: &mut Start<'_>) -> Result<()> {
        let restored = start.origin.snapshot().is_some();
        if let (Origin::Spare(_), Some(machine)) = (&start.origin, &start.machine) {
            machine.resume().await?;
        }
        // A template's guest gets what others leave.
        let times = if start.purpose == Purpose::Template { PATIENCE } else { 1 };
        let patience = self.config.boot_timeout.value * times;
        let limit = if restored { REANSWER.min(patience) } else { patience };
        let answered = self.answered(start, limit).await?;
        if !answered && restored {
            let why = format!("its agent did not answer within {} s after it was restored", limit.as_secs());
            return Err(boot_failed(&start.vm, &why, &[]));
        }
        if !answered && self.emulated(&start.vm).await.is_some() {
            let why = format!("its agent did not answer within {} s", limit.as_secs());
            return Err(self.not_booted(start, &why).await);
        }
        if !answered {
            tracing::warn!(vm = %start.vm.name, "the guest said nothing; booting it once more");
            start.op.notice(format!(
                "VM '{}' gave no sign of life within {} s: trying once more",
                start.vm.name,
                limit.as_secs()
            ));
            self.tear_down(start.op, &start.vm.id).await?;
            start.handles = Handles::default();
            self.make_runtime_dir(start).await?;
            for (index, capability) in capability::ALL.iter().enumerate() {
                if start.purpose != Purpose::Rescue || capability.in_rescue {
                    self.prepare_host(start, index).await?;
                }
            }
            self.launch_machine(start, true).await?;
            if !self.answered(start, limit).await? {
                let why = format!("its agent did not answer within {} s, twice", limit.as_secs());
                return Err(self.not_booted(start, &why).await);
            }
        }
        let ready_ms = u64::try_from(start.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        start.boot = Some(Boot { kind: if restored { BootKind::Warm } else { BootKind::Cold }, ready_ms });
        Ok(())
    }

    /// Whether the agent answered in time; an error when the machine ended instead.
    async fn answered(self: &Arc<Self>, start: &mut Start<'_>, limit: Duration) -> Result<bool> {
        let machine = start.machine.clone().ok_or_else(|| Error::internal("no machine"))?;
        let identity = start.identity();
        let known = start.agent.take().map(|(session, _)| session);
        let greeting = async {
            match known {
                Some(session) => introduce(session, identity).await,
                None => greet(&*machine, identity).await,
            }
        };
        tokio::select! {
            biased;
            greeted = tokio::time::timeout(limit, greeting) => match greeted {
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

    pub(super) async fn ended_in_boot(self: &Arc<Self>, start: &Start<'_>, exit: &ExitInfo) -> Error {
        self.not_booted(start, exit.reason.as_str()).await
    }

    async fn not_booted(&self, start: &Start<'_>, why: &str) -> Error {
        let tail = console_of(self.log_dir(start)).await.lines;
        let Some(emulated) = self.emulated(&start.vm).await else {
            return boot_failed(&start.vm, why, &tail);
        };
        boot_failed(&start.vm, &format!("{why}; {emulated}"), &tail).with_hint(
            "use '--driver qemu' (software emulation); for a VM that is there: 'banger vm set NAME --driver qemu'",
        )
    }

    /// Where the machine's logs go; a rescue leaves those of the boot that failed alone.
    pub(super) fn log_dir(&self, start: &Start<'_>) -> PathBuf {
        let dir = self.dirs.state.vm(&start.vm.id);
        if start.purpose == Purpose::Rescue { dir.join(rescue::DIR) } else { dir }
    }
}

impl Start<'_> {
    /// Has the guest of one that will wait do what it will be asked for first, with its processes standing still, and
    /// halts it: whoever gets it does not wait for pages of memory to be read, nor for code to be translated.
    pub(in crate::vm) async fn rehearse(&self) -> Result<()> {
        let (Some(machine), Some((agent, _))) = (&self.machine, &self.agent) else {
            return Err(Error::internal("a rehearsal without a guest"));
        };
        let agent = agent.for_operation(self.op.id());
        // How it ends is not asked: an image may have no shell.
        let command = Request::Exec(ExecSpec::plain(REHEARSAL));
        let answered = tokio::time::timeout(REANSWER, agent.call(&command)).await;
        answered.map_err(|_| boot_failed(&self.vm, "its rehearsal did not end", &[]))??;
        Ok(machine.pause().await?)
    }

    /// Who a guest that goes on from a snapshot is.
    fn identity(&self) -> Option<Identity> {
        let snapshot = self.origin.snapshot()?;
        let rehearsal = self.purpose == Purpose::Spare;
        let fresh = || hex::encode(random_bytes::<16>());
        let mut identity = Identity {
            hostname: self.vm.name.to_string(),
            machine_id: (!rehearsal && snapshot.about.id != self.vm.id).then(fresh),
            network: None,
            rehearsal,
        };
        for hooks in &self.plugged {
            hooks.identify(&mut identity);
        }
        Some(identity)
    }
}

/// Lets everybody else go first: each thread there is, and so each that they begin, in the group that the kernel's
/// scheduler has made of its session. But only so far that it gets somewhere on a busy host, too.
fn stand_back(vmm: &ProcessId) {
    const LATER: i32 = 3;
    let root = PathBuf::from(format!("/proc/{}", vmm.pid));
    // Absent where the kernel makes no such groups.
    let _ = std::fs::write(root.join("autogroup"), LATER.to_string());
    let tasks = std::fs::read_dir(root.join("task")).into_iter().flatten().flatten();
    for task in tasks.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        if let Some(task) = rustix::process::Pid::from_raw(task) {
            let _ = rustix::process::setpriority_process(Some(task), LATER);
        }
    }
}
