//! Asking the kernel by netlink(7), and the few rtnetlink(7) requests that bring one interface up. Must never trust
//! lengths that it did not check.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

// linux/rtnetlink.h, linux/netlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP: u16 = 0x300;
const IFLA_ADDRESS: u16 = 1;
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
/// The kernel's own route to the network of an address comes and goes with that.
const RTPROT_KERNEL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RTN_UNICAST: u8 = 1;
/// The gateway is on the link even when no prefix says so.
const RTNH_F_ONLINK: u32 = 4;
const AF_INET: u8 = 2;
const HEADER: usize = 16;

/// A socket that asks one side of the kernel.
pub(super) struct Netlink(OwnedFd);

impl Netlink {
    /// Opens one to the routing side.
    pub(super) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        Self::open_to(None)
    }

    /// Opens one to another side.
    pub(super) fn open_to(side: Option<Protocol>) -> io::Result<Self> {
        Ok(Self(rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            side,
        )?))
    }

    /// One request with nothing to say but this.
    pub(super) fn request(&self, kind: u16, what: &[u8]) -> io::Result<()> {
        let mut message = Message::new(kind, 0);
        message.put(what);
        self.ask(message)
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

    /// Gives an interface another hardware address.
    pub(super) fn hardware_address(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.put(&[0; 4]);
        message.put(&index.to_ne_bytes());
        message.put(&[0; 8]);
        message.attribute(IFLA_ADDRESS, &mac);
        self.ask(message)
    }

    /// Takes from an interface the IPv4 routes that somebody gave it, and all IPv4 addresses but `keep`.
    pub(super) fn forget(&self, index: u32, keep: (Ipv4Addr, u8)) -> io::Result<()> {
        // struct rtmsg: the table is at 4, the protocol at 5
        let mut family = [0; 12];
        family[0] = AF_INET;
        for route in self.dump(RTM_GETROUTE, &family)? {
            let ours = attribute_of(&route, family.len(), RTA_OIF) == Some(&index.to_ne_bytes());
            if ours && route.get(4) == Some(&RT_TABLE_MAIN) && route.get(5) != Some(&RTPROT_KERNEL) {
                self.take(RTM_DELROUTE, &route)?;
            }
        }
        // struct ifaddrmsg: the prefix length is at 1, the interface at 4
        let mut family = [0; 8];
        family[0] = AF_INET;
        for address in self.dump(RTM_GETADDR, &family)? {
            let ours = address.get(4..8) == Some(&index.to_ne_bytes());
            let same = attribute_of(&address, family.len(), IFA_LOCAL) == Some(&keep.0.octets())
                && address.get(1) == Some(&keep.1);
            if ours && !same {
                self.take(RTM_DELADDR, &address)?;
            }
        }
        Ok(())
    }

    /// Asks for something to be gone. With the one that it belongs to it may be gone already.
    fn take(&self, kind: u16, what: &[u8]) -> io::Result<()> {
        match self.request(kind, what) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EADDRNOTAVAIL)) => Ok(()),
            outcome => outcome,
        }
    }

    /// All that the kernel has of a kind, each without its header.
    pub(super) fn dump(&self, kind: u16, family: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut message = Message::new(kind, NLM_F_DUMP);
        message.put(family);
        rustix::net::send(&self.0, &message.finish(), SendFlags::empty())?;
        let (mut found, mut answer) = (Vec::new(), vec![0; 64 * 1024]);
        loop {
            let (_, length) = rustix::net::recv(&self.0, answer.as_mut_slice(), RecvFlags::empty())?;
            let mut rest = answer.get(..length).unwrap_or_default();
            while let Some((kind, payload, after)) = split(rest) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => acknowledged(rest)?,
                    _ => found.push(payload.to_vec()),
                }
                rest = after;
            }
            if !rest.is_empty() || length == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the kernel's answer is not understood",
                ));
            }
        }
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        let bytes = message.finish();
        rustix::net::send(&self.0, &bytes, SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (_, length) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
        acknowledged(answer.get(..length).unwrap_or_default())
    }
}

/// The first message: its kind, what is behind its header, and what comes after it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The value of an attribute behind the first `skip` bytes of a message.
fn attribute_of(message: &[u8], skip: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(skip..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]);
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
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

    /// An attribute of a few bytes, and what fills it up to four.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or_default();
        self.put(&length.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
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
    fn what_the_kernel_has_is_listed() {
        // Given this machine's loopback, with an address and a route of the kernel's own
        let netlink = Netlink::open().unwrap();
        let mut family = [0; 8];
        family[0] = AF_INET;
        let addresses = netlink.dump(RTM_GETADDR, &family).unwrap();
        let local = |a: &Vec<u8>| attribute_of(a, 8, IFA_LOCAL) == Some(&[127, 0, 0, 1]);
        assert_eq!(addresses.iter().filter(|a| local(a)).count(), 1, "{addresses:?}");
        // Then a second question is answered as well
        assert_eq!(netlink.dump(RTM_GETADDR, &family).unwrap().len(), addresses.len());
    }

    #[test]
    fn lengths_that_lie_end_the_reading() {
        assert_eq!(split(&[0; 16]), None, "a message shorter than its header");
        assert_eq!(split(&[200, 0, 0, 0, 3, 0, 0, 0]), None, "one that is not all there");
        assert_eq!(attribute_of(&[0, 0, 1, 0], 0, 9), None, "an attribute shorter than its header");
        assert_eq!(attribute_of(&[9, 0, 9, 0, 1], 0, 9), None, "one that is not all there");
        assert_eq!(attribute_of(&[5, 0, 9, 0, 7, 0, 0, 0], 0, 9), Some(&[7][..]));
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
