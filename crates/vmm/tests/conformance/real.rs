//! The *guest* level: a stock kernel with our agent in it, and its channel.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use banger_channel::{Session, StreamEvent};
use banger_image::kernel::KernelStore;
use banger_image::{DiskUse, VmDisk};
use banger_model::{Bytes, Mib, RootFsType};
use banger_protocol::agent::{AgentHello, ExecSpec, ExitStatus, Reply, Request, ShutdownMode, UnpackSpec};
use banger_testkit::Seed;
use banger_vmm::{Disk, DiskRole, ExitReason, Machine, MachineSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::bench::{Bench, Subject, nothing, read, soon};
use crate::identity::a_copy_is_another_machine_before_anything_in_it_goes_on;
use crate::{Scenario, scenarios};

/// Software emulation on a busy host is slow.
const BOOT: Duration = Duration::from_secs(90);

pub(crate) fn scenarios() -> Vec<Scenario> {
    scenarios![
        an_agent_answers_runs_commands_and_carries_files,
        the_channel_is_made_anew_as_often_as_it_ends,
        a_pause_does_not_break_the_channel,
        a_snapshot_answers_wherever_it_goes_on,
        a_copy_is_another_machine_before_anything_in_it_goes_on,
        a_guest_powers_off,
    ]
}

/// What a guest is made of; the error says why it cannot be had here.
pub(crate) fn ingredients() -> Result<(), String> {
    // Many tasks share a few threads, of which none may become another user.
    banger_testkit::stay_invoker();
    let dir = std::env::var_os("BANGER_BIN_DIR").ok_or("no banger-agent (BANGER_BIN_DIR is unset)")?;
    let agent = Path::new(&dir).join("banger-agent");
    if agent.is_file() { Ok(()) } else { Err(format!("no {}", agent.display())) }
}

fn agent() -> PathBuf {
    Path::new(&std::env::var_os("BANGER_BIN_DIR").unwrap()).join("banger-agent")
}

/// A machine that boots the test cache's kernel and smallest image.
pub(crate) fn spec(bench: &Bench, system: &Path) -> MachineSpec {
    let seed = Seed::bare();
    // The kernel's own directory is copied: the initramfs is put beside it.
    let kernels = bench.files().join("kernels");
    let home = kernels.join("debian-cloud");
    if !home.exists() {
        banger_testkit::tree::link(&seed.kernel(), &home);
    }
    let name = "debian-cloud".parse().unwrap();
    let boot = KernelStore::new(&kernels, bench.files().join("scratch")).boot_files(&name, &agent()).unwrap();
    let mut images: Vec<PathBuf> =
        fs::read_dir(seed.state().join("images")).unwrap().map(|e| e.unwrap().path()).collect();
    images.sort();
    let disk = |role, path, read_only| Disk { role, path, read_only };
    let fs = RootFsType::Squashfs;
    let mut disks = vec![
        disk(DiskRole::Base { fs }, images.remove(0), true),
        disk(DiskRole::System, system.to_owned(), false),
    ];
    disks.extend(boot.modules.map(|path| disk(DiskRole::Modules, path, true)));
    let mut spec = bench.spec(b"");
    spec.shape.memory = Mib(256);
    MachineSpec { kernel: boot.kernel, initramfs: boot.initramfs, disks, ..spec }
}

fn system(bench: &Bench) -> PathBuf {
    let path = bench.files().join("system.img");
    VmDisk::create(&path, Bytes(256 << 20), DiskUse::System).unwrap();
    path
}

/// A machine whose agent has answered.
pub(crate) async fn boot(bench: &Bench) -> (Arc<dyn Machine>, Session) {
    let machine = soon(bench.subject.driver.launch(spec(bench, &system(bench)))).await.unwrap();
    let answered = tokio::time::timeout(BOOT, connect(&*machine)).await;
    let (session, _) = answered.unwrap_or_else(|_| panic!("no answer; {}", read(&bench.console())));
    (machine, session)
}

async fn connect(machine: &dyn Machine) -> (Session, AgentHello) {
    let io = machine.connect_agent().await.unwrap();
    let session = Session::connect(io, fresh()).await.unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos();
    let hello = session.hello(i64::try_from(now).unwrap(), vec![7; 32], None).await.unwrap();
    (session, hello)
}

pub(crate) fn fresh() -> [u8; 16] {
    let mut nonce = [0; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty()).unwrap();
    nonce
}

/// Runs a script; its output and status.
async fn sh(session: &Session, script: &str) -> (String, ExitStatus) {
    let spec = ExecSpec {
        cwd: Some("/".into()),
        op_id: "op-000000000000".into(),
        ..ExecSpec::plain(&["sh", "-c", script])
    };
    let (_sender, mut receiver) = session.open(&Request::Exec(spec)).await.unwrap();
    let (mut out, mut status) = (Vec::new(), None);
    while let Some(event) = receiver.next().await.unwrap() {
        match event {
            StreamEvent::Data(_, data) => out.extend_from_slice(&data),
            StreamEvent::Message(Reply::Exited(end)) => status = Some(end),
            _ => {}
        }
    }
    (String::from_utf8_lossy(&out).into_owned(), status.expect("an end"))
}

pub(crate) async fn says(session: &Session, script: &str) -> String {
    let (out, status) = soon(sh(session, script)).await;
    assert_eq!(status, ExitStatus::Code(0), "{script}: {out}");
    out.trim_end().to_owned()
}

async fn an_agent_answers_runs_commands_and_carries_files(subject: Subject) {
    let bench = Bench::new(&subject);
    let (machine, session) = boot(&bench).await;
    assert_eq!(soon(sh(&session, "echo out; exit 7")).await, ("out\n".to_owned(), ExitStatus::Code(7)));
    // Then every disk is in its place: the base below, the writable one above, the modules
    assert_eq!(says(&session, "hostname").await, "bench");
    assert_eq!(says(&session, "echo kept > /etc/mark && sync && cat /etc/mark").await, "kept");
    assert_ne!(says(&session, "ls /lib/modules/$(uname -r) | wc -l").await, "0");
    // And without a network device there is none
    assert_eq!(says(&session, "ls /sys/class/net").await, "lo");
    // And much goes both ways, whole
    let content: Vec<u8> =
        (0..3_000_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    let tar = archive("big", &content);
    let dest = UnpackSpec { dest: "/var/files".into(), must_be_empty: true };
    let (sender, receiver) = session.open(&Request::Unpack(dest)).await.unwrap();
    let mut writer = sender.writer();
    let feed = async {
        // An archive that is refused is not read to its end; the answer says why.
        let _ = writer.write_all(&tar).await;
        let _ = writer.shutdown().await;
    };
    let ((), answer) = soon(async { tokio::join!(feed, receiver.reader().reply()) }).await;
    assert_eq!(answer.unwrap(), Reply::Done);
    let (_sender, receiver) = session.open(&Request::Pack { path: "/var/files/big".into() }).await.unwrap();
    let mut back = Vec::new();
    let mut reader = receiver.reader();
    soon(reader.read_to_end(&mut back)).await.unwrap();
    assert!(unpacked(&back) == content);
    soon(machine.stop()).await.unwrap();
}

fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(content.len() as u64);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

/// The content of the first file in an archive.
fn unpacked(tar: &[u8]) -> Vec<u8> {
    let mut archive = tar::Archive::new(tar);
    let mut content = Vec::new();
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
    content
}

async fn the_channel_is_made_anew_as_often_as_it_ends(subject: Subject) {
    let bench = Bench::new(&subject);
    let (machine, session) = boot(&bench).await;
    let boot_id = says(&session, "cat /proc/sys/kernel/random/boot_id").await;
    drop(session);
    for round in 0..10 {
        // Given a connection that ends in the middle of a command's output
        let (session, hello) = soon(connect(&*machine)).await;
        assert_eq!(hello.boot_id, boot_id, "round {round}");
        let spam = sh(&session, "while :; do echo spam; done");
        assert!(tokio::time::timeout(Duration::from_millis(50), spam).await.is_err());
        drop(session);
        // Then the next is answered, and the one after the next waits for its turn
        let (session, _) = soon(connect(&*machine)).await;
        let second = tokio::time::timeout(Duration::from_millis(200), connect(&*machine)).await;
        assert!(second.is_err(), "two hosts at one agent");
        assert_eq!(says(&session, "echo still here").await, "still here");
    }
    // And another daemon reaches it, too
    let handle = machine.handle().clone();
    drop(machine);
    let machine = soon(subject.driver.adopt(&handle)).await.unwrap().unwrap();
    let (session, _) = soon(connect(&*machine)).await;
    assert_eq!(says(&session, "echo adopted").await, "adopted");
    soon(machine.stop()).await.unwrap();
}

async fn a_pause_does_not_break_the_channel(subject: Subject) {
    let bench = Bench::new(&subject);
    let (machine, session) = boot(&bench).await;
    for round in 0..10 {
        soon(machine.pause()).await.unwrap();
        soon(machine.resume()).await.unwrap();
        assert_eq!(says(&session, &format!("echo {round}")).await, round.to_string());
    }
    drop(session);
    for round in 0..10 {
        soon(machine.pause()).await.unwrap();
        soon(machine.resume()).await.unwrap();
        let (session, _) = soon(connect(&*machine)).await;
        assert_eq!(says(&session, &format!("echo {round}")).await, round.to_string());
    }
    soon(machine.stop()).await.unwrap();
}

async fn a_snapshot_answers_wherever_it_goes_on(subject: Subject) {
    let first = Bench::new(&subject);
    let (machine, session) = boot(&first).await;
    let boot_id = says(&session, "cat /proc/sys/kernel/random/boot_id").await;
    says(&session, "echo before > /etc/mark; sync").await;
    drop(session);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    soon(machine.snapshot(dir.path(), nothing())).await.unwrap();
    let disk = dir.path().join("system.img");
    fs::copy(first.files().join("system.img"), &disk).unwrap();
    // Given a template that goes on as well
    soon(machine.resume()).await.unwrap();
    let (session, _) = soon(connect(&*machine)).await;
    says(&session, "echo template > /etc/mark; sync").await;
    for round in 0..3 {
        // When another goes on from the snapshot, with its own disk
        let other = Bench::new(&subject);
        let own = other.files().join("system.img");
        fs::copy(&disk, &own).unwrap();
        let clone = soon(subject.driver.restore(spec(&other, &own), dir.path())).await.unwrap();
        // Then it answers, is the same boot, and what it does is its own
        let (session, hello) = soon(connect(&*clone)).await;
        assert_eq!(hello.boot_id, boot_id, "round {round}");
        assert_eq!(says(&session, "cat /etc/mark").await, "before");
        assert_eq!(says(&session, "echo clone > /etc/mark; sync; cat /etc/mark").await, "clone");
        soon(clone.stop()).await.unwrap();
    }
    assert_eq!(says(&session, "cat /etc/mark").await, "template");
    soon(machine.stop()).await.unwrap();
}

async fn a_guest_powers_off(subject: Subject) {
    for (mode, reason) in
        [(ShutdownMode::PowerOff, ExitReason::GuestShutdown), (ShutdownMode::Reboot, ExitReason::GuestReset)]
    {
        let bench = Bench::new(&subject);
        let (machine, session) = boot(&bench).await;
        let _ = soon(session.call(&Request::Shutdown { mode })).await;
        assert_eq!(soon(machine.wait()).await.reason, reason);
        assert_eq!(bench.processes(), 0);
    }
}
