//! Which modules a guest loads in its initramfs, in which order, resolved from this kernel's own modules.dep(5).
//! Must never guess: a driver that is neither a module nor in modules.builtin is an error.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use banger_protocol::boot;

use super::error::{KernelError, Result};
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
/// Drivers that a guest can do without.
const OPTIONAL: &[&str] = &["virtio_rng", "vmw_vsock_virtio_transport"];
/// No module that a guest loads here is anywhere near this large.
const MODULE_MAX: u64 = 32 << 20;

/// One module to load.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    stage: &'static str,
    /// Relative to the release's directory.
    path: String,
}

/// The files of the initramfs's module directory, the list first, for the modules in `dir`
/// (`lib/modules/<release>`, with modules.dep and modules.builtin).
pub(super) fn collect(dir: &Path, release: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(ImageError::io("read", &path))
    };
    let steps = resolve(&read("modules.dep")?, &read("modules.builtin")?, release)?;
    let mut list = String::new();
    let mut files = Vec::new();
    for step in steps {
        let name = format!("{}.ko", module_name(&step.path));
        list.push_str(&format!("{} {name}\n", step.stage));
        files.push((name, decompress(&dir.join(&step.path))?));
    }
    let list_name = boot::MODULE_LIST.rsplit('/').next().unwrap_or(boot::MODULE_LIST);
    files.insert(0, (list_name.to_owned(), list.into_bytes()));
    Ok(files)
}

/// What to load, dependencies first, each module once.
fn resolve(dep: &str, builtin: &str, release: &str) -> Result<Vec<Step>> {
    let dependencies: HashMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, rest)| (module_name(path), (path, rest.split_ascii_whitespace().collect())))
        .collect();
    let builtin: Vec<String> = builtin.lines().map(module_name).collect();
    let mut steps: Vec<Step> = Vec::new();
    let stages = [
        (boot::STAGE_BUS, BUS),
        (boot::STAGE_BOOT, BOOT),
        (boot::STAGE_CHANNEL, CHANNEL),
        (boot::STAGE_NET, NET),
        (boot::STAGE_LATE, LATE),
    ];
    for (stage, name) in
        stages.iter().flat_map(|(stage, names)| names.iter().map(move |name| (*stage, *name)))
    {
        if builtin.iter().any(|have| have == name) {
            continue;
        }
        let Some((path, needs)) = dependencies.get(name) else {
            if OPTIONAL.contains(&name) {
                continue;
            }
            return Err(KernelError::MissingModule { release: release.to_owned(), module: name.to_owned() });
        };
        // modules.dep lists all that is needed, the nearest first.
        for path in needs.iter().rev().chain([path]) {
            if !steps.iter().any(|step| step.path == **path) {
                steps.push(Step { stage, path: (*path).to_owned() });
            }
        }
    }
    Ok(steps)
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module virtio_rng.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
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

    fn paths(stage: &str, steps: &[Step]) -> Vec<String> {
        steps.iter().filter(|step| step.stage == stage).map(|step| module_name(&step.path)).collect()
    }

    #[test]
    fn dependencies_come_first_and_nothing_twice() {
        // Given a kernel like Debian's: ext4 built in, the rest modules, and no vsock
        let steps = resolve(DEP, BUILTIN, "6.1").unwrap();
        // Then each stage has just what it needs and no earlier one had
        assert_eq!(paths(boot::STAGE_BUS, &steps), ["virtio_ring", "virtio", "virtio_mmio"]);
        assert_eq!(paths(boot::STAGE_BOOT, &steps), ["virtio_blk", "squashfs", "overlay"]);
        assert_eq!(paths(boot::STAGE_CHANNEL, &steps), ["virtio_console"]);
        // And the last what is left, its dependencies first, a dash in a file name no obstacle
        assert_eq!(paths(boot::STAGE_NET, &steps), ["failover", "net_failover", "virtio_net"]);
        assert_eq!(paths(boot::STAGE_LATE, &steps), ["virtio_rng"]);
    }

    #[test]
    fn a_driver_that_is_nowhere_is_named() {
        let error = resolve(&DEP.replace("kernel/fs/overlay.ko:\n", ""), BUILTIN, "6.1-x").unwrap_err();
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
        assert_eq!(resolve("", &builtin, "6.1").unwrap(), []);
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
