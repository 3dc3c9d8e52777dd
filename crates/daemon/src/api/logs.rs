//! The logs route: a file of the VM's, as it is or as it grows.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use banger_model::{Error, Result};
use banger_protocol::api::ErrorEnvelope;
use bytes::Bytes;
use futures_util::stream;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::App;
use super::respond::Failure;

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(200);
const PIECE: usize = 64 * 1024;

/// Query of the logs.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct LogsQuery {
    /// `vmm` (the machine monitor's own words) or `console` (the guest's serial console).
    source: Option<String>,
    /// Go on as it grows, until the client leaves.
    follow: bool,
}

/// A VM's log.
#[utoipa::path(get, path = "/v1/vms/{vm}/logs", params(("vm" = String, Path), LogsQuery),
    responses((status = 200, content_type = "text/plain"), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn logs(
    State(daemon): App,
    Path(vm): Path<String>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Failure> {
    let file = match query.source.as_deref() {
        None | Some("vmm") => "vmm.log",
        Some("console") => "console.log",
        Some(other) => {
            return Err(Error::invalid(format!("'{}' is not a log", other.escape_debug()))
                .with_hint("one of: vmm console")
                .into());
        }
    };
    let vm = daemon.vms.find(&vm)?;
    let tail = Tail { path: daemon.dirs.state.vm(&vm.id).join(file), at: 0, follow: query.follow };
    let body = Body::from_stream(stream::try_unfold(tail, Tail::next));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

struct Tail {
    path: PathBuf,
    at: u64,
    follow: bool,
}

impl Tail {
    async fn next(mut self) -> std::io::Result<Option<(Bytes, Self)>> {
        loop {
            let piece = self.read().await?;
            if !piece.is_empty() {
                return Ok(Some((Bytes::from(piece), self)));
            }
            if !self.follow {
                return Ok(None);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is new. The file may be absent yet, and may have been cut to stay under its cap.
    async fn read(&mut self) -> std::io::Result<Vec<u8>> {
        let mut file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        if file.metadata().await?.len() < self.at {
            self.at = 0;
        }
        file.seek(SeekFrom::Start(self.at)).await?;
        let mut piece = vec![0; PIECE];
        let n = file.read(&mut piece).await?;
        piece.truncate(n);
        self.at += n as u64;
        Ok(piece)
    }
}
