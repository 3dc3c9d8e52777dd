//! The addresses of a guest in user mode: always the same, since every guest has a network of its own.

use std::net::Ipv4Addr;

use banger_model::VmId;
use banger_protocol::agent::NetworkConfig;

/// The guest's address, without the prefix length.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The prefix length of the guest's network.
pub(crate) const PREFIX: u8 = 24;
/// The gateway.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The gateway's hardware address, the same on every host: a guest that is restored elsewhere still knows the right one.
/// QEMU's own user-mode network makes the addresses of its gateway and name server in this way, too.
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
/// The name server's hardware address.
pub(crate) const DNS_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 3];
/// The length of an ethernet frame's header, bytes.
pub(crate) const FRAME_HEADER: usize = 14;
/// The name server that the guest is given: the responder, which asks the host's own.
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The largest IP packet, bytes: passt's own limit for the framing that it speaks with QEMU.
pub(crate) const MTU: u32 = 65520;

/// What the guest's side of the network looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAddresses {
    /// The device's MAC address.
    pub mac: String,
    /// The guest's IPv4 address.
    pub ip: Ipv4Addr,
}

impl GuestAddresses {
    /// For a VM.
    #[must_use]
    pub fn of(id: &VmId) -> Self {
        Self { mac: mac_for(id), ip: GUEST }
    }

    /// As the agent is told.
    #[must_use]
    pub fn config(&self) -> NetworkConfig {
        NetworkConfig {
            mac: self.mac.clone(),
            address: format!("{GUEST}/{PREFIX}"),
            gateway: GATEWAY.to_string(),
            dns: vec![DNS.to_string()],
            mtu: MTU,
        }
    }
}

/// A VM's MAC address: QEMU's customary prefix and the last three bytes of the id.
#[must_use]
pub fn mac_for(id: &VmId) -> String {
    let digits = id.as_str();
    // An id is twelve hexadecimal digits; its type says so.
    let tail: Vec<&str> = [6, 8, 10].iter().filter_map(|at| digits.get(*at..at + 2)).collect();
    format!("52:54:00:{}", tail.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_stable_and_differs_between_vms() {
        let one = VmId::from_random([1, 2, 3, 0xa, 0xbc, 0xff]);
        assert_eq!(mac_for(&one), "52:54:00:0a:bc:ff");
        assert_ne!(mac_for(&one), mac_for(&VmId::from_random([1, 2, 3, 0xa, 0xbc, 0xfe])));
    }
}
