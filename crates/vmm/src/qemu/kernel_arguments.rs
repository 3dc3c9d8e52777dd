//! The guest kernel's command line. Each word is here for a reason that was measured or is needed.

use banger_model::VmName;
use banger_protocol::boot;

use crate::{Disk, DiskRole};

/// Words that every boot gets.
const ALWAYS: &[&str] = &[
    "console=ttyS0",
    // A panic ends the VMM at once (it runs with -no-reboot) instead of hanging until a timeout.
    "panic=-1",
    // Restart by triple fault: needs no device. The keyboard controller that the kernel would try
    // first does not exist here.
    "reboot=t",
    // There is none on this machine; probing for it costs time.
    "i8042.noaux",
    "i8042.nokbd",
    "i8042.nopnp",
    "8250.nr_uarts=1",
];

/// The whole line for a machine.
pub(super) fn line(name: &VmName, disks: &[Disk], verbose: bool) -> String {
    let mut words: Vec<String> = ALWAYS.iter().map(|w| (*w).to_owned()).collect();
    if verbose {
        words.push("ignore_loglevel".into());
    } else {
        // Every line on the serial port costs a VM exit a byte.
        words.push("quiet".into());
    }
    for disk in disks {
        let serial = disk.role.serial();
        match disk.role {
            DiskRole::Base { fs } => {
                words.push(format!("{}={serial}", boot::BASE));
                words.push(format!("{}={fs}", boot::BASE_FS));
            }
            DiskRole::System => words.push(format!("{}={serial}", boot::SYSTEM)),
            DiskRole::Modules => words.push(format!("{}={serial}", boot::MODULES)),
        }
    }
    words.push(format!("{}={name}", boot::HOSTNAME));
    words.join(" ")
}
