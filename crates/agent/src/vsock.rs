//! The agent channel over a vsock, for machines without a virtio-serial port: listening and taking
//! connections, one at a time. Must never give up listening because one connection failed.
#![expect(unsafe_code, reason = "a leaf module: a vsock's address has no safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// Connections that wait for the one before.
const QUEUE: i32 = 16;
/// Between two attempts to listen, while the transport's module is on its way.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// A port that is listened on.
pub(crate) struct Listener(AsyncFd<OwnedFd>);

impl Listener {
    /// Listens on a port of this machine, waiting for as long as it takes the kernel to have vsocks.
    pub(crate) async fn open(port: u32) -> io::Result<Self> {
        let fd = loop {
            match listen(port) {
                Ok(fd) => break fd,
                Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                Err(e) => return Err(e),
            }
        };
        Ok(Self(crate::watch::watch(fd, Interest::READABLE)?))
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let mut ready = self.0.readable().await?;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match rustix::net::accept_with(self.0.get_ref(), flags) {
                // A stream socket is read and written in the same way, whatever its family; only its
                // addresses differ, and nobody asks for those.
                Ok(fd) => return UnixStream::from_std(fd.into()),
                Err(Errno::AGAIN) => ready.clear_ready(),
                // It went away before it was taken.
                Err(Errno::INTR | Errno::CONNABORTED | Errno::CONNRESET) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

fn listen(port: u32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: a plain system call on numbers.
    let raw = unsafe { libc::socket(libc::AF_VSOCK, kind, 0) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call just made this descriptor, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: zeros are a valid value of a structure of numbers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address is initialised and as long as is said; the kernel only reads it.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a plain system call on numbers.
    if unsafe { libc::listen(fd.as_raw_fd(), QUEUE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A connection to this machine itself; `None` where the kernel has no way to.
    fn connect(port: u32) -> Option<UnixStream> {
        // SAFETY: as in `listen`.
        let fd = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)) };
        // SAFETY: as in `listen`.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_LOCAL;
        address.svm_port = port;
        let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
        // SAFETY: as in `listen`.
        let connected = unsafe { libc::connect(fd.as_raw_fd(), (&raw const address).cast(), length) } == 0;
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true).ok()?;
        connected.then(|| UnixStream::from_std(stream).ok()).flatten()
    }

    #[tokio::test]
    async fn connections_are_taken_one_after_the_other() {
        let port = 40_000 + std::process::id() % 10_000;
        let Ok(Ok(listener)) = tokio::time::timeout(Duration::from_millis(100), Listener::open(port)).await
        else {
            println!("skipped: this kernel has no vsocks");
            return;
        };
        for round in 0..3_u8 {
            let Some(mut host) = connect(port) else {
                println!("skipped: this kernel has no vsock to itself");
                return;
            };
            host.write_all(&[round; 5]).await.unwrap();
            let mut guest = listener.accept().await.unwrap();
            let mut got = [0; 5];
            guest.read_exact(&mut got).await.unwrap();
            assert_eq!(got, [round; 5]);
            guest.write_all(b"answer").await.unwrap();
            drop(guest);
            let mut answer = String::new();
            host.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "answer");
        }
    }
}
