//! Operations: one per request that changes something, and per change that the daemon makes by itself. An operation
//! has an id that is in every log line and error about it, stages that clients may watch, and a token that is
//! cancelled when the client goes away. Its work runs in a task of its own, so that it always unwinds itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use banger_model::{Error, ErrorCode, OpId, Result, Vm, VmName};
use banger_protocol::api::{ErrorBody, Event, OperationState, OperationView, Progress, Timing};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::fault::Stages;
use crate::operations::Operations;

/// Events a watcher may lag behind before progress is dropped for it (results never are).
pub(crate) const EVENT_BACKLOG: usize = 256;

/// A handle on an operation; clones are the same operation.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    inner: Arc<Inner>,
    /// Whether its stages are shown.
    shows: bool,
}

#[derive(Debug)]
struct Inner {
    id: OpId,
    kind: &'static str,
    all: Arc<Operations>,
    events: Option<mpsc::Sender<Event>>,
    cancel: CancellationToken,
    over: CancellationToken,
    started_at: Timestamp,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    start: Instant,
    stage_start: Instant,
    stage: String,
    message: String,
    percent: Option<u8>,
    timings: Vec<Timing>,
    vm: Option<String>,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Ended {
    at: Timestamp,
    error: Option<ErrorBody>,
}

impl Op {
    /// A new operation, which is in nobody's list; [`Operations::begin`] is what services call. `events` is where
    /// its watcher listens, if there is one.
    #[must_use]
    pub(crate) fn new(
        kind: &'static str,
        vm: Option<String>,
        events: Option<mpsc::Sender<Event>>,
        all: Arc<Operations>,
    ) -> Self {
        let now = Instant::now();
        let clock = Clock {
            start: now,
            stage_start: now,
            stage: String::new(),
            message: String::new(),
            percent: None,
            timings: Vec::new(),
            vm,
            ended: None,
        };
        let inner = Inner {
            id: fresh_id(),
            kind,
            all,
            events,
            cancel: CancellationToken::new(),
            over: CancellationToken::new(),
            started_at: Timestamp::now(),
            clock: Mutex::new(clock),
        };
        Self { inner: Arc::new(inner), shows: true }
    }

    /// One of its own, for tests.
    #[cfg(test)]
    pub(crate) fn alone(events: Option<mpsc::Sender<Event>>) -> Self {
        Self::new("test", None, events, Operations::new(crate::fault::Faults::none()))
    }

    /// A handle for work beside what is shown: its stages are not shown, everything else is the same.
    #[must_use]
    pub(crate) fn beside(&self) -> Self {
        Self { shows: false, ..self.clone() }
    }

    /// Its id.
    #[must_use]
    pub(crate) fn id(&self) -> &OpId {
        &self.inner.id
    }

    /// The token that ends it.
    #[must_use]
    pub(crate) fn cancel_token(&self) -> &CancellationToken {
        &self.inner.cancel
    }

    /// `cancelled` when the client has gone or asked to stop.
    ///
    /// # Errors
    /// Then.
    pub(crate) fn check(&self) -> Result<()> {
        if self.inner.cancel.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Waits for `work` unless the operation is cancelled first; `work` is then dropped, so it
    /// must be something that may be dropped anywhere.
    ///
    /// # Errors
    /// What `work` says, or `cancelled`.
    pub(crate) async fn or_cancelled<T, E: Into<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            () = self.inner.cancel.cancelled() => Err(cancelled()),
            done = work => done.map_err(Into::into),
        }
    }

    /// Runs one named step; this is where a fault that is armed for it strikes. `kill_vmm` kills the machine monitor
    /// that the step is about and says whether there was one.
    ///
    /// # Errors
    /// What `work` says.
    pub(crate) async fn step<T>(
        &self,
        name: &str,
        kill_vmm: impl Fn() -> bool,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let cancelled = self.inner.cancel.cancelled();
        self.inner.all.faults().around(self.inner.kind, name, kill_vmm, cancelled, work).await
    }

    /// The faults of a synchronous job that is part of this operation.
    #[must_use]
    pub(crate) fn stages(&self) -> Stages<'_> {
        Stages::new(self.inner.all.faults(), self.inner.kind)
    }

    /// It is about this VM.
    pub(crate) fn about(&self, vm: &VmName) {
        self.clock().vm = Some(vm.to_string());
    }

    /// A VM has changed; whoever watches is told together with this operation's id.
    pub(crate) fn changed(&self, vm: &Vm) {
        self.inner.all.vm_changed(vm, Some(self.id()));
    }

    /// A VM is gone.
    pub(crate) fn deleted(&self, vm: &Vm) {
        self.inner.all.vm_deleted(vm, Some(self.id()));
    }

    /// Begins a stage, or moves it on when the word is the same.
    pub(crate) fn stage(&self, stage: &str, message: impl Into<String>, percent: Option<u8>) {
        if !self.shows {
            return;
        }
        let message = message.into();
        let mut clock = self.clock();
        let now = Instant::now();
        let since_last = now.duration_since(clock.stage_start);
        if clock.stage != stage {
            clock.stage_start = now;
            clock.stage = stage.to_owned();
            tracing::info!(
                stage,
                detail = message,
                since_start_ms = ms(now.duration_since(clock.start)),
                "stage"
            );
        }
        clock.message.clone_from(&message);
        clock.percent = percent;
        let since_start_ms = ms(now.duration_since(clock.start));
        drop(clock);
        self.inner.all.moved(self);
        self.send(Event::Progress(Progress {
            stage: stage.to_owned(),
            message,
            percent,
            since_start_ms,
            since_last_stage_ms: ms(since_last),
        }));
    }

    /// Tells the user something, once.
    pub(crate) fn notice(&self, message: impl Into<String>) {
        let message = message.into();
        tracing::info!(detail = message, "notice");
        self.send(Event::Notice { message });
    }

    /// Records how long a step took, for `--timings`.
    pub(crate) fn timed(&self, step: &str, took: std::time::Duration) {
        self.clock().timings.push(Timing { step: step.to_owned(), ms: took.as_secs_f64() * 1000.0 });
    }

    /// All steps so far.
    #[must_use]
    pub(crate) fn timings(&self) -> Vec<Timing> {
        self.clock().timings.clone()
    }

    /// Milliseconds since it began.
    #[must_use]
    pub(crate) fn elapsed_ms(&self) -> u64 {
        ms(self.clock().start.elapsed())
    }

    /// It is over; said once.
    pub(crate) fn end(&self, error: Option<&ErrorBody>) {
        let mut clock = self.clock();
        if clock.ended.is_some() {
            return;
        }
        clock.ended = Some(Ended { at: Timestamp::now(), error: error.cloned() });
        drop(clock);
        self.inner.over.cancel();
        self.inner.all.moved(self);
    }

    /// Waits until it is over.
    pub(crate) async fn over(&self) {
        self.inner.over.cancelled().await;
    }

    /// Whether it is over.
    #[must_use]
    pub(crate) fn has_ended(&self) -> bool {
        self.clock().ended.is_some()
    }

    /// It as clients see it.
    #[must_use]
    pub(crate) fn view(&self) -> OperationView {
        let clock = self.clock();
        let error = clock.ended.as_ref().and_then(|e| e.error.clone());
        let state = match (&clock.ended, &error) {
            (None, _) if self.inner.cancel.is_cancelled() => OperationState::Cancelling,
            (None, _) => OperationState::Running,
            (Some(_), None) => OperationState::Done,
            (Some(_), Some(e)) if e.code == ErrorCode::Cancelled => OperationState::Cancelled,
            (Some(_), Some(_)) => OperationState::Failed,
        };
        OperationView {
            id: self.inner.id.clone(),
            kind: self.inner.kind.to_owned(),
            vm: clock.vm.clone(),
            state,
            stage: Some(clock.stage.clone()).filter(|s| !s.is_empty()),
            message: Some(clock.message.clone()).filter(|s| !s.is_empty()),
            percent: clock.percent,
            started_at: self.inner.started_at,
            ended_at: clock.ended.as_ref().map(|e| e.at),
            error,
        }
    }

    fn send(&self, event: Event) {
        if let Some(events) = &self.inner.events {
            // A watcher that does not read loses progress, never the result.
            let _ = events.try_send(event);
        }
    }

    fn clock(&self) -> std::sync::MutexGuard<'_, Clock> {
        self.inner.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An id for an operation, or for a read, whose answer leads to the log as well.
#[must_use]
pub(crate) fn fresh_id() -> OpId {
    OpId::from_random(random_bytes())
}

/// The error of an operation whose client went away.
#[must_use]
pub(crate) fn cancelled() -> Error {
    Error::new(ErrorCode::Cancelled, "the operation was cancelled")
}

/// Random bytes for identities.
#[must_use]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if getrandom::fill(&mut bytes).is_err() {
        // getrandom(2) on a Linux that can run us never fails once booted; if it ever does, time
        // and address keep names apart, and insertion into the database rejects a collision.
        let seed = jiff::Timestamp::now().as_nanosecond() ^ i128::from(std::process::id());
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (seed >> (8 * (i % 16))).to_le_bytes()[0];
        }
    }
    bytes
}

fn ms(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watcher_that_never_reads_blocks_nobody() {
        let (sender, mut receiver) = mpsc::channel(2);
        let op = Op::alone(Some(sender));
        for n in 0..100 {
            op.stage("pull", format!("{n}"), Some(n));
        }
        assert!(receiver.recv().await.is_some());
    }

    #[tokio::test]
    async fn cancelling_ends_a_wait() {
        let op = Op::alone(None);
        op.cancel_token().cancel();
        assert_eq!(op.view().state, OperationState::Cancelling);
        let waited: Result<()> = op.or_cancelled(std::future::pending::<Result<()>>()).await;
        assert_eq!(waited.unwrap_err().code, ErrorCode::Cancelled);
        assert!(op.check().is_err());
    }

    #[test]
    fn an_operation_ends_once_and_its_view_says_how() {
        let op = Op::alone(None);
        op.stage("boot", "booting", Some(7));
        let view = op.view();
        assert_eq!(
            (view.state, view.stage.as_deref(), view.percent),
            (OperationState::Running, Some("boot"), Some(7))
        );
        op.end(Some(&ErrorBody::new(cancelled(), Some(op.id().clone()))));
        op.end(None);
        assert_eq!(op.view().state, OperationState::Cancelled);
        assert!(op.view().ended_at.is_some());
    }
}
