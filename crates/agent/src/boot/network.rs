//! The guest's side of a network: device, address, route, name servers.
//! Must never keep a resolver's symlink: the host says which name servers there are.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_protocol::agent::NetworkConfig;

use super::error::{BootError, Result};
use super::netlink::Netlink;

/// The driver registers the device when it is loaded; this is for a host that plugs it late.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
const LOOPBACK: &str = "lo";

/// What a [`NetworkConfig`] says, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    mac: String,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Ipv4Addr,
    resolv_conf: Option<String>,
    mtu: u32,
}

/// The device as it was configured last.
#[derive(Debug)]
struct Configured {
    plan: Plan,
    device: String,
    index: u32,
}

static LAST: Mutex<Option<Configured>> = Mutex::new(None);

/// Brings loopback and the device up. Blocks until the device is there, or a few seconds. Where the device has all of it
/// but the MAC address, as in a copy of a machine, that is all that is changed.
pub(super) fn configure(config: &NetworkConfig) -> Result<()> {
    let plan = plan(config)?;
    let netlink = Netlink::open().map_err(BootError::os("ask the kernel's routing side"))?;
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(last) = &mut *last
        && last.plan == (Plan { mac: last.plan.mac.clone(), ..plan.clone() })
    {
        rename_device(&netlink, &last.device, last.index, &plan.mac)?;
        last.plan = plan;
        return Ok(());
    }
    loopback_up(&netlink)?;
    let (device, is_it) = find_device(Path::new("/sys/class/net"), &plan.mac)?;
    let index = index_of(&device)?;
    if !is_it {
        rename_device(&netlink, &device, index, &plan.mac)?;
    }
    netlink
        .forget(index, (plan.address, plan.prefix))
        .map_err(BootError::os(format!("take what {device} had from it")))?;
    netlink
        .up(index, Some(plan.mtu))
        .map_err(BootError::os(format!("bring {device} up with MTU {}", plan.mtu)))?;
    netlink
        .address(index, plan.address, plan.prefix)
        .map_err(BootError::os(format!("give {device} the address {}/{}", plan.address, plan.prefix)))?;
    netlink
        .default_route(index, plan.gateway)
        .map_err(BootError::os(format!("route through {} on {device}", plan.gateway)))?;
    if let Some(text) = &plan.resolv_conf {
        write_resolv_conf(Path::new("/"), text)?;
    }
    *last = Some(Configured { plan, device, index });
    Ok(())
}

/// Lets the device, which may have got another MAC address, make its IPv6 address from it anew, where it has any.
pub(super) fn renew_ipv6() -> Result<()> {
    let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(Configured { device, .. }) = &*last else { return Ok(()) };
    let switch = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    if std::fs::read_to_string(&switch).is_ok_and(|off| off.trim() == "0") {
        for value in ["1", "0"] {
            std::fs::write(&switch, value).map_err(BootError::os(format!("renew IPv6 on {device}")))?;
        }
    }
    Ok(())
}

/// Gives the device another MAC address while it is up.
fn rename_device(netlink: &Netlink, device: &str, index: u32, mac: &str) -> Result<()> {
    let octets = octets(mac).ok_or_else(|| BootError::Invalid(format!("no MAC address: {mac}")))?;
    netlink.hardware_address(index, octets).map_err(BootError::os(format!("give {device} the address {mac}")))
}

fn octets(mac: &str) -> Option<[u8; 6]> {
    let mut octets = [0; 6];
    let mut parts = mac.split(':');
    for octet in &mut octets {
        *octet = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(octets)
}

/// Whether there is a virtio device for a network, with or without its driver.
pub(super) fn has_device(virtio_devices: &Path) -> bool {
    // Virtual I/O Device specification 1.2, 5: device ids
    const NETWORK: &str = "0x0001";
    let Ok(entries) = std::fs::read_dir(virtio_devices) else { return false };
    entries.flatten().any(|entry| {
        std::fs::read_to_string(entry.path().join("device")).is_ok_and(|id| id.trim() == NETWORK)
    })
}

/// Programs expect loopback even where there is no network.
pub(super) fn loopback() -> Result<()> {
    loopback_up(&Netlink::open().map_err(BootError::os("ask the kernel's routing side"))?)
}

fn loopback_up(netlink: &Netlink) -> Result<()> {
    netlink.up(index_of(LOOPBACK)?, None).map_err(BootError::os("bring lo up"))
}

fn plan(config: &NetworkConfig) -> Result<Plan> {
    let bad =
        |what: &str, value: &str| BootError::Invalid(format!("'{}' is not {what}", value.escape_debug()));
    let (address, prefix) = config
        .address
        .split_once('/')
        .ok_or_else(|| bad("an address with its prefix length", &config.address))?;
    let ip = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| bad("an IPv4 address", text));
    let prefix =
        prefix.parse().ok().filter(|prefix| *prefix <= 32).ok_or_else(|| bad("a prefix length", prefix))?;
    let mac = config.mac.to_ascii_lowercase();
    if octets(&mac).is_none() || mac.len() != 17 {
        return Err(bad("a MAC address", &config.mac));
    }
    let servers: Vec<String> = config
        .dns
        .iter()
        .map(|server| ip(server).map(|ip| format!("nameserver {ip}\n")))
        .collect::<Result<_>>()?;
    let resolv_conf = (!servers.is_empty()).then(|| servers.concat());
    Ok(Plan {
        mac,
        address: ip(address)?,
        prefix,
        gateway: ip(&config.gateway)?,
        resolv_conf,
        mtu: config.mtu,
    })
}

/// The device with this MAC address, or, in a guest that was copied, the one that shall have it; and whether it has.
fn find_device(class_net: &Path, mac: &str) -> Result<(String, bool)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(device) = device_with(class_net, mac) {
            return Ok((device, true));
        }
        if let Some(device) = only_device(class_net) {
            return Ok((device, false));
        }
        if Instant::now() >= deadline {
            return Err(BootError::Missing(format!("there is no network device with the address {mac}")));
        }
        std::thread::sleep(PAUSE);
    }
}

fn device_with(class_net: &Path, mac: &str) -> Option<String> {
    std::fs::read_dir(class_net).ok()?.flatten().find_map(|entry| {
        let address = std::fs::read_to_string(entry.path().join("address")).ok()?;
        (address.trim() == mac).then(|| entry.file_name().into_string().ok())?
    })
}

/// The one that is a device and no construction of the kernel's, such as a bridge of containers.
fn only_device(class_net: &Path) -> Option<String> {
    let entries = std::fs::read_dir(class_net).ok()?.flatten();
    let mut devices = entries.filter(|entry| entry.path().join("device").exists());
    match (devices.next(), devices.next()) {
        (Some(device), None) => device.file_name().into_string().ok(),
        _ => None,
    }
}

fn index_of(device: &str) -> Result<u32> {
    let path = format!("/sys/class/net/{device}/ifindex");
    let text = std::fs::read_to_string(&path).map_err(BootError::os(format!("find the device {device}")))?;
    text.trim().parse().map_err(|_| BootError::Missing(format!("the device {device} has no index")))
}

/// Replaces the file, or the symlink that a resolver of the image left there.
fn write_resolv_conf(root: &Path, text: &str) -> Result<()> {
    let path = root.join("etc/resolv.conf");
    let new = root.join("etc/.resolv.conf.banger");
    let _ = std::fs::remove_file(&new);
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(BootError::os("write /etc/resolv.conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetworkConfig {
        NetworkConfig {
            mac: "52:54:00:AB:00:01".into(),
            address: "10.0.2.15/24".into(),
            gateway: "10.0.2.2".into(),
            dns: vec!["10.0.2.3".into(), "1.1.1.1".into()],
            mtu: 1500,
        }
    }

    #[test]
    fn a_network_is_checked_before_anything_is_changed() {
        let good = plan(&config()).unwrap();
        assert_eq!(good.mac, "52:54:00:ab:00:01");
        assert_eq!(good.prefix, 24);
        assert_eq!(good.resolv_conf.as_deref(), Some("nameserver 10.0.2.3\nnameserver 1.1.1.1\n"));
        let broken: [fn(&mut NetworkConfig); 6] = [
            |c| c.mac = "52:54".into(),
            |c| c.address = "10.0.2.15".into(),
            |c| c.address = "10.0.2.15/33".into(),
            |c| c.address = "fe80::1/64".into(),
            |c| c.gateway = "gateway".into(),
            |c| c.dns = vec!["8.8.8.8\nsearch evil".into()],
        ];
        for change in broken {
            let mut config = config();
            change(&mut config);
            assert!(matches!(plan(&config), Err(BootError::Invalid(_))), "{config:?}");
        }
    }

    #[test]
    fn a_device_is_found_by_its_address() {
        let dir = tempfile::tempdir().unwrap();
        for (name, mac) in [("lo", "00:00:00:00:00:00"), ("eth0", "52:54:00:ab:00:01")] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("address"), format!("{mac}\n")).unwrap();
        }
        let ours = "52:54:00:ab:00:01";
        assert_eq!(find_device(dir.path(), ours).unwrap(), ("eth0".into(), true));
        assert_eq!(device_with(dir.path(), "52:54:00:ab:00:02"), None);
        // One that was copied with another address is known by being the only one with hardware
        std::fs::create_dir(dir.path().join("eth0/device")).unwrap();
        assert_eq!(find_device(dir.path(), "52:54:00:ab:00:02").unwrap(), ("eth0".into(), false));
        std::fs::create_dir_all(dir.path().join("eth1/device")).unwrap();
        assert_eq!(only_device(dir.path()), None, "which?");
        assert_eq!(octets(ours), Some([0x52, 0x54, 0, 0xab, 0, 1]));
        assert_eq!(octets("52:54:00:ab:00"), None);
        assert_eq!(octets("52:54:00:ab:00:01:02"), None);
    }

    #[test]
    fn a_resolver_symlink_is_replaced_and_its_target_left_alone() {
        // Given an image whose resolv.conf leads to a resolver's own file
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/stub"), "nameserver 127.0.0.53\n").unwrap();
        std::os::unix::fs::symlink("stub", root.path().join("etc/resolv.conf")).unwrap();
        // When ours is written
        write_resolv_conf(root.path(), "nameserver 10.0.2.3\n").unwrap();
        // Then it is a file of its own
        let path = root.path().join("etc/resolv.conf");
        assert!(path.symlink_metadata().unwrap().is_file());
        assert_eq!(std::fs::read_to_string(path).unwrap(), "nameserver 10.0.2.3\n");
        assert_eq!(std::fs::read_to_string(root.path().join("etc/stub")).unwrap(), "nameserver 127.0.0.53\n");
    }

    #[test]
    fn a_network_device_is_known_before_its_driver() {
        // Given a bus with a disk and an entropy source, then also a network device
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, id: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("device"), id).unwrap();
        };
        put("virtio0", "0x0002\n");
        put("virtio1", "0x0004\n");
        assert!(!has_device(dir.path()));
        put("virtio2", "0x0001\n");
        assert!(has_device(dir.path()));
        assert!(!has_device(&dir.path().join("nowhere")));
    }
}
