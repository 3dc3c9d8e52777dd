//! What the host tells the agent before there is a channel: kernel command line and initramfs.

/// Kernel command line: the hostname to set. The key is `banger.hostname=`.
pub const HOSTNAME: &str = "banger.hostname";
/// Kernel command line: the read-only root file system's device, a virtio-blk serial or a name
/// below `/dev`.
pub const BASE: &str = "banger.base";
/// Kernel command line: the base's file system type, such as `squashfs`.
pub const BASE_FS: &str = "banger.basefs";
/// Kernel command line: the writable system disk (ext4), named like [`BASE`].
pub const SYSTEM: &str = "banger.system";
/// Kernel command line: the disk to mount on root's home and on `/home` (ext4), named like [`BASE`].
pub const HOME: &str = "banger.home";
/// Kernel command line: the kernel's modules (squashfs of `/lib/modules`), named like [`BASE`];
/// absent when the kernel has none.
pub const MODULES: &str = "banger.modules";
/// Kernel command line, a word without a value: /init prints how long each of its steps took.
pub const DEBUG: &str = "banger.debug";

/// Kernel command line, a word without a value: the image's own init is not started and the agent stays process 1,
/// so that files can be had from a guest that does not boot otherwise.
pub const RESCUE: &str = "banger.rescue";

/// In the initramfs: the agent.
pub const INIT: &str = "init";
/// In the initramfs: the directory of module files.
pub const MODULE_DIR: &str = "modules";
/// In the initramfs: the list of modules, one `STAGE FILE` or `STAGE FILE optional` a line, in load order.
/// `STAGE` is one of the `STAGE_` words; those of a stage that a list does not have are in an
/// earlier one.
pub const MODULE_LIST: &str = "modules/load";
/// The last word of a module's line in [`MODULE_LIST`]: the boot goes on when the kernel refuses this module, for
/// instance because the processor lacks what the module is for.
pub const OPTIONAL: &str = "optional";
/// Modules of the bus on which all devices are: loaded first.
pub const STAGE_BUS: &str = "bus";
/// Modules without which there is no root.
pub const STAGE_BOOT: &str = "boot";
/// Modules without which there is no channel: loaded while the root is put together.
pub const STAGE_CHANNEL: &str = "channel";
/// Modules of the network device: loaded beside those of the channel when there is one, at the latest when the host
/// configures it.
pub const STAGE_NET: &str = "net";
/// Modules on which nobody waits: random numbers, other transports.
pub const STAGE_LATE: &str = "late";

/// The name of the virtio-serial port that carries the agent channel; the guest finds it as
/// `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT: &str = "banger.agent";

/// Kernel command line: the agent listens on this vsock port instead of the virtio-serial port. The key is
/// `banger.vsock=`.
pub const VSOCK: &str = "banger.vsock";
/// The vsock port that drivers with a vsock give to [`VSOCK`].
pub const AGENT_VSOCK_PORT: u32 = 1024;
