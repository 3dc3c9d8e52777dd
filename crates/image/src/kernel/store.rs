//! The directory of kernels. Owns everything below it.
//! Must never hold a lock across a download: two pulls of one name may race, and either result is good.

use std::io::{BufWriter, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use banger_model::{Bytes, Kernel, KernelName, Sha256};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use sha2::Digest as _;

use super::error::{KernelError, Result};
use super::source::{self, Source};
use super::{BootFiles, CatalogEntry, debian, modules, tool::Tool};
use crate::context::Context;
use crate::error::ImageError;
// What the sweep at daemon start clears from scratch.
use crate::files::PREFIX as WORK_PREFIX;
use crate::initramfs;
use crate::workdir::{WorkDir, make_private_dir};

const KERNEL: &str = "vmlinuz";
const MODULES: &str = "modules.sqfs";
const MANIFEST: &str = "manifest.json";
/// The modules of the initramfs and their list, as the guest takes them.
const BOOT_MODULES: &str = "boot-modules";
const WHAT: &str = "taking in the kernel";
const DEPMOD: Tool = Tool("depmod");
const MKSQUASHFS: Tool = Tool("mksquashfs");

/// The kernels below one state directory.
#[derive(Debug)]
pub struct KernelStore {
    dir: PathBuf,
    scratch: PathBuf,
    /// The agent's digest, as long as the file stays what it was.
    agent: Mutex<Option<(Stamp, Sha256)>>,
}

/// Device, inode, size and time of change of a file.
type Stamp = (u64, u64, u64, i64, i64);

impl KernelStore {
    /// The store in `dir` (`<state>/kernels`); `scratch` must be on the same file system. Both are created (0700)
    /// when needed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, scratch: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), scratch: scratch.into(), agent: Mutex::new(None) }
    }

    /// What [`Self::pull`] can get.
    #[must_use]
    pub fn available() -> &'static [CatalogEntry] {
        &[CatalogEntry {
            name: "debian-cloud",
            description: "Debian's linux-image-cloud-amd64 with its modules",
        }]
    }

    /// Gets a kernel of the catalog. One that is there already is returned as it is unless `force` asks for the
    /// newest.
    ///
    /// # Errors
    /// `not_found` for a name that is not in the catalog, `unavailable` when the host has no apt or it fails,
    /// `unsupported` when the kernel lacks a driver, `cancelled`.
    pub fn pull(&self, name: &KernelName, force: bool, ctx: &Context<'_>) -> Result<Kernel> {
        if !Self::available().iter().any(|entry| entry.name == name.as_str()) {
            let catalog: Vec<&str> = Self::available().iter().map(|entry| entry.name).collect();
            return Err(KernelError::NotInCatalog { name: name.clone(), catalog: catalog.join(", ") });
        }
        if !force && let Ok(kernel) = self.get(name) {
            return Ok(kernel);
        }
        let work = self.work()?;
        let (tree, package) = debian::fetch(work.path(), force, ctx)?;
        let source = source::inspect(&tree)?;
        let kernel = take_in(&work, name, &source, package, ctx)?;
        self.publish(&work, name, true)?;
        Ok(kernel)
    }

    /// Takes a kernel from the directory `from`: a kernel file (also below `boot/`) and, when it has modules,
    /// `lib/modules/<release>`.
    ///
    /// # Errors
    /// `already_exists`; `invalid_argument` when there is none, several, or it is not a kernel; `unsupported` when
    /// it lacks a driver; `cancelled`.
    pub fn import(&self, name: &KernelName, from: &Path, ctx: &Context<'_>) -> Result<Kernel> {
        let taken = || KernelError::AlreadyExists { name: name.clone() };
        if self.home(name).exists() {
            return Err(taken());
        }
        let source = source::inspect(from)?;
        let work = self.work()?;
        let kernel = take_in(&work, name, &source, from.display().to_string(), ctx)?;
        if self.publish(&work, name, false)? { Ok(kernel) } else { Err(taken()) }
    }

    /// All kernels by name. A damaged one is left out, with a warning in the log.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Kernel>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ImageError::io("read", &self.dir)(error).into()),
        };
        let mut kernels = Vec::new();
        for entry in entries.flatten() {
            let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<KernelName>().ok())
            else {
                continue;
            };
            match self.load(&name) {
                Ok(kernel) => kernels.push(kernel),
                Err(error) => tracing::warn!(kernel = %name, %error, "kernel left out of the list"),
            }
        }
        kernels.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(kernels)
    }

    /// One kernel by its exact name.
    ///
    /// # Errors
    /// `not_found` with near names; `image_missing` when it is damaged.
    pub fn get(&self, name: &KernelName) -> Result<Kernel> {
        if !self.home(name).exists() {
            return Err(self.not_found(name));
        }
        self.load(name)
    }

    /// Deletes a kernel. A VM that runs keeps what it loaded.
    ///
    /// # Errors
    /// `not_found` with near names.
    pub fn delete(&self, name: &KernelName) -> Result<()> {
        // Out of sight in one step, then away piece by piece.
        let work = self.work()?;
        match std::fs::rename(self.home(name), work.path().join("old")) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(self.not_found(name)),
            Err(error) => Err(ImageError::io("delete", &self.home(name))(error).into()),
        }
    }

    /// The initramfs of a kernel with this agent (a static executable), made when it is not there yet.
    ///
    /// # Errors
    /// `not_found`; `internal` when the agent cannot be read.
    pub fn initramfs(&self, name: &KernelName, agent: &Path) -> Result<PathBuf> {
        self.get(name)?;
        let home = self.home(name);
        let digest = self.agent_digest(agent)?;
        let file = format!("initramfs-{}.img", digest.as_str().get(..16).unwrap_or_default());
        let path = home.join(&file);
        if path.exists() {
            return Ok(path);
        }
        let agent = std::fs::read(agent).map_err(ImageError::io("read", agent))?;
        let work = self.work()?;
        let new = work.path().join(&file);
        let out = std::fs::File::create(&new).map_err(ImageError::io("write", &new))?;
        initramfs::write(BufWriter::new(out), &agent, &boot_modules(&home)?)
            .map_err(ImageError::io("write", &new))?;
        std::fs::rename(&new, &path).map_err(ImageError::io("write", &path))?;
        remove_others(&home, &file);
        Ok(path)
    }

    /// Everything to boot with, with this agent (a static executable) in the initramfs.
    ///
    /// # Errors
    /// As [`Self::initramfs`].
    pub fn boot_files(&self, name: &KernelName, agent: &Path) -> Result<BootFiles> {
        let kernel = self.get(name)?;
        let home = self.home(name);
        let modules = kernel.has_modules.then(|| home.join(MODULES));
        let mut identity = kernel.digest.as_str().to_owned();
        if let Some(path) = &modules {
            // Their content was never hashed, and a file that takes their place is another one.
            let meta = std::fs::metadata(path).map_err(ImageError::io("look at", path))?;
            let (ino, size, mtime, nsec) = (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
            identity = format!("{identity} {ino}-{size}-{mtime}.{nsec}");
        }
        Ok(BootFiles {
            kernel: home.join(KERNEL),
            initramfs: self.initramfs(name, agent)?,
            modules,
            release: kernel.release,
            identity,
        })
    }

    fn home(&self, name: &KernelName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    fn work(&self) -> Result<WorkDir> {
        make_private_dir(&self.scratch)?;
        make_private_dir(&self.dir)?;
        Ok(WorkDir::new(&self.scratch, WORK_PREFIX, 0o700)?)
    }

    fn load(&self, name: &KernelName) -> Result<Kernel> {
        let damaged = |reason: String| KernelError::Damaged { name: name.clone(), reason };
        let home = self.home(name);
        let text =
            std::fs::read(home.join(MANIFEST)).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        let mut kernel: Kernel =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        for file in [KERNEL, MODULES].iter().take(1 + usize::from(kernel.has_modules)) {
            if !home.join(file).is_file() {
                return Err(damaged(format!("{file} is missing")));
            }
        }
        // The initramfs comes and goes with agents.
        kernel.size_bytes = Bytes(size_of(&home));
        Ok(kernel)
    }

    fn not_found(&self, name: &KernelName) -> KernelError {
        let kernels = self.list().unwrap_or_default();
        let key = |kernel: &Kernel| kernel.name.as_str().to_owned();
        let names: Vec<String> = kernels.iter().map(key).collect();
        match banger_model::resolve("kernel", "banger kernel list", name.as_str(), &names, |n| (n, n)) {
            // A prefix is no exact name.
            Ok(near) => banger_model::Error::not_found(format!("no kernel '{name}'"))
                .with_hint(format!("did you mean '{near}'?"))
                .into(),
            Err(error) => error.into(),
        }
    }

    /// Moves the finished kernel into place; says false when the name was taken meanwhile and may not be replaced.
    fn publish(&self, work: &WorkDir, name: &KernelName, replace: bool) -> Result<bool> {
        let (new, home) = (work.path().join(name.as_str()), self.home(name));
        let failed = ImageError::errno("move a kernel to", &home);
        match renameat_with(CWD, &new, CWD, &home, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::EXIST) if !replace => Ok(false),
            // Readers see the old one or the new one; the old one goes with the scratch directory.
            Err(rustix::io::Errno::EXIST) => renameat_with(CWD, &new, CWD, &home, RenameFlags::EXCHANGE)
                .map(|()| true)
                .map_err(|errno| failed(errno).into()),
            Err(errno) => Err(failed(errno).into()),
        }
    }

    fn agent_digest(&self, agent: &Path) -> Result<Sha256> {
        let meta = std::fs::metadata(agent).map_err(ImageError::io("read", agent))?;
        let stamp = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
        let mut known = self.agent.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((old, digest)) = &*known
            && *old == stamp
        {
            return Ok(digest.clone());
        }
        let digest = digest_of(agent)?;
        *known = Some((stamp, digest.clone()));
        Ok(digest)
    }
}

/// Makes `<work>/<name>` from what was found: the whole kernel, ready to be moved into place.
fn take_in(
    work: &WorkDir,
    name: &KernelName,
    from: &Source,
    description: String,
    ctx: &Context<'_>,
) -> Result<Kernel> {
    let home = work.path().join(name.as_str());
    let boot = home.join(BOOT_MODULES);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&boot)
        .map_err(ImageError::io("make", &boot))?;
    let kernel = home.join(KERNEL);
    std::fs::copy(&from.kernel, &kernel).map_err(ImageError::io("copy", &from.kernel))?;
    if let Some(modules) = &from.modules {
        take_modules(work, &home, modules, &from.release, ctx)?;
    }
    let mut manifest = Kernel {
        name: name.clone(),
        release: from.release.clone(),
        digest: digest_of(&kernel)?,
        size_bytes: Bytes(0),
        has_modules: from.modules.is_some(),
        description,
        created_at: jiff::Timestamp::now(),
    };
    let path = home.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| ImageError::io("write", &path)(std::io::Error::other(error)))?;
    std::fs::write(&path, text).map_err(ImageError::io("write", &path))?;
    manifest.size_bytes = Bytes(size_of(&home));
    Ok(manifest)
}

/// Resolves what the initramfs needs, and packs all modules for the guest.
fn take_modules(work: &WorkDir, home: &Path, dir: &Path, release: &str, ctx: &Context<'_>) -> Result<()> {
    let boot = home.join(BOOT_MODULES);
    ctx.report("modules", format!("packing the modules of {release}"), Some(80));
    // A tree of our own, since modules.dep is written into it: distributions make that file when they install.
    let tree = work.path().join("tree");
    let own = tree.join("lib/modules").join(release);
    copy_tree(dir, &own, ctx)?;
    if !own.join("modules.dep").exists() {
        DEPMOD.run(DEPMOD.command()?.arg("--basedir").arg(&tree).arg(release), WHAT, ctx, |_| {})?;
    }
    for (name, content) in modules::collect(&own, release)? {
        let path = boot.join(name);
        std::fs::write(&path, content).map_err(ImageError::io("write", &path))?;
    }
    let mut command = MKSQUASHFS.command()?;
    command.arg(tree.join("lib/modules")).arg(home.join(MODULES));
    // Level 3 packs Debian's modules in 0.7 s to 23 MB; mksquashfs's own choice, 15, takes 23 s for 20 MB.
    command.args([
        "-comp",
        "zstd",
        "-Xcompression-level",
        "3",
        "-all-root",
        "-root-mode",
        "0755",
        "-no-xattrs",
        "-no-exports",
        "-quiet",
        "-no-progress",
    ]);
    command.args(["-mkfs-time", "0", "-all-time", "0"]).env_remove("SOURCE_DATE_EPOCH");
    MKSQUASHFS.run(&command, WHAT, ctx, |_| {})?;
    Ok(())
}

/// Copies files and directories; links (`build`, `source`) lead out of the tree and stay behind.
fn copy_tree(from: &Path, to: &Path, ctx: &Context<'_>) -> Result<()> {
    make_private_dir(to)?;
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(ImageError::io("make", to))?;
    for entry in std::fs::read_dir(from).map_err(ImageError::io("read", from))? {
        let entry = entry.map_err(ImageError::io("read", from))?;
        if ctx.is_cancelled() {
            return Err(ImageError::Cancelled { what: WHAT }.into());
        }
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(ImageError::io("read", &path))?;
        if kind.is_dir() {
            copy_tree(&path, &target, ctx)?;
        } else if kind.is_file() {
            std::fs::copy(&path, &target).map_err(ImageError::io("copy", &path))?;
        }
    }
    Ok(())
}

fn boot_modules(home: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let dir = home.join(BOOT_MODULES);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(ImageError::io("read", &dir))?.flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        files.push((name, std::fs::read(&path).map_err(ImageError::io("read", &path))?));
    }
    files.sort();
    Ok(files)
}

fn remove_others(home: &Path, keep: &str) {
    for entry in std::fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("initramfs-") && name != keep {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok().map(|meta| (entry, meta)))
        .map(|(entry, meta)| if meta.is_dir() { size_of(&entry.path()) } else { meta.len() })
        .sum()
}

/// The SHA-256 digest of a file.
pub(super) fn digest_of(path: &Path) -> Result<Sha256> {
    let mut file = std::fs::File::open(path).map_err(ImageError::io("read", path))?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(ImageError::io("read", path))? {
            0 => return Ok(Sha256::from_bytes(hasher.finalize().into())),
            length => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}
