//! What every command gets: how to print, and the daemon.

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::error::Result;
use crate::output::Output;
use crate::place::Place;
use crate::progress::Board;

/// A command's surroundings.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// How to print.
    pub(crate) output: Output,
    /// Where progress is shown.
    pub(crate) board: Board,
}

impl Context {
    /// For this process.
    pub(crate) fn new(output: Output) -> Self {
        Self { output, board: Board::new(output) }
    }

    /// The daemon, started when it is not there.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(Place::from_env()?))
    }

    /// Asks for a change, shows how it gets on, and has cleared that away when the answer is there.
    pub(crate) async fn change<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<T> {
        self.client()?.change(method, path, body, &mut self.board.track(None)).await
    }
}
