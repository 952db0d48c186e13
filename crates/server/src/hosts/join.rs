//! Becoming a member, and remaining one: certificates for hosts.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use evergate_model::join::{JoinRequest, Membership, RenewRequest};
use tokio::time::timeout;

use super::admission::{self, Discard, Member};
use super::{Hosts, refusal, store_refusal};
use crate::error::ApiError;
use crate::listener::Peer;
use crate::membership::authority::Issued;
use crate::membership::{self, AuthorityError, Refusal};
use crate::store::TxError as _;

/// The authorities' certificates, for anybody: whom to believe is in the token, not here.
pub(super) async fn authorities(State(hosts): State<Arc<Hosts>>) -> Response {
    let mut response = hosts.members.authority().pem().to_owned().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
    response
}

/// A host comes with a token.
pub(super) async fn join(
    State(hosts): State<Arc<Hosts>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(host): Path<String>,
    body: Bytes,
) -> Response {
    if !peer.is_secure {
        let text = "a token is not to be sent without TLS: revoke it, make another, and use https://";
        return hosts.discards.refuse(&peer, &path(&host, "join"), Discard::Plain, StatusCode::UPGRADE_REQUIRED, text);
    }
    let Ok(asked) = serde_json::from_slice::<JoinRequest>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "the request to join makes no sense");
    };
    if !asked.may_be_of_a_token() {
        return refuse(&hosts, &peer, (&host, "join"), &Refusal::UnknownToken);
    }
    // Strangers shall not occupy the threads and the readers either.
    let Ok(Ok(turn)) = timeout(hosts.pace.turn, Arc::clone(&hosts.joins).acquire_owned()).await else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too many hosts want to join at once; try again");
    };
    let token = asked.token.clone();
    let (state, name) = (Arc::clone(&hosts), host.clone());
    let work = move || {
        // Also when whoever asked has gone meanwhile.
        let _turn = turn;
        // Strangers shall not keep writers waiting.
        state.store.read(|tx| membership::check_token(tx, &asked).map(drop))?;
        let admission = state.store.write(|tx| membership::admit(tx, state.members.authority(), &name, &asked))?;
        state.members.refresh()?;
        Ok::<_, Refusal>(admission)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(admission)) => {
            let replaces = admission.replaces;
            tracing::info!(target: "audit", host, token, peer = %peer.address, replaces, "host joined");
            given(&hosts, &admission.issued)
        }
        Ok(Err(why)) => refuse(&hosts, &peer, (&host, "join"), &why),
        Err(error) => failed(&error),
    }
}

/// A member asks for its next certificate.
pub(super) async fn renew(
    State(hosts): State<Arc<Hosts>>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Extension(member): Extension<Member>,
    body: Bytes,
) -> Response {
    let Ok(asked) = serde_json::from_slice::<RenewRequest>(&body) else {
        return refusal(StatusCode::BAD_REQUEST, "the request to renew makes no sense");
    };
    let (state, host) = (Arc::clone(&hosts), member.host.clone());
    let work = move || {
        let authority = state.members.authority();
        let (host, now) = (&member.host, &member.fingerprint);
        let issued = state.store.write(|tx| membership::renew(tx, authority, host, now, &asked.public_key))?;
        state.members.refresh()?;
        Ok::<_, Refusal>(issued)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(issued)) => {
            tracing::info!(target: "audit", host, peer = %peer.address, "host's certificate renewed");
            given(&hosts, &issued)
        }
        Ok(Err(why)) => refuse(&hosts, &peer, (&host, "renew"), &why),
        Err(error) => failed(&error),
    }
}

fn given(hosts: &Hosts, issued: &Issued) -> Response {
    let membership = Membership {
        certificate: issued.pem.clone(),
        authorities: hosts.members.authority().pem().to_owned(),
        expires_at: issued.expires_at.as_second(),
    };
    let body = serde_json::to_string(&membership).expect("texts and numbers are always JSON");
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn path(host: &str, what: &str) -> String {
    format!("/evergate/v1/hosts/{host}/{what}")
}

fn refuse(hosts: &Hosts, peer: &Peer, (host, what): (&str, &str), why: &Refusal) -> Response {
    let (path, text) = (&path(host, what), why.to_string());
    match why {
        Refusal::Store(_) | Refusal::Authority(AuthorityError::Store(_)) => {
            tracing::error!(path, error = why as &dyn std::error::Error, "failed to let a host in");
            match why.store_error().and_then(crate::store::StoreError::outage) {
                Some(outage) => refusal(StatusCode::SERVICE_UNAVAILABLE, format!("the server's database: {outage}")),
                None => refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server cannot use its store"),
            }
        }
        Refusal::Authority(AuthorityError::NoPublicKey) | Refusal::Name(_) => refusal(StatusCode::BAD_REQUEST, text),
        Refusal::Authority(_) => store_refusal(&ApiError::internal(text)),
        Refusal::Taken(_) | Refusal::Known(_) => {
            hosts.discards.refuse(peer, path, Discard::Token, StatusCode::CONFLICT, &text)
        }
        Refusal::UnknownToken | Refusal::ExpiredToken(_) | Refusal::OtherHost { .. } => {
            hosts.discards.refuse(peer, path, Discard::Token, StatusCode::FORBIDDEN, &text)
        }
        // As if what let the request in had known.
        Refusal::Dismissed(standing) => {
            let refused = admission::weigh(standing.clone(), host).err();
            let (why, status, text) = refused.unwrap_or((Discard::Revoked, StatusCode::UNAUTHORIZED, text));
            hosts.discards.refuse(peer, path, why, status, &text)
        }
    }
}

fn failed(error: &tokio::task::JoinError) -> Response {
    tracing::error!(%error, "failed to let a host in");
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "the server failed")
}
