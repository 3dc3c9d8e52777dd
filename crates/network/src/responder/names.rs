//! The guest's name server, port 53 of its own address, by UDP and TCP (RFC 1035, 4.2). Queries and answers pass as
//! they are. Must never keep a guest's query when there are too many: resolvers ask again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use rustix::event::{EventfdFlags, eventfd};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;

use super::resolver::{self, Transport};

const PORT: u16 = 53;
/// Queries that are under way at a time.
const QUERIES_MAX: usize = 64;
/// TCP connections at a time.
const CONNECTIONS: usize = 8;
/// A message over TCP, with its length before it, is no longer (RFC 1035, 4.2.2).
const MESSAGE_MAX: usize = 2 + 65535;
/// A connection on which nothing happens is closed after this time (RFC 7766, 6.2.3, asks for some seconds).
const IDLE: Duration = Duration::from_secs(20);

/// Who asked.
#[derive(Debug, Clone, Copy)]
enum Asker {
    Datagram(IpEndpoint),
    /// The number of the connection's socket, and of its use: the socket may serve another connection by the time of the
    /// answer.
    Connection(usize, u64),
}

pub(super) struct Names {
    datagrams: SocketHandle,
    connections: Vec<Connection>,
    resolv: PathBuf,
    under_way: Arc<AtomicUsize>,
    answers: Receiver<(Asker, Vec<u8>)>,
    /// For the threads that ask.
    answering: Sender<(Asker, Vec<u8>)>,
    /// Readable when there is an answer.
    wake: Arc<OwnedFd>,
}

struct Connection {
    socket: SocketHandle,
    number: u64,
    /// What was received of the next query.
    received: Vec<u8>,
    /// What is still to be sent of the last answer.
    to_send: Vec<u8>,
    asking: bool,
}

impl Names {
    pub(super) fn new(sockets: &mut SocketSet<'_>, resolv: &Path) -> io::Result<Self> {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 2 * MESSAGE_MAX]);
        let mut datagrams = udp::Socket::new(buffer(), buffer());
        datagrams.bind(PORT).map_err(io::Error::other)?;
        let connections = (0..CONNECTIONS).map(|_| {
            let buffer = || tcp::SocketBuffer::new(vec![0; 8192]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_timeout(Some(IDLE));
            Connection::unused(sockets.add(socket))
        });
        let connections = connections.collect();
        let datagrams = sockets.add(datagrams);
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let under_way = Arc::default();
        let (answering, answers) = mpsc::channel();
        let resolv = resolv.to_owned();
        let mut names = Self { datagrams, connections, resolv, under_way, answers, answering, wake };
        names.serve(sockets);
        Ok(names)
    }

    /// Takes queries and hands answers out, as far as that goes without waiting.
    pub(super) fn serve(&mut self, sockets: &mut SocketSet<'_>) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        while let Ok((asker, answer)) = self.answers.try_recv() {
            self.hand_out(asker, &answer, sockets);
        }
        let datagrams = sockets.get_mut::<udp::Socket<'_>>(self.datagrams);
        let mut queries = Vec::new();
        while let Ok((query, from)) = datagrams.recv() {
            queries.push((Asker::Datagram(from.endpoint), query.to_vec()));
        }
        for (index, connection) in self.connections.iter_mut().enumerate() {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(connection.socket);
            queries.extend(connection.advance(index, socket));
        }
        for (asker, query) in queries {
            self.ask(asker, query);
        }
    }

    fn hand_out(&mut self, asker: Asker, answer: &[u8], sockets: &mut SocketSet<'_>) {
        match asker {
            Asker::Datagram(to) => {
                let _ = sockets.get_mut::<udp::Socket<'_>>(self.datagrams).send_slice(answer, to);
            }
            Asker::Connection(index, number) => {
                let connection = self.connections.get_mut(index).filter(|c| c.number == number);
                let length = u16::try_from(answer.len());
                if let (Some(connection), Ok(length)) = (connection, length) {
                    connection.asking = false;
                    connection.to_send.extend(length.to_be_bytes());
                    connection.to_send.extend(answer);
                }
            }
        }
    }

    /// Asks the host's name servers, on a thread of the query's own.
    fn ask(&self, asker: Asker, query: Vec<u8>) {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= QUERIES_MAX {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let transport = match asker {
            Asker::Datagram(_) => Transport::Datagram,
            Asker::Connection(..) => Transport::Stream,
        };
        let (answers, resolv) = (self.answering.clone(), self.resolv.clone());
        let (under_way, wake) = (self.under_way.clone(), self.wake.clone());
        let work = move || {
            if let Some(answer) = resolver::resolve(&query, transport, &resolv) {
                let _ = answers.send((asker, answer));
                let _ = rustix::io::write(&wake, &1_u64.to_ne_bytes());
            }
            under_way.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().spawn(work).is_err() {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl AsFd for Names {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Connection {
    /// Sends and receives what can be, and returns a query that is complete. One at a time: the next waits in the
    /// socket's buffer.
    fn advance(&mut self, index: usize, socket: &mut tcp::Socket<'_>) -> Option<(Asker, Vec<u8>)> {
        if !socket.is_open() {
            *self = Self { number: self.number + 1, ..Self::unused(self.socket) };
            // It is closed and the port is not 0: nothing else is refused.
            let _ = socket.listen(PORT);
            return None;
        }
        if let Ok(sent) = socket.send_slice(&self.to_send) {
            self.to_send.drain(..sent.min(self.to_send.len()));
        }
        if self.asking || !self.to_send.is_empty() {
            return None;
        }
        let query = self.next_query(socket);
        if query.is_none() && socket.is_active() && !socket.may_recv() && !socket.can_recv() {
            // The guest has closed its direction, and everything was answered.
            if socket.state() == tcp::State::CloseWait {
                socket.close();
            }
        }
        self.asking = query.is_some();
        query.map(|query| (Asker::Connection(index, self.number), query))
    }

    fn next_query(&mut self, socket: &mut tcp::Socket<'_>) -> Option<Vec<u8>> {
        let wanted = |received: &[u8]| match received {
            [high, low, ..] => 2 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => 2,
        };
        loop {
            let missing = wanted(&self.received).saturating_sub(self.received.len());
            if missing == 0 {
                // Its length is known by now, and there as well.
                return Some(std::mem::take(&mut self.received).split_off(2));
            }
            let mut buffer = vec![0; missing];
            match socket.recv_slice(&mut buffer) {
                Ok(count) if count > 0 => self.received.extend(buffer.get(..count)?),
                _ => return None,
            }
        }
    }

    fn unused(socket: SocketHandle) -> Self {
        Self { socket, number: 0, received: Vec::new(), to_send: Vec::new(), asking: false }
    }
}
