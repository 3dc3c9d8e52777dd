//! The guest kernel's command line on Firecracker's machine: what differs from QEMU's, and why.

use banger_model::VmName;
use banger_protocol::boot;

use crate::{Disk, DiskRole};

/// Words that every boot gets.
const ALWAYS: &[&str] = &[
    "console=ttyS0",
    // A panic ends the VMM at once instead of hanging until a timeout.
    "panic=-1",
    // By the keyboard controller: its reset line is the one way to end this machine from inside.
    "reboot=k",
    // That line is all there is of the controller; probing for the rest takes time.
    "i8042.noaux",
    "i8042.nomux",
    "i8042.dumbkbd",
    "i8042.nopnp",
    "8250.nr_uarts=1",
    // There is no PCI bus to look for.
    "pci=off",
    "cryptomgr.notests",
    // The agent configures eth0 before the image's udev would rename it under its feet.
    "net.ifnames=0",
];

/// The whole line for a machine. Firecracker's disks have no serial of ours: the guest finds them by
/// their order.
pub(super) fn line(name: &VmName, disks: &[Disk], verbose: bool, rescue: bool) -> String {
    let mut words: Vec<String> = ALWAYS.iter().map(|w| (*w).to_owned()).collect();
    words.push(match verbose {
        // From its first line on, long before there is a driver for the port.
        true => format!("ignore_loglevel earlycon=uart8250,io,0x3f8,115200 {}", boot::DEBUG),
        false => "quiet".to_owned(),
    });
    if rescue {
        words.push(boot::RESCUE.to_owned());
    }
    words.push(format!("{}={}", boot::VSOCK, boot::AGENT_VSOCK_PORT));
    for (disk, letter) in disks.iter().zip('a'..='z') {
        let device = format!("vd{letter}");
        match disk.role {
            DiskRole::Base { fs } => {
                words.push(format!("{}={device} {}={fs}", boot::BASE, boot::BASE_FS));
            }
            DiskRole::System => words.push(format!("{}={device}", boot::SYSTEM)),
            DiskRole::Work => words.push(format!("{}={device}", boot::HOME)),
            DiskRole::Modules => words.push(format!("{}={device}", boot::MODULES)),
        }
    }
    words.push(format!("{}={name}", boot::HOSTNAME));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_model::RootFsType;

    #[test]
    fn disks_are_named_by_their_order_and_the_channel_by_its_port() {
        let disk = |role| Disk { role, path: "/x".into(), read_only: true };
        let disks = [
            disk(DiskRole::Base { fs: RootFsType::Squashfs }),
            disk(DiskRole::System),
            disk(DiskRole::Modules),
            disk(DiskRole::Work),
        ];
        let line = line(&"web".parse().unwrap(), &disks, false, true);
        assert!(
            line.ends_with(
                " quiet banger.rescue banger.vsock=1024 banger.base=vda banger.basefs=squashfs \
                 banger.system=vdb banger.modules=vdc banger.home=vdd banger.hostname=web"
            ),
            "{line}"
        );
    }
}
