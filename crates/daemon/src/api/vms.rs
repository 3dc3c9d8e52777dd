//! Routes about VMs and their workspaces.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use banger_model::{Error, VmView};
use banger_protocol::api::{
    CreateVm, CreatedVm, ErrorEnvelope, KillVm, PreparePlan, PrepareRequest, Prepared, StopVm,
};
use serde::Deserialize;

use super::respond::{Asked, Failure, accepts_ndjson, wants_detached};
use super::{App, Json, Required};
use crate::daemon::Daemon;
use crate::op::Op;
use crate::vm::STOP_TIMEOUT;
use crate::workspace;

/// Query of the list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct ListQuery {
    /// Include those that are not up.
    all: bool,
}

/// Query of a delete.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct DeleteQuery {
    /// Delete it although it runs.
    force: bool,
}

/// All VMs, oldest first.
#[utoipa::path(get, path = "/v1/vms", params(ListQuery), responses((status = 200, body = Vec<VmView>)))]
pub(crate) async fn list(
    State(daemon): App,
    Query(query): Query<ListQuery>,
) -> Result<axum::Json<Vec<VmView>>, Failure> {
    Ok(axum::Json(daemon.vms.list(query.all).await?))
}

/// Makes a VM, starts it and copies a repository in: all or nothing.
#[utoipa::path(post, path = "/v1/vms", request_body = CreateVm, responses((status = 200, body = CreatedVm),
    (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn create(asked: Asked, Json(request): Json<CreateVm>) -> Response {
    if request.rm && !accepts_ndjson(asked.headers()) {
        return Failure::from(Error::invalid("a VM that goes with its connection needs an event stream"))
            .into_response();
    }
    if request.rm && wants_detached(asked.headers()) {
        return Failure::from(Error::invalid(
            "a VM that goes with its connection cannot be made without one",
        ))
        .into_response();
    }
    let (rm, name) = (request.rm, request.name.as_ref().map(ToString::to_string));
    let work = |daemon: Arc<Daemon>, op: Op| async move {
        let vm = daemon.vms.create(&op, &daemon.workspaces, request).await?;
        Ok(CreatedVm { vm: daemon.vms.view(vm), timings: op.timings() })
    };
    let hold = move |daemon: Arc<Daemon>, op: Op, created: CreatedVm| async move {
        if rm {
            daemon.vms.delete_with_connection(&op, &created.vm.id).await;
        }
    };
    asked.operation_and_hold("create", name.as_deref(), work, hold).await
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{vm}", params(("vm" = String, Path)), responses((status = 200, body = VmView),
    (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn show(State(daemon): App, Path(vm): Path<String>) -> Result<axum::Json<VmView>, Failure> {
    Ok(axum::Json(daemon.vms.show(&vm).await?))
}

/// Deletes a VM and all it owns.
#[utoipa::path(delete, path = "/v1/vms/{vm}", params(("vm" = String, Path), DeleteQuery),
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete(
    asked: Asked,
    Path(vm): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Response {
    asked
        .change(
            "delete",
            vm,
            move |daemon, op, vm| async move { daemon.vms.delete(&op, &vm, query.force).await },
        )
        .await
}

/// Starts a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", params(("vm" = String, Path)),
    responses((status = 200, body = CreatedVm), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn start(asked: Asked, Path(vm): Path<String>) -> Response {
    asked
        .of_vm("start", vm, |daemon, op, vm| async move {
            let vm = daemon.vms.start(&op, &vm).await?;
            Ok(CreatedVm { vm: daemon.vms.view(vm), timings: op.timings() })
        })
        .await
}

/// Powers a VM off in good order.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", params(("vm" = String, Path)), request_body = StopVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn stop(asked: Asked, Path(vm): Path<String>, Json(request): Json<StopVm>) -> Response {
    asked
        .change(
            "stop",
            vm,
            |daemon, op, vm| async move { daemon.vms.stop(&op, &vm, timeout(&request)).await },
        )
        .await
}

/// Powers a VM off in good order and boots it again.
#[utoipa::path(post, path = "/v1/vms/{vm}/restart", params(("vm" = String, Path)), request_body = StopVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn restart(asked: Asked, Path(vm): Path<String>, Json(request): Json<StopVm>) -> Response {
    asked
        .change("restart", vm, |daemon, op, vm| async move {
            daemon.vms.restart(&op, &vm, timeout(&request)).await
        })
        .await
}

/// Sends a VM's machine monitor a signal.
#[utoipa::path(post, path = "/v1/vms/{vm}/kill", params(("vm" = String, Path)), request_body = KillVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn kill(asked: Asked, Path(vm): Path<String>, Json(request): Json<KillVm>) -> Response {
    asked
        .change("kill", vm, |daemon, op, vm| async move {
            daemon.vms.kill(&op, &vm, request.signal.as_deref()).await
        })
        .await
}

/// Halts a VM; its memory and processes stay.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", params(("vm" = String, Path)),
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn pause(asked: Asked, Path(vm): Path<String>) -> Response {
    asked.change("pause", vm, |daemon, op, vm| async move { daemon.vms.pause(&op, &vm).await }).await
}

/// Lets a paused VM go on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", params(("vm" = String, Path)),
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn resume(asked: Asked, Path(vm): Path<String>) -> Response {
    asked.change("resume", vm, |daemon, op, vm| async move { daemon.vms.resume(&op, &vm).await }).await
}

/// Query of a prepare.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(default)]
pub(crate) struct PrepareQuery {
    /// Give up what the guest changed where the host did too.
    force: bool,
}

/// Copies a repository into a running VM, or brings the copy that is there up to date.
#[utoipa::path(post, path = "/v1/vms/{vm}/workspace/prepare", params(("vm" = String, Path), PrepareQuery),
    request_body = PrepareRequest, responses((status = 200, body = Prepared), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn prepare(
    asked: Asked,
    Path(vm): Path<String>,
    Query(query): Query<PrepareQuery>,
    Required(request): Required<PrepareRequest>,
) -> Response {
    asked
        .of_vm("prepare", vm, move |daemon, op, vm| async move {
            workspace::prepare(&daemon.vms, &daemon.workspaces, &op, &vm, request, query.force).await
        })
        .await
}

/// Brings a VM's workspace up to date, as it was prepared.
#[utoipa::path(post, path = "/v1/vms/{vm}/workspace/refresh", params(("vm" = String, Path), PrepareQuery),
    responses((status = 200, body = Prepared), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn refresh(
    asked: Asked,
    Path(vm): Path<String>,
    Query(query): Query<PrepareQuery>,
) -> Response {
    asked
        .of_vm("prepare", vm, move |daemon, op, vm| async move {
            workspace::refresh(&daemon, &op, &vm, query.force).await
        })
        .await
}

/// What a prepare would copy; needs no VM.
#[utoipa::path(post, path = "/v1/workspace/plan", request_body = PrepareRequest,
    responses((status = 200, body = PreparePlan), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn plan(
    State(daemon): App,
    Required(request): Required<PrepareRequest>,
) -> Result<axum::Json<PreparePlan>, Failure> {
    Ok(axum::Json(daemon.workspaces.preflight(&request).await?))
}

fn timeout(request: &StopVm) -> Duration {
    request.timeout_ms.map_or(STOP_TIMEOUT, Duration::from_millis)
}
