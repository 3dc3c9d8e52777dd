//! The agent channel: Firecracker's vsock, whose host end is a unix socket that asks for a port
//! (Firecracker's docs/vsock.md, "Host-Initiated Connections").

use std::path::Path;
use std::time::Duration;

use banger_protocol::boot::AGENT_VSOCK_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::process::ProcessId;
use crate::{Result, VmmError, sockets};

/// Before its agent listens a guest refuses; this long until it is asked again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// The longest answer: `OK ` and a number.
const ANSWER_MAX: usize = 32;

/// What came of one attempt.
enum Attempt {
    Connected(UnixStream),
    /// Nobody listens on the port yet.
    Refused,
    Nonsense(String),
}

/// Connects to the agent, waiting for as long as it takes the guest to listen.
pub(super) async fn connect(vm: &str, socket: &Path, vmm: &ProcessId) -> Result<UnixStream> {
    loop {
        let attempt = match attempt(socket).await {
            Ok(attempt) => attempt,
            Err(_) if !vmm.is_alive() => return Err(VmmError::NotRunning { vm: vm.to_owned() }),
            Err(error) => return Err(VmmError::socket("connect to", socket)(error)),
        };
        match attempt {
            Attempt::Connected(stream) => return Ok(stream),
            Attempt::Refused if !vmm.is_alive() => return Err(VmmError::NotRunning { vm: vm.to_owned() }),
            Attempt::Refused => tokio::time::sleep(LOOK_AGAIN).await,
            Attempt::Nonsense(message) => {
                let command = format!("CONNECT {AGENT_VSOCK_PORT}");
                return Err(VmmError::Control { vm: vm.to_owned(), command, message });
            }
        }
    }
}

async fn attempt(socket: &Path) -> std::io::Result<Attempt> {
    let mut stream = sockets::connect(socket).await?;
    if stream.write_all(format!("CONNECT {AGENT_VSOCK_PORT}\n").as_bytes()).await.is_err() {
        return Ok(Attempt::Refused);
    }
    // Byte by byte: what follows the line is the agent's.
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) if line.len() < ANSWER_MAX => line.push(byte),
            Ok(_) => return Ok(Attempt::Nonsense("a line without an end".to_owned())),
            // It hangs up when the guest refuses.
            Err(_) => return Ok(Attempt::Refused),
        }
    }
    if line.starts_with(b"OK ") {
        Ok(Attempt::Connected(stream))
    } else {
        let said = crate::console::plain(String::from_utf8_lossy(&line).trim_end());
        Ok(Attempt::Nonsense(said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    fn ourselves() -> ProcessId {
        ProcessId::of(std::process::id()).unwrap().unwrap()
    }

    /// Answers one connection after the other with these bytes, then hangs up.
    async fn host(listener: UnixListener, answers: Vec<&'static [u8]>) {
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 13];
            stream.read_exact(&mut asked).await.unwrap();
            assert_eq!(&asked, b"CONNECT 1024\n");
            stream.write_all(answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn it_asks_until_the_guest_listens_and_takes_nothing_of_what_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(host(listener, vec![b"", b"OK 10", b"OK 1073741824\nhello"]));
        let mut stream = connect("web", &path, &ourselves()).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_an_error_and_so_is_a_machine_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server =
            tokio::spawn(host(listener, vec![b"NO\n", b"OKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOKOK\n"]));
        for _ in 0..2 {
            let error = connect("web", &path, &ourselves()).await.unwrap_err();
            assert!(matches!(error, VmmError::Control { .. }), "{error:?}");
        }
        server.await.unwrap();
        let gone = ProcessId { start_time: 1, ..ourselves() };
        assert!(matches!(connect("web", &path, &gone).await, Err(VmmError::NotRunning { .. })));
        // Alive, but without a socket
        let error = connect("web", &dir.path().join("none"), &ourselves()).await.unwrap_err();
        assert!(matches!(error, VmmError::Socket { .. }), "{error:?}");
    }
}
