//! User mode with the real passt, and a guest that may be hostile.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test's helpers may fail it")]

mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use banger_model::VmId;
use banger_network::{GuestAddresses, NetworkError, UserNetwork, UserNetworkHandle, UserNetworkSpec, passt};
use banger_vmm::Cage;
use banger_vmm::process::{ProcessId, find_marked};
use tokio::net::TcpListener;

use wire::Guest;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const LIMIT: Duration = Duration::from_secs(10);

struct Bench {
    dir: tempfile::TempDir,
    passt: PathBuf,
    id: VmId,
}

impl Bench {
    fn new(number: u8) -> Option<Self> {
        match passt::locate(std::env::var_os("PATH").as_deref()) {
            Ok(passt) => Some(Self {
                // Not below /tmp, which the processes then would have in their root: users' directories are elsewhere.
                dir: tempfile::tempdir_in("/var/tmp").unwrap(),
                passt,
                id: VmId::from_random([0xef, 0, std::process::id() as u8, 0, 0, number]),
            }),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    fn spec(&self, host_access: bool) -> UserNetworkSpec {
        UserNetworkSpec {
            vm_id: self.id.clone(),
            host_access,
            log: self.dir.path().join("net.log"),
            passt: self.passt.clone(),
            guard: env!("CARGO_BIN_EXE_banger-netguard").into(),
            responder: env!("CARGO_BIN_EXE_banger-responder").into(),
            resolv: self.dir.path().join("net"),
            cage: cage(),
        }
    }

    async fn start(&self, host_access: bool) -> (UserNetworkHandle, OwnedFd) {
        let (network, backend) = UserNetwork::plan(self.spec(host_access)).unwrap();
        (network.start().await.unwrap(), backend)
    }
}

/// The cage as users have it. Its builder is another crate's program, which cargo does not build for this crate's tests:
/// it is brought up to date here.
fn cage() -> Cage {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let mut cargo = std::process::Command::new(env!("CARGO"));
        let made =
            cargo.args(["build", "-q", "--locked", "-p", "banger-vmm", "--bin", "banger-cage"]).status();
        assert!(made.unwrap().success());
    });
    let companions = Path::new(env!("CARGO_BIN_EXE_banger-netguard")).parent().unwrap();
    Cage::beside(companions, Vec::new())
}

/// An address of this host that others see, if it has one. Nothing is sent.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect("192.0.2.254:9").or_else(|_| socket.connect("198.51.100.1:9")).ok()?;
    match socket.local_addr().unwrap().ip() {
        IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
        _ => None,
    }
}

async fn listener(ip: Ipv4Addr) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn arrives(listener: &TcpListener) -> bool {
    tokio::time::timeout(LIMIT, listener.accept()).await.is_ok_and(|r| r.is_ok())
}

/// Whether a connection waits there already.
async fn has_arrived(listener: &TcpListener) -> bool {
    tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_ok()
}

async fn gone(process: &ProcessId) {
    let end = async {
        while process.is_alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, end).await.unwrap();
}

/// Every way to name the host's loopback that we know of.
fn names_of_the_host() -> Vec<Ipv4Addr> {
    [
        "127.0.0.1",
        "127.0.0.53",
        "127.255.255.254",
        "0.0.0.0",
        "0.0.0.1",
        "10.0.2.2",
        "10.0.2.3",
        "10.0.2.15",
        "255.255.255.255",
    ]
    .iter()
    .map(|text| text.parse().unwrap())
    .collect()
}

#[tokio::test]
async fn a_hostile_guest_does_not_reach_the_hosts_loopback() {
    let Some(bench) = Bench::new(1) else { return };
    let Some(own) = own_address() else {
        println!("skipped: this host has no address but its loopback's");
        return;
    };
    let (_, backend) = bench.start(false).await;
    let mut guest = Guest::new(backend);
    // Given servers on the host's loopback, on all its addresses, and on its outer one
    let (loopback, loopback_port) = listener(Ipv4Addr::LOCALHOST).await;
    let (resolver, resolver_port) = listener(Ipv4Addr::new(127, 0, 0, 53)).await;
    let (all, all_port) = listener(Ipv4Addr::UNSPECIFIED).await;
    let (outer, outer_port) = listener(own).await;
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let datagrams_port = datagrams.local_addr().unwrap().port();
    // When the guest tries every name of the host, by TCP and UDP
    for name in names_of_the_host() {
        for port in [loopback_port, resolver_port, all_port] {
            guest.syn(SocketAddrV4::new(name, port)).await;
        }
        guest.datagram(SocketAddrV4::new(name, datagrams_port), b"hostile").await;
    }
    // Then the outer address can be reached: everything sent before it has been dealt with
    guest.syn(SocketAddrV4::new(own, outer_port)).await;
    assert!(arrives(&outer).await, "the way out is closed");
    // And nothing else has come
    assert!(!has_arrived(&loopback).await, "127.0.0.1 was reached");
    assert!(!has_arrived(&resolver).await, "127.0.0.53 was reached");
    assert!(!has_arrived(&all).await, "a server on all addresses was reached by a loopback name");
    datagrams.set_nonblocking(true).unwrap();
    assert!(datagrams.recv(&mut [0; 16]).is_err(), "a datagram came to 127.0.0.1");
}

#[tokio::test]
async fn host_access_opens_the_gateway_and_nothing_else() {
    let Some(bench) = Bench::new(2) else { return };
    let (_, backend) = bench.start(true).await;
    let mut guest = Guest::new(backend);
    let (loopback, port) = listener(Ipv4Addr::LOCALHOST).await;
    let (other, other_port) = listener(Ipv4Addr::LOCALHOST).await;
    guest.syn(SocketAddrV4::new(Ipv4Addr::LOCALHOST, other_port)).await;
    guest.syn(SocketAddrV4::new(GATEWAY, port)).await;
    assert!(arrives(&loopback).await);
    assert!(!has_arrived(&other).await, "a name other than the gateway's was let through");
}

#[tokio::test]
async fn the_guests_queries_go_to_the_hosts_name_server() {
    let Some(bench) = Bench::new(3) else { return };
    // A query for the address of example.com (RFC 1035, 4.1).
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";
    if !host_resolves(query) {
        println!("skipped: the host's own name server does not answer");
        return;
    }
    let (_, backend) = bench.start(false).await;
    let dns: Ipv4Addr = GuestAddresses::of(&bench.id).config().dns[0].parse().unwrap();
    let mut guest = Guest::new(backend);
    guest.datagram(SocketAddrV4::new(dns, 53), query).await;
    let answer = guest.receive_datagram(LIMIT).await.expect("no answer");
    assert_eq!(answer[..2], query[..2]);
    assert_eq!(answer[2] & 0x80, 0x80, "a response");
}

fn host_resolves(query: &[u8]) -> bool {
    let config = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let server = config.lines().find_map(|l| l.strip_prefix("nameserver ")?.trim().parse::<Ipv4Addr>().ok());
    let Some(server) = server else { return false };
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(query, (server, 53)).is_ok() && socket.recv(&mut [0; 512]).is_ok()
}

#[tokio::test]
async fn it_ends_with_the_machine_and_can_be_found_before() {
    let Some(bench) = Bench::new(4) else { return };
    let (handle, backend) = bench.start(false).await;
    let mut found = find_marked(&bench.id).unwrap();
    let mut known = handle.processes.clone();
    found.sort_by_key(|p| p.pid);
    known.sort_by_key(|p| p.pid);
    assert_eq!(found, known);
    assert_eq!(known.len(), 3);
    // When the VMM's end is closed
    drop(backend);
    // Then both processes end
    for process in &known {
        gone(process).await;
    }
    assert!(find_marked(&bench.id).unwrap().is_empty());
}

#[tokio::test]
async fn when_passt_or_the_guard_dies_the_others_do_not_stay() {
    let Some(bench) = Bench::new(5) else { return };
    // passt comes first, the guard last, and the responder between them.
    for victim in [0, 2] {
        let (handle, _backend) = bench.start(false).await;
        handle.processes[victim].signal(banger_vmm::Signal::KILL).unwrap();
        for process in &handle.processes {
            gone(process).await;
        }
    }
}

#[tokio::test]
async fn a_network_that_does_not_come_up_says_why_and_leaves_nothing() {
    let Some(bench) = Bench::new(6) else { return };
    let broken = bench.dir.path().join("passt");
    std::fs::write(&broken, "#!/bin/sh\necho 'no such interface; cannot read /etc/passwd' >&2\nexit 7\n")
        .unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    let spec = UserNetworkSpec { passt: broken, ..bench.spec(false) };
    let start = async |spec| UserNetwork::plan(spec).unwrap().0.start().await;
    let error = start(spec).await.unwrap_err();
    assert!(
        matches!(&error, NetworkError::DiedAtStart { log, .. } if log.contains("no such interface")),
        "{error}"
    );
    // Its status, and which of the host's files its sandbox has not, are in the error.
    let said = error.to_string();
    assert!(said.contains("exit status 7"), "{said}");
    assert!(said.contains("/etc/passwd is there on this host, but not in its sandbox"), "{said}");
    let missing = UserNetworkSpec { guard: "/nowhere/guard".into(), ..bench.spec(false) };
    assert!(start(missing).await.is_err());
    assert!(find_marked(&bench.id).unwrap().is_empty());
}

#[tokio::test]
async fn passt_finds_what_newer_ones_read_of_themselves() {
    let Some(bench) = Bench::new(8) else { return };
    // As passt of 2024 and newer does: without this file it ends.
    let asks = "#!/bin/sh\nread -r inside _ count </proc/self/uid_map || exit 9\necho \"maps $inside $count\" >&2\nexit 3\n";
    let script = bench.dir.path().join("passt");
    std::fs::write(&script, asks).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let spec = UserNetworkSpec { passt: script, ..bench.spec(false) };
    let error = UserNetwork::plan(spec).unwrap().0.start().await.unwrap_err().to_string();
    assert!(error.contains("maps 1000 1"), "{error}");
}

#[tokio::test]
async fn passt_can_be_checked() {
    let Some(bench) = Bench::new(7) else { return };
    let info = passt::check(&bench.passt).await.unwrap();
    assert!(!info.version.is_empty());
    let error = passt::check(Path::new("/bin/true")).await.unwrap_err();
    assert!(error.to_string().contains("--fd"), "{error}");
    let missing: banger_model::Error = passt::check(Path::new("/nowhere")).await.unwrap_err().into();
    assert!(missing.hint.unwrap().contains("apt-get install passt"));
}
