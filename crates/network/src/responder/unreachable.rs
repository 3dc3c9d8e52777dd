//! Destinations that the host has no route to. The guest gets the ICMP message that a router would send (RFC 792), so
//! that its programs fail at once with "network is unreachable". Must never send anything to the destination.

use std::net::{Ipv4Addr, UdpSocket};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Message, Icmpv4Packet, IpProtocol,
    Ipv4Packet, Ipv4Repr,
};

use crate::addresses::{DNS, FRAME_HEADER, GATEWAY, GATEWAY_MAC};

/// So much of a packet goes along with the message, behind its header: what tells which connection is meant.
const QUOTED: usize = 8;
/// Any port does: nothing is sent.
const DISCARD: u16 = 9;

/// The message for a packet to a destination without a route. `None`: there is one, or the frame is none of this.
pub(super) fn answer(frame: &[u8]) -> Option<Vec<u8>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
    if packet.dst_addr() == DNS {
        return None;
    }
    let code = refusal(packet.dst_addr())?;
    message(ethernet.src_addr(), &packet, code)
}

/// What the host's kernel says about the way to a destination, as a code of "destination unreachable".
fn refusal(destination: Ipv4Addr) -> Option<u8> {
    // Connecting a datagram socket looks the route up, and sends nothing.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    let error = socket.connect((destination, DISCARD)).err()?;
    match rustix::io::Errno::from_io_error(&error)? {
        rustix::io::Errno::NETUNREACH => Some(0),
        rustix::io::Errno::HOSTUNREACH => Some(1),
        // A route that says "prohibit".
        rustix::io::Errno::ACCESS => Some(13),
        _ => None,
    }
}

fn message(guest: EthernetAddress, packet: &Ipv4Packet<&[u8]>, code: u8) -> Option<Vec<u8>> {
    let quoted = usize::from(packet.header_len()) + QUOTED;
    let whole = packet.clone().into_inner();
    let quoted = whole.get(..quoted.min(whole.len()))?;
    let header = Ipv4Repr {
        src_addr: GATEWAY,
        dst_addr: packet.src_addr(),
        next_header: IpProtocol::Icmp,
        payload_len: 8 + quoted.len(),
        hop_limit: 64,
    };
    let mut frame = vec![0; FRAME_HEADER + header.buffer_len() + header.payload_len];
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress(GATEWAY_MAC),
        dst_addr: guest,
        ethertype: EthernetProtocol::Ipv4,
    };
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    let mut ip = Ipv4Packet::new_unchecked(frame.get_mut(FRAME_HEADER..)?);
    header.emit(&mut ip, &ChecksumCapabilities::default());
    let mut icmp = Icmpv4Packet::new_unchecked(ip.payload_mut());
    icmp.set_msg_type(Icmpv4Message::DstUnreachable);
    icmp.set_msg_code(code);
    icmp.data_mut().get_mut(..quoted.len())?.copy_from_slice(quoted);
    icmp.fill_checksum();
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0x52; 12];
        frame.extend([8, 0]);
        let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15];
        packet.extend(to.octets());
        packet.extend([0x9c, 0x41, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(packet);
        frame
    }

    #[test]
    fn a_way_that_is_there_needs_no_message() {
        assert_eq!(answer(&frame(Ipv4Addr::LOCALHOST)), None);
        assert_eq!(answer(&frame(DNS)), None);
        assert_eq!(answer(&[0; 14]), None);
        assert_eq!(answer(b""), None);
    }

    #[test]
    fn the_message_is_the_gateways_and_names_the_connection() {
        let sent = frame(Ipv4Addr::new(192, 0, 2, 1));
        let packet = Ipv4Packet::new_checked(&sent[FRAME_HEADER..]).unwrap();
        let got = message(EthernetAddress([0x52, 0x54, 0, 1, 2, 3]), &packet, 0).unwrap();
        let ethernet = EthernetFrame::new_checked(&got[..]).unwrap();
        assert_eq!(ethernet.dst_addr(), EthernetAddress([0x52, 0x54, 0, 1, 2, 3]));
        assert_eq!(ethernet.src_addr(), EthernetAddress(GATEWAY_MAC));
        let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!((ip.src_addr(), ip.dst_addr()), (GATEWAY, Ipv4Addr::new(10, 0, 2, 15)));
        let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum());
        assert_eq!((icmp.msg_type(), icmp.msg_code()), (Icmpv4Message::DstUnreachable, 0));
        assert_eq!(icmp.data(), &sent[FRAME_HEADER..FRAME_HEADER + 28]);
    }
}
