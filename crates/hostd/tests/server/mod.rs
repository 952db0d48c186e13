//! A server for one host: enough HTTP over TLS to let it in, stream lines and take reports and letters.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use evergate_model::host::{HostConfig, HostReport};
use evergate_model::join::{JoinRequest, JoinToken, Membership, RenewRequest, SERVER_NAME};
use evergate_model::stream::{Change, Downstream};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest as _, Sha256};

type Stream = StreamOwned<ServerConnection, TcpStream>;

pub(crate) struct Server {
    url: String,
    state: Shared,
    cluster: Arc<Cluster>,
}

/// What happened at the server, and who waits for it.
type Shared = Arc<(Mutex<State>, Condvar)>;

/// The end of a certificate that is not due to be renewed for long.
pub(crate) const IN_LONG: i64 = 4_000_000_000;

/// What makes servers and hosts of one cluster.
struct Cluster {
    issuer: Issuer<'static, KeyPair>,
    authority: rcgen::Certificate,
    tls: Arc<ServerConfig>,
    token: JoinToken,
}

impl Cluster {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let fingerprint = Sha256::digest(authority.der()).iter().map(|byte| format!("{byte:02x}")).collect();
        let token = JoinToken { id: "0a".repeat(8), secret: "0b".repeat(32), authority: fingerprint };
        Self { issuer, authority, tls: Arc::new(tls), token }
    }

    /// Answers a request to join.
    fn admit(&self, body: &[u8], expires_at: i64) -> Membership {
        let asked: JoinRequest = serde_json::from_slice(body).unwrap();
        assert_eq!((&asked.token, &asked.secret), (&self.token.id, &self.token.secret));
        self.certify(&asked.public_key, expires_at)
    }

    fn certify(&self, public_key: &str, expires_at: i64) -> Membership {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&HostKey::parse(public_key), &self.issuer).unwrap();
        Membership { certificate: certificate.pem(), authorities: self.authority.pem(), expires_at }
    }
}

struct HostKey(Vec<u8>);

impl HostKey {
    fn parse(text: &str) -> Self {
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        Self((0..text.len()).step_by(2).map(byte).collect())
    }
}

impl PublicKeyData for HostKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[derive(Default)]
struct State {
    config: HostConfig,
    streams: Vec<Sender<Downstream>>,
    reports: Vec<HostReport>,
    refuses: bool,
    denies: bool,
    denied: usize,
    /// When certificates end that are given to who joins, in seconds since the Unix epoch; 0: [`IN_LONG`].
    expires_at: i64,
    joined: usize,
    renewed: usize,
    letters: usize,
    certifies_after_letters: bool,
    waiting: usize,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (state, cluster) = (Shared::default(), Arc::new(Cluster::new()));
        let (shared, of_cluster) = (Arc::clone(&state), Arc::clone(&cluster));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (shared, cluster) = (Arc::clone(&shared), Arc::clone(&of_cluster));
                thread::spawn(move || {
                    let connection = ServerConnection::new(Arc::clone(&cluster.tls)).unwrap();
                    drop(serve(StreamOwned::new(connection, stream.unwrap()), &shared, &cluster));
                });
            }
        });
        Self { url, state, cluster }
    }

    /// Writes what a host joins with.
    pub(crate) fn write_token(&self, path: &Path) {
        std::fs::write(path, self.cluster.token.reveal()).unwrap();
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn set_config(&self, config: HostConfig) {
        let mut state = self.state();
        if let Some(change) = Change::between(&state.config, &config) {
            state.streams.retain(|stream| stream.send(Downstream::Change(change.clone())).is_ok());
        }
        state.config = config;
    }

    pub(crate) fn last_report(&self) -> Option<HostReport> {
        self.state().reports.last().cloned()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Whoever joins from now on is given a certificate that ends then, in seconds since the Unix epoch.
    pub(crate) fn admit_until(&self, expires_at: i64) {
        self.state().expires_at = expires_at;
    }

    /// Does not know the host from now on, whatever it shows; or knows it again.
    pub(crate) fn deny(&self, denies: bool) {
        self.state().denies = denies;
    }

    /// Gives no certificate but the first before something with letters has come.
    pub(crate) fn certify_after_letters(&self) {
        self.state().certifies_after_letters = true;
    }

    /// How often the host was denied something.
    pub(crate) fn denied(&self) -> usize {
        self.state().denied
    }

    /// How many certificates are asked for now, and wait for letters.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// How many certificates were given to who joined, and to who had one.
    pub(crate) fn certificates(&self) -> (usize, usize) {
        let state = self.state();
        (state.joined, state.renewed)
    }

    /// Answers with an error from now on, and closes the streams; or stops doing so.
    pub(crate) fn refuse(&self, refuses: bool) {
        let mut state = self.state();
        state.refuses = refuses;
        state.streams.clear();
    }
}

fn serve(stream: Stream, shared: &Shared, cluster: &Cluster) -> std::io::Result<()> {
    let (state, news) = &**shared;
    let mut reader = BufReader::new(stream);
    while let Some((request, body)) = read_request(&mut reader)? {
        let writer = reader.get_mut();
        let is_member = writer.conn.peer_certificates().is_some();
        if request.starts_with("GET /evergate/v1/ca ") {
            write_text(writer, &cluster.authority.pem())?;
            continue;
        }
        if request.starts_with("POST /evergate/v1/hosts/network1/join ") {
            let expires_at = {
                let mut state = wait_for_letters(shared);
                state.joined += 1;
                if state.expires_at > 0 { state.expires_at } else { IN_LONG }
            };
            write_text(writer, &serde_json::to_string(&cluster.admit(&body, expires_at))?)?;
            continue;
        }
        assert!(is_member, "the host's certificate comes with every connection");
        if request.starts_with("POST /evergate/v1/hosts/network1/letters ") {
            state.lock().unwrap().letters += 1;
            news.notify_all();
        }
        let denies = {
            let mut state = state.lock().unwrap();
            state.denied += usize::from(state.denies);
            state.denies
        };
        if denies {
            writer.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")?;
        } else if request.starts_with("POST /evergate/v1/hosts/network1/renew ") {
            let asked: RenewRequest = serde_json::from_slice(&body).unwrap();
            wait_for_letters(shared).renewed += 1;
            write_text(writer, &serde_json::to_string(&cluster.certify(&asked.public_key, IN_LONG))?)?;
        } else if request.starts_with("POST /evergate/v1/hosts/network1/letters ") {
            writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        } else if state.lock().unwrap().refuses {
            writer.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
        } else if request.starts_with("POST /evergate/v1/hosts/network1/report ") {
            let report: HostReport = serde_json::from_slice(&body).unwrap();
            let mut state = state.lock().unwrap();
            let is_next = |last: &HostReport| last.incarnation != report.incarnation || last.sequence < report.sequence;
            if state.reports.last().is_none_or(is_next) {
                state.reports.push(report);
            }
            writer.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
        } else if request.starts_with("GET /evergate/v1/hosts/network1/stream?letters=true ") {
            let (sender, lines) = channel();
            {
                let mut state = state.lock().unwrap();
                assert!(!state.reports.is_empty(), "a host reports before it asks");
                sender.send(Downstream::Snapshot { config: state.config.clone() }).unwrap();
                state.streams.push(sender);
            }
            return send_lines(reader.into_inner(), &lines);
        } else {
            writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        }
    }
    Ok(())
}

/// Waits for what must come before a certificate is given.
fn wait_for_letters(shared: &Shared) -> MutexGuard<'_, State> {
    let (state, news) = &**shared;
    let mut state = state.lock().unwrap();
    state.waiting += 1;
    let waits = |state: &mut State| state.certifies_after_letters && state.joined > 0 && state.letters == 0;
    let mut state = news.wait_while(state, waits).unwrap();
    state.waiting -= 1;
    state
}

fn write_text(writer: &mut Stream, text: &str) -> std::io::Result<()> {
    writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
}

fn send_lines(mut writer: Stream, lines: &Receiver<Downstream>) -> std::io::Result<()> {
    writer.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    loop {
        let said = match lines.recv_timeout(Duration::from_secs(2)) {
            Ok(said) => said,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Downstream::Ping { revision: 0 },
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return writer.write_all(b"0\r\n\r\n"),
        };
        let mut line = serde_json::to_vec(&said)?;
        line.push(b'\n');
        // In two chunks, cut anywhere: what the host reads are lines, not chunks.
        for part in line.chunks(line.len() / 2 + 1) {
            writer.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
            writer.write_all(part)?;
            writer.write_all(b"\r\n")?;
        }
    }
}

/// `None` when the connection is closed. Bodies have a length.
fn read_request(reader: &mut BufReader<Stream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut request = String::new();
    if reader.read_line(&mut request)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((request, body)))
}
