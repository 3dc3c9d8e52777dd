//! The driver and its machines, over a [`World`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use banger_model::{DriverKind, VmName};
use banger_vmm::process::mark;
use banger_vmm::{
    AgentIo, Capabilities, Disk, DiskRole, Driver, ExitInfo, ExitReason, Last, Layout, Machine,
    MachineHandle, MachineSpec, Result, Signal, Standalone, VmmError, Words,
};
use tokio::net::{UnixListener, UnixStream};

use super::agent;
use super::world::{Fate, Vmm, World};

/// Launches machines that only sleep.
#[derive(Debug, Clone)]
pub struct FakeDriver {
    world: World,
}

impl FakeDriver {
    /// A driver whose machines live in this world.
    #[must_use]
    pub fn new(world: World) -> Self {
        Self { world }
    }
}

#[derive(Debug)]
struct FakeMachine {
    /// With the name that whoever has this knows it by.
    handle: MachineHandle,
    vmm: Arc<Vmm>,
    world: World,
}

impl FakeMachine {
    fn of(vmm: Arc<Vmm>, world: World) -> Arc<dyn Machine> {
        Arc::new(Self { handle: vmm.handle.clone(), vmm, world })
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn kind(&self) -> DriverKind {
        DriverKind::Qemu
    }

    async fn capabilities(&self) -> Result<Capabilities> {
        Ok(Capabilities {
            version: "fake".to_owned(),
            pause: true,
            snapshot: true,
            restore: true,
            network: true,
            vcpus_take_turns: false,
            warning: None,
        })
    }

    async fn launch(&self, spec: MachineSpec) -> Result<Arc<dyn Machine>> {
        let name = spec.name.to_string();
        let fate = self.world.fate_of(&name);
        for disk in spec.disks.iter().filter(|d| !d.path.is_file()) {
            self.world.never(format!("VM '{name}' is launched without {}", disk.path.display()));
        }
        if fate == Fate::LaunchFails {
            let source = std::io::Error::other("the fake was told to fail");
            return Err(VmmError::Spawn { program: "fake-vmm".into(), source });
        }
        let agent_socket = spec.runtime_dir.join("agent.sock");
        let control_socket = spec.runtime_dir.join("control.sock");
        let listener = self.listen(&agent_socket)?;
        let program = Standalone::new(Path::new("/bin/sleep"), &spec.log_dir.join("vmm.log"), &spec.log_dir)
            .called(format!("fake-vmm:{}", mark(&spec.id)))
            .args(["infinity"])
            .spawn()?;
        // As a real one: between the start of the process and the moment anybody hears of it,
        // whoever asked may go away.
        tokio::task::yield_now().await;
        let (process, _pidfd) = program.release();
        let is_system = |d: &&Disk| d.role == DiskRole::System;
        let disk = spec.disks.iter().find(is_system).map(|d| d.path.clone()).unwrap_or_default();
        let handle = MachineHandle {
            layout: Layout::of(&spec, 0),
            words: Words::default(),
            vm: spec.id,
            name: spec.name,
            driver: DriverKind::Qemu,
            accel: spec.accel,
            process,
            control_socket,
            agent_socket,
            security: banger_model::Security::default(),
        };
        let vmm = self.world.add(handle, disk);
        self.world.spawn(agent::serve(vmm.clone(), listener, fate));
        Ok(FakeMachine::of(vmm, self.world.clone()))
    }

    async fn restore(&self, spec: MachineSpec, snapshot: &Path) -> Result<Arc<dyn Machine>> {
        let foreign = |why: String| VmmError::ForeignSnapshot { vm: spec.name.to_string(), why };
        if self.world.fate_of(spec.name.as_str()) == Fate::RestoreFails {
            return Err(foreign("the fake was told to fail".to_owned()));
        }
        let memory = format!("{} MiB", spec.shape.memory.0);
        for (name, expected) in contents(&memory) {
            let text = std::fs::read_to_string(snapshot.join(name)).unwrap_or_default();
            if text != expected {
                return Err(foreign(format!("its '{name}' is '{text}'")));
            }
        }
        self.launch(spec).await
    }

    async fn adopt(&self, handle: &MachineHandle) -> Result<Option<Arc<dyn Machine>>> {
        let known = self.world.current(&handle.vm).filter(|v| v.handle.process == handle.process);
        let alive = known.filter(|v| v.handle.process.is_alive());
        Ok(alive.map(|vmm| FakeMachine::of(vmm, self.world.clone())))
    }
}

impl FakeDriver {
    /// Bound in the world's runtime: the socket is the machine's, not the daemon's.
    fn listen(&self, path: &Path) -> Result<UnixListener> {
        let failed = |source| VmmError::Socket { what: "listen on", path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let _world = self.world.enter();
        UnixListener::bind(path).map_err(failed)
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn handle(&self) -> &MachineHandle {
        &self.handle
    }

    fn called(&self, name: VmName) -> Arc<dyn Machine> {
        let handle = MachineHandle { name, ..self.handle.clone() };
        Arc::new(Self { handle, vmm: self.vmm.clone(), world: self.world.clone() })
    }

    async fn connect_agent(&self) -> Result<Box<dyn AgentIo>> {
        let path = &self.vmm.handle.agent_socket;
        let failed = |source| VmmError::Socket { what: "connect to", path: path.clone(), source };
        Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?))
    }

    fn stalled(&self) -> bool {
        false
    }

    async fn pause(&self) -> Result<()> {
        self.vmm.handle.process.signal(Signal::STOP).map(|_| ())
    }

    async fn resume(&self) -> Result<()> {
        self.vmm.handle.process.signal(Signal::CONT).map(|_| ())
    }

    async fn is_paused(&self) -> Result<bool> {
        Ok(self.vmm.halted())
    }

    async fn snapshot(&self, dir: &Path, last: Last<'_>) -> Result<()> {
        let vm = self.vmm.handle.name.to_string();
        last.await.map_err(|error| VmmError::Callers(Box::new(error)))?;
        if self.world.fate_of(&vm) == Fate::SnapshotFails {
            return Err(VmmError::NoSnapshot { vm, why: "the fake was told to fail".to_owned() });
        }
        self.pause().await?;
        let memory = format!("{} MiB", self.vmm.handle.layout.memory_mib);
        for (name, text) in contents(&memory) {
            let path = dir.join(name);
            let failed = |source| VmmError::File { what: "write", path: path.clone(), source };
            std::fs::write(&path, text).map_err(failed)?;
        }
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.vmm.end(ExitReason::Host);
        Ok(())
    }

    async fn kill(&self, signal: Signal) -> Result<()> {
        self.vmm.handle.process.signal(signal).map(|_| ())
    }

    async fn wait(&self) -> ExitInfo {
        let mut exit = self.vmm.exit.clone();
        let told = exit.wait_for(Option::is_some).await.ok().and_then(|info| info.clone());
        told.unwrap_or(ExitInfo { reason: ExitReason::Unknown, code: None, signal: None })
    }

    fn exited(&self) -> Option<ExitInfo> {
        self.vmm.exit.borrow().clone()
    }
}

/// The files of a snapshot of a machine with so much memory.
fn contents(memory: &str) -> [(&'static str, &str); 3] {
    [("memory", memory), ("state", "fake"), ("snapshot.json", "{}")]
}

/// How long a boot takes that is doomed to die.
pub(super) const DOOM: Duration = Duration::from_millis(3);
