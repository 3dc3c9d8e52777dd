//! Workspaces: the developer's repository into a guest over the agent channel, and the guest's
//! change out. Git and every check of what a guest says are the workspace crate's; this joins its
//! synchronous streams to the channel, and records what went in.

mod apply;
mod commits;
mod drift;
mod export;
mod incoming;
mod prepare;
mod update;

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use banger_model::{Error, ErrorCode, Result, StateDir, VmId};
use banger_store::Store;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::op::{Op, cancelled};

pub(crate) use self::apply::apply;
pub(crate) use self::incoming::{STEPS, prepare, refresh};

/// The service.
#[derive(Debug)]
pub(crate) struct Workspaces {
    store: Arc<Store>,
    state: StateDir,
    /// VMs into which something is copied at the moment.
    copying: Mutex<HashSet<VmId>>,
}

impl Workspaces {
    /// The service.
    #[must_use]
    pub(crate) fn new(store: Arc<Store>, state: StateDir) -> Self {
        Self { store, state, copying: Mutex::default() }
    }

    fn scratch(&self, op: &Op) -> Result<TempDir> {
        let scratch = self.state.scratch();
        tempfile::Builder::new().prefix(&format!("{}-", op.id())).tempdir_in(&scratch).map_err(|e| {
            Error::unavailable(format!("no scratch directory can be made in {}: {e}", scratch.display()))
        })
    }

    /// The record of what was copied in ([`banger_workspace::apply::Copied`]), in the VM's directory.
    fn copied(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.copied")
    }

    /// Where a new copy was begun, in the VM's directory.
    fn begun(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.begun")
    }

    /// What the guest has ([`banger_workspace::capture::Manifest`]), in the VM's directory.
    fn manifest(&self, id: &VmId) -> PathBuf {
        self.state.vm(id).join("workspace.manifest")
    }
}

fn stream_error(error: &std::io::Error) -> Error {
    Error::new(ErrorCode::GuestFailed, format!("the stream to the guest broke: {error}"))
}

/// A reader or writer that fails as soon as its operation is cancelled, so that a thread that
/// waits on a silent guest is let go.
struct Cancellable<T> {
    inner: T,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<T> Cancellable<T> {
    fn new(inner: T, token: &CancellationToken) -> Self {
        Self { inner, cancelled: Box::pin(token.clone().cancelled_owned()) }
    }

    fn poll_cancelled(&mut self, cx: &mut Context<'_>) -> std::io::Result<()> {
        match self.cancelled.as_mut().poll(cx) {
            Poll::Ready(()) => Err(std::io::Error::other(cancelled())),
            Poll::Pending => Ok(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cancellable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_cancelled(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cancellable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_cancelled(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
