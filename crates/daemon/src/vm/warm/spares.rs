//! Spares: machines that were restored from templates, rehearsed what they will be asked for first and were halted, which
//! wait for VMs: the first start of a VM of such a shape lets one go on and tells it who it is. Each is a VM of its own
//! from birth (record, directory, `handles.json`), under the id that its user's VM will have; nobody sees it before. Must
//! never take memory that somebody else needs, nor outlive its template or the daemon that keeps it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use banger_model::{Error, Result, Unfinished, Vm, VmId, VmName, VmState};
use jiff::Timestamp;

use super::super::snapshot::{About, Snapshot};
use super::super::start::{Origin, Purpose, Start, Waiting};
use super::super::{VmLock, Vms};
use super::First;
use super::shelf::id_of;
use crate::op::{Op, random_bytes};

/// How often it is looked whether there are as many as there should be, when nobody says that there may not.
const TICK: Duration = Duration::from_secs(30);
/// How long after something happened another one is made.
const PAUSE: Duration = Duration::from_millis(500);
/// How often one of the same template is tried for in vain.
const TRIES: u32 = 2;
/// Of the memory that is free, what those that wait could take when they run.
const PART: u64 = 2;

/// The names of its steps that are not those of any start or delete.
pub(in crate::vm) fn steps() -> Vec<String> {
    ["reserve", "system_disk", "launch", "boot", "rehearse", "ready"].map(str::to_owned).to_vec()
}

/// Those that wait, and what is known of who may come.
#[derive(Debug)]
pub(crate) struct Spares {
    /// How many there should be.
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<Spare>,
    /// The templates that the last first starts went on from, or would have, the latest first.
    uses: VecDeque<String>,
    /// How often one of a template could not be made.
    failures: HashMap<String, u32>,
    /// The daemon ends.
    closed: bool,
}

/// One that waits.
pub(in crate::vm) struct Spare {
    pub(in crate::vm) id: VmId,
    template: String,
    pub(in crate::vm) waiting: Waiting,
    /// Nobody else is at work on it as long as it waits.
    pub(in crate::vm) lock: VmLock,
}

impl std::fmt::Debug for Spare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spare")
            .field("id", &self.id)
            .field("template", &self.template)
            .finish_non_exhaustive()
    }
}

impl Spares {
    /// None yet.
    pub(crate) fn new(most: u32) -> Self {
        Self { most: usize::try_from(most).unwrap_or(usize::MAX), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids of those that wait at a template.
    pub(super) fn of(&self, template: &str) -> Vec<VmId> {
        self.state().waiting.iter().filter(|s| s.template == template).map(|s| s.id.clone()).collect()
    }

    /// Notes that a VM goes on from a template, or would if there were one.
    pub(super) fn note_use(&self, template: &str) {
        let mut state = self.state();
        state.uses.push_front(template.to_owned());
        state.uses.truncate(self.most);
    }

    /// One that waits at a template, and lives.
    fn take(&self, template: &str) -> Option<Spare> {
        let mut state = self.state();
        let alive = |s: &Spare| s.template == template && s.waiting.machine().exited().is_none();
        let index = state.waiting.iter().position(alive)?;
        Some(state.waiting.remove(index))
    }

    fn remove(&self, id: &VmId) -> Option<Spare> {
        let mut state = self.state();
        let index = state.waiting.iter().position(|s| s.id == *id)?;
        Some(state.waiting.remove(index))
    }

    /// Lets one wait; it comes back when the daemon ends.
    fn add(&self, spare: Spare) -> std::result::Result<(), Box<Spare>> {
        let mut state = self.state();
        if state.closed {
            return Err(Box::new(spare));
        }
        state.failures.remove(&spare.template);
        state.waiting.push(spare);
        Ok(())
    }

    fn note_failure(&self, template: &str) {
        *self.state().failures.entry(template.to_owned()).or_default() += 1;
    }

    /// The templates at which there should be spares, one entry for each: as the last starts were, and of the last one's
    /// what is missing. `all` are those that there are, the most recently used last.
    fn wanted(&self, all: &[Snapshot], free_memory: u64) -> Vec<String> {
        let state = self.state();
        let named: HashMap<String, &Snapshot> = all.iter().map(|t| (id_of(t), t)).collect();
        let usable = |id: &&String| {
            named.contains_key(*id) && state.failures.get(*id).is_none_or(|failures| *failures < TRIES)
        };
        let mut wanted: Vec<String> = state.uses.iter().filter(usable).cloned().collect();
        let latest = wanted.first().cloned().or_else(|| all.last().map(id_of).filter(|id| usable(&id)));
        wanted.extend(std::iter::repeat_n(latest, self.most.saturating_sub(wanted.len())).flatten());
        let mut left = free_memory / PART;
        wanted.retain(|id| {
            let memory = named.get(id).map_or(u64::MAX, |t| t.about.shape.memory.to_bytes());
            let fits = memory <= left;
            left = if fits { left - memory } else { left };
            fits
        });
        wanted
    }

    /// Takes those out that are not wanted; what is left of `wanted` is missing.
    fn settle(&self, wanted: &mut Vec<String>) -> Vec<Spare> {
        let mut state = self.state();
        let all = std::mem::take(&mut state.waiting);
        let (stay, go) = all.into_iter().partition(|spare| {
            let index = wanted.iter().position(|id| *id == spare.template);
            index.map(|index| wanted.swap_remove(index)).is_some()
        });
        state.waiting = stay;
        go
    }

    fn close(&self) -> Vec<Spare> {
        let mut state = self.state();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }
}

impl Vms {
    /// A spare for a VM that is about to begin so.
    pub(in crate::vm) async fn take_spare(&self, vm: &Vm, first: &First) -> Option<Spare> {
        let template = first.template()?;
        // Its network was made for those that reach no service of the host's.
        if vm.host_access || self.spares.of(&id_of(template)).is_empty() {
            return None;
        }
        // It has the template's memory mapped, and what has happened to that has happened to it.
        let files = match first.files() {
            Some(files) => files.clone(),
            None => self.artifacts.boot_files(&vm.kernel).await.ok()?,
        };
        template.check(vm, &files).ok()?;
        let spare = self.spares.take(&id_of(template))?;
        tracing::info!(vm_id = %spare.id, vm = %vm.name, "a spare gets its user");
        Some(spare)
    }

    /// Sees to it that there are as many as there should be, for ever.
    pub(crate) async fn keep_spares(self: Arc<Self>) {
        if self.spares.most == 0 || !self.config.warm.value {
            return;
        }
        loop {
            self.refill().await;
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = self.shelf.changed.notified() => {}
                () = tokio::time::sleep(TICK) => {}
            }
            // Whoever has just been given one is at work: on a small host another one would take its time from them.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn refill(self: &Arc<Self>) {
        loop {
            let all = self.shelf.all();
            let mut missing = self.spares.wanted(&all, free_memory());
            for spare in self.spares.settle(&mut missing) {
                self.end_spare(spare).await;
            }
            let next = missing.first().and_then(|id| all.into_iter().find(|t| id_of(t) == *id));
            let Some(template) = next.filter(|_| !self.shutdown.is_cancelled()) else { return };
            let id = id_of(&template);
            let operations = self.operations.clone();
            let made = operations.run("spare", &id, |op| self.make_spare(op, template)).await;
            if let Err(error) = made {
                tracing::warn!(template = id, %error, "no spare was made");
                self.spares.note_failure(&id);
            }
        }
    }

    async fn make_spare(self: &Arc<Self>, op: Op, template: Snapshot) -> Result<()> {
        self.enough_disk()?;
        let vm = spare_of(&template.about)?;
        let id = vm.id.clone();
        let lock = self.lock(&op, &id).await?;
        let made = async {
            op.check()?;
            let reserve = async { Ok(self.store.insert_vm(&vm)?) };
            self.step(&op, &id, "reserve", reserve).await?;
            let mut start = Start::new(&op, vm, Origin::Restore(template.clone()), Purpose::Spare);
            self.run_steps(&mut start).await?;
            self.step(&op, &id, "rehearse", start.rehearse()).await?;
            let ready =
                async { start.into_waiting().ok_or_else(|| Error::internal("a spare without a machine")) };
            self.step(&op, &id, "ready", ready).await
        };
        let waiting = match made.await {
            Ok(waiting) => waiting,
            Err(error) => {
                self.delete_locked(&op, &id, lock).await?;
                return Err(error);
            }
        };
        let machine = waiting.machine().clone();
        let spare = Spare { id: id.clone(), template: id_of(&template), waiting, lock };
        if let Err(spare) = self.spares.add(spare) {
            self.end_spare(*spare).await;
            return Err(crate::op::cancelled());
        }
        let vms = self.clone();
        tokio::spawn(async move {
            machine.wait().await;
            if let Some(spare) = vms.spares.remove(&id) {
                tracing::warn!(vm_id = %id, "a spare ended while it waited");
                vms.end_spare(spare).await;
                vms.shelf.changed.notify_one();
            }
        });
        Ok(())
    }

    async fn end_spare(self: &Arc<Self>, spare: Spare) {
        let op = self.operations.unlisted("spare");
        if let Err(error) = self.delete_locked(&op, &spare.id, spare.lock).await {
            tracing::warn!(vm_id = %spare.id, %error, "a spare stays");
        }
    }

    /// Ends all, for the daemon does: nobody would be there to give them away.
    pub(crate) async fn end_spares(self: &Arc<Self>) {
        let all = self.spares.close().into_iter().map(|spare| self.end_spare(spare));
        futures_util::future::join_all(all).await;
    }
}

/// The record of one that will wait.
fn spare_of(about: &About) -> Result<Vm> {
    let id = VmId::from_random(random_bytes());
    Ok(Vm {
        name: format!("spare-{id}").parse::<VmName>()?,
        id,
        state: VmState::Created,
        driver: about.driver,
        accel: Some(about.accel),
        image: about.image.clone(),
        image_digest: about.image_digest.clone(),
        kernel: about.kernel.clone(),
        shape: about.shape,
        work_disk: about.work_disk,
        system_generation: 0,
        work_generation: 0,
        parent: None,
        network: about.network,
        host_access: false,
        ephemeral: false,
        unfinished: Some(Unfinished::Spare),
        workspace: None,
        created_at: Timestamp::now(),
        started_at: None,
        boot: None,
        last_error: None,
    })
}

/// What of the host's memory can be had without taking it from anybody, bytes.
fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
