//! A server for one host: enough HTTP over TLS to let it in, stream lines and take reports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use evergate_model::host::{HostConfig, HostReport};
use evergate_model::join::{JoinRequest, JoinToken, Membership, SERVER_NAME};
use evergate_model::stream::{Change, Downstream};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use sha2::{Digest as _, Sha256};

type Stream = StreamOwned<ServerConnection, TcpStream>;

pub(crate) struct Server {
    url: String,
    state: Arc<Mutex<State>>,
    cluster: Arc<Cluster>,
}

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
    fn admit(&self, body: &[u8]) -> Membership {
        let asked: JoinRequest = serde_json::from_slice(body).unwrap();
        assert_eq!((&asked.token, &asked.secret), (&self.token.id, &self.token.secret));
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&HostKey::parse(&asked.public_key), &self.issuer).unwrap();
        Membership { certificate: certificate.pem(), authorities: self.authority.pem(), expires_at: 4_000_000_000 }
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
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let (state, cluster) = (Arc::new(Mutex::new(State::default())), Arc::new(Cluster::new()));
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
        let mut state = self.state.lock().unwrap();
        if let Some(change) = Change::between(&state.config, &config) {
            state.streams.retain(|stream| stream.send(Downstream::Change(change.clone())).is_ok());
        }
        state.config = config;
    }

    pub(crate) fn last_report(&self) -> Option<HostReport> {
        self.state.lock().unwrap().reports.last().cloned()
    }

    /// Answers with an error from now on, and closes the streams; or stops doing so.
    pub(crate) fn refuse(&self, refuses: bool) {
        let mut state = self.state.lock().unwrap();
        state.refuses = refuses;
        state.streams.clear();
    }
}

fn serve(stream: Stream, state: &Mutex<State>, cluster: &Cluster) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((request, body)) = read_request(&mut reader)? {
        let writer = reader.get_mut();
        let is_member = writer.conn.peer_certificates().is_some();
        if request.starts_with("GET /evergate/v1/ca ") {
            write_text(writer, &cluster.authority.pem())?;
            continue;
        }
        if request.starts_with("POST /evergate/v1/hosts/network1/join ") {
            write_text(writer, &serde_json::to_string(&cluster.admit(&body))?)?;
            continue;
        }
        assert!(is_member, "the host's certificate comes with every connection");
        if state.lock().unwrap().refuses {
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
