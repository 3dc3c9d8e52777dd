//! A name server that knows one name. For namespaces without any other.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// Answers every question for `name` with `address`, and every other with "no such name", until
/// the process ends.
pub fn serve(socket: &UdpSocket, name: &str, address: Ipv4Addr) {
    let mut packet = [0; 512];
    while let Ok((len, from)) = socket.recv_from(&mut packet) {
        if let Some(answer) = packet.get(..len).and_then(|query| answer(query, name, address)) {
            let _ = socket.send_to(&answer, from);
        }
    }
}

/// The same over TCP, a question on each connection.
pub fn serve_connections(listener: &TcpListener, name: &str, address: Ipv4Addr) {
    for mut stream in listener.incoming().flatten() {
        let mut length = [0; 2];
        let asked = stream.read_exact(&mut length).and_then(|()| {
            let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut query).map(|()| query)
        });
        if let Some(answer) = asked.ok().and_then(|query| answer(&query, name, address)) {
            let length = u16::try_from(answer.len()).unwrap_or_default();
            let _ = stream.write_all(&[length.to_be_bytes().as_slice(), &answer].concat());
        }
    }
}

/// RFC 1035, section 4: header of twelve bytes, then one question.
fn answer(query: &[u8], name: &str, address: Ipv4Addr) -> Option<Vec<u8>> {
    let (mut at, mut asked) = (12, Vec::new());
    loop {
        let len = usize::from(*query.get(at)?);
        if len == 0 {
            break;
        }
        asked.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + len)?).to_lowercase());
        at += 1 + len;
    }
    let question = query.get(12..at + 5)?;
    let is_a = question.get(question.len() - 4..)? == [0, 1, 0, 1];
    let known = asked.join(".") == name;
    let code = if known { 0 } else { 3 };
    let answers = u8::from(known && is_a);
    let mut out = query.get(..2)?.to_vec();
    out.extend_from_slice(&[0x85, 0x80 | code, 0, 1, 0, answers, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if answers == 1 {
        out.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend_from_slice(&address.octets());
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_name_has_an_address_and_another_has_none() {
        let query = |name: &str| {
            let mut q = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in name.split('.') {
                q.push(u8::try_from(label.len()).unwrap());
                q.extend_from_slice(label.as_bytes());
            }
            q.extend_from_slice(&[0, 0, 1, 0, 1]);
            q
        };
        let address = Ipv4Addr::new(198, 51, 100, 2);
        let yes = answer(&query("Outside.Test"), "outside.test", address).unwrap();
        assert_eq!((&yes[..2], yes[3] & 15, yes[7]), (&[7, 9][..], 0, 1));
        assert!(yes.ends_with(&[198, 51, 100, 2]));
        let no = answer(&query("other.test"), "outside.test", address).unwrap();
        assert_eq!((no[3] & 15, no[7]), (3, 0));
    }
}
