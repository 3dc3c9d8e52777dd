//! All operations of this daemon: those under way, the latest that ended, and the news for whoever watches. Must
//! never make an operation wait for a watcher.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use banger_model::{Error, ErrorCode, OpId, Result, Vm};
use banger_protocol::api::{ErrorBody, Event, News, OperationView, VmNews};
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc};

use crate::fault::Faults;
use crate::op::Op;

/// Ended operations that are remembered.
const REMEMBERED: usize = 200;
/// News a watcher may lag behind before it is told that it missed some.
const NEWS_BACKLOG: usize = 1024;

/// The list.
#[derive(Debug)]
pub(crate) struct Operations {
    faults: Faults,
    list: Mutex<VecDeque<Op>>,
    news: broadcast::Sender<News>,
}

impl Operations {
    /// An empty one.
    #[must_use]
    pub(crate) fn new(faults: Faults) -> Arc<Self> {
        Arc::new(Self { faults, list: Mutex::default(), news: broadcast::Sender::new(NEWS_BACKLOG) })
    }

    /// Begins an operation; `vm` is what the request calls it.
    pub(crate) fn begin(
        self: &Arc<Self>,
        kind: &'static str,
        vm: Option<&str>,
        events: Option<mpsc::Sender<Event>>,
    ) -> Op {
        let op = Op::new(kind, vm.map(str::to_owned), events, self.clone());
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = list.iter().filter(|op| op.has_ended()).count();
        if ended >= REMEMBERED
            && let Some(oldest) = list.iter().position(Op::has_ended)
        {
            list.remove(oldest);
        }
        list.push_back(op.clone());
        drop(list);
        self.moved(&op);
        op
    }

    /// Begins one that is in no list: an exec, of which there may be very many.
    #[must_use]
    pub(crate) fn unlisted(self: &Arc<Self>, kind: &'static str) -> Op {
        Op::new(kind, None, None, self.clone())
    }

    /// Runs a change that the daemon makes by itself as an operation.
    ///
    /// # Errors
    /// What the work says.
    pub(crate) async fn run<T, Fut: Future<Output = Result<T>>>(
        self: &Arc<Self>,
        kind: &'static str,
        vm: &str,
        work: impl FnOnce(Op) -> Fut,
    ) -> Result<T> {
        use tracing::Instrument;
        let op = self.begin(kind, Some(vm), None);
        let span = tracing::info_span!("op", op_id = op.id().as_str(), operation = kind);
        let outcome = work(op.clone()).instrument(span).await;
        let error = outcome.as_ref().err().map(|e| ErrorBody::new(e.clone(), Some(op.id().clone())));
        op.end(error.as_ref());
        outcome
    }

    /// The operations, oldest first; those that ended only when `all`.
    #[must_use]
    pub(crate) fn list(&self, all: bool) -> Vec<OperationView> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().filter(|op| all || !op.has_ended()).map(Op::view).collect()
    }

    /// The operation with this id, or whose id begins so.
    ///
    /// # Errors
    /// `not_found`, `ambiguous`.
    pub(crate) fn find(&self, reference: &str) -> Result<Op> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = |op: &&Op| {
            let id = op.id().as_str();
            !reference.is_empty()
                && (id.starts_with(reference)
                    || id.strip_prefix("op-").is_some_and(|hex| hex.starts_with(reference)))
        };
        let found: Vec<&Op> = list.iter().filter(matching).collect();
        match found[..] {
            [op] => Ok(op.clone()),
            [] => Err(Error::not_found(format!("there is no operation '{}'", reference.escape_debug()))
                .with_hint("'banger operation list -a' shows them; a daemon forgets them when it ends")),
            _ => {
                let ids: Vec<&str> = found.iter().map(|op| op.id().as_str()).collect();
                Err(Error::new(ErrorCode::Ambiguous, format!("'{reference}' may be {}", ids.join(", "))))
            }
        }
    }

    /// Tells those under way to end and unwind, and waits until they have.
    pub(crate) async fn cancel_all(&self) {
        let under_way: Vec<Op> = {
            let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.iter().filter(|op| !op.has_ended()).cloned().collect()
        };
        for op in &under_way {
            op.cancel_token().cancel();
        }
        for op in &under_way {
            op.over().await;
        }
    }

    /// What happens from now on.
    #[must_use]
    pub(crate) fn watch(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// An operation has moved on.
    pub(crate) fn moved(&self, op: &Op) {
        if self.news.receiver_count() > 0 {
            self.tell(News::Operation { at: Timestamp::now(), operation: op.view() });
        }
    }

    pub(crate) fn vm_changed(&self, vm: &Vm, op: Option<&OpId>) {
        if !vm.is_hidden() {
            self.tell(News::Vm(vm_news(vm, op)));
        }
    }

    pub(crate) fn vm_deleted(&self, vm: &Vm, op: Option<&OpId>) {
        if !vm.is_hidden() {
            self.tell(News::VmDeleted(vm_news(vm, op)));
        }
    }

    fn tell(&self, news: News) {
        // Nobody watches: nobody misses it.
        let _ = self.news.send(news);
    }
}

fn vm_news(vm: &Vm, op: Option<&OpId>) -> VmNews {
    VmNews {
        at: Timestamp::now(),
        id: vm.id.clone(),
        name: vm.name.clone(),
        state: vm.state,
        last_error: vm.last_error.clone(),
        op_id: op.cloned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use banger_protocol::api::OperationState;

    fn operations() -> Arc<Operations> {
        Operations::new(Faults::none())
    }

    #[tokio::test]
    async fn an_operation_is_listed_while_it_runs_and_remembered_afterwards() {
        let all = operations();
        let outcome: Result<()> = all
            .run("start", "web", |op| {
                let all = all.clone();
                async move {
                    assert_eq!(all.list(false)[0].id, *op.id());
                    Err(Error::internal("it broke"))
                }
            })
            .await;
        assert!(outcome.is_err());
        assert!(all.list(false).is_empty());
        let ended = all.list(true);
        assert_eq!((ended[0].state, ended[0].vm.as_deref()), (OperationState::Failed, Some("web")));
        assert_eq!(all.find(ended[0].id.as_str()).unwrap().id(), &ended[0].id);
        assert_eq!(all.find("nothing").unwrap_err().code, ErrorCode::NotFound);
    }

    #[test]
    fn what_ended_long_ago_is_forgotten_and_what_runs_is_not() {
        let all = operations();
        let running = all.begin("create", Some("a"), None);
        for _ in 0..REMEMBERED * 2 {
            all.begin("start", None, None).end(None);
        }
        assert!(all.list(true).len() <= REMEMBERED + 2);
        assert_eq!(all.list(false)[0].id, *running.id());
    }

    #[tokio::test]
    async fn a_watcher_hears_of_stages_and_ends() {
        let all = operations();
        let mut news = all.watch();
        let op = all.begin("start", Some("web"), None);
        op.stage("boot", "booting", None);
        op.end(None);
        let mut states = Vec::new();
        while let Ok(News::Operation { operation, .. }) = news.try_recv() {
            states.push((operation.state, operation.stage));
        }
        let boot = Some("boot".to_owned());
        assert_eq!(
            states,
            [
                (OperationState::Running, None),
                (OperationState::Running, boot.clone()),
                (OperationState::Done, boot)
            ]
        );
    }
}
