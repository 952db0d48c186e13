//! Hosts as network namespaces, joined by one namespace full of bridges; keepers as processes; the test
//! as their control.
//!
//! `wire` namespace: bridges `ul` (underlay), `ha` (the HA network) and `lan` (the project network).
//! Per host `n`: a namespace `h<n>` with `eth0` 192.0.2.n on `ul`, and a router namespace `r<n>` with
//! `ha-1` 169.254.192.n on `ha`, and `qr-1`, the same MAC everywhere, on `lan`.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::wildcard_enum_match_arm,
    reason = "each test program uses its part, and waits for one message among many"
)]

mod machine;
pub mod netlink;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use evergate_keeper::protocol::*;
use evergate_model::{HaState, Mac, NetworkId, RouterId};

pub use machine::*;

pub const ROUTER: RouterId = RouterId::from_u128(0x1111);
pub const VIP: &str = "169.254.0.7/24";
pub const LAN_MAC: Mac = Mac([0xfa, 0x16, 0x3e, 0, 0, 1]);
impl Drop for Control {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let heard = self.heard();
            // An answer may still come: how late the keeper's timers were tells whether the machine was to blame.
            let _ = self.stream.write_all(b"{\"type\":\"status\"}\n");
            std::thread::sleep(Duration::from_millis(200));
            let status = self.heard().into_iter().rev().find(|message| matches!(message, FromKeeper::Status(_)));
            eprintln!("a keeper said {heard:#?}, and last {status:#?}");
        }
        // The reader has another descriptor of the same connection.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// The namespaces of one test.
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    run: PathBuf,
}

impl Lab {
    pub fn new(hosts: u8) -> Self {
        let prefix = prefix("k");
        let run = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(&run).expect("a folder can be made");
        let mut lab = Self { prefix, namespaces: Vec::new(), run };
        let wire = lab.namespace("wire");
        for bridge in ["ul", "ha", "lan"] {
            sh(&format!("ip -n {wire} link add {bridge} type bridge && ip -n {wire} link set {bridge} up"));
        }
        for n in 1..=hosts {
            lab.add_host(n);
        }
        lab
    }

    /// One host, whose routers `k1`, `k2` … have interfaces on networks of their own that nobody else is on.
    pub fn with_routers(host: u8, routers: u8) -> Self {
        let mut lab = Self::new(host);
        for k in 1..=routers {
            let netns = lab.namespace(&format!("k{k}"));
            let device = |name: &str, mac: &str, number: u8| {
                format!(
                    "link add {name} index {number} address {mac} type veth peer name {name}p\n\
                     link set {name} up\nlink set {name}p up\n"
                )
            };
            let batch = device("ha-1", &ha_mac(1).to_string(), 10) + &device("qr-1", &LAN_MAC.to_string(), 20);
            sh(&format!("printf '{batch}addr add 169.254.192.1/18 dev ha-1\n' | ip -n {netns} -batch -"));
        }
        lab
    }

    /// The copy of a router that [`Self::with_routers`] made.
    pub fn router_spec(&self, k: u8) -> RouterSpec {
        let mut spec = self.spec_in(&format!("k{k}"), 1, &[]);
        spec.router = RouterId::from_u128(k.into());
        spec.ha_network = NetworkId::from_u128(k.into());
        spec
    }

    fn namespace(&mut self, role: &str) -> String {
        let name = self.name(role);
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"));
        self.namespaces.push(name.clone());
        name
    }

    fn add_host(&mut self, n: u8) {
        let (host, router) = (self.namespace(&format!("h{n}")), self.namespace(&format!("r{n}")));
        self.plug(&host, "eth0", "ul", n, &format!("02:00:00:00:00:{n:02x}"));
        sh(&format!("ip -n {host} addr add 192.0.2.{n}/24 dev eth0"));
        self.plug_ha(&router, n);
        self.plug(&router, "qr-1", "lan", n, &LAN_MAC.to_string());
    }

    /// A gateway of the project network, in a namespace of its own: 10.0.0.254 and 2001:db8::fe.
    pub fn add_gateway(&mut self) -> String {
        let gateway = self.namespace("gw");
        self.plug(&gateway, "eth0", "lan", 254, "02:00:00:00:00:fe");
        sh(&format!(
            "ip -n {gateway} addr add 10.0.0.254/24 dev eth0 && ip -n {gateway} addr add 2001:db8::fe/64 dev eth0 nodad"
        ));
        gateway
    }

    fn plug_ha(&self, router: &str, n: u8) {
        self.plug(router, "ha-1 index 10", "ha", n, &ha_mac(n).to_string());
        sh(&format!("ip -n {router} addr add 169.254.192.{n}/18 dev ha-1"));
    }

    /// Deletes a host's HA interface and makes it anew, by the same name and index.
    pub fn replace_ha_link(&self, n: u8, meanwhile: impl FnOnce()) {
        let router = self.name(&format!("r{n}"));
        sh(&format!("ip -n {router} link del ha-1"));
        meanwhile();
        self.plug_ha(&router, n);
    }

    /// Deletes a host's router namespace and makes it anew, by the same name and with the same indexes.
    /// The ports of the old one, if something keeps it, are called `old-ha` and `old-lan`.
    pub fn replace_router_namespace(&mut self, n: u8) {
        let (router, wire) = (self.name(&format!("r{n}")), self.name("wire"));
        for bridge in ["ha", "lan"] {
            sh(&format!(
                "ip -n {wire} link set {bridge}-{n} nomaster && ip -n {wire} link set {bridge}-{n} down && \
                 ip -n {wire} link set {bridge}-{n} name old-{bridge}"
            ));
        }
        sh(&format!("ip netns del {router} && ip netns add {router} && ip -n {router} link set lo up"));
        self.plug_ha(&router, n);
        self.plug(&router, "qr-1", "lan", n, &LAN_MAC.to_string());
    }

    /// A device in a namespace, plugged into a bridge of the wire as port `<bridge>-<n>`.
    fn plug(&self, netns: &str, device: &str, bridge: &str, n: u8, mac: &str) {
        let wire = self.name("wire");
        let name = device.split(' ').next().expect("a device has a name");
        sh(&format!(
            "ip -n {netns} link add {device} address {mac} type veth peer name {bridge}-{n} netns {wire} && \
             ip -n {netns} link set {name} up && \
             ip -n {wire} link set {bridge}-{n} master {bridge} && ip -n {wire} link set {bridge}-{n} up"
        ));
    }

    pub fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.prefix)
    }

    pub fn run_path(&self, n: u8) -> PathBuf {
        self.run.join(format!("h{n}"))
    }

    /// Takes a port out of its bridge, or puts it back: frames are lost, and nobody is told.
    pub fn cut(&self, bridge: &str, n: u8, cut: bool) {
        let wire = self.name("wire");
        let master = if cut { "nomaster".to_owned() } else { format!("master {bridge}") };
        sh(&format!("ip -n {wire} link set {bridge}-{n} {master}"));
    }

    /// Takes the carrier of a host's HA interface away, or gives it back.
    pub fn carrier(&self, n: u8, up: bool) {
        let state = if up { "up" } else { "down" };
        sh(&format!("ip -n {} link set ha-{n} {state}", self.name("wire")));
    }

    pub fn ifindex(&self, netns: &str, device: &str) -> u32 {
        let text = output(&format!("ip -j -n {} link show {device}", self.name(netns)));
        let links: serde_json::Value = serde_json::from_str(&text).expect("ip prints JSON");
        links[0]["ifindex"].as_u64().expect("a link has an index") as u32
    }

    /// Whether the virtual address is on a host's HA interface.
    pub fn has_vip(&self, n: u8) -> bool {
        output(&format!("ip -n {} -o addr show dev ha-1", self.name(&format!("r{n}")))).contains(VIP)
    }

    /// The hosts with the virtual address.
    pub fn vip_holders(&self, hosts: &[u8]) -> Vec<u8> {
        hosts.iter().copied().filter(|&n| self.has_vip(n)).collect()
    }

    pub fn keeper(&self, n: u8) -> Keeper {
        Keeper::start(&self.name(&format!("h{n}")), self.run_path(n))
    }

    /// The router's copy on a host, as control would specify it.
    pub fn spec(&self, n: u8, hosts: &[u8]) -> RouterSpec {
        self.spec_in(&format!("r{n}"), n, hosts)
    }

    fn spec_in(&self, router: &str, n: u8, hosts: &[u8]) -> RouterSpec {
        let (ha, qr) = (self.ifindex(router, "ha-1"), self.ifindex(router, "qr-1"));
        let address = |what: &str, link: u32, net: &str| Item {
            key: format!("address {net} on {what}"),
            place: Place::Router,
            add: netlink::address(true, link, net),
            del: netlink::address(false, link, net),
        };
        let default = Item {
            key: "default route".to_owned(),
            place: Place::Router,
            add: netlink::default_route(true, qr, [10, 0, 0, 254]),
            del: netlink::default_route(false, qr, [10, 0, 0, 254]),
        };
        RouterSpec {
            router: ROUTER,
            ha_network: NetworkId::from_u128(1),
            netns: self.name(router),
            ha_link: "ha-1".to_owned(),
            ha_ifindex: ha,
            ha_mac: ha_mac(n),
            ha_address: format!("169.254.192.{n}/18").parse().expect("an address"),
            vrid: 7,
            virtual_address: VIP.parse().expect("an address"),
            vrrp_version: 2,
            priority: 50,
            advertise_interval_cs: 100,
            preempt: false,
            preempt_delay_s: 0,
            password: None,
            peers: hosts.iter().filter(|&&peer| peer != n).map(|&n| Ipv4Addr::new(169, 254, 192, n)).collect(),
            peer_hosts: std::collections::BTreeMap::new(),
            items: vec![address("ha-1", ha, VIP), address("qr-1", qr, "10.0.0.1/24"), default],
            announce: vec![Announce {
                link: "qr-1".to_owned(),
                ifindex: qr,
                mac: LAN_MAC,
                ip: IpAddr::from([10, 0, 0, 1]),
            }],
            gateways: Vec::new(),
            uplinks: BTreeSet::new(),
            claim_to: BTreeSet::new(),
            epoch: 0,
            wish: None,
            new: false,
            inherits: None,
            ready: true,
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

pub fn ha_mac(n: u8) -> Mac {
    Mac([0xfa, 0x16, 0x3e, 0, 1, n])
}

pub fn vtep(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

pub fn settings(n: u8) -> Settings {
    Settings {
        host: format!("h{n}"),
        vtep: Some(vtep(n)),
        claim_port: 3796,
        claim_key: "00112233".to_owned(),
        replication_port: None,
        serve_alone: false,
        bfd: Default::default(),
        health: Default::default(),
    }
}

/// A keeper process.
pub struct Keeper {
    child: Child,
    run_path: PathBuf,
}

impl Keeper {
    fn start(netns: &str, run_path: PathBuf) -> Self {
        let child = Command::new("ip")
            .args(["netns", "exec", netns, env!("CARGO_BIN_EXE_evergate-keeper-under-test"), "--run-path"])
            .arg(&run_path)
            .stdin(Stdio::null())
            .spawn()
            .expect("the keeper starts");
        Self { child, run_path }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What the process keeps in memory for itself, without the program's own pages.
    pub fn memory_kib(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("the kernel says so");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("it runs").count()
    }

    pub fn signal(&self, name: &str) {
        sh(&format!("kill -{name} {}", self.child.id()));
    }

    /// Waits for its end; tells whether it ended well.
    pub fn wait(&mut self) -> bool {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status.success();
            }
            assert!(Instant::now() < end, "the keeper does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Connects as control does.
    pub fn control(&self) -> Control {
        Control::connect(self.run_path.join(SOCKET_NAME))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The test's side of the control connection.
pub struct Control {
    stream: UnixStream,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    messages: Mutex<Vec<(Instant, FromKeeper)>>,
    more: Condvar,
}

impl Control {
    fn connect(path: PathBuf) -> Self {
        let mut stream = None;
        eventually("the keeper listens", || {
            stream = UnixStream::connect(&path).ok();
            stream.is_some()
        });
        let stream = stream.expect("it was just connected");
        let heard = Arc::new(Heard::default());
        let (reader, sink) = (stream.try_clone().expect("a socket can be cloned"), Arc::clone(&heard));
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let message = serde_json::from_str(&line).expect("the keeper speaks the protocol");
                sink.messages.lock().expect("no reader panicked").push((Instant::now(), message));
                sink.more.notify_all();
            }
        });
        Self { stream, heard }
    }

    pub fn say(&mut self, message: &ToKeeper) {
        let mut line = serde_json::to_vec(message).expect("messages can be written");
        line.push(b'\n');
        self.stream.write_all(&line).expect("the keeper reads");
    }

    /// Greets, tells the whole state, and waits until it was taken.
    pub fn tell(&mut self, settings: Settings, specs: &[RouterSpec], follows: &[FollowSpec]) -> Status {
        self.say(&ToKeeper::Hello { version: PROTOCOL_VERSION, settings });
        for spec in specs {
            self.say(&ToKeeper::Router(Box::new(spec.clone())));
        }
        for follow in follows {
            self.say(&ToKeeper::Follow(follow.clone()));
        }
        self.say(&ToKeeper::EndOfState);
        self.expect("the status", |message| match message {
            FromKeeper::Status(status) => Some(status.clone()),
            _ => None,
        })
    }

    /// Waits for a message, among those that have come and those that come.
    pub fn expect<T>(&self, what: &str, wanted: impl Fn(&FromKeeper) -> Option<T>) -> T {
        self.expect_at(what, wanted).1
    }

    /// The same, and when it came.
    pub fn expect_at<T>(&self, what: &str, wanted: impl Fn(&FromKeeper) -> Option<T>) -> (Instant, T) {
        let end = Instant::now() + DEADLINE;
        let mut heard = self.heard.messages.lock().expect("the reader does not panic");
        loop {
            if let Some(found) = heard.iter().find_map(|(at, message)| wanted(message).map(|found| (*at, found))) {
                return found;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never heard: {what}; but {heard:#?}");
            heard = self.heard.more.wait_timeout(heard, left).expect("the reader does not panic").0;
        }
    }

    pub fn expect_transition(&self, state: HaState) -> (Instant, Transition) {
        self.expect_at(&format!("a transition to {state:?}"), |message| match message {
            FromKeeper::Transition(transition) if transition.state == state => Some(transition.clone()),
            _ => None,
        })
    }

    /// Forgets what was heard.
    pub fn forget(&self) {
        self.heard.messages.lock().expect("the reader does not panic").clear();
    }

    pub fn heard(&self) -> Vec<FromKeeper> {
        self.heard
            .messages
            .lock()
            .expect("the reader does not panic")
            .iter()
            .map(|(_, message)| message.clone())
            .collect()
    }

    /// Everything wanted among what was heard, and when it came.
    pub fn heard_at<T>(&self, wanted: impl Fn(&FromKeeper) -> Option<T>) -> Vec<(Instant, T)> {
        let heard = self.heard.messages.lock().expect("the reader does not panic");
        heard.iter().filter_map(|(at, message)| Some((*at, wanted(message)?))).collect()
    }

    pub fn status(&mut self) -> Status {
        self.forget();
        self.say(&ToKeeper::Status);
        self.expect("the status", |message| match message {
            FromKeeper::Status(status) => Some(status.clone()),
            _ => None,
        })
    }
}
