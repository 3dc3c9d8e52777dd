//! A network for a machine monitor that takes a tap device only: a program in a cage opens the tap as Firecracker does,
//! and the other side of it is the stream socket that QEMU would have got.
#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test's helpers may fail it")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use banger_model::{Layer, VmId};
use banger_vmm::cage::Tap;
use banger_vmm::process::{find_marked, mark};
use banger_vmm::{Cage, Policy, Spawned, Standalone, VmmError};

const MTU: u32 = 65520;
/// The virtio-net header that is before a frame on the tap.
const HEADER: usize = 10;

/// Starts this test program again in a cage, as `inside`.
fn start(dir: &Path, number: u8, backend: UnixStream, device: bool) -> Result<Spawned, VmmError> {
    let companions = Path::new(env!("CARGO_BIN_EXE_banger-cage")).parent().unwrap();
    let mut policy = Policy::nothing(mark(&id(number)));
    policy.rooms.push(dir.to_owned());
    if device {
        policy.devices.push("/dev/net/tun".into());
    }
    let own = std::env::current_exe().unwrap();
    let mut program = Standalone::new(&own, &dir.join("log"), dir).called(format!("tap:{}", policy.mark));
    policy.tap = Some(Tap { mtu: MTU, network: program.give(backend.into()) });
    let words = ["--ignored", "--exact", "inside", "--nocapture", "--test-threads=1"];
    program.args(words).caged(&Cage::beside(companions, Vec::new()), policy).spawn()
}

fn id(number: u8) -> VmId {
    VmId::from_random([0xec, 0, std::process::id().to_be_bytes()[3], 0, 0, number])
}

/// All with the mark in their command line, whoever leads them.
fn processes(number: u8) -> usize {
    let mark = mark(&id(number));
    let lines =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|p| fs::read(p.path().join("cmdline")).ok());
    lines.filter(|line| String::from_utf8_lossy(line).contains(&mark)).count()
}

/// Whether this host lets us make one.
fn possible() -> bool {
    let file = fs::File::options().read(true).write(true).open("/dev/net/tun");
    if let Err(error) = &file {
        println!("skipped: /dev/net/tun: {error}");
    }
    file.is_ok()
}

/// Not a test: runs in the cage. Sends back what it reads, with an answer's first byte, and ends at a frame that says so.
#[test]
#[ignore = "a part of the other tests"]
#[expect(unsafe_code, reason = "the device is opened by an ioctl without a wrapper")]
fn inside() {
    let Ok(tap) = fs::File::options().read(true).write(true).open("/dev/net/tun") else {
        fs::write("no-device", "").unwrap();
        // Its end is not to come before its launcher has looked.
        while !Path::new("go").exists() {
            std::thread::sleep(Duration::from_millis(2));
        }
        return;
    };
    // SAFETY: zeros are an ifreq, and the ioctl reads and writes no more than one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(Tap::NAME.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request), 0);
        // What Firecracker's guests leave to the device: checksums and cutting into segments.
        let offload: libc::c_ulong = 0x1 | 0x2;
        assert_eq!(libc::ioctl(tap.as_raw_fd(), 0x4004_54d0, offload), 0, "TUNSETOFFLOAD");
        // And nothing else of a network is to be had.
        assert_eq!(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0), -1);
        assert_eq!(libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0), -1);
    }
    let mut packet = vec![0; HEADER + 65535 + 14];
    fs::write("ready", "").unwrap();
    loop {
        let count = (&tap).read(&mut packet).unwrap();
        let frame = &mut packet[HEADER..count];
        if frame[14..].starts_with(b"end") {
            return;
        }
        frame[14] = b'>';
        // One whose checksum is the device's business.
        packet[..HEADER].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 2, 0]);
        assert_eq!((&tap).write(&packet[..count]).unwrap(), count);
    }
}

/// A frame between two stations, of a kind that no kernel has an opinion on (IEEE's for experiments).
fn frame(words: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    frame.extend(words);
    frame.resize(frame.len().max(60), 0);
    frame
}

fn send(mut network: &UnixStream, frame: &[u8]) {
    network.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
    network.write_all(frame).unwrap();
}

fn receive(mut network: &UnixStream, log: &Path) -> Vec<u8> {
    let mut read = || -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        network.read_exact(&mut length)?;
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        network.read_exact(&mut frame)?;
        Ok(frame)
    };
    read().unwrap_or_else(|error| panic!("{error}: {}", fs::read_to_string(log).unwrap_or_default()))
}

async fn appears(path: PathBuf, log: &Path) {
    let there = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let soon = tokio::time::timeout(Duration::from_secs(20), there).await;
    assert!(soon.is_ok(), "{path:?}: {}", fs::read_to_string(log).unwrap_or_default());
}

#[tokio::test]
async fn frames_go_both_ways_between_a_tap_in_a_cage_and_the_socket_outside() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (network, theirs) = UnixStream::pair().unwrap();
    network.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let spawned = start(dir.path(), 1, theirs, true).unwrap();
    assert!(spawned.security().has(Layer::Network), "{:?}", spawned.security());
    appears(dir.path().join("ready"), &dir.path().join("log")).await;
    // When frames of many sizes come from outside
    for size in [46, 47, 1500, 9000, MTU as usize] {
        let words: Vec<u8> = (0..size).map(|n| n as u8).collect();
        let sent = frame(&words);
        send(&network, &sent);
        // Then the one in the cage gets them whole, and its answers come back, with their checksums made
        let got = receive(&network, &dir.path().join("log"));
        assert_eq!((got.len(), got[14]), (sent.len(), b'>'), "{size}");
        assert_eq!((&got[15..36], &got[38..]), (&sent[15..36], &sent[38..]), "{size}");
        let sum = got[34..].chunks(2).fold(0_u32, |sum, pair| {
            let pair = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum + u32::from(u16::from_be_bytes(pair))
        });
        // The field was not zero before: what the guest put there is part of the sum.
        let before = u32::from(u16::from_be_bytes([sent[36], sent[37]]));
        let made = u32::from(u16::from_be_bytes([got[36], got[37]]));
        let folded = |mut sum: u32| {
            while sum >> 16 != 0 {
                sum = (sum & 0xffff) + (sum >> 16);
            }
            sum
        };
        assert_eq!(folded(sum - made + before), 0xffff - made, "{size}");
    }
    // And with the program's end everything of it goes, and the network hears of it
    assert_eq!(find_marked(&id(1)).unwrap(), [spawned.process().clone()]);
    assert_eq!(processes(1), 2, "the program, and what carries its frames");
    send(&network, &frame(b"end"));
    let exit = spawned.ended_within(Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit.code, Some(0), "{}", fs::read_to_string(dir.path().join("log")).unwrap());
    assert_eq!((&network).read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(processes(1), 0);
}

#[tokio::test]
async fn a_network_that_ends_or_lies_leaves_the_program_alone() {
    if !possible() {
        return;
    }
    for (number, last) in [(2, &b""[..]), (3, &b"\xff\xff\xff\xff"[..])] {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (mut network, theirs) = UnixStream::pair().unwrap();
        network.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let spawned = start(dir.path(), number, theirs, true).unwrap();
        appears(dir.path().join("ready"), &dir.path().join("log")).await;
        // When what is on the other side ends, or says nonsense
        network.write_all(last).unwrap();
        network.shutdown(std::net::Shutdown::Write).unwrap();
        // Then what carries the frames ends, and the program does not
        assert_eq!(network.read(&mut [0; 1]).unwrap(), 0);
        assert!(spawned.process().is_alive());
        drop(spawned);
        assert_eq!(processes(number), 0);
    }
}

#[tokio::test]
async fn the_device_is_only_for_who_is_given_it() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (_network, theirs) = UnixStream::pair().unwrap();
    let spawned = start(dir.path(), 4, theirs, false).unwrap();
    appears(dir.path().join("no-device"), &dir.path().join("log")).await;
    fs::write(dir.path().join("go"), "").unwrap();
    assert_eq!(spawned.ended_within(Duration::from_secs(20)).await.unwrap().code, Some(0));
}
