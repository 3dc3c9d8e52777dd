//! What a guest may send: a pure decision about one ethernet frame. What is not understood is dropped.

use std::net::Ipv4Addr;

use crate::addresses::{DNS, FRAME_HEADER, GUEST};

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DHCP_SERVER: u16 = 67;
/// Where an ARP packet for IPv4 has the address that it is about (RFC 826).
const ARP_TARGET: usize = 24;
/// TCP's flags (RFC 9293, 3.1).
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// What becomes of a frame from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes to passt.
    Passt,
    /// It goes to passt, and begins a connection: the responder is shown it.
    Connect,
    /// It is for the responder alone.
    Responder,
    /// No guest may send it.
    Drop,
}

/// Decides about a frame from the guest.
pub(super) fn judge(frame: &[u8]) -> Verdict {
    let (Some(kind), Some(payload)) = (u16_at(frame, 12), frame.get(FRAME_HEADER..)) else {
        return Verdict::Drop;
    };
    match kind {
        // Answered by whose address it asks for; nothing leaves.
        ARP if address_at(payload, ARP_TARGET) == Some(DNS) => Verdict::Responder,
        ARP => Verdict::Passt,
        IPV4 => judge_packet(payload).unwrap_or(Verdict::Drop),
        // IPv6 is not served, and nothing else (VLAN tags, for one) can hide a packet.
        _ => Verdict::Drop,
    }
}

/// `None`: cut short.
fn judge_packet(packet: &[u8]) -> Option<Verdict> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header < 20 || packet.len() < header {
        return Some(Verdict::Drop);
    }
    let source = address_at(packet, 12)?;
    let destination = address_at(packet, 16)?;
    if is_dhcp(packet, header, source, destination) {
        return Some(Verdict::Passt);
    }
    // A guest has one address. passt believes what it sees, so it must see nothing else.
    if source != GUEST || !is_elsewhere(destination) {
        return Some(Verdict::Drop);
    }
    Some(match destination {
        DNS => Verdict::Responder,
        _ if connects(packet, header) => Verdict::Connect,
        _ => Verdict::Passt,
    })
}

/// Whether a packet asks for a TCP connection.
fn connects(packet: &[u8], header: usize) -> bool {
    let flags = packet.get(header + 13).copied().unwrap_or_default();
    packet.get(9) == Some(&TCP) && flags & (SYN | ACK) == SYN
}

/// passt answers these itself: a guest that runs its own DHCP client gets its address.
fn is_dhcp(packet: &[u8], header: usize, source: Ipv4Addr, destination: Ipv4Addr) -> bool {
    let whole = u16_at(packet, 6).is_some_and(|fragment| fragment & 0x3fff == 0);
    whole
        && (source == GUEST || source.is_unspecified())
        && destination.is_broadcast()
        && packet.get(9) == Some(&UDP)
        && u16_at(packet, header + 2) == Some(DHCP_SERVER)
}

/// Whether an address can only be another machine's, or one that this host shows to others.
/// 0.0.0.0/8 and 127.0.0.0/8 mean the host itself (RFC 1122, 3.2.1.3; Linux connects 0.0.0.0 to
/// its loopback); from 224.0.0.0 on are groups, reserved addresses and the broadcast.
fn is_elsewhere(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    !matches!(first, 0 | 127 | 224..)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETHERNET: usize = FRAME_HEADER;

    fn allows(frame: &[u8]) -> bool {
        judge(frame) != Verdict::Drop
    }

    fn frame(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(kind.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn packet(protocol: u8, source: [u8; 4], destination: [u8; 4], port: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet.extend([0, 68]);
        packet.extend(port.to_be_bytes());
        packet.extend([0, 8, 0, 0]);
        packet
    }

    const ME: [u8; 4] = [10, 0, 2, 15];

    #[test]
    fn other_machines_and_the_gateway_can_be_reached() {
        for to in
            [[10, 0, 2, 2], [10, 0, 2, 3], [192, 168, 1, 1], [1, 1, 1, 1], [128, 0, 0, 1], [223, 1, 1, 1]]
        {
            for protocol in [1, 6, 17] {
                assert!(allows(&frame(IPV4, &packet(protocol, ME, to, 80))), "{to:?}");
            }
        }
        assert!(allows(&frame(ARP, &[0; 28])));
    }

    #[test]
    fn the_name_servers_frames_never_come_to_passt() {
        for protocol in [1, 6, 17] {
            assert_eq!(judge(&frame(IPV4, &packet(protocol, ME, [10, 0, 2, 3], 53))), Verdict::Responder);
            // Not even where the guest has no right to send it.
            assert_eq!(
                judge(&frame(IPV4, &packet(protocol, [10, 0, 2, 9], [10, 0, 2, 3], 53))),
                Verdict::Drop
            );
        }
        let mut arp = vec![0; 28];
        arp[ARP_TARGET..].copy_from_slice(&[10, 0, 2, 3]);
        assert_eq!(judge(&frame(ARP, &arp)), Verdict::Responder);
        arp[ARP_TARGET + 3] = 2;
        assert_eq!(judge(&frame(ARP, &arp)), Verdict::Passt);
    }

    #[test]
    fn the_first_packet_of_a_connection_is_known() {
        let with = |flags: u8| {
            let mut packet = packet(6, ME, [1, 1, 1, 1], 80);
            packet.resize(40, 0);
            packet[33] = flags;
            judge(&frame(IPV4, &packet))
        };
        assert_eq!(with(SYN), Verdict::Connect);
        for later in [0, ACK, SYN | ACK, 0x04] {
            assert_eq!(with(later), Verdict::Passt);
        }
    }

    #[test]
    fn the_hosts_own_addresses_cannot_be_named() {
        let own = [
            [127, 0, 0, 1],
            [127, 255, 0, 9],
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [224, 0, 0, 1],
            [255; 4],
            [240, 0, 0, 1],
        ];
        for to in own {
            for protocol in [1, 6, 17] {
                assert!(!allows(&frame(IPV4, &packet(protocol, ME, to, 80))), "{to:?}");
            }
        }
    }

    #[test]
    fn a_guest_speaks_for_itself_only() {
        for from in [[127, 0, 0, 1], [0, 0, 0, 0], [10, 0, 2, 16]] {
            assert!(!allows(&frame(IPV4, &packet(6, from, [1, 1, 1, 1], 80))), "{from:?}");
        }
    }

    #[test]
    fn dhcp_is_the_only_broadcast() {
        assert!(allows(&frame(IPV4, &packet(17, [0; 4], [255; 4], 67))));
        assert!(!allows(&frame(IPV4, &packet(17, [0; 4], [255; 4], 68))));
        assert!(!allows(&frame(IPV4, &packet(6, [0; 4], [255; 4], 67))));
        let mut fragment = packet(17, [0; 4], [255; 4], 67);
        fragment[7] = 1;
        assert!(!allows(&frame(IPV4, &fragment)));
    }

    #[test]
    fn what_is_not_understood_is_dropped() {
        let good = packet(6, ME, [1, 1, 1, 1], 80);
        assert!(!allows(&frame(0x86dd, &good)), "IPv6");
        assert!(!allows(&frame(0x8100, &frame(IPV4, &good))), "VLAN");
        for length in 0..20 {
            assert!(!allows(&frame(IPV4, &good[..length])), "{length}");
        }
        for first in [0x44, 0x55, 0x65, 0x4f] {
            let mut odd = good.clone();
            odd[0] = first;
            assert!(!allows(&frame(IPV4, &odd)), "{first:#x}");
        }
        for length in 0..ETHERNET {
            assert!(!allows(&vec![8; length]), "{length}");
        }
    }
}
