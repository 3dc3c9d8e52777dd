//! Finding a disk by what the host calls it: a virtio-blk serial, or a name below `/dev`.
//! Must never write to a disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::cmdline::BootConfig;
use super::error::{BootError, Result};

/// Disks are there when their driver is loaded; this is for hosts that plug them a moment later.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// The device files of this machine's disks.
#[derive(Debug)]
pub(super) struct Disks {
    pub(super) base: PathBuf,
    pub(super) system: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
    pub(super) modules: Option<PathBuf>,
}

impl Disks {
    /// Finds them all, waiting a moment for those that are not there yet. Reading a serial asks the host, so all
    /// are looked for in one look.
    pub(super) fn find(config: &BootConfig) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let disks = scan(Path::new("/sys/block"));
            match Self::among(&disks, config) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                found => return found,
            }
        }
    }

    fn among(disks: &[Disk], config: &BootConfig) -> Result<Self> {
        let device = |wanted: &str| match choose(disks, wanted) {
            Some(name) => Ok(Path::new("/dev").join(name)),
            None => {
                let there = describe(disks);
                Err(BootError::Missing(format!("there is no disk '{wanted}' among {there}")))
            }
        };
        Ok(Self {
            base: device(&config.base)?,
            system: config.system.as_deref().map(device).transpose()?,
            home: config.home.as_deref().map(device).transpose()?,
            modules: config.modules.as_deref().map(device).transpose()?,
        })
    }
}

/// A disk's name below `/dev`, and its serial if it has one.
type Disk = (String, String);

fn scan(sys_block: &Path) -> Vec<Disk> {
    let Ok(entries) = std::fs::read_dir(sys_block) else { return Vec::new() };
    let mut disks: Vec<Disk> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with("loop") && !name.starts_with("ram"))
        .map(|name| {
            let serial = std::fs::read_to_string(sys_block.join(&name).join("serial")).unwrap_or_default();
            (name, serial.trim_end().to_owned())
        })
        .collect();
    disks.sort();
    disks
}

/// A serial wins over a name, since the host chose it.
fn choose<'a>(disks: &'a [Disk], wanted: &str) -> Option<&'a str> {
    let by = |matches: fn(&Disk, &str) -> bool| disks.iter().find(|disk| matches(disk, wanted));
    by(|disk, wanted| disk.1 == wanted)
        .or_else(|| by(|disk, wanted| disk.0 == wanted))
        .map(|disk| disk.0.as_str())
}

fn describe(disks: &[Disk]) -> String {
    if disks.is_empty() {
        return "no disks at all".to_owned();
    }
    let names: Vec<String> = disks.iter().map(|(name, serial)| format!("{name} ('{serial}')")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_serial_then_by_name() {
        // Given two disks, one with the other's name as its serial
        let dir = tempfile::tempdir().unwrap();
        for (name, serial) in
            [("vda", Some("system\n")), ("vdb", Some("vda\n")), ("loop0", None), ("sda", None)]
        {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            if let Some(serial) = serial {
                std::fs::write(dir.path().join(name).join("serial"), serial).unwrap();
            }
        }
        let disks = scan(dir.path());
        // Then a serial wins over a name, and names work without serials
        assert_eq!(choose(&disks, "system"), Some("vda"));
        assert_eq!(choose(&disks, "vda"), Some("vdb"));
        assert_eq!(choose(&disks, "sda"), Some("sda"));
        assert_eq!(choose(&disks, "loop0"), None);
        assert_eq!(describe(&disks), "sda (''), vda ('system'), vdb ('vda')");
    }
}
