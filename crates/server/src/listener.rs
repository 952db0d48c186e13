//! The listening socket, with three habits that a plain one has not.
//!
//! Small writes go out at once (a change for a host is one small line). And a peer that does not take
//! what is written to it for a while is let go: otherwise a host that was switched off, or a client
//! that stopped reading, would hold its connection and what is queued for it for as long as TCP is
//! willing to try. Nor does anybody hold a connection who asks for nothing whole: one that sends a header
//! byte by byte, or keeps a connection it does not use. Streams of hosts are never silent for so long.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

/// How long a write may wait for the peer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection may be held without anything being answered on it: several times what an answer
/// takes, and the pause between a client's requests.
const SILENCE: Duration = Duration::from_secs(75);

/// A listening socket.
pub(crate) struct Patient {
    inner: TcpListener,
    patience: Duration,
    silence: Duration,
}

impl Patient {
    pub(crate) fn new(inner: TcpListener) -> Self {
        Self { inner, patience: PATIENCE, silence: SILENCE }
    }
}

impl Listener for Patient {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let (inner, address) = Listener::accept(&mut self.inner).await;
        if let Err(error) = inner.set_nodelay(true) {
            tracing::debug!(%error, %address, "failed to switch delays off for a connection");
        }
        let silent = Box::pin(sleep(self.silence));
        (Connection { inner, patience: self.patience, waiting: None, silence: self.silence, silent }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// An accepted connection.
pub(crate) struct Connection {
    inner: TcpStream,
    patience: Duration,
    /// Runs out when the write that waits now has waited for too long.
    waiting: Option<Pin<Box<Sleep>>>,
    silence: Duration,
    /// Runs out when nothing was written for too long.
    silent: Pin<Box<Sleep>>,
}

impl Connection {
    /// Passes a write's outcome on; while it waits, watches the clock.
    fn timed<T>(&mut self, outcome: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(waiting.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read what it is sent")))
    }
}

impl Connection {
    /// Notes that something was answered. A flush is nothing: it comes with every look at the connection.
    fn wrote(&mut self, outcome: &Poll<io::Result<usize>>) {
        if matches!(outcome, Poll::Ready(Ok(bytes)) if *bytes > 0) {
            self.silent.as_mut().reset(Instant::now() + self.silence);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        // Looked at also when bytes came: few bytes at a time are no excuse.
        if self.silent.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing was asked for in time")));
        }
        outcome
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(&outcome);
        self.timed(outcome, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(&outcome);
        self.timed(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(cx);
        self.timed(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dropped, mut gone) = tokio::sync::mpsc::channel::<()>(1);
        let endless = axum::Router::new().route("/", get(move || endless(dropped.clone())));
        let patient = Patient { inner: listener, patience: Duration::from_millis(200), silence: SILENCE };
        tokio::spawn(async move { axum::serve(patient, endless).await });

        let peer = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        peer.writable().await.unwrap();
        assert_eq!(peer.try_write(request).unwrap(), request.len());
        let start = Instant::now();
        // The body goes away with its connection, and its sender with it.
        tokio::time::timeout(Duration::from_secs(20), gone.recv()).await.expect("the connection is closed");
        assert!(start.elapsed() >= Duration::from_millis(200));
        drop(peer);
    }

    #[tokio::test]
    async fn a_peer_that_asks_for_nothing_whole_is_let_go() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let patient = Patient { inner: listener, patience: PATIENCE, silence: Duration::from_millis(200) };
        let routes = axum::Router::new().route("/", get(|| async { "whole" }));
        tokio::spawn(async move { axum::serve(patient, routes).await });

        let peer = TcpStream::connect(address).await.unwrap();
        let start = Instant::now();
        let mut sent = 0;
        // A header without an end, one byte after the other.
        let closed = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let byte = b"GET / HTTP/1.1\r\nX: ".get(sent).copied().unwrap_or(b'x');
                if peer.try_write(&[byte]).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                    return;
                }
                sent += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        closed.await.expect("the connection is closed");
        assert!(start.elapsed() >= Duration::from_millis(200));
    }

    /// A body without an end, that owns `_held`.
    struct Endless {
        _held: tokio::sync::mpsc::Sender<()>,
    }

    impl http_body::Body for Endless {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
            Poll::Ready(Some(Ok(http_body::Frame::data(bytes::Bytes::from_static(&[0; 65536])))))
        }
    }

    impl Drop for Endless {
        fn drop(&mut self) {
            let _ = self._held.try_send(());
        }
    }

    async fn endless(held: tokio::sync::mpsc::Sender<()>) -> axum::response::Response {
        axum::response::Response::new(axum::body::Body::new(Endless { _held: held }))
    }
}
