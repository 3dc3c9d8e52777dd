//! Whether the guest stands still. Owns the order between commands that begin and a freeze, and what becomes of commands
//! whose host is gone meanwhile. Must never let a command begin in a standstill: the agent would wait for it for ever.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use banger_model::{Error, ErrorCode};
use tokio::sync::{Mutex, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

use crate::groups::{Frozen, Groups};

/// How long a process that is being started may take to begin.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What a thaw means for commands whose session ended while the guest stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onward {
    /// This is the machine that was frozen: a command without a host is hung up.
    Same,
    /// This is a copy of it, with hosts of its own: commands go on without one.
    Copy,
}

/// Shared by all handlers of the agent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standstill(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whoever starts a process holds it for reading, a standstill for writing.
    gate: Arc<RwLock<()>>,
    held: Mutex<Option<Held>>,
    now: watch::Sender<Now>,
}

#[derive(Debug)]
struct Held {
    frozen: Frozen,
    _gate: OwnedRwLockWriteGuard<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Now {
    still: bool,
    /// How often this memory went on as a copy.
    life: u64,
    /// It is a copy that practises for whoever will use it: commands begin beside the agent.
    rehearses: bool,
}

impl Standstill {
    /// What a server that died left standing still, if it did.
    pub(crate) fn found(groups: Option<&Groups>) -> Self {
        let found = Self::default();
        if let Some(frozen) = groups.and_then(Groups::left_frozen)
            && let (Ok(mut held), Ok(gate)) =
                (found.0.held.try_lock(), found.0.gate.clone().try_write_owned())
        {
            *held = Some(Held { frozen, _gate: gate });
            found.0.now.send_modify(|now| now.still = true);
        }
        found
    }

    /// Lets every process but the agent stand still, when those that are being started have begun.
    ///
    /// # Errors
    /// `guest_failed` when one does not; then all go on.
    pub(crate) async fn freeze(&self, groups: &'static Groups) -> Result<(), Error> {
        let mut held = self.0.held.lock().await;
        if held.is_some() {
            return Ok(());
        }
        let closing = tokio::time::timeout(PATIENCE, self.0.gate.clone().write_owned()).await;
        let gate = closing.map_err(|_| {
            let message = "the guest's processes do not stand still: one that is being started waits for its file system";
            Error::new(ErrorCode::GuestFailed, message)
        })?;
        self.0.now.send_modify(|now| now.still = true);
        let frozen = blocking(move || {
            groups.freeze().map_err(|e| {
                Error::new(ErrorCode::GuestFailed, format!("the guest's processes do not stand still: {e}"))
            })
        })
        .await;
        match frozen {
            Ok(frozen) => {
                *held = Some(Held { frozen, _gate: gate });
                Ok(())
            }
            Err(error) => {
                self.0.now.send_modify(|now| now.still = false);
                Err(error)
            }
        }
    }

    /// Does `first` and then lets everything go on, which may not have been frozen. When `first` fails, what stands
    /// still stays so.
    ///
    /// # Errors
    /// Those of `first`; `guest_failed` when something cannot be thawed.
    pub(crate) async fn go_on(
        &self,
        groups: Option<&'static Groups>,
        how: Onward,
        first: impl FnOnce() -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let mut held = self.0.held.lock().await;
        // On this very thread: the host of a copy counts every millisecond, and waking another takes some. Nobody else
        // waits for it, for nothing else goes on.
        first()?;
        let thawed = match (&*held, groups) {
            (Some(held), Some(groups)) => groups.thaw(&held.frozen).map_err(|e| {
                Error::new(ErrorCode::GuestFailed, format!("the guest's processes do not go on: {e}"))
            }),
            _ => Ok(()),
        };
        // The gate opens with the end of what was held, after everything else goes on.
        *held = None;
        self.0.now.send_modify(|now| {
            now.still = false;
            now.rehearses = false;
            now.life += u64::from(how == Onward::Copy);
        });
        thawed
    }

    /// Does `first` and lets commands begin beside the agent, while everything else stands still until it goes on.
    ///
    /// # Errors
    /// Those of `first`; `invalid_argument` when nothing stands still.
    pub(crate) async fn rehearse(
        &self,
        first: impl FnOnce() -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let held = self.0.held.lock().await;
        if held.is_none() {
            return Err(Error::new(ErrorCode::InvalidArgument, "a guest that runs has nothing to rehearse"));
        }
        first()?;
        self.0.now.send_modify(|now| now.rehearses = true);
        Ok(())
    }

    /// Whether it stands still.
    pub(crate) fn is_still(&self) -> bool {
        self.0.now.borrow().still
    }

    /// Waits until processes may be started.
    pub(crate) async fn leave(&self) -> Leave {
        if self.0.now.borrow().rehearses {
            return Leave(None);
        }
        Leave(Some(self.0.gate.clone().read_owned().await))
    }

    /// For a command that begins now.
    pub(crate) fn life(&self) -> Life {
        Life { now: self.0.now.subscribe(), begun: self.0.now.borrow().life }
    }
}

/// Leave to start a process. While it lives no standstill begins.
#[derive(Debug)]
pub(crate) struct Leave(Option<OwnedRwLockReadGuard<()>>);

impl Leave {
    /// The control group that the process begins in: one that moves.
    pub(crate) fn group(&self, groups: &'static Groups) -> Option<BorrowedFd<'static>> {
        if self.0.is_some() { groups.commands() } else { groups.server() }
    }
}

/// When a command began.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    now: watch::Receiver<Now>,
    begun: u64,
}

impl Life {
    /// Asked when the command's host is gone: whether it goes on alone, for it was copied since it began. While the guest
    /// stands still nobody knows yet.
    pub(crate) async fn goes_on_alone(&self) -> bool {
        let mut now = self.now.clone();
        // An error means that the agent ends.
        now.wait_for(|now| !now.still).await.is_ok_and(|now| now.life > self.begun)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(Error::internal(format!("the agent's worker failed: {e}"))))
}
