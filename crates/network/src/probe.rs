//! The first round trip of a new network: asks, in the guest's name, for the gateway's hardware
//! address (ARP, RFC 826), and waits for the answer.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::addresses::{GATEWAY, GUEST, GuestAddresses};

/// An ARP packet in an ethernet frame.
const REQUEST: usize = 42;

/// Returns when the gateway has answered; nothing of the exchange is left in the socket.
pub(crate) async fn gateway_answers(wire: &OwnedFd, addresses: &GuestAddresses) -> io::Result<()> {
    let socket = StdStream::from(wire.try_clone()?);
    // A mode of the open socket, so of the guard's copy, too: it is put back below.
    socket.set_nonblocking(true)?;
    let mut socket = UnixStream::from_std(socket)?;
    socket.write_all(&request(addresses)).await?;
    loop {
        let length = usize::try_from(socket.read_u32().await?).map_err(io::Error::other)?;
        if length > usize::from(u16::MAX) {
            return Err(io::Error::other("a frame with an impossible length"));
        }
        let mut frame = vec![0; length];
        socket.read_exact(&mut frame).await?;
        if is_answer(&frame) {
            break;
        }
    }
    socket.into_std()?.set_nonblocking(false)
}

fn mac(addresses: &GuestAddresses) -> [u8; 6] {
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(addresses.mac.split(':')) {
        *byte = u8::from_str_radix(text, 16).unwrap_or(0);
    }
    bytes
}

fn request(addresses: &GuestAddresses) -> Vec<u8> {
    let mac = mac(addresses);
    let mut frame = vec![0, 0, 0, 42];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    // ARP; ethernet and IPv4, with 6 and 4 bytes of address; a request.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(GUEST.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY.octets());
    debug_assert_eq!(frame.len(), 4 + REQUEST);
    frame
}

fn is_answer(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 6])
        && frame.get(20..22) == Some(&[0, 2])
        && frame.get(28..32) == Some(&GATEWAY.octets())
}
