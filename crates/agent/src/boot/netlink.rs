//! The few rtnetlink(7) requests that bring one interface up. Must never trust lengths that it did not check.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const IFF_UP: u32 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
/// The gateway is on the link even when no prefix says so.
const RTNH_F_ONLINK: u32 = 4;
const AF_INET: u8 = 2;
const HEADER: usize = 16;

/// A socket that asks the kernel's routing side.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one.
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )?))
    }

    /// Sets an interface up, with this MTU if given.
    pub(super) fn up(&self, index: u32, mtu: Option<u32>) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        // struct ifinfomsg: family, pad, type, index, flags, change
        message.put(&[0; 4]);
        message.put(&index.to_ne_bytes());
        message.put(&IFF_UP.to_ne_bytes());
        message.put(&IFF_UP.to_ne_bytes());
        if let Some(mtu) = mtu {
            message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.ask(message)
    }

    /// Gives an interface an address.
    pub(super) fn address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
        // struct ifaddrmsg: family, prefixlen, flags, scope, index
        message.put(&[AF_INET, prefix, 0, RT_SCOPE_UNIVERSE]);
        message.put(&index.to_ne_bytes());
        message.attribute(IFA_LOCAL, &address.octets());
        message.attribute(IFA_ADDRESS, &address.octets());
        if let Some(broadcast) = broadcast(address, prefix) {
            message.attribute(IFA_BROADCAST, &broadcast.octets());
        }
        self.ask(message)
    }

    /// Sends all that has no nearer route to `gateway`.
    pub(super) fn default_route(&self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE);
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
        message.put(&[AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, RT_SCOPE_UNIVERSE, RTN_UNICAST]);
        message.put(&RTNH_F_ONLINK.to_ne_bytes());
        message.attribute(RTA_GATEWAY, &gateway.octets());
        message.attribute(RTA_OIF, &index.to_ne_bytes());
        self.ask(message)
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        rustix::net::send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (_, length) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
        acknowledged(answer.get(..length).unwrap_or_default())
    }
}

/// Reads the kernel's acknowledgement: `struct nlmsgerr` with 0 or a negative error number.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let word = |at: usize| answer.get(at..at + 2).map(|b| u16::from_ne_bytes([b[0], b[1]]));
    let error = answer.get(HEADER..HEADER + 4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
    match (word(4), error) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(errno)) => Err(io::Error::from_raw_os_error(errno.wrapping_neg())),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is not understood")),
    }
}

/// The broadcast address of a network that has one.
fn broadcast(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    let hosts = (prefix < 31).then(|| u32::MAX.checked_shr(u32::from(prefix)))??;
    Some(Ipv4Addr::from(u32::from(address) | hosts))
}

/// A request under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut message = Self(Vec::with_capacity(64));
        // struct nlmsghdr: len (filled in by finish), type, flags, seq, pid
        message.put(&[0; 4]);
        message.put(&kind.to_ne_bytes());
        message.put(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.put(&[0; 8]);
        message
    }

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// All attributes used here have four bytes, so nothing needs padding.
    fn attribute(&mut self, kind: u16, value: &[u8; 4]) {
        self.put(&8u16.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX).to_ne_bytes();
        for (slot, byte) in self.0.iter_mut().zip(length) {
            *slot = byte;
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_acknowledges_and_refuses() {
        // Given the kernel's own routing socket and an interface that does not exist
        let netlink = Netlink::open().unwrap();
        // When it is asked to bring that up
        let error = netlink.up(0x7fff_fff0, Some(1500)).unwrap_err();
        // Then it understood the request and says why not: ENODEV, or EPERM for an ordinary user
        assert!(matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)), "{error}");
    }

    #[test]
    fn broadcast_addresses() {
        let of = |prefix| broadcast(Ipv4Addr::new(10, 0, 2, 15), prefix);
        assert_eq!(of(24), Some(Ipv4Addr::new(10, 0, 2, 255)));
        assert_eq!(of(0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(of(31), None);
        assert_eq!(of(32), None);
    }

    #[test]
    fn a_short_or_strange_answer_is_an_error() {
        assert!(acknowledged(&[]).is_err());
        assert!(acknowledged(&[0; 19]).is_err());
        assert!(acknowledged(&[0; 20]).is_err(), "not NLMSG_ERROR");
    }
}
