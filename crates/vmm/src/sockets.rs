//! The unix sockets of machines: binding, connecting, removing. Sockets that we bind before their
//! VMM starts take connections at once: no polling, no race. Must never fail for a path's length.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixStream;

use crate::{Result, VmmError};

/// The longest path that a socket's address holds (unix(7): 108 bytes with the one that ends it).
const PATH_MAX: usize = 107;

/// A path by which a socket can be named, whatever the length of its real one.
struct Name {
    path: PathBuf,
    /// Its directory, where the path leads through it.
    _dir: Option<OwnedFd>,
}

impl Name {
    fn of(path: &Path) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() <= PATH_MAX {
            return Ok(Self { path: path.to_owned(), _dir: None });
        }
        let (Some(parent), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(file);
        Ok(Self { path, _dir: Some(dir) })
    }
}

/// Connects to a socket.
pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    let name = Name::of(path)?;
    UnixStream::connect(&name.path).await
}

/// Binds a listening socket, 0600 from birth. One left over from an earlier run is replaced.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd> {
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
    let name = Name::of(path).map_err(VmmError::socket("listen on", path))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&name.path).map_err(failed)?).map_err(failed)?;
    rustix::net::listen(&socket, 16).map_err(failed)?;
    Ok(socket)
}

/// Removes files (sockets, links) on drop, unless told to keep them.
#[derive(Debug)]
pub(crate) struct Cleanup {
    paths: Vec<PathBuf>,
}

impl Cleanup {
    pub(crate) fn of(paths: &[&Path]) -> Self {
        Self { paths: paths.iter().map(|p| (*p).to_owned()).collect() }
    }

    pub(crate) fn add(&mut self, path: PathBuf) {
        self.paths.push(path);
    }

    pub(crate) fn keep(mut self) {
        self.paths.clear();
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for path in &self.paths {
            let _ = rustix::fs::unlink(path);
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

    #[tokio::test]
    async fn a_path_longer_than_a_sockets_address_is_no_matter() {
        // Given a directory whose path alone is longer than an address
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("agent.sock");
        // Then a socket in it can be bound and connected to
        let _socket = listen(&path).unwrap();
        connect(&path).await.unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(connect(&deep.join("absent.sock")).await.is_err());
    }
}
