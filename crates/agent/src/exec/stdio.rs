//! A command's streams: pipes, or one terminal. Owns the agent's ends; the child's ends are closed
//! as soon as it has them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use banger_protocol::agent::TermSize;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, SpecialCodeIndex, Winsize, tcgetattr, tcgetpgrp, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::watch::watch;

/// The agent's ends.
pub(super) enum Ends {
    Pipes { stdin: Option<pipe::Sender>, stdout: pipe::Receiver, stderr: pipe::Receiver },
    Terminal(Terminal),
}

/// The child's ends.
pub(super) struct ChildEnds {
    fds: Vec<OwnedFd>,
}

impl ChildEnds {
    pub(super) fn borrow(&self) -> [BorrowedFd<'_>; 3] {
        let at = |i: usize| self.fds[i.min(self.fds.len() - 1)].as_fd();
        [at(0), at(1), at(2)]
    }
}

/// Pipes for the three streams; `/dev/null` for stdin when there is none.
pub(super) fn pipes(with_stdin: bool) -> io::Result<(Ends, ChildEnds)> {
    let (stdin, child_in) = if with_stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (Some(pipe::Sender::from_owned_fd(write)?), read)
    } else {
        (None, rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    };
    let (out, child_out) = pipe_with(PipeFlags::CLOEXEC)?;
    let (err, child_err) = pipe_with(PipeFlags::CLOEXEC)?;
    let ends = Ends::Pipes {
        stdin,
        stdout: pipe::Receiver::from_owned_fd(out)?,
        stderr: pipe::Receiver::from_owned_fd(err)?,
    };
    Ok((ends, ChildEnds { fds: vec![child_in, child_out, child_err] }))
}

/// A terminal that belongs to `uid`.
pub(super) fn terminal(size: TermSize, uid: u32) -> io::Result<(Ends, ChildEnds)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let main = openpt(flags)?;
    unlockpt(&main)?;
    let child = ioctl_tiocgptpeer(&main, flags)?;
    if rustix::process::geteuid().is_root() {
        rustix::fs::fchown(&child, Some(rustix::process::Uid::from_raw(uid)), None)?;
    }
    rustix::io::ioctl_fionbio(&main, true)?;
    let terminal = Terminal { main: watch(main, Interest::READABLE | Interest::WRITABLE)? };
    terminal.resize(size)?;
    Ok((Ends::Terminal(terminal), ChildEnds { fds: vec![child] }))
}

/// The agent's end of a terminal.
pub(super) struct Terminal {
    main: AsyncFd<OwnedFd>,
}

impl Terminal {
    pub(super) fn resize(&self, size: TermSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.main.get_ref(), size)?)
    }

    /// The process group that has the terminal now.
    pub(super) fn foreground(&self) -> Option<Pid> {
        tcgetpgrp(self.main.get_ref()).ok()
    }

    /// Reads what there is. The end, zero bytes, is when no process has the terminal any more.
    pub(super) async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.main.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *buf)?)) {
                // Linux says EIO where others say end of file.
                Ok(Err(e)) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(0),
                Ok(outcome) => return outcome,
                Err(_would_block) => {}
            }
        }
    }

    pub(super) async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.main.writable().await?;
            if let Ok(outcome) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), data)?)) {
                data = &data[outcome?..];
            }
        }
        Ok(())
    }

    /// What to type for "no more input": the terminal's own end-of-file character, twice when the last line is
    /// unfinished (the first then only ends the line). Nothing when the program reads single characters.
    pub(super) fn end_of_input(&self, unfinished: bool) -> Vec<u8> {
        match tcgetattr(self.main.get_ref()) {
            Ok(modes) if modes.local_modes.contains(LocalModes::ICANON) => {
                vec![modes.special_codes[SpecialCodeIndex::VEOF]; if unfinished { 2 } else { 1 }]
            }
            _ => Vec::new(),
        }
    }
}
