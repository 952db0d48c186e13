//! The thread that advertises routers: one packet socket per link, and an [`Advertiser`] behind it.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use evergate_kernel::rt::{Epoll, Filter, NetnsFd, PacketSocket};
use evergate_model::RouterId;
use evergate_model::host::AddressMode;
use tracing::{debug, warn};

use super::engine::{Advertiser, Config};
use super::message::{self, Advertisement, Prefix};
use crate::protocol::{AdvertiseLink, AdvertiseSpec};

/// How often what failed is tried again (a namespace or a link that is not there yet).
const RETRY: Duration = Duration::from_secs(1);
/// How long to sleep where nothing is to be done.
const IDLE: Duration = Duration::from_secs(60);
/// Solicitations that are taken from one link before others have their turn.
const PER_TURN: usize = 64;

// The defaults of radvd (AdvValidLifetime, AdvPreferredLifetime), which Neutron leaves as they are.
const VALID: Duration = Duration::from_secs(86_400);
const PREFERRED: Duration = Duration::from_secs(14_400);

const BELL: u64 = 0;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    /// Advertise the router on these links and no others.
    Advertise(AdvertiseSpec),
    /// On these links it is no router any more: say so, and be silent.
    Cease { router: RouterId, links: Vec<String> },
    /// Be silent: somebody else speaks for the router now.
    Hush { router: RouterId },
}

/// A router that is advertised.
struct Router {
    spec: AdvertiseSpec,
    /// By index.
    links: BTreeMap<u32, Link>,
    retry_at: Option<Instant>,
    told: bool,
}

struct Link {
    spec: AdvertiseLink,
    socket: PacketSocket,
    token: u64,
    advertiser: Advertiser,
}

/// The thread's state.
pub(super) struct Worker {
    netns_path: PathBuf,
    epoll: Epoll,
    routers: BTreeMap<RouterId, Router>,
    tokens: BTreeMap<u64, (RouterId, u32)>,
    /// Never repeats, so that a late event is not taken for another link's.
    next_token: u64,
    seed: u64,
}

impl Worker {
    pub(super) fn new(netns_path: PathBuf, seed: u64) -> anyhow::Result<Self> {
        let (routers, tokens) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { netns_path, epoll: Epoll::new()?, routers, tokens, next_token: BELL + 1, seed })
    }

    /// Runs until nobody gives commands any more.
    pub(super) fn run(mut self, commands: &Receiver<Command>, mut bell: UnixStream) -> anyhow::Result<()> {
        self.epoll.add(&bell, BELL)?;
        let mut ready = Vec::new();
        loop {
            self.epoll.wait(Some(self.deadline()), &mut ready)?;
            if ready.contains(&BELL) {
                // First the bell, then the list: the other way round, what comes in between would be silent.
                while matches!(bell.read(&mut [0; 256]), Ok(256)) {}
                loop {
                    match commands.try_recv() {
                        Ok(command) => self.take(command),
                        Err(TryRecvError::Empty) => break,
                        Err(TryRecvError::Disconnected) => return Ok(()),
                    }
                }
            }
            ready.iter().filter(|token| **token != BELL).for_each(|token| self.receive(*token));
            self.handle_timers(Instant::now());
        }
    }

    fn deadline(&self) -> Instant {
        let links = self.routers.values().flat_map(|router| router.links.values());
        let retries = self.routers.values().filter_map(|router| router.retry_at);
        links.map(|link| link.advertiser.poll_timeout()).chain(retries).fold(Instant::now() + IDLE, Instant::min)
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Advertise(spec) => {
                let router = spec.router;
                if self.routers.get(&router).is_some_and(|known| known.spec.netns != spec.netns) {
                    self.hush(router);
                }
                let new = Router { spec: spec.clone(), links: BTreeMap::new(), retry_at: None, told: false };
                self.routers.entry(router).or_insert(new).spec = spec;
                self.align(router, Instant::now());
            }
            Command::Cease { router, links } => {
                let Some(known) = self.routers.get_mut(&router) else { return };
                known.spec.links.retain(|link| !links.contains(&link.link));
                for link in known.links.values_mut().filter(|link| links.contains(&link.spec.link)) {
                    link.advertiser.handle_end();
                    link.send();
                }
                self.align(router, Instant::now());
            }
            Command::Hush { router } => self.hush(router),
        }
    }

    fn hush(&mut self, router: RouterId) {
        for link in self.routers.remove(&router).into_iter().flat_map(|router| router.links.into_values()) {
            self.tokens.remove(&link.token);
        }
    }

    /// Opens and closes links as the router's specification says.
    fn align(&mut self, router: RouterId, now: Instant) {
        let Some(known) = self.routers.get_mut(&router) else { return };
        known.retry_at = None;
        let wanted: BTreeMap<u32, AdvertiseLink> =
            known.spec.links.iter().map(|link| (link.ifindex, link.clone())).collect();
        // Advertisements come from the link's address: with another, it is another router.
        let stays = |index: &u32, link: &Link| {
            wanted.get(index).is_some_and(|new| (new.mac, new.source) == (link.spec.mac, link.spec.source))
        };
        let gone: Vec<u32> =
            known.links.iter().filter(|(index, link)| !stays(index, link)).map(|(index, _)| *index).collect();
        for index in gone {
            known.links.remove(&index).map(|link| self.tokens.remove(&link.token));
        }
        for (index, spec) in wanted {
            let config = config(known.spec.interval, &spec);
            if let Some(link) = known.links.get_mut(&index) {
                link.spec = spec;
                link.advertiser.handle_config(config, now);
                link.send();
                continue;
            }
            let opened = NetnsFd::open(&self.netns_path.join(&known.spec.netns))
                .and_then(|netns| PacketSocket::open(&netns, index, Filter::RouterSolicitations));
            let token = self.next_token;
            match opened.map_err(|error| error.full()).and_then(|socket| {
                self.epoll.add(&socket, token).map_err(|error| error.to_string())?;
                Ok(socket)
            }) {
                Ok(socket) => {
                    self.next_token += 1;
                    self.tokens.insert(token, (router, index));
                    let seed = self.seed ^ token.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let advertiser = Advertiser::new(config, seed, now);
                    let mut link = Link { spec, socket, token, advertiser };
                    link.send();
                    known.links.insert(index, link);
                }
                Err(error) => {
                    known.retry_at = Some(now + RETRY);
                    if !std::mem::replace(&mut known.told, true) {
                        warn!(%router, link = spec.link, "the router is not advertised: {error}; trying again");
                    }
                }
            }
        }
        if known.retry_at.is_none() {
            known.told = false;
        }
    }

    fn receive(&mut self, token: u64) {
        let Some((router, index)) = self.tokens.get(&token) else { return };
        let Some(link) = self.routers.get_mut(router).and_then(|router| router.links.get_mut(index)) else { return };
        let mut frame = [0; 512];
        for _ in 0..PER_TURN {
            // An error is the link's going down. What it missed is asked for again when it is up.
            let Ok(Some(length)) = link.socket.recv(&mut frame) else { return };
            if let Some(asker) = message::parse_solicitation(&frame[..length]) {
                link.advertiser.handle_solicitation(asker, Instant::now());
            }
        }
    }

    fn handle_timers(&mut self, now: Instant) {
        for link in self.routers.values_mut().flat_map(|router| router.links.values_mut()) {
            if link.advertiser.poll_timeout() <= now {
                link.advertiser.handle_timeout(now);
                link.send();
            }
        }
        let due = |router: &Router| router.retry_at.is_some_and(|at| at <= now);
        let retries: Vec<RouterId> = self.routers.iter().filter(|(_, router)| due(router)).map(|(id, _)| *id).collect();
        retries.into_iter().for_each(|router| self.align(router, now));
    }
}

impl Link {
    fn send(&mut self) {
        while let Some((to, advertisement)) = self.advertiser.poll_output() {
            let frame = message::frame(&advertisement, (self.spec.mac.0, self.spec.source), to);
            if let Err(error) = self.socket.send(&frame) {
                // Losing it is like losing it on the wire: the next one comes.
                debug!(link = self.spec.link, "failed to send an advertisement: {error}");
            }
        }
    }
}

/// What Neutron's radvd would be told (`neutron.agent.linux.ra`).
fn config((least, most): (u16, u16), spec: &AdvertiseLink) -> Config {
    let (least, most) = (Duration::from_secs(least.into()), Duration::from_secs(most.into()));
    let has = |mode: AddressMode| spec.prefixes.values().any(|found| *found == mode);
    let prefix = |(net, mode): (&ipnet::Ipv6Net, &AddressMode)| Prefix {
        net: *net,
        autonomous: *mode != AddressMode::Dhcpv6Stateful,
        valid: VALID,
        preferred: PREFERRED,
    };
    let advertisement = Advertisement {
        managed: has(AddressMode::Dhcpv6Stateful),
        other: has(AddressMode::Dhcpv6Stateless),
        // RFC 4861 §6.2.1 and RFC 8106 §5.1: three times MaxRtrAdvInterval.
        router_lifetime: most * 3,
        prefixes: spec.prefixes.iter().map(prefix).collect(),
        mtu: spec.mtu,
        dns_servers: (spec.dns_servers.clone(), most * 3),
    };
    Config { interval: (least, most), advertisement }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(modes: &[(&str, AddressMode)]) -> AdvertiseLink {
        AdvertiseLink {
            link: "qr-1".to_owned(),
            ifindex: 2,
            mac: "fa:16:3e:00:00:01".parse().unwrap(),
            source: "fe80::1".parse().unwrap(),
            mtu: 1450,
            prefixes: modes.iter().map(|(net, mode)| (net.parse().unwrap(), *mode)).collect(),
            dns_servers: Vec::new(),
        }
    }

    #[test]
    fn the_flags_are_those_of_the_subnets_modes() {
        use AddressMode::{Dhcpv6Stateful, Dhcpv6Stateless, Slaac};
        // Mode: M, O, A. As in Neutron's radvd.conf.
        for (mode, expected) in [
            (Slaac, (false, false, true)),
            (Dhcpv6Stateless, (false, true, true)),
            (Dhcpv6Stateful, (true, false, false)),
        ] {
            let found = config((30, 100), &spec(&[("2001:db8::/64", mode)])).advertisement;
            assert_eq!((found.managed, found.other, found.prefixes[0].autonomous), expected, "{mode:?}");
            assert_eq!(found.router_lifetime, Duration::from_secs(300));
        }
    }
}
