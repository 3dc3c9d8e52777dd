//! Warm start: a new VM goes on from a template of its shape instead of booting.
//!
//! | file | part |
//! |---|---|
//! | `shelf` | the directory of templates: found, published, dropped, kept within a budget |
//! | `builder` | a template of a shape, made in the background from a VM that nobody ever used |
//! | `saved` | templates that somebody saved, and what users see of all |
//!
//! Must never let a template that cannot be used keep a VM from starting, nor put anything of a user's into one that
//! was not saved by them.

mod builder;
mod saved;
mod shelf;

use std::sync::Arc;

use banger_model::{Error, Result, Vm};
use banger_protocol::api::CreateVm;

pub(crate) use shelf::{Shelf, needs};

use super::snapshot::{About, Snapshot};
use super::start::Origin;
use super::{VmLock, Vms};
use crate::op::Op;

pub(super) use builder::steps;
pub(super) use saved::steps as save_steps;

impl Vms {
    /// The first start of a VM: from the template of its shape, or from the kernel's first instruction, and then such a
    /// template is made in the background. With `cold` neither.
    pub(super) async fn start_first(
        self: &Arc<Self>,
        op: &Op,
        vm: Vm,
        lock: &VmLock,
        cold: bool,
    ) -> Result<Vm> {
        // What is on a work disk is not in a template.
        if cold || !self.config.warm.value || vm.work_disk.is_some() {
            return self.start_locked(op, vm, lock).await;
        }
        let key = match self.template_key(&vm).await {
            Ok(key) => key,
            Err(error) => {
                tracing::debug!(%error, "no template for want of a driver or a kernel; the start says more");
                return self.start_locked(op, vm, lock).await;
            }
        };
        if let Some(template) = self.shelf.find(&key) {
            let started = self.start_from(op, vm.clone(), lock, Origin::Template(template)).await?;
            if started.boot.is_some_and(|boot| boot.kind == banger_model::BootKind::Cold) {
                self.make_template_later(key, vm);
            }
            return Ok(started);
        }
        self.drop_stale(op, &vm).await;
        let started = self.start_locked(op, vm.clone(), lock).await?;
        self.make_template_later(key, vm);
        Ok(started)
    }

    /// What the template for such a VM is called.
    async fn template_key(&self, vm: &Vm) -> Result<String> {
        let files = self.artifacts.boot_files(&vm.kernel).await?;
        let vmm = self.driver(vm.driver)?.capabilities().await?;
        if !vmm.snapshot || !vmm.restore {
            return Err(Error::internal(format!("the driver '{}' has no snapshots here", vm.driver)));
        }
        Ok(About::of(vm, &files).key(&vmm.version))
    }

    /// Where a VM begins whose template could not be gone on from: one that was made by itself is made anew, one that
    /// somebody saved still has its disks.
    pub(super) fn without_template(&self, op: &Op, template: Snapshot, why: &Error) -> Origin {
        match shelf::saved_name(template.dir()) {
            None => {
                op.notice(format!("booting, for the template could not be used: {why}"));
                self.shelf.drop_template(template.dir());
                Origin::Boot
            }
            Some(name) => {
                op.notice(format!(
                    "booting from the disk of template '{name}', for its memory could not be used: {why}"
                ));
                Origin::BootFrom(template)
            }
        }
    }

    /// Drops the templates that would have been this VM's, had nothing changed since they were made.
    async fn drop_stale(&self, op: &Op, vm: &Vm) {
        let Ok(files) = self.artifacts.boot_files(&vm.kernel).await else { return };
        let wanted = About::of(vm, &files);
        for template in self.shelf.made().into_iter().filter(|t| t.about.asked_alike(&wanted)) {
            op.notice("booting, for image, kernel, banger or machine monitor have changed since the template was made");
            self.shelf.drop_template(template.dir());
        }
    }

    /// Drops the templates that nothing can use any more.
    pub(crate) async fn drop_useless_templates(&self) {
        for template in self.shelf.made() {
            let about = &template.about;
            let current = async {
                let files = self.artifacts.boot_files(&about.kernel).await?;
                let image = self.artifacts.image(about.image.as_str())?;
                let vmm = self.driver(about.driver)?.capabilities().await?;
                Ok::<_, Error>(about.renewed(&files, image.digest).key(&vmm.version))
            };
            let name = template.dir().file_name().map(|name| name.to_string_lossy().into_owned());
            if current.await.ok() != name {
                tracing::info!(
                    template = name,
                    "image, kernel, banger or machine monitor have changed: dropped"
                );
                self.shelf.drop_template(template.dir());
            }
        }
    }

    /// The saved template that a request names, and the request with all that it says.
    ///
    /// # Errors
    /// `not_found`; `invalid_argument` when the request says something else.
    pub(super) fn with_saved_template(&self, request: CreateVm) -> Result<(CreateVm, Option<Snapshot>)> {
        match &request.template {
            None => Ok((request, None)),
            Some(name) => {
                let template = self.shelf.saved(name)?;
                let filled = saved::fill(request, &template.about)?;
                Ok((filled, Some(template)))
            }
        }
    }
}
