//! The socket to the guard, as a network device of smoltcp's: one frame in each message.
//! Must never wait for the guard: a frame that it does not take at once is lost, as on a wire.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
};

use crate::addresses::{DNS, DNS_MAC, FRAME_HEADER, GUEST, MTU};

/// Frames that wait to be processed.
const QUEUE: usize = 256;

pub(super) struct Device {
    socket: OwnedFd,
    buffer: Vec<u8>,
    received: VecDeque<Vec<u8>>,
}

impl Device {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, buffer: vec![0; largest()], received: VecDeque::new() })
    }

    /// The next frame of the guard's, if one is there. An empty one: the guard has closed its end.
    pub(super) fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        match recv(&self.socket, &mut self.buffer, RecvFlags::empty()) {
            Ok((_, count)) => Ok(Some(self.buffer.get(..count).unwrap_or_default().to_vec())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(Errno::CONNRESET) => Ok(Some(Vec::new())),
            Err(error) => Err(error.into()),
        }
    }

    /// Leaves a frame to smoltcp, after the guest's hardware address: without it smoltcp would ask the guest, and drop
    /// its answer in the meantime.
    pub(super) fn queue(&mut self, frame: Vec<u8>) {
        if self.received.len() < QUEUE {
            self.received.extend(introduction(&frame));
            self.received.push_back(frame);
        }
    }

    /// Sends a frame to the guest.
    pub(super) fn write(&self, frame: &[u8]) {
        write(&self.socket, frame);
    }
}

/// An ARP reply with the hardware address that a packet of the guest's comes from.
fn introduction(frame: &[u8]) -> Option<Vec<u8>> {
    let sent = EthernetFrame::new_checked(frame).ok()?;
    if sent.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: sent.src_addr(),
        source_protocol_addr: GUEST,
        target_hardware_addr: EthernetAddress(DNS_MAC),
        target_protocol_addr: DNS,
    };
    let ethernet = EthernetRepr {
        src_addr: sent.src_addr(),
        dst_addr: EthernetAddress(DNS_MAC),
        ethertype: EthernetProtocol::Arp,
    };
    let mut frame = vec![0; FRAME_HEADER + arp.buffer_len()];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    arp.emit(&mut ArpPacket::new_unchecked(frame.get_mut(FRAME_HEADER..)?));
    Some(frame)
}

fn largest() -> usize {
    usize::try_from(MTU).unwrap_or(usize::MAX).saturating_add(FRAME_HEADER)
}

fn write(socket: &OwnedFd, frame: &[u8]) {
    // The guard is busy or gone. The guest asks again, or is gone as well.
    let _ = send(socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl phy::Device for Device {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sender<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sender(&self.socket)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&self.socket))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.max_transmission_unit = largest();
        capabilities.medium = Medium::Ethernet;
        capabilities
    }
}

pub(super) struct Received(Vec<u8>);

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, process: F) -> R {
        process(&self.0)
    }
}

pub(super) struct Sender<'a>(&'a OwnedFd);

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; length];
        let result = fill(&mut frame);
        write(self.0, &frame);
        result
    }
}
