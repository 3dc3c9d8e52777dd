//! For tests: an agent that takes any request and does nothing about it. Must never answer.

use banger_channel::{GuestStream, Handler, Session};
use banger_protocol::agent::Request;
use tokio::task::JoinHandle;

#[derive(Clone)]
struct Silent;

impl Handler for Silent {
    async fn handle(&self, _request: Request, _stream: GuestStream) {
        std::future::pending::<()>().await;
    }
}

/// A session with it; it ends with this.
pub(super) struct SilentAgent {
    pub(super) session: Session,
    agent: JoinHandle<()>,
}

impl SilentAgent {
    pub(super) async fn connect() -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let agent = tokio::spawn(async move {
            let _ = banger_channel::serve(theirs, Silent).await;
        });
        let session = Session::connect(ours, *b"0123456789abcdef").await.unwrap();
        Self { session, agent }
    }
}

impl Drop for SilentAgent {
    fn drop(&mut self) {
        self.agent.abort();
    }
}
