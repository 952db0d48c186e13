//! The few requests that the lab itself makes to the API, as the hypervisor's software would.
//!
//! The API listens inside the lab, so a request is made by `evergate lab api`, a process inside the
//! controller. It logs in as the administrator of the generated `clouds.yaml`, keeps the token in the
//! lab's folder, and logs in again when the token is refused. The server is known by the authority that it wrote beside
//! that file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::lab::{ADMIN_CLOUD, Lab, api_address};
use crate::spec::Node;
use crate::tools;

/// Longest time to wait for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the API answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON in the body; null when there was none.
    pub body: Value,
}

impl Lab {
    /// Makes one request as administrator.
    ///
    /// # Errors
    ///
    /// No answer came. An answer that refuses the request is an answer.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(ToString::to_string).unwrap_or_default();
        let clouds = self.clouds_file();
        let token = self.dir().join("token");
        let mut command = self.machine(Node::Controller).lab_command(&["api", method, path, "--clouds"])?;
        let text = tools::feed(command.arg(clouds).arg("--token").arg(token), &body).map_err(|error| {
            // What the process inside said, without how it was started.
            let all = error.to_string();
            let why = all.split_once("): evergate: ").map(|(_, why)| why.to_owned());
            why.map_or(error, anyhow::Error::msg)
        })?;
        serde_json::from_str(&text).context("failed to understand what 'evergate lab api' printed")
    }

    /// Makes one request as administrator, and insists that it succeeds.
    ///
    /// # Errors
    ///
    /// No answer came, or one with an error; its text is in the message.
    pub fn api_ok(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let answer = self.api(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            let why = answer.body["NeutronError"]["message"].as_str().map(ToOwned::to_owned);
            bail!("{method} {path}: {} {}", answer.status, why.unwrap_or_else(|| answer.body.to_string()));
        }
        Ok(answer.body)
    }
}

/// Runs inside the controller: one request with the token at hand, a second one after logging in.
pub(crate) fn request(method: &str, path: &str, body: &str, clouds: &Path, token: &Path) -> Result<Answer> {
    let caller = Caller::new(clouds)?;
    if let Ok(old) = fs::read_to_string(token) {
        let answer = caller.exchange(method, path, body, Some(&old))?.1;
        if answer.status != 401 {
            return Ok(answer);
        }
    }
    let new = log_in(&caller, clouds)?;
    // The token opens everything: for the owner's eyes, from the first byte on.
    let file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(token);
    file.and_then(|mut file| file.write_all(new.as_bytes()))
        .with_context(|| format!("failed to write {}", token.display()))?;
    Ok(caller.exchange(method, path, body, Some(&new))?.1)
}

fn log_in(caller: &Caller, clouds: &Path) -> Result<String> {
    let text = fs::read_to_string(clouds).with_context(|| format!("failed to read {}", clouds.display()))?;
    let cloud = cloud(&text, ADMIN_CLOUD);
    let get = |key: &str| {
        let found = cloud.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        found.with_context(|| format!("{} does not give '{key}' for {ADMIN_CLOUD}", clouds.display()))
    };
    let domain = json!({"id": "default"});
    let body = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": get("username")?, "domain": domain, "password": get("password")?,
        }}},
        "scope": {"project": {"name": get("project_name")?, "domain": domain}},
    }});
    let (token, answer) = caller.exchange("POST", "/identity/v3/auth/tokens", &body.to_string(), None)?;
    if answer.status != 201 {
        bail!("the lab's administrator was refused a token: {} {}", answer.status, answer.body);
    }
    token.context("the answer to logging in carries no token")
}

/// Makes requests to the lab's server, and to no other.
struct Caller(ureq::Agent);

impl Caller {
    fn new(clouds: &Path) -> Result<Self> {
        let path = clouds.with_file_name("ca.pem");
        let authority = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let authority = Certificate::from_pem(&authority).with_context(|| format!("{} is damaged", path.display()))?;
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .proxy(None)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::from([authority])).build());
        Ok(Self(config.build().into()))
    }

    /// One request and its answer, with the token in it, where there is one.
    fn exchange(&self, method: &str, path: &str, body: &str, token: Option<&str>) -> Result<(Option<String>, Answer)> {
        let request = ureq::http::Request::builder().method(method).uri(format!("https://{}{path}", api_address()));
        let mut request = request.header("Content-Type", "application/json");
        if let Some(token) = token {
            request = request.header("X-Auth-Token", token);
        }
        let request = request.body(body).with_context(|| format!("'{method} {path}' is no request"))?;
        let mut answer = self.0.run(request).with_context(|| format!("no answer to {method} {path}"))?;
        let text = answer.body_mut().read_to_string().with_context(|| format!("no answer to {method} {path}"))?;
        let token = answer.headers().get("x-subject-token").and_then(|token| token.to_str().ok());
        let body =
            if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or_else(|_| text.into()) };
        Ok((token.map(ToOwned::to_owned), Answer { status: answer.status().as_u16(), body }))
    }
}

/// The plain settings below one cloud of a `clouds.yaml`, read by indentation: enough for a file that
/// our own server writes.
fn cloud(text: &str, name: &str) -> Vec<(String, String)> {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let Some(start) = lines.find(|line| line.trim() == format!("{name}:")) else { return Vec::new() };
    let below = lines.take_while(|line| indent(line) > indent(start));
    let plain = |value: &str| value.trim().trim_matches(['"', '\'']).to_owned();
    below.filter_map(|line| line.trim().split_once(": ")).map(|(key, value)| (key.to_owned(), plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloud_ends_where_the_next_one_begins() {
        let text = "clouds:\n  evergate-admin:\n    auth:\n      username: admin\n      password: \"x: y\"\n    \
                    region_name: r\n  evergate-demo:\n    auth:\n      username: demo\n";
        let found = cloud(text, "evergate-admin");
        assert_eq!(found[0], ("username".to_owned(), "admin".to_owned()));
        assert_eq!(found[1], ("password".to_owned(), "x: y".to_owned()));
        assert!(found.iter().all(|(_, value)| value != "demo"));
        assert!(cloud(text, "other").is_empty());
    }
}
