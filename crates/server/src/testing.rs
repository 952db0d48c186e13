//! What tests over real HTTP share: a listener on a free port of the loopback, and a client.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Routes that are served until the value goes away.
pub(crate) struct Served {
    client: Client,
    /// Serving stops with it.
    _runtime: Runtime,
}

impl Served {
    pub(crate) fn start(routes: axum::Router) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("the loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { client: Client::new(address), _runtime: runtime }
    }
}

impl std::ops::Deref for Served {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// An answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }
}

/// Speaks to a server at an address; over TLS, if it knows the server's authority.
pub(crate) struct Client(pub(crate) SocketAddr, Option<RootCerts>);

impl Client {
    pub(crate) const fn new(address: SocketAddr) -> Self {
        Self(address, None)
    }

    /// The same server over TLS, by an authority given as PEM.
    pub(crate) fn over_tls(&self, authority: &str) -> Self {
        let authority = Certificate::from_pem(authority.as_bytes()).expect("it is a certificate");
        Self(self.0, Some(RootCerts::from([authority])))
    }

    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Answer {
        self.send(method, path, headers, body.map(Value::to_string).unwrap_or_default().as_bytes())
    }

    /// Asks for something that is no JSON; answers status and text.
    pub(crate) fn text(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String) {
        let answer = self.send(method, path, headers, b"");
        (answer.status, answer.text)
    }

    pub(crate) fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let scheme = if self.1.is_some() { "https" } else { "http" };
        let roots = self.1.clone().unwrap_or_else(|| RootCerts::from([]));
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(std::time::Duration::from_secs(30)))
            .allow_non_standard_methods(true)
            .build()
            .into();
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{scheme}://{}{path}", self.0));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response =
            agent.run(request.body(body).expect("the test's request is one")).expect("the server answers");
        let text = response.body_mut().read_to_string().unwrap_or_default();
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            text,
        }
    }

    /// Logs in with the password of a generated `clouds.yaml`; answers the token.
    pub(crate) fn log_in(&self, clouds: &Path, user: &str) -> String {
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": user, "domain": {"name": "Default"}, "password": password(clouds, user),
            }}},
            "scope": {"project": {"name": user, "domain": {"id": "default"}}},
        }});
        let answer = self.call("POST", "/identity/v3/auth/tokens", &[], Some(&auth));
        assert_eq!(answer.status, 201, "{}", answer.body);
        answer.header("x-subject-token").to_owned()
    }
}

/// The password of a user in a generated `clouds.yaml`.
pub(crate) fn password(clouds: &Path, user: &str) -> String {
    let clouds = std::fs::read_to_string(clouds).expect("the server made the file");
    let of_user = clouds.split(&format!("username: {user}\n")).nth(1).expect("it has the user");
    let line = of_user.lines().next().unwrap_or_default();
    line.trim().strip_prefix("password: ").expect("the password follows the name").to_owned()
}
