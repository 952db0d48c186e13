//! Loads: processes of the measurement's own executable, told by their arguments.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use evergate_kernel::conntrack::{FlowOp, FlowTable};
use evergate_kernel::rt::NetnsFd;
use evergate_model::Flow;
use evergate_model::flow::{L4, Tuple, protocol};

/// Where the connections lead: RFC 2544's addresses for measurements.
pub(crate) const SINK: &str = "198.18.0.0/15";
/// Enough for the rate to settle, and for 100,000 entries at the higher one.
pub(crate) const SECONDS: u32 = 10;
const OPEN: &str = "--open";
const FILL: &str = "--fill";
const ANSWER: &str = "--answer";
const CONNECT: &str = "--connect";
/// The server's ports: one for each of those that connect, so that a client's own ports, which it cannot use again to the
/// same one for a minute, do not run out.
const PORTS: RangeInclusive<u16> = 7778..=7785;
/// Clients that open the connections: sockets with a port of their own.
const CLIENTS: u32 = 1_000;
/// Entries that are put in at once.
const BATCH: usize = 4_096;
/// How long connections are opened and closed.
const RUN: Duration = Duration::from_secs(3);

/// Becomes a load if the arguments say so. Call early in `main`.
pub(crate) fn run_if_asked() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, OPEN, rate] => open(rate.parse().context("a rate")?)?,
        [_, FILL, netns, first, count] => {
            fill(netns, first.parse().context("the first number")?, count.parse().context("a count")?)?;
        }
        [_, ANSWER] => answer()?,
        [_, CONNECT, address] => connect(address.parse().context("an address")?)?,
        _ => return Ok(()),
    }
    std::process::exit(0);
}

/// Opens connections at a rate, for [`SECONDS`]; `own` runs this executable at the client's place.
pub(crate) fn opening(mut own: Command, rate: u32) -> Result<()> {
    let status = own.args([OPEN, &rate.to_string()]).status().context("failed to start the opener")?;
    ensure!(status.success(), "the opener failed: {status}");
    Ok(())
}

fn open(rate: u32) -> Result<()> {
    let bind = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("failed to bind");
    let sockets = (0..CLIENTS).map(bind).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
    for n in 0..rate * SECONDS {
        let due = start + Duration::from_secs_f64(f64::from(n) / f64::from(rate));
        if let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| *wait > Duration::from_millis(1)) {
            std::thread::sleep(wait);
        }
        let to = SocketAddr::from((Ipv4Addr::from(first + n % 50_000), (1024 + n / 50_000) as u16));
        sockets[(n % CLIENTS) as usize].send_to(b"open", to).context("failed to send")?;
    }
    Ok(())
}

/// Puts established connections through source NAT into a namespace's table; `own` runs this executable
/// where the namespace has this name.
pub(crate) fn filling(mut own: Command, netns: &str, first: u32, count: u32) -> Result<()> {
    let status = own.args([FILL, netns, &first.to_string(), &count.to_string()]).status().context("the filler")?;
    if !status.success() {
        bail!("the filler failed: {status}");
    }
    Ok(())
}

fn fill(netns: &str, first: u32, count: u32) -> Result<()> {
    let netns = NetnsFd::open(&Path::new("/run/netns").join(netns)).map_err(anyhow::Error::from)?;
    let mut table = FlowTable::open(&netns).map_err(anyhow::Error::from)?;
    let ops: Vec<FlowOp> = (first..first + count).map(|n| FlowOp::Create(flow(n))).collect();
    for batch in ops.chunks(BATCH) {
        let refused = table.apply(batch).into_iter().filter_map(Result::err).next();
        ensure!(refused.is_none(), "an entry was refused: error {refused:?}");
    }
    Ok(())
}

fn flow(n: u32) -> Flow {
    let server = Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + n / 60_000);
    let original = Tuple {
        src: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + n / 1_000).into(),
        dst: server.into(),
        protocol: protocol::TCP,
        l4: L4::Ports { src: 10_000 + (n % 1_000) as u16, dst: 443 },
    };
    let l4 = L4::Ports { src: 443, dst: 2_000 + (n % 60_000) as u16 };
    let reply = Tuple { src: original.dst, dst: Ipv4Addr::new(203, 0, 113, 250).into(), l4, ..original };
    Flow::established(original, reply)
}

/// Makes a command the server that [`connecting`] connects to.
pub(crate) fn answering(mut own: Command) -> Command {
    own.arg(ANSWER);
    own
}

fn answer() -> Result<()> {
    let listen = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("failed to listen");
    let listeners = PORTS.map(listen).collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        for listener in listeners {
            scope.spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut word = [0; 4];
                    let _ = stream.read_exact(&mut word).and_then(|()| stream.write_all(&word));
                    // The client closes first. Whoever does remembers the connection for a minute, and a server that did would
                    // refuse some that source NAT, which picks ports at random, brings from a port it remembers.
                    let _ = stream.read(&mut word);
                }
            });
        }
    });
    Ok(())
}

/// Opens, uses and closes connections for [`RUN`]; how many per second, and how many milliseconds the slowest took.
pub(crate) fn connecting(mut own: Command, to: Ipv4Addr) -> Result<[f64; 2]> {
    let done = own.args([CONNECT, &to.to_string()]).output().context("failed to run the connector")?;
    ensure!(done.status.success(), "the connector failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    let told = String::from_utf8_lossy(&done.stdout);
    let (rate, slowest) = told.trim().split_once(' ').context("the connector's figures")?;
    Ok([rate.parse().context("the rate")?, slowest.parse().context("the slowest")?])
}

fn connect(to: Ipv4Addr) -> Result<()> {
    let start = Instant::now();
    let one = |port| -> Result<(u32, Duration)> {
        let to = SocketAddr::from((to, port));
        let (mut count, mut slowest) = (0, Duration::ZERO);
        while start.elapsed() < RUN {
            let begun = Instant::now();
            let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).context("failed to connect")?;
            stream.write_all(b"ping")?;
            stream.read_exact(&mut [0; 4])?;
            slowest = slowest.max(begun.elapsed());
            count += 1;
        }
        Ok((count, slowest))
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = PORTS.map(|port| scope.spawn(move || one(port))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Result<Vec<_>>>()
    })?;
    let count: u32 = done.iter().map(|(count, _)| count).sum();
    let slowest = done.iter().map(|(_, slowest)| *slowest).max().unwrap_or_default();
    println!("{} {}", f64::from(count) / start.elapsed().as_secs_f64(), slowest.as_secs_f64() * 1e3);
    Ok(())
}
