//! The moment from which a Firecracker's API takes calls: its socket, which only it can make, appears in the VM's runtime
//! directory. Must never wait longer than the process lives.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::WatchFlags;
use tokio::net::UnixStream;

use super::api::{ApiError, Client, Connection};
use super::changes::Changes;
use crate::spawn::Spawned;

/// How long it may take; usually some 10 ms.
const LIMIT: Duration = Duration::from_secs(5);
/// A socket that is there and takes no connection yet takes one in some microseconds; and this is how often one looks
/// where the kernel does not tell.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The directory in which it will appear.
pub(super) struct Door {
    /// `None` where the kernel watches no more directories for us.
    changes: Option<Changes>,
}

impl Door {
    /// To be called before the process starts.
    pub(super) fn watch(dir: &Path) -> Self {
        let changes = Changes::of(dir, WatchFlags::CREATE)
            .inspect_err(|error| tracing::debug!(%error, "a socket is looked for by time"));
        Self { changes: changes.ok() }
    }

    /// Waits until the API takes a connection, and connects.
    pub(super) async fn opens(
        &self,
        client: &Client,
        spawned: &Spawned,
    ) -> Result<Connection<UnixStream>, ApiError> {
        let opens = async {
            loop {
                match client.connect().await {
                    Ok(connection) => return Ok(connection),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => self.changed().await,
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        tokio::time::sleep(LOOK_AGAIN).await;
                    }
                    Err(error) => return Err(ApiError::Closed(error.to_string())),
                }
            }
        };
        let in_time = tokio::time::timeout(LIMIT, opens);
        tokio::select! {
            opened = in_time => opened.unwrap_or(Err(ApiError::Late(LIMIT.as_secs()))),
            () = spawned.ended() => Err(ApiError::Closed("the process ended".to_owned())),
        }
    }

    /// Returns when something may have changed.
    async fn changed(&self) {
        let changed = match &self.changes {
            Some(changes) => changes.next().await.is_ok(),
            None => false,
        };
        if !changed {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
