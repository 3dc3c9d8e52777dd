//! What the host's own network is at this moment: its way out and its name servers. Must never change it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Where the host's name servers are (resolv.conf(5)).
const HOSTS: &str = "/etc/resolv.conf";
/// As many as a resolver library asks (`MAXNS`, resolv.conf(5)).
const SERVERS_MAX: usize = 3;
/// The port of name servers.
const PORT: u16 = 53;
/// The name of a responder's copy of it.
const RESOLV_CONF: &str = "resolv.conf";
/// The flag "the route can be used" in /proc/net/route (`RTF_UP`, linux/route.h).
const UP: u32 = 1;

/// Whether the host has a default route by IPv4, which is what guests use.
#[must_use]
pub fn has_default_route() -> bool {
    // Without that file nothing is known, and nothing is claimed.
    fs::read_to_string("/proc/net/route").map_or(true, |table| default_route_in(&table))
}

/// A route whose destination and mask are 0, in the kernel's table: hexadecimal numbers, in the columns destination (1),
/// flags (3) and mask (7).
fn default_route_in(table: &str) -> bool {
    let number = |words: &[&str], at: usize| words.get(at).and_then(|w| u32::from_str_radix(w, 16).ok());
    table.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        number(&words, 1) == Some(0)
            && number(&words, 7) == Some(0)
            && number(&words, 3).is_some_and(|flags| flags & UP != 0)
    })
}

/// The host's resolv.conf, as it is now. Empty where there is none.
#[must_use]
pub fn resolv_conf() -> Vec<u8> {
    fs::read(HOSTS).unwrap_or_default()
}

/// The name servers of a resolv.conf(5), with the port.
#[must_use]
pub fn name_servers(resolv_conf: &[u8]) -> Vec<SocketAddr> {
    let text = String::from_utf8_lossy(resolv_conf);
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    });
    lines.filter_map(address).take(SERVERS_MAX).collect()
}

/// An address, a link-local one with the interface behind a `%`.
fn address(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, PORT));
    };
    let any = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).ok()?;
    let scope = rustix::net::netdevice::name_to_index(&any, interface).ok()?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, scope).into())
}

/// Makes the directory that a responder reads, with `content` as the copy of the host's resolv.conf.
///
/// # Errors
/// When it cannot be written.
pub fn publish(content: &[u8], dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    write(OpenOptions::new().create(true), content, dir)
}

/// Replaces the content of a copy that is there. Nothing is made: the VM may be gone by now, and its directory with it.
///
/// # Errors
/// When it is there and cannot be written.
pub fn refresh(content: &[u8], dir: &Path) -> io::Result<()> {
    match write(&mut OpenOptions::new(), content, dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Writes in place, under a lock that readers wait for.
fn write(options: &mut OpenOptions, content: &[u8], dir: &Path) -> io::Result<()> {
    let mut file = options.write(true).mode(0o600).open(dir.join(RESOLV_CONF))?;
    file.lock()?;
    file.set_len(0)?;
    file.write_all(content)
}

/// A responder's copy. Empty where there is none.
pub(crate) fn published(dir: &Path) -> String {
    let read = || {
        let mut file = File::open(dir.join(RESOLV_CONF))?;
        file.lock_shared()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        io::Result::Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

    #[test]
    fn a_default_route_is_known_by_its_mask_and_its_flags() {
        let line = |destination: &str, flags: &str, mask: &str| {
            format!("{HEAD}eth0\t{destination}\t0101A8C0\t{flags}\t0\t0\t100\t{mask}\t0\t0\t0\n")
        };
        assert!(default_route_in(&line("00000000", "0003", "00000000")));
        for table in [
            HEAD.to_owned(),
            String::new(),
            line("0001A8C0", "0001", "00FFFFFF"),
            // Half of the addresses, as some VPNs say it; and one that is switched off.
            line("00000000", "0003", "00000080"),
            line("00000000", "0002", "00000000"),
        ] {
            assert!(!default_route_in(&table), "{table}");
        }
    }

    #[test]
    fn name_servers_are_read_as_resolvers_read_them() {
        let text = "# nameserver 9.9.9.9\nsearch a\nnameserver 192.0.2.1\nnameserver\tfd00::1 # x\nnameserver nonsense\n\
                    nameserver 127.0.0.53\nnameserver 192.0.2.4\n";
        let found: Vec<String> = name_servers(text.as_bytes()).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.1:53", "[fd00::1]:53", "127.0.0.53:53"]);
    }

    #[test]
    fn a_copy_is_refreshed_where_it_is_and_made_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("net");
        refresh(b"nameserver 192.0.2.1\n", &dir).unwrap();
        assert!(!dir.exists() && published(&dir).is_empty());
        publish(b"nameserver 192.0.2.1\n", &dir).unwrap();
        assert_eq!(published(&dir), "nameserver 192.0.2.1\n");
        refresh(b"# none\n", &dir).unwrap();
        assert_eq!(published(&dir), "# none\n");
    }
}
