//! Moves frames between the two sockets until one of them closes. Must never let one direction
//! wait for the other.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::filter::allows;
use super::frames::{Frames, body};

/// Runs until either side closes: `guest` is the VMM's socket, `host` is passt's.
///
/// # Errors
/// When a socket fails in another way than by its end.
pub fn run(guest: &UnixStream, host: &UnixStream) -> io::Result<()> {
    let (ended, end) = mpsc::channel();
    std::thread::scope(|scope| {
        let to_host = ended.clone();
        scope.spawn(move || to_host.send(filtered(guest, host)));
        scope.spawn(move || ended.send(copied(host, guest)));
        let result = end.recv().unwrap_or(Ok(()));
        // Wakes the other direction, and tells both sides that it is over.
        for socket in [guest, host] {
            let _ = socket.shutdown(Shutdown::Both);
        }
        result
    })
}

/// What the guest may send goes on, a frame at a time: passt loses its place when a read ends
/// within a length.
fn filtered(mut guest: &UnixStream, mut host: &UnixStream) -> io::Result<()> {
    let mut frames = Frames::new();
    loop {
        let count = match guest.read(frames.space()) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return end_or(error),
        };
        frames.add(count);
        loop {
            match frames.next() {
                Ok(Some(frame)) if allows(body(frame)) => {
                    if let Err(error) = host.write_all(frame) {
                        return end_or(error);
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a frame with an impossible length",
                    ));
                }
            }
        }
    }
}

/// What comes from outside goes to the guest as it is.
fn copied(mut host: &UnixStream, mut guest: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match host.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) => return end_or(error),
        };
        if let Err(error) = guest.write_all(buffer.get(..count).unwrap_or_default()) {
            return end_or(error);
        }
    }
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
    use super::*;

    #[test]
    fn it_ends_when_either_side_does() {
        for close_guest in [true, false] {
            let (vmm, guest) = UnixStream::pair().unwrap();
            let (passt, host) = UnixStream::pair().unwrap();
            let guard = std::thread::spawn(move || run(&guest, &host));
            let (closed, mut open) = if close_guest { (vmm, passt) } else { (passt, vmm) };
            drop(closed);
            guard.join().unwrap().unwrap();
            assert_eq!(open.read(&mut [0; 1]).unwrap(), 0);
        }
    }

    #[test]
    fn a_side_that_does_not_read_stops_only_what_goes_to_it() {
        let (mut vmm, guest) = UnixStream::pair().unwrap();
        let (mut passt, host) = UnixStream::pair().unwrap();
        let guard = std::thread::spawn(move || run(&guest, &host));
        // Given an outside that sends more than the guest reads
        passt.set_nonblocking(true).unwrap();
        while passt.write(&[0; 65536]).is_ok() {}
        passt.set_nonblocking(false).unwrap();
        // Then the guest's own frames still go out
        let mut arp = vec![0, 0, 0, 42];
        arp.extend([0; 12]);
        arp.extend([8, 6]);
        arp.extend([0; 28]);
        vmm.write_all(&arp).unwrap();
        let mut got = [0; 46];
        passt.read_exact(&mut got).unwrap();
        assert_eq!(got[..], arp[..]);
        drop((vmm, passt));
        guard.join().unwrap().unwrap();
    }
}
