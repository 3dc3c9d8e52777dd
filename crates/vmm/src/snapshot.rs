//! A snapshot's directory: the files in it, what machine they are of, and their holes. Shared by
//! all drivers. Must never hold what another machine could not read: no descriptor, no socket.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use banger_model::{Accel, DriverKind, Mib};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::{MachineHandle, MachineSpec, Result, VmmError};

/// No description is anywhere near this long.
const ABOUT_MAX: u64 = 64 << 10;
/// Zeros of this length, aligned, become a hole.
const HOLE: usize = 64 << 10;
/// Read at once.
const CHUNK: usize = 1 << 20;

/// What a machine consists of, as far as a snapshot of it depends on that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Virtual CPUs.
    pub vcpu: u32,
    /// Memory, in mebibytes.
    pub memory_mib: u32,
    /// The disks, in the order in which the guest sees them.
    pub disks: Vec<DiskLayout>,
    /// Whether it has a network device.
    pub network: bool,
    /// The file that its memory lives in, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_file: Option<PathBuf>,
}

/// A disk of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayout {
    /// Its role's serial.
    pub serial: String,
    /// Whether the guest may write to it.
    pub read_only: bool,
}

impl Layout {
    /// That of the machine that is asked for.
    #[must_use]
    pub fn of(spec: &MachineSpec) -> Self {
        let disk =
            |d: &crate::Disk| DiskLayout { serial: d.role.serial().to_owned(), read_only: d.read_only };
        Self {
            vcpu: spec.shape.vcpu,
            memory_mib: spec.shape.memory.0,
            disks: spec.disks.iter().map(disk).collect(),
            network: spec.network.is_some(),
            memory_file: None,
        }
    }

    /// Equal but for where the memory lives.
    fn same(&self, other: &Self) -> bool {
        let bare = |layout: &Self| Self { memory_file: None, ..layout.clone() };
        bare(self) == bare(other)
    }
}

/// What a snapshot is of: only a machine like it can go on from there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) driver: DriverKind,
    /// The VMM's version, as it says it.
    pub(crate) version: String,
    pub(crate) accel: Accel,
    pub(crate) layout: Layout,
}

impl About {
    pub(crate) fn machine(handle: &MachineHandle, version: String) -> Self {
        let layout = Layout { memory_file: None, ..handle.layout.clone() };
        Self { driver: handle.driver, version, accel: handle.accel, layout }
    }

    /// Whether this VMM can begin this machine from it.
    pub(crate) fn check(&self, spec: &MachineSpec, driver: DriverKind, version: &str) -> Result<()> {
        let refuse = |why: String| Err(VmmError::ForeignSnapshot { vm: spec.name.to_string(), why });
        if self.driver != driver {
            return refuse(format!("it is of the {} driver", self.driver));
        }
        if self.version != version {
            return refuse(format!("version {} wrote it, and this is {version}", self.version));
        }
        if self.accel != spec.accel || !self.layout.same(&Layout::of(spec)) {
            return refuse("its machine is laid out in another way".to_owned());
        }
        Ok(())
    }
}

/// The files of a snapshot. They are removed on drop, unless they are kept.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) memory: PathBuf,
    pub(crate) state: PathBuf,
    about: PathBuf,
    /// What we made ourselves, and would have to remove.
    made: Vec<PathBuf>,
}

impl Files {
    /// Those in a directory, whether or not they are there.
    pub(crate) fn of(dir: &Path) -> Self {
        let [memory, state, about] = ["memory", "state", "snapshot.json"].map(|name| dir.join(name));
        Self { memory, state, about, made: Vec::new() }
    }

    /// Makes memory and state, empty and 0600, for a VMM to write to.
    pub(crate) fn begin(dir: &Path) -> Result<Self> {
        let mut files = Self::of(dir);
        for path in [files.memory.clone(), files.state.clone()] {
            create(&path).map_err(VmmError::file("make", &path))?;
            files.made.push(path);
        }
        Ok(files)
    }

    /// Says what it is of. Only with this is it a snapshot.
    pub(crate) fn finish(mut self, about: &About) -> Result<()> {
        let failed = VmmError::file("write", &self.about);
        let text = serde_json::to_vec_pretty(about).map_err(|e| failed(e.into()))?;
        let mut file = create(&self.about).map_err(VmmError::file("make", &self.about))?;
        self.made.push(self.about.clone());
        file.write_all(&text).map_err(VmmError::file("write", &self.about))?;
        self.made.clear();
        Ok(())
    }

    /// What it is of; a snapshot without all of its memory is none.
    pub(crate) fn about(&self) -> Result<About> {
        let about = self.read_about()?;
        let size = std::fs::metadata(&self.memory).map_err(VmmError::file("look at", &self.memory))?.len();
        if size != u64::from(about.layout.memory_mib) << 20 {
            let cut = io::Error::other(format!("it has {size} bytes, not {} MiB", about.layout.memory_mib));
            return Err(VmmError::file("use", &self.memory)(cut));
        }
        Ok(about)
    }

    fn read_about(&self) -> Result<About> {
        let mut text = Vec::new();
        let file = File::open(&self.about).map_err(VmmError::file("open", &self.about))?;
        file.take(ABOUT_MAX).read_to_end(&mut text).map_err(VmmError::file("read", &self.about))?;
        serde_json::from_slice(&text).map_err(|e| VmmError::file("read", &self.about)(e.into()))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        for path in &self.made {
            let _ = rustix::fs::unlink(path);
        }
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// A file of zeros for a machine's memory, all hole. One left over from an earlier run goes.
pub(crate) fn make_memory_file(path: &Path, size: Mib) -> Result<()> {
    let failed = || VmmError::file("make", path);
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(failed()(e.into())),
    }
    let file = create(path).map_err(failed())?;
    file.set_len(u64::from(size.0) << 20).map_err(failed())
}

/// Turns the zeros of a file into holes. Blocks.
pub(crate) fn dig(path: &Path) -> Result<()> {
    let dig = || -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        each_zeros(
            &file,
            |_, _| Ok(()),
            |at, length| {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                match rustix::fs::fallocate(&file, flags, at, length) {
                    // A file system without holes keeps the zeros.
                    Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            },
        )
    };
    dig().map_err(VmmError::file("make holes in", path))
}

/// Copies a file's content into an empty one: by reflink where that works, else what is not zero.
/// Blocks.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let copy = || -> io::Result<()> {
        let (source, target) = (File::open(from)?, OpenOptions::new().write(true).open(to)?);
        if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
            return Ok(());
        }
        target.set_len(source.metadata()?.size())?;
        each_zeros(&source, |at, bytes| target.write_all_at(bytes, at), |_, _| Ok(()))
    };
    copy().map_err(VmmError::file("copy", from))
}

/// Goes through a file's data, block by block, and tells runs of what is not zero from zeros.
fn each_zeros(
    file: &File,
    mut full: impl FnMut(u64, &[u8]) -> io::Result<()>,
    mut zeros: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let size = file.metadata()?.size();
    let mut at = 0;
    while at < size {
        // To the next byte that is not in a hole, rounded down to a whole block.
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => at = at.max(data - data % HOLE as u64),
            Err(Errno::NXIO) => return Ok(()),
            Err(_) => {}
        }
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            return Ok(());
        }
        let data = buffer.get(..n).unwrap_or_default();
        for block in data.chunks(HOLE) {
            let length = block.len() as u64;
            if block.iter().all(|b| *b == 0) {
                zeros(at, length)?;
            } else {
                full(at, block)?;
            }
            at += length;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn blocks(path: &Path) -> u64 {
        path.metadata().unwrap().blocks() * 512
    }

    /// 8 MiB with a few bytes in the middle and at the very end.
    fn memory(path: &Path, holes: bool) {
        let mut bytes = vec![0; 8 << 20];
        bytes[5_000_000..5_000_004].copy_from_slice(b"data");
        bytes[(8 << 20) - 1] = 7;
        if holes {
            let file = File::create(path).unwrap();
            file.set_len(8 << 20).unwrap();
            file.write_all_at(b"data", 5_000_000).unwrap();
            file.write_all_at(&[7], (8 << 20) - 1).unwrap();
        } else {
            fs::write(path, &bytes).unwrap();
        }
    }

    #[test]
    fn zeros_become_holes_and_nothing_else_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (full, holey, copied) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        memory(&full, false);
        memory(&holey, true);
        dig(&full).unwrap();
        File::create(&copied).unwrap();
        copy(&holey, &copied).unwrap();
        let expected = fs::read(&holey).unwrap();
        for path in [&full, &copied] {
            assert!(fs::read(path).unwrap() == expected, "{path:?}");
            assert!(blocks(path) <= 256 << 10, "{path:?}: {}", blocks(path));
        }
    }

    #[test]
    fn a_snapshot_that_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::begin(dir.path()).unwrap();
        let modes = [&files.memory, &files.state].map(|p| p.metadata().unwrap().permissions().mode() & 0o777);
        assert_eq!(modes, [0o600, 0o600]);
        drop(files);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // And one is never written over
        let about = About {
            driver: DriverKind::Qemu,
            version: "7.2".into(),
            accel: Accel::Tcg,
            layout: Layout::default(),
        };
        Files::begin(dir.path()).unwrap().finish(&about).unwrap();
        assert_eq!(Files::of(dir.path()).read_about().unwrap(), about);
        assert_eq!(Files::of(dir.path()).about().unwrap(), about);
        fs::write(dir.path().join("memory"), "too long").unwrap();
        assert!(Files::of(dir.path()).about().unwrap_err().to_string().contains("8 bytes"));
        assert!(Files::begin(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }
}
