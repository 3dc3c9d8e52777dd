//! A snapshot's directory: the files in it, and what machine they are of. Shared by all drivers. Must never
//! hold what another machine could not read: no descriptor, no socket.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use banger_model::{Accel, DriverKind, VmName};
use serde::{Deserialize, Serialize};

use crate::{MachineHandle, MachineSpec, Result, VmmError};

/// No description is anywhere near this long.
const ABOUT_MAX: u64 = 64 << 10;

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
    /// Which of its driver's sets of other devices it has; a driver that changes them counts on. The first is 0.
    #[serde(default)]
    pub devices: u32,
    /// The file that its memory began with, if it went on from a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_file: Option<MemoryFile>,
}

/// A disk of a [`Layout`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayout {
    /// Its role's serial.
    pub serial: String,
    /// Whether the guest may write to it.
    pub read_only: bool,
    /// Its file: each machine of the same layout has its own.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub path: PathBuf,
}

fn is_nowhere(path: &Path) -> bool {
    path.as_os_str().is_empty()
}

/// A memory file as it was when it was written. Links to it do not change that, and nobody may change the file: machines
/// that began with it still read from it. A monitor in its cage that may write to it can set no times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryFile {
    /// Where it is.
    #[serde(default, skip_serializing_if = "is_nowhere")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last written to, seconds and nanoseconds.
    pub written: (i64, i64),
}

impl MemoryFile {
    fn look_at(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), bytes: meta.size(), written: (meta.mtime(), meta.mtime_nsec()) })
    }

    /// What is wrong with it, if it is not what it was.
    pub(crate) fn changed(&self) -> Option<String> {
        match Self::look_at(&self.path) {
            Ok(now) if now == *self => None,
            Ok(now) if now.bytes != self.bytes => {
                Some(format!("its memory has {} bytes, not {}", now.bytes, self.bytes))
            }
            Ok(_) => Some("its memory has been written to since it was made".to_owned()),
            Err(error) => Some(format!("{} cannot be read: {error}", self.path.display())),
        }
    }
}

impl Layout {
    /// That of the machine that is asked for, which gets this set of devices.
    #[must_use]
    pub fn of(spec: &MachineSpec, devices: u32) -> Self {
        let disk = |d: &crate::Disk| DiskLayout {
            serial: d.role.serial().to_owned(),
            read_only: d.read_only,
            path: d.path.clone(),
        };
        Self {
            vcpu: spec.shape.vcpu,
            memory_mib: spec.shape.memory.0,
            disks: spec.disks.iter().map(disk).collect(),
            network: spec.network.is_some(),
            devices,
            memory_file: None,
        }
    }

    /// What of a machine that runs depends on it, if that is known.
    pub(crate) fn known(handle: &MachineHandle) -> Result<&Self> {
        if handle.layout.vcpu == 0 {
            let why = "an older banger started it".to_owned();
            return Err(VmmError::NoSnapshot { vm: handle.name.to_string(), why });
        }
        Ok(&handle.layout)
    }

    /// What a copy of this machine's memory begins with, as the memory itself did, if that was a file.
    pub(crate) fn memory_base(&self, vm: &VmName) -> Result<Option<&Path>> {
        let Some(base) = &self.memory_file else { return Ok(None) };
        match base.changed() {
            None => Ok(Some(&base.path)),
            Some(why) => Err(VmmError::NoSnapshot { vm: vm.to_string(), why }),
        }
    }

    /// A machine that halts flushes its disks, and its guest waits for that: what is flushed before takes no time then. Blocks.
    pub(crate) fn flush_disks(&self) {
        for DiskLayout { path, .. } in self.disks.iter().filter(|disk| !disk.read_only) {
            if let Err(error) = File::open(path).and_then(|file| file.sync_data()) {
                tracing::debug!(disk = %path.display(), %error, "a disk is not flushed before its machine halts");
            }
        }
    }

    /// Without what is a machine's own: where its disks and its memory are.
    fn bare(&self) -> Self {
        let disk = |d: &DiskLayout| DiskLayout { path: PathBuf::new(), ..d.clone() };
        Self { memory_file: None, disks: self.disks.iter().map(disk).collect(), ..self.clone() }
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
    /// Without its path.
    pub(crate) memory: MemoryFile,
}

impl About {
    pub(crate) fn machine(handle: &MachineHandle, version: String) -> Self {
        let (layout, memory) = (handle.layout.bare(), MemoryFile::default());
        Self { driver: handle.driver, version, accel: handle.accel, layout, memory }
    }

    /// Whether this VMM can begin this machine from it.
    fn check(&self, layout: &Layout, spec: &MachineSpec, driver: DriverKind, version: &str) -> Result<()> {
        let refuse = |why: String| Err(VmmError::ForeignSnapshot { vm: spec.name.to_string(), why });
        if self.driver != driver {
            return refuse(format!("it is of the {} driver", self.driver));
        }
        if self.version != version {
            return refuse(format!("version {} wrote it, and this is {version}", self.version));
        }
        if self.layout.devices != layout.devices {
            return refuse("another banger wrote it, whose machines have other devices".to_owned());
        }
        if self.accel != spec.accel || self.layout != layout.bare() {
            return refuse("its machine is laid out in another way".to_owned());
        }
        Ok(())
    }
}

/// Part of a snapshot that waits for files.
pub(crate) async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let failed = |e: tokio::task::JoinError| VmmError::file("write", Path::new("a snapshot"))(e.into());
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(failed(e)))
}

/// A machine that is about to be halted for a snapshot. Unless it is kept so, it goes on when this goes away.
pub(crate) struct Halted {
    go_on: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Halted {
    /// `go_on` lets it go on; `None`: it stands still already, and stays so.
    pub(crate) fn unless_kept(go_on: Option<impl Future<Output = ()> + Send + 'static>) -> Self {
        Self { go_on: go_on.map(|go_on| Box::pin(go_on) as _) }
    }

    /// It stays halted with a snapshot that is whole, and is as it was without one.
    pub(crate) async fn conclude(mut self, outcome: Result<()>) -> Result<()> {
        if outcome.is_ok() {
            self.go_on = None;
        }
        self.let_go().await;
        outcome
    }

    /// There is no snapshot: it is as it was when this returns.
    pub(crate) async fn let_go(mut self) {
        if let Some(go_on) = &mut self.go_on {
            go_on.await;
            self.go_on = None;
        }
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // Whoever waited for the snapshot went away in the middle.
        if let Some(go_on) = self.go_on.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(go_on);
        }
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
    pub(crate) fn finish(mut self, mut about: About) -> Result<()> {
        let failed = VmmError::file("write", &self.about);
        let memory = MemoryFile::look_at(&self.memory).map_err(VmmError::file("look at", &self.memory))?;
        about.memory = MemoryFile { path: PathBuf::new(), ..memory };
        let text = serde_json::to_vec_pretty(&about).map_err(|e| failed(e.into()))?;
        let mut file = create(&self.about).map_err(VmmError::file("make", &self.about))?;
        self.made.push(self.about.clone());
        file.write_all(&text).map_err(VmmError::file("write", &self.about))?;
        self.made.clear();
        Ok(())
    }

    /// Makes sure that this VMM can begin this machine, laid out so, from it; its memory.
    pub(crate) fn about(
        &self,
        layout: &Layout,
        spec: &MachineSpec,
        driver: DriverKind,
        version: &str,
    ) -> Result<MemoryFile> {
        let about = self.read_about()?;
        about.check(layout, spec, driver, version)?;
        let memory = MemoryFile { path: self.memory.clone(), ..about.memory };
        match memory.changed() {
            None => Ok(memory),
            Some(why) => Err(VmmError::ForeignSnapshot { vm: spec.name.to_string(), why }),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt, PermissionsExt};

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
            memory: MemoryFile::default(),
        };
        Files::begin(dir.path()).unwrap().finish(about.clone()).unwrap();
        assert_eq!(Files::of(dir.path()).read_about().unwrap().layout, about.layout);
        assert!(Files::begin(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_memory_file_that_was_cut_or_written_to_is_noticed_and_a_link_to_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join("memory"), dir.path().join("link"));
        fs::write(&path, [7; 8192]).unwrap();
        let file = MemoryFile::look_at(&path).unwrap();
        fs::hard_link(&path, &link).unwrap();
        assert_eq!(MemoryFile { path: link, ..file.clone() }.changed(), None);
        assert_eq!(file.changed(), None);
        // Written to, back to what it was: the time says it
        let open = || OpenOptions::new().write(true).open(&path).unwrap();
        while file.changed().is_none() {
            open().write_all_at(&[7], 100).unwrap();
        }
        assert!(file.changed().unwrap().contains("written to since"));
        open().set_len(4096).unwrap();
        assert!(file.changed().unwrap().contains("4096 bytes, not 8192"));
        fs::remove_file(&path).unwrap();
        assert!(file.changed().unwrap().contains("cannot be read"));
    }
}
