//! Checks of the host: processor, memory, disk, ids, programs.

use std::fs;
use std::path::Path;

use banger_host::programs::{self, Kind, Program, Use};
use banger_host::subordinate_ids as ids;
use banger_model::{Bytes, Error};
use banger_protocol::api::Check;

use super::{Surroundings, fail, ok, warn};

/// What a VM's processes take beside the guest's memory: QEMU with what it emulates, passt and our own.
const BESIDE_A_GUEST: u64 = 256 << 20;

pub(super) fn architecture() -> Check {
    match std::env::consts::ARCH {
        "x86_64" => ok("architecture", "x86_64".to_owned()),
        other => fail(
            "architecture",
            Error::unavailable(format!("this host is {other}, and banger runs on x86_64 only"))
                .with_hint("use a host with an Intel or AMD processor of 64 bits"),
        ),
    }
}

/// Whether a VM of the default size fits into the memory that is free now.
pub(super) fn memory(about: &Surroundings) -> Check {
    let total = Bytes(about.host.memory.to_bytes());
    let Some(free) = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text)) else {
        return ok("memory", format!("{total}"));
    };
    let wanted = about.config.memory.value;
    let detail = format!("{} of {total} are free", Bytes(free));
    if free >= wanted.to_bytes() + BESIDE_A_GUEST {
        return ok("memory", detail);
    }
    let hint = "end other programs, or give VMs less: '--memory 512M', or 'memory' in [vm_defaults]";
    warn("memory", format!("{detail}; a VM of the default size takes {wanted}"), hint.to_owned())
}

/// `MemAvailable` of /proc/meminfo, bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Whether this user can build images without root.
pub(super) fn subordinate_ids() -> Check {
    let uid = rustix::process::geteuid();
    match ids::check(uid.as_raw()) {
        Ok(()) if uid.is_root() => ok("subordinate ids", "root needs none".to_owned()),
        Ok(()) => ok("subordinate ids", "this user has a range of them".to_owned()),
        Err(error) => {
            let hint = error.hint.unwrap_or_default();
            warn("subordinate ids", format!("{}; images cannot be built", error.message), hint)
        }
    }
}

/// Free space and the file system of a directory, or of the nearest one above that is there.
pub(super) fn disk(path: &Path) -> Check {
    const LITTLE: u64 = 1 << 30;
    const COMFORTABLE: u64 = 8 << 30;
    let there = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
    let (space, system) = match (rustix::fs::statvfs(there), rustix::fs::statfs(there)) {
        (Ok(space), Ok(system)) => (space, system),
        (Err(e), _) | (_, Err(e)) => {
            return fail("disk", Error::unavailable(format!("{}: {e}", there.display())));
        }
    };
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    let (kind, drawback) = file_system(system.f_type);
    let detail = format!("{} free in {} ({kind})", Bytes(free), path.display());
    let hint = "free some space, or set BANGER_STATE_DIR to a larger disk";
    match drawback {
        _ if free < LITTLE => fail("disk", Error::unavailable(detail).with_hint(hint)),
        Some(drawback) => {
            let hint = "set BANGER_STATE_DIR to a directory on a local disk";
            warn("disk", format!("{detail}: {drawback}"), hint.to_owned())
        }
        None if free < COMFORTABLE => warn("disk", detail, hint.to_owned()),
        None => ok("disk", detail),
    }
}

/// The name of a file system by its magic number (statfs(2)), and what it does badly.
fn file_system(magic: i64) -> (&'static str, Option<&'static str>) {
    const REMOTE: Option<&str> = Some("locks and speed of a remote file system are not those of a disk");
    match magic {
        0xef53 => ("ext4", None),
        0x5846_5342 => ("xfs", None),
        0x9123_683e => ("btrfs", None),
        0xf2f5_2010 => ("f2fs", None),
        0x2fc1_2fc1 => ("zfs", None),
        0x794c_7630 => ("overlay", None),
        0x0102_1994 => ("tmpfs", Some("what is in memory is gone after a reboot, VMs and images included")),
        0x6969 => ("nfs", REMOTE),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => ("smb", REMOTE),
        0x0102_1997 => ("9p", REMOTE),
        0x6573_5546 => ("fuse", REMOTE),
        _ => ("another file system", None),
    }
}

/// The programs that a running banger needs. Those that make kernels and images are missed less where these are there.
pub(super) fn programs(has_kernel: bool, has_image: bool) -> Vec<Check> {
    // These have checks of their own.
    let elsewhere = ["qemu-system-x86_64", "passt", "newuidmap"];
    let rows = programs::all().iter().filter(|row| row.kind == Kind::Program);
    rows.filter(|row| !elsewhere.contains(&row.name))
        .filter_map(|row| {
            let needed = |of| row.uses.contains(&of);
            let missed = needed(Use::Run)
                || (needed(Use::Image) && !has_image)
                || (needed(Use::Kernel) && !has_kernel);
            let used = needed(Use::Run) || needed(Use::Image) || needed(Use::Kernel);
            used.then(|| program(row, missed))
        })
        .collect()
}

fn program(row: &Program, missed: bool) -> Check {
    match programs::find(row.name) {
        Ok(path) => match row.too_old(&path) {
            None => ok(row.name, path.display().to_string()),
            Some(version) => {
                let oldest = row.oldest.map(|(_, oldest)| oldest).unwrap_or_default();
                let detail = format!(
                    "{}: version {version} is older than {oldest}, the oldest known to work",
                    path.display()
                );
                warn(row.name, detail, programs::install_hint(row.name))
            }
        },
        Err(missing) if missed => fail(row.name, missing.into()),
        Err(missing) => warn(row.name, missing.to_string(), missing.hint()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_protocol::api::CheckStatus;

    #[test]
    fn free_memory_is_what_the_kernel_says_can_be_had() {
        let text = "MemTotal:       24576000 kB\nMemFree:          100000 kB\nMemAvailable:   12288000 kB\n";
        assert_eq!(available(text), Some(12_288_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_judged_by_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("not/there/yet");
        let check = disk(&deep);
        assert!(check.detail.contains("not/there/yet") && check.detail.contains(" free in "), "{check:?}");
        assert!(!dir.path().join("not").exists());
    }

    #[test]
    fn a_remote_file_system_and_one_in_memory_are_named() {
        assert_eq!(file_system(0xef53), ("ext4", None));
        assert!(file_system(0x6969).1.unwrap().contains("remote"));
        assert!(file_system(0x0102_1994).1.unwrap().contains("reboot"));
    }

    #[test]
    fn programs_that_only_make_images_are_missed_where_there_is_no_image() {
        let mut row = programs::get("mmdebstrap").unwrap().clone();
        row.name = "no-such-program";
        assert_eq!(program(&row, true).status, CheckStatus::Fail);
        assert_eq!(program(&row, false).status, CheckStatus::Warn);
    }
}
