//! The guest's /init: from the kernel's first process to a mounted root with the agent's server beside the image's
//! init, and the duties that only the boot side knows how to do. Must never depend on anything in the image.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;

use banger_protocol::agent::{InitKind, NetworkConfig, ShutdownMode};
use banger_protocol::boot;

mod cmdline;
mod connections;
mod console;
mod disks;
mod error;
mod ext4;
mod guest;
mod handover;
mod home;
mod modules;
mod netlink;
mod network;
mod root;
mod shutdown;
mod sys;

pub(crate) use connections::Connection;
use disks::Disks;
pub use error::BootError;
use error::Result;
pub(crate) use guest::{machine_id, write_machine_id};
use modules::ModuleDir;
pub(crate) use sys::CLONE_INTO_CGROUP;

use crate::groups::{self, Groups};

/// `argv[0]` of the agent's server. systemd's final killing spree spares processes whose `argv[0]` begins with '@'
/// (systemd.io/ROOT_STORAGE_DAEMONS).
pub const SERVER_ARG0: &str = "@banger-agent";

/// What this process was started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The kernel's first process, in the initramfs: call [`run_init`].
    Init,
    /// The server that [`run_init`] started: call [`enter_server`], then serve.
    Server,
    /// Neither: somebody ran the file by hand.
    Other,
}

/// Tells [`Role`]s apart by process id and `argv[0]`.
#[must_use]
pub fn role() -> Role {
    if std::process::id() == 1 {
        Role::Init
    } else if std::env::args_os().next().is_some_and(|arg0| arg0 == SERVER_ARG0) {
        Role::Server
    } else {
        Role::Other
    }
}

/// As process 1: mounts the root, starts the server (this same executable, with [`SERVER_ARG0`]) and becomes the
/// image's init, or, where it has none, stays to reap and to restart the server should it die. Ends the machine with
/// one line `banger: …` on the console when that cannot be done.
pub fn run_init() -> ! {
    match boot() {
        Ok(Booted { server, modules, groups, init, vsock }) => {
            if let Some(init) = init {
                let error = handover::become_init(init);
                console::say(&format!("{error}; the agent stays process 1"));
            }
            handover::stay(server, modules.as_ref(), groups.as_ref(), vsock)
        }
        Err(error) => console::die(&error.to_string()),
    }
}

/// What process 1 goes on with.
struct Booted {
    server: u32,
    modules: Option<ModuleDir>,
    groups: Option<Groups>,
    init: Option<&'static str>,
    vsock: Option<u32>,
}

/// Everything up to the running server, which shares the processor with what comes after.
fn boot() -> Result<Booted> {
    let mut steps = console::Steps::begin();
    root::mount_initramfs()?;
    let line = std::fs::read_to_string("/proc/cmdline").map_err(BootError::os("read /proc/cmdline"))?;
    let config = cmdline::parse(&line)?;
    steps.done("start");
    let modules = ModuleDir::open(&format!("/{}", boot::MODULE_DIR))?;
    let channel = if config.vsock.is_some() { boot::STAGE_LATE } else { boot::STAGE_CHANNEL };
    let devices = modules.as_ref().map(|dir| load_devices(dir, channel)).transpose()?;
    steps.done("modules");
    let disks = Disks::find(&config)?;
    let first_boot = root::assemble(&config, &disks)?;
    steps.done("disks");
    root::enter()?;
    root::furnish()?;
    if let Some(disk) = &disks.home {
        home::mount(disk, first_boot)?;
    }
    steps.done("root");
    if let Some(disk) = &disks.modules
        && let Err(error) = root::mount_modules(disk)
    {
        console::say(&error.to_string());
    }
    if let Some(name) = &config.hostname {
        guest::set_hostname(Path::new("/"), name);
    }
    guest::set_machine_id(Path::new("/"), first_boot);
    steps.done("identity");
    if let Some(devices) = devices {
        devices
            .join()
            .unwrap_or_else(|_| Err(BootError::Invalid("the thread that loads modules ended".into())))?;
    }
    steps.done("devices");
    let init = if config.rescue { None } else { handover::find_init(Path::new("/")) };
    // A kernel without control groups boots as well.
    let groups = Groups::make().ok();
    let server = handover::start_server(modules.as_ref(), groups.as_ref(), init, config.vsock)?;
    steps.done("server");
    if config.debug {
        steps.print();
    }
    Ok(Booted { server, modules, groups, init, vsock: config.vsock })
}

/// Loads what the root needs, and begins with what the channel (its stage) and the network need on a thread of its own, so that a
/// second processor has something to do. Who becomes another program must have joined it: that would end the thread.
fn load_devices(dir: &ModuleDir, channel: &'static str) -> Result<std::thread::JoinHandle<Result<()>>> {
    dir.load(boot::STAGE_BUS)?;
    let network = network::has_device(Path::new("/sys/bus/virtio/devices"));
    let beside = dir.try_clone()?;
    let thread = std::thread::Builder::new()
        .spawn(move || {
            beside.load(channel)?;
            if network { beside.load(boot::STAGE_NET) } else { Ok(()) }
        })
        .map_err(BootError::os("start a thread"))?;
    dir.load(boot::STAGE_BOOT)?;
    Ok(thread)
}

/// First thing in the server process: own session, out of the OOM killer's reach.
/// Children inherit the protection; see [`expose_to_oom`].
pub fn enter_server() {
    let _ = rustix::process::setsid();
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let fd = std::env::var(groups::ROOT_FD).ok().and_then(|fd| fd.parse().ok());
    let init = (init_kind() == InitKind::Agent).then_some(1);
    groups::take_over(fd.and_then(|fd| sys::inherited_fd(fd).ok()), init);
}

/// Takes the server's OOM protection off a child. Cheap; call it for every command that is run for the host.
pub fn expose_to_oom(pid: u32) {
    let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
}

/// The vsock port to serve, where the channel is one.
#[must_use]
pub fn vsock_port() -> Option<u32> {
    std::env::var(handover::VSOCK).ok()?.parse().ok()
}

/// Who is process 1, also while it is only about to become the image's init.
#[must_use]
pub fn init_kind() -> InitKind {
    if std::env::var_os(handover::INIT).is_some() { InitKind::Image } else { InitKind::Agent }
}

/// Loads the modules on which nobody waits (random numbers, vsock) and brings loopback up. Call it on a thread of
/// its own once Hello is answered.
///
/// # Errors
/// A sentence naming the module that the kernel refused.
pub fn load_late_modules() -> Result<(), BootError> {
    load_once(boot::STAGE_LATE)?;
    network::loopback()
}

/// Loads a stage that was left for after the first answer; only the first call works, others wait for it.
fn load_once(stage: &'static str) -> Result<(), BootError> {
    struct Left {
        dir: Option<ModuleDir>,
        loaded: Vec<&'static str>,
    }
    static LEFT: Mutex<Option<Left>> = Mutex::new(None);
    let mut left = LEFT.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let left = match &mut *left {
        Some(left) => left,
        none => none.insert(Left { dir: left_modules()?, loaded: Vec::new() }),
    };
    if left.loaded.contains(&stage) {
        return Ok(());
    }
    left.loaded.push(stage);
    left.dir.as_ref().map_or(Ok(()), |dir| dir.load(stage))
}

/// The directory of modules that process 1 left open.
fn left_modules() -> Result<Option<ModuleDir>, BootError> {
    let fd = std::env::var(handover::MODULES_FD).ok().and_then(|fd| fd.parse().ok());
    let Some(fd) = fd else { return Ok(None) };
    let fd = sys::inherited_fd(fd).map_err(BootError::os("find the modules that process 1 left"))?;
    ModuleDir::from_fd(fd).map(Some)
}

/// Steps the wall clock.
///
/// # Errors
/// When the kernel refuses.
pub fn set_time(unix_ns: i64) -> Result<(), BootError> {
    const NS: i64 = 1_000_000_000;
    let time = rustix::time::Timespec { tv_sec: unix_ns.div_euclid(NS), tv_nsec: unix_ns.rem_euclid(NS) };
    rustix::time::clock_settime(rustix::time::ClockId::Realtime, time).map_err(BootError::os("set the clock"))
}

/// Credits fresh random bytes to the kernel's pool; at most 512.
///
/// # Errors
/// `invalid_argument` for more, or when the kernel refuses.
pub fn add_entropy(bytes: &[u8]) -> Result<(), BootError> {
    credit(bytes).map(drop)
}

/// Credits fresh random bytes, and lets all random numbers come from them at once: nothing that a copy of this memory
/// draws is what this one draws.
///
/// # Errors
/// As [`add_entropy`]; also for fewer than 32 bytes, which would be no new beginning.
pub fn renew_random_numbers(bytes: &[u8]) -> Result<(), BootError> {
    const ENOUGH: usize = 32;
    if bytes.len() < ENOUGH {
        let message = format!("{} random bytes are fewer than {ENOUGH}", bytes.len());
        return Err(BootError::Invalid(message));
    }
    sys::reseed(&credit(bytes)?).map_err(BootError::os("begin the random numbers anew"))
}

/// The kernel's pool, with these bytes in it.
fn credit(bytes: &[u8]) -> Result<std::fs::File, BootError> {
    if bytes.len() > sys::ENTROPY_MAX {
        let message = format!("{} random bytes are more than {}", bytes.len(), sys::ENTROPY_MAX);
        return Err(BootError::Invalid(message));
    }
    let pool = std::fs::File::options()
        .write(true)
        .open("/dev/random")
        .map_err(BootError::os("open /dev/random"))?;
    sys::add_entropy(&pool, bytes).map_err(BootError::os("credit random bytes"))?;
    Ok(pool)
}

/// Gives the running guest another name, in the kernel and in its files below `root`.
pub fn rename(root: &Path, name: &str) {
    guest::set_hostname(root, name);
}

/// Brings the network up: loopback, MAC and IP address, default route, MTU, `/etc/resolv.conf`. Other addresses and routes
/// of the device go. Blocks: loads the device's modules first if that has not been done, and waits a few seconds for
/// the device.
///
/// # Errors
/// `invalid_argument` for an address that is none; a sentence when the device does not come or the kernel refuses.
pub fn configure_network(config: &NetworkConfig) -> Result<(), BootError> {
    load_once(boot::STAGE_NET)?;
    network::configure(config)
}

/// Lets the network device make its IPv6 address anew, from the MAC address that it has by now.
///
/// # Errors
/// When the kernel refuses.
pub fn renew_ipv6() -> Result<(), BootError> {
    network::renew_ipv6()
}

/// The TCP connections that lead to other machines now.
///
/// # Errors
/// When the kernel does not say.
pub(crate) fn foreign_connections() -> Result<Vec<Connection>, BootError> {
    connections::foreign()
}

/// Ends those connections of that list that there still are.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn end_connections(list: &[Connection]) -> Result<(), BootError> {
    connections::end(list)
}

/// Flushes all file systems. Blocks.
pub fn sync() {
    rustix::fs::sync();
}

/// Begins to end the machine in good order and returns at once: a thread flushes and tells process 1, be it the
/// image's init or the agent, which stops all processes and ends the machine.
///
/// # Errors
/// When there is no thread to be had.
pub fn shutdown(mode: ShutdownMode) -> Result<(), BootError> {
    shutdown::begin(mode)
}

/// The process's exit code when somebody runs the agent by hand; says what it is.
#[must_use]
pub fn explain() -> ExitCode {
    console::say("this is the guest's agent; the kernel starts it as /init of an initramfs");
    ExitCode::from(2)
}
