//! The URL that this server is reached at, for links and the catalog.

use axum::extract::{ConnectInfo, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::hosts;
use crate::listener::Peer;

/// Says to what is behind it that the client used TLS, as a proxy would, unless a proxy says what was used. And whoever
/// called the server as hosts do gets what is for hosts: it was not asked for the certificate that clients may have to
/// show.
pub(crate) async fn tell_scheme(mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| peer);
    if peer.is_some_and(|peer| peer.is_host) && !request.uri().path().starts_with(hosts::PATHS) {
        return (StatusCode::MISDIRECTED_REQUEST, "this name of the server is for hosts").into_response();
    }
    if peer.is_some_and(|peer| peer.is_secure) {
        request.headers_mut().entry("x-forwarded-proto").or_insert(HeaderValue::from_static("https"));
    }
    next.run(request).await
}

/// Gives the root URL without a trailing slash: the configured one, or the one that the client (or the
/// proxy before us) used.
pub(crate) fn base_url(configured: Option<&str>, headers: &HeaderMap) -> String {
    if let Some(url) = configured {
        return url.to_owned();
    }
    // They are echoed: nothing but a scheme and a name or address with a port may pass.
    let header = |name: &str, plain: fn(char) -> bool| {
        let value = headers.get(name)?.to_str().ok()?;
        (!value.is_empty() && value.chars().all(plain)).then_some(value)
    };
    let scheme = header("x-forwarded-proto", |c| c.is_ascii_alphabetic()).unwrap_or("http");
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
    let host = header("x-forwarded-host", is_host).or_else(|| header("host", is_host)).unwrap_or("localhost");
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(headers: &[(&'static str, &'static str)]) -> String {
        base_url(None, &headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect())
    }

    #[test]
    fn a_proxy_says_what_the_client_used() {
        assert_eq!(url(&[("host", "10.0.0.1:9696")]), "http://10.0.0.1:9696");
        let proxied = [("host", "inner:1"), ("x-forwarded-host", "net.example"), ("x-forwarded-proto", "https")];
        assert_eq!(url(&proxied), "https://net.example");
        assert_eq!(base_url(Some("https://x"), &HeaderMap::new()), "https://x");
    }

    #[test]
    fn a_header_that_is_no_host_is_not_repeated() {
        assert_eq!(url(&[("host", "evil\"<x>")]), "http://localhost");
        assert_eq!(url(&[("host", "h"), ("x-forwarded-proto", "java script:")]), "http://h");
    }
}
