//! Carries frames between a tap (see [`super::tap`]) and the stream socket that the network behind it speaks on, where
//! each is behind its length, 32 bits, big-endian. A process of its own in the monitor's cage, under the same
//! restrictions: it ends with the monitor, whose process namespace it is in, and the network ends with it.
//!
//! Must never believe a length, and must never let one direction wait for the other.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

/// An IP packet of the largest size, and its ethernet header.
const FRAME_MAX: usize = 65535 + 14;
/// The virtio-net header of the packet socket: flags, kind of segments, header length, segment size, and where a
/// checksum begins and goes, 16 bits each but the first two (virtio 1.2, 5.1.6).
const HEADER: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const LENGTH: usize = 4;

/// Starts it. Returns in the process that goes on to become the program, which keeps neither of the two.
pub(super) fn start(packets: OwnedFd, network: OwnedFd) -> io::Result<()> {
    if !super::namespaces::fork_child()? {
        return Ok(());
    }
    // Here nothing but these two and the log is left, least of all the pipe whose end the launcher waits for.
    let outcome =
        keep([packets.as_raw_fd(), network.as_raw_fd()]).and_then(|()| run(packets.into(), network.into()));
    std::process::exit(match outcome {
        Ok(()) => 0,
        Err(error) => {
            super::complain_of("the guest's network ended", &error);
            1
        }
    })
}

fn keep(mut fds: [RawFd; 2]) -> io::Result<()> {
    fds.sort_unstable();
    let [low, high] = fds;
    for (from, to) in [(3, low - 1), (low + 1, high - 1), (high + 1, RawFd::MAX)] {
        if from <= to {
            super::close_range(from, to, 0)?;
        }
    }
    // The standard output is the guest's console.
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(())
}

/// Runs until either side is closed.
fn run(packets: File, network: UnixStream) -> io::Result<()> {
    let (ended, end) = mpsc::channel();
    let (also, packets_out, network_in) = (ended.clone(), packets.try_clone()?, network.try_clone()?);
    std::thread::Builder::new().spawn(move || also.send(from_guest(&packets, &network)))?;
    std::thread::Builder::new().spawn(move || ended.send(to_guest(network_in, &packets_out)))?;
    end.recv().unwrap_or(Ok(()))
}

fn from_guest(mut packets: &File, mut network: &UnixStream) -> io::Result<()> {
    // The length goes where the header's last bytes were.
    let mut buffer = vec![0; HEADER + FRAME_MAX];
    loop {
        let count = match packets.read(&mut buffer) {
            Ok(count) => count,
            // The device is taken down when the namespace goes.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let Some(message) = frame(buffer.get_mut(..count).unwrap_or_default()) else { continue };
        match network.write_all(message) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// A packet as the network takes it: the frame behind its length, and its checksum in it.
fn frame(packet: &mut [u8]) -> Option<&[u8]> {
    let (header, frame) = packet.split_at_mut_checked(HEADER)?;
    let number = |at: usize| Some(usize::from(u16::from_ne_bytes(header.get(at..at + 2)?.try_into().ok()?)));
    if header.first()? & NEEDS_CHECKSUM != 0 {
        fill_checksum(frame, number(6)?, number(8)?)?;
    }
    let length = u32::try_from(frame.len()).ok()?.to_be_bytes();
    header.get_mut(HEADER - LENGTH..)?.copy_from_slice(&length);
    packet.get(HEADER - LENGTH..)
}

/// Does what the guest has left to its device: the sum over all from `start` on, where the pseudo header's is in place
/// already (RFC 1071).
fn fill_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let summed = frame.get(start..)?;
    let sum = summed.chunks(2).fold(0_u32, |sum, pair| {
        let pair = [pair.first().copied().unwrap_or(0), pair.get(1).copied().unwrap_or(0)];
        sum + u32::from(u16::from_be_bytes(pair))
    });
    let mut folded = sum;
    while folded >> 16 != 0 {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    let sum = !u16::try_from(folded).ok()?;
    // In UDP, none at all is said by zero, and zero by its other form.
    let sum = if sum == 0 { 0xffff } else { sum };
    let at = start.checked_add(offset)?;
    frame.get_mut(at..at.checked_add(2)?)?.copy_from_slice(&sum.to_be_bytes());
    Some(())
}

fn to_guest(network: UnixStream, mut packets: &File) -> io::Result<()> {
    let mut network = BufReader::with_capacity(256 << 10, network);
    let mut length = [0; LENGTH];
    let mut packet = vec![0; HEADER + FRAME_MAX];
    loop {
        match network.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if is_end(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        let count = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        let Some(space) = packet.get_mut(HEADER..HEADER.saturating_add(count)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame with an impossible length"));
        };
        network.read_exact(space)?;
        let whole = packet.get(..HEADER + count).unwrap_or_default();
        // One that the device does not take (nobody has opened it yet, or its queue is full) is lost, as on a wire.
        let _ = packets.write(whole);
    }
}

/// A peer that is gone is the normal end.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(flags: u8, start: u16, offset: u16, frame: &[u8]) -> Vec<u8> {
        let mut packet = vec![flags, 0, 0, 0, 0, 0];
        packet.extend(start.to_ne_bytes());
        packet.extend(offset.to_ne_bytes());
        packet.extend(frame);
        packet
    }

    #[test]
    fn a_frame_goes_out_behind_its_length() {
        let mut packet = packet(0, 0, 0, b"hello");
        assert_eq!(frame(&mut packet), Some(&b"\0\0\0\x05hello"[..]));
        for short in 0..HEADER {
            assert_eq!(frame(&mut vec![1; short]), None, "{short}");
        }
    }

    #[test]
    fn a_checksum_that_the_guest_left_out_is_made() {
        // The example of RFC 1071: 00 01 f2 03 f4 f5 f6 f7 sum up to ddf2.
        let sum = |bytes: &[u8], at: u16| {
            let mut packet = packet(NEEDS_CHECKSUM, 3, at, &[b"eth", bytes].concat());
            frame(&mut packet).map(|f| f[LENGTH + 3..].to_vec())
        };
        let made = sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0], 8).unwrap();
        assert_eq!(made[8..], (!0xddf2_u16).to_be_bytes());
        // And one of an odd length
        let made = sum(&[0, 0, 0x12], 0).unwrap();
        assert_eq!(made[..2], (!0x1200_u16).to_be_bytes());
        // What does not fit is dropped, wherever it says that it goes
        for (start, offset) in [(3, 9), (3, 65535), (65535, 65535), (4, 0)] {
            let mut packet = packet(NEEDS_CHECKSUM, start, offset, b"ethx");
            assert_eq!(frame(&mut packet), None, "{start} {offset}");
        }
    }
}
