//! Routes about images and kernels.

use axum::extract::{Path, State};
use axum::response::Response;
use banger_model::{Image, Kernel};
use banger_protocol::api::{
    AvailableKernel, BuildImage, ErrorEnvelope, ImportImage, ImportKernel, PullKernel,
};

use super::respond::{Asked, Failure};
use super::{App, Required};

/// All images.
#[utoipa::path(get, path = "/v1/images", responses((status = 200, body = Vec<Image>)))]
pub(crate) async fn list_images(State(daemon): App) -> Result<axum::Json<Vec<Image>>, Failure> {
    Ok(axum::Json(daemon.artifacts.list_images()?))
}

/// One image.
#[utoipa::path(get, path = "/v1/images/{image}", params(("image" = String, Path)),
    responses((status = 200, body = Image), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn show_image(
    State(daemon): App,
    Path(image): Path<String>,
) -> Result<axum::Json<Image>, Failure> {
    Ok(axum::Json(daemon.artifacts.image(&image)?))
}

/// Deletes an image that no VM uses.
#[utoipa::path(delete, path = "/v1/images/{image}", params(("image" = String, Path)),
    responses((status = 200, body = Image), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete_image(asked: Asked, Path(image): Path<String>) -> Response {
    asked.operation("image_delete", |daemon, _| async move { daemon.artifacts.delete_image(&image) }).await
}

/// Builds an image.
#[utoipa::path(post, path = "/v1/images/build", request_body = BuildImage,
    responses((status = 200, body = Image), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn build_image(asked: Asked, Required(request): Required<BuildImage>) -> Response {
    asked
        .operation("image_build", |daemon, op| async move { daemon.artifacts.build(&op, &request).await })
        .await
}

/// Takes in a directory, tar archive or squashfs file.
#[utoipa::path(post, path = "/v1/images/import", request_body = ImportImage,
    responses((status = 200, body = Image), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn import_image(asked: Asked, Required(request): Required<ImportImage>) -> Response {
    asked
        .operation(
            "image_import",
            |daemon, op| async move { daemon.artifacts.import_image(&op, request).await },
        )
        .await
}

/// All kernels.
#[utoipa::path(get, path = "/v1/kernels", responses((status = 200, body = Vec<Kernel>)))]
pub(crate) async fn list_kernels(State(daemon): App) -> Result<axum::Json<Vec<Kernel>>, Failure> {
    Ok(axum::Json(daemon.artifacts.list_kernels()?))
}

/// Kernels that can be pulled.
#[utoipa::path(get, path = "/v1/kernels/available", responses((status = 200, body = Vec<AvailableKernel>)))]
pub(crate) async fn available_kernels(
    State(daemon): App,
) -> Result<axum::Json<Vec<AvailableKernel>>, Failure> {
    Ok(axum::Json(daemon.artifacts.available_kernels()?))
}

/// One kernel.
#[utoipa::path(get, path = "/v1/kernels/{kernel}", params(("kernel" = String, Path)),
    responses((status = 200, body = Kernel), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn show_kernel(
    State(daemon): App,
    Path(kernel): Path<String>,
) -> Result<axum::Json<Kernel>, Failure> {
    Ok(axum::Json(daemon.artifacts.kernel(&kernel)?))
}

/// Deletes a kernel that no VM uses.
#[utoipa::path(delete, path = "/v1/kernels/{kernel}", params(("kernel" = String, Path)),
    responses((status = 200, body = Kernel), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete_kernel(asked: Asked, Path(kernel): Path<String>) -> Response {
    asked
        .operation(
            "kernel_delete",
            |daemon, op| async move { daemon.artifacts.delete_kernel(&op, &kernel).await },
        )
        .await
}

/// Pulls a kernel of the catalog.
#[utoipa::path(post, path = "/v1/kernels/pull", request_body = PullKernel,
    responses((status = 200, body = Kernel), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn pull_kernel(asked: Asked, Required(request): Required<PullKernel>) -> Response {
    asked
        .operation(
            "kernel_pull",
            |daemon, op| async move { daemon.artifacts.pull_kernel(&op, request).await },
        )
        .await
}

/// Takes in a kernel from a directory.
#[utoipa::path(post, path = "/v1/kernels/import", request_body = ImportKernel,
    responses((status = 200, body = Kernel), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn import_kernel(asked: Asked, Required(request): Required<ImportKernel>) -> Response {
    asked
        .operation(
            "kernel_import",
            |daemon, op| async move { daemon.artifacts.import_kernel(&op, request).await },
        )
        .await
}
