//! A snapshot of a running Firecracker. It writes memory and flushes it in one call, with the machine halted: so it is
//! given as little to write as can be, the pages that the process has, above what its memory began with. Must never
//! leave a page out that the guest has.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use banger_model::VmName;

use super::api::{CreateSnapshot, SnapshotType};
use super::machine::FirecrackerMachine;
use super::place;
use crate::driver::Words;
use crate::process::ProcessId;
use crate::snapshot::{About, Files, Halted, Layout, blocking};
use crate::sockets::Cleanup;
use crate::{Last, Machine, Result, VmmError, sparse};

pub(super) async fn capture(machine: &FirecrackerMachine, dir: &Path, last: Last<'_>) -> Result<()> {
    let handle = machine.handle();
    let layout = Layout::known(handle)?;
    let dir = std::path::absolute(dir).map_err(VmmError::file("find", dir))?;
    let files = Files::begin(&dir)?;
    let written = Arc::new(Written::nothing(&handle.words)?);
    let prepare = {
        let (vm, layout, written) = (handle.name.clone(), layout.clone(), Arc::clone(&written));
        move || prepare(&vm, &layout, &written)
    };
    blocking(prepare).await?;
    last.await.map_err(|error| VmmError::Callers(Box::new(error)))?;

    let paused = machine.is_paused().await?;
    let other = machine.clone();
    let halted = Halted::unless_kept((!paused).then_some(async move {
        if let Err(error) = other.resume().await {
            tracing::warn!(%error, "a machine stays halted after a snapshot that failed");
        }
    }));
    let outcome = match write(machine, &written).await {
        Ok(about) => blocking(move || written.go(&files).and_then(|()| files.finish(about))).await,
        Err(error) => Err(error),
    };
    halted.conclude(outcome).await
}

/// Puts what the machine's memory began with where Firecracker will write above it, flushed: all that is not yet on the
/// disk when the machine halts, its guest waits for.
fn prepare(vm: &VmName, layout: &Layout, to: &Written) -> Result<()> {
    if let Some(base) = layout.memory_base(vm)? {
        sparse::copy(base, &to.memory)?;
        let flushed = File::open(&to.memory).and_then(|file| file.sync_data());
        flushed.map_err(VmmError::file("flush", &to.memory))?;
    }
    layout.flush_disks();
    Ok(())
}

/// Halts it and lets it write its memory and state; what they are of.
async fn write(machine: &FirecrackerMachine, to: &Arc<Written>) -> Result<About> {
    let handle = machine.handle();
    let call = |snapshot_type| {
        machine.write(CreateSnapshot { snapshot_type, snapshot_path: &to.state, mem_file_path: &to.memory })
    };
    // One that was stopped as a process answers nothing before.
    machine.halt().await?;
    let about = About::machine(handle, machine.version().await?);
    // It goes by what is in core: a page on a swap device is not. What the guest gave back may be what it was at the
    // beginning again, which no guest may rely on.
    let mut whole = has_swapped(&handle.process).await;
    if !whole {
        call(SnapshotType::Diff).await?;
        whole = has_swapped(&handle.process).await;
    }
    if whole {
        call(SnapshotType::Full).await?;
    }
    // Those are zeros that the guest never wrote: of a file with holes, too, more is in core than was asked for.
    if whole || handle.layout.memory_file.is_some() {
        let to = Arc::clone(to);
        blocking(move || sparse::dig(&to.memory)).await?;
    }
    Ok(about)
}

async fn has_swapped(process: &ProcessId) -> bool {
    let process = process.clone();
    tokio::task::spawn_blocking(move || process.has_swapped()).await.unwrap_or(true)
}

/// What Firecracker writes, in a room of its own: it may not elsewhere. On drop all of it goes.
struct Written {
    memory: PathBuf,
    state: PathBuf,
    _leftovers: Cleanup,
}

impl Written {
    /// Nothing yet: what lies there is not of this machine's present.
    fn nothing(words: &Words) -> Result<Self> {
        place::clear_room(words);
        let [memory, state] = place::snapshot(words)
            .map(|path| std::path::absolute(&path).map_err(VmmError::file("find", &path)));
        let (memory, state) = (memory?, state?);
        Ok(Self { _leftovers: Cleanup::of(&[&memory, &state]), memory, state })
    }

    /// Moves it to where it was wanted.
    fn go(&self, files: &Files) -> Result<()> {
        for (from, to) in [(&self.memory, &files.memory), (&self.state, &files.state)] {
            if std::fs::rename(from, to).is_err() {
                // Another file system.
                std::fs::remove_file(to).map_err(VmmError::file("remove", to))?;
                sparse::copy(from, to)?;
            }
        }
        Ok(())
    }
}
