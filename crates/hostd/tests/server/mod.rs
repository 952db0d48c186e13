//! A server for one host: enough HTTP to stream lines and take reports.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use evergate_model::host::{HostConfig, HostReport};
use evergate_model::stream::{Change, Downstream};

pub(crate) struct Server {
    url: String,
    state: Arc<Mutex<State>>,
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
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || drop(serve(stream.unwrap(), &shared)));
            }
        });
        Self { url, state }
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

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some((request, body)) = read_request(&mut reader)? {
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
        } else if request.starts_with("GET /evergate/v1/hosts/network1/stream ") {
            let (sender, lines) = channel();
            {
                let mut state = state.lock().unwrap();
                assert!(!state.reports.is_empty(), "a host reports before it asks");
                sender.send(Downstream::Snapshot { config: state.config.clone() }).unwrap();
                state.streams.push(sender);
            }
            return send_lines(writer, &lines);
        } else {
            writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        }
    }
    Ok(())
}

fn send_lines(mut writer: TcpStream, lines: &Receiver<Downstream>) -> std::io::Result<()> {
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
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut request = String::new();
    if reader.read_line(&mut request)? == 0 {
        return Ok(None);
    }
    let (mut length, mut authorized) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
        authorized |= name.eq_ignore_ascii_case("authorization") && value == "Bearer letmein";
    }
    assert!(authorized, "the token comes with every request");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((request, body)))
}
