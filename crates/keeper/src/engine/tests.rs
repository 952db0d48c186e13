//! The engine on a virtual clock, with a kernel that remembers what it was told.

mod adoption;
mod agreement;
mod claims;
mod control;
mod follow;
mod handover;
mod health;
mod letters;
mod liveness;
mod pacing;
mod packets;
mod transitions;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_kernel::rt::FoundPaths;
use evergate_model::{HaState, Mac, NetworkId, RouterId};
use evergate_vrrp::router::{Config, Vrid};
use evergate_vrrp::wire::{self, Advertisement, Ipv4Checksum};

use super::effect::{Action, Batch, Effect, Opened, Purpose};
use super::{Engine, Start};
use crate::claims::question::Question;
use crate::claims::wire::{ClaimKey, Entry, Kind, MAX_ENTRIES, Message};
use crate::hex;
use crate::protocol::*;

const R: RouterId = RouterId::from_u128(1);
const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
const THIRD: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));
/// Where another copy of the router is.
const COPY: Ipv4Addr = Ipv4Addr::new(169, 254, 192, 200);
const HA_LINK: u32 = 10;
const QR_LINK: u32 = 11;
/// Silence after which a lone backup of priority 50 takes over at a 2 s interval, and the time in which others
/// may object.
const ACTIVE_DOWN: Duration = Duration::from_millis(6000 + 805 + 20);

/// An engine with everything around it.
struct Host {
    engine: Engine,
    now: Instant,
    spec: RouterSpec,
    /// What happened, a line each.
    log: Vec<String>,
    /// Items that are in the kernel, in order of adding.
    kernel: Vec<String>,
    listening: BTreeMap<RouterId, Option<u8>>,
    has_virtual_address: bool,
    namespace_missing: bool,
    links: BTreeMap<u32, bool>,
    /// The kernel answers later.
    kernel_stalls: bool,
    stalled: Vec<Batch>,
    /// The item that the kernel does not take.
    refuses: Option<String>,
    /// There is always something to do before the next announcement.
    is_busy: bool,
    /// BFD packets that were sent, by receiver.
    bfd_out: Vec<(IpAddr, Vec<u8>)>,
    /// Questions, answers and handovers that were sent, with the receiver.
    asked: Vec<(IpAddr, Question)>,
    /// Those that were given to the server.
    letters: Vec<(IpAddr, Question)>,
    /// Hosts that hold all connections of the router.
    complete: BTreeSet<IpAddr>,
    /// Of which routers it was asked who does, each time.
    incomplete: Vec<BTreeSet<RouterId>>,
}

impl Host {
    /// Connected, and told nothing.
    fn new() -> Self {
        Self::after(None)
    }

    fn after(away: Option<Duration>) -> Self {
        let now = Instant::now() + Duration::from_secs(1000);
        let engine = Engine::new(Start { away, seed: 1, ..Start::default() }, now);
        let mut host = Self {
            engine,
            now,
            spec: spec(),
            log: Vec::new(),
            kernel: Vec::new(),
            listening: BTreeMap::new(),
            has_virtual_address: false,
            namespace_missing: false,
            links: BTreeMap::from([(HA_LINK, true), (QR_LINK, true)]),
            kernel_stalls: false,
            stalled: Vec::new(),
            refuses: None,
            is_busy: false,
            bfd_out: Vec::new(),
            asked: Vec::new(),
            letters: Vec::new(),
            complete: BTreeSet::new(),
            incomplete: Vec::new(),
        };
        host.connect();
        host.say(ToKeeper::EndOfState);
        host.log.clear();
        host
    }

    /// Backup.
    fn with_router() -> Self {
        let mut host = Self::new();
        host.say(ToKeeper::Router(Box::new(host.spec.clone())));
        host.say(ToKeeper::Follow(follow(0, None)));
        assert_eq!(host.state(), "backup");
        host.log.clear();
        host
    }

    /// Active with epoch 1, its claims unacknowledged.
    fn active() -> Self {
        let mut host = Self::with_router();
        host.advance(ACTIVE_DOWN);
        assert_eq!(host.state(), "active");
        host
    }

    fn connect(&mut self) {
        self.say(ToKeeper::Hello { version: PROTOCOL_VERSION, settings: settings() });
    }

    fn say(&mut self, message: ToKeeper) {
        // As it would arrive.
        let text = serde_json::to_string(&message).unwrap();
        self.engine.handle_message(serde_json::from_str(&text).unwrap(), self.now);
        self.settle();
    }

    fn hear(&mut self, frame: Vec<u8>) {
        self.engine.handle_frame(R, &frame, self.now);
        self.settle();
    }

    fn link(&mut self, ifindex: u32, up: Option<bool>) {
        match up {
            Some(up) => self.links.insert(ifindex, up),
            None => self.links.remove(&ifindex),
        };
        self.engine.handle_link(R, ifindex, up, self.now);
        self.settle();
    }

    fn list_links(&mut self, links: BTreeMap<u32, bool>) {
        self.links = links;
        self.engine.handle_links(R, &self.links, self.now);
        self.settle();
    }

    fn claim_from(&mut self, sender: IpAddr, kind: Kind, epoch: u64) {
        let entries = vec![Entry { router: R, epoch, vtep: Some(sender) }];
        let datagram = Message { kind, sender, entries }.emit(&key());
        self.engine.handle_claim(&datagram, sender, self.now);
        self.settle();
    }

    fn say_known(&mut self, sender: IpAddr, epoch: u64, vtep: Option<IpAddr>) {
        let entries = vec![Entry { router: R, epoch, vtep }];
        let datagram = Message { kind: Kind::Ack, sender, entries }.emit(&key());
        self.engine.handle_claim(&datagram, sender, self.now);
        self.settle();
    }

    /// Lets time pass, timer by timer.
    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some((at, _)) = self.engine.poll_timeout().filter(|(at, _)| *at <= end) {
            self.now = self.now.max(at);
            self.engine.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    /// The kernel answers what it was asked meanwhile.
    fn kernel_goes_on(&mut self) {
        self.kernel_stalls = false;
        for batch in std::mem::take(&mut self.stalled) {
            let results = self.run(&batch);
            self.engine.handle_batch(&batch, results, self.now);
            self.settle();
        }
    }

    fn state(&self) -> String {
        self.engine.status().routers[0].vrrp_state.clone()
    }

    fn discards(&self, reason: &str) -> u64 {
        self.engine.status().discards.get(reason).copied().unwrap_or(0)
    }

    fn sent_to(&self, to: IpAddr) -> usize {
        self.log.iter().filter(|line| line.starts_with(&format!("claim {to} claim"))).count()
    }

    fn settle(&mut self) {
        let mut effects = 0;
        while let Some(effect) = self.engine.poll_effect().or_else(|| self.announcement()) {
            effects += 1;
            assert!(effects < 10_000, "the engine goes round in circles");
            self.carry_out(effect);
        }
    }

    fn announcement(&mut self) -> Option<Effect> {
        if self.is_busy { None } else { self.engine.poll_announcement() }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::OpenSockets { router, request, fresh: _ } => {
                self.listening.insert(router, request.vrid);
                let opened = if !self.links.contains_key(&HA_LINK) {
                    Err("there is no such link".to_owned())
                } else if self.namespace_missing {
                    self.log.push("open".to_owned());
                    Err("there is no namespace".to_owned())
                } else {
                    let has_virtual_address = self.has_virtual_address;
                    Ok(Opened { links: Some(self.links.clone()), has_virtual_address })
                };
                self.engine.handle_opened(router, &request, opened, self.now);
            }
            Effect::CloseSockets { router } => {
                self.listening.remove(&router);
                self.log.push("close".to_owned());
                self.engine.handle_closed(router);
            }
            Effect::SendFrame { frame, .. } => self.log.push(describe(&frame)),
            Effect::RunBatch(batch) if self.kernel_stalls => self.stalled.push(batch),
            Effect::RunBatch(batch) => {
                let results = self.run(&batch);
                self.engine.handle_batch(&batch, results, self.now);
            }
            Effect::RunScript(run) => self.log.push(format!("script {}", run.arguments[1..].join(" "))),
            Effect::BindClaims(address) => {
                assert!(address.is_none_or(|address| address == SocketAddr::new(OURS, 3796)));
            }
            Effect::BindBfd(address) => assert!(address.is_none_or(|address| address == SocketAddr::new(OURS, 4784))),
            Effect::SendBfd { to, datagram } => self.bfd_out.push((to.ip(), datagram)),
            Effect::SendClaim { to, datagram } if Question::is_one(&datagram) => {
                // Some tests give it another key.
                self.asked.extend(Question::parse(&datagram, OURS, &key()).ok().map(|question| (to.ip(), question)));
            }
            Effect::SendClaim { to, datagram } => {
                let message = Message::parse(&datagram, OURS, &key()).unwrap();
                let kind = format!("{:?}", message.kind).to_lowercase();
                self.log.push(format!("claim {} {kind} {}", to.ip(), message.entries[0].epoch));
            }
            Effect::AskWhoIsComplete(routers) => {
                let complete = routers.iter().map(|router| (*router, self.complete.clone())).collect();
                self.incomplete.push(routers);
                self.engine.handle_complete(complete, self.now);
            }
            Effect::Emit(message) => self.emitted(message),
        }
    }

    fn run(&mut self, batch: &Batch) -> Vec<Result<(), String>> {
        if batch.purpose == Purpose::Follow {
            let (what, action) = &batch.steps[0];
            self.log.push(match action {
                Action::Add => format!("follow + {}", what.rsplit(' ').next().unwrap()),
                Action::Del => "follow -".to_owned(),
            });
            return vec![Ok(()); batch.messages.len()];
        }
        let place = format!("{:?}", batch.place).to_lowercase();
        let mut results = Vec::new();
        for ((_, action), message) in batch.steps.iter().zip(&batch.messages) {
            let text = String::from_utf8(message[17..].to_vec()).unwrap();
            let sign = if *action == Action::Add { '+' } else { '-' };
            assert_eq!(message[16], sign as u8, "the right message of the pair is sent");
            let refused = self.refuses.as_ref() == Some(&text);
            match action {
                Action::Add if refused => self.log.push(format!("{place} + {text}")),
                Action::Add => {
                    self.log.push(format!("{place} + {text}"));
                    if !self.kernel.contains(&text) {
                        self.kernel.push(text);
                    }
                }
                Action::Del => {
                    self.log.push(format!("{place} - {text}"));
                    self.kernel.retain(|item| *item != text);
                }
            }
            results.push(if refused { Err("refused".to_owned()) } else { Ok(()) });
        }
        results
    }

    fn emitted(&mut self, message: FromKeeper) {
        let line = match message {
            FromKeeper::Hello { .. } => "hello".to_owned(),
            FromKeeper::Transition(transition) => {
                let state = if transition.state == HaState::Active { "active" } else { "standby" };
                format!("transition {state} {}", transition.epoch)
            }
            FromKeeper::Claimed { epoch, vtep, .. } => format!("claimed {epoch} {vtep}"),
            FromKeeper::Removed { .. } => "removed".to_owned(),
            FromKeeper::Status(_) => return,
            FromKeeper::Letter { to, datagram } => {
                let bytes = hex::decode(&datagram).unwrap();
                return self.letters.push((to, Question::parse(&bytes, OURS, &key()).unwrap()));
            }
            FromKeeper::Note { text, .. } => format!("note {text}"),
            FromKeeper::Warning { text } => format!("warning {text}"),
        };
        self.log.push(line);
    }
}

fn describe(frame: &[u8]) -> String {
    if let Some(question) = health::described(frame) {
        return question;
    }
    if let Ok(seen) = wire::peek(frame) {
        if frame[0] & 1 == 0 {
            return format!("ask {}", seen.priority);
        }
        return format!("advertise {}", seen.priority);
    }
    let ip: [u8; 4] = frame[28..32].try_into().unwrap();
    format!("announce {}", Ipv4Addr::from(ip))
}

fn key() -> ClaimKey {
    ClaimKey::new(b"cluster".to_vec()).unwrap()
}

fn settings() -> Settings {
    Settings {
        host: "h1".to_owned(),
        vtep: Some(OURS),
        claim_port: 3796,
        claim_key: hex::encode(b"cluster"),
        replication_port: None,
        serve_alone: false,
        bfd: BfdSettings::default(),
        health: HealthSettings::default(),
    }
}

fn bfd_settings(interval_ms: u32) -> Settings {
    Settings { bfd: BfdSettings { interval_ms, multiplier: 3 }, ..settings() }
}

/// A netlink header (length, type, flags, sequence, sender) and a text.
fn netlink(text: &str, replace: bool) -> String {
    let mut bytes = (16 + text.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(20u16.to_ne_bytes());
    bytes.extend(if replace { 0x100u16 } else { 0 }.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(text.bytes());
    hex::encode(&bytes)
}

fn item(key: &str, place: Place) -> Item {
    let message = |sign| netlink(&format!("{sign}{key}"), false);
    Item { key: key.to_owned(), place, add: message('+'), del: message('-') }
}

fn announce(ifindex: u32, ip: [u8; 4]) -> Announce {
    Announce { link: "qr-1".to_owned(), ifindex, mac: Mac([2, 0, 0, 0, 0, 1]), ip: IpAddr::from(ip) }
}

fn spec() -> RouterSpec {
    RouterSpec {
        router: R,
        ha_network: NetworkId::from_u128(1),
        netns: "qrouter-1".to_owned(),
        ha_link: "ha-1".to_owned(),
        ha_ifindex: HA_LINK,
        ha_mac: Mac([2, 0, 0, 0, 0, 0x10]),
        ha_address: "169.254.192.10/18".parse().unwrap(),
        vrid: 1,
        virtual_address: "169.254.0.1/24".parse().unwrap(),
        vrrp_version: 2,
        priority: 50,
        advertise_interval_cs: 200,
        preempt: false,
        preempt_delay_s: 0,
        password: None,
        peers: BTreeSet::new(),
        peer_hosts: BTreeMap::new(),
        items: vec![
            item("tap", Place::Host),
            item("vip", Place::Router),
            item("lan", Place::Router),
            item("default", Place::Router),
        ],
        announce: vec![announce(QR_LINK, [10, 0, 0, 1])],
        gateways: Vec::new(),
        uplinks: BTreeSet::new(),
        claim_to: BTreeSet::from([OURS, THEIRS, THIRD]),
        epoch: 0,
        wish: None,
        new: false,
        inherits: None,
        ready: true,
    }
}

fn follow(epoch: u64, vtep: Option<IpAddr>) -> FollowSpec {
    let entry = FollowEntry { mac: Mac([2, 0, 0, 0, 0, 1]), vxlan_ifindex: 5, tap_ifindex: Some(6) };
    FollowSpec { router: R, epoch, vtep, entries: vec![entry] }
}

fn advertisement(last_octet: u8, priority: u8) -> Vec<u8> {
    advertisement_of(1, last_octet, priority)
}

/// What another copy of a router with this VRID sends.
fn advertisement_of(vrid: u8, last_octet: u8, priority: u8) -> Vec<u8> {
    let source = Ipv4Addr::new(169, 254, 192, last_octet);
    frame_of(&Config::neutron(Vrid::new(vrid).unwrap(), source), last_octet, priority)
}

fn frame_of(config: &Config, last_octet: u8, priority: u8) -> Vec<u8> {
    let source = Ipv4Addr::new(169, 254, 192, last_octet);
    let config = config.clone();
    let advertisement = Advertisement {
        version: config.version,
        vrid: config.vrid,
        priority,
        advertise_interval_cs: config.advertise_interval_cs,
        addresses: config.addresses,
        password: None,
    };
    wire::ethernet_frame(&advertisement, [2, 0, 0, 0, 0, last_octet], source.into(), Ipv4Checksum::MessageOnly).unwrap()
}
