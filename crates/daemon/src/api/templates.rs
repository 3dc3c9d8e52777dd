//! Routes about templates.

use axum::extract::{Path, State};
use axum::response::Response;
use banger_protocol::api::{ErrorEnvelope, PruneTemplates, PrunedTemplates, SaveTemplate, TemplateView};

use super::respond::Asked;
use super::{App, Json, Required};

/// All templates, least recently used first.
#[utoipa::path(get, path = "/v1/templates", responses((status = 200, body = Vec<TemplateView>)))]
pub(crate) async fn list(State(daemon): App) -> axum::Json<Vec<TemplateView>> {
    axum::Json(daemon.vms.templates())
}

/// Keeps a running VM as a template.
#[utoipa::path(post, path = "/v1/templates", request_body = SaveTemplate,
    responses((status = 200, body = TemplateView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn save(asked: Asked, Required(request): Required<SaveTemplate>) -> Response {
    let vm = request.vm.clone();
    asked
        .of_vm(
            "template_save",
            vm,
            |daemon, op, _| async move { daemon.vms.save_template(&op, &request).await },
        )
        .await
}

/// Deletes a template; VMs that went on from it do not notice.
#[utoipa::path(delete, path = "/v1/templates/{template}", params(("template" = String, Path)),
    responses((status = 200, body = TemplateView), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn delete(asked: Asked, Path(template): Path<String>) -> Response {
    asked.operation("template_delete", |daemon, _| async move { daemon.vms.delete_template(&template) }).await
}

/// Deletes the templates that were made by themselves, or all.
#[utoipa::path(post, path = "/v1/templates/prune", request_body = PruneTemplates,
    responses((status = 200, body = PrunedTemplates), (status = "default", body = ErrorEnvelope)))]
pub(crate) async fn prune(asked: Asked, Json(request): Json<PruneTemplates>) -> Response {
    asked.operation("template_prune", |daemon, _| async move { daemon.vms.prune_templates(&request) }).await
}
