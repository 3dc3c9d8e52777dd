//! Listening sockets that we bind and QEMU serves. Binding them before QEMU starts means that a
//! connection made at once waits in the queue: no polling, no race.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::{Result, VmmError};

/// Binds a listening socket, 0600 from birth. One left over from an earlier run is replaced.
pub(super) fn listen(path: &Path) -> Result<OwnedFd> {
    let failed = |e: rustix::io::Errno| VmmError::socket("listen on", path)(e.into());
    match rustix::fs::unlink(path) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(failed(e)),
    }
    let flags = SocketFlags::CLOEXEC;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
    // On Linux the file that bind(2) makes gets the socket's own mode, less the umask.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    rustix::net::listen(&socket, 16).map_err(failed)?;
    Ok(socket)
}

/// Removes the socket files on drop, unless told to keep them.
#[derive(Debug)]
pub(super) struct Cleanup<'a> {
    paths: Vec<&'a Path>,
}

impl<'a> Cleanup<'a> {
    pub(super) fn of(paths: &[&'a Path]) -> Self {
        Self { paths: paths.to_vec() }
    }

    pub(super) fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = rustix::fs::unlink(*path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn sockets_are_private_from_birth_accept_at_once_and_replace_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let old = listen(&path).unwrap();
        drop(old);
        let cleanup = Cleanup::of(&[&path]);
        let _socket = listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(cleanup);
        assert!(!path.exists());
    }
}
