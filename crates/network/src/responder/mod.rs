//! The responder: a small process in the host's network that answers a guest in the host's place. It is the guest's
//! name server, and it reports destinations that the host has no route to.
//!
//! passt reads the host's name servers once, when it starts, and drops what it cannot send. A guest that was started on
//! a laptop without a network would never resolve a name, and each of its connections would wait for minutes. The
//! responder reads the host's name servers at each query, and asks the host's routing table about each new connection.
//!
//! Must never send anything to the host's network but queries to the host's own name servers.

mod device;
mod names;
mod resolver;
mod unreachable;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::Result;
use crate::addresses::{DNS, DNS_MAC, PREFIX};
use device::Device;
use names::Names;

const NAME: &str = "banger-responder";

/// The responder's binary, which is installed beside our others.
///
/// # Errors
/// When it is not in `dir`.
pub fn locate(dir: &Path) -> Result<PathBuf> {
    crate::companion(dir, NAME)
}

/// Serves one guest until the guard closes its end of `guard`, a `SOCK_SEQPACKET` socket with a frame in each message.
/// `resolv` is the directory with the copy of the host's resolv.conf(5), which may change at any time.
///
/// # Errors
/// When the socket fails in another way than by its end.
pub fn run(guard: OwnedFd, resolv: &Path) -> io::Result<()> {
    let mut device = Device::new(guard)?;
    let mut config = Config::new(EthernetAddress(DNS_MAC).into());
    config.random_seed = seed();
    let mut interface = Interface::new(config, &mut device, Instant::now());
    interface.update_ip_addrs(|addresses| {
        // The list is empty and has room for one.
        let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(DNS), PREFIX));
    });
    let mut sockets = SocketSet::new(Vec::new());
    let mut names = Names::new(&mut sockets, resolv)?;
    loop {
        let delay = interface.poll_delay(Instant::now(), &sockets);
        wait(&device, &names, delay.map(|delay| delay.total_micros()))?;
        while let Some(frame) = device.read()? {
            if frame.is_empty() {
                return Ok(());
            }
            if let Some(answer) = unreachable::answer(&frame) {
                device.write(&answer);
            } else {
                device.queue(frame);
            }
        }
        interface.poll(Instant::now(), &mut device, &mut sockets);
        names.serve(&mut sockets);
        interface.poll(Instant::now(), &mut device, &mut sockets);
    }
}

/// Returns when a frame or an answer is there, or after `micros`.
fn wait(device: &Device, names: &Names, micros: Option<u64>) -> io::Result<()> {
    let limit = micros.map(|micros| Timespec {
        tv_sec: i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(micros % 1_000_000 * 1_000).unwrap_or(0),
    });
    let fds = &mut [
        PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN),
        PollFd::from_borrowed_fd(names.as_fd(), PollFlags::IN),
    ];
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A number that a guest cannot guess, for TCP's initial sequence numbers.
fn seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    RandomState::new().build_hasher().finish()
}
