//! What stands before the Neutron API where a Keystone says who callers are.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{Keystone, Refusal};
use crate::context::Context;
use crate::error::ApiError;
use crate::identity::admit;

/// Checks `X-Auth-Token` and `X-Service-Token` and puts a [`Context`] into the request's extensions, as
/// keystonemiddleware does; without a token that holds, answers 401. To be used with
/// `axum::middleware::from_fn_with_state`.
pub async fn guard(State(keystone): State<Arc<Keystone>>, request: Request, next: Next) -> Response {
    let headers = request.headers().clone();
    admit(request, next, async move |request_id: String| keystone.caller(&headers, &request_id).await).await
}

impl Keystone {
    async fn caller(self: &Arc<Self>, headers: &HeaderMap, request_id: &str) -> Result<Context, Response> {
        let refused = |why: Refusal| {
            tracing::debug!(%request_id, ?why, "token refused");
            self.refusal(why)
        };
        let named = |name: &str| headers.get(name).and_then(|token| token.to_str().ok());
        let token = named("x-auth-token").ok_or_else(|| self.refusal(Refusal::Invalid))?;
        let service_roles = self.service_roles(named("x-service-token")).await.map_err(refused)?;
        // A service that passes a request on may be doing so for longer than its user's token lasts.
        let token = self.token(token, !service_roles.is_empty()).await.map_err(refused)?;
        if let Some(scope) = token.foreign_scope() {
            let message = format!("This API requires a scope of ['project'], request was made with {scope} scope.");
            let error = ApiError::HTTPForbidden { message };
            return Err(answer(StatusCode::FORBIDDEN, &error.body()));
        }
        Ok(token.context(request_id, service_roles))
    }

    fn refusal(&self, why: Refusal) -> Response {
        match why {
            Refusal::Invalid => {
                let body = json!({"error": {
                    "code": 401, "title": "Unauthorized",
                    "message": "The request you have made requires authentication.",
                }});
                let mut response = answer(StatusCode::UNAUTHORIZED, &body);
                let challenge = format!("Keystone uri=\"{}\"", self.settings.www_authenticate_uri);
                if let Ok(value) = HeaderValue::from_str(&challenge) {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
                }
                response
            }
            Refusal::Unavailable(why) => {
                let message = format!("The identity service (Keystone) cannot be asked who you are: {why}.");
                let error = ApiError::HTTPServiceUnavailable { message };
                let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, &error.body());
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
                response
            }
        }
    }
}

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
