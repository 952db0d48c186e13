//! What stands before the Neutron API: a token becomes a [`Context`], or the request goes no further.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::Identity;
use super::directory::DOMAIN_ID;
use super::http::Fault;
use crate::context::Context;

/// Checks `X-Auth-Token` and puts a [`Context`] into the request's extensions; without a token that
/// holds, answers 401 as keystonemiddleware does. Only the list of versions at `/` is open to all, because
/// clients ask for it first. To be used with `axum::middleware::from_fn_with_state`.
pub async fn guard(State(identity): State<Arc<Identity>>, mut request: Request, next: Next) -> Response {
    if request.uri().path() == "/" {
        return next.run(request).await;
    }
    let request_id = format!("req-{}", uuid::Uuid::new_v4());
    let token = request.headers().get("x-auth-token").and_then(|t| t.to_str().ok());
    let valid = token.and_then(|token| match identity.validate(token, Timestamp::now()) {
        Ok(valid) => Some(valid),
        Err(why) => {
            tracing::debug!(%request_id, ?why, "token refused");
            None
        }
    });
    let mut response = match valid {
        Some(valid) => {
            let context = Context {
                user_id: valid.user.id.clone(),
                user_name: valid.user.name.clone(),
                user_domain_id: Some(DOMAIN_ID.to_owned()),
                project_id: valid.project.map(|p| p.id.clone()),
                project_name: valid.project.map(|p| p.name.clone()),
                project_domain_id: valid.project.map(|_| DOMAIN_ID.to_owned()),
                roles: valid.roles.keys().map(|r| (*r).to_owned()).collect(),
                request_id: request_id.clone(),
                ..Context::default()
            };
            request.extensions_mut().insert(context);
            next.run(request).await
        }
        None => Fault::unauthorized(&identity.base_url(request.headers())).into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().entry("x-openstack-request-id").or_insert(value);
    }
    response
}
