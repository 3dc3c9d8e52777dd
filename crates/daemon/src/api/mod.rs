//! The HTTP API: routes, and nothing but the translation between HTTP and the services. Each route
//! is declared once, with its description; the OpenAPI document is made of the same declarations.

mod artifacts;
mod change;
mod control;
mod exec;
mod logs;
mod moments;
mod operations;
mod outgoing;
mod respond;
mod templates;
mod vms;

use std::sync::Arc;

use axum::Router;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::daemon::Daemon;

/// What handlers get.
pub(crate) type App = axum::extract::State<Arc<Daemon>>;

#[derive(OpenApi)]
#[openapi(info(
    title = "banger",
    description = "Development sandboxes on microVMs. JSON over HTTP/1.1 on a unix socket. Requests that change \
                   something answer with application/x-ndjson events when asked to by the Accept header. Every \
                   answer has an x-banger-op header."
))]
struct Description;

/// All routes.
pub(crate) fn router(daemon: Arc<Daemon>) -> Router {
    let (router, mut description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(control::status))
        .routes(routes!(control::stop))
        .routes(routes!(control::doctor))
        .routes(routes!(vms::list, vms::create))
        .routes(routes!(vms::show, vms::delete))
        .routes(routes!(vms::start))
        .routes(routes!(vms::stop))
        .routes(routes!(vms::restart))
        .routes(routes!(vms::kill))
        .routes(routes!(vms::pause))
        .routes(routes!(vms::resume))
        .routes(routes!(moments::fork))
        .routes(routes!(moments::list_snapshots, moments::create_snapshot))
        .routes(routes!(moments::restore_snapshot))
        .routes(routes!(moments::delete_snapshot))
        .routes(routes!(change::set))
        .routes(routes!(change::rebuild))
        .routes(routes!(exec::exec))
        .routes(routes!(logs::logs))
        .routes(routes!(vms::prepare))
        .routes(routes!(vms::refresh))
        .routes(routes!(outgoing::export))
        .routes(routes!(outgoing::apply))
        .routes(routes!(vms::plan))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show, operations::cancel))
        .routes(routes!(operations::events))
        .routes(routes!(templates::list, templates::save))
        .routes(routes!(templates::delete))
        .routes(routes!(templates::prune))
        .routes(routes!(artifacts::list_images))
        .routes(routes!(artifacts::show_image, artifacts::delete_image))
        .routes(routes!(artifacts::build_image))
        .routes(routes!(artifacts::import_image))
        .routes(routes!(artifacts::list_kernels))
        .routes(routes!(artifacts::available_kernels))
        .routes(routes!(artifacts::show_kernel, artifacts::delete_kernel))
        .routes(routes!(artifacts::pull_kernel))
        .routes(routes!(artifacts::import_kernel))
        .split_for_parts();
    description.info.version = banger_protocol::api::VERSION.to_string();
    let document = serde_json::to_value(&description).unwrap_or_default();
    router
        .route("/v1/openapi.json", axum::routing::get(move || std::future::ready(axum::Json(document))))
        .fallback(control::no_such_route)
        .layer(axum::middleware::from_fn(respond::identified))
        .layer(axum::extract::DefaultBodyLimit::max(exec::MAX_REQUEST))
        .with_state(daemon)
}

/// A JSON body, whose errors are ours.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: serde::de::DeserializeOwned + Default, S: Send + Sync> axum::extract::FromRequest<S> for Json<T> {
    type Rejection = respond::Failure;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Self::Rejection> {
        let body = bytes::Bytes::from_request(request, state)
            .await
            .map_err(|e| banger_model::Error::invalid(format!("the request's body cannot be read: {e}")))?;
        parse(&body).map(Self).map_err(Into::into)
    }
}

/// Parses a body; an empty one is the default.
pub(crate) fn parse<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> banger_model::Result<T> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|e| {
        banger_model::Error::invalid(format!("the request's body is not what this route takes: {e}"))
    })
}

/// A JSON body that must be there.
pub(crate) struct Required<T>(pub(crate) T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for Required<T> {
    type Rejection = respond::Failure;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Self::Rejection> {
        let Json(value) = Json::<Option<T>>::from_request(request, state).await?;
        let missing = || banger_model::Error::invalid("the request has no body");
        Ok(Self(value.ok_or_else(missing)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_openapi_3_1() {
        let description = serde_json::to_value(Description::openapi()).unwrap();
        assert!(description["openapi"].as_str().unwrap().starts_with("3.1"), "{}", description["openapi"]);
    }

    #[test]
    fn an_empty_body_is_the_default_and_an_unknown_field_is_named() {
        use banger_protocol::api::StopVm;
        assert_eq!(parse::<StopVm>(b"").unwrap(), StopVm::default());
        let error = parse::<StopVm>(br#"{"timeuot_ms": 1}"#).unwrap_err();
        assert!(error.message.contains("timeuot_ms"), "{error}");
    }
}
