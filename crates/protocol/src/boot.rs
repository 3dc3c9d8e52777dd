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
/// Kernel command line: the disk to mount on the user's home (ext4), named like [`BASE`].
pub const HOME: &str = "banger.home";
/// Kernel command line: the kernel's modules (squashfs of `/lib/modules`), named like [`BASE`];
/// absent when the kernel has none.
pub const MODULES: &str = "banger.modules";
/// Kernel command line, a word without a value: /init prints how long each of its steps took.
pub const DEBUG: &str = "banger.debug";

/// In the initramfs: the agent.
pub const INIT: &str = "init";
/// In the initramfs: the directory of module files.
pub const MODULE_DIR: &str = "modules";
/// In the initramfs: the list of modules, one `STAGE FILE` a line, in load order.
/// `STAGE` is [`STAGE_BOOT`], [`STAGE_NET`] or [`STAGE_LATE`].
pub const MODULE_LIST: &str = "modules/load";
/// Modules without which there is no channel and no root: loaded first.
pub const STAGE_BOOT: &str = "boot";
/// Modules of the network device: loaded when the host configures one, on which it waits.
pub const STAGE_NET: &str = "net";
/// Modules on which nobody waits: random numbers, other transports.
pub const STAGE_LATE: &str = "late";

/// The name of the virtio-serial port that carries the agent channel; the guest finds it as
/// `/sys/class/virtio-ports/*/name`.
pub const AGENT_PORT: &str = "banger.agent";
