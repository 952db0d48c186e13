//! FRR's bfdd as the peer of a BFD session over one hop. Needs root and frr.

mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evergate_kernel::rt::HopSocket;
use evergate_kernel::sys::{self, Namespace};
use evergate_vrrp::bfd::session::{Config, Status};
use evergate_vrrp::bfd::sessions::{Output, Path as Hops, Sessions};
use evergate_vrrp::bfd::wire::{Diagnostic, State};
use evergate_vrrp::bfd::{SINGLE_HOP_PORT, SOURCE_PORTS};
use support::{output, prefix, require_root, sh};

const OURS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_session_with_bfdd_comes_up_agrees_on_intervals_and_notices_its_death() {
    require_root();
    let net = Net::new();
    // Ours wants to send every 100 ms and receives every 150; theirs 60 and 200.
    let mut ours = Ours::start(&net, Config { desired_min_tx: 100 * MS, required_min_rx: 150 * MS, ..config(100) });
    let mut bfdd = Bfdd::start(&net, "receive-interval 200\n  transmit-interval 60");
    ours.until("the session is up", |ours| ours.state() == State::Up);
    ours.until("both ends agree on the intervals", |ours| {
        let status = ours.status();
        (status.transmit_interval, status.receive_interval) == (200 * MS, 150 * MS)
    });
    ours.until("bfdd says so, too", |_| {
        let said = bfdd.say("show bfd peers json");
        said.contains("\"status\":\"up\"") && said.contains("\"remote-transmit-interval\":100")
    });
    assert_eq!(ours.sessions.discards().count(), 0);

    ours.changes.clear();
    assert_eq!(ours.status().detection_time, 3 * 150 * MS);
    bfdd.kill();
    ours.until("its death is noticed", |ours| ours.state() != State::Up);
    assert_eq!(ours.changes, [(State::Down, Diagnostic::DETECTION_TIME_EXPIRED)]);

    let _bfdd = Bfdd::start(&net, "receive-interval 200\n  transmit-interval 60");
    ours.until("it comes back", |ours| ours.state() == State::Up);
}

#[test]
fn holding_a_session_down_is_understood_both_ways() {
    require_root();
    let net = Net::new();
    let mut ours = Ours::start(&net, config(100));
    let bfdd = Bfdd::start(&net, "receive-interval 100\n  transmit-interval 100");
    ours.until("the session is up", |ours| ours.state() == State::Up);

    ours.changes.clear();
    bfdd.configure("shutdown");
    ours.until("bfdd's shutdown is heard", |ours| ours.state() == State::Down);
    assert_eq!(ours.changes, [(State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)]);
    bfdd.configure("no shutdown");
    ours.until("the session is up again", |ours| ours.state() == State::Up);

    ours.sessions.handle_stop(Instant::now());
    ours.turn();
    ours.until("bfdd hears ours", |_| {
        let said = bfdd.say("show bfd peers json");
        said.contains("\"status\":\"down\"") && said.contains("\"remote-diagnostic\":\"administratively down\"")
    });
}

#[test]
fn bfdd_notices_when_we_fall_silent() {
    require_root();
    let net = Net::new();
    let mut ours = Ours::start(&net, config(50));
    let bfdd = Bfdd::start(&net, "receive-interval 50\n  transmit-interval 50");
    ours.until("the session is up", |ours| ours.state() == State::Up);
    ours.until("at both ends", |_| bfdd.say("show bfd peers json").contains("\"status\":\"up\""));
    drop(ours);
    support::eventually("bfdd gives us up", || {
        bfdd.say("show bfd peers json").contains("\"diagnostic\":\"control detection time expired\"")
    });
}

fn config(interval_ms: u64) -> Config {
    Config::symmetric(Duration::from_millis(interval_ms), 3.try_into().expect("not 0"))
}

/// Two namespaces, joined by a wire.
struct Net {
    prefix: String,
}

impl Net {
    fn new() -> Self {
        let net = Self { prefix: prefix("bfd") };
        let (a, b) = (net.name("a"), net.name("b"));
        sh(&format!("ip netns add {a}; ip netns add {b}"));
        sh(&format!("ip link add eth0 netns {a} type veth peer name eth0 netns {b}"));
        for (name, address) in [(&a, OURS), (&b, THEIRS)] {
            sh(&format!("ip -n {name} addr add {address}/24 dev eth0; ip -n {name} link set eth0 up"));
            sh(&format!("ip -n {name} link set lo up"));
        }
        net
    }

    fn name(&self, which: &str) -> String {
        format!("{}-{which}", self.prefix)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for which in ["a", "b"] {
            output(&format!("ip netns del {}", self.name(which)));
        }
    }
}

/// Our end: the engine, with its sockets in one of the namespaces.
struct Ours {
    sessions: Sessions,
    receiving: HopSocket,
    sending: HopSocket,
    changes: Vec<(State, Diagnostic)>,
}

impl Ours {
    fn start(net: &Net, config: Config) -> Self {
        let path = Path::new("/run/netns").join(net.name("a"));
        // On a thread of its own, so that the test's stays where it is.
        let open = move || {
            let netns = File::open(path).expect("the namespace is there");
            sys::setns(&netns, Namespace::Net).expect("it can be entered");
            let receiving = HopSocket::bind(SocketAddr::new(OURS, SINGLE_HOP_PORT)).expect("nobody has the port");
            (receiving, HopSocket::bind_in(OURS, SOURCE_PORTS, 0).expect("one is free"))
        };
        let (receiving, sending) = std::thread::spawn(open).join().expect("the sockets are made");
        let mut sessions = Sessions::new(Hops::SingleHop, config, Vec::new(), 4711);
        sessions.set_peers(&BTreeSet::from([THEIRS]), Instant::now());
        Self { sessions, receiving, sending, changes: Vec::new() }
    }

    fn state(&self) -> State {
        self.status().state
    }

    fn status(&self) -> Status {
        self.sessions.session(THEIRS).expect("it was made").status()
    }

    /// Takes what has come, fires what is due, sends.
    fn turn(&mut self) {
        let mut buffer = [0; 256];
        while let Some(datagram) = self.receiving.recv(&mut buffer).ok().flatten() {
            let (bytes, from) = (&buffer[..datagram.length], datagram.from.ip());
            self.sessions.handle_datagram(bytes, from, datagram.hop_limit, Instant::now());
        }
        self.sessions.handle_timeout(Instant::now());
        while let Some(output) = self.sessions.poll_output() {
            match output {
                Output::Send { to, datagram } => {
                    // Refused while bfdd is not there.
                    let _ = self.sending.send(&datagram, SocketAddr::new(to, SINGLE_HOP_PORT));
                }
                Output::StateChanged { to, diagnostic, .. } => self.changes.push((to, diagnostic)),
            }
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + support::DEADLINE;
        let mut look = Instant::now();
        loop {
            self.turn();
            // Asking bfdd takes longer than an interval.
            if look <= Instant::now() {
                if done(self) {
                    return;
                }
                look = Instant::now() + 20 * MS;
            }
            assert!(Instant::now() < deadline, "{what}: {:?}, {:?}", self.status(), self.changes);
            std::thread::sleep(MS);
        }
    }
}

/// FRR's daemon in the other namespace.
struct Bfdd {
    child: Child,
    folder: PathBuf,
}

impl Bfdd {
    fn start(net: &Net, settings: &str) -> Self {
        let folder = std::env::temp_dir().join(net.name("frr"));
        let path = folder.display();
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let text = format!("bfd\n peer {OURS} local-address {THEIRS}\n  detect-multiplier 3\n  {settings}\n !\n!\n");
        std::fs::write(folder.join("bfdd.conf"), text).expect("a file can be written");
        sh(&format!("chown -R frr:frr {path}"));
        let log = File::create(folder.join("log")).expect("a file can be made");
        let (netns, sockets) = (net.name("b"), format!("{path}"));
        let child = Command::new("ip")
            .args(["netns", "exec", &netns, "/usr/lib/frr/bfdd", "-u", "frr", "-g", "frr", "-P", "0"])
            .args(["-f", &format!("{path}/bfdd.conf"), "-i", &format!("{path}/pid"), "--vty_socket", &sockets])
            .args(["-z", &format!("{path}/zserv.api"), "--bfdctl", &format!("{path}/bfdd.sock"), "--log", "stdout"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log)
            .spawn()
            .expect("ip runs");
        let bfdd = Self { child, folder };
        support::eventually("bfdd answers", || bfdd.say("show bfd peers json").contains("192.0.2.1"));
        bfdd
    }

    fn say(&self, command: &str) -> String {
        output(&format!("vtysh --vty_socket {} -c '{command}' 2>&1", self.folder.display()))
    }

    fn configure(&self, line: &str) {
        let peer = format!("peer {OURS} local-address {THEIRS}");
        let said = output(&format!(
            "vtysh --vty_socket {} -c 'configure terminal' -c bfd -c '{peer}' -c '{line}' 2>&1",
            self.folder.display()
        ));
        assert!(!said.contains('%'), "{said}");
    }

    fn kill(&mut self) {
        self.child.kill().expect("it is there");
        let _ = self.child.wait();
    }
}

impl Drop for Bfdd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
