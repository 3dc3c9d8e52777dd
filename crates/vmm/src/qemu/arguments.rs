//! QEMU's command line for a machine: a pure function. Must never pass on a path or a name in a
//! form that QEMU would take apart (commas separate options in most arguments).

use std::os::fd::RawFd;
use std::path::Path;

use banger_model::{Accel, MachineShape, Mib};
use serde_json::json;

use super::kernel_arguments::{self, Boot};
use crate::process::mark;
use crate::{Disk, MachineSpec, Result, VmmError};
use banger_protocol::boot::AGENT_PORT;

/// The descriptors that QEMU gets, by number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptors {
    /// Listening: the control protocol.
    pub control: RawFd,
    /// Listening: the agent channel.
    pub agent: RawFd,
    /// Connected: ethernet frames.
    pub network: Option<RawFd>,
}

/// Where the guest's memory is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Memory<'a> {
    /// QEMU's own.
    Anonymous,
    /// A file that it begins with and never writes to; the device state comes by a migration.
    Clone {
        /// The file.
        path: &'a Path,
        /// Whether it is opened for reading only, as QEMU can since 8.2.
        read_only: bool,
    },
}

/// The arguments, without the program itself. `side_by_side`: emulated vCPUs may run at the same time.
pub(super) fn arguments(
    spec: &MachineSpec,
    console: &Path,
    fds: Descriptors,
    memory: Memory<'_>,
    boot: Boot,
    side_by_side: bool,
) -> Result<Vec<String>> {
    let mut args: Vec<String> = Vec::new();
    let mut put = |words: &[&str]| args.extend(words.iter().map(|w| (*w).to_owned()));

    // The mark first: it is how a VMM is found whose handle was never written.
    put(&["-name", &mark(&spec.id)]);
    put(&["-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"]);
    // Wait for 'cont': the guest must not end before anybody listens to why.
    put(&["-S"]);
    let machine = match memory {
        Memory::Anonymous => MACHINE.to_owned(),
        Memory::Clone { path, read_only } => {
            let (size, path) = (spec.shape.memory.0, comma_safe(path)?);
            let access = if read_only { ",readonly=on,rom=off" } else { "" };
            put(&[
                "-object",
                &format!("memory-backend-file,id=memory,size={size}M,share=off,mem-path={path}{access}"),
            ]);
            // The state is that of the devices and nothing else.
            put(&["-incoming", "defer", "-global", "migration.send-configuration=off"]);
            format!("{MACHINE},memory-backend=memory,suppress-vmdesc=on")
        }
    };
    put(&["-machine", &machine, "-accel", accel(spec, side_by_side), "-cpu", cpu(spec)]);
    let MachineShape { vcpu, memory: Mib(mib), .. } = spec.shape;
    // One processor with so many cores: Linux measures the speed of each processor, which took 0.16 s.
    put(&["-smp", &format!("{vcpu},sockets=1,cores={vcpu}"), "-m", &format!("{mib}M")]);
    // No new programs, no new privileges, no obsolete system calls.
    put(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);

    // A clone's kernel is in its memory. Reading another took a fifth of a restore.
    if matches!(memory, Memory::Anonymous) {
        put(&["-kernel", text(&spec.kernel)?, "-initrd", text(&spec.initramfs)?]);
        put(&["-append", &kernel_arguments::line(&spec.name, &spec.disks, boot)]);
    }

    put(&["-chardev", &format!("socket,id=control,fd={},server=on,wait=off", fds.control)]);
    put(&["-mon", "chardev=control,mode=control"]);
    put(&["-chardev", &format!("file,id=console,path={},append=on", comma_safe(console)?)]);
    put(&["-serial", "chardev:console"]);
    put(&["-chardev", &format!("socket,id=agent,fd={},server=on,wait=off", fds.agent)]);
    put(&["-device", "virtio-serial-device,max_ports=2"]);
    put(&["-device", &format!("virtserialport,id={PORT_ID},chardev=agent,name={AGENT_PORT}")]);
    put(&["-object", "rng-random,id=entropy,filename=/dev/urandom"]);
    put(&["-device", "virtio-rng-device,rng=entropy"]);

    for disk in &spec.disks {
        let node = disk.role.serial();
        put(&["-blockdev", &block_node(disk)?]);
        put(&["-device", &format!("virtio-blk-device,drive={node},serial={node}")]);
    }
    if let (Some(network), Some(fd)) = (&spec.network, fds.network) {
        put(&["-netdev", &format!("stream,id=net,server=off,addr.type=fd,addr.str={fd}")]);
        put(&["-device", &format!("virtio-net-device,netdev=net,mac={}", network.mac)]);
    }
    Ok(args)
}

/// What QEMU calls the agent's port when it says that the guest closed it.
pub(super) const PORT_ID: &str = "port";

/// The machine. `acpi=on`: stock kernels find virtio-mmio devices in the ACPI tables only.
/// pit and pic stay on: without them a kernel that is not told its clock's rate hangs under TCG.
/// rtc on: without one the kernel waits 2 s for it before it believes so.
const MACHINE: &str = "microvm,acpi=on,rtc=on,usb=off,pcie=off,auto-kernel-cmdline=off,dump-guest-core=off";

fn accel(spec: &MachineSpec, side_by_side: bool) -> &'static str {
    match spec.accel {
        Accel::Kvm => "kvm",
        // One thread for each vCPU only where there are several.
        Accel::Tcg if spec.shape.vcpu > 1 && side_by_side => "tcg,thread=multi",
        Accel::Tcg => "tcg,thread=single",
    }
}

fn cpu(spec: &MachineSpec) -> &'static str {
    match spec.accel {
        Accel::Kvm => "host",
        // Without the fifth level of page tables, which is for more than 64 TiB of memory: every page that is looked for
        // took one step more, and a restored guest 7 % more code of its kernel.
        Accel::Tcg => "max,-la57",
    }
}

fn block_node(disk: &Disk) -> Result<String> {
    let node = json!({
        "driver": "raw",
        "node-name": disk.role.serial(),
        "read-only": disk.read_only,
        "discard": if disk.read_only { "ignore" } else { "unmap" },
        // Write-back through the page cache; the guest's flushes are obeyed.
        "cache": { "direct": false, "no-flush": false },
        // A lock on the file keeps two machines from writing to one disk.
        "file": { "driver": "file", "filename": text(&disk.path)?, "locking": "auto" },
    });
    Ok(node.to_string())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| VmmError::PathNotUtf8 { path: path.to_owned() })
}

fn comma_safe(path: &Path) -> Result<String> {
    Ok(text(path)?.replace(',', ",,"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskRole, NetDevice};
    use banger_model::{Bytes, RootFsType, VmId};

    fn spec() -> MachineSpec {
        let disk = |role, path: &str, read_only| Disk { role, path: path.into(), read_only };
        let (_, backend) = std::os::unix::net::UnixStream::pair().unwrap();
        MachineSpec {
            id: VmId::from_random([0, 1, 2, 3, 4, 5]),
            name: "web".parse().unwrap(),
            shape: MachineShape { vcpu: 2, memory: Mib(512), disk: Bytes(1 << 30) },
            accel: Accel::Tcg,
            kernel: "/k/vmlinuz".into(),
            initramfs: "/k/initramfs".into(),
            disks: vec![
                disk(DiskRole::Base { fs: RootFsType::Squashfs }, "/i/a,b \"c\".squashfs", true),
                disk(DiskRole::System, "/v/system.img", false),
            ],
            network: Some(NetDevice { mac: "52:54:00:03:04:05".into(), backend: backend.into() }),
            runtime_dir: "/r".into(),
            log_dir: "/v,1".into(),
            verbose_console: false,
            rescue: false,
        }
    }

    const FDS: Descriptors = Descriptors { control: 7, agent: 8, network: Some(9) };

    fn line(spec: &MachineSpec, boot: Boot) -> String {
        arguments(spec, Path::new("/v,1/console.log"), FDS, Memory::Anonymous, boot, true).unwrap().join("\n")
    }

    #[test]
    fn the_command_line_is_what_was_measured_to_work() {
        let boot = Boot { tsc_khz: Some(2_600_000), verbose: false, rescue: false };
        let expected = include_str!("arguments.snapshot");
        assert_eq!(line(&spec(), boot), expected.trim_end());
    }

    #[test]
    fn a_machine_without_network_has_no_device_for_it() {
        let none = MachineSpec { network: None, ..spec() };
        let fds = Descriptors { network: None, ..FDS };
        let line = arguments(&none, Path::new("/c"), fds, Memory::Anonymous, Boot::default(), true)
            .unwrap()
            .join(" ");
        assert!(!line.contains("netdev") && !line.contains("virtio-net"), "{line}");
    }

    #[test]
    fn a_clone_begins_with_a_file_of_its_own_and_writes_to_it_nowhere() {
        let line = |read_only| {
            let memory = Memory::Clone { path: Path::new("/v,1/memory"), read_only };
            arguments(&spec(), Path::new("/c"), FDS, memory, Boot::default(), true).unwrap().join(" ")
        };
        let file = "-object memory-backend-file,id=memory,size=512M,share=off,mem-path=/v,,1/memory";
        let old = line(false);
        assert!(old.contains(&format!("{file} -incoming defer -global migration.send-config")), "{old}");
        assert!(old.contains(",memory-backend=memory,suppress-vmdesc=on -accel"), "{old}");
        assert!(line(true).contains(&format!("{file},readonly=on,rom=off -incoming")), "{}", line(true));
        assert!(
            !old.contains(" -kernel ") && !old.contains(" -initrd ") && !old.contains(" -append "),
            "{old}"
        );
        let boot =
            arguments(&spec(), Path::new("/c"), FDS, Memory::Anonymous, Boot::default(), true).unwrap();
        assert!(!boot.join(" ").contains("memory-backend") && !boot.join(" ").contains("-incoming"));
    }

    #[test]
    fn vcpus_that_would_miss_a_change_of_code_take_turns() {
        let line = |vcpu, side_by_side| {
            let spec = MachineSpec { shape: MachineShape { vcpu, ..spec().shape }, ..spec() };
            let boot = Boot::default();
            arguments(&spec, Path::new("/c"), FDS, Memory::Anonymous, boot, side_by_side).unwrap().join(" ")
        };
        assert!(line(2, true).contains(" -accel tcg,thread=multi "));
        assert!(line(2, false).contains(" -accel tcg,thread=single "));
        assert!(line(1, true).contains(" -accel tcg,thread=single "));
    }

    #[test]
    fn kvm_guests_get_the_hosts_processor_and_no_clock_hints() {
        let kvm = MachineSpec { accel: Accel::Kvm, ..spec() };
        let line = line(&kvm, Boot { tsc_khz: None, verbose: true, rescue: false });
        assert!(line.contains("-accel\nkvm\n-cpu\nhost\n"), "{line}");
        assert!(
            !line.contains("tsc") && !line.contains(" quiet") && line.contains("ignore_loglevel"),
            "{line}"
        );
    }

    #[test]
    fn a_path_that_the_command_line_cannot_carry_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let odd = std::ffi::OsString::from_vec(b"/k/\xff".to_vec());
        let spec = MachineSpec { kernel: odd.into(), ..spec() };
        let error =
            arguments(&spec, Path::new("/c"), FDS, Memory::Anonymous, Boot::default(), true).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }
}
