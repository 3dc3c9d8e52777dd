//! The guest kernel's command line. Each word is here for a reason that was measured or is needed.
//! Times: Debian's 6.1 cloud kernel under TCG, where a boot to the first program takes 1.6 s.

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
    // There is none on this machine; probing for it, and for serial ports beyond the first, took
    // 0.3 s together.
    "i8042.noaux",
    "i8042.nokbd",
    "i8042.nopnp",
    "8250.nr_uarts=1",
    // 0.15 s: the kernel's self-tests of its ciphers.
    "cryptomgr.notests",
    // The agent configures eth0 before the image's udev would rename it under its feet.
    "net.ifnames=0",
];

/// What differs between boots.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Boot {
    /// The rate of the time-stamp counter, where the guest has the host's own.
    pub tsc_khz: Option<u32>,
    /// Print everything.
    pub verbose: bool,
    /// Start nothing but the agent.
    pub rescue: bool,
}

/// The whole line for a machine.
pub(super) fn line(name: &VmName, disks: &[Disk], how: Boot) -> String {
    let mut words: Vec<String> = ALWAYS.iter().map(|w| (*w).to_owned()).collect();
    if let Some(khz) = how.tsc_khz {
        // See `clock`. Reliable: nothing better is there to check it against, and a kernel that
        // gives it up has no fine clock left.
        words.push(format!("tsc_early_khz={khz} tsc=reliable no_timer_check"));
    }
    words.push(if how.verbose {
        format!("ignore_loglevel {}", boot::DEBUG)
    } else {
        // Every byte on the serial port costs a trip out of the guest: 0.3 s for the whole log.
        "quiet".to_owned()
    });
    if how.rescue {
        words.push(boot::RESCUE.to_owned());
    }
    for disk in disks {
        let serial = disk.role.serial();
        match disk.role {
            DiskRole::Base { fs } => {
                words.push(format!("{}={serial} {}={fs}", boot::BASE, boot::BASE_FS));
            }
            DiskRole::System => words.push(format!("{}={serial}", boot::SYSTEM)),
            DiskRole::Work => words.push(format!("{}={serial}", boot::HOME)),
            DiskRole::Modules => words.push(format!("{}={serial}", boot::MODULES)),
        }
    }
    words.push(format!("{}={name}", boot::HOSTNAME));
    words.join(" ")
}
