//! Images and kernels as the daemon serves them: names, references, and the single flight that
//! makes two who want the same missing thing wait for one build. The files are the image crate's.

use std::path::PathBuf;
use std::sync::Arc;

use banger_host::programs::{self, Use};
use banger_image::kernel::{BootFiles, KernelStore};
use banger_image::{BuildSpec, BuiltImage, Context, DEFAULT_RELEASE, ImageFiles, Progress};
use banger_model::{
    Error, ErrorCode, Image, ImageName, ImageSource, Kernel, KernelName, Result, Sha256, resolve,
};
use banger_protocol::api::{AvailableKernel, BuildImage, ImportImage, ImportKernel, PullKernel};
use banger_store::Store;
use jiff::Timestamp;

use crate::flight::{Flights, Turn};
use crate::op::Op;
use crate::startup::Dirs;
use crate::vm::warm::needs;

/// The one distribution that can be built.
const DEBIAN: &str = "debian";

/// What a build makes of an image that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    /// It is what was wanted.
    Keep,
    /// The name moves on to the new one.
    Replace,
}

/// Images and kernels.
#[derive(Debug)]
pub(crate) struct Artifacts {
    store: Arc<Store>,
    images: Arc<ImageFiles>,
    kernels: Arc<KernelStore>,
    cache: PathBuf,
    agent: PathBuf,
    templates: PathBuf,
    flights: Flights,
}

impl Artifacts {
    /// The service over the state directory; `agent` is the static agent binary.
    #[must_use]
    pub(crate) fn new(store: Arc<Store>, dirs: &Dirs, agent: PathBuf) -> Self {
        Self {
            store,
            images: Arc::new(ImageFiles::new(dirs.state.images(), dirs.state.scratch())),
            kernels: Arc::new(KernelStore::new(dirs.state.kernels(), dirs.state.scratch())),
            cache: dirs.cache.clone(),
            agent,
            templates: dirs.state.templates(),
            flights: Flights::default(),
        }
    }

    /// Removes what builds of a killed daemon left behind.
    pub(crate) fn sweep(&self) {
        match self.images.sweep() {
            Ok(0) => {}
            Ok(n) => tracing::info!(n, "removed leftovers of interrupted builds"),
            Err(error) => tracing::warn!(%error, "leftovers of interrupted builds stay"),
        }
        self.collect();
    }

    /// All images.
    ///
    /// # Errors
    /// When the database fails.
    pub(crate) fn list_images(&self) -> Result<Vec<Image>> {
        Ok(self.store.images()?)
    }

    /// The image that a reference (name or digest, or a prefix) means.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) fn image(&self, reference: &str) -> Result<Image> {
        let all = self.store.images()?;
        resolve("image", "banger image list", reference, &all, |i| (i.digest.as_str(), i.name.as_str()))
            .cloned()
    }

    /// Where an image's file is.
    ///
    /// # Errors
    /// `image_missing` when it is gone.
    pub(crate) fn image_file(&self, digest: &Sha256) -> Result<PathBuf> {
        Ok(self.images.path(digest)?)
    }

    /// Kernel, initramfs and modules to boot with.
    ///
    /// # Errors
    /// `image_missing` when the kernel is gone or the agent binary is not installed.
    pub(crate) async fn boot_files(&self, kernel: &KernelName) -> Result<BootFiles> {
        let (kernels, kernel, agent) = (self.kernels.clone(), kernel.clone(), self.agent.clone());
        blocking(move || Ok(kernels.boot_files(&kernel, &agent)?)).await
    }

    /// The name of the image that a reference means; the default distribution's also when it is absent.
    ///
    /// # Errors
    /// `image_missing` with near names, `ambiguous`.
    pub(crate) fn image_name(&self, reference: &ImageName) -> Result<ImageName> {
        if reference.as_str() == DEBIAN {
            return Ok(reference.clone());
        }
        let make = format!("or make it: 'banger image import {reference} DIR|TAR'");
        let found =
            self.image(reference.as_str()).map_err(|e| missing(e, "image", reference.as_str(), &make));
        Ok(found?.name)
    }

    /// Whether there is an image of this name.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub(crate) fn has_image(&self, name: &ImageName) -> Result<bool> {
        Ok(self.named(name)?.is_some())
    }

    /// Whether there is a kernel of this name.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn has_kernel(&self, name: &KernelName) -> Result<bool> {
        Ok(self.kernel_named(name)?.is_some())
    }

    /// Refuses to begin with an image or a kernel that this host has not the programs to make, and says which way is
    /// open to it: in one error, before anything is downloaded.
    ///
    /// # Errors
    /// `unavailable`.
    pub(crate) fn check_programs(&self, image: bool, kernel: bool) -> Result<()> {
        let uses = [(image, Use::Image), (kernel, Use::Kernel)];
        let uses: Vec<Use> = uses.into_iter().filter_map(|(wanted, of)| wanted.then_some(of)).collect();
        programs::require(&uses).map_err(Into::into)
    }

    /// The image that a reference means, building it when it is the default distribution's and absent.
    ///
    /// # Errors
    /// As [`Artifacts::image_name`]; whatever a build fails with.
    pub(crate) async fn ensure_image(&self, op: &Op, name: &ImageName) -> Result<Image> {
        let name = &self.image_name(name)?;
        if let Some(found) = self.named(name)? {
            return Ok(found);
        }
        let request = BuildImage {
            distro: DEBIAN.to_owned(),
            name: None,
            release: None,
            include: Vec::new(),
            minimal: false,
        };
        op.notice(format!("image '{name}' is not here yet: building it once, which takes a minute or two"));
        self.build_named(op, &request, Existing::Keep).await
    }

    /// Builds an image; one of the same name is replaced.
    ///
    /// # Errors
    /// `invalid_argument`, `unavailable`, `cancelled`.
    pub(crate) async fn build(&self, op: &Op, request: &BuildImage) -> Result<Image> {
        self.build_named(op, request, Existing::Replace).await
    }

    async fn build_named(&self, op: &Op, request: &BuildImage, existing: Existing) -> Result<Image> {
        if request.distro != DEBIAN {
            return Err(Error::invalid(format!("'{}' cannot be built", request.distro.escape_debug()))
                .with_hint("the only distribution is 'debian'; take others in with 'banger image import'"));
        }
        let name = request.name.clone().map_or_else(|| DEBIAN.parse(), Ok)?;
        let turn = self.flights.turn(op, &format!("image {name}")).await?;
        // Looked at again with the lock held: somebody else may have built it meanwhile.
        if existing == Existing::Keep
            && let Some(found) = self.named(&name)?
        {
            return Ok(found);
        }
        let spec = BuildSpec {
            release: Some(request.release.clone().unwrap_or_else(|| DEFAULT_RELEASE.to_owned())),
            include: request.include.clone(),
            minimal: request.minimal,
        };
        let images = self.images.clone();
        let built = self.job(op, &turn, "image", move |context| Ok(images.build(&spec, context)?)).await?;
        op.step("publish", || false, async { self.publish(name, built, ImageSource::Build) }).await
    }

    /// Takes in a directory, tar archive or squashfs file.
    ///
    /// # Errors
    /// `already_exists`, `invalid_argument`, `unavailable`, `cancelled`.
    pub(crate) async fn import_image(&self, op: &Op, request: ImportImage) -> Result<Image> {
        let path = absolute(&request.path)?;
        let turn = self.flights.turn(op, &format!("image {}", request.name)).await?;
        if self.named(&request.name)?.is_some() {
            return Err(taken("an image", "image", request.name.as_str()));
        }
        let images = self.images.clone();
        let built = self.job(op, &turn, "image", move |context| Ok(images.import(&path, context)?)).await?;
        op.step("publish", || false, async { self.publish(request.name, built, ImageSource::Import) }).await
    }

    /// Forgets an image, and deletes its file when nothing else refers to it.
    ///
    /// # Errors
    /// `busy` while VMs use it.
    pub(crate) fn delete_image(&self, reference: &str) -> Result<Image> {
        let image = self.image(reference)?;
        let others = self.store.images()?.iter().any(|i| i.digest == image.digest && i.name != image.name);
        let mut users = self.store.vms_with_image(&image.digest)?;
        users.extend(needs(&self.templates).into_iter().filter(|n| n.1 == image.digest).map(|n| n.0));
        if !others && !users.is_empty() {
            return Err(used("image", image.name.as_str(), &users));
        }
        self.store.delete_image(&image.name)?;
        self.collect();
        Ok(image)
    }

    /// All kernels.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn list_kernels(&self) -> Result<Vec<Kernel>> {
        Ok(self.kernels.list()?)
    }

    /// What can be pulled.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub(crate) fn available_kernels(&self) -> Result<Vec<AvailableKernel>> {
        let present = self.kernels.list()?;
        KernelStore::available()
            .iter()
            .map(|entry| {
                Ok(AvailableKernel {
                    name: entry.name.parse()?,
                    description: entry.description.to_owned(),
                    present: present.iter().any(|k| k.name.as_str() == entry.name),
                })
            })
            .collect()
    }

    /// The kernel that a reference means.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) fn kernel(&self, reference: &str) -> Result<Kernel> {
        let all = self.kernels.list()?;
        resolve("kernel", "banger kernel list", reference, &all, |k| (k.digest.as_str(), k.name.as_str()))
            .cloned()
    }

    /// The kernel that a reference means, pulled when it is the name of one in the catalog and absent.
    ///
    /// # Errors
    /// `image_missing` with near names, `ambiguous`; whatever a pull fails with.
    pub(crate) async fn ensure_kernel(&self, op: &Op, name: &KernelName) -> Result<Kernel> {
        if let Some(found) = self.kernel_named(name)? {
            return Ok(found);
        }
        if !KernelStore::available().iter().any(|entry| entry.name == name.as_str()) {
            let pull = "'banger kernel list --available' shows what can be pulled";
            return self.kernel(name.as_str()).map_err(|e| missing(e, "kernel", name.as_str(), pull));
        }
        op.notice(format!("kernel '{name}' is not here yet: pulling it once, some 30 MB"));
        self.pull_kernel(op, PullKernel { name: name.clone(), force: false }).await
    }

    /// Pulls a kernel of the catalog.
    ///
    /// # Errors
    /// `not_found`, `unavailable`, `cancelled`.
    pub(crate) async fn pull_kernel(&self, op: &Op, request: PullKernel) -> Result<Kernel> {
        let turn = self.flights.turn(op, &format!("kernel {}", request.name)).await?;
        let kernels = self.kernels.clone();
        self.job(op, &turn, "kernel", move |context| {
            Ok(kernels.pull(&request.name, request.force, context)?)
        })
        .await
    }

    /// Takes in a kernel from a directory.
    ///
    /// # Errors
    /// `already_exists`, `invalid_argument`, `unsupported`, `cancelled`.
    pub(crate) async fn import_kernel(&self, op: &Op, request: ImportKernel) -> Result<Kernel> {
        let path = absolute(&request.path)?;
        let turn = self.flights.turn(op, &format!("kernel {}", request.name)).await?;
        let kernels = self.kernels.clone();
        self.job(op, &turn, "kernel", move |context| Ok(kernels.import(&request.name, &path, context)?)).await
    }

    /// Deletes a kernel.
    ///
    /// # Errors
    /// `busy` while VMs use it.
    pub(crate) async fn delete_kernel(&self, op: &Op, reference: &str) -> Result<Kernel> {
        let kernel = self.kernel(reference)?;
        let _turn = self.flights.turn(op, &format!("kernel {}", kernel.name)).await?;
        let mut users = self.store.vms_with_kernel(&kernel.name)?;
        users.extend(needs(&self.templates).into_iter().filter(|n| n.2 == kernel.name).map(|n| n.0));
        if !users.is_empty() {
            return Err(used("kernel", kernel.name.as_str(), &users));
        }
        self.kernels.delete(&kernel.name)?;
        Ok(kernel)
    }

    /// Deletes image files that no name and no VM refers to.
    pub(crate) fn collect(&self) {
        let unreferenced = self.store.referenced_digests().map_err(Error::from).and_then(|mut used| {
            used.extend(needs(&self.templates).into_iter().map(|needed| needed.1));
            Ok(self.images.list_unreferenced(&used)?)
        });
        match unreferenced {
            Ok(digests) => {
                for digest in digests {
                    if let Err(error) = self.images.remove(&digest) {
                        tracing::warn!(%digest, %error, "an unused image file stays");
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "unused image files could not be listed"),
        }
    }

    fn kernel_named(&self, name: &KernelName) -> Result<Option<Kernel>> {
        Ok(self.kernels.list()?.into_iter().find(|kernel| kernel.name == *name))
    }

    fn named(&self, name: &ImageName) -> Result<Option<Image>> {
        Ok(self.store.images()?.into_iter().find(|i| i.name == *name))
    }

    fn publish(&self, name: ImageName, built: BuiltImage, source: ImageSource) -> Result<Image> {
        let image = Image {
            name,
            digest: built.digest,
            fs: built.fs,
            size_bytes: built.size,
            source,
            description: built.description,
            created_at: Timestamp::now(),
        };
        self.store.put_image(&image)?;
        tracing::info!(name = %image.name, digest = %image.digest, "image published");
        Ok(image)
    }

    /// Runs a long synchronous job with its progress and cancellation joined to the operation.
    async fn job<T: Send + 'static>(
        &self,
        op: &Op,
        turn: &Turn,
        kind: &'static str,
        work: impl FnOnce(&Context<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (op, turn, cache_dir) = (op.clone(), turn.clone(), self.cache.clone());
        blocking(move || {
            let faults = op.stages();
            let progress = |p: Progress| {
                faults.at(p.stage);
                turn.show(&op, &format!("{kind}.{}", p.stage), &p.message, p.percent);
            };
            let cancelled = || op.check().is_err() || faults.must_end();
            faults.end(work(&Context { progress: &progress, cancelled: &cancelled, cache_dir }))
        })
        .await
    }
}

/// Runs synchronous work where it may block.
///
/// # Errors
/// What the work says; `internal` when it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(outcome) => outcome,
        // The daemon ends: that is no failure of anybody's, and the next one must not find it recorded as one.
        Err(e) if e.is_cancelled() => std::future::pending().await,
        Err(e) => Err(Error::internal(format!("a worker of the daemon failed: {e}"))),
    }
}

fn absolute(path: &banger_model::ByteString) -> Result<PathBuf> {
    let path = PathBuf::from(path.as_os_str());
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Error::invalid(format!("'{}' is not an absolute path", path.display())))
    }
}

/// A reference that means nothing, where something is needed to boot from; `or` says what else can be done.
fn missing(error: Error, noun: &str, reference: &str, or: &str) -> Error {
    if error.code != ErrorCode::NotFound {
        return error;
    }
    let found = error.hint.unwrap_or_default();
    let hint = if found.ends_with('?') { found } else { format!("{found}; {or}") };
    Error::new(ErrorCode::ImageMissing, format!("there is no {noun} '{reference}'")).with_hint(hint)
}

fn taken(a_thing: &str, noun: &str, name: &str) -> Error {
    Error::new(ErrorCode::AlreadyExists, format!("{a_thing} named '{name}' exists already"))
        .with_hint(format!("choose another name, or 'banger {noun} delete {name}'"))
}

fn used(noun: &str, name: &str, users: &[String]) -> Error {
    Error::new(ErrorCode::Busy, format!("{noun} '{name}' is used by {}", users.join(", "))).with_hint(
        format!(
            "delete {} first: 'banger vm delete -f {}'",
            if users.len() == 1 { "it" } else { "them" },
            users.join(" ")
        ),
    )
}
