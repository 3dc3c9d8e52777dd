//! From a specification to a Firecracker that runs it: by booting, or from a snapshot. Must leave no
//! process, link or socket when it fails or is dropped on the way.

use std::path::Path;
use std::time::Duration;

use banger_model::{Accel, DriverKind};
use tokio::net::UnixStream;

use super::api::{
    Action, ApiError, Balloon, BootSource, CacheType, Call, Client, Connection, Drive, Entropy, LoadSnapshot,
    MachineConfig, MemoryBackend, NetworkInterface, State, Vsock,
};
use super::binary::FirecrackerInfo;
use super::door::Door;
use super::machine::FirecrackerMachine;
use super::{kernel, kernel_arguments, place};
use crate::cage::Tap;
use crate::driver::Words;
use crate::process::mark;
use crate::snapshot::{Files, Layout, MemoryFile};
use crate::spawn::{Spawned, Standalone, open_log};
use crate::{Cage, MachineHandle, MachineSpec, Result, VmmError, console};

/// How long after its last word a VMM's process may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);
/// Lines of the VMM's log in an error.
const LAST_WORDS: usize = 4;
/// The most vCPUs that it gives a machine.
const VCPU_MAX: u32 = 32;
/// The guest's address on the vsock; each machine has a host end of its own.
const GUEST_CID: u32 = 3;

/// The set of devices that its machines have: see [`Layout::devices`]. The first had neither balloon nor network.
const DEVICES: u32 = 1;

/// The largest packet: what the network behind the tap takes at most, and no more than a tap does.
const MTU: u32 = 65520;

/// All calls of a start go over one connection.
type Api = Connection<UnixStream>;

/// What a call that failed was, and why.
struct Failed {
    call: String,
    error: ApiError,
}

pub(super) async fn launch(
    info: &FirecrackerInfo,
    cage: &Cage,
    spec: MachineSpec,
) -> Result<FirecrackerMachine> {
    can_run(&spec, cage)?;
    // Unpacked once by us, not by the guest in each of its boots, even where it could.
    let packed = spec.kernel.clone();
    let unpacked = tokio::task::spawn_blocking(move || kernel::elf(&packed)).await;
    let unpacked =
        unpacked.unwrap_or_else(|e| Err(VmmError::Kernel { path: spec.kernel.clone(), why: e.to_string() }));
    let kernel = match unpacked {
        Err(VmmError::Kernel { .. }) if !info.quirks.elf_only => spec.kernel.clone(),
        unpacked => unpacked?,
    };
    start(info, cage, spec, &kernel, None).await
}

pub(super) async fn restore(
    info: &FirecrackerInfo,
    cage: &Cage,
    spec: MachineSpec,
    snapshot: &Path,
) -> Result<FirecrackerMachine> {
    can_run(&spec, cage)?;
    let snapshot = std::path::absolute(snapshot).map_err(VmmError::file("find", snapshot))?;
    let files = Files::of(&snapshot);
    let layout = Layout::of(&spec, DEVICES);
    let memory = files.about(&layout, &spec, DriverKind::Firecracker, &info.version)?;
    let kernel = spec.kernel.clone();
    start(info, cage, spec, &kernel, Some((&files, memory))).await
}

fn can_run(spec: &MachineSpec, cage: &Cage) -> Result<()> {
    let refuse = |why: String, hint| {
        let vm = spec.name.to_string();
        Err(VmmError::CannotRun { driver: DriverKind::Firecracker.as_str(), vm, why, hint })
    };
    if spec.network.is_some()
        && let Err(why) = super::has_network(cage)
    {
        return refuse(why, "use '--network none', or '--driver qemu'");
    }
    if spec.accel != Accel::Kvm {
        return refuse("it needs KVM".to_owned(), "use '--driver qemu' for software emulation");
    }
    if spec.shape.vcpu > VCPU_MAX {
        let why = format!("{} vCPUs are more than {VCPU_MAX}", spec.shape.vcpu);
        return refuse(why, "use fewer '--vcpu', or '--driver qemu'");
    }
    Ok(())
}

async fn start(
    info: &FirecrackerInfo,
    cage: &Cage,
    mut spec: MachineSpec,
    kernel: &Path,
    snapshot: Option<(&Files, MemoryFile)>,
) -> Result<FirecrackerMachine> {
    let (snapshot, memory_file) = snapshot.unzip();
    let layout = Layout { memory_file, ..Layout::of(&spec, DEVICES) };
    let words = Words::begin(&spec.log_dir);
    let locks = place::lock_disks(&spec)?;
    let made = place::furnish(&spec, kernel, &words)?;
    // What is not there yet cannot be given.
    drop((open_log(&words.log())?, open_log(&words.metrics())?));
    let mut firecracker = Standalone::new(&info.program, &words.log(), &spec.runtime_dir)
        // Its own standard output is the guest's first serial port.
        .output(&words.console())
        .private()
        .args([
            "--id",
            &mark(&spec.id),
            "--api-sock",
            place::API,
            "--log-path",
            place::LOG,
            "--level",
            "Info",
            "--metrics-path",
            place::METRICS,
        ]);
    for lock in locks {
        firecracker.give(lock);
    }
    let (mac, backend) = spec.network.take().map(|network| (network.mac, network.backend)).unzip();
    let tap = backend.map(|backend| Tap { mtu: MTU, network: firecracker.give(backend) });
    let policy = place::policy(&spec, kernel, &words, snapshot, tap)?;
    let door = Door::watch(&spec.runtime_dir);
    let spawned = firecracker.caged(cage, policy).spawn()?;

    let client = Client::new(&spec.runtime_dir.join(place::API));
    let begun = match door.opens(&client, &spawned).await {
        Ok(mut api) => match snapshot {
            None => boot(&mut api, &spec, mac.as_deref()).await,
            Some(files) => load(&mut api, files).await,
        },
        Err(error) => Err(Failed { call: "connect".to_owned(), error }),
    };
    if let Err(failed) = begun {
        return Err(explain(&spec, spawned, &words, failed).await);
    }
    let security = spawned.security().clone();
    let (process, pidfd) = spawned.release();
    made.keep();
    let handle = MachineHandle {
        security,
        layout,
        vm: spec.id,
        name: spec.name,
        driver: DriverKind::Firecracker,
        accel: spec.accel,
        process,
        control_socket: spec.runtime_dir.join(place::API),
        agent_socket: spec.runtime_dir.join(place::VSOCK),
        words,
    };
    Ok(FirecrackerMachine::watch(handle, pidfd, info.quirks))
}

async fn put(api: &mut Api, call: impl Call) -> std::result::Result<(), Failed> {
    api.put(&call).await.map_err(|error| Failed { call: format!("{} {}", call.method(), call.path()), error })
}

async fn boot(api: &mut Api, spec: &MachineSpec, mac: Option<&str>) -> std::result::Result<(), Failed> {
    put(api, MachineConfig { vcpu_count: spec.shape.vcpu, mem_size_mib: spec.shape.memory.0 }).await?;
    let boot_args = kernel_arguments::line(&spec.name, &spec.disks, spec.verbose_console, spec.rescue);
    put(
        api,
        BootSource { kernel_image_path: place::KERNEL, initrd_path: place::INITRAMFS, boot_args: &boot_args },
    )
    .await?;
    for disk in &spec.disks {
        let drive = Drive {
            drive_id: disk.role.serial(),
            path_on_host: &place::disk(disk),
            is_root_device: false,
            is_read_only: disk.read_only,
            cache_type: CacheType::Writeback,
        };
        put(api, drive).await?;
    }
    put(api, Vsock { guest_cid: GUEST_CID, uds_path: place::VSOCK }).await?;
    put(api, Entropy {}).await?;
    // Of no size: it is there for the pages that the guest frees, which so come back to the host.
    put(api, Balloon { amount_mib: 0, deflate_on_oom: true, free_page_reporting: true }).await?;
    if let Some(guest_mac) = mac {
        let interface = NetworkInterface { iface_id: "eth0", guest_mac, host_dev_name: Tap::NAME };
        put(api, interface).await?;
    }
    put(api, Action::InstanceStart).await?;
    is(api, State::Running).await
}

async fn load(api: &mut Api, files: &Files) -> std::result::Result<(), Failed> {
    let call = LoadSnapshot {
        snapshot_path: &files.state,
        mem_backend: MemoryBackend::File { backend_path: &files.memory },
        resume_vm: true,
    };
    put(api, call).await?;
    is(api, State::Running).await
}

/// Started means that it says so itself, not only that the call succeeded.
async fn is(api: &mut Api, wanted: State) -> std::result::Result<(), Failed> {
    let failed = |error| Failed { call: "GET /".to_owned(), error };
    match api.instance().await {
        Ok(instance) if instance.state == wanted => Ok(()),
        Ok(instance) => {
            let said = format!("it says that it is {:?} after its start", instance.state);
            Err(failed(ApiError::Garbled(said)))
        }
        // It was started, and has ended since: whoever watches over it will know why.
        Err(ApiError::Closed(_)) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Why a machine could not be started: when the process has ended, its log says it best.
async fn explain(spec: &MachineSpec, spawned: Spawned, words: &Words, failed: Failed) -> VmmError {
    let vm = spec.name.to_string();
    let Failed { call, error } = failed;
    let said = || console::tail_from(&words.log(), words.log_start, LAST_WORDS);
    let ended = match &error {
        ApiError::Refused(message) => {
            return VmmError::RefusedAtStart { vm, call, message: message.clone() };
        }
        ApiError::Late(seconds) => {
            return VmmError::Timeout { vm, what: "answer", seconds: *seconds };
        }
        ApiError::Closed(_) | ApiError::Garbled(_) => spawned.post_mortem(LAST_BREATH, said).await,
    };
    let Some(status) = ended else {
        return VmmError::Control { vm, command: call, message: error.to_string() };
    };
    VmmError::DiedAtStart { vm, status, log: said().join("; ") }
}
