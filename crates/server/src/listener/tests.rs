use axum::routing::get;
use evergate_config::settings::TlsSettings;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::*;
use crate::membership::Members;
use crate::private_file::tests::TempDir;
use crate::store::Store;

/// A running listener, with what it takes to know it.
struct Served {
    address: SocketAddr,
    roots: rustls::RootCertStore,
    _stop: watch::Sender<bool>,
    _dir: TempDir,
}

impl Served {
    async fn start(routes: axum::Router, only_tls: bool, limits: Limits) -> Self {
        Self::start_with(&TlsSettings { only: only_tls, ..TlsSettings::default() }, routes, limits).await
    }

    async fn start_with(settings: &TlsSettings, routes: axum::Router, limits: Limits) -> Self {
        let dir = TempDir::new();
        let store = Arc::new(Store::open(&dir.path().join("db")).unwrap());
        let members = Arc::new(Members::open(store).unwrap());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(members.authority().certificate().clone()).unwrap();
        let tls = Arc::new(Tls::new(members, settings, vec!["localhost".into()]).unwrap());
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(crate::tls::keep_fresh(Arc::clone(&tls), stopping));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patient = Patient::new(listener, tls, settings.only, limits).unwrap();
        let app = routes.into_make_service_with_connect_info::<Peer>();
        tokio::spawn(async move { axum::serve(patient, app).await });
        Self { address, roots, _stop: stop, _dir: dir }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn secure(&self, name: &str) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        connector(&self.roots, None).connect(name, self.connect().await).await
    }

    /// Asks as a client of the API that shows a certificate.
    async fn answers(&self, client: &Client) -> io::Result<()> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut peer = connector(&self.roots, Some(client)).connect(name, self.connect().await).await?;
        // One that is refused is told so after its own part of the handshake.
        peer.write_all(REQUEST).await?;
        let mut text = String::new();
        timeout(DEADLINE, peer.read_to_string(&mut text)).await.expect("an answer, or none")?;
        assert!(text.ends_with("whole"), "{text}");
        Ok(())
    }
}

/// Who speaks TLS with servers of these authorities.
fn connector(roots: &rustls::RootCertStore, client: Option<&Client>) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_root_certificates(roots.clone());
    TlsConnector::from(Arc::new(match client {
        Some(client) => config.with_client_auth_cert(vec![client.certificate.clone()], client.key.clone_key()).unwrap(),
        None => config.with_no_client_auth(),
    }))
}

/// A client's certificate, and who signed it.
struct Client {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    authority: String,
}

impl Client {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().signed_by(&key, &issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Self { certificate: certificate.der().clone(), key, authority }
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
const DEADLINE: Duration = Duration::from_secs(20);

fn whole() -> axum::Router {
    axum::Router::new().route("/", get(|| async { "whole" }))
}

async fn answer(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> String {
    stream.write_all(REQUEST).await.unwrap();
    let mut text = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut text)).await.expect("an answer").unwrap();
    text
}

#[tokio::test]
async fn one_port_answers_plain_and_tls_by_name_and_by_address() {
    let served = Served::start(whole(), false, Limits::default()).await;
    assert!(answer(served.connect().await).await.ends_with("whole"));
    for name in ["localhost", "127.0.0.1"] {
        assert!(answer(served.secure(name).await.unwrap()).await.ends_with("whole"), "{name}");
    }
    let error = served.secure("elsewhere.example").await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

#[tokio::test]
async fn plain_http_is_told_to_speak_tls_where_it_must() {
    let served = Served::start(whole(), true, Limits::default()).await;
    let told = answer(served.connect().await).await;
    assert!(told.starts_with("HTTP/1.1 400 ") && told.contains("https://"), "{told}");
    assert!(answer(served.secure("localhost").await.unwrap()).await.ends_with("whole"));
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_let_go() {
    for secure in [false, true] {
        let (dropped, mut gone) = mpsc::channel::<()>(1);
        let endless = axum::Router::new().route("/", get(move || endless(dropped.clone())));
        let patience = Duration::from_millis(200);
        let served = Served::start(endless, false, Limits { patience, ..Limits::default() }).await;
        let start = Instant::now();
        // The peer is kept, and does not read.
        let _peer: Box<dyn std::any::Any> = if secure {
            let mut peer = served.secure("localhost").await.unwrap();
            peer.write_all(REQUEST).await.unwrap();
            Box::new(peer)
        } else {
            let mut peer = served.connect().await;
            peer.write_all(REQUEST).await.unwrap();
            Box::new(peer)
        };
        // The body goes away with its connection, and its sender with it.
        timeout(DEADLINE, gone.recv()).await.expect("the connection is closed");
        assert!(start.elapsed() >= patience);
    }
}

#[tokio::test]
async fn a_peer_that_asks_for_nothing_whole_is_let_go() {
    let silence = Duration::from_millis(200);
    let served = Served::start(whole(), false, Limits { silence, ..Limits::default() }).await;
    let start = Instant::now();
    assert_closed(served.connect().await, b"GET / HTTP/1.1\r\nX: ").await;
    assert_closed(served.secure("localhost").await.unwrap(), b"GET / HTTP/1.1\r\nX: ").await;
    assert!(start.elapsed() >= silence);
    // Nothing at all.
    let mut peer = served.connect().await;
    assert_eq!(timeout(DEADLINE, peer.read(&mut [0])).await.expect("the connection is closed").unwrap(), 0);
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let handshake = Duration::from_millis(200);
    let served = Served::start(whole(), false, Limits { handshake, ..Limits::default() }).await;
    let start = Instant::now();
    // A record's head, and then a byte of it at a time.
    assert_closed(served.connect().await, &[TLS, 3, 1, 2, 0, 1, 0]).await;
    assert!(start.elapsed() >= handshake);
    assert!(answer(served.secure("localhost").await.unwrap()).await.ends_with("whole"));
}

/// Sends a beginning, and then one byte after the other, until the other side has enough.
async fn assert_closed(mut peer: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, beginning: &[u8]) {
    let closed = async {
        if peer.write_all(beginning).await.is_err() {
            return;
        }
        loop {
            let mut byte = [0];
            tokio::select! {
                read = peer.read(&mut byte) => if !matches!(read, Ok(1)) { return },
                () = tokio::time::sleep(Duration::from_millis(20)) => {
                    if peer.write_all(b"x").await.is_err() || peer.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    timeout(DEADLINE, closed).await.expect("the connection is closed");
}

#[tokio::test]
async fn the_operators_certificate_is_shown_and_read_again_when_it_changes() {
    let dir = TempDir::new();
    let file = |name: &str| dir.path().join(name);
    // The key first, as tools do that renew certificates.
    let renew = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        std::fs::write(file("cert"), certificate.pem()).unwrap();
        certificate.der().clone()
    };
    let first = renew();
    let settings = TlsSettings { cert_file: Some(file("cert")), key_file: Some(file("key")), ..TlsSettings::default() };
    let served = Served::start_with(&settings, whole(), Limits::default()).await;
    assert_eq!(shown(&served, &first).await.unwrap(), "whole");
    std::fs::write(file("key"), "nonsense").unwrap();
    let second = renew();
    let deadline = Instant::now() + DEADLINE;
    while shown(&served, &second).await.is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(shown(&served, &first).await.is_err());
}

#[tokio::test]
async fn clients_show_a_certificate_where_they_must() {
    let dir = TempDir::new();
    let (one, other) = (Client::new(), Client::new());
    let ca_file = dir.path().join("ca");
    std::fs::write(&ca_file, &one.authority).unwrap();
    let settings = TlsSettings { only: true, ca_file: Some(ca_file.clone()), ..TlsSettings::default() };
    let served = Served::start_with(&settings, whole(), Limits::default()).await;
    let mut peer = served.secure("localhost").await.unwrap();
    let refused = timeout(DEADLINE, peer.read(&mut [0])).await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("CertificateRequired"), "{refused}");
    served.answers(&one).await.unwrap();
    served.answers(&other).await.unwrap_err();
    // Hosts have certificates of the cluster's, and whoever joins has none.
    assert!(answer(served.secure(SERVER_NAME).await.unwrap()).await.ends_with("whole"));

    // The authority is withdrawn, and another one has its place.
    std::fs::write(&ca_file, &other.authority).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while served.answers(&other).await.is_err() {
        assert!(Instant::now() < deadline, "the file is not read again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    served.answers(&one).await.unwrap_err();
    assert!(answer(served.secure(SERVER_NAME).await.unwrap()).await.ends_with("whole"));
}

/// Asks a server that is to show this certificate.
async fn shown(served: &Served, certificate: &CertificateDer<'static>) -> io::Result<&'static str> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector(&roots, None).connect(name, served.connect().await).await?;
    assert!(answer(stream).await.ends_with("whole"));
    Ok("whole")
}

/// What somebody may hold a connection with.
#[derive(Clone, Copy, Debug)]
enum Hold {
    /// A beginning, or none.
    Beginning(&'static [u8]),
    /// A handshake, and nothing more.
    Handshake,
    /// A request that is answered, and no other.
    Answered,
}

#[tokio::test]
async fn one_address_that_holds_connections_keeps_nobody_out() {
    const MOST: usize = 8;
    let limits = Limits { most_waiting: MOST, quiet: Duration::from_millis(50), ..Limits::default() };
    let ways = [b"".as_slice(), b"G", b"GET / HTTP/1.1\r\nX: ", &[TLS]].map(Hold::Beginning);
    for way in ways.into_iter().chain([Hold::Handshake, Hold::Answered]) {
        let served = Served::start(whole(), false, limits).await;
        // Of another address, and slow.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = socket.connect(served.address).await.unwrap();
        other.write_all(&REQUEST[..10]).await.unwrap();

        let (closed, mut all_closed) = mpsc::unbounded_channel();
        for _ in 0..3 * MOST {
            let mut held = hold(&served, way).await;
            let closed = closed.clone();
            tokio::spawn(async move {
                // With an end or with an error.
                while held.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                let _ = closed.send(());
            });
        }
        for n in 0..2 * MOST {
            timeout(DEADLINE, all_closed.recv()).await.unwrap_or_else(|_| panic!("{way:?}: only {n} are closed"));
        }
        other.write_all(&REQUEST[10..]).await.unwrap();
        let mut text = String::new();
        timeout(DEADLINE, other.read_to_string(&mut text)).await.expect("an answer").unwrap();
        assert!(text.ends_with("whole"), "{way:?}: {text}");
    }
}

trait Held: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Held for T {}

async fn hold(served: &Served, way: Hold) -> Box<dyn Held> {
    match way {
        Hold::Beginning(beginning) => {
            let mut peer = served.connect().await;
            peer.write_all(beginning).await.unwrap();
            Box::new(peer)
        }
        Hold::Handshake => Box::new(served.secure("localhost").await.unwrap()),
        Hold::Answered => {
            let mut peer = served.connect().await;
            peer.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut text = Vec::new();
            while !text.ends_with(b"whole") {
                let mut some = [0; 512];
                let read = timeout(DEADLINE, peer.read(&mut some)).await.expect("an answer").unwrap();
                assert!(read > 0, "{}", String::from_utf8_lossy(&text));
                text.extend(&some[..read]);
            }
            Box::new(peer)
        }
    }
}

#[test]
fn half_of_what_may_be_open_is_for_connections_that_wait() {
    assert_eq!(Limits::for_open_files(1024).most_waiting, 512);
    assert_eq!(Limits::for_open_files(u64::MAX).most_waiting, MOST_WAITING);
}

/// A body without an end, that owns `_held`.
struct Endless {
    _held: mpsc::Sender<()>,
}

impl http_body::Body for Endless {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(&[0; 65536])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        let _ = self._held.try_send(());
    }
}

async fn endless(held: mpsc::Sender<()>) -> axum::response::Response {
    axum::response::Response::new(axum::body::Body::new(Endless { _held: held }))
}
