//! Section `[keystone_authtoken]`: the Keystone that says who callers are, and how the server shows itself there.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;
use crate::settings::Secret;

const SECTION: &str = "keystone_authtoken";

/// How to reach Keystone and what to believe of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeystoneSettings {
    /// URL of Keystone for the server, without a trailing slash and without `/v3`.
    pub auth_url: String,
    /// URL of Keystone that clients are told in a 401.
    pub www_authenticate_uri: String,
    /// How the server shows who it is.
    pub credential: KeystoneCredential,
    /// The certificates that Keystone's is signed by; `None`: the system's.
    pub cafile: Option<PathBuf>,
    /// Whether Keystone's certificate is believed unseen.
    pub insecure: bool,
    /// How long a token is believed without asking; zero: not at all.
    pub token_cache_time: Duration,
    /// How long Keystone may take to answer.
    pub timeout: Duration,
    /// How often a question is asked again that got no answer.
    pub retries: u32,
    /// Roles one of which makes a service's token count.
    pub service_token_roles: Vec<String>,
    /// Whether a service's token without such a role is refused, instead of ignored.
    pub service_token_roles_required: bool,
}

/// What the server logs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeystoneCredential {
    /// A user's password.
    Password {
        /// The user.
        user: Named,
        /// Its password.
        password: Secret,
        /// The project whose rights are used; `None`: the system's.
        project: Option<Named>,
    },
    /// An application credential.
    Application {
        /// Its id.
        id: String,
        /// Its secret.
        secret: Secret,
    },
}

/// A user or project, by id or by name and domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// By id.
    Id(String),
    /// By name.
    Name {
        /// Its name.
        name: String,
        /// The domain that the name is of.
        domain: Domain,
    },
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Domain {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

impl KeystoneSettings {
    /// Picks the settings, if the files say that Keystone is to be asked.
    pub(crate) fn from_config(config: &Config) -> Option<Self> {
        if !is_wanted(config) {
            return None;
        }
        let text = |name| config.non_empty(SECTION, name);
        let auth_url = root(&text("auth_url").or_else(|| text("www_authenticate_uri"))?);
        let credential = match text("application_credential_id") {
            Some(id) => KeystoneCredential::Application {
                id,
                secret: Secret(text("application_credential_secret").unwrap_or_default()),
            },
            None => KeystoneCredential::Password {
                user: named(config, "user_id", "username", ["user_domain_id", "user_domain_name"])?,
                password: Secret(text("password").unwrap_or_default()),
                project: named(config, "project_id", "project_name", ["project_domain_id", "project_domain_name"]),
            },
        };
        Some(Self {
            www_authenticate_uri: text("www_authenticate_uri").map_or_else(|| auth_url.clone(), |url| root(&url)),
            auth_url,
            credential,
            cafile: text("cafile").map(PathBuf::from),
            insecure: config.bool(SECTION, "insecure"),
            token_cache_time: Duration::from_secs(
                u64::try_from(config.int::<i64>(SECTION, "token_cache_time")).unwrap_or(0),
            ),
            timeout: config.seconds(SECTION, "http_connect_timeout"),
            retries: config.int(SECTION, "http_request_max_retries"),
            service_token_roles: config.list(SECTION, "service_token_roles"),
            service_token_roles_required: config.bool(SECTION, "service_token_roles_required"),
        })
    }
}

/// Tells whether the files ask for Keystone: in so many words, or by saying where one is.
pub(crate) fn is_wanted(config: &Config) -> bool {
    match config.text("evergate", "identity").as_str() {
        "embedded" => false,
        "keystone" => true,
        _ => config.non_empty(SECTION, "auth_url").is_some(),
    }
}

fn root(url: &str) -> String {
    let url = url.trim_end_matches('/');
    url.strip_suffix("/v3").or_else(|| url.strip_suffix("/v2.0")).unwrap_or(url).trim_end_matches('/').to_owned()
}

fn named(config: &Config, id: &str, name: &str, [domain_id, domain_name]: [&str; 2]) -> Option<Named> {
    if let Some(id) = config.non_empty(SECTION, id) {
        return Some(Named::Id(id));
    }
    let domain = match (config.non_empty(SECTION, domain_id), config.non_empty(SECTION, domain_name)) {
        (Some(id), _) => Domain::Id(id),
        (None, Some(name)) => Domain::Name(name),
        // Files from before domains name none and mean the one that Keystone makes first.
        (None, None) => Domain::Id("default".to_owned()),
    };
    config.non_empty(SECTION, name).map(|name| Named::Name { name, domain })
}
