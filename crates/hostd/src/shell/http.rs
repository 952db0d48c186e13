//! How this host speaks HTTP with its server: over TLS, each side with its certificate.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use evergate_config::HostSettings;
use rustls::CertificateError;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::TlsConfig;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Body};

use crate::membership::{self, Member, NewKey};
use crate::timestamp;

/// A server that does not accept a connection within this time is not there.
const CONNECT: Duration = Duration::from_secs(3);

/// A server that has a request and says nothing for this long is dead.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// A letter that takes longer is of no use any more.
pub(super) const LETTER: Duration = Duration::from_secs(1);

/// The server sends a ping every few seconds: nothing for this long means that it, or the way to it, is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Pause between two attempts to renew the certificate, and between two warnings that it cannot be.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Where the servers are, and how to be let in. Clones share which one is used: a host that loses its server
/// goes to the next, with its stream and its reports.
#[derive(Clone, Debug)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    urls: Vec<String>,
    current: AtomicUsize,
    host: String,
    state_path: PathBuf,
    token_file: PathBuf,
    /// Never held while a server is asked: letters must not wait for that.
    state: Mutex<State>,
    /// A server is asked for a certificate.
    is_applying: AtomicBool,
}

#[derive(Default)]
struct State {
    member: Option<Arc<Member>>,
    /// Of the file that it was read from: it may be replaced under us, by `evergate join`.
    seen: Option<SystemTime>,
    /// Whether a server refused it, and none took it since: a token that is there is used.
    is_refused: bool,
    /// The key that a first certificate was asked for.
    key: Option<NewKey>,
    renewal_at: Option<Instant>,
    warning_at: Option<Instant>,
}

impl State {
    /// The certificate, if it is time for the next one.
    fn due(&self) -> Option<Arc<Member>> {
        self.member.as_ref().filter(|member| member.is_due(timestamp::now_ms())).cloned()
    }
}

/// The one request for a certificate at a time, until it is dropped.
struct Applying<'a>(&'a AtomicBool);

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("member", &self.member).finish_non_exhaustive()
    }
}

impl Access {
    /// Takes it from the settings. `seed` spreads hosts over the servers.
    pub fn new(settings: &HostSettings, seed: u64) -> Self {
        let urls = settings.server_urls.clone();
        let first = usize::try_from(seed % urls.len().max(1) as u64).unwrap_or(0);
        Self(Arc::new(Inner {
            urls,
            current: AtomicUsize::new(first),
            host: settings.host.clone(),
            state_path: settings.state_path.clone(),
            token_file: settings.join_token_file.clone(),
            state: Mutex::default(),
            is_applying: AtomicBool::default(),
        }))
    }

    /// The server that is used now, by its URL.
    pub fn server(&self) -> &str {
        self.0.urls.get(self.0.current.load(Ordering::Relaxed)).map_or("", String::as_str)
    }

    /// Goes on to the next server, unless that was done since `failed` was used.
    pub fn give_up(&self, failed: &str) {
        let Some(failed) = self.0.urls.iter().position(|url| url == failed) else { return };
        let next = (failed + 1) % self.0.urls.len();
        let _ = self.0.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What this host shows; joins where it has nothing that counts, and a token.
    ///
    /// # Errors
    ///
    /// When there is nothing to show, with what to do.
    pub fn member(&self, server: &str) -> anyhow::Result<Arc<Member>> {
        let mut state = self.state();
        self.look_at_file(&mut state)?;
        let counts =
            !state.is_refused && state.member.as_ref().is_some_and(|m| m.expires_at_ms() > timestamp::now_ms());
        if !counts
            && self.0.token_file.exists()
            && let Some(applying) = self.begin_applying()
        {
            let key = state.key.take();
            drop(state);
            return self.join(server, key, applying);
        }
        self.shown(&state)
    }

    /// What this host shows now, without asking anybody.
    ///
    /// # Errors
    ///
    /// When there is nothing to show, with what to do.
    pub fn present(&self) -> anyhow::Result<Arc<Member>> {
        let mut state = self.state();
        self.look_at_file(&mut state)?;
        self.shown(&state)
    }

    /// One that was refused is shown again: the server may have been restored meanwhile.
    fn shown(&self, state: &State) -> anyhow::Result<Arc<Member>> {
        state.member.clone().with_context(|| {
            if self.0.is_applying.load(Ordering::Acquire) {
                return "this host is just joining its cluster".to_owned();
            }
            format!(
                "this host has not joined its cluster: put a join token into {} (on the controller: evergate cluster \
                 token create --host {})",
                self.0.token_file.display(),
                self.0.host
            )
        })
    }

    fn begin_applying(&self) -> Option<Applying<'_>> {
        let is_applying = &self.0.is_applying;
        (!is_applying.swap(true, Ordering::Acquire)).then_some(Applying(is_applying))
    }

    fn join(&self, server: &str, key: Option<NewKey>, _: Applying<'_>) -> anyhow::Result<Arc<Member>> {
        let Inner { host, state_path, token_file, .. } = &*self.0;
        let key = key.map_or_else(NewKey::generate, Ok)?;
        let joined = membership::read_token(token_file).and_then(|token| {
            let member = membership::join(server, host, &token, &key, state_path)
                .with_context(|| format!("host '{host}' could not join with the token {}", token.id))?;
            Ok((token, member))
        });
        let (token, member) = match joined {
            Ok(joined) => joined,
            Err(error) => {
                // The answer may have got lost: who asks again does so for the same key.
                self.state().key = Some(key);
                return Err(error);
            }
        };
        tracing::info!(
            host,
            server,
            token = token.id,
            until = timestamp::utc(member.expires_at_ms()),
            "host joined its cluster"
        );
        // It is of no more use, and would be of use to others.
        if let Err(error) = std::fs::remove_file(token_file) {
            tracing::warn!("failed to remove the used join token {}: {error}", token_file.display());
        }
        let member = Arc::new(member);
        *self.state() = State { member: Some(Arc::clone(&member)), seen: self.stamp(), ..State::default() };
        Ok(member)
    }

    /// Notes that a server did not take what was shown, or did not show what it must.
    pub fn refused(&self) {
        let mut state = self.state();
        state.is_refused = true;
        let now = Instant::now();
        if let Some(member) = state.due().filter(|_| state.warning_at.is_none_or(|at| at <= now)) {
            state.warning_at = Some(now + RENEWAL_PAUSE);
            let until = timestamp::utc(member.expires_at_ms());
            tracing::warn!("this host's certificate ends at {until}, and is not renewed while servers refuse it");
        }
    }

    /// Notes that a server took what was shown, and showed what it must.
    pub fn accepted(&self) {
        self.state().is_refused = false;
    }

    /// Gets the next certificate when it is time to, from a server that accepts this one.
    pub fn renew_if_due(&self, server: &str) {
        let mut state = self.state();
        let Some(member) = state.due() else { return };
        let now = Instant::now();
        if state.renewal_at.is_some_and(|at| at > now) {
            return;
        }
        let Some(_applying) = self.begin_applying() else { return };
        state.renewal_at = Some(now + RENEWAL_PAUSE);
        drop(state);
        let door = Door::new(server, &self.0.host, member.tls());
        match membership::renew(&door, &self.0.host, &self.0.state_path) {
            Ok(member) => {
                tracing::info!(until = timestamp::utc(member.expires_at_ms()), "this host's certificate is renewed");
                let mut state = self.state();
                state.member = Some(Arc::new(member));
                state.seen = self.stamp();
                state.renewal_at = None;
            }
            Err(error) => {
                let until = timestamp::utc(member.expires_at_ms());
                tracing::warn!("this host's certificate ends at {until}, and could not be renewed: {error:#}");
            }
        }
    }

    /// A client for the stream.
    pub fn stream_door(&self, server: &str, member: &Member) -> Door {
        Door::for_stream(server, &self.0.host, member.tls())
    }

    fn look_at_file(&self, state: &mut State) -> anyhow::Result<()> {
        let now = self.stamp();
        if state.seen != now || (state.member.is_none() && now.is_some()) {
            let member = Member::load(&self.0.state_path);
            // Joining anew mends a damaged file, too.
            if member.is_err() && self.0.token_file.exists() {
                return Ok(());
            }
            *state = State { member: member?.map(Arc::new), seen: now, key: state.key.take(), ..State::default() };
        }
        Ok(())
    }

    fn stamp(&self) -> Option<SystemTime> {
        std::fs::metadata(self.0.state_path.join(membership::FILE_NAME)).ok()?.modified().ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Limits = ureq::config::ConfigBuilder<ureq::typestate::AgentScope>;

/// One server, as one host is let in there.
#[derive(Clone, Debug)]
pub struct Door {
    agent: Agent,
    server: String,
    host: String,
}

impl Door {
    /// A client whose every request ends within [`ANSWER`].
    pub fn new(server: &str, host: &str, tls: TlsConfig) -> Self {
        Self::with_patience(server, host, tls, ANSWER)
    }

    fn with_patience(server: &str, host: &str, tls: TlsConfig, patience: Duration) -> Self {
        Self::with_limits(server, host, tls, |config| config.timeout_global(Some(patience)))
    }

    /// A client without a limit on the whole, but with one on silence.
    pub fn for_stream(server: &str, host: &str, tls: TlsConfig) -> Self {
        let limits = |config: Limits| config.timeout_recv_response(Some(ANSWER)).timeout_per_read(Some(SILENCE));
        Self::with_limits(server, host, tls, limits)
    }

    fn with_limits(server: &str, host: &str, tls: TlsConfig, limits: impl FnOnce(Limits) -> Limits) -> Self {
        let config = Agent::config_builder()
            .timeout_connect(Some(CONNECT))
            .http_status_as_error(false)
            .max_redirects(0)
            // The server is the one that the settings name, whatever the environment says about the web.
            .proxy(None)
            .user_agent("evergate-host")
            .tls_config(tls);
        let towards = Towards(server.to_owned());
        let agent = Agent::with_parts(limits(config).build(), DefaultConnector::default(), towards);
        Self { agent, server: server.to_owned(), host: host.to_owned() }
    }

    /// Ends what is under way.
    pub fn shutdown(self) {
        self.agent.shutdown();
    }

    /// Asks for something of this host's; whatever the answer is, it is one.
    ///
    /// # Errors
    ///
    /// When no answer came.
    pub fn get(&self, what: &str) -> Result<ureq::http::Response<Body>, Failure> {
        let answer = self.agent.get(membership::url(&self.host, what)).call();
        answer.map_err(|error| Failure::unreached(&self.server, error))
    }

    /// Sends something of this host's; answers what the server says.
    ///
    /// # Errors
    ///
    /// When no answer came, or a refusal.
    pub fn post(&self, what: &str, body: &[u8]) -> Result<String, Failure> {
        let request = self.agent.post(membership::url(&self.host, what)).header("Content-Type", "application/json");
        let answer = request.send(body).map_err(|error| Failure::unreached(&self.server, error))?;
        self.understand(answer)
    }

    /// Asks for the cluster's authorities.
    ///
    /// # Errors
    ///
    /// When no answer came, or a refusal.
    pub fn get_authorities(&self) -> Result<String, Failure> {
        let url = format!("https://{}/evergate/v1/ca", evergate_model::join::SERVER_NAME);
        let answer = self.agent.get(url).call().map_err(|error| Failure::unreached(&self.server, error))?;
        self.understand(answer)
    }

    /// Reads an answer, or why there is none.
    ///
    /// # Errors
    ///
    /// When it is a refusal.
    pub fn understand(&self, mut answer: ureq::http::Response<Body>) -> Result<String, Failure> {
        let status = answer.status().as_u16();
        // Read whatever there is: the connection is used again only then.
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        if (200..300).contains(&status) { Ok(text) } else { Err(Failure::refused(&self.server, status, &text)) }
    }
}

/// The way to a server, kept open from one thing that is posted to the next.
#[derive(Debug)]
pub(super) struct Way {
    open: Option<(String, Arc<Member>, Door)>,
    patience: Duration,
}

impl Way {
    /// `patience`: how long a request may take.
    pub(super) fn new(patience: Duration) -> Self {
        Self { open: None, patience }
    }

    /// Sends something of this host's, as the member that it is.
    pub(super) fn post(
        &mut self,
        access: &Access,
        (server, member): (&str, Arc<Member>),
        (what, body): (&str, &[u8]),
    ) -> anyhow::Result<()> {
        let is_open = self.open.as_ref().is_some_and(|(to, of, _)| to == server && Arc::ptr_eq(of, &member));
        if !is_open {
            let door = Door::with_patience(server, &access.0.host, member.tls(), self.patience);
            self.open = Some((server.to_owned(), member, door));
        }
        let (_, _, door) = self.open.as_ref().context("there is no way to the server")?;
        door.post(what, body)?;
        access.accepted();
        Ok(())
    }
}

/// Leads to a server whatever it is called: hosts call all of them by one name.
#[derive(Debug)]
struct Towards(String);

impl Resolver for Towards {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let uri = self.0.parse::<Uri>().map_err(|_| ureq::Error::BadUri(self.0.clone()))?;
        DefaultResolver::default().resolve(&uri, config, timeout)
    }
}

/// A server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    text: String,
    /// Whether it is about who this host or that server is, so that joining anew may help.
    pub is_of_identity: bool,
}

impl Failure {
    fn unreached(server: &str, error: ureq::Error) -> Self {
        let (text, is_of_identity) = match tls_error(&error).map(explain) {
            Some((why, is_of_identity)) => (format!("{why} ({error})"), is_of_identity),
            None => (error.to_string(), false),
        };
        Self { text: format!("failed to reach the server {server}: {text}"), is_of_identity }
    }

    fn refused(server: &str, status: u16, body: &str) -> Self {
        let hint = if status == 404 { "; is this an Evergate server of the same version?" } else { "" };
        let body = body.trim().chars().take(400).collect::<String>();
        let body = if body.is_empty() { body } else { format!(": {body}") };
        let text = format!("the server {server} answered with status {status}{hint}{body}");
        Self { text, is_of_identity: matches!(status, 401 | 403) }
    }
}

fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    if let ureq::Error::Rustls(error) = error {
        return Some(error);
    }
    if let ureq::Error::Io(error) = error {
        return error.get_ref()?.downcast_ref();
    }
    None
}

/// What a failure of TLS means for the operator; and whether it is about who somebody is.
fn explain(error: &rustls::Error) -> (String, bool) {
    use CertificateError as C;
    if let rustls::Error::InvalidCertificate(error) = error {
        let off = |how| {
            let now = timestamp::utc(timestamp::now_ms());
            (format!("its certificate {how}: compare the two clocks; by this host's clock it is {now} UTC"), false)
        };
        return if matches!(error, C::Expired | C::ExpiredContext { .. }) {
            off("has expired")
        } else if matches!(error, C::NotValidYet | C::NotValidYetContext { .. }) {
            off("has not begun")
        } else if matches!(error, C::NotValidForName | C::NotValidForNameContext { .. }) {
            ("what answers there is no Evergate server, or something is in between".to_owned(), true)
        } else {
            let why = "it is not of the cluster that this host joined: is server_url right, was the database made anew, \
                       or is somebody in between? To join that cluster, put a join token of it into join_token_file";
            (why.to_owned(), true)
        };
    }
    let why = if matches!(error, rustls::Error::InvalidMessage(_)) {
        "what answers there does not speak TLS: is it an Evergate server of this version?"
    } else if matches!(error, rustls::Error::AlertReceived(_)) {
        "it ended the handshake; its log may say why"
    } else {
        "TLS failed"
    };
    (why.to_owned(), false)
}

/// Escapes what may not stand in a URL's path.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tests::Folder;

    fn access(urls: &[&str], folder: &Folder) -> Access {
        Access(Arc::new(Inner {
            urls: urls.iter().map(|url| (*url).to_owned()).collect(),
            current: AtomicUsize::default(),
            host: "a/b c".into(),
            state_path: folder.path().to_owned(),
            token_file: folder.path().join("join-token"),
            state: Mutex::default(),
            is_applying: AtomicBool::default(),
        }))
    }

    #[test]
    fn a_hosts_name_is_escaped_in_its_url() {
        let url = membership::url("a/b c", "stream");
        assert_eq!(url, "https://server.evergate.internal/evergate/v1/hosts/a%2Fb%20c/stream");
    }

    #[test]
    fn a_lost_server_is_left_once_for_the_next() {
        let access = access(&["https://a", "https://b"], &Folder::new("lost-server"));
        // Stream and report both notice.
        access.give_up("https://a");
        access.give_up("https://a");
        assert_eq!(access.server(), "https://b");
        access.clone().give_up("https://b");
        assert_eq!(access.server(), "https://a");
    }

    #[test]
    fn a_host_that_has_not_joined_is_told_how_to() {
        let folder = Folder::new("not-joined");
        let access = access(&["https://127.0.0.1:1"], &folder);
        let why = |access: &Access| format!("{:#}", access.member(access.server()).unwrap_err());
        assert!(why(&access).contains("evergate cluster token create --host a/b c"), "{}", why(&access));
        std::fs::write(folder.path().join("join-token"), "nonsense").unwrap();
        assert!(why(&access).contains("holds no join token"), "{}", why(&access));
        std::fs::write(folder.path().join(membership::FILE_NAME), "nonsense").unwrap();
        assert!(why(&access).contains("holds no join token"), "{}", why(&access));
        std::fs::remove_file(folder.path().join("join-token")).unwrap();
        assert!(why(&access).contains("is damaged"), "{}", why(&access));
    }

    #[test]
    fn what_tls_says_is_told_in_an_operators_words() {
        let why = |error: rustls::Error| {
            let wrapped = ureq::Error::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, error));
            let failure = Failure::unreached("https://s", wrapped);
            (failure.to_string(), failure.is_of_identity)
        };
        let cases = [
            (
                rustls::Error::InvalidCertificate(CertificateError::Expired),
                "compare the two clocks; by this host's",
                false,
            ),
            (rustls::Error::InvalidCertificate(CertificateError::NotValidYet), "has not begun", false),
            (rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer), "not of the cluster", true),
            (rustls::Error::InvalidCertificate(CertificateError::NotValidForName), "no Evergate server", true),
            (rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType), "does not speak TLS", false),
        ];
        for (error, words, is_of_identity) in cases {
            let (text, of_identity) = why(error);
            assert!(text.starts_with("failed to reach the server https://s: ") && text.contains(words), "{text}");
            assert_eq!(of_identity, is_of_identity, "{text}");
        }
    }
}
