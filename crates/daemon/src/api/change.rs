//! Routes that change a VM that is off: its size, and the image below its disks.

use axum::extract::Path;
use axum::response::Response;
use banger_model::VmView;
use banger_protocol::api::{ErrorEnvelope, RebuildVm, SetVm};

use super::Json;
use super::respond::Asked;

/// Gives a VM that is off another size. Disks only grow.
#[utoipa::path(post, path = "/v1/vms/{vm}/set", params(("vm" = String, Path)), request_body = SetVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn set(asked: Asked, Path(vm): Path<String>, Json(request): Json<SetVm>) -> Response {
    asked.change("set", vm, |daemon, op, vm| async move { daemon.vms.set(&op, &vm, request).await }).await
}

/// Puts a VM that is off on an image, with a new system disk. Its work disk stays.
#[utoipa::path(post, path = "/v1/vms/{vm}/rebuild", params(("vm" = String, Path)), request_body = RebuildVm,
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn rebuild(
    asked: Asked,
    Path(vm): Path<String>,
    Json(request): Json<RebuildVm>,
) -> Response {
    asked
        .change("rebuild", vm, |daemon, op, vm| async move { daemon.vms.rebuild(&op, &vm, request).await })
        .await
}
