//! Routes about templates.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use banger_protocol::api::{ErrorEnvelope, PruneTemplates, PrunedTemplates, SaveTemplate, TemplateView};

use super::respond::{Asked, operation};
use super::{App, Json, Required};
use crate::op::Op;

/// All templates, least recently used first.
#[utoipa::path(get, path = "/v1/templates", responses((status = 200, body = Vec<TemplateView>)))]
pub(crate) async fn list(State(daemon): App) -> axum::Json<Vec<TemplateView>> {
    axum::Json(daemon.vms.templates())
}

/// Keeps a running VM as a template.
#[utoipa::path(post, path = "/v1/templates", request_body = SaveTemplate,
    responses((status = 200, body = TemplateView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn save(
    State(daemon): App,
    headers: HeaderMap,
    Required(request): Required<SaveTemplate>,
) -> Response {
    let (operations, vm) = (daemon.operations.clone(), request.vm.clone());
    let asked = Asked { operations: &operations, kind: "template_save", vm: Some(&vm), headers: &headers };
    operation(asked, move |op: Op| async move { daemon.vms.save_template(&op, &request).await }).await
}

/// Deletes a template; VMs that went on from it do not notice.
#[utoipa::path(delete, path = "/v1/templates/{template}", params(("template" = String, Path)),
    responses((status = 200, body = TemplateView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete(State(daemon): App, headers: HeaderMap, Path(template): Path<String>) -> Response {
    let operations = daemon.operations.clone();
    let asked = Asked { operations: &operations, kind: "template_delete", vm: None, headers: &headers };
    operation(asked, move |_: Op| async move { daemon.vms.delete_template(&template) }).await
}

/// Deletes the templates that were made by themselves, or all.
#[utoipa::path(post, path = "/v1/templates/prune", request_body = PruneTemplates,
    responses((status = 200, body = PrunedTemplates), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn prune(
    State(daemon): App,
    headers: HeaderMap,
    Json(request): Json<PruneTemplates>,
) -> Response {
    let operations = daemon.operations.clone();
    let asked = Asked { operations: &operations, kind: "template_prune", vm: None, headers: &headers };
    operation(asked, move |_: Op| async move { daemon.vms.prune_templates(&request) }).await
}
