//! Operations: one per request that changes something. An operation has an id that is in every
//! log line and error about it, stages that clients may watch, and a token that is cancelled when
//! the client goes away. Its work runs in a task of its own, so that it always unwinds itself.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use banger_model::{Error, ErrorCode, OpId, Result};
use banger_protocol::api::{Event, Progress, Timing};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events a watcher may lag behind before progress is dropped for it (results never are).
pub(crate) const EVENT_BACKLOG: usize = 256;

/// A handle on an operation; clones are the same operation.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: OpId,
    events: Option<mpsc::Sender<Event>>,
    cancel: CancellationToken,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    start: Instant,
    stage_start: Instant,
    stage: String,
    timings: Vec<Timing>,
}

impl Op {
    /// A new operation; `events` is where its watcher listens, if there is one.
    #[must_use]
    pub(crate) fn new(events: Option<mpsc::Sender<Event>>) -> Self {
        let now = Instant::now();
        let clock = Clock { start: now, stage_start: now, stage: String::new(), timings: Vec::new() };
        let inner = Inner {
            id: OpId::from_random(random_bytes()),
            events,
            cancel: CancellationToken::new(),
            clock: Mutex::new(clock),
        };
        Self { inner: Arc::new(inner) }
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

    /// Begins a stage, or moves it on when the word is the same.
    pub(crate) fn stage(&self, stage: &str, message: impl Into<String>, percent: Option<u8>) {
        let message = message.into();
        let mut clock = self.clock();
        let now = Instant::now();
        let since_last = now.duration_since(clock.stage_start);
        if clock.stage != stage {
            clock.stage_start = now;
            clock.stage = stage.to_owned();
            tracing::info!(stage, message, since_start_ms = ms(now.duration_since(clock.start)), "stage");
        }
        let since_start_ms = ms(now.duration_since(clock.start));
        drop(clock);
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
        tracing::info!(message, "notice");
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
        let op = Op::new(Some(sender));
        for n in 0..100 {
            op.stage("pull", format!("{n}"), Some(n));
        }
        assert!(receiver.recv().await.is_some());
    }

    #[tokio::test]
    async fn cancelling_ends_a_wait() {
        let op = Op::new(None);
        op.cancel_token().cancel();
        let waited: Result<()> = op.or_cancelled(std::future::pending::<Result<()>>()).await;
        assert_eq!(waited.unwrap_err().code, ErrorCode::Cancelled);
        assert!(op.check().is_err());
    }
}
