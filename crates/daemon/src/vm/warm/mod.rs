//! Warm start: a new VM goes on from a template of its shape instead of booting.
//!
//! | file | part |
//! |---|---|
//! | `shelf` | the directory of templates: found, published, dropped, kept within a budget |
//! | `builder` | a template of a shape, made in the background from a VM that nobody ever used |
//! | `spares` | machines that were restored from templates before anybody asked for them |
//! | `saved` | templates that somebody saved, and what users see of all |
//!
//! Must never let a template that cannot be used keep a VM from starting, nor put anything of a user's into one that
//! was not saved by them.

mod builder;
mod saved;
mod shelf;
mod spares;

use std::sync::Arc;

use banger_image::kernel::BootFiles;
use banger_model::{BootKind, Error, ErrorCode, Result, Vm};
use banger_protocol::api::CreateVm;

pub(crate) use shelf::{Shelf, needs};
pub(crate) use spares::Spares;

use super::snapshot::{About, Snapshot};
use super::start::{Origin, Waiting};
use super::{VmLock, Vms};
use crate::op::Op;

pub(super) use builder::steps;
pub(super) use saved::steps as save_steps;
pub(super) use spares::steps as spare_steps;

/// What a VM's first start begins with.
#[derive(Debug)]
pub(super) enum First {
    /// The kernel's first instruction, and nobody wants a template of it.
    Cold,
    /// The template of its shape if there is one, else one is made afterwards.
    Made(Box<Made>),
    /// One that somebody saved.
    Saved(Box<Snapshot>),
}

impl First {
    /// What it goes on from.
    pub(super) fn template(&self) -> Option<&Snapshot> {
        match self {
            Self::Cold => None,
            Self::Made(made) => made.template.as_ref(),
            Self::Saved(template) => Some(template),
        }
    }

    /// What it would boot from, where that was looked for.
    fn files(&self) -> Option<&BootFiles> {
        match self {
            Self::Made(made) => Some(&made.files),
            Self::Cold | Self::Saved(_) => None,
        }
    }
}

/// What is known of a shape.
#[derive(Debug)]
pub(super) struct Made {
    key: String,
    about: About,
    template: Option<Snapshot>,
    files: BootFiles,
}

impl Vms {
    /// What the first start of a VM begins with.
    pub(super) async fn first(&self, vm: &Vm, saved: Option<Snapshot>, cold: bool) -> First {
        if let Some(saved) = saved {
            self.spares.note_use(&shelf::id_of(&saved));
            return First::Saved(Box::new(saved));
        }
        // What is on a work disk is not in a template.
        if cold || !self.config.warm.value || vm.work_disk.is_some() {
            return First::Cold;
        }
        match self.made_for(vm).await {
            Ok(made) => {
                self.spares.note_use(&made.key);
                First::Made(Box::new(made))
            }
            Err(error) => {
                tracing::debug!(%error, "no template for want of a driver or a kernel; the start says more");
                First::Cold
            }
        }
    }

    async fn made_for(&self, vm: &Vm) -> Result<Made> {
        let files = self.artifacts.boot_files(&vm.kernel).await?;
        let vmm = self.driver(vm.driver)?.capabilities().await?;
        if !vmm.snapshot || !vmm.restore {
            return Err(Error::internal(format!("the driver '{}' has no snapshots here", vm.driver)));
        }
        let about = About::of(vm, &files);
        let key = about.key(&vmm.version);
        let template = self.shelf.find(&key);
        Ok(Made { key, about, template, files })
    }

    /// The first start of a VM; it has the id of the spare that is there for it.
    pub(super) async fn start_first(
        self: &Arc<Self>,
        op: &Op,
        vm: Vm,
        lock: &VmLock,
        first: First,
        spare: Option<Waiting>,
    ) -> Result<Vm> {
        match first {
            First::Cold => Box::pin(self.start_locked(op, vm, lock)).await,
            First::Saved(template) => Box::pin(self.start_warm(op, vm, lock, *template, None, spare)).await,
            First::Made(made) => {
                let like = vm.clone();
                let started = match made.template {
                    Some(template) => {
                        let files = Some(made.files);
                        Box::pin(self.start_warm(op, vm, lock, template, files, spare)).await?
                    }
                    None => {
                        self.drop_stale(op, &made.about);
                        Box::pin(self.start_locked(op, vm, lock)).await?
                    }
                };
                if started.boot.is_some_and(|boot| boot.kind == BootKind::Cold) {
                    self.make_template_later(made.key, like);
                }
                Ok(started)
            }
        }
    }

    /// Starts a VM from a template: by the spare that waits for it, else by restoring it.
    async fn start_warm(
        self: &Arc<Self>,
        op: &Op,
        vm: Vm,
        lock: &VmLock,
        template: Snapshot,
        files: Option<BootFiles>,
        spare: Option<Waiting>,
    ) -> Result<Vm> {
        if let Some(spare) = spare {
            let started = Box::pin(self.start_waiting(op, vm.clone(), spare)).await;
            // Time for another one.
            self.shelf.changed.notify_one();
            match started {
                Err(error) if error.code != ErrorCode::Cancelled => {
                    tracing::warn!(vm = %vm.name, %error, "a spare could not be used: its template is restored");
                }
                started => return started,
            }
        }
        Box::pin(self.start_from(op, vm, lock, Origin::Template(template), files)).await
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
    fn drop_stale(&self, op: &Op, wanted: &About) {
        for template in self.shelf.made().into_iter().filter(|t| t.about.asked_alike(wanted)) {
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
            let id = shelf::id_of(&template);
            if current.await.ok().as_ref() != Some(&id) {
                tracing::info!(
                    template = id,
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
