//! The store as its callers see it, with kernels that are only as real as the store looks.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use banger_model::{ErrorCode, KernelName};

use super::version::tests::bzimage;
use super::{KernelError, KernelStore};
use crate::context::Context;

const RELEASE: &str = "6.1.0-1-cloud-amd64";
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "squashfs",
    "overlay",
    "virtio_net",
    "crc32c_generic",
];

fn name(text: &str) -> KernelName {
    text.parse().unwrap()
}

fn ctx<'a>() -> Context<'a> {
    Context { progress: &|_| {}, cancelled: &|| false, cache_dir: PathBuf::from("/nonexistent") }
}

fn store(root: &Path) -> KernelStore {
    KernelStore::new(root.join("kernels"), root.join("tmp"))
}

/// A directory to import: a kernel and all modules but `without`.
fn source(root: &Path, without: &str) -> PathBuf {
    let dir = root.join("source");
    let modules = dir.join("lib/modules").join(RELEASE);
    std::fs::create_dir_all(&modules).unwrap();
    std::fs::write(dir.join("vmlinuz"), bzimage(RELEASE)).unwrap();
    std::fs::write(modules.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    let mut dep = String::new();
    for module in MODULES.iter().filter(|module| **module != without) {
        std::fs::write(
            modules.join(format!("{module}.ko")),
            [b"\x7fELF".as_slice(), module.as_bytes()].concat(),
        )
        .unwrap();
        dep.push_str(&format!("{module}.ko:\n"));
    }
    std::fs::write(modules.join("modules.dep"), dep).unwrap();
    std::fs::write(modules.join("modules.softdep"), "softdep overlay pre: crypto-crc32c\n").unwrap();
    std::fs::write(modules.join("modules.alias"), "alias crypto-crc32c crc32c_generic\n").unwrap();
    dir
}

fn agent(root: &Path, content: &str) -> PathBuf {
    let path = root.join("agent");
    std::fs::write(&path, content).unwrap();
    path
}

#[test]
fn an_imported_kernel_is_listed_boots_and_can_be_deleted() {
    // Given a store with one imported kernel
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let kernel = store.import(&name("mine"), &source(root.path(), ""), &ctx()).unwrap();
    assert_eq!(kernel.release, RELEASE);
    // When it is asked for
    assert_eq!(store.list().unwrap(), [store.get(&name("mine")).unwrap()]);
    let files = store.boot_files(&name("mine"), &agent(root.path(), "one")).unwrap();
    // Then all that a VM boots from is there, and the initramfs holds agent and modules
    assert_eq!(std::fs::read(&files.kernel).unwrap(), bzimage(RELEASE));
    assert!(std::fs::read(files.modules.unwrap()).unwrap().starts_with(b"hsqs"), "a squashfs");
    let initramfs = String::from_utf8_lossy(&std::fs::read(&files.initramfs).unwrap()).into_owned();
    assert!(
        initramfs.contains("bus virtio_ring.ko\nbus virtio.ko\n")
            && initramfs.contains("net virtio_net.ko\n")
    );
    // And what the boot can do without is marked
    assert!(initramfs.contains("boot crc32c_generic.ko optional\nboot overlay.ko\n"));
    // And nothing is left after it is deleted
    store.delete(&name("mine")).unwrap();
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn another_agent_gets_another_initramfs_and_the_old_one_goes() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    store.import(&name("mine"), &source(root.path(), ""), &ctx()).unwrap();
    let first = store.initramfs(&name("mine"), &agent(root.path(), "one")).unwrap();
    assert_eq!(store.initramfs(&name("mine"), &root.path().join("agent")).unwrap(), first);
    let second = store.initramfs(&name("mine"), &agent(root.path(), "another")).unwrap();
    assert!(second != first && second.exists() && !first.exists());
}

#[test]
fn a_taken_name_an_unknown_one_and_a_missing_driver_are_told() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let dir = source(root.path(), "overlay");
    let error = store.import(&name("mine"), &dir, &ctx()).unwrap_err();
    assert!(matches!(&error, KernelError::MissingModule { module, .. } if module == "overlay"), "{error}");
    assert_eq!(store.list().unwrap(), [], "half a kernel is none");
    source(root.path(), "");
    store.import(&name("mine"), &dir, &ctx()).unwrap();
    let taken = banger_model::Error::from(store.import(&name("mine"), &dir, &ctx()).unwrap_err());
    assert_eq!(taken.code, ErrorCode::AlreadyExists);
    let unknown = banger_model::Error::from(store.get(&name("min")).unwrap_err());
    assert_eq!(unknown.code, ErrorCode::NotFound);
    assert!(unknown.hint.unwrap().contains("'mine'"));
    let pulled = banger_model::Error::from(store.pull(&name("gentoo"), false, &ctx()).unwrap_err());
    assert!(pulled.hint.unwrap().contains("debian-cloud"));
}

#[test]
fn a_damaged_kernel_is_left_out_of_the_list_and_named_when_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    store.import(&name("mine"), &source(root.path(), ""), &ctx()).unwrap();
    std::fs::remove_file(root.path().join("kernels/mine/vmlinuz")).unwrap();
    assert_eq!(store.list().unwrap(), []);
    let error = banger_model::Error::from(store.get(&name("mine")).unwrap_err());
    assert_eq!(error.code, ErrorCode::ImageMissing);
    assert_eq!(error.message, "kernel 'mine' is damaged: vmlinuz is missing");
}

#[test]
fn cancelling_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let asked = Mutex::new(0);
    let cancelled = || {
        *asked.lock().unwrap() += 1;
        true
    };
    let ctx = Context { cancelled: &cancelled, ..ctx() };
    let error = store.import(&name("mine"), &source(root.path(), ""), &ctx).unwrap_err();
    assert_eq!(banger_model::Error::from(error).code, ErrorCode::Cancelled);
    assert!(*asked.lock().unwrap() > 0);
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(std::fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
}
