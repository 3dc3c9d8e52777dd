//! Makes sure that two operations that want the same missing thing make it once: the first one makes it, the others
//! wait and show the first one's progress. Must never let an operation wait for one that has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use banger_model::Result;
use tokio::sync::{OwnedMutexGuard, watch};

use crate::op::Op;

/// How far a job must be before the rest is estimated, percent: what comes first says little about what follows.
const ESTIMATE_FROM: u8 = 10;

/// What an operation is shown of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    stage: String,
    message: String,
    percent: Option<u8>,
}

/// All that is being made.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: Mutex<HashMap<String, Flight>>,
}

/// One thing that is being made, or was.
#[derive(Debug, Clone)]
struct Flight {
    turn: Arc<tokio::sync::Mutex<()>>,
    shown: watch::Sender<Option<Shown>>,
}

/// The turn to make a thing. The next operation has its turn when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    key: String,
    began: Instant,
    shown: watch::Sender<Option<Shown>>,
    _turn: Arc<OwnedMutexGuard<()>>,
}

impl Flights {
    /// Waits for the turn to make what `key` names, such as `image debian`. The caller looks again afterwards: what
    /// another operation made in the meantime is as good as its own.
    ///
    /// # Errors
    /// `cancelled`.
    pub(crate) async fn turn(&self, op: &Op, key: &str) -> Result<Turn> {
        let flight = {
            let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
            let fresh = || Flight { turn: Arc::default(), shown: watch::Sender::new(None) };
            flights.entry(key.to_owned()).or_insert_with(fresh).clone()
        };
        let turn = match flight.turn.clone().try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => op.or_cancelled(flight.watched(op, key)).await?,
        };
        flight.shown.send_replace(None);
        Ok(Turn { key: key.to_owned(), began: Instant::now(), shown: flight.shown, _turn: Arc::new(turn) })
    }
}

impl Flight {
    /// Waits for the turn, and shows what the operation that has it does.
    async fn watched(&self, op: &Op, key: &str) -> Result<OwnedMutexGuard<()>> {
        op.stage("wait", format!("waiting for another operation on {key}"), None);
        let mut shown = self.shown.subscribe();
        let follow = async {
            loop {
                let now = shown.borrow_and_update().clone();
                if let Some(Shown { stage, message, percent }) = now {
                    op.stage(&stage, message, percent);
                }
                if shown.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            turn = self.turn.clone().lock_owned() => Ok(turn),
            never = follow => never,
        }
    }
}

impl Turn {
    /// Shows how far the job is, to its own operation and to those that wait for it.
    pub(crate) fn show(&self, op: &Op, stage: &str, message: &str, percent: Option<u8>) {
        let left = percent.and_then(|percent| left(self.began.elapsed(), percent));
        let left = left.map(|left| format!(", {left} left")).unwrap_or_default();
        let message = format!("{}: {message}{left}", self.key);
        op.stage(stage, message.clone(), percent);
        self.shown.send_replace(Some(Shown { stage: stage.to_owned(), message, percent }));
    }
}

/// The rest of a job that has come so far in this time, in words.
fn left(elapsed: Duration, percent: u8) -> Option<String> {
    if !(ESTIMATE_FROM..100).contains(&percent) {
        return None;
    }
    let seconds = elapsed.as_secs() * u64::from(100 - percent) / u64::from(percent);
    Some(match seconds {
        0..=4 => "a few seconds".to_owned(),
        5..=89 => format!("about {} s", seconds.div_ceil(5) * 5),
        _ => format!("about {} min", (seconds + 30) / 60),
    })
}

#[cfg(test)]
mod tests {
    use banger_protocol::api::Event;
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn the_rest_of_a_job_is_told_in_words_once_something_is_known() {
        let left = |seconds, percent| left(Duration::from_secs(seconds), percent);
        assert_eq!(left(5, 9), None);
        assert_eq!(left(60, 100), None);
        assert_eq!(left(10, 50).as_deref(), Some("about 10 s"));
        assert_eq!(left(11, 50).as_deref(), Some("about 15 s"));
        assert_eq!(left(60, 97).as_deref(), Some("a few seconds"));
        assert_eq!(left(30, 10).as_deref(), Some("about 5 min"));
    }

    #[tokio::test]
    async fn an_operation_that_waits_shows_what_the_other_one_does() {
        let flights = Arc::new(Flights::default());
        let first = Op::alone(None);
        let turn = flights.turn(&first, "image debian").await.unwrap();
        turn.show(&first, "image.download", "downloading", Some(3));
        // Given a second operation that wants the same
        let (events, mut seen) = mpsc::channel(16);
        let second = Op::alone(Some(events));
        let waiting = {
            let (flights, second) = (flights.clone(), second.clone());
            tokio::spawn(async move { flights.turn(&second, "image debian").await.map(drop) })
        };
        let mut shown = async |wanted: &str| loop {
            let Some(Event::Progress(progress)) = seen.recv().await else { panic!("no progress '{wanted}'") };
            if progress.message == wanted {
                return progress.percent;
            }
        };
        assert_eq!(shown("image debian: downloading").await, Some(3));
        turn.show(&first, "image.pack", "packing", Some(5));
        assert_eq!(shown("image debian: packing").await, Some(5));
        // Then it has its turn when the first one is done, or failed
        drop(turn);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_operation_that_is_cancelled_waits_no_more() {
        let flights = Flights::default();
        let _turn = flights.turn(&Op::alone(None), "kernel x").await.unwrap();
        let second = Op::alone(None);
        second.cancel_token().cancel();
        let error = flights.turn(&second, "kernel x").await.unwrap_err();
        assert_eq!(error.code, banger_model::ErrorCode::Cancelled);
        // Another thing is free.
        flights.turn(&Op::alone(None), "kernel y").await.unwrap();
    }
}
