//! What all copies of a host share: settings, what is known of other hosts, and the queue of effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use evergate_kernel::rt::FoundPaths;
use evergate_model::{NetworkId, RouterId};
use tracing::warn;

use super::agreement::Agreement;
use super::discards::Discards;
use super::effect::Effect;
use super::lateness::Lateness;
use super::ledger::Wanted;
use super::liveness::Liveness;
use super::paths::Paths;
use crate::claims::book::{Book, Learned};
use crate::claims::outbox::{self, Outbox};
use crate::claims::wire::ClaimKey;
use crate::hex;
use crate::protocol::{FollowEntry, FollowSpec, FromKeeper, Settings};

/// What all copies of a host share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) key: Option<ClaimKey>,
    pub(super) book: Book,
    pub(super) outbox: Outbox,
    pub(super) follows: BTreeMap<RouterId, FollowSpec>,
    /// Where their entries lead.
    pub(super) paths: Paths,
    /// VRIDs in use, by HA network.
    pub(super) vrids: BTreeMap<NetworkId, BTreeSet<u8>>,
    pub(super) discards: Discards,
    pub(super) liveness: Liveness,
    /// Whether each link of the host's own namespace can carry something, by index.
    pub(super) host_links: BTreeMap<u32, bool>,
    pub(super) agreement: Agreement,
    pub(super) lateness: Lateness,
    pub(super) effects: VecDeque<Effect>,
    /// Copies that have something to announce, in the order of their turns.
    pub(super) announcing: VecDeque<RouterId>,
    /// Copies that are to hear which hosts hold all their connections.
    pub(super) incomplete: BTreeSet<RouterId>,
    /// Counts what was ever wanted of any copy's items.
    pub(super) generation: u64,
    /// When the last keeper before this one was last known to live, if that is known.
    pub(super) away_since: Option<Instant>,
    /// That keeper asked the other hosts for patience before it ended.
    pub(super) was_excused: bool,
    /// Control is still telling its whole state: copies that it told of do not start yet, because who
    /// is active elsewhere may come later.
    pub(super) syncing: bool,
}

impl Shared {
    pub(super) fn new(seed: u64, found: Option<FoundPaths>) -> Self {
        Self {
            settings: Settings::default(),
            key: None,
            book: Book::default(),
            outbox: Outbox::new(seed),
            follows: BTreeMap::new(),
            paths: Paths::new(found),
            vrids: BTreeMap::new(),
            discards: Discards::default(),
            liveness: Liveness::new(seed),
            host_links: BTreeMap::new(),
            agreement: Agreement::new(seed),
            lateness: Lateness::default(),
            effects: VecDeque::new(),
            announcing: VecDeque::new(),
            incomplete: BTreeSet::new(),
            generation: 0,
            away_since: None,
            was_excused: false,
            syncing: false,
        }
    }

    /// Names a change of what is wanted of a copy's items.
    pub(super) fn wanted(&mut self, router: RouterId) -> Wanted {
        self.generation += 1;
        Wanted { router, generation: self.generation }
    }

    pub(super) fn emit(&mut self, message: FromKeeper) {
        self.effects.push_back(Effect::Emit(message));
    }

    /// Tells the log and control.
    pub(super) fn warn(&mut self, text: String) {
        warn!("{text}");
        self.emit(FromKeeper::Warning { text });
    }

    /// A host that is not heard by BFD advertises.
    pub(super) fn still_advertises(&mut self, host: IpAddr) {
        if let Some(text) = self.liveness.contradicted(host) {
            self.warn(text);
        }
    }

    /// Counts a refused packet, and tells of it once per kind and sender.
    pub(super) fn discard(&mut self, router: Option<RouterId>, reason: &str, sender: impl FnOnce() -> String) {
        if let Some(text) = self.discards.count(router, reason, sender) {
            self.warn(text);
        }
    }

    /// Takes new settings; tells whether the address that we claim for has changed.
    pub(super) fn set_settings(&mut self, settings: Settings, now: Instant) -> bool {
        let moved = settings.vtep != self.settings.vtep;
        self.key = match hex::decode(&settings.claim_key) {
            Ok(bytes) => ClaimKey::new(bytes),
            Err(error) => {
                self.warn(format!("the claim key is unusable, so claims are neither sent nor believed: {error}"));
                None
            }
        };
        let address =
            settings.vtep.filter(|_| self.key.is_some()).map(|vtep| SocketAddr::new(vtep, settings.claim_port));
        let bfd = self.liveness.configure(settings.bfd, settings.vtep, self.key.as_ref(), now);
        self.settings = settings;
        self.agreement.reconfigure();
        self.effects.push_back(Effect::BindClaims(address));
        self.effects.extend(bfd.map(Effect::BindBfd));
        moved
    }

    /// Says to these hosts that this one has the router in this epoch.
    pub(super) fn claim(
        &mut self,
        router: RouterId,
        epoch: u64,
        to: &std::collections::BTreeSet<IpAddr>,
        now: Instant,
    ) {
        let mut to = to.clone();
        if let Some(vtep) = self.settings.vtep {
            to.remove(&vtep);
        }
        self.outbox.claim(router, epoch, &to, now);
    }

    /// Sends the claims that are due. Called last, so that routers that move at once share datagrams and
    /// the kernel is changed before anybody is told.
    pub(super) fn flush_claims(&mut self, now: Instant) {
        let due = self.outbox.take_due(now);
        let (Some(key), Some(vtep)) = (&self.key, self.settings.vtep) else { return };
        for (receiver, kind, claims) in due {
            let datagram = outbox::message(kind, vtep, &claims).emit(key);
            let to = SocketAddr::new(receiver, self.settings.claim_port);
            self.effects.push_back(Effect::SendClaim { to, datagram });
        }
    }

    /// Learns where a router is; forwarding follows unless the local copy is active, or was until a moment ago and
    /// goes on forwarding: its own items point the bridge to the local port.
    pub(super) fn learn(
        &mut self,
        (router, epoch, vtep): (RouterId, u64, Option<IpAddr>),
        local_holds: bool,
        now: Instant,
    ) -> Learned {
        let learned = self.book.learn(router, epoch, vtep);
        if learned == Learned::Newer {
            if !local_holds {
                self.go(router, now);
            }
            if let Some(vtep) = vtep.filter(|_| vtep != self.settings.vtep) {
                self.emit(FromKeeper::Claimed { router, epoch, vtep });
            }
        }
        learned
    }

    /// Points the forwarding entries of a router's addresses to where it was last claimed to be, whatever they
    /// were before.
    pub(super) fn apply_follow(&mut self, router: RouterId) {
        let Some(follow) = self.follows.get(&router) else { return };
        let batch = self.paths.set(router, &follow.entries, self.elsewhere(router));
        self.effects.extend(batch.map(Effect::RunBatch));
    }

    /// The same, where only its place has changed: the routers of one path go together.
    fn go(&mut self, router: RouterId, now: Instant) {
        let Some(follow) = self.follows.get(&router) else { return };
        let batch = match self.elsewhere(router) {
            Some(to) => self.paths.go(router, &follow.entries, to, now),
            None => self.paths.set(router, &follow.entries, None),
        };
        self.effects.extend(batch.map(Effect::RunBatch));
    }

    /// The host that a router was last claimed to be at, if that is another one.
    fn elsewhere(&self, router: RouterId) -> Option<IpAddr> {
        self.book.known(router).vtep.filter(|&vtep| Some(vtep) != self.settings.vtep)
    }

    /// Moves on the routers that have waited long enough for others of their path.
    pub(super) fn go_alone(&mut self, now: Instant) {
        for (router, to) in self.paths.overdue(now) {
            let Some(follow) = self.follows.get(&router) else { continue };
            let batch = self.paths.set(router, &follow.entries, Some(to));
            self.effects.extend(batch.map(Effect::RunBatch));
        }
    }

    /// The router's own copy is active: its entries are of no account until it is not.
    pub(super) fn park(&mut self, router: RouterId) {
        let batch = self.paths.park(router);
        self.effects.extend(batch.map(Effect::RunBatch));
    }

    /// Removes forwarding entries that nothing follows any more.
    pub(super) fn remove_entries(&mut self, router: RouterId, entries: &[FollowEntry]) {
        let batch = self.paths.remove(router, entries);
        self.effects.extend(batch.map(Effect::RunBatch));
    }

    /// Forgets entries of a router that are somebody else's now.
    pub(super) fn cede(&mut self, router: RouterId, entries: &[FollowEntry]) {
        if let Some(follow) = self.follows.get_mut(&router) {
            follow.entries.retain(|entry| !entries.contains(entry));
            self.paths.forget(entries);
        }
    }

    /// The kernel refused to do something about a router's entries.
    pub(super) fn distrust(&mut self, router: RouterId) {
        if let Some(follow) = self.follows.get(&router) {
            self.paths.distrust(&follow.entries);
        }
    }
}
