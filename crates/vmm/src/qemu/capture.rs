//! A snapshot of a running QEMU: its memory is read from outside, its device state written to a descriptor that it is
//! given. Must never leave a machine halted that ran before, unless the snapshot is whole.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use super::machine::QemuMachine;
use super::memory::{Ram, Target};
use super::migration;
use super::qmp::QmpError;
use crate::snapshot::{About, Files, Halted, Layout, blocking};
use crate::{Last, Machine, Result, VmmError, sparse};

pub(super) async fn capture(machine: &QemuMachine, dir: &Path, last: Last<'_>) -> Result<()> {
    let handle = machine.handle();
    let layout = Layout::known(handle)?;
    let (version, ram) = find(machine).await?;
    let files = Files::begin(dir)?;
    let memory = OpenOptions::new().read(true).write(true).open(&files.memory);
    let memory = Arc::new(memory.map_err(VmmError::file("open", &files.memory))?);
    let prepare = {
        let (vm, layout, path) = (handle.name.clone(), layout.clone(), files.memory.clone());
        let (memory, ram) = (Arc::clone(&memory), Arc::clone(&ram));
        move || {
            let base = match layout.memory_base(&vm)? {
                Some(base) => {
                    let copied = File::open(base).and_then(|base| sparse::fill(&memory, &base));
                    copied.map_err(VmmError::file("copy", base))?;
                    Target::Earlier
                }
                None => Target::Empty,
            };
            memory.set_len(u64::from(layout.memory_mib) << 20).map_err(VmmError::file("write", &path))?;
            // What most of it is now, it still is in a moment: then only the rest is left to write.
            ram.write_to(&memory, base).map_err(VmmError::file("write", &path))?;
            layout.flush_disks();
            Ok(())
        }
    };
    blocking(prepare).await?;
    last.await.map_err(|error| VmmError::Callers(Box::new(error)))?;

    let halted = halt(machine).await?;
    let written = {
        let path = files.memory.clone();
        move || ram.write_to(&memory, Target::Earlier).map_err(VmmError::file("write", &path))
    };
    let (written, saved) = tokio::join!(blocking(written), save(machine, &files.state));
    halted.conclude(written.and(saved).and_then(|()| files.finish(About::machine(handle, version)))).await
}

/// Its version, and where its memory is.
async fn find(machine: &QemuMachine) -> Result<(String, Arc<Ram>)> {
    let handle = machine.handle();
    let failed = |error: QmpError| machine.failed("snapshot", &error);
    let connection = machine.control().connected(&handle.control_socket).await.map_err(failed)?;
    let qmp = connection.as_ref().ok_or_else(|| failed(QmpError::Closed))?;
    let version = migration::version(qmp).await.map_err(failed)?;
    let at = migration::memory_address(qmp).await.map_err(failed)?;
    let size = u64::from(handle.layout.memory_mib) << 20;
    Ok((version, Arc::new(Ram::of(handle.name.as_str(), &handle.process, at, size)?)))
}

async fn save(machine: &QemuMachine, state: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).open(state).map_err(VmmError::file("open", state))?;
    let failed = |error: QmpError| machine.failed("snapshot", &error);
    let connection = machine.control().connected(&machine.handle().control_socket).await.map_err(failed)?;
    let qmp = connection.as_ref().ok_or_else(|| failed(QmpError::Closed))?;
    migration::save(qmp, file.into()).await.map_err(failed)
}

/// Halts the vCPUs. Also a 'stop' whose answer is lost may have.
async fn halt(machine: &QemuMachine) -> Result<Halted> {
    let (control, socket) = (Arc::clone(machine.control()), machine.handle().control_socket.clone());
    let paused = machine.is_paused().await?;
    let go_on = {
        let (control, socket) = (Arc::clone(&control), socket.clone());
        async move {
            if let Err(error) = control.execute(&socket, "cont").await {
                tracing::warn!(%error, "a machine stays halted after a snapshot that failed");
            }
        }
    };
    let halted = Halted::unless_kept((!paused).then_some(go_on));
    match control.patiently(&socket, "stop").await {
        Ok(_) => Ok(halted),
        Err(error) => {
            halted.let_go().await;
            Err(machine.failed("stop", &error))
        }
    }
}
