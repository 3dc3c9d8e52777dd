//! Asks the host's name servers, which it reads anew for each query. Must never believe an answer to another query.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one server may take to answer: resolvers in guests ask again after 5 s.
const PATIENCE: Duration = Duration::from_millis(2200);
/// A message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;

/// How the guest has asked, and how the name servers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Datagram,
    Stream,
}

/// The answer to a query: a name server's, or one that says why there is none. `None` for what is no query.
pub(super) fn resolve(query: &[u8], transport: Transport, resolv: &Path) -> Option<Vec<u8>> {
    if query.len() < HEADER || query.get(2)? & 0x80 != 0 {
        return None;
    }
    let servers = crate::host::name_servers(crate::host::published(resolv).as_bytes());
    let mut why = "the host has no name server (/etc/resolv.conf)".to_owned();
    for server in servers {
        let asked = match transport {
            Transport::Datagram => by_datagram(server, query),
            Transport::Stream => by_stream(server, query),
        };
        match asked {
            Ok(answer) => return Some(answer),
            Err(error) => why = format!("the host's name server {} cannot be asked: {error}", server.ip()),
        }
    }
    failure(query, &why)
}

fn by_datagram(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    // Only this server's answers arrive, and the errors of the way there.
    socket.connect(server)?;
    socket.send(query)?;
    let until = Instant::now() + PATIENCE;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(silent());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buffer) {
            Ok(count) => {
                let answer = buffer.get(..count).unwrap_or_default();
                if is_answer(answer, query) {
                    return Ok(answer.to_vec());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(silent()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn by_stream(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[length.to_be_bytes().as_slice(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    if is_answer(&answer, query) { Ok(answer) } else { Err(silent()) }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it does not answer")
}

/// The same identification, and marked as a response.
fn is_answer(answer: &[u8], query: &[u8]) -> bool {
    answer.get(..2) == query.get(..2) && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
}

/// "Server failure", and why: an extended error (RFC 8914), for those who have asked with EDNS.
fn failure(query: &[u8], why: &str) -> Option<Vec<u8>> {
    let end = question_end(query)?;
    let rest = query.get(end..)?;
    // An OPT record's owner is the root, its type 41 (RFC 6891, 6.1.2).
    let extended = rest.get(..3) == Some(&[0, 0, 41]);
    let mut answer = query.get(..end)?.to_vec();
    // A response, recursion desired as asked and available; server failure; one question and nothing else.
    *answer.get_mut(2)? |= 0x80;
    *answer.get_mut(3)? = 0x82;
    answer.get_mut(4..HEADER)?.copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(extended)]);
    if extended {
        let text = why.as_bytes().get(..why.len().min(200))?;
        let length = u16::try_from(2 + text.len()).ok()?;
        // The root; OPT; 1232 bytes of payload; no flags; the option "extended error" with "network error" (23).
        answer.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0]);
        answer.extend((length + 4).to_be_bytes());
        answer.extend([0, 15]);
        answer.extend(length.to_be_bytes());
        answer.extend([0, 23]);
        answer.extend(text);
    }
    Some(answer)
}

/// Where the first question ends: a name without compression, a type and a class (RFC 1035, 4.1.2).
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *query.get(at)? {
            0 => break,
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 5;
    (query.len() >= end).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for the address of example.com, without and with EDNS.
    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x07example\x03com\0\0\x01\0\x01";

    fn with_edns() -> Vec<u8> {
        let mut query = QUERY.to_vec();
        query[11] = 1;
        query.extend([0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        query
    }

    #[test]
    fn where_no_name_server_can_be_asked_the_answer_says_so_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        for transport in [Transport::Datagram, Transport::Stream] {
            let answer = resolve(QUERY, transport, dir.path()).unwrap();
            assert_eq!(answer[..2], QUERY[..2]);
            assert_eq!(answer[2..4], [0x81, 0x82], "a response: server failure");
            assert_eq!(answer[HEADER..], QUERY[HEADER..], "the question, and nothing else");
        }
        let answer = resolve(&with_edns(), Transport::Datagram, dir.path()).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("no name server"), "{answer:?}");
        assert_eq!(answer[11], 1);
        // A server that cannot be reached: its port is closed.
        crate::host::publish(b"nameserver 127.0.0.211\n", dir.path()).unwrap();
        let answer = resolve(&with_edns(), Transport::Datagram, dir.path()).unwrap();
        assert!(String::from_utf8_lossy(&answer).contains("127.0.0.211"), "{answer:?}");
        assert!(began.elapsed() < PATIENCE, "the guest waits for nothing");
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let mut response = QUERY.to_vec();
        response[2] |= 0x80;
        assert_eq!(resolve(&response, Transport::Datagram, dir.path()), None);
        for length in 0..QUERY.len() {
            assert_eq!(resolve(&QUERY[..length], Transport::Datagram, dir.path()), None, "{length}");
        }
        let mut compressed = QUERY.to_vec();
        compressed[HEADER] = 0xc0;
        assert_eq!(resolve(&compressed, Transport::Datagram, dir.path()), None);
    }
}
