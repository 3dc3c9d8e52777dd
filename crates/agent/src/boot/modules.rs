//! Loading the modules that the initramfs brought, in the order and stages of its list.
//! Must never resolve dependencies: the host did, when it made the list.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use banger_protocol::boot;
use rustix::fs::{Mode, OFlags};

use super::console;
use super::error::{BootError, Result};

/// No list is anywhere near this long.
const LIST_MAX: u64 = 64 << 10;

/// The initramfs's directory of modules, usable after the root has changed.
pub(super) struct ModuleDir(OwnedFd);

impl ModuleDir {
    /// Opens it in the initramfs; an initramfs without modules has none.
    pub(super) fn open(path: &str) -> Result<Option<Self>> {
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => Ok(Some(Self(fd))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(BootError::os(format!("open {path}"))(errno)),
        }
    }

    /// Takes over the one that process 1 left open.
    pub(super) fn from_fd(fd: OwnedFd) -> Result<Self> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)
            .map_err(BootError::os("keep the module directory"))?;
        Ok(Self(fd))
    }

    /// The descriptor, to leave it to the server.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    /// Another descriptor of the same directory, for another thread.
    pub(super) fn try_clone(&self) -> Result<Self> {
        self.0.try_clone().map(Self).map_err(BootError::os("keep the module directory"))
    }

    /// Loads all modules of a stage. Those that are there already are fine, and so are optional ones that the kernel
    /// refuses; the console then says so.
    pub(super) fn load(&self, stage: &str) -> Result<()> {
        for Entry { file, optional } in entries(&self.list()?, stage)? {
            // Asked first: the kernel would read and check the whole file before it says so.
            if is_loaded(file) {
                continue;
            }
            let fd = self.open_file(file)?;
            match rustix::system::finit_module(&fd, c"", 0) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(errno) if optional => {
                    console::say(&format!("the boot goes on without the optional module {file}: {errno}"));
                }
                Err(errno) => return Err(BootError::os(format!("load module {file}"))(errno)),
            }
        }
        Ok(())
    }

    fn list(&self) -> Result<String> {
        let mut text = String::new();
        match rustix::fs::openat(self.0.as_fd(), list_name(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        {
            Ok(fd) => File::from(fd)
                .take(LIST_MAX)
                .read_to_string(&mut text)
                .map(|_| text)
                .map_err(BootError::os("read the list of modules")),
            Err(rustix::io::Errno::NOENT) => Ok(text),
            Err(errno) => Err(BootError::os("read the list of modules")(errno)),
        }
    }

    fn open_file(&self, file: &str) -> Result<OwnedFd> {
        rustix::fs::openat(self.0.as_fd(), file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(BootError::os(format!("open module {file}")))
    }
}

fn is_loaded(file: &str) -> bool {
    let name = file.strip_suffix(".ko").unwrap_or(file).replace('-', "_");
    Path::new("/sys/module").join(name).exists()
}

fn list_name() -> &'static str {
    boot::MODULE_LIST.rsplit('/').next().unwrap_or(boot::MODULE_LIST)
}

/// A module of the list.
#[derive(Debug, PartialEq, Eq)]
struct Entry<'a> {
    file: &'a str,
    optional: bool,
}

/// The modules of one stage, in load order.
fn entries<'a>(list: &'a str, stage: &str) -> Result<Vec<Entry<'a>>> {
    let mut found = Vec::new();
    for line in list.lines().filter(|line| !line.is_empty()) {
        let bad =
            || BootError::Invalid(format!("the list of modules has a bad line '{}'", line.escape_debug()));
        let (word, rest) = line.split_once(' ').ok_or_else(bad)?;
        let (file, optional) = match rest.split_once(' ') {
            None => (rest, false),
            Some((file, boot::OPTIONAL)) => (file, true),
            Some(_) => return Err(bad()),
        };
        if file.is_empty() || file.contains('/') {
            return Err(bad());
        }
        if word == stage {
            found.push(Entry { file, optional });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_takes_its_own_files_in_order() {
        let list = "boot virtio_ring.ko\nboot crc32c_intel.ko optional\nlate virtio_net.ko\n\nboot ext4.ko\n";
        let entry = |file, optional| Entry { file, optional };
        assert_eq!(
            entries(list, boot::STAGE_BOOT).unwrap(),
            [entry("virtio_ring.ko", false), entry("crc32c_intel.ko", true), entry("ext4.ko", false)]
        );
        assert_eq!(entries(list, boot::STAGE_LATE).unwrap(), [entry("virtio_net.ko", false)]);
    }

    #[test]
    fn a_line_that_could_leave_the_directory_is_refused() {
        for bad in
            ["boot", "boot ../x.ko", "boot ", "boot a b", "boot a ", "boot  optional", "boot a optional b"]
        {
            assert!(entries(bad, boot::STAGE_BOOT).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_an_optional_module_may_be_refused_by_the_kernel() {
        // Given a file that no kernel takes for a module
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("broken.ko"), "no module").unwrap();
        let load = |list: &str| {
            std::fs::write(dir.path().join(list_name()), list).unwrap();
            ModuleDir::open(dir.path().to_str().unwrap()).unwrap().unwrap().load(boot::STAGE_BOOT)
        };
        load("boot broken.ko optional\n").unwrap();
        let error = load("boot broken.ko\n").unwrap_err().to_string();
        assert!(error.contains("load module broken.ko"), "{error}");
        // And one that the host listed and did not bring is an error in any case
        assert!(load("boot absent.ko optional\n").is_err());
    }

    #[test]
    fn an_initramfs_without_modules_has_nothing_to_load() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ModuleDir::open(dir.path().join("modules").to_str().unwrap()).unwrap().is_none());
        let empty = ModuleDir::open(dir.path().to_str().unwrap()).unwrap().unwrap();
        empty.load(boot::STAGE_BOOT).unwrap();
    }
}
