//! The launcher's half: writes the description, and reads what the builder answers.

use std::fs::File;
use std::io::{self, IoSliceMut, Seek as _, SeekFrom, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use banger_model::Security;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use super::description::{Access, Answer, Description, Place};
use super::gaps::Inside;
use super::lend::Lent;
use super::{Cage, Policy, advice, libraries};
use crate::{Result, VmmError};

/// How long building a cage may take, on however busy a host.
const LIMIT: Duration = Duration::from_secs(20);
/// No answer is longer.
const LONGEST: usize = 64 << 10;

/// What the builder is started with.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The description, to be read.
    pub(crate) description: OwnedFd,
    /// Where the answer is written to.
    pub(crate) answer: OwnedFd,
    /// Where we read it.
    pub(crate) reader: Reader,
}

/// Our end of the answer, and the file that is lent to whom it is about.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: OwnedFd,
    lent: Option<Lent>,
    inside: Inside,
}

/// Writes down what is wanted.
pub(crate) fn describe(
    cage: &Cage,
    policy: &Policy,
    program: &Path,
    argv: Vec<std::ffi::OsString>,
    directory: &Path,
    keep: &[RawFd],
) -> Result<Prepared> {
    let description = Description {
        program: program.into(),
        argv,
        directory: directory.into(),
        keep: keep.to_vec(),
        places: places(policy, program),
        mount_points: policy.mount_points.iter().map(Into::into).collect(),
        hosts_network: policy.hosts_network,
        nests: policy.nests,
        borrows: policy.lent.is_some(),
        descriptors: policy.descriptors,
        tap: policy.tap.clone(),
        group: cage.groups.as_ref().map(|groups| groups.of(&policy.mark).into()).map_err(Clone::clone),
        required: cage.required().to_vec(),
    };
    let inside = Inside::of(&description);
    let failed = |source: io::Error| VmmError::Spawn { program: program.to_owned(), source };
    let text = serde_json::to_vec(&description).map_err(|e| failed(e.into()))?;
    let memory = rustix::fs::memfd_create("cage", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut file = File::from(memory);
    file.write_all(&text).and_then(|()| file.seek(SeekFrom::Start(0))).map_err(failed)?;
    let lent = match &policy.lent {
        Some(path) => Some(Lent::open(path).map_err(VmmError::file("open", path))?),
        None => None,
    };
    let (socket, answer) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|e| failed(e.into()))?;
    Ok(Prepared { description: file.into(), answer, reader: Reader { socket, lent, inside } })
}

/// Everything the program gets, parents before children, and nothing twice.
fn places(policy: &Policy, program: &Path) -> Vec<Place> {
    let needed = libraries::of(program);
    let with = |paths: &[PathBuf], access| {
        paths.iter().map(|p| (libraries::tidy(p), access)).collect::<Vec<(PathBuf, Access)>>()
    };
    let mut all = with(&policy.write, Access::Write);
    all.extend(with(&policy.rooms, Access::Room));
    all.extend(with(&policy.devices, Access::Device));
    all.extend(with(&policy.read, Access::Read));
    all.extend(with(&needed, Access::Read));
    // Stable: of two for the same path the first stays, which allows more.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all.dedup_by(|later, first| later.0 == first.0);
    let mut kept: Vec<(PathBuf, Access)> = Vec::new();
    for (path, access) in all {
        // What can be read with the directory it is in need not be named again.
        let covered = access == Access::Read
            && kept.iter().any(|(above, a)| *a == Access::Read && path.starts_with(above) && path != *above);
        if !covered {
            kept.push((path, access));
        }
    }
    kept.into_iter().map(|(path, access)| Place { path: path.into(), access }).collect()
}

/// Reads the answer to its end, which comes when the program runs or the builder has given up. The pid is of a child
/// of ours, which is to be reaped whatever the result.
pub(crate) fn report(program: &Path, reader: Reader) -> (Option<u32>, Result<(Security, Inside)>) {
    let failed = |source: io::Error| VmmError::Spawn { program: program.to_owned(), source };
    let (lines, listener) = match read_all(&reader.socket) {
        Ok(heard) => heard,
        Err(error) => return (None, Err(failed(error))),
    };
    let mut inside = reader.inside;
    let (mut pid, mut outcome) = (None, Err(failed(io::Error::other("its cage ended while it was built"))));
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(Answer::Pid(number)) => pid = Some(number),
            Ok(Answer::LeftOut(places)) => inside.leave_out(places),
            Ok(Answer::Caged(security)) => outcome = Ok(security),
            Ok(Answer::Refused { layer, why }) => {
                let hint = advice(layer);
                outcome = Err(VmmError::CageIncomplete { program: program.to_owned(), layer, why, hint });
            }
            Ok(Answer::Failed { what, errno }) => {
                let error = io::Error::from_raw_os_error(errno);
                outcome = Err(failed(match what.as_str() {
                    "" => error,
                    what => io::Error::new(error.kind(), format!("{what}: {error}")),
                }));
            }
            Err(error) => outcome = Err(failed(error.into())),
        }
    }
    match (listener, reader.lent) {
        (Some(listener), Some(file)) => {
            outcome = outcome.and_then(|held| file.serve(listener).map(|()| held).map_err(failed));
        }
        (None, Some(_)) => {
            outcome = outcome.and_then(|_| Err(failed(io::Error::other("its cage cannot lend it a file"))));
        }
        _ => {}
    }
    (pid, outcome.map(|security| (security, inside)))
}

/// All that is said, and the descriptor that comes with it, if one does.
fn read_all(socket: &OwnedFd) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let until = Instant::now() + LIMIT;
    let (mut text, mut given) = (Vec::new(), None);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(0),
            tv_nsec: left.subsec_nanos().into(),
        };
        let ready = match poll(&mut [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)], Some(&limit)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if ready == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its cage was not built in time"));
        }
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        let count = match recvmsg(socket, parts, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => received.bytes,
            Err(rustix::io::Errno::INTR) => continue,
            // Whoever had the other end died with something of ours unread: what it said is there.
            Err(rustix::io::Errno::CONNRESET) => 0,
            Err(error) => return Err(error.into()),
        };
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                given = fds.last().or(given);
            }
        }
        if count == 0 {
            return Ok((text, given));
        }
        text.extend_from_slice(buffer.get(..count).unwrap_or_default());
        if text.len() > LONGEST {
            return Err(io::Error::other("its cage says too much"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_and_what_allows_more_wins() {
        let mut policy = Policy::nothing("m".into());
        policy.devices.clear();
        policy.read = vec!["/v/a/x".into(), "/v/a".into(), "/v/b".into()];
        policy.write = vec!["/v/b".into(), "/v/a/../a/disk".into()];
        let found = places(&policy, Path::new("/nowhere"));
        let found: Vec<_> = found.iter().map(|p| (p.path.to_str().unwrap(), p.access)).collect();
        assert_eq!(found, [("/v/a", Access::Read), ("/v/a/disk", Access::Write), ("/v/b", Access::Write)]);
    }

    #[test]
    fn an_answer_that_breaks_off_is_an_error_and_the_pid_is_known_all_the_same() {
        let (socket, writer) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let mut writer = File::from(writer);
        writer.write_all(b"{\"pid\":17}\n").unwrap();
        drop(writer);
        let (pid, outcome) =
            report(Path::new("/p"), Reader { socket, lent: None, inside: Inside::default() });
        assert_eq!(pid, Some(17));
        assert!(outcome.unwrap_err().to_string().contains("cage"));
    }
}
