//! What instances and the world outside serve: a page that says who asked, and an echo.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::probe;

/// Longest time to wait for a peer that says nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// Serves one page for ever: who serves it, and which address the request came from, by which source
/// NAT can be seen.
pub(crate) fn serve(name: &str, port: u16) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("failed to serve on port {port}"))?;
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let name = name.to_owned();
        std::thread::spawn(move || {
            // A client that went away is its own affair.
            let _ = answer(stream, &name);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let from = stream.peer_addr()?.ip();
    let request = BufReader::new(&stream);
    // Bounded: the request itself does not matter, only its end does.
    for line in request.take(16 * 1024).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let page = format!("Hello from {name}. Your address is {from}.\n");
    let length = page.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
    )
}

/// Fetches a page, given as `http://ADDRESS[:PORT]/…`, and returns its body.
pub(crate) fn fetch(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("'{url}' does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address: SocketAddr = match host.parse() {
        Ok(address) => address,
        Err(_) => (host.parse::<Ipv4Addr>().with_context(|| format!("'{host}' is not an address"))?, 80).into(),
    };
    let mut stream =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("failed to connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE)).context("failed to set a time limit")?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").context("failed to ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer from {address}"))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("{address} answered: {answer}"),
    }
}

/// Sends every datagram back to where it came from, for ever.
pub(crate) fn echo(port: u16) -> Result<()> {
    let socket =
        UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("failed to echo on port {port}"))?;
    probe::wait_in_peace(&socket).context("failed to let datagrams wait for their turn")?;
    let mut buffer = [0; 2048];
    loop {
        // Errors of earlier answers (nobody there any more) arrive here; the next datagram is not theirs.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let _ = socket.send_to(&buffer[..length], from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_says_where_the_request_came_from() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || answer(listener.accept().unwrap().0, "vm1"));
        let page = fetch(&format!("http://127.0.0.1:{port}/")).unwrap();
        assert_eq!(page, "Hello from vm1. Your address is 127.0.0.1.\n");
    }

    #[test]
    fn what_is_no_url_is_refused() {
        assert!(fetch("web").is_err());
        assert!(fetch("http://name/").is_err());
    }
}
