//! Moves frames between the guest, passt and the responder until the guest's or passt's socket closes. Must never let
//! one direction wait for the other, nor the network wait for the responder.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::filter::{Verdict, judge};
use super::frames::{FRAME_MAX, Frames, body};

/// How often the responder is shown a packet that is not the first of a TCP connection, at most: of a flow of
/// datagrams to an unreachable destination it has to see one, not all.
const SHOWN: Duration = Duration::from_millis(20);

/// Runs until either side closes: `guest` is the VMM's socket, `passt` is passt's, and `responder` carries a frame in each
/// message (`SOCK_SEQPACKET`).
///
/// # Errors
/// When a socket fails in another way than by its end.
pub fn run(guest: &UnixStream, passt: &UnixStream, responder: &OwnedFd) -> io::Result<()> {
    let (ended, end) = mpsc::channel();
    // Frames come to the guest from two sides, each of them whole.
    let to_guest = &Mutex::new(guest);
    std::thread::scope(|scope| {
        let outward = ended.clone();
        scope.spawn(move || outward.send(filtered(guest, passt, responder)));
        scope.spawn(move || ended.send(copied(passt, to_guest)));
        // A responder that ends takes nothing with it but its answers.
        scope.spawn(move || answered(responder, to_guest));
        let result = end.recv().unwrap_or(Ok(()));
        // Wakes the other directions, and tells all sides that it is over.
        for socket in [guest, passt] {
            let _ = socket.shutdown(Shutdown::Both);
        }
        let _ = rustix::net::shutdown(responder, rustix::net::Shutdown::Both);
        result
    })
}

/// What the guest may send goes on, a frame at a time: passt loses its place when a read ends
/// within a length.
fn filtered(mut guest: &UnixStream, mut passt: &UnixStream, responder: &OwnedFd) -> io::Result<()> {
    let mut frames = Frames::new();
    let mut shown = Instant::now();
    loop {
        let count = match guest.read(frames.space()) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return end_or(error),
        };
        frames.add(count);
        while let Some(frame) = frames.next().map_err(|_| impossible())? {
            let verdict = judge(body(frame));
            let show = match verdict {
                Verdict::Drop => continue,
                Verdict::Connect | Verdict::Responder => true,
                Verdict::Passt => shown.elapsed() > SHOWN,
            };
            if show {
                shown = Instant::now();
                // One that is busy misses it: the guest sends it again.
                let _ = send(responder, body(frame), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
            }
            if verdict != Verdict::Responder
                && let Err(error) = passt.write_all(frame)
            {
                return end_or(error);
            }
        }
    }
}

/// What comes from passt goes to the guest as it is, in whole frames.
fn copied(mut passt: &UnixStream, guest: &Mutex<&UnixStream>) -> io::Result<()> {
    let mut frames = Frames::new();
    loop {
        let count = match passt.read(frames.space()) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return end_or(error),
        };
        frames.add(count);
        let whole = frames.take_whole().map_err(|_| impossible())?;
        if let Err(error) = write(guest, whole) {
            return end_or(error);
        }
    }
}

/// The responder's frames get their length and go to the guest.
fn answered(responder: &OwnedFd, guest: &Mutex<&UnixStream>) {
    let mut buffer = vec![0; FRAME_MAX];
    loop {
        match recv(responder, &mut buffer, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            Ok((_, count)) if count > 0 => {
                let frame = buffer.get(..count).unwrap_or_default();
                let length = u32::try_from(count).unwrap_or_default();
                if write(guest, &[length.to_be_bytes().as_slice(), frame].concat()).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn write(guest: &Mutex<&UnixStream>, bytes: &[u8]) -> io::Result<()> {
    let mut guest = *guest.lock().unwrap_or_else(PoisonError::into_inner);
    guest.write_all(bytes)
}

fn impossible() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a frame with an impossible length")
}

/// A peer that is gone is the normal end, however the kernel words it.
fn end_or(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    /// A guard that runs; the ends of the VMM, passt and the responder.
    struct Bench {
        vmm: UnixStream,
        passt: UnixStream,
        responder: OwnedFd,
        guard: std::thread::JoinHandle<io::Result<()>>,
    }

    fn start() -> Bench {
        let (vmm, guest) = UnixStream::pair().unwrap();
        let (passt, host) = UnixStream::pair().unwrap();
        let (responder, answers) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let guard = std::thread::spawn(move || run(&guest, &host, &answers));
        Bench { vmm, passt, responder, guard }
    }

    /// A frame with its length before it: ARP for an address in 10.0.2.0/24.
    fn arp(target: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, 0, 42];
        frame.extend([0; 12]);
        frame.extend([8, 6]);
        frame.extend([0; 24]);
        frame.extend([10, 0, 2, target]);
        frame
    }

    #[test]
    fn it_ends_when_either_side_does_and_the_responder_hears_of_it() {
        for close_guest in [true, false] {
            let Bench { vmm, passt, responder, guard } = start();
            let (closed, mut open) = if close_guest { (vmm, passt) } else { (passt, vmm) };
            drop(closed);
            guard.join().unwrap().unwrap();
            assert_eq!(open.read(&mut [0; 1]).unwrap(), 0);
            assert_eq!(recv(&responder, &mut [0; 1], RecvFlags::empty()).unwrap().1, 0);
        }
    }

    #[test]
    fn a_responder_that_is_gone_or_silent_takes_nothing_with_it() {
        for gone in [true, false] {
            let Bench { mut vmm, mut passt, responder, guard } = start();
            let silent = (!gone).then_some(responder);
            for _ in 0..4096 {
                vmm.write_all(&arp(3)).unwrap();
            }
            vmm.write_all(&arp(2)).unwrap();
            let mut got = [0; 46];
            passt.read_exact(&mut got).unwrap();
            assert_eq!(got[..], arp(2)[..]);
            drop((vmm, passt, silent));
            guard.join().unwrap().unwrap();
        }
    }

    #[test]
    fn frames_from_passt_and_from_the_responder_arrive_whole() {
        let Bench { mut vmm, mut passt, responder, guard } = start();
        // Given one of passt's frames that has arrived in part
        let frame = arp(2);
        let (first, rest) = frame.split_at(11);
        passt.write_all(first).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        // When the responder answers
        send(&responder, &arp(3)[4..], SendFlags::empty()).unwrap();
        let mut got = [0; 46];
        vmm.read_exact(&mut got).unwrap();
        assert_eq!(got[..], arp(3)[..]);
        // Then passt's comes behind it
        passt.write_all(rest).unwrap();
        vmm.read_exact(&mut got).unwrap();
        assert_eq!(got[..], arp(2)[..]);
        drop((vmm, passt));
        guard.join().unwrap().unwrap();
    }

    #[test]
    fn a_side_that_does_not_read_stops_only_what_goes_to_it() {
        let Bench { mut vmm, mut passt, guard, .. } = start();
        // Given an outside that sends more than the guest reads
        passt.set_nonblocking(true).unwrap();
        while passt.write(&arp(9)).is_ok_and(|count| count == 46) {}
        passt.set_nonblocking(false).unwrap();
        // Then the guest's own frames still go out
        vmm.write_all(&arp(2)).unwrap();
        let mut got = [0; 46];
        passt.read_exact(&mut got).unwrap();
        assert_eq!(got[..], arp(2)[..]);
        drop((vmm, passt));
        guard.join().unwrap().unwrap();
    }
}
