//! A directory that a VM can go on from: the driver's files (memory, device state), the VM's disks, and `vm.json`, which
//! says what VM it was. Templates, snapshots and forks are such directories. Must never be written to once it is whole:
//! machines have parts of it mapped.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use banger_image::kernel::BootFiles;
use banger_model::{
    Accel, Bytes, DriverKind, Error, ErrorCode, ImageName, KernelName, MachineShape, NetworkMode, Result,
    Sha256, Vm, VmId, VmName, Workspace,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::start::failed;
use crate::artifacts::blocking;

/// What says that a directory is whole; written last.
const ABOUT: &str = "vm.json";
/// The system disk in the directory, whatever generation it was of.
const SYSTEM: &str = "system.ext4";
/// The work disk in the directory.
const WORK: &str = "work.ext4";
/// The driver's files, which a restored machine maps.
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
    /// The VM.
    pub(crate) id: VmId,
    /// What it was called.
    pub(crate) name: VmName,
    /// The image's name then.
    pub(crate) image: ImageName,
    /// Its digest: the base below the system disk.
    pub(crate) image_digest: Sha256,
    /// The kernel's name.
    pub(crate) kernel: KernelName,
    /// The kernel with its modules (see [`BootFiles::identity`]): the guest has both in use.
    pub(crate) kernel_identity: String,
    /// The agent that the guest booted with (its initramfs' name).
    pub(crate) agent: String,
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
    /// Length and time of change of each file, so that one that was cut or written to is noticed.
    files: BTreeMap<String, Stamp>,
}

/// What a file was like when the directory was made whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    changed_ns: i128,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::symlink_metadata(path)?;
        let changed_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Ok(Self { bytes: meta.len(), changed_ns })
    }
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
            agent: agent_of(files),
            shape: vm.shape,
            work_disk: vm.work_disk,
            driver: vm.driver,
            accel: vm.accel.unwrap_or(Accel::Tcg),
            cpu: host_cpu(),
            network: vm.network,
            host_access: vm.host_access,
            workspace: vm.whole_workspace().cloned(),
            taken_at: Timestamp::now(),
            files: BTreeMap::new(),
        }
    }

    /// What a template for new VMs of this kind is called, made by this version of the VMM: equal only where one can go
    /// on from the other's memory.
    pub(super) fn key(&self, vmm: &str) -> String {
        use sha2::Digest as _;
        let network = self.network != NetworkMode::None;
        let MachineShape { vcpu, memory, disk } = self.shape;
        let words = [
            format!("{FORMAT} {}", env!("CARGO_PKG_VERSION")),
            self.image_digest.to_string(),
            self.kernel_identity.clone(),
            self.agent.clone(),
            format!("{} {vmm}", self.driver),
            format!("{} {}", self.accel, self.cpu),
            format!("{vcpu} {} {} {network}", memory.0, disk.0),
        ];
        let hash = sha2::Sha256::digest(words.join("\n"));
        hex::encode(&hash[..8])
    }

    /// This, with the boot files and the image that the names mean now.
    pub(super) fn renewed(&self, files: &BootFiles, image_digest: Sha256) -> Self {
        let (kernel_identity, agent) = (files.identity.clone(), agent_of(files));
        Self { image_digest, kernel_identity, agent, cpu: host_cpu(), ..self.clone() }
    }

    /// Whether new VMs of the other kind would be told apart by nothing that their user says.
    pub(super) fn asked_alike(&self, other: &Self) -> bool {
        let asked = |about: &Self| {
            let network = about.network != NetworkMode::None;
            (about.image.clone(), about.kernel.clone(), about.shape, about.driver, about.accel, network)
        };
        asked(self) == asked(other)
    }

    /// Makes the directory whole. Everything else in it is there by now. It survives this process; a power cut, only
    /// after [`Snapshot::flush`].
    ///
    /// # Errors
    /// `unavailable` when it cannot be written.
    pub(crate) fn write(mut self, dir: &Path) -> Result<()> {
        let path = dir.join(ABOUT);
        for name in MACHINE.into_iter().chain([SYSTEM, WORK]) {
            match Stamp::of(&dir.join(name)) {
                Ok(stamp) => drop(self.files.insert(name.to_owned(), stamp)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("look at", &dir.join(name), &e)),
            }
        }
        let text = serde_json::to_vec_pretty(&self).map_err(|e| failed("write", &path, &e.into()))?;
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&path);
        let written = made.and_then(|mut file| file.write_all(&text));
        written.map_err(|e| failed("write", &path, &e))
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
        match self.damage().or_else(|| self.about.differs(vm, files)) {
            None => Ok(()),
            Some(why) => Err(Error::new(
                ErrorCode::Unsupported,
                format!("what is in {} cannot be gone on with: {why}", self.dir.display()),
            )),
        }
    }

    /// What has happened to a file since the directory was made whole.
    fn damage(&self) -> Option<String> {
        self.about.files.iter().find_map(|(name, then)| match Stamp::of(&self.dir.join(name)) {
            Ok(now) if now == *then => None,
            Ok(now) if now.bytes != then.bytes => {
                Some(format!("'{name}' has {} bytes and had {}", now.bytes, then.bytes))
            }
            Ok(_) => Some(format!("'{name}' was written to")),
            Err(error) => Some(format!("'{name}': {error}")),
        })
    }

    /// The same in a directory of hard links, so that whoever goes on from it keeps it when this one goes. Blocks.
    ///
    /// # Errors
    /// `unavailable`, with what could not be linked.
    pub(crate) fn link(&self, to: &Path) -> Result<Self> {
        super::start::make_dir(to)?;
        for name in self.about.files.keys() {
            let target = to.join(name);
            match std::fs::hard_link(self.dir.join(name), &target) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("link", &target, &e));
                }
                _ => {}
            }
        }
        Ok(Self { dir: to.to_owned(), about: self.about.clone() })
    }

    /// Writes a directory that is whole, but not in its place yet, through to the disk: a power cut must not leave one
    /// under its name that looks whole and is not. The VM that it is of may run meanwhile; a fork's is not worth it.
    ///
    /// # Errors
    /// `unavailable` when the disk does not take it.
    pub(crate) async fn flush(dir: &Path) -> Result<()> {
        let dir = dir.to_owned();
        blocking(move || {
            let entries = std::fs::read_dir(&dir).map_err(|e| failed("look into", &dir, &e))?;
            let files = entries.flatten().map(|entry| entry.path());
            for path in files.chain([dir.clone()]) {
                File::open(&path).and_then(|file| file.sync_all()).map_err(|e| failed("flush", &path, &e))?;
            }
            Ok(())
        })
        .await
    }

    /// What the directory takes on the disk, bytes.
    pub(crate) fn size(&self) -> u64 {
        let blocks = |name| std::fs::symlink_metadata(self.dir.join(name)).map_or(0, |meta| meta.blocks());
        self.about.files.keys().map(blocks).sum::<u64>().saturating_mul(512)
    }
}

fn agent_of(files: &BootFiles) -> String {
    files.initramfs.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
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
        let short = hex::encode(&flags[..8]);
        format!("{} {} {}", field("model name"), field("microcode"), short)
    });
    CPU.clone()
}
