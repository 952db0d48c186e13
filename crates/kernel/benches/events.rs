//! What the sockets that listen to connection tracking cost a router's traffic, and what a list of connections costs.
//!
//! - `listen`: processor time of a new connection through source NAT, at 10,000 per second, beside so many sockets that
//!   listen to namespaces; one of them to the one that the connections are in. A connection is a datagram, sent, routed and
//!   translated in the sender's own time; the far end swallows it.
//! - `list`: processor time of listing a namespace with one connection, and one with 1,000, and of looking up those 1,000, beside
//!   so many connections of another namespace.
//!
//! Run as root: `cargo bench -p evergate-kernel --bench events`, or with the name of a part.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use evergate_kernel::Error;
use evergate_kernel::conntrack::{FlowEvent, FlowOp, FlowTable, FlowWatch};
use evergate_kernel::rt::{Epoll, NetnsFd};
use evergate_kernel::sys::{self, Namespace};
use evergate_model::flow::{L4, Tuple, protocol};
use evergate_model::{Flow, FlowKey};

const LISTENERS: [usize; 4] = [0, 1, 100, 1_000];
const TURNS: usize = 3;
const PER_SECOND: u32 = 10_000;
const SECONDS: u32 = 2;
/// Sockets that the connections come from: with one, the kernel would go through all of its connections for each new one.
const CLIENTS: u32 = 1_000;
/// RFC 2544's addresses for measurements.
const SINK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

const ELSEWHERE: [u32; 4] = [0, 10_000, 100_000, 1_000_000];
/// As many as a namespace has room for by default; where there are more of them, they are in several.
const PER_NETNS: u32 = 250_000;
const HERE: u32 = 1_000;
const LISTS: usize = 10;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for (name, part) in [("listen", listen as fn()), ("list", list)] {
        if asked.is_empty() || asked.iter().any(|arg| arg == name) {
            part();
        }
    }
}

/// Runs on a thread in a namespace that goes with it.
fn in_a_new_netns<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let inside = move || {
        sys::unshare(&[Namespace::Net]).expect("the benchmark must run as root");
        f()
    };
    thread::spawn(inside).join().expect("the benchmark does not panic")
}

fn new_netns() -> NetnsFd {
    in_a_new_netns(|| NetnsFd::host().expect("a namespace can be opened from within"))
}

fn listen() {
    println!("a new connection at {PER_SECOND} per second, {TURNS} turns of {SECONDS} s");
    println!("listening sockets   processor time each, us (min / median / max)");
    let mut times = LISTENERS.map(|_| Vec::new());
    for _ in 0..TURNS {
        for (listeners, times) in LISTENERS.into_iter().zip(&mut times) {
            times.push(in_a_new_netns(move || connections_beside(listeners)));
        }
    }
    for (listeners, mut times) in LISTENERS.into_iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("{listeners:17}   {:.1} / {:.1} / {:.1}", times[0], times[TURNS / 2], times[TURNS - 1]);
    }
}

/// Processor time of a connection in microseconds.
fn connections_beside(listeners: usize) -> f64 {
    let router = NetnsFd::host().expect("a namespace can be opened from within");
    make_router();
    let listen = |netns: &NetnsFd| FlowWatch::open(netns).expect("root may listen");
    let heard = (listeners > 0).then(|| listen(&router));
    // They hear nothing, but are looked at.
    let _others: Vec<FlowWatch> = (1..listeners).map(|_| listen(&new_netns())).collect();
    let total = PER_SECOND * SECONDS;
    let (stop, stopped) = channel::<()>();
    let reader = heard.map(|watch| thread::spawn(move || hear(watch, &stopped)));
    let spent = open_connections();
    drop(stop);
    let heard = reader.map(|reader| reader.join().expect("the reader does not panic"));
    assert_eq!(heard.unwrap_or(total), total, "each connection is heard of");
    spent.as_secs_f64() * 1e6 / f64::from(total)
}

/// Processor time of opening connections for [`SECONDS`].
fn open_connections() -> Duration {
    let bind = |_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket can be bound");
    let sockets: Vec<UdpSocket> = (0..CLIENTS).map(bind).collect();
    let (mut timer, mut nothing) = (Epoll::new().expect("there is room for a descriptor"), Vec::new());
    let (before, start) = (own_time(), Instant::now());
    for n in 0..PER_SECOND * SECONDS {
        let due = start + Duration::from_secs_f64(f64::from(n) / f64::from(PER_SECOND));
        if due > Instant::now() + Duration::from_millis(1) {
            timer.wait(Some(due), &mut nothing).expect("a moment can be waited for");
        }
        let to = SocketAddr::from((Ipv4Addr::from(u32::from(SINK) + n), 1024));
        sockets[(n % CLIENTS) as usize].send_to(b"open", to).expect("a datagram can be sent");
    }
    own_time() - before
}

/// The calling thread's namespace translates what it sends to [`SINK`].
fn make_router() {
    run("ip link set lo up; ip link add name out type veth peer name sink; ip link set out up; ip link set sink up
         ip address add 192.0.2.1/24 dev out; ip address add 192.0.2.3/24 dev out
         ip neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev out; ip route add 198.18.0.0/15 via 192.0.2.2
         nft add table ip t; nft add chain ip t post '{ type nat hook postrouting priority srcnat; }'
         nft add rule ip t post oifname out snat to 192.0.2.3");
}

fn run(script: &str) {
    let done = Command::new("sh").args(["-ec", script]).status().expect("there is a shell");
    assert!(done.success(), "{script}: {done}");
}

/// Takes what is heard until there is nothing more to come; how many connections that were.
fn hear(mut watch: FlowWatch, stopped: &Receiver<()>) -> u32 {
    let mut heard = 0;
    loop {
        let is_last = stopped.recv_timeout(Duration::from_millis(4)) == Err(RecvTimeoutError::Disconnected);
        while let Some(event) = watch.next_event().expect("a socket can be read") {
            heard += u32::from(matches!(event, FlowEvent::Changed(_)));
        }
        if is_last {
            return heard;
        }
    }
}

/// Processor time of the calling thread.
fn own_time() -> Duration {
    // The kernel counts up to when a thread last gave way.
    thread::yield_now();
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel counts threads' times");
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    Duration::from_nanos(first.expect("it begins with nanoseconds"))
}

fn list() {
    println!("listing a namespace's connections, processor time, ms (min / median / max of {LISTS})");
    println!("connections elsewhere   one here   {HERE} here   {HERE} looked up");
    let (single, some) = (new_netns(), new_netns());
    fill(&single, 0, 1);
    fill(&some, 0, HERE);
    let keys: Vec<FlowKey> = (0..HERE).map(|n| flow(n).key()).collect();
    let (mut filled, mut others) = (0, Vec::new());
    for elsewhere in ELSEWHERE {
        while filled < elsewhere {
            let netns = new_netns();
            let count = PER_NETNS.min(elsewhere - filled);
            fill(&netns, filled, count);
            others.push(netns);
            filled += count;
        }
        let [one, all] = [&single, &some].map(|netns| times(netns, FlowTable::list));
        let found = times(&some, |table| table.look_up(&keys));
        println!("{elsewhere:21}   {one}   {all}   {found}");
    }
}

fn fill(netns: &NetnsFd, first: u32, count: u32) {
    let mut table = FlowTable::open(netns).expect("root may open netlink sockets");
    let ops: Vec<FlowOp> = (first..first + count).map(|n| FlowOp::Create(flow(n))).collect();
    let refused = ops.chunks(4096).flat_map(|ops| table.apply(ops)).find_map(Result::err);
    assert_eq!(refused, None, "an entry was refused");
}

fn flow(n: u32) -> Flow {
    let (src, dst) = (IpAddr::V4((0x0a00_0000 + n / 1_000).into()), IpAddr::V4(SINK));
    let l4 = L4::Ports { src: 10_000 + (n % 1_000) as u16, dst: 443 };
    let original = Tuple { src, dst, protocol: protocol::TCP, l4 };
    Flow::established(original, original.mirror())
}

fn times(netns: &NetnsFd, read: impl Fn(&mut FlowTable) -> Result<Vec<Flow>, Error>) -> String {
    let mut table = FlowTable::open(netns).expect("root may open netlink sockets");
    let mut one = || {
        let before = own_time();
        read(&mut table).expect("a table can be read");
        (own_time() - before).as_secs_f64() * 1e3
    };
    let mut times: Vec<f64> = (0..LISTS).map(|_| one()).collect();
    times.sort_by(f64::total_cmp);
    format!("{:.1} / {:.1} / {:.1}", times[0], times[LISTS / 2], times[LISTS - 1])
}
