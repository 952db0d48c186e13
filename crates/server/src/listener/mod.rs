//! The listening socket: one port for everybody, plain or with TLS.
//!
//! The first byte tells the two apart: a TLS client begins with 0x16, HTTP with a letter. Small writes go out at
//! once (a change for a host is one small line). How long somebody may hold a connection is [`connection`]'s matter;
//! here it is how long until there is one. How many connections there may be that nothing is answered on is
//! [`waiting`]'s.

mod connection;
mod waiting;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use evergate_model::join::SERVER_NAME;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

pub(crate) use connection::{Connection, Peer};

use crate::seldom::Seldom;
use crate::tls::Tls;
use connection::Wire;
use waiting::Waiting;

/// First byte of a TLS connection: a record of the handshake (RFC 8446 §5.1).
const TLS: u8 = 0x16;

/// Connections that wait, at most, whatever the process may open: each takes memory for what it may say. A thousand hosts
/// that come back at once have two each for a moment.
const MOST_WAITING: usize = 8192;

/// Connections that are ready and not taken yet.
const READY: usize = 64;

/// How long the rest of what a refused client said is read, so that it hears why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a client of plain HTTP is told where TLS is needed.
const SPEAK_TLS: &str = "This port speaks TLS: use https:// in place of http://.\n";

/// How long things may take, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long a write may wait for the peer.
    pub(crate) patience: Duration,
    /// How long a connection may be held without anything being answered on it: several times what an answer
    /// takes, and the pause between a client's requests.
    pub(crate) silence: Duration,
    /// How long after an answer a connection does not count as one that waits: longer than a host's stream is ever
    /// silent.
    pub(crate) quiet: Duration,
    /// How long a handshake may take.
    pub(crate) handshake: Duration,
    /// Connections that wait, at most.
    pub(crate) most_waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            silence: Duration::from_secs(75),
            quiet: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            most_waiting: MOST_WAITING,
        }
    }
}

impl Limits {
    /// Those of a process that may open so many files: half of them are for what is being served, and the database.
    pub(crate) fn for_open_files(open_files: u64) -> Self {
        let half = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
        Self { most_waiting: half.min(MOST_WAITING), ..Self::default() }
    }
}

/// A listening socket.
pub(crate) struct Patient {
    ready: mpsc::Receiver<Connection>,
    address: SocketAddr,
}

/// What each connection is made with.
struct Door {
    tls: Arc<Tls>,
    /// Whether plain HTTP is turned away.
    only_tls: bool,
    limits: Limits,
    waiting: Arc<Waiting>,
    ready: mpsc::Sender<Connection>,
    complaints: Seldom<IpAddr>,
}

impl Patient {
    /// Begins to take connections; `only_tls` turns away plain HTTP.
    ///
    /// # Errors
    ///
    /// When the socket does not know its address.
    pub(crate) fn new(inner: TcpListener, tls: Arc<Tls>, only_tls: bool, limits: Limits) -> io::Result<Self> {
        let address = inner.local_addr()?;
        let (sender, ready) = mpsc::channel(READY);
        let waiting = Waiting::new(limits.most_waiting);
        let door = Door { tls, only_tls, limits, waiting, ready: sender, complaints: Seldom::default() };
        tokio::spawn(take(inner, Arc::new(door)));
        Ok(Self { ready, address })
    }
}

impl Listener for Patient {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => {
                let address = connection.peer().address;
                (connection, address)
            }
            // Whoever takes connections ends with the process.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// Takes connections until nobody wants them any more.
async fn take(mut inner: TcpListener, door: Arc<Door>) {
    loop {
        let (stream, address) = tokio::select! {
            accepted = Listener::accept(&mut inner) => accepted,
            () = door.ready.closed() => return,
        };
        let mut place = door.waiting.enter(address.ip());
        let door = Arc::clone(&door);
        tokio::spawn(async move {
            let opened = tokio::select! {
                opened = door.open(stream, address) => opened,
                () = poll_fn(|cx| place.poll_lost(cx)) => None,
            };
            if let Some((wire, peer)) = opened {
                // If nobody takes it, the server stops.
                let _ = door.ready.send(Connection::new(wire, peer, door.limits, place)).await;
            }
        });
    }
}

impl Door {
    /// Finds out what a connection is, and makes it ready.
    async fn open(&self, stream: TcpStream, address: SocketAddr) -> Option<(Wire, Peer)> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %address, "failed to switch delays off for a connection");
        }
        let mut first = [0];
        // Silence until then is as good as silence after it.
        match timeout(self.limits.silence, stream.peek(&mut first)).await {
            Ok(Ok(1)) => {}
            _ => return None,
        }
        if first[0] == TLS {
            return self.shake_hands(stream, address).await;
        }
        let peer = Peer { address, is_secure: false, is_host: false, shown: None };
        if self.only_tls {
            turn_away(stream).await;
            return None;
        }
        Some((Wire::Plain(stream), peer))
    }

    async fn shake_hands(&self, stream: TcpStream, address: SocketAddr) -> Option<(Wire, Peer)> {
        match timeout(self.limits.handshake, self.secure(stream, address)).await {
            Ok(Ok(secured)) => Some(secured),
            Ok(Err(error)) => {
                if let Some(untold) = self.complaints.speak(address.ip()) {
                    tracing::info!(%address, untold, "TLS failed: {error}{}", hint(&error));
                }
                None
            }
            Err(_) => {
                tracing::debug!(%address, "a handshake took too long");
                None
            }
        }
    }

    async fn secure(&self, stream: TcpStream, address: SocketAddr) -> io::Result<(Wire, Peer)> {
        let local = stream.local_addr()?.ip();
        let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
        let is_host = hello.client_hello().server_name() == Some(SERVER_NAME);
        let config = self.tls.config_for(is_host, local).map_err(io::Error::other)?;
        let stream = hello.into_stream(config).await?;
        let shown = self.tls.look_at(stream.get_ref().1.peer_certificates());
        let peer = Peer { address, is_secure: true, is_host, shown };
        Ok((Wire::Secure(Box::new(stream)), peer))
    }
}

/// What may be behind a failure, where the client said so.
fn hint(error: &io::Error) -> &'static str {
    use rustls::AlertDescription as Alert;
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(Alert::UnknownCA | Alert::BadCertificate)) => {
            "; the client does not trust this server's certificate: give it the authority's ('evergate cluster ca')"
        }
        Some(rustls::Error::AlertReceived(Alert::CertificateExpired)) => {
            "; the client says that this server's certificate has expired: compare the two clocks"
        }
        _ => "",
    }
}

/// Says in plain HTTP that TLS is needed, and listens for as long as it takes the client to hear it.
async fn turn_away(mut stream: TcpStream) {
    let length = SPEAK_TLS.len();
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{SPEAK_TLS}"
    );
    let say = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed with unread bytes, the connection would be reset, and the answer lost.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(LAST_WORDS, say).await;
}

#[cfg(test)]
mod tests;
