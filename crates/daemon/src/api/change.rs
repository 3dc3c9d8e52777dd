//! Routes that change a VM that is off: its size, and the image below its disks.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use banger_model::VmView;
use banger_protocol::api::{ErrorEnvelope, RebuildVm, SetVm};

use super::respond::{Asked, operation};
use super::{App, Json};
use crate::op::Op;

/// Gives a VM that is off another size. Disks only grow.
#[utoipa::path(post, path = "/v1/vms/{vm}/set", params(("vm" = String, Path)), request_body = SetVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn set(
    State(daemon): App,
    headers: HeaderMap,
    Path(vm): Path<String>,
    Json(request): Json<SetVm>,
) -> Response {
    let (operations, reference) = (daemon.operations.clone(), vm.clone());
    let asked = Asked { operations: &operations, kind: "set", vm: Some(&reference), headers: &headers };
    let work = move |op: Op| async move {
        let vm = daemon.vms.set(&op, &vm, request).await?;
        Ok(daemon.vms.view(vm))
    };
    operation(asked, work).await
}

/// Puts a VM that is off on an image, with a new system disk. Its work disk stays.
#[utoipa::path(post, path = "/v1/vms/{vm}/rebuild", params(("vm" = String, Path)), request_body = RebuildVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn rebuild(
    State(daemon): App,
    headers: HeaderMap,
    Path(vm): Path<String>,
    Json(request): Json<RebuildVm>,
) -> Response {
    let (operations, reference) = (daemon.operations.clone(), vm.clone());
    let asked = Asked { operations: &operations, kind: "rebuild", vm: Some(&reference), headers: &headers };
    let work = move |op: Op| async move {
        let vm = daemon.vms.rebuild(&op, &vm, request).await?;
        Ok(daemon.vms.view(vm))
    };
    operation(asked, work).await
}
