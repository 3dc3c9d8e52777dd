//! Which modules a guest loads in its initramfs, in which order, resolved from this kernel's own tables.
//! Must never guess: a driver that is neither a module nor built in is an error.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

use banger_protocol::boot;

use super::error::{KernelError, Result};
use super::index::{Index, module_name};
use crate::error::ImageError;

/// Where all devices are. virtio's module does not name virtio_ring before itself in every kernel; this order is the
/// one that loads.
const BUS: &[&str] = &["virtio_ring", "virtio", "virtio_mmio"];
/// What the root needs.
const BOOT: &[&str] = &["virtio_blk", "squashfs", "ext4", "overlay"];
/// What the channel needs.
const CHANNEL: &[&str] = &["virtio_console"];
/// The network device.
const NET: &[&str] = &["virtio_net"];
/// On which nobody waits.
const LATE: &[&str] = &["virtio_rng", "vmw_vsock_virtio_transport"];
/// Drivers that a kernel may lack.
const MAY_BE_MISSING: &[&str] = &["virtio_rng", "vmw_vsock_virtio_transport"];
/// What is wanted, in the order of the stages.
const STAGES: &[(&str, &[&str])] = &[
    (boot::STAGE_BUS, BUS),
    (boot::STAGE_BOOT, BOOT),
    (boot::STAGE_CHANNEL, CHANNEL),
    (boot::STAGE_NET, NET),
    (boot::STAGE_LATE, LATE),
];
/// No module that a guest loads here is anywhere near this large.
const MODULE_MAX: u64 = 32 << 20;

/// One module to load.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    stage: &'static str,
    /// Relative to the release's directory.
    path: String,
    /// The boot goes on when the guest's kernel refuses it.
    optional: bool,
}

/// The files of the initramfs's module directory, the list first, for the modules in `dir`
/// (`lib/modules/<release>`, with the tables that depmod makes).
pub(super) fn collect(dir: &Path, release: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let mut list = String::new();
    let mut files = Vec::new();
    for step in resolve(&Index::read(dir)?, release)? {
        let name = format!("{}.ko", module_name(&step.path));
        let mark = if step.optional { format!(" {}", boot::OPTIONAL) } else { String::new() };
        list.push_str(&format!("{} {name}{mark}\n", step.stage));
        if !files.iter().any(|(have, _)| *have == name) {
            files.push((name, decompress(&dir.join(&step.path))?));
        }
    }
    let list_name = boot::MODULE_LIST.rsplit('/').next().unwrap_or(boot::MODULE_LIST);
    files.insert(0, (list_name.to_owned(), list.into_bytes()));
    Ok(files)
}

/// What to load, dependencies first, in each stage that needs it: only the bus's stage is loaded before the others, which
/// are loaded side by side, and in another order where the channel is a vsock.
fn resolve(index: &Index, release: &str) -> Result<Vec<Step>> {
    let wanted = |names: &'static [&str]| names.iter().filter(|name| !index.is_builtin(name));
    let mut plan = Plan { index, required: HashSet::new(), visited: HashSet::new(), steps: Vec::new() };
    // Known before the first step: a module that a soft dependency brings may be required by a later driver.
    for name in STAGES.iter().flat_map(|(_, names)| wanted(names)) {
        if let Some(module) = index.module(name) {
            plan.required.extend(module.needs.iter().chain([&module.path]).map(String::as_str));
        } else if !MAY_BE_MISSING.contains(name) {
            return Err(KernelError::MissingModule {
                release: release.to_owned(),
                module: (*name).to_owned(),
            });
        }
    }
    for (stage, names) in STAGES {
        plan.visited.clear();
        for name in wanted(names) {
            plan.add(stage, name);
        }
    }
    Ok(plan.steps)
}

/// The order of modprobe: what a module needs, each with its own soft dependencies around it, and then the module with
/// its own. Soft dependencies may lead in circles.
struct Plan<'a> {
    index: &'a Index,
    /// The paths of the modules without which the guest does not boot; all others are optional.
    required: HashSet<&'a str>,
    /// The names of the modules that this stage was asked for.
    visited: HashSet<&'a str>,
    steps: Vec<Step>,
}

impl<'a> Plan<'a> {
    fn add(&mut self, stage: &'static str, name: &'a str) {
        let index = self.index;
        let Some(module) = index.module(name) else { return };
        if !self.visited.insert(name) {
            return;
        }
        for path in module.needs.iter().chain([&module.path]) {
            self.add_with_soft(stage, path);
        }
    }

    /// Unlike [`Self::add`] also for a module that was visited: what needs it must come after it, wherever a circle
    /// of soft dependencies began.
    fn add_with_soft(&mut self, stage: &'static str, path: &'a str) {
        let index = self.index;
        let soft = index.soft(&module_name(path));
        for module in soft.iter().flat_map(|soft| &soft.before).flat_map(|name| index.stands_for(name)) {
            self.add(stage, module);
        }
        let there = |step: &Step| step.path == path && [stage, boot::STAGE_BUS].contains(&step.stage);
        if !self.steps.iter().any(there) {
            let optional = !self.required.contains(path);
            self.steps.push(Step { stage, path: path.to_owned(), optional });
        }
        for module in soft.iter().flat_map(|soft| &soft.after).flat_map(|name| index.stands_for(name)) {
            self.add(stage, module);
        }
    }
}

/// The module as the guest's kernel takes it: our kernels need not know how to decompress.
fn decompress(path: &Path) -> Result<Vec<u8>> {
    let file = std::fs::File::open(path).map_err(ImageError::io("open", path))?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let mut content: Box<dyn std::io::Read> = match extension {
        "gz" => Box::new(flate2::read::GzDecoder::new(file)),
        "xz" => Box::new(liblzma::read::XzDecoder::new(file)),
        "zst" => {
            Box::new(zstd::stream::read::Decoder::new(file).map_err(ImageError::io("decompress", path))?)
        }
        _ => Box::new(file),
    };
    let mut bytes = Vec::new();
    content.by_ref().take(MODULE_MAX + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", path))?;
    if bytes.len() as u64 > MODULE_MAX || !bytes.starts_with(b"\x7fELF") {
        return Err(ImageError::bad_source(path, "it is no kernel module").into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const DEP: &str = "kernel/d/virtio.ko: kernel/d/virtio_ring.ko\n\
        kernel/d/virtio_ring.ko:\n\
        kernel/d/virtio_mmio.ko: kernel/d/virtio.ko kernel/d/virtio_ring.ko\n\
        kernel/b/virtio_blk.ko: kernel/d/virtio.ko kernel/d/virtio_ring.ko\n\
        kernel/c/virtio_console.ko.xz: kernel/d/virtio.ko kernel/d/virtio_ring.ko\n\
        kernel/fs/squashfs.ko:\n\
        kernel/fs/overlay.ko:\n\
        kernel/n/virtio_net.ko: kernel/n/net_failover.ko kernel/n/failover.ko kernel/d/virtio.ko kernel/d/virtio_ring.ko\n\
        kernel/c/virtio-rng.ko: kernel/d/virtio.ko kernel/d/virtio_ring.ko\n";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\n";
    /// What a kernel has more of that builds ext4 as a module.
    const EXT4: &str = "kernel/fs/mbcache.ko:\nkernel/fs/jbd2.ko:\n\
        kernel/fs/ext4.ko: kernel/fs/mbcache.ko kernel/fs/jbd2.ko\n\
        kernel/a/crc32c-intel.ko:\nkernel/a/crc32c_generic.ko:\n";
    const CRC32C: &str = "alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\n";

    fn resolved(dep: &str, more: &[(&str, &str)]) -> Result<Vec<Step>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("modules.dep", dep), ("modules.builtin", "")].iter().chain(more) {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        resolve(&Index::read(dir.path())?, "6.1-x")
    }

    /// The names of a stage; a question mark is after an optional one.
    fn names(stage: &str, steps: &[Step]) -> Vec<String> {
        let name = |step: &Step| module_name(&step.path) + if step.optional { "?" } else { "" };
        steps.iter().filter(|step| step.stage == stage).map(name).collect()
    }

    #[test]
    fn dependencies_come_first_and_what_the_bus_has_is_not_repeated() {
        // Given a kernel like Debian's for clouds: ext4 built in, the rest modules, and no vsock
        let steps = resolved(DEP, &[("modules.builtin", BUILTIN)]).unwrap();
        // Then each stage has just what it needs and the bus has not
        assert_eq!(names(boot::STAGE_BUS, &steps), ["virtio_ring", "virtio", "virtio_mmio"]);
        assert_eq!(names(boot::STAGE_BOOT, &steps), ["virtio_blk", "squashfs", "overlay"]);
        assert_eq!(names(boot::STAGE_CHANNEL, &steps), ["virtio_console"]);
        // And the last what is left, its dependencies first, a dash in a file name no obstacle
        assert_eq!(names(boot::STAGE_NET, &steps), ["failover", "net_failover", "virtio_net"]);
        assert_eq!(names(boot::STAGE_LATE, &steps), ["virtio_rng"]);
    }

    #[test]
    fn soft_dependencies_come_before_and_after_and_are_optional() {
        // Given a kernel like Debian's for all machines: ext4 and its checksums are modules
        let soft = "softdep ext4 pre: crypto-crc32c\nsoftdep jbd2 pre: crypto-crc32c nowhere post: mbcache\n\
            softdep virtio_net post: virtio_rng\nsoftdep crc32c_generic pre: ext4\n";
        let dep = format!("{DEP}{EXT4}");
        let steps = resolved(&dep, &[("modules.softdep", soft), ("modules.alias", CRC32C)]).unwrap();
        // Then those of what ext4 needs come first as well, the circle ends, and what is nowhere is left out
        let boot = [
            "virtio_blk",
            "squashfs",
            "crc32c_intel?",
            "crc32c_generic?",
            "jbd2",
            "mbcache",
            "ext4",
            "overlay",
        ];
        assert_eq!(names(boot::STAGE_BOOT, &steps), boot);
        // And a driver that is also wanted for itself is not optional, and is in both stages
        assert_eq!(names(boot::STAGE_NET, &steps), ["failover", "net_failover", "virtio_net", "virtio_rng"]);
        assert_eq!(names(boot::STAGE_LATE, &steps), ["virtio_rng"]);
    }

    #[test]
    fn what_needs_a_module_comes_after_it_also_in_a_circle() {
        // Given an overlay that should have 'helper' before it, which in turn needs the overlay
        let dep = format!("{DEP}kernel/x/helper.ko: kernel/fs/overlay.ko\n");
        let more = [("modules.builtin", BUILTIN), ("modules.softdep", "softdep overlay pre: helper\n")];
        let steps = resolved(&dep, &more).unwrap();
        assert_eq!(names(boot::STAGE_BOOT, &steps), ["virtio_blk", "squashfs", "overlay", "helper?"]);
    }

    #[test]
    fn stages_that_are_loaded_side_by_side_each_have_what_they_need() {
        let dep = DEP
            .replace("kernel/fs/overlay.ko:", "kernel/fs/overlay.ko: kernel/n/failover.ko")
            .replace("virtio-rng.ko:", "virtio-rng.ko: kernel/n/failover.ko");
        let steps = resolved(&dep, &[("modules.builtin", BUILTIN)]).unwrap();
        assert_eq!(names(boot::STAGE_BOOT, &steps), ["virtio_blk", "squashfs", "failover", "overlay"]);
        assert_eq!(names(boot::STAGE_NET, &steps), ["failover", "net_failover", "virtio_net"]);
        assert_eq!(names(boot::STAGE_LATE, &steps), ["failover", "virtio_rng"]);
    }

    #[test]
    fn a_soft_dependency_that_is_built_in_adds_nothing() {
        let dep = format!("{DEP}{EXT4}").replace("kernel/a/crc32c_generic.ko:\n", "");
        let more = [
            ("modules.builtin", "kernel/crypto/crc32c_generic.ko\n"),
            ("modules.builtin.modinfo", "crc32c_generic.alias=crypto-crc32c\0"),
            ("modules.softdep", "softdep ext4 pre: crypto-crc32c\n"),
            ("modules.alias", CRC32C),
        ];
        let steps = resolved(&dep, &more).unwrap();
        assert_eq!(
            names(boot::STAGE_BOOT, &steps),
            ["virtio_blk", "squashfs", "jbd2", "mbcache", "ext4", "overlay"]
        );
    }

    #[test]
    fn a_driver_that_is_nowhere_is_named() {
        let dep = DEP.replace("kernel/fs/overlay.ko:\n", "");
        let error = resolved(&dep, &[("modules.builtin", BUILTIN)]).unwrap_err();
        assert_eq!(error.to_string(), "kernel 6.1-x has no 'overlay', neither built in nor as a module");
        assert_eq!(banger_model::Error::from(error).code, banger_model::ErrorCode::Unsupported);
    }

    #[test]
    fn a_kernel_with_everything_built_in_loads_nothing() {
        let builtin: String = [BUS, BOOT, CHANNEL, NET, LATE]
            .concat()
            .iter()
            .map(|name| format!("kernel/{name}.ko\n"))
            .collect();
        assert_eq!(resolved("", &[("modules.builtin", &builtin)]).unwrap(), []);
    }

    #[test]
    fn compressed_modules_are_unpacked_and_rubbish_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let module = [b"\x7fELF".as_slice(), &[9; 5000]].concat();
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        };
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&module).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&module).unwrap();
        for (name, bytes) in [
            ("a.ko", module.clone()),
            ("b.ko.gz", gz.finish().unwrap()),
            ("c.ko.xz", xz.finish().unwrap()),
            ("d.ko.zst", zstd::encode_all(&module[..], 1).unwrap()),
        ] {
            assert_eq!(decompress(&write(name, &bytes)).unwrap(), module, "{name}");
        }
        for (name, bytes) in [("e.ko", b"text".as_slice()), ("f.ko.xz", b"text"), ("g.ko", b"")] {
            assert!(decompress(&write(name, bytes)).is_err(), "{name}");
        }
    }
}
