//! Routes about the daemon itself.

use std::os::unix::ffi::OsStrExt;

use axum::extract::{Query, State};
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use banger_model::Error;
use banger_protocol::api::{Check, DaemonStatus};
use serde::Deserialize;

use super::App;
use super::respond::Failure;
use crate::doctor;

/// The daemon's state.
#[utoipa::path(get, path = "/v1/daemon", responses((status = 200, body = DaemonStatus)))]
pub(crate) async fn status(State(daemon): App) -> axum::Json<DaemonStatus> {
    axum::Json(DaemonStatus {
        running: true,
        pid: Some(std::process::id()),
        version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        socket: daemon.dirs.runtime.socket().as_os_str().as_bytes().to_vec().into(),
        state_dir: daemon.dirs.state.path().as_os_str().as_bytes().to_vec().into(),
        uptime_s: Some(daemon.started.elapsed().as_secs()),
    })
}

/// Ends the daemon; VMs run on.
#[utoipa::path(post, path = "/v1/daemon/stop", responses((status = 200, body = DaemonStatus)))]
pub(crate) async fn stop(State(daemon): App) -> axum::Json<DaemonStatus> {
    let axum::Json(status) = self::status(State(daemon.clone())).await;
    daemon.shutdown.cancel();
    axum::Json(DaemonStatus { running: false, ..status })
}

/// What to look at besides.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct DoctorQuery {
    /// Start a VM's network, and end it again.
    #[serde(default)]
    network: bool,
}

/// What works on this host and what does not.
#[utoipa::path(get, path = "/v1/doctor", params(DoctorQuery), responses((status = 200, body = Vec<Check>)))]
pub(crate) async fn doctor(State(daemon): App, Query(asked): Query<DoctorQuery>) -> axum::Json<Vec<Check>> {
    let mut checks = doctor::of_daemon(&daemon).await;
    if asked.network {
        checks.push(daemon.vms.try_network().await);
    }
    axum::Json(checks)
}

pub(crate) async fn no_such_route(uri: Uri) -> Response {
    Failure::from(Error::not_found(format!("this daemon has no route {}", uri.path())).with_hint(
        "GET /v1/openapi.json describes all routes; restart an older daemon with 'banger daemon stop'",
    ))
    .into_response()
}
