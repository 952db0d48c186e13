//! Senders and receivers of the measurement: processes of its own executable, told by their arguments.
//!
//! TCP measures bytes of one stream; UDP measures datagrams of 18 bytes (the smallest Ethernet frame) that
//! arrive, sent as fast as one process can.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const RECEIVE: &str = "--receive";
const SEND: &str = "--send";
const PORT: u16 = 7777;
/// How long one run of a sender lasts.
const RUN: Duration = Duration::from_secs(2);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One stream.
    Tcp,
    /// Datagrams of 18 bytes.
    Udp,
}

/// Becomes a sender or a receiver if the arguments say so. Call early in `main`.
pub(crate) fn run_if_asked() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, RECEIVE, ..] => receive()?,
        [_, SEND, kind, address, ..] => send(kind, address.parse().context("the receiver's address")?)?,
        _ => return Ok(()),
    }
    std::process::exit(0);
}

/// Counts what arrives; tells on standard output what came since the last line on standard input.
fn receive() -> Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("failed to listen")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("failed to bind")?;
    let bytes = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 17];
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                bytes.fetch_add(length as u64, Ordering::Relaxed);
            }
        }
    });
    let datagrams = Arc::clone(&count);
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while socket.recv(&mut buffer).is_ok() {
            datagrams.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("ready");
    for line in std::io::stdin().lines() {
        line.context("the measurement is gone")?;
        println!("{}", count.swap(0, Ordering::Relaxed));
    }
    Ok(())
}

/// Sends for [`RUN`]; prints how many seconds it really took.
fn send(kind: &str, to: Ipv4Addr) -> Result<()> {
    let to = SocketAddr::from((to, PORT));
    let start = Instant::now();
    if kind == "tcp" {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(20)).context("failed to connect")?;
        let buffer = vec![0; 1 << 17];
        let start = Instant::now();
        while start.elapsed() < RUN {
            stream.write_all(&buffer).context("failed to send")?;
        }
        println!("{}", start.elapsed().as_secs_f64());
        return Ok(());
    }
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("failed to bind")?;
    socket.connect(to).context("failed to connect")?;
    while start.elapsed() < RUN {
        for _ in 0..64 {
            // A full queue is what is measured.
            let _ = socket.send(&[0; 18]);
        }
    }
    println!("{}", start.elapsed().as_secs_f64());
    Ok(())
}

/// A running receiver.
pub(crate) struct Receiver {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Receiver {
    /// Starts it; `own` runs this executable at the receiver's place.
    pub(crate) fn start(mut own: Command) -> Result<Self> {
        let mut child = own.arg(RECEIVE).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("a receiver")?;
        let input = child.stdin.take().context("a receiver without input")?;
        let output = BufReader::new(child.stdout.take().context("a receiver without output")?);
        let mut receiver = Self { child, input, output };
        if receiver.line()? != "ready" {
            bail!("the receiver did not start");
        }
        Ok(receiver)
    }

    /// Runs one sender; what arrived per second: bits, or datagrams.
    pub(crate) fn rate(&mut self, mut own: Command, kind: Kind, to: Ipv4Addr) -> Result<f64> {
        self.take()?;
        let word = match kind {
            Kind::Tcp => "tcp",
            Kind::Udp => "udp",
        };
        let done = own.args([SEND, word, &to.to_string()]).output().context("failed to run the sender")?;
        if !done.status.success() {
            bail!("the sender failed: {}", String::from_utf8_lossy(&done.stderr).trim());
        }
        let seconds: f64 = String::from_utf8_lossy(&done.stdout).trim().parse().context("the sender's time")?;
        let count = self.take()? as f64 / seconds;
        Ok(if kind == Kind::Tcp { count * 8.0 } else { count })
    }

    fn take(&mut self) -> Result<u64> {
        self.input.write_all(b"\n").context("the receiver is gone")?;
        self.line()?.parse().context("the receiver's count")
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("the receiver is gone")?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
