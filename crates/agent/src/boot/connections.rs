//! TCP connections that a copy of a machine has and its network knows nothing of: the kernel ends them, so that programs
//! notice now and not when their patience is over. Must never end those within the machine, what only listens, nor what the
//! copy has opened itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SOCK_DIAG;

use super::error::{BootError, Result};
use super::netlink::Netlink;

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const IPPROTO_TCP: u8 = 6;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// One bit for each of net/tcp_states.h: established, both of FIN-WAIT, CLOSE-WAIT, LAST-ACK, CLOSING. One that is being opened
/// is tried again by the kernel, and that leads somewhere.
const STATES: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
const ID: usize = 48;

/// One, as the kernel knows it: another that happens to have its ports and addresses is not it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connection {
    family: u8,
    /// `struct inet_diag_sockid`, with the kernel's cookie.
    id: [u8; ID],
}

/// Those that lead out of this machine now.
pub(super) fn foreign() -> Result<Vec<Connection>> {
    let failed = || BootError::os("list the guest's connections");
    let kernel = Netlink::open_to(Some(SOCK_DIAG)).map_err(failed())?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let all = match kernel.dump(SOCK_DIAG_BY_FAMILY, &about(family, &[0; ID])) {
            // The image has no module for that, or the kernel knows no such family.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            all => all.map_err(failed())?,
        };
        let ids = all.iter().filter_map(|one| one.get(4..)?.first_chunk().copied());
        found.extend(ids.filter(|id| is_foreign(family, id)).map(|id| Connection { family, id }));
    }
    Ok(found)
}

/// Ends those that are still there.
pub(super) fn end(connections: &[Connection]) -> Result<()> {
    if connections.is_empty() {
        return Ok(());
    }
    let failed = || BootError::os("end the connections of the machine that this one was copied from");
    let kernel = Netlink::open_to(Some(SOCK_DIAG)).map_err(failed())?;
    for Connection { family, id } in connections {
        match kernel.request(SOCK_DESTROY, &about(*family, id)) {
            // It has ended by itself meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            ended => ended.map_err(failed())?,
        }
    }
    Ok(())
}

/// `struct inet_diag_req_v2`.
fn about(family: u8, id: &[u8]) -> Vec<u8> {
    let mut request = vec![family, IPPROTO_TCP, 0, 0];
    request.extend_from_slice(&STATES.to_ne_bytes());
    request.extend_from_slice(id);
    request
}

/// Whether a connection has its other end in another machine.
fn is_foreign(family: u8, id: &[u8]) -> bool {
    let (Some(here), Some(there)) = (address(family, id, 4), address(family, id, 20)) else { return false };
    !here.is_loopback() && !there.is_loopback() && here != there
}

fn address(family: u8, id: &[u8], at: usize) -> Option<IpAddr> {
    if family == AF_INET {
        let octets: [u8; 4] = *id.get(at..)?.first_chunk()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets: [u8; 16] = *id.get(at..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(here: &[u8], there: &[u8]) -> Vec<u8> {
        let mut id = vec![0; ID];
        id[4..4 + here.len()].copy_from_slice(here);
        id[20..20 + there.len()].copy_from_slice(there);
        id
    }

    #[test]
    fn what_stays_within_the_machine_is_not_foreign() {
        let (own, gateway, lo) = ([10, 0, 2, 15], [10, 0, 2, 2], [127, 0, 0, 1]);
        assert!(is_foreign(AF_INET, &id(&own, &gateway)));
        for (here, there) in [(lo, lo), (own, own), (lo, own), ([127, 9, 9, 9], gateway)] {
            assert!(!is_foreign(AF_INET, &id(&here, &there)), "{here:?} {there:?}");
        }
        let mapped = |v4: [u8; 4]| Ipv4Addr::from(v4).to_ipv6_mapped().octets();
        assert!(is_foreign(AF_INET6, &id(&mapped(own), &mapped(gateway))));
        assert!(!is_foreign(AF_INET6, &id(&mapped(lo), &mapped(lo))));
        let lo = Ipv6Addr::LOCALHOST.octets();
        assert!(!is_foreign(AF_INET6, &id(&lo, &lo)));
        assert!(!is_foreign(AF_INET, &[0; 7]), "cut off");
        assert_eq!(about(AF_INET, &[0; ID]).len(), 56);
    }
}
