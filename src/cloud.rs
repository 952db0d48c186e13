//! The API as an administrator's client: what the operator's verbs ask and change.
//!
//! Settings come from a `clouds.yaml`, as the stock client takes them; by default from the one that the server
//! wrote.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use yaml_rust2::{Yaml, YamlLoader};

/// Longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which cloud, and as whom.
#[derive(Clone, Debug, Args)]
pub(crate) struct CloudArgs {
    /// The file with the clouds; `OS_CLIENT_CONFIG_FILE` unless given, else the one that the server writes.
    #[arg(long, value_name = "FILE")]
    clouds: Option<PathBuf>,
    /// The cloud in it; `OS_CLOUD` unless given, else `evergate-admin`.
    #[arg(long, value_name = "NAME")]
    cloud: Option<String>,
}

/// An open door to the API.
pub(crate) struct Api {
    agent: ureq::Agent,
    base: String,
    token: String,
}

/// What is needed to log in.
#[derive(Debug, PartialEq, Eq)]
struct Login {
    auth_url: String,
    username: String,
    password: String,
    project: String,
    domain: String,
    /// The authority of the server's certificate, where it is none that everybody knows.
    cacert: Option<PathBuf>,
}

impl CloudArgs {
    /// Logs in.
    pub(crate) fn open(&self) -> Result<Api> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path = self.clouds.clone().or_else(|| set("OS_CLIENT_CONFIG_FILE").map(PathBuf::from));
        let path = path.unwrap_or_else(|| PathBuf::from("/var/lib/evergate/clouds.yaml"));
        let cloud = self.cloud.clone().or_else(|| set("OS_CLOUD")).unwrap_or_else(|| "evergate-admin".to_owned());
        Api::open(read(&path, &cloud)?)
    }
}

fn read(path: &Path, cloud: &str) -> Result<Login> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read {}; say where clouds.yaml is with --clouds", path.display()))?;
    login(&text, cloud).with_context(|| format!("failed to find cloud '{cloud}' in {}", path.display()))
}

fn login(text: &str, cloud: &str) -> Result<Login> {
    let documents = YamlLoader::load_from_str(text)?;
    let found = documents.first().map_or(&Yaml::BadValue, |document| &document["clouds"][cloud]);
    let auth = &found["auth"];
    let get = |key: &str| auth[key].as_str().map(ToOwned::to_owned);
    let must = |key: &str| get(key).with_context(|| format!("its auth has no '{key}'"));
    Ok(Login {
        auth_url: must("auth_url")?,
        username: must("username")?,
        password: must("password")?,
        project: must("project_name")?,
        domain: get("user_domain_name").unwrap_or_else(|| "Default".to_owned()),
        cacert: found["cacert"].as_str().map(PathBuf::from),
    })
}

fn authorities(path: &Path) -> Result<RootCerts> {
    let text = std::fs::read(path).with_context(|| format!("failed to read cacert {}", path.display()))?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(certificate) =
            item.with_context(|| format!("cacert {} is damaged", path.display()))?
        {
            found.push(certificate);
        }
    }
    ensure!(!found.is_empty(), "there is no certificate in cacert {}", path.display());
    Ok(RootCerts::from(found))
}

impl Api {
    fn open(login: Login) -> Result<Self> {
        let mut config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        if let Some(path) = &login.cacert {
            config = config.tls_config(TlsConfig::builder().root_certs(authorities(path)?).build());
        }
        let agent: ureq::Agent = config.build().into();
        let domain = json!({"name": login.domain});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": login.username, "domain": domain, "password": login.password,
            }}},
            "scope": {"project": {"name": login.project, "domain": domain}},
        }});
        let url = format!("{}/auth/tokens", login.auth_url.trim_end_matches('/'));
        let answer = agent.post(&url).header("Content-Type", "application/json").send(body.to_string());
        let mut answer = answer.with_context(|| format!("failed to reach {url}"))?;
        let token =
            answer.headers().get("X-Subject-Token").and_then(|token| token.to_str().ok()).map(ToOwned::to_owned);
        let Some(token) = token.filter(|_| answer.status().is_success()) else {
            bail!("{} was refused a token by {url}: {}", login.username, answer.status());
        };
        let text = answer.body_mut().read_to_string().context("failed to read the token's catalog")?;
        let catalog: Value = serde_json::from_str(&text).context("failed to understand the token's catalog")?;
        let base = network_url(&catalog).context("the catalog names no network service")?;
        Ok(Self { agent, base, token })
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        let answer = self.agent.get(&url).header("X-Auth-Token", &self.token).call();
        understand("GET", &url, answer)
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        let request =
            self.agent.put(&url).header("X-Auth-Token", &self.token).header("Content-Type", "application/json");
        understand("PUT", &url, request.send(body.to_string()))
    }
}

fn understand(method: &str, url: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Value> {
    let mut answer = answer.with_context(|| format!("failed to reach {url}"))?;
    let text = answer.body_mut().read_to_string().with_context(|| format!("no answer to {method} {url}"))?;
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| text.clone().into());
    if !answer.status().is_success() {
        let why = value["NeutronError"]["message"].as_str().map_or(text, ToOwned::to_owned);
        bail!("{method} {url}: {}: {why}", answer.status());
    }
    Ok(value)
}

/// Where the network service is, without a version.
fn network_url(catalog: &Value) -> Option<String> {
    let services = catalog["token"]["catalog"].as_array()?;
    let network = services.iter().find(|service| service["type"] == "network")?;
    let public = network["endpoints"].as_array()?.iter().find(|endpoint| endpoint["interface"] == "public")?;
    let url = public["url"].as_str()?.trim_end_matches('/');
    Some(url.trim_end_matches("/v2.0").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clouds_file_gives_what_is_needed_to_log_in_or_says_what_is_missing() {
        let text = "clouds:\n  a:\n    cacert: /ca.pem\n    auth:\n      auth_url: http://x:1/identity/v3\n      username: u\n      \
                    password: 'p: q'\n      project_name: r\n  b:\n    auth:\n      username: u\n";
        let found = login(text, "a").expect("it is complete");
        assert_eq!((found.password.as_str(), found.domain.as_str()), ("p: q", "Default"));
        assert_eq!(found.cacert.as_deref(), Some(Path::new("/ca.pem")));
        for (cloud, missing) in [("b", "auth_url"), ("c", "auth_url")] {
            let error = login(text, cloud).expect_err("it is incomplete").to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn the_catalog_says_where_the_network_service_is() {
        let endpoint = |interface: &str, url: &str| json!({"interface": interface, "url": url});
        let network = [endpoint("admin", "http://no"), endpoint("public", "http://a:9696/v2.0/")];
        let catalog = json!({"token": {"catalog": [
            {"type": "identity", "endpoints": []},
            {"type": "network", "endpoints": network},
        ]}});
        assert_eq!(network_url(&catalog).as_deref(), Some("http://a:9696"));
        assert_eq!(network_url(&json!({})), None);
    }
}
