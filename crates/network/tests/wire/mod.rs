//! A guest that writes its packets itself: what no kernel would send, too.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

pub(crate) struct Guest {
    socket: UnixStream,
    port: u16,
}

impl Guest {
    pub(crate) fn new(backend: OwnedFd) -> Self {
        let socket = StdStream::from(backend);
        socket.set_nonblocking(true).unwrap();
        Self { socket: UnixStream::from_std(socket).unwrap(), port: 40000 }
    }

    /// Asks for a TCP connection.
    pub(crate) async fn syn(&mut self, to: SocketAddrV4) {
        let port = self.next_port();
        let mut tcp = Vec::new();
        tcp.extend(port.to_be_bytes());
        tcp.extend(to.port().to_be_bytes());
        tcp.extend([0, 0, 0x10, 0, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        checksum(&mut tcp, 16, 6, *to.ip());
        self.packet(6, *to.ip(), &tcp).await;
    }

    /// Sends a datagram.
    pub(crate) async fn datagram(&mut self, to: SocketAddrV4, data: &[u8]) {
        let port = self.next_port();
        let length = u16::try_from(8 + data.len()).unwrap();
        let mut udp = Vec::new();
        for half in [port, to.port(), length, 0] {
            udp.extend(half.to_be_bytes());
        }
        udp.extend(data);
        checksum(&mut udp, 6, 17, *to.ip());
        self.packet(17, *to.ip(), &udp).await;
    }

    /// The next datagram's data, from anybody.
    pub(crate) async fn receive_datagram(&mut self, limit: Duration) -> Option<Vec<u8>> {
        let read = async {
            loop {
                let length = self.socket.read_u32().await.ok()?;
                let mut frame = vec![0; length as usize];
                self.socket.read_exact(&mut frame).await.ok()?;
                if frame[12..14] == [8, 0] && frame[23] == 17 {
                    return Some(frame[42..].to_vec());
                }
            }
        };
        tokio::time::timeout(limit, read).await.ok().flatten()
    }

    fn next_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    async fn packet(&mut self, protocol: u8, to: Ipv4Addr, payload: &[u8]) {
        let total = u16::try_from(20 + payload.len()).unwrap();
        let mut ip = vec![0x45, 0];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        ip.extend(GUEST.octets());
        ip.extend(to.octets());
        let sum = !fold(&ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        ip.extend(payload);
        let mut frame = vec![0xff; 6];
        frame.extend([0x52, 0x54, 0, 1, 2, 3, 8, 0]);
        frame.extend(ip);
        self.socket.write_u32(u32::try_from(frame.len()).unwrap()).await.unwrap();
        self.socket.write_all(&frame).await.unwrap();
    }
}

fn checksum(segment: &mut [u8], at: usize, protocol: u8, to: Ipv4Addr) {
    let mut pseudo = GUEST.octets().to_vec();
    pseudo.extend(to.octets());
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
    let sum = !fold(segment, u32::from(fold(&pseudo, 0)));
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn fold(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}
