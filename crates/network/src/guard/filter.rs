//! What a guest may send: a pure decision about one ethernet frame. What is not understood is dropped.

use std::net::Ipv4Addr;

use crate::addresses::GUEST;

const ETHERNET: usize = 14;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const UDP: u8 = 17;
const DHCP_SERVER: u16 = 67;

/// Whether a frame from the guest may go on.
pub(super) fn allows(frame: &[u8]) -> bool {
    let (Some(kind), Some(payload)) = (u16_at(frame, 12), frame.get(ETHERNET..)) else { return false };
    match kind {
        // Answered by passt itself; nothing leaves.
        ARP => true,
        IPV4 => allows_packet(payload).unwrap_or(false),
        // IPv6 is not served, and nothing else (VLAN tags, for one) can hide a packet.
        _ => false,
    }
}

/// `None`: cut short.
fn allows_packet(packet: &[u8]) -> Option<bool> {
    let first = *packet.first()?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header < 20 || packet.len() < header {
        return Some(false);
    }
    let source = address_at(packet, 12)?;
    let destination = address_at(packet, 16)?;
    if is_dhcp(packet, header, source, destination) {
        return Some(true);
    }
    // A guest has one address. passt believes what it sees, so it must see nothing else.
    Some(source == GUEST && is_elsewhere(destination))
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
