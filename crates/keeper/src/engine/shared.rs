//! What all copies of a host share: settings, what is known of other hosts, and the queue of effects.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use evergate_dataplane::state::FdbTable;
use evergate_kernel::rt;
use evergate_model::{NetworkId, RouterId};
use tracing::warn;

use super::discards::Discards;
use super::effect::{Action, Batch, Effect, Purpose};
use super::ledger::Wanted;
use super::liveness::Liveness;
use crate::claims::book::{Book, Learned};
use crate::claims::outbox::{self, Outbox};
use crate::claims::wire::ClaimKey;
use crate::hex;
use crate::protocol::{FollowEntry, FollowSpec, FromKeeper, Place, Settings};

/// What all copies of a host share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) key: Option<ClaimKey>,
    pub(super) book: Book,
    pub(super) outbox: Outbox,
    pub(super) follows: BTreeMap<RouterId, FollowSpec>,
    /// VRIDs in use, by HA network.
    pub(super) vrids: BTreeMap<NetworkId, BTreeSet<u8>>,
    pub(super) discards: Discards,
    pub(super) liveness: Liveness,
    /// Whether each link of the host's own namespace can carry something, by index.
    pub(super) host_links: BTreeMap<u32, bool>,
    pub(super) effects: VecDeque<Effect>,
    /// Counts what was ever wanted of any copy's items.
    pub(super) generation: u64,
    /// When the last keeper before this one was last known to live, if that is known.
    pub(super) away_since: Option<Instant>,
    /// Control is still telling its whole state: copies that it told of do not start yet, because who
    /// is active elsewhere may come later.
    pub(super) syncing: bool,
}

impl Shared {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            settings: Settings::default(),
            key: None,
            book: Book::default(),
            outbox: Outbox::new(seed),
            follows: BTreeMap::new(),
            vrids: BTreeMap::new(),
            discards: Discards::default(),
            liveness: Liveness::new(seed),
            host_links: BTreeMap::new(),
            effects: VecDeque::new(),
            generation: 0,
            away_since: None,
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
    pub(super) fn discard(&mut self, router: Option<RouterId>, reason: &str, sender: &str) {
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

    /// Learns where a router is; forwarding follows unless the local copy is active, whose own items
    /// point the bridge to the local port.
    pub(super) fn learn(&mut self, router: RouterId, epoch: u64, vtep: Option<IpAddr>, local_active: bool) -> Learned {
        let learned = self.book.learn(router, epoch, vtep);
        if learned == Learned::Newer {
            if !local_active {
                self.apply_follow(router);
            }
            if let Some(vtep) = vtep.filter(|_| vtep != self.settings.vtep) {
                self.emit(FromKeeper::Claimed { router, epoch, vtep });
            }
        }
        learned
    }

    /// Points the forwarding entries of a router's addresses to where it was last claimed to be. If
    /// nobody said, they go: unknown addresses are flooded, which reaches whoever has the router.
    pub(super) fn apply_follow(&mut self, router: RouterId) {
        let Some(follow) = self.follows.get(&router) else { return };
        let elsewhere = self.book.known(router).vtep.filter(|&vtep| Some(vtep) != self.settings.vtep);
        let batch = follow_batch(router, &follow.entries, elsewhere);
        self.effects.extend(batch.map(Effect::RunBatch));
    }

    /// Removes forwarding entries that nothing follows any more.
    pub(super) fn remove_entries(&mut self, router: RouterId, entries: &[FollowEntry]) {
        self.effects.extend(follow_batch(router, entries, None).map(Effect::RunBatch));
    }
}

/// Both tables of each entry: the VXLAN device's own (to which host) and the bridge's (by which port).
fn follow_batch(router: RouterId, entries: &[FollowEntry], vtep: Option<IpAddr>) -> Option<Batch> {
    let mut batch = Batch {
        router,
        place: Place::Host,
        purpose: Purpose::Follow,
        generation: 0,
        steps: Vec::new(),
        messages: Vec::new(),
    };
    for entry in entries {
        let (link, mac) = (entry.vxlan_ifindex, entry.mac);
        let mut step = |what: String, action, message| {
            batch.steps.push((what, action));
            batch.messages.push(message);
        };
        if let Some(dst) = vtep {
            let table = FdbTable::Vxlan { dst };
            step(format!("forwarding of {mac} to {dst}"), Action::Add, rt::fdb_replace_message(link, mac, &table));
            let message = rt::fdb_replace_message(link, mac, &FdbTable::Bridge);
            step(format!("forwarding of {mac} to the tunnel"), Action::Add, message);
        } else {
            // The destination does not matter for removal: the entry is found by its address.
            let table = FdbTable::Vxlan { dst: IpAddr::from([0, 0, 0, 0]) };
            step(format!("forwarding of {mac}"), Action::Del, rt::fdb_delete_message(link, mac, &table));
            let message = rt::fdb_delete_message(link, mac, &FdbTable::Bridge);
            step(format!("forwarding of {mac} to the tunnel"), Action::Del, message);
        }
    }
    (!batch.messages.is_empty()).then_some(batch)
}
