//! How this host speaks HTTP with its server.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use evergate_config::HostSettings;
use ureq::Agent;

/// A server that does not accept a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(3);

/// A server that has a request and says nothing for this long is dead.
const ANSWER: Duration = Duration::from_secs(10);

/// The server sends a ping every few seconds: nothing for this long means that it, or the way to it, is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Where the servers are, and how to be let in. Clones share which one is used: a host that loses its server
/// goes to the next, with its stream and its reports.
#[derive(Clone, Debug)]
pub struct Access {
    urls: Arc<[String]>,
    current: Arc<AtomicUsize>,
    host: String,
    token_file: PathBuf,
}

impl Access {
    /// Takes it from the settings. `seed` spreads hosts over the servers.
    pub fn new(settings: &HostSettings, seed: u64) -> Self {
        let urls: Arc<[String]> = settings.server_urls.clone().into();
        let first = usize::try_from(seed % urls.len().max(1) as u64).unwrap_or(0);
        Self {
            urls,
            current: Arc::new(AtomicUsize::new(first)),
            host: settings.host.clone(),
            token_file: settings.host_token_file.clone(),
        }
    }

    /// The URL of something below this host's own, on a server.
    pub fn url(&self, server: &str, what: &str) -> String {
        format!("{server}/evergate/v1/hosts/{}/{what}", escape(&self.host))
    }

    /// The server that is used now, by its URL.
    pub fn server(&self) -> &str {
        self.urls.get(self.current.load(Ordering::Relaxed)).map_or("", String::as_str)
    }

    /// Goes on to the next server, unless that was done since `failed` was used.
    pub fn give_up(&self, failed: &str) {
        let Some(failed) = self.urls.iter().position(|url| url == failed) else { return };
        let next = (failed + 1) % self.urls.len();
        let _ = self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Reads the token, each time anew: the server may have made it since.
    pub fn authorization(&self) -> anyhow::Result<String> {
        let token = read_token(&self.token_file)?;
        Ok(format!("Bearer {token}"))
    }
}

fn read_token(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "failed to read the host token {} (the server makes it on its first start; host_token_file says where it is)",
            path.display()
        )
    })?;
    let token = text.trim();
    anyhow::ensure!(!token.is_empty(), "the host token file {} is empty", path.display());
    anyhow::ensure!(
        token.bytes().all(|byte| byte.is_ascii_graphic()),
        "the host token file {} holds something other than a token",
        path.display()
    );
    Ok(token.to_owned())
}

/// Escapes what may not stand in a URL's path.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

/// A client for the stream: no limit on the whole, but one on silence.
pub fn stream_agent() -> Agent {
    base().timeout_recv_response(Some(ANSWER)).timeout_per_read(Some(SILENCE)).build().new_agent()
}

/// A client for reports.
pub fn report_agent() -> Agent {
    base().timeout_global(Some(ANSWER)).build().new_agent()
}

fn base() -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    Agent::config_builder()
        .timeout_connect(Some(CONNECT))
        .http_status_as_error(false)
        .max_redirects(0)
        // The server is the one that the settings name, whatever the environment says about the web.
        .proxy(None)
        .user_agent("evergate-host")
}

/// Says what an unexpected status means for the operator.
pub fn status_error(status: u16, body: &str) -> anyhow::Error {
    let hint = match status {
        401 | 403 => "; is host_token_file the server's?",
        404 => "; is this an Evergate server of the same version?",
        _ => "",
    };
    let body = body.trim();
    let body =
        if body.is_empty() { String::new() } else { format!(": {}", body.chars().take(200).collect::<String>()) };
    anyhow::anyhow!("it answered with status {status}{hint}{body}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    fn access(urls: &[&str]) -> Access {
        Access {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            current: Arc::default(),
            host: "a/b c".into(),
            token_file: PathBuf::new(),
        }
    }

    #[test]
    fn a_hosts_name_is_escaped_in_its_url() {
        let access = access(&["http://s:1"]);
        assert_eq!(access.url(access.server(), "stream"), "http://s:1/evergate/v1/hosts/a%2Fb%20c/stream");
    }

    #[test]
    fn a_lost_server_is_left_once_for_the_next() {
        let access = access(&["http://a", "http://b"]);
        // Stream and report both notice.
        access.give_up("http://a");
        access.give_up("http://a");
        assert_eq!(access.server(), "http://b");
        access.clone().give_up("http://b");
        assert_eq!(access.server(), "http://a");
    }

    #[test]
    fn a_token_file_that_is_no_good_is_named() {
        let folder = Folder::new("token");
        let path = folder.path().join("token");
        assert!(format!("{:#}", read_token(&path).unwrap_err()).contains("host_token_file"));
        for (text, word) in [("\n", "empty"), ("a b", "other than a token")] {
            std::fs::write(&path, text).unwrap();
            assert!(read_token(&path).unwrap_err().to_string().contains(word));
        }
        std::fs::write(&path, "secret\n").unwrap();
        assert_eq!(read_token(&path).unwrap(), "secret");
    }
}
