//! What a scenario works with: a driver under test, directories, specifications, and the proof that
//! nothing is left.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use banger_model::{Accel, Bytes, MachineShape, Mib, VmId};
use banger_vmm::{Disk, DiskRole, Driver, Machine, MachineSpec, console, process};

use crate::guest;

/// A driver under test, and what of the guests depends on it.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) accel: Accel,
    /// A guest that powers its machine off.
    pub(crate) power_off: Vec<u8>,
    /// A guest that resets it.
    pub(crate) reset: Vec<u8>,
}

/// One VM's directories; another VM of the same scenario has others.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    pub(crate) subject: Subject,
    pub(crate) id: VmId,
}

impl Bench {
    pub(crate) fn new(subject: &Subject) -> Self {
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id().to_be_bytes();
        let bench = Self {
            dir: tempfile::tempdir_in("/var/tmp").unwrap(),
            subject: subject.clone(),
            id: VmId::from_random([0xee, 1, pid[2], pid[3], 0, number]),
        };
        for dir in [bench.runtime(), bench.logs(), bench.files()] {
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        }
        bench
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.path().join("logs")
    }

    pub(crate) fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.logs().join("console.log")
    }

    pub(crate) fn file(&self, name: &str, contents: &[u8]) -> PathBuf {
        let path = self.files().join(name);
        fs::write(&path, contents).unwrap();
        path
    }

    pub(crate) fn spec(&self, code: &[u8]) -> MachineSpec {
        MachineSpec {
            id: self.id.clone(),
            name: "bench".parse().unwrap(),
            shape: MachineShape { vcpu: 1, memory: Mib(64), disk: Bytes(64 << 20) },
            accel: self.subject.accel,
            kernel: self.file("kernel", &guest::kernel(code)),
            initramfs: self.file("initramfs", b"nothing"),
            disks: vec![Disk {
                role: DiskRole::System,
                path: self.file("a, \"b\".img", &[0; 1 << 16]),
                read_only: false,
            }],
            network: None,
            runtime_dir: self.runtime(),
            log_dir: self.logs(),
            verbose_console: false,
            rescue: false,
        }
    }

    pub(crate) async fn launch(&self, code: &[u8]) -> Arc<dyn Machine> {
        soon(self.subject.driver.launch(self.spec(code))).await.unwrap()
    }

    /// Processes of this VM.
    pub(crate) fn processes(&self) -> usize {
        process::find_marked(&self.id).unwrap().len()
    }

    /// What lies in the runtime directory.
    pub(crate) fn left(&self) -> BTreeSet<String> {
        let entries = fs::read_dir(self.runtime()).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    pub(crate) fn assert_nothing_left(&self, after: &str) {
        assert_eq!(self.processes(), 0, "a process is left after {after}");
        assert!(self.left().is_empty(), "after {after}: {:?}", self.left());
    }
}

impl Drop for Bench {
    /// A scenario that fails in the middle leaves no machine behind either.
    fn drop(&mut self) {
        for process in process::find_marked(&self.id).unwrap_or_default() {
            let _ = process.signal(banger_vmm::Signal::KILL);
        }
    }
}

/// Nothing to do before the vCPUs halt.
pub(crate) fn nothing() -> banger_vmm::Last<'static> {
    Box::pin(async { Ok(()) })
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(80), what).await.expect("it takes too long")
}

pub(crate) async fn until(mut what: impl FnMut() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

pub(crate) async fn console_says(path: &Path, words: &str) {
    until(|| console::tail(path, 100).iter().any(|line| line.contains(words))).await;
}

/// The last number that a counting guest has said.
pub(crate) fn last_number(bench: &Bench) -> u32 {
    guest::numbers(&read(&bench.console())).last().copied().unwrap_or_default()
}

pub(crate) async fn counts_beyond(bench: &Bench, number: u32) {
    until(|| last_number(bench) > number).await;
}

pub(crate) fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}
