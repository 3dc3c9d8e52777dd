//! A directory that a VM can go on from: the driver's files (memory, device state), the VM's disks, and `vm.json`, which
//! says what VM it was. Templates, snapshots and forks are such directories. Must never be written to once it is whole:
//! machines have parts of it mapped.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use banger_image::kernel::BootFiles;
use banger_model::{
    Accel, Bytes, DriverKind, Error, ErrorCode, ImageName, KernelName, MachineShape, NetworkMode, Result,
    Sha256, Vm, VmName, Workspace,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::start::failed;

/// What says that a directory is whole; written last.
const ABOUT: &str = "vm.json";
/// The system disk in the directory, whatever generation it was of.
const SYSTEM: &str = "system.ext4";
/// The work disk in the directory.
const WORK: &str = "work.ext4";
/// The driver's files, which a restored machine maps: [`Snapshot::link`].
const MACHINE: [&str; 3] = ["memory", "state", "snapshot.json"];
/// No `vm.json` is anywhere near this long.
const ABOUT_MAX: u64 = 256 << 10;
/// The format of `vm.json`.
const FORMAT: u32 = 1;

/// What a snapshot is of: only a VM that is the same in all of this can go on from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// [`FORMAT`].
    format: u32,
    /// Which VM it was.
    pub(crate) id: banger_model::VmId,
    /// What the VM was called.
    pub(crate) name: VmName,
    /// The image's name then.
    pub(crate) image: ImageName,
    /// Its digest: the base below the system disk.
    pub(crate) image_digest: Sha256,
    /// The kernel's name.
    pub(crate) kernel: KernelName,
    /// The kernel with its modules (see [`BootFiles::identity`]): the guest has both in use.
    pub(crate) kernel_identity: String,
    /// Size.
    pub(crate) shape: MachineShape,
    /// Size of the work disk, if it had one.
    pub(crate) work_disk: Option<Bytes>,
    /// Driver.
    pub(crate) driver: DriverKind,
    /// Accelerator.
    pub(crate) accel: Accel,
    /// The host's processor: a guest that knows of instructions must not lose them.
    pub(crate) cpu: String,
    /// Network; with one or without differs in the machine.
    pub(crate) network: NetworkMode,
    /// Whether the guest could reach the host's own services.
    pub(crate) host_access: bool,
    /// The repository in it.
    pub(crate) workspace: Option<Workspace>,
    /// When.
    pub(crate) taken_at: Timestamp,
}

impl About {
    /// Of a VM that runs with these boot files.
    pub(crate) fn of(vm: &Vm, files: &BootFiles) -> Self {
        Self {
            format: FORMAT,
            id: vm.id.clone(),
            name: vm.name.clone(),
            image: vm.image.clone(),
            image_digest: vm.image_digest.clone(),
            kernel: vm.kernel.clone(),
            kernel_identity: files.identity.clone(),
            shape: vm.shape,
            work_disk: vm.work_disk,
            driver: vm.driver,
            accel: vm.accel.unwrap_or(Accel::Tcg),
            cpu: host_cpu(),
            network: vm.network,
            host_access: vm.host_access,
            workspace: vm.whole_workspace().cloned(),
            taken_at: Timestamp::now(),
        }
    }

    /// Makes the directory whole. Everything else in it is there by now.
    ///
    /// # Errors
    /// `unavailable` when it cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(ABOUT);
        let text = serde_json::to_vec_pretty(self).map_err(|e| failed("write", &path, &e.into()))?;
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&path);
        made.and_then(|mut file| file.write_all(&text)).map_err(|e| failed("write", &path, &e))
    }

    /// Why a VM with these boot files cannot go on from here; the driver has reasons of its own.
    fn differs(&self, vm: &Vm, files: &BootFiles) -> Option<String> {
        let checks = [
            (self.image_digest != vm.image_digest, "it is of another image"),
            (self.kernel_identity != files.identity, "it is of another kernel"),
            (self.shape != vm.shape || self.work_disk != vm.work_disk, "it is of another size"),
            (self.driver != vm.driver || Some(self.accel) != vm.accel, "it is of another driver"),
            (
                (self.network == NetworkMode::None) != (vm.network == NetworkMode::None),
                "only one of the two has a network",
            ),
            (self.cpu != host_cpu(), "it was made on another processor"),
        ];
        checks.into_iter().find_map(|(differs, why)| differs.then(|| why.to_owned()))
    }
}

/// A whole directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    dir: PathBuf,
    /// What it is of.
    pub(crate) about: About,
}

impl Snapshot {
    /// Where the system disk belongs in a directory that is being made.
    pub(crate) fn system_disk(dir: &Path) -> PathBuf {
        dir.join(SYSTEM)
    }

    /// Where the work disk belongs in a directory that is being made.
    pub(crate) fn work_disk(dir: &Path) -> PathBuf {
        dir.join(WORK)
    }

    /// Looks at a directory.
    ///
    /// # Errors
    /// `unavailable` when it is none, or not whole, or written by a later version.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(ABOUT);
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(ABOUT_MAX).read_to_end(&mut text))
            .map_err(|e| failed("read", &path, &e))?;
        let about: About =
            serde_json::from_slice(&text).map_err(|e| failed("understand", &path, &e.into()))?;
        if about.format != FORMAT {
            let why = format!("{} has format {}, and this is {FORMAT}", path.display(), about.format);
            return Err(Error::new(ErrorCode::Unsupported, why));
        }
        Ok(Self { dir: dir.to_owned(), about })
    }

    /// Whether there is more than disks.
    pub(crate) fn has_memory(&self) -> bool {
        MACHINE.iter().any(|name| self.dir.join(name).exists())
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Refuses a VM that cannot go on from here.
    ///
    /// # Errors
    /// `unsupported`, and why.
    pub(crate) fn check(&self, vm: &Vm, files: &BootFiles) -> Result<()> {
        match self.about.differs(vm, files) {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorCode::Unsupported,
                format!("the memory in {} cannot be gone on with: {why}", self.dir.display()),
            )),
        }
    }

    /// Makes `to` with hard links to what a machine maps, so that it keeps it when this directory goes. Blocks.
    ///
    /// # Errors
    /// `unavailable`, with what could not be linked.
    pub(crate) fn link(&self, to: &Path) -> Result<()> {
        super::start::make_dir(to)?;
        for name in MACHINE {
            let target = to.join(name);
            match std::fs::hard_link(self.dir.join(name), &target) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(failed("link", &target, &e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What the host's processor is and can do, as one line.
pub(crate) fn host_cpu() -> String {
    static CPU: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        use sha2::Digest as _;
        let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).unwrap_or_default()
        };
        let flags = sha2::Sha256::digest(field("flags"));
        let short: String = flags.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("{} {} {}", field("model name"), field("microcode"), short)
    });
    CPU.clone()
}
