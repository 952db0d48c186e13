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
/// holds, answers 401 as keystonemiddleware does. To be used with `axum::middleware::from_fn_with_state`.
pub async fn guard(State(identity): State<Arc<Identity>>, request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    let caller = async move |request_id: String| {
        let token = headers.get("x-auth-token").and_then(|t| t.to_str().ok());
        let refused = || Fault::unauthorized(&identity.base_url(&headers)).into_response();
        identity.caller(token.ok_or_else(refused)?, request_id).map_err(|()| refused())
    };
    admit(request, next, caller).await
}

/// Lets a request through with the [`Context`] that is found for its id, or answers why not. Only the list of
/// versions at `/` is open to all, because clients ask for it first.
pub(crate) async fn admit(
    mut request: Request,
    next: Next,
    caller: impl AsyncFnOnce(String) -> Result<Context, Response>,
) -> Response {
    if request.uri().path() == "/" {
        return next.run(request).await;
    }
    let request_id = format!("req-{}", uuid::Uuid::new_v4());
    let mut response = match caller(request_id.clone()).await {
        Ok(context) => {
            request.extensions_mut().insert(context);
            next.run(request).await
        }
        Err(refusal) => refusal,
    };
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        response.headers_mut().entry("x-openstack-request-id").or_insert(value);
    }
    response
}

impl Identity {
    fn caller(&self, token: &str, request_id: String) -> Result<Context, ()> {
        let valid = self.validate(token, Timestamp::now()).map_err(|why| {
            tracing::debug!(%request_id, ?why, "token refused");
        })?;
        Ok(Context {
            user_id: valid.user.id,
            user_name: valid.user.name,
            user_domain_id: Some(DOMAIN_ID.to_owned()),
            project_domain_id: valid.project.as_ref().map(|_| DOMAIN_ID.to_owned()),
            project_id: valid.project.as_ref().map(|p| p.id.clone()),
            project_name: valid.project.map(|p| p.name),
            roles: valid.roles.into_keys().collect(),
            request_id,
            ..Context::default()
        })
    }
}
