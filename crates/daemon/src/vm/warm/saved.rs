//! Templates as users see them, and those that they save themselves.

use std::sync::Arc;

use banger_model::{DriverChoice, DriverKind, Error, NetworkMode, Result, VmId};
use banger_protocol::api::{CreateVm, PruneTemplates, PrunedTemplates, SaveTemplate, TemplateView};
use jiff::Timestamp;

use super::super::Vms;
use super::super::capture::{self, Extent};
use super::super::snapshot::{About, Snapshot};
use super::shelf::{already_there, id_of, saved_name, used_at};
use crate::op::Op;

/// The names of a save's steps.
pub(in crate::vm) fn steps() -> Vec<String> {
    capture::STEPS.into_iter().chain(["publish"]).map(str::to_owned).collect()
}

impl Vms {
    /// All templates, least recently used first.
    pub(crate) fn templates(&self) -> Vec<TemplateView> {
        let of = |template: &Snapshot| view(template, self.spares.of(&id_of(template)));
        self.shelf.all().iter().map(of).collect()
    }

    /// Keeps a VM that is up as a template. It runs on; its services, its files and its workspace are in the template.
    ///
    /// # Errors
    /// `already_exists`, `not_running`; what a capture says.
    pub(crate) async fn save_template(
        self: &Arc<Self>,
        op: &Op,
        request: &SaveTemplate,
    ) -> Result<TemplateView> {
        let to = self.shelf.saved_dir(&request.name);
        if to.exists() {
            return Err(already_there(&format!("@{}", request.name)));
        }
        let (vm, live, _lock) = self.up(op, &request.vm).await?;
        self.enough_disk()?;
        op.check()?;
        let under_way = self.shelf.begin()?;
        self.capture(op, &vm, &live, &under_way.dir, Extent::All).await?;
        op.check()?;
        let publish = async {
            Snapshot::flush(&under_way.dir).await?;
            self.shelf.publish(&under_way, &to)?;
            Ok(view(&Snapshot::open(&to)?, Vec::new()))
        };
        self.step(op, &vm.id, "publish", publish).await
    }

    /// Deletes the template with this id, or that was saved by this name. VMs that went on from it do not notice.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) fn delete_template(&self, reference: &str) -> Result<TemplateView> {
        let all = self.templates();
        let found = banger_model::resolve("template", "banger vm template list", reference, &all, |t| {
            (t.id.as_str(), t.name.as_ref().map_or("", |name| name.as_str()))
        })?;
        let dir = self.dirs.state.templates().join(&found.id);
        self.shelf.remove(&dir)?;
        self.artifacts.collect();
        Ok(found.clone())
    }

    /// Deletes all that were made by themselves, or all.
    ///
    /// # Errors
    /// `unavailable` when one cannot be removed.
    pub(crate) fn prune_templates(self: &Arc<Self>, request: &PruneTemplates) -> Result<PrunedTemplates> {
        let mut done = PrunedTemplates::default();
        for template in self.templates().into_iter().filter(|t| request.all || t.name.is_none()) {
            self.shelf.remove(&self.dirs.state.templates().join(&template.id))?;
            done.freed_bytes += template.size_bytes;
            done.deleted.push(template.id);
        }
        self.artifacts.collect();
        Ok(done)
    }
}

fn view(template: &Snapshot, spares: Vec<VmId>) -> TemplateView {
    let about = &template.about;
    let name = saved_name(template.dir()).and_then(|name| name.parse().ok());
    TemplateView {
        id: id_of(template),
        saved_from: name.is_some().then(|| about.name.clone()),
        name,
        image: about.image.clone(),
        kernel: about.kernel.clone(),
        driver: about.driver,
        accel: about.accel,
        vcpu: about.shape.vcpu,
        memory_mib: about.shape.memory.0,
        disk_bytes: about.shape.disk.0,
        network: about.network,
        size_bytes: template.size(),
        created_at: about.taken_at,
        used_at: Timestamp::try_from(used_at(template)).unwrap_or(about.taken_at),
        spares,
    }
}

/// A request with all that a template says.
///
/// # Errors
/// `invalid_argument` when it says something else already.
pub(super) fn fill(mut request: CreateVm, about: &About) -> Result<CreateVm> {
    fn one<T: PartialEq + std::fmt::Display + Clone>(
        flag: &str,
        asked: &mut Option<T>,
        has: T,
    ) -> Result<()> {
        match asked {
            Some(other) if *other != has => {
                Err(Error::invalid(format!("{flag} {other} does not go with a template that has {has}"))
                    .with_hint(format!("leave {flag} away: a template says what the machine is")))
            }
            _ => {
                *asked = Some(has);
                Ok(())
            }
        }
    }
    one("--image", &mut request.image, about.image.clone())?;
    one("--kernel", &mut request.kernel, about.kernel.clone())?;
    one("--accel", &mut request.accel, about.accel)?;
    one("--vcpu", &mut request.vcpu, about.shape.vcpu)?;
    one("--memory", &mut request.memory, about.shape.memory)?;
    one("--disk-size", &mut request.disk_size, about.shape.disk)?;
    let driver = match about.driver {
        DriverKind::Firecracker => DriverChoice::Firecracker,
        DriverKind::Qemu => DriverChoice::Qemu,
    };
    if request.driver == Some(DriverChoice::Auto) {
        request.driver = None;
    }
    one("--driver", &mut request.driver, driver)?;
    match (request.work_disk, about.work_disk) {
        (Some(asked), has) if has != Some(asked) => {
            return Err(Error::invalid(
                "--work-disk does not go with a template whose VM had another or none",
            )
            .with_hint("leave --work-disk away: a template says what the machine is"));
        }
        (_, has) => request.work_disk = has,
    }
    let network = request.network.unwrap_or(about.network);
    if (network == NetworkMode::None) != (about.network == NetworkMode::None) {
        return Err(Error::invalid(format!(
            "--network {network} does not go with a template that has '--network {}'",
            about.network
        ))
        .with_hint("leave --network away: a template says what the machine is"));
    }
    request.network = Some(network);
    if request.cold || request.no_start {
        return Err(Error::invalid("--template goes neither with --cold nor with --no-start")
            .with_hint("a template is for a VM's first start, and is what that goes on from"));
    }
    Ok(request)
}
