//! Prepare as an operation: a table of steps, each a fault point. Whatever happens between two of them, no half copy is
//! shown as a workspace, and the next prepare makes it whole.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use banger_channel::Session;
use banger_model::{ByteString, Copying, Error, ErrorCode, Result, Vm, VmId, Workspace};
use banger_protocol::agent::Place;
use banger_protocol::api::{PrepareRequest, Prepared};
use banger_workspace::capture::Manifest;

use super::Workspaces;
use super::prepare::{How, Packed};
use super::update::{self, Guest};
use crate::artifacts::blocking;
use crate::daemon::Daemon;
use crate::op::Op;
use crate::vm::Vms;

/// The steps, in order.
pub(crate) const STEPS: [&str; 5] = ["pack", "compare", "mark", "send", "record"];

/// Copies a repository into a running VM, or brings the copy that is there up to date.
///
/// # Errors
/// `conflict` with the names of files that the guest changed too, unless `force`; `busy` while another copy is made;
/// what the steps say.
pub(crate) async fn prepare(
    vms: &Arc<Vms>,
    workspaces: &Workspaces,
    op: &Op,
    reference: &str,
    request: PrepareRequest,
    force: bool,
) -> Result<Prepared> {
    let (vm, live) = vms.running(reference)?;
    op.about(&vm.name);
    let _turn = Turn::take(workspaces, &vm)?;
    let (vm, _) = vms.running(vm.id.as_str())?;
    let agent = live.agent_for(op).await?;
    let vm = workspaces.settled(op, vm, &agent).await?;
    let job = Job { vms, workspaces, op, vm: &vm, agent: &agent, request, force };
    job.run().await
}

/// Brings a VM's workspace up to date, as it was prepared.
///
/// # Errors
/// `invalid_argument` when the VM has none; as [`prepare`].
pub(crate) async fn refresh(daemon: &Arc<Daemon>, op: &Op, reference: &str, force: bool) -> Result<Prepared> {
    let vm = daemon.vms.find(reference)?;
    let file = daemon.workspaces.manifest(&vm.id);
    let has_one = vm.workspace.is_some();
    let manifest = blocking(move || Ok(Manifest::load(&file).filter(|_| has_one))).await?;
    let Some(manifest) = manifest else {
        return Err(Error::invalid(format!("VM '{}' has no workspace to bring up to date", vm.name))
            .with_hint(format!("copy a repository in: 'banger vm workspace prepare {} PATH'", vm.name)));
    };
    let request = manifest.request().clone();
    prepare(&daemon.vms, &daemon.workspaces, op, reference, request, force).await
}

impl Workspaces {
    /// Finds out how far a copy came that was being brought up to date when its daemon or its stream ended: the guest has
    /// the one or the other, never half. The caller must hold the VM's [`Turn`].
    ///
    /// # Errors
    /// A guest that cannot be asked, a failing disk.
    pub(super) async fn settled(&self, op: &Op, vm: Vm, agent: &Session) -> Result<Vm> {
        let Some(there) = vm.workspace.clone().filter(|w| w.unfinished == Some(Copying::Update)) else {
            return Ok(vm);
        };
        let (pending, current) = (self.pending(&vm.id), self.manifest(&vm.id));
        let file = pending.clone();
        let mut now = Workspace { unfinished: None, ..there };
        if let Some(new) = blocking(move || Ok(Manifest::load(&file))).await? {
            let name = update::name(op, agent, &now.guest_path).await?;
            if name.is_some() && name == new.name().map(ByteString::from) {
                let (base, branch) = new.start();
                now.base_commit = base.to_owned();
                now.branch = branch.map(str::to_owned);
                (now.mode, now.readonly) = (new.mode(), new.request().readonly);
                blocking(move || Ok(new.keep(&current)?)).await?;
            }
        }
        // What is left of it names a copy that nobody has.
        let _ = std::fs::remove_file(pending);
        self.restore(&vm.id, Some(now.clone()))?;
        Ok(Vm { workspace: Some(now), ..vm })
    }

    /// The same for who has no turn: while another has it, what is on record is as true as anything.
    pub(super) async fn settled_in_turn(&self, op: &Op, vm: Vm, agent: &Session) -> Result<Vm> {
        match Turn::take(self, &vm) {
            Ok(_turn) => self.settled(op, vm, agent).await,
            Err(_) => Ok(vm),
        }
    }
}

struct Job<'a> {
    vms: &'a Arc<Vms>,
    workspaces: &'a Workspaces,
    op: &'a Op,
    vm: &'a Vm,
    agent: &'a Session,
    request: PrepareRequest,
    force: bool,
}

impl Job<'_> {
    async fn run(self) -> Result<Prepared> {
        let (workspaces, id, before) = (self.workspaces, &self.vm.id, self.vm.workspace.clone());
        let packed = self.step("pack", self.pack()).await?;
        let (mut packed, how) = self.step("compare", self.compare(packed)).await?;
        if let How::Update { keep, .. } = &how {
            packed.capture.keep_indexes(keep.clone());
        }
        let copying = if matches!(how, How::Update { .. }) { Copying::Update } else { Copying::Anew };
        let place = packed.capture.plan().guest_path.clone();
        let marked = self.step("mark", workspaces.mark(id, packed.capture.plan(), copying)).await;
        if let Err(error) = marked {
            workspaces.restore(id, before)?;
            return Err(error);
        }
        let sent = self.step("send", workspaces.send(self.op, id, self.agent, packed, how)).await;
        let recorded = match sent {
            Ok(sent) => self.step("record", workspaces.record(id, sent)).await,
            Err(error) if error.code == ErrorCode::AlreadyExists => {
                // Nothing was touched.
                workspaces.restore(id, before)?;
                return Err(error);
            }
            Err(error) => Err(error),
        };
        // One that was to be brought up to date is whole, before or after: the next who comes finds out.
        if recorded.is_err() && copying == Copying::Anew {
            let hide = |w: Workspace| Workspace { unfinished: Some(copying), ..w };
            let kept = before.map(|w| if w.guest_path == place { hide(w) } else { w });
            workspaces.restore(id, kept)?;
        }
        recorded
    }

    async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.vms.step(self.op, &self.vm.id, name, work).await
    }

    async fn pack(&self) -> Result<Packed> {
        self.workspaces.pack(self.op, &self.wish(), self.base().await?, false).await
    }

    /// Whether the record tells of a copy that was whole once.
    fn known(&self) -> Option<&Workspace> {
        self.vm.workspace.as_ref().filter(|w| w.unfinished != Some(Copying::Anew))
    }

    /// What the guest has, as far as it is known.
    async fn base(&self) -> Result<Option<Manifest>> {
        let (file, known) = (self.workspaces.manifest(&self.vm.id), self.known().is_some());
        blocking(move || Ok(Manifest::load(&file).filter(|_| known))).await
    }

    /// What is asked for; of what is not, place and mode stay as they are.
    fn wish(&self) -> PrepareRequest {
        let mut request = self.request.clone();
        if let Some(there) = self.known()
            && request.guest_path.as_ref().is_none_or(|path| *path == there.guest_path)
        {
            request.guest_path.get_or_insert_with(|| there.guest_path.clone());
            request.mode.get_or_insert(there.mode);
        }
        request
    }

    /// What is in the guest, and how the copy comes to it.
    async fn compare(&self, packed: Packed) -> Result<(Packed, How)> {
        let Some(changes) = packed.capture.changes() else {
            let here = &packed.capture.plan().guest_path;
            let replace = self.force || self.workspaces.was_begun(&self.vm.id, here);
            return Ok((packed, How::Anew { replace }));
        };
        let plan = packed.capture.plan();
        let guest = update::ask(self.op, self.agent, plan, changes).await?;
        match guest.place() {
            Place::Copy => {}
            Place::Empty => {
                self.op.notice(format!(
                    "nothing is left at {} in VM '{}': copying all of it",
                    plan.guest_path, self.vm.name
                ));
                drop(packed);
                let whole = self.workspaces.pack(self.op, &self.wish(), None, false).await?;
                return Ok((whole, How::Anew { replace: false }));
            }
            Place::Other => {
                let message = format!(
                    "{} in VM '{}' is no copy of a repository any more",
                    plan.guest_path, self.vm.name
                );
                return Err(Error::new(ErrorCode::AlreadyExists, message)
                    .with_hint("move it away in the guest, or give another place with --guest-path"));
            }
        }
        // Without what was sent, new objects alone would be a broken repository.
        let packed = if guest.lost_packs() {
            drop(packed);
            self.workspaces.pack(self.op, &self.wish(), self.base().await?, true).await?
        } else {
            packed
        };
        let (remove, keep) = self.judge(guest, &packed).await?;
        Ok((packed, How::Update { remove, keep }))
    }

    /// What is to be removed, and which indexes stay, when nothing of the guest's stands against it.
    async fn judge(&self, guest: Guest, packed: &Packed) -> Result<(Vec<ByteString>, Vec<usize>)> {
        let (plan, changes) = (packed.capture.plan(), packed.capture.changes().cloned().unwrap_or_default());
        let (source, base) = (plan.source_path.clone(), (plan.branch.clone(), plan.base_commit.clone()));
        let (name, force) = (self.vm.name.to_string(), self.force);
        blocking(move || guest.judge(&source, &changes, &base, &name, force)).await
    }
}

/// One at a time: a copy into a VM, or what is held against such a copy.
pub(super) struct Turn<'a> {
    workspaces: &'a Workspaces,
    id: VmId,
}

impl<'a> Turn<'a> {
    pub(super) fn take(workspaces: &'a Workspaces, vm: &Vm) -> Result<Self> {
        if !Self::all(workspaces).insert(vm.id.clone()) {
            return Err(Error::new(
                ErrorCode::Busy,
                format!("something is being copied into or out of VM '{}' already", vm.name),
            )
            .with_hint("wait for it: 'banger operation list'"));
        }
        Ok(Self { workspaces, id: vm.id.clone() })
    }

    fn all(workspaces: &Workspaces) -> std::sync::MutexGuard<'_, HashSet<VmId>> {
        workspaces.copying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        Self::all(self.workspaces).remove(&self.id);
    }
}
