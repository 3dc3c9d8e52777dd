//! Create: a VM from nothing. All or nothing: when any part fails, no VM is left.

use std::sync::Arc;

use banger_model::{Error, MachineShape, NetworkMode, Result, Unfinished, Vm, VmId, VmName, VmState};
use banger_protocol::api::{CreateVm, PrepareRequest};
use jiff::Timestamp;

use super::Vms;
use crate::config::Origin;
use crate::op::{Op, random_bytes};
use crate::workspace::{Workspaces, prepare};

/// The names of a create's steps.
pub(super) fn steps() -> Vec<String> {
    let (first, last) = (["reserve"], ["workspace", "finish"]);
    let start = super::start::step_names();
    first.map(str::to_owned).into_iter().chain(start).chain(last.map(str::to_owned)).collect()
}

impl Vms {
    /// Makes a VM, and unless told otherwise starts it and copies a repository in.
    ///
    /// # Errors
    /// Whatever the first failing part says; nothing is left then.
    pub(crate) async fn create(
        self: &Arc<Self>,
        op: &Op,
        workspaces: &Workspaces,
        request: CreateVm,
    ) -> Result<Vm> {
        let (request, template) = self.with_saved_template(request)?;
        let mut shape = self.check(&request)?;
        // What can be refused is refused before anything is built or booted.
        if let Some(workspace) = &request.workspace {
            workspaces.preflight(workspace).await?;
        }
        let mut image = request.image.clone().unwrap_or_else(|| self.config.image.value.clone());
        if template.is_none() {
            image = self.artifacts.image_name(&image)?;
        }
        let driver = request.driver.unwrap_or_else(|| self.config.driver_of(&image));
        let network = request.network.unwrap_or(self.config.network.value);
        let choice = self.choose(driver, request.accel, network).await?;
        if let Some(notice) = choice.notice {
            op.notice(notice);
        }
        if request.vcpu.is_none()
            && self.config.vcpu.origin == Origin::Builtin
            && self.vcpus_take_turns(choice.driver, choice.accel).await?
        {
            shape.vcpu = 1;
        }
        let kernel = request.kernel.clone().unwrap_or_else(|| self.config.kernel.value.clone());
        let (wants_image, wants_kernel) =
            (template.is_none() && !self.artifacts.has_image(&image)?, !self.artifacts.has_kernel(&kernel)?);
        self.artifacts.check_programs(wants_image, wants_kernel)?;
        let ensure_image = async {
            // A template's is the one it was booted from, whatever the name means now.
            Ok(match &template {
                Some(template) => (template.about.image.clone(), template.about.image_digest.clone()),
                None => {
                    let image = self.artifacts.ensure_image(op, &image).await?;
                    (image.name, image.digest)
                }
            })
        };
        // The image takes longer, and its progress is the one that says how long.
        let beside = if wants_image { op.beside() } else { op.clone() };
        let ensure_kernel = self.artifacts.ensure_kernel(&beside, &kernel);
        let (image, kernel) = tokio::try_join!(ensure_image, ensure_kernel)?;
        op.check()?;
        let mut vm = Vm {
            id: VmId::from_random(random_bytes()),
            name: request
                .name
                .clone()
                .unwrap_or_else(|| VmName::generate(u64::from_le_bytes(random_bytes()))),
            state: VmState::Created,
            driver: choice.driver,
            accel: Some(choice.accel),
            image: image.0,
            image_digest: image.1,
            kernel: kernel.name,
            shape,
            work_disk: request.work_disk,
            system_generation: 0,
            work_generation: 0,
            parent: None,
            network,
            host_access: request.host_access,
            ephemeral: request.rm,
            unfinished: Some(Unfinished::Creating),
            workspace: template.as_ref().and_then(|t| t.about.workspace.clone()),
            created_at: Timestamp::now(),
            started_at: None,
            boot: None,
            last_error: None,
        };
        let first = self.first(&vm, template, request.cold || request.no_start).await;
        let (lock, spare) = match self.take_spare(&vm, &first).await {
            Some(spare) => {
                vm.id = spare.id;
                (spare.lock, Some(spare.waiting))
            }
            None => (self.lock(op, &vm.id).await?, None),
        };
        op.about(&vm.name);
        let (id, network, has_one) = (vm.id.clone(), vm.network, vm.workspace.is_some());
        let made = async {
            let reserve = async {
                if spare.is_some() {
                    self.store.modify_vm(&id, |spare| spare.clone_from(&vm))?;
                } else {
                    self.store.insert_vm(&vm)?;
                }
                tracing::info!(vm_id = %vm.id, vm = %vm.name, ?network, "VM reserved");
                op.changed(&vm);
                Ok(())
            };
            self.step(op, &id, "reserve", reserve).await?;
            if request.no_start {
                super::start::make_dir(&self.dirs.state.vm(&id))?;
            } else {
                let start = async {
                    if let (Some(_), Some(template)) = (&vm.workspace, first.template()) {
                        let to = self.dirs.state.vm(&id);
                        super::start::make_dir(&to)?;
                        super::capture::copy_workspace(template.dir(), &to)?;
                    }
                    // On the heap, as whatever may be one of several starts: together they are more than a stack takes.
                    Box::pin(self.start_first(op, vm, &lock, first, spare)).await
                };
                match request.workspace.clone() {
                    Some(again) if has_one => self.start_and_update(op, start, workspaces, again).await?,
                    first => self.start_with(op, start, workspaces, first.as_ref()).await?,
                }
            }
            let finish = async { self.change(op, &id, |vm| vm.unfinished = None) };
            self.step(op, &id, "finish", finish).await
        };
        if let Err(mut error) = made.await {
            if let Err(also) = self.delete_locked(op, &id, lock).await {
                error.message = format!("{}; and the VM could not be removed: {also}", error.message);
            }
            return Err(error);
        }
        self.find(id.as_str())
    }

    /// Starts it, packing the repository meanwhile, and sends that in.
    async fn start_with(
        self: &Arc<Self>,
        op: &Op,
        start: impl Future<Output = Result<Vm>>,
        workspaces: &Workspaces,
        workspace: Option<&PrepareRequest>,
    ) -> Result<()> {
        let (vm, packed) = workspaces.capture_while(op, workspace, start).await?;
        let send = async {
            let Some(packed) = packed else { return Ok(()) };
            let began = std::time::Instant::now();
            let (_, live) = self.running(vm.id.as_str())?;
            workspaces.copy_first(op, &vm.id, &live.agent_for(op).await?, packed).await?;
            op.timed("workspace", began.elapsed());
            Ok(())
        };
        self.step(op, &vm.id, "workspace", send).await
    }

    /// Starts it from a template that has a workspace, and brings that up to date: a second copy, as into any VM.
    async fn start_and_update(
        self: &Arc<Self>,
        op: &Op,
        start: impl Future<Output = Result<Vm>>,
        workspaces: &Workspaces,
        request: PrepareRequest,
    ) -> Result<()> {
        let vm = start.await?;
        let again = async {
            Box::pin(prepare(self, workspaces, op, vm.id.as_str(), request, false)).await?;
            Ok(())
        };
        self.step(op, &vm.id, "workspace", again).await
    }

    /// Checks everything about a request that needs no work.
    fn check(&self, request: &CreateVm) -> Result<MachineShape> {
        let shape = MachineShape {
            vcpu: request.vcpu.unwrap_or(self.config.vcpu.value),
            memory: request.memory.unwrap_or(self.config.memory.value),
            disk: request.disk_size.unwrap_or(self.config.disk.value),
        };
        shape.validate()?;
        request.work_disk.map(super::disk::check_size).transpose()?;
        let network = request.network.unwrap_or(self.config.network.value);
        if network == NetworkMode::Bridge {
            return Err(super::start::no_bridge());
        }
        if request.nat {
            return Err(Error::invalid(format!("--nat means nothing with '--network {network}'"))
                .with_hint("it is for '--network bridge'; user networking reaches the outside by itself"));
        }
        if request.host_access && network != NetworkMode::User {
            return Err(Error::invalid(format!("--host-access means nothing with '--network {network}'"))
                .with_hint("it is for '--network user'"));
        }
        if request.no_start && (request.rm || request.workspace.is_some()) {
            return Err(Error::invalid("--no-start goes neither with --rm nor with a repository")
                .with_hint("start it later, then 'banger vm workspace prepare'"));
        }
        if request.no_start && request.cold {
            return Err(Error::invalid("--cold says how a VM starts, and goes not with --no-start"));
        }
        self.fits(shape)?;
        if let Some(name) = &request.name
            && self.store.vms()?.iter().any(|vm| vm.name == *name)
        {
            return Err(banger_store::StoreError::NameTaken(name.to_string()).into());
        }
        self.enough_disk().map(|()| shape)
    }

    /// Refuses more than the host has.
    pub(super) fn fits(&self, shape: MachineShape) -> Result<()> {
        if shape.memory.0 <= self.host.memory.0 {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "{} of memory are more than the host's {}",
            shape.memory, self.host.memory
        ))
        .with_hint("give it less with --memory"))
    }

    /// A VM needs little at first, but a full disk would tear its first writes.
    pub(super) fn enough_disk(&self) -> Result<()> {
        const LEAST: u64 = 256 << 20;
        let path = self.dirs.state.path();
        let stat = rustix::fs::statvfs(path)
            .map_err(|e| super::start::failed("ask for free space in", path, &e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if free < LEAST {
            return Err(Error::unavailable(format!(
                "only {} are free in {}, and a VM needs at least {}",
                banger_model::Bytes(free),
                path.display(),
                banger_model::Bytes(LEAST)
            ))
            .with_hint("free some space, or set BANGER_STATE_DIR to a larger disk"));
        }
        Ok(())
    }
}
