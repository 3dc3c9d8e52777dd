//! Making the template of a shape: a VM of its own, which nobody sees, boots in the background, stands still and is
//! written to files. After everybody else on the host's processors, one at a time, and ended at once when the daemon
//! ends. Must never delay a user's VM, nor contain anything of one.

use std::sync::Arc;
use std::time::Duration;

use banger_channel::Session;
use banger_model::{Error, ErrorCode, Result, Unfinished, Vm, VmId, VmName, VmState};
use banger_protocol::agent::{ExecSpec, Request};
use banger_vmm::{Machine, sparse};
use jiff::Timestamp;

use super::super::snapshot::{About, Snapshot};
use super::super::start::{Origin, Purpose, Start};
use super::super::{Vms, disk};
use super::shelf::UnderWay;
use crate::artifacts::blocking;
use crate::op::{Op, random_bytes};

/// How long a guest may take until all that it starts at boot has started.
const SETTLE: Duration = Duration::from_secs(180);
/// How often it is told to stand still. It gets what others leave of the processors: on a busy host a process of it may
/// wait for its disk longer than a user's would.
const TRIES: u32 = 4;
/// Waits for that, and until its network is asked nothing more about the addresses that it took (`c0`: tentative), and has
/// what was written on the disk: what each clone would do itself otherwise.
const SETTLED: &str = "if [ -d /run/systemd/system ]; then systemctl is-system-running --wait; fi
n=0; while [ $n -lt 30 ] && grep -q ' c0 ' /proc/net/if_inet6; do n=$((n+1)); sleep 0.1 || break; done; sync";

/// The names of its steps that are not those of any start or delete.
pub(in crate::vm) fn steps() -> Vec<String> {
    ["reserve", "launch", "boot", "guest_network", "settle", "snapshot", "publish"]
        .map(str::to_owned)
        .to_vec()
}

impl Vms {
    /// Sees to it that there will be a template for VMs like this one.
    pub(super) fn make_template_later(self: &Arc<Self>, key: String, like: Vm) {
        if !self.shelf.claim(&key) {
            return;
        }
        let vms = self.clone();
        tokio::spawn(async move {
            let turn = tokio::select! {
                biased;
                () = vms.shutdown.cancelled() => return,
                turn = vms.shelf.turn.lock() => turn,
            };
            // Of two VMs that began at once the first one's is for both.
            let made = if vms.shelf.find(&key).is_some() {
                Ok(())
            } else {
                let operations = vms.operations.clone();
                let name = format!("template {key}");
                // Whoever ends the daemon cancels it, and waits until nothing is left of it.
                operations.run("template", &name, |op| vms.make_template(op, &key, like)).await
            };
            drop(turn);
            if let Err(error) = &made {
                tracing::warn!(key, %error, "no template was made");
            }
            vms.shelf.release(&key, made.is_ok());
        });
    }

    async fn make_template(self: &Arc<Self>, op: Op, key: &str, like: Vm) -> Result<()> {
        let id = VmId::from_random(random_bytes());
        let vm = Vm {
            name: format!("template-{id}").parse::<VmName>()?,
            id: id.clone(),
            state: VmState::Created,
            unfinished: Some(Unfinished::Template),
            system_generation: 0,
            work_generation: 0,
            parent: None,
            host_access: false,
            ephemeral: false,
            workspace: None,
            created_at: Timestamp::now(),
            started_at: None,
            boot: None,
            last_error: None,
            ..like
        };
        let lock = self.lock(&op, &id).await?;
        let made = async {
            let reserve = async { Ok(self.store.insert_vm(&vm)?) };
            self.step(&op, &id, "reserve", reserve).await?;
            let under_way = self.boot_template(&op, vm).await?;
            let to = self.shelf.made_dir(key);
            let publish = async {
                self.shelf.publish(&under_way, &to)?;
                Ok(self.shelf.make_room(&to))
            };
            let fits = self.step(&op, &id, "publish", publish).await?;
            if fits {
                Ok(())
            } else {
                Err(Error::unavailable("it does not fit into the budget for templates"))
            }
        };
        let made = made.await;
        let gone = self.delete_locked(&op, &id, lock).await;
        self.drop_useless_templates().await;
        made.and(gone)
    }

    /// Boots a VM and writes it to a directory.
    async fn boot_template(self: &Arc<Self>, op: &Op, vm: Vm) -> Result<UnderWay> {
        let (id, dir) = (vm.id.clone(), self.dirs.state.vm(&vm.id));
        let under_way = self.shelf.begin()?;
        let mut start = Start::new(op, vm.clone(), Origin::Boot, Purpose::Template);
        self.run_steps(&mut start).await?;
        let (machine, agent, files) =
            start.take().ok_or_else(|| Error::internal("a template's VM without a machine"))?;
        let about = About::of(&vm, &files);
        let settle = self.step(op, &id, "settle", settle(&agent));
        op.or_cancelled(settle).await?;
        let snapshot = async {
            stand_still(&*machine, &agent, &under_way).await?;
            let (from, to) = (disk::system(&dir, &vm), under_way.dir.clone());
            blocking(move || {
                sparse::copy(&from, &Snapshot::system_disk(&to))?;
                about.write(&to)
            })
            .await?;
            Snapshot::flush(&under_way.dir).await
        };
        op.or_cancelled(self.step(op, &id, "snapshot", snapshot)).await?;
        Ok(under_way)
    }
}

/// Has it written where it stands still, whenever that is.
async fn stand_still(machine: &dyn Machine, agent: &Session, to: &UnderWay) -> Result<()> {
    for _ in 1..TRIES {
        match freeze_and_write(machine, agent, to).await {
            Err(error) if error.code != ErrorCode::Unavailable && machine.exited().is_none() => {
                tracing::info!(%error, "a template's guest is told again");
                settle(agent).await?;
            }
            written => return written,
        }
    }
    freeze_and_write(machine, agent, to).await
}

/// The machine stands still afterwards, for good.
async fn freeze_and_write(machine: &dyn Machine, agent: &Session, to: &UnderWay) -> Result<()> {
    let frozen = async {
        agent.call(&Request::Freeze).await?;
        Ok(())
    };
    Ok(machine.snapshot(&to.dir, Box::pin(frozen)).await?)
}

/// Waits until the guest has nothing to do any more. One that never gets there is taken as it is.
async fn settle(agent: &Session) -> Result<()> {
    let command = Request::Exec(ExecSpec::plain(&["/bin/sh", "-c", SETTLED]));
    match tokio::time::timeout(SETTLE, agent.call(&command)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => {
            tracing::info!("a template's guest is still at work; it is taken as it is");
            Ok(())
        }
    }
}
