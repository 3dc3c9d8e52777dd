//! Routes for a VM's moments: forks that go on from the present one, and snapshots of it.

use axum::extract::{Path, State};
use axum::response::Response;
use banger_model::{VmName, VmView};
use banger_protocol::api::{CreateSnapshot, ErrorBody, ErrorEnvelope, ForkVm, ForkedVm, SnapshotView};

use super::respond::{Asked, Failure};
use super::{App, Json, Required};

/// Lets new VMs go on from where one is, each as a machine of its own.
#[utoipa::path(post, path = "/v1/vms/{vm}/fork", params(("vm" = String, Path)), request_body = ForkVm,
    responses((status = 200, body = ForkedVm), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn fork(asked: Asked, Path(vm): Path<String>, Json(request): Json<ForkVm>) -> Response {
    asked
        .of_vm("fork", vm, |daemon, op, vm| async move {
            let forked = daemon.vms.fork(&op, &vm, &request).await?;
            let failed = |error| ErrorBody::new(error, Some(op.id().clone()));
            Ok(ForkedVm {
                vms: forked.children.into_iter().map(|vm| daemon.vms.view(vm)).collect(),
                failed: forked.failures.into_iter().map(failed).collect(),
                paused_ms: forked.still.as_secs_f64() * 1000.0,
            })
        })
        .await
}

/// A VM's snapshots, oldest first.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots", params(("vm" = String, Path)),
    responses((status = 200, body = Vec<SnapshotView>), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn list_snapshots(
    State(daemon): App,
    Path(vm): Path<String>,
) -> Result<axum::Json<Vec<SnapshotView>>, Failure> {
    Ok(axum::Json(daemon.vms.snapshots(&vm)?))
}

/// Keeps a VM's present moment.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", params(("vm" = String, Path)), request_body = CreateSnapshot,
    responses((status = 200, body = SnapshotView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn create_snapshot(
    asked: Asked,
    Path(vm): Path<String>,
    Required(request): Required<CreateSnapshot>,
) -> Response {
    asked
        .of_vm("snapshot_create", vm, |daemon, op, vm| async move {
            daemon.vms.create_snapshot(&op, &vm, &request).await
        })
        .await
}

/// Puts a VM back to a snapshot's moment.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots/{snapshot}/restore",
    params(("vm" = String, Path), ("snapshot" = String, Path)),
    responses((status = 200, body = VmView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn restore_snapshot(asked: Asked, Path((vm, snapshot)): Path<(String, String)>) -> Response {
    asked
        .of_vm("snapshot_restore", vm, |daemon, op, vm| async move {
            let name: VmName = snapshot.parse()?;
            let vm = daemon.vms.restore_snapshot(&op, &vm, &name).await?;
            Ok(daemon.vms.view(vm))
        })
        .await
}

/// Forgets a snapshot.
#[utoipa::path(delete, path = "/v1/vms/{vm}/snapshots/{snapshot}",
    params(("vm" = String, Path), ("snapshot" = String, Path)),
    responses((status = 200, body = SnapshotView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete_snapshot(asked: Asked, Path((vm, snapshot)): Path<(String, String)>) -> Response {
    asked
        .of_vm("snapshot_delete", vm, |daemon, op, vm| async move {
            let name: VmName = snapshot.parse()?;
            daemon.vms.delete_snapshot(&op, &vm, &name).await
        })
        .await
}
