//! Fork: VMs that go on from the present moment of another one, each as a machine of its own. Names are taken before
//! anything is captured. All or nothing for each child; the others are not affected by one that fails. Must never keep
//! anything of a parent but what its children have mapped: the captured directory is gone when the last has begun.

use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, Parent, Result, Unfinished, Vm, VmId, VmName, VmState};
use banger_protocol::api::ForkVm;
use futures_util::StreamExt as _;
use jiff::Timestamp;

use super::capture::{self, Captured, Extent, copy_workspace};
use super::snapshot::Snapshot;
use super::start::{Origin, RESTORED_STEPS, make_dir};
use super::teardown::remove_tree;
use super::{VmLock, Vms};
use crate::artifacts::blocking;
use crate::op::{Op, random_bytes};

/// The most children of one fork.
const MOST: u32 = 64;
/// How many begin at once, at the least.
const AT_ONCE: usize = 2;

/// The names of its steps that are not those of any start.
pub(super) fn steps() -> Vec<String> {
    let own = ["reserve"].into_iter().chain(capture::STEPS).chain(RESTORED_STEPS);
    own.chain(["born", "sweep"]).map(str::to_owned).collect()
}

/// What a fork came to.
#[derive(Debug)]
pub(crate) struct Forked {
    /// The children that run.
    pub(crate) children: Vec<Vm>,
    /// Why others do not.
    pub(crate) failures: Vec<Error>,
    /// How long the parent's processes stood still.
    pub(crate) still: Duration,
}

impl Vms {
    /// Lets new VMs go on from where this one is.
    ///
    /// # Errors
    /// `not_running`, `already_exists`, what a capture says; what the first child says when there is none that runs.
    pub(crate) async fn fork(self: &Arc<Self>, op: &Op, reference: &str, request: &ForkVm) -> Result<Forked> {
        let count = request.count.unwrap_or(1);
        if count == 0 || count > MOST {
            return Err(Error::invalid(format!("{count} children are not between 1 and {MOST}")));
        }
        let (vm, live, lock) = self.up(op, reference).await?;
        self.enough_disk()?;
        let names = names(request.name.as_ref(), count)?;
        let children = self.reserve(op, &vm, names).await?;
        let dir = self.dirs.state.scratch().join(format!("fork-{}", op.id()));
        let captured = async {
            op.check()?;
            make_dir(&dir)?;
            self.take(op, &vm, &live, &dir, Extent::All).await
        };
        let born = match captured.await {
            Ok(captured) => {
                // What its children need from here on is not the parent's any more.
                let release = async {
                    let released = self.release(op, &live, &captured).await;
                    drop(lock);
                    released
                };
                let (released, mut forked) = tokio::join!(release, self.bear_all(op, children, &captured));
                match released {
                    Ok(still) => forked.still = still,
                    Err(error) => forked.failures.push(error),
                }
                Ok(forked)
            }
            Err(error) => {
                drop(lock);
                Err(self.unreserve(op, children, error).await)
            }
        };
        let swept = self.step(op, &vm.id, "sweep", async { remove_tree(&dir) }).await;
        let mut forked = born?;
        match swept {
            Ok(()) => {}
            Err(error) if dir.exists() => {
                op.notice(format!("what was captured stays until the daemon starts again: {error}"));
            }
            Err(error) => tracing::warn!(%error, "a fork's last step"),
        }
        if forked.children.is_empty() {
            let mut errors = std::mem::take(&mut forked.failures).into_iter();
            let mut first = errors.next().unwrap_or_else(|| Error::internal("a fork without children"));
            for also in errors {
                first.message = format!("{}; and {also}", first.message);
            }
            return Err(first);
        }
        Ok(forked)
    }

    /// Takes all names, or none.
    async fn reserve(
        self: &Arc<Self>,
        op: &Op,
        parent: &Vm,
        names: Vec<VmName>,
    ) -> Result<Vec<(Vm, VmLock)>> {
        let mut children = Vec::new();
        for name in names {
            let child = child_of(parent, name);
            let lock = self.lock(op, &child.id).await?;
            children.push((child, lock));
        }
        let mut reserved = Vec::new();
        let insert = async {
            for (child, _) in &children {
                self.store.insert_vm(child)?;
                reserved.push(child.id.clone());
                tracing::info!(vm_id = %child.id, vm = %child.name, parent = %parent.name, "VM reserved");
                op.changed(child);
            }
            Ok(())
        };
        match self.step(op, &parent.id, "reserve", insert).await {
            Ok(()) => Ok(children),
            Err(error) => {
                children.retain(|(child, _)| reserved.contains(&child.id));
                Err(self.unreserve(op, children, error).await)
            }
        }
    }

    async fn unreserve(self: &Arc<Self>, op: &Op, children: Vec<(Vm, VmLock)>, mut error: Error) -> Error {
        for (child, lock) in children {
            if let Err(also) = self.delete_locked(op, &child.id, lock).await {
                error.message =
                    format!("{}; and '{}' could not be removed: {also}", error.message, child.name);
            }
        }
        error
    }

    async fn bear_all(self: &Arc<Self>, op: &Op, children: Vec<(Vm, VmLock)>, captured: &Captured) -> Forked {
        let Captured { snapshot, vm: parent, .. } = captured;
        let at_once = std::thread::available_parallelism().map_or(AT_ONCE, |n| n.get().max(AT_ONCE));
        let births = children.into_iter().map(|(child, lock)| {
            let (snapshot, workspace) = (snapshot.clone(), parent.workspace.clone());
            async move { self.bear(op, Vm { workspace, ..child }, lock, snapshot).await }
        });
        let mut forked = Forked { children: Vec::new(), failures: Vec::new(), still: Duration::ZERO };
        let mut births = futures_util::stream::iter(births).buffered(at_once);
        while let Some(born) = births.next().await {
            match born {
                Ok(child) => forked.children.push(child),
                Err(error) => forked.failures.push(error),
            }
        }
        forked
    }

    /// One child, all or nothing.
    async fn bear(self: &Arc<Self>, op: &Op, child: Vm, lock: VmLock, snapshot: Snapshot) -> Result<Vm> {
        let id = child.id.clone();
        let born = async {
            let (from, to) = (snapshot.dir().to_owned(), self.dirs.state.vm(&id));
            let workspace = child.workspace.clone();
            self.change(op, &id, |vm| vm.workspace = workspace)?;
            blocking(move || {
                make_dir(&to)?;
                copy_workspace(&from, &to)
            })
            .await?;
            self.start_from(op, child.clone(), &lock, Origin::Restore(snapshot), None).await?;
            self.finish_birth(op, &id).await
        };
        match born.await {
            Ok(vm) => Ok(vm),
            Err(mut error) => {
                error.message = format!("'{}': {}", child.name, error.message);
                Err(self.unreserve(op, vec![(child, lock)], error).await)
            }
        }
    }

    async fn finish_birth(self: &Arc<Self>, op: &Op, id: &VmId) -> Result<Vm> {
        let finish = async { self.change(op, id, |vm| vm.unfinished = None) };
        let vm = self.step(op, id, "born", finish).await?;
        vm.ok_or_else(|| Error::internal("the VM's record vanished"))
    }
}

/// The record of a child that is not born yet.
fn child_of(parent: &Vm, name: VmName) -> Vm {
    Vm {
        id: VmId::from_random(random_bytes()),
        name,
        state: VmState::Created,
        system_generation: 0,
        work_generation: 0,
        parent: Some(Parent { id: parent.id.clone(), name: parent.name.clone() }),
        ephemeral: false,
        unfinished: Some(Unfinished::Creating),
        workspace: None,
        created_at: Timestamp::now(),
        started_at: None,
        boot: None,
        last_error: None,
        ..parent.clone()
    }
}

/// The names of the children: the one that was asked for, with a number behind it when there are several.
fn names(wanted: Option<&VmName>, count: u32) -> Result<Vec<VmName>> {
    let name = |n: u32| match wanted {
        None => Ok(VmName::generate(u64::from_le_bytes(random_bytes()))),
        Some(name) if count == 1 => Ok(name.clone()),
        Some(name) => format!("{name}-{n}").parse(),
    };
    (1..=count).map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_children_have_a_number_behind_the_name() {
        let name: VmName = "idea".parse().unwrap();
        let of =
            |wanted, count| names(wanted, count).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of(Some(&name), 1), ["idea"]);
        assert_eq!(of(Some(&name), 3), ["idea-1", "idea-2", "idea-3"]);
        assert_eq!(of(None, 2).len(), 2);
        let long: VmName = "a".repeat(62).parse().unwrap();
        assert!(names(Some(&long), 2).is_err(), "63 characters are the most");
    }
}
