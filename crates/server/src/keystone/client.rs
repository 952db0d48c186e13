//! What is said to Keystone: log in, and ask about a token. Blocking; to be called on threads for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use evergate_config::KeystoneSettings;
use evergate_config::keystone::{Domain, KeystoneCredential, Named};
use jiff::Timestamp;
use serde_json::{Value, json};
use ureq::http;
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

use super::token::Token;

/// The certificates that a Debian trusts.
const SYSTEM_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Largest answer that is read.
const LARGEST: u64 = 1 << 20;

/// Why Keystone cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The certificates to trust cannot be read.
    #[error("failed to read certificates from {path} (cafile in section [keystone_authtoken])")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// There is no certificate among them.
    #[error("there is no certificate in {path} (cafile in section [keystone_authtoken])")]
    Empty {
        /// Which file.
        path: PathBuf,
    },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Nothing came back.
    #[error("no answer ({0})")]
    Silent(String),
    /// What came back makes no sense.
    #[error("its answer makes no sense ({0})")]
    Confused(String),
    /// It has trouble of its own.
    #[error("it answers with status {0}")]
    Troubled(u16),
    /// It does not let the server in.
    #[error("it does not let this server log in (status {0}): see username and password in [keystone_authtoken]")]
    LoginRefused(u16),
    /// The server may not ask about tokens.
    #[error("this server's user may not validate tokens: it needs the role service or admin there")]
    Forbidden,
    /// The server's own token has become useless.
    #[error("it does not accept this server's own token")]
    OwnTokenRefused,
}

/// The server's own token.
#[derive(Clone)]
pub(super) struct Own {
    token: String,
    /// When it ends, in seconds since 1970.
    pub(super) ends: i64,
    /// How long it was good for when it was new, in seconds.
    pub(super) lifetime: i64,
}

impl Own {
    /// Tells whether it is the same token.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.token == other.token
    }
}

/// Speaks to one Keystone.
pub(super) struct Client {
    agent: ureq::Agent,
    tokens_url: String,
    login: String,
    retries: u32,
}

impl Client {
    pub(super) fn new(settings: &KeystoneSettings) -> Result<Self, ClientError> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(settings.timeout));
        if settings.auth_url.starts_with("https://") {
            config = config.tls_config(tls(settings)?);
        }
        Ok(Self {
            agent: config.build().into(),
            tokens_url: format!("{}/v3/auth/tokens", settings.auth_url),
            login: login(&settings.credential).to_string(),
            retries: settings.retries,
        })
    }

    /// Logs the server itself in.
    pub(super) fn log_in(&self) -> Result<Own, Fault> {
        let request = || {
            http::Request::post(format!("{}?nocatalog", self.tokens_url))
                .header("content-type", "application/json")
                .body(self.login.clone())
        };
        let answer = self.send(&request)?;
        match answer.status {
            201 => {}
            400..=499 => return Err(Fault::LoginRefused(answer.status)),
            status => return Err(Fault::Troubled(status)),
        }
        let token = answer.token.ok_or_else(|| Fault::Confused("a login without a token".to_owned()))?;
        let said: Value = serde_json::from_str(&answer.body).map_err(|error| Fault::Confused(error.to_string()))?;
        let ends = said["token"]["expires_at"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let ends = ends.ok_or_else(|| Fault::Confused("a login without an end".to_owned()))?.as_second();
        Ok(Own { token, ends, lifetime: (ends - Timestamp::now().as_second()).max(0) })
    }

    /// Asks about a token: `None` where it is not valid.
    pub(super) fn validate(&self, own: &Own, token: &str, even_expired: bool) -> Result<Option<Token>, Fault> {
        let query = if even_expired { "?nocatalog&allow_expired=1" } else { "?nocatalog" };
        let request = || {
            http::Request::get(format!("{}{query}", self.tokens_url))
                .header("x-auth-token", &own.token)
                .header("x-subject-token", token)
                .body(String::new())
        };
        let answer = self.send(&request)?;
        match answer.status {
            200 => Token::parse(&answer.body).map(Some).map_err(|error| Fault::Confused(error.to_string())),
            404 => Ok(None),
            401 => Err(Fault::OwnTokenRefused),
            403 => Err(Fault::Forbidden),
            status => Err(Fault::Troubled(status)),
        }
    }

    /// Sends a request, again if nothing comes back or Keystone has passing trouble.
    fn send(&self, request: &dyn Fn() -> http::Result<http::Request<String>>) -> Result<Answer, Fault> {
        let mut attempt = 0;
        loop {
            let answer = self.send_once(request);
            let passing = match &answer {
                Ok(answer) => matches!(answer.status, 500 | 502 | 503 | 504),
                Err(fault) => matches!(fault, Fault::Silent(_)),
            };
            if !passing || attempt >= self.retries {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(100 << attempt.min(4)));
            attempt += 1;
        }
    }

    fn send_once(&self, request: &dyn Fn() -> http::Result<http::Request<String>>) -> Result<Answer, Fault> {
        let request = request().map_err(|error| Fault::Confused(error.to_string()))?;
        // Errors of the client name hosts and causes, never headers or bodies.
        let mut response = self.agent.run(request).map_err(|error| Fault::Silent(error.to_string()))?;
        let token = response.headers().get("x-subject-token").and_then(|token| token.to_str().ok()).map(str::to_owned);
        let body = response.body_mut().with_config().limit(LARGEST).read_to_string();
        let body = body.map_err(|error| Fault::Silent(error.to_string()))?;
        Ok(Answer { status: response.status().as_u16(), token, body })
    }
}

struct Answer {
    status: u16,
    token: Option<String>,
    body: String,
}

/// The body that logs the server in.
fn login(credential: &KeystoneCredential) -> Value {
    match credential {
        KeystoneCredential::Password { user, password, project } => {
            let mut user = named(user);
            user["password"] = json!(password.0);
            let scope = match project {
                Some(project) => json!({"project": named(project)}),
                None => json!({"system": {"all": true}}),
            };
            json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}})
        }
        KeystoneCredential::Application { id, secret } => json!({"auth": {"identity": {
            "methods": ["application_credential"],
            "application_credential": {"id": id, "secret": secret.0},
        }}}),
    }
}

fn named(named: &Named) -> Value {
    match named {
        Named::Id(id) => json!({"id": id}),
        Named::Name { name, domain: Domain::Id(id) } => json!({"name": name, "domain": {"id": id}}),
        Named::Name { name, domain: Domain::Name(domain) } => json!({"name": name, "domain": {"name": domain}}),
    }
}

fn tls(settings: &KeystoneSettings) -> Result<TlsConfig, ClientError> {
    if settings.insecure {
        return Ok(TlsConfig::builder().disable_verification(true).build());
    }
    let path = settings.cafile.as_deref().unwrap_or(Path::new(SYSTEM_CERTIFICATES));
    let pem = std::fs::read(path).map_err(|source| ClientError::Unreadable { path: path.to_owned(), source })?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(ClientError::Empty { path: path.to_owned() });
    }
    Ok(TlsConfig::builder().root_certs(RootCerts::Specific(Arc::new(certificates))).build())
}
