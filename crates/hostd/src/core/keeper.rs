//! Control's side of the conversation with the keeper: what it was told, what it must be told, and what
//! it said.
//!
//! Everything is told as state: after a reconnection all of it again, later what differs from what was
//! told. The protocol is in [`evergate_keeper::protocol`].
//!
//! What a copy's removal means depends on where the copy is, and a control that has just started knows that only
//! from the keeper's own words. So nothing is removed before the keeper has said what it has, and
//! [`ToKeeper::EndOfState`] (whereupon it drops what was not mentioned) waits until each removal was asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_keeper::protocol::{
    AdvertiseSpec, FollowSpec, PROTOCOL_VERSION, Removal, RouterSpec, RouterStatus, Settings, Status, ToKeeper,
    Transition,
};
use evergate_model::host::{ActiveCopy, HostConfig, Location, Router};
use evergate_model::{HaState, Mac, NetworkId, RouterId, names};

use super::{DESCRIBE_PATIENCE, INTRODUCTION_PATIENCE, REMOVAL_PATIENCE, STATUS_PERIOD};
use crate::round::{Outcome, PreparedCopy};

/// The keeper's last words that are kept for `show`.
const WARNINGS_KEPT: usize = 20;

/// Routers that the keeper is asked to let go of at a time. It closes their sockets, which may take the
/// kernel tens of milliseconds each; meanwhile it must find time for its other routers.
const REMOVALS_AT_ONCE: usize = 4;

/// A keeper that is away for longer than its supervisor needs to start another one is worth a warning.
const AWAY_WORTH_SAYING: Duration = Duration::from_secs(2);

/// What a copy is, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Active or standby.
    pub state: HaState,
    /// Epoch.
    pub epoch: u64,
    /// Milliseconds since the Unix epoch; `None` where it was so when this process started.
    pub since_ms: Option<u64>,
    /// Why, in the keeper's words.
    pub reason: String,
    /// How long the change took, in microseconds.
    pub took_us: u64,
}

/// The connection to the keeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// There is none.
    Away {
        /// Since when.
        since: Instant,
    },
    /// There is one.
    Up {
        /// Since when; since [`ToKeeper::Hello`], once it was said.
        since: Instant,
        /// Whether [`ToKeeper::Hello`] was said.
        greeted: bool,
        /// Whether the keeper has said what its copies are: which of them are active, and where they are, matters
        /// to what it is told.
        introduced: bool,
        /// Whether [`ToKeeper::EndOfState`] was said.
        complete: bool,
    },
}

/// What the keeper said about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Words {
    /// Its protocol version and process id.
    pub hello: Option<(u32, u32)>,
    /// What the host did not permit it.
    pub notes: Vec<String>,
    /// Its last status.
    pub status: Status,
    /// Its last warnings.
    pub warnings: VecDeque<String>,
}

/// A router that the keeper is to let go of.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// Until when it is waited for, once the keeper was asked.
    until: Option<Instant>,
}

/// All about the keeper.
#[derive(Debug)]
pub struct KeeperSide {
    connection: Connection,
    words: Words,
    /// Set once a round prepared anything in this life: before, nothing is known to say.
    prepared_once: bool,
    copies: BTreeMap<RouterId, PreparedCopy>,
    followed: BTreeMap<RouterId, FollowSpec>,
    advertised: BTreeMap<RouterId, AdvertiseSpec>,
    told_settings: Option<Settings>,
    told: BTreeMap<RouterId, RouterSpec>,
    /// Every copy that the keeper has, as far as is known, and its namespace; `None`: an older version's keeper,
    /// which does not say.
    held: BTreeMap<RouterId, Option<String>>,
    told_followed: BTreeMap<RouterId, FollowSpec>,
    told_advertised: BTreeMap<RouterId, AdvertiseSpec>,
    told_vrids: BTreeMap<NetworkId, BTreeSet<u8>>,
    /// Routers to be let go of.
    leaving: BTreeMap<RouterId, Leaving>,
    released: BTreeSet<RouterId>,
    roles: BTreeMap<RouterId, Role>,
    claims: BTreeMap<RouterId, ActiveCopy>,
    status_at: Instant,
}

impl KeeperSide {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            connection: Connection::Away { since: now },
            words: Words::default(),
            prepared_once: false,
            copies: BTreeMap::new(),
            followed: BTreeMap::new(),
            advertised: BTreeMap::new(),
            told_settings: None,
            told: BTreeMap::new(),
            held: BTreeMap::new(),
            told_followed: BTreeMap::new(),
            told_advertised: BTreeMap::new(),
            told_vrids: BTreeMap::new(),
            leaving: BTreeMap::new(),
            released: BTreeSet::new(),
            roles: BTreeMap::new(),
            claims: BTreeMap::new(),
            status_at: now + STATUS_PERIOD,
        }
    }

    pub(super) fn connected(&mut self, now: Instant) {
        self.connection = Connection::Up { since: now, greeted: false, introduced: false, complete: false };
        self.told_settings = None;
        self.told.clear();
        self.held.clear();
        self.told_followed.clear();
        self.told_advertised.clear();
        self.told_vrids.clear();
        // What was asked for on the old connection may have got lost with it.
        self.leaving.values_mut().for_each(|leaving| leaving.until = None);
    }

    pub(super) fn gone(&mut self, now: Instant) {
        if matches!(self.connection, Connection::Up { .. }) {
            self.connection = Connection::Away { since: now };
        }
    }

    pub(super) fn greeted(&mut self, version: u32, pid: u32, notes: Vec<String>) {
        self.words.hello = Some((version, pid));
        self.words.notes = notes;
    }

    pub(super) fn warn(&mut self, text: String) {
        // The keeper has logged it.
        self.words.warnings.push_back(text);
        if self.words.warnings.len() > WARNINGS_KEPT {
            self.words.warnings.pop_front();
        }
    }

    /// Forgets copies that are wanted no more, and lets go of those that the keeper has.
    pub(super) fn retain(&mut self, wanted: &BTreeSet<RouterId>) {
        self.copies.retain(|id, _| wanted.contains(id));
        self.roles.retain(|id, _| wanted.contains(id));
        // A router that came back before it had gone is wanted, and not removed.
        self.leaving.retain(|id, _| !wanted.contains(id));
        self.released.retain(|id| !wanted.contains(id));
        for router in self.held_but(wanted) {
            self.let_go(router);
        }
    }

    fn held_but(&self, wanted: &BTreeSet<RouterId>) -> Vec<RouterId> {
        self.held.keys().filter(|id| !wanted.contains(id)).copied().collect()
    }

    /// Begins the removal of a router, unless it has begun or is over.
    pub(super) fn let_go(&mut self, router: RouterId) {
        if !self.released.contains(&router) {
            self.told.remove(&router);
            self.leaving.entry(router).or_insert(Leaving { until: None });
        }
    }

    /// Routers that the keeper is still to be asked to let go of, and what becomes of each.
    fn unasked(&self, config: &HostConfig) -> Vec<(RouterId, Removal)> {
        let unasked = self.leaving.iter().filter(|(_, leaving)| leaving.until.is_none());
        unasked.map(|(router, _)| (*router, self.removal(*router, config))).collect()
    }

    /// What becomes of a router whose copy here goes.
    fn removal(&self, router: RouterId, config: &HostConfig) -> Removal {
        let Some(changed) = config.routers.get(&router).filter(|router| router.admin_state_up) else {
            return Removal::Leaves;
        };
        let was_in = self.held.get(&router).and_then(Option::as_ref);
        match (gateway_namespace(changed), was_in) {
            (Some(netns), Some(was_in)) if netns == *was_in => Removal::Remains,
            (Some(_), Some(_)) => Removal::Changes,
            // It may have been in another, but most routers stay where they are. Where it does not, what the keeper
            // leaves behind goes with that namespace or its devices; the other mistake would take away what serves.
            (Some(_), None) => Removal::Remains,
            (None, _) if is_ha(changed, config) => Removal::Leaves,
            (None, _) => Removal::Changes,
        }
    }

    /// Asks the keeper to let go of routers, a few at a time.
    fn ask_removals(&mut self, config: &HostConfig, now: Instant, messages: &mut Vec<ToKeeper>) {
        // Where nobody can be asked, nobody need be spared.
        let greeted = matches!(self.connection, Connection::Up { greeted: true, .. });
        let most = if greeted { REMOVALS_AT_ONCE } else { usize::MAX };
        let asked = self.leaving.values().filter(|leaving| leaving.until.is_some()).count();
        let mut next = self.unasked(config);
        // What ends here is over in milliseconds; a handover may take seconds.
        next.sort_by_key(|(_, how)| *how == Removal::Leaves);
        for (router, how) in next.into_iter().take(most.saturating_sub(asked)) {
            self.leaving.insert(router, Leaving { until: Some(now + REMOVAL_PATIENCE) });
            if greeted {
                messages.push(ToKeeper::RemoveRouter { router, how });
            }
        }
    }

    /// Takes [`evergate_keeper::protocol::FromKeeper::Removed`]; tells whether that was waited for.
    pub(super) fn removed(&mut self, router: RouterId) -> bool {
        self.held.remove(&router);
        let waited = self.leaving.remove(&router).is_some();
        if waited {
            self.released.insert(router);
        }
        waited
    }

    /// Gives up waiting for the keeper to let go, where the time is over.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<RouterId> {
        let is_late = |leaving: &Leaving| leaving.until.is_some_and(|at| at <= now);
        let late: Vec<RouterId> =
            self.leaving.iter().filter(|(_, leaving)| is_late(leaving)).map(|(id, _)| *id).collect();
        for router in &late {
            self.removed(*router);
        }
        late
    }

    /// Forgets routers that were let go of and are gone from the kernel now.
    pub(super) fn forget_released(&mut self, outcome: &Outcome) {
        // What was left over when the round began is gone now, if all went well and nothing is left for
        // later: while one router is withheld, all stay.
        let gone = outcome.failures.is_empty() && outcome.withheld.is_empty() && !outcome.unfinished;
        self.released.retain(|id| outcome.leftover.contains(id) && !gone);
    }

    pub(super) fn take_prepared(
        &mut self,
        prepared: BTreeMap<RouterId, PreparedCopy>,
        followed: BTreeMap<RouterId, FollowSpec>,
        advertised: BTreeMap<RouterId, AdvertiseSpec>,
    ) {
        // A copy that could not be prepared this time stays as it was: to leave it out would end it.
        self.copies.extend(prepared);
        (self.followed, self.advertised) = (followed, advertised);
        self.prepared_once = true;
    }

    /// Says what the keeper has not been told yet.
    pub(super) fn sync(&mut self, settings: &Settings, config: &HostConfig, now: Instant) -> Vec<ToKeeper> {
        let mut messages = Vec::new();
        let Connection::Up { since, greeted, introduced, complete } = self.connection else {
            self.ask_removals(config, now, &mut messages);
            return messages;
        };
        let since = if greeted { since } else { now };
        if !greeted {
            messages.push(ToKeeper::Hello { version: PROTOCOL_VERSION, settings: settings.clone() });
            messages.push(ToKeeper::Status);
            self.connection = Connection::Up { since, greeted: true, introduced, complete };
        } else if self.told_settings.as_ref() != Some(settings) {
            messages.push(ToKeeper::Settings { settings: settings.clone() });
        }
        self.told_settings = Some(settings.clone());
        let may_tell = introduced || now >= since + INTRODUCTION_PATIENCE;
        if may_tell {
            self.ask_removals(config, now, &mut messages);
        }
        let mut finished = complete;
        if self.prepared_once && may_tell {
            self.tell_vrids(config, &mut messages);
            self.tell_copies(config, &mut messages);
            self.tell_followed(config, &mut messages);
            self.tell_advertised(config, &mut messages);
            if !complete && self.is_all_said(config, introduced, now >= since + DESCRIBE_PATIENCE) {
                messages.push(ToKeeper::EndOfState);
                finished = true;
            }
        }
        self.connection = Connection::Up { since, greeted: true, introduced, complete: finished };
        messages
    }

    /// Whether the keeper may drop what was not mentioned. Once patience is over it may, but for what does not go as
    /// such: each of those is over in milliseconds, or given up.
    fn is_all_said(&self, config: &HostConfig, introduced: bool, impatient: bool) -> bool {
        let unasked = self.unasked(config);
        let described = || super::wanted_copies(config).iter().all(|id| self.told.contains_key(id));
        if impatient {
            unasked.iter().all(|(_, how)| *how == Removal::Leaves)
        } else {
            introduced && unasked.is_empty() && described()
        }
    }

    /// Before the copies, so that none of them takes a neighbour for a stranger.
    fn tell_vrids(&mut self, config: &HostConfig, messages: &mut Vec<ToKeeper>) {
        let known = |id: &NetworkId| config.networks.get(id).map(|network| &network.vrids);
        let gone = self.told_vrids.keys().filter(|id| known(id).is_none_or(BTreeSet::is_empty)).copied();
        for network in gone.collect::<Vec<_>>() {
            self.told_vrids.remove(&network);
            messages.push(ToKeeper::Vrids { network, vrids: BTreeSet::new() });
        }
        for (network, vrids) in config.networks.iter().map(|(id, network)| (*id, &network.vrids)) {
            if !vrids.is_empty() && self.told_vrids.get(&network) != Some(vrids) {
                self.told_vrids.insert(network, vrids.clone());
                messages.push(ToKeeper::Vrids { network, vrids: vrids.clone() });
            }
        }
    }

    fn tell_copies(&mut self, config: &HostConfig, messages: &mut Vec<ToKeeper>) {
        for (id, copy) in &self.copies {
            if self.leaving.contains_key(id) {
                continue;
            }
            let told = self.told.get(id);
            let mut spec = copy.spec.clone();
            // What takes part goes on doing so: one network of many that is disturbed here is no reason to
            // take the router away from the others. The HA interface is watched by the keeper.
            let takes_part = told.is_some_and(|told| told.ready && told.ha_ifindex == spec.ha_ifindex);
            let is_active = self.roles.get(id).is_some_and(|role| role.state == HaState::Active);
            spec.ready |= takes_part || is_active;
            // The epoch alone is nothing to repeat the whole for: the keeper learns it from claims, and
            // from what it follows. Nor is that the router is not new any more, or how it came to be.
            if let Some(told) = told
                && (RouterSpec { epoch: told.epoch, new: told.new, inherits: told.inherits, ..spec.clone() }) == *told
            {
                continue;
            }
            let known = self.known_epoch(*id, config);
            spec.epoch = spec.epoch.max(known);
            // It was prepared some time ago: a keeper that starts again must wait as it would for any.
            spec.new &= known == 0 && !config.active_copies.contains_key(id);
            let recorded = config.active_copies.get(id).map_or(0, |copy| copy.epoch);
            spec.inherits = spec.inherits.filter(|epoch| known.max(recorded) <= *epoch);
            self.held.insert(*id, Some(spec.netns.clone()));
            self.told.insert(*id, spec.clone());
            messages.push(ToKeeper::Router(Box::new(spec)));
        }
    }

    fn tell_followed(&mut self, config: &HostConfig, messages: &mut Vec<ToKeeper>) {
        self.tell_ceded(config, messages);
        let gone: Vec<RouterId> =
            self.told_followed.keys().filter(|id| !self.followed.contains_key(id)).copied().collect();
        for router in gone {
            self.told_followed.remove(&router);
            messages.push(ToKeeper::Unfollow { router });
        }
        for (id, spec) in &self.followed {
            let mut spec = spec.clone();
            if let Some(server) = config.active_copies.get(id)
                && server.epoch >= spec.epoch
            {
                (spec.epoch, spec.vtep) = (server.epoch, Some(server.vtep));
            }
            if self.told_followed.get(id) != Some(&spec) {
                self.told_followed.insert(*id, spec.clone());
                messages.push(ToKeeper::Follow(spec));
            }
        }
    }

    /// A router that is HA no more has its ports at one host, and the entries of theirs are control's: the round
    /// that was just run has set them, and the keeper must not take them away.
    fn tell_ceded(&mut self, config: &HostConfig, messages: &mut Vec<ToKeeper>) {
        let is_followed = |router: &RouterId, mac: Mac| {
            let spec = self.followed.get(router);
            spec.is_some_and(|spec| spec.entries.iter().any(|entry| entry.mac == mac))
        };
        let ended: BTreeSet<Mac> = self
            .told_followed
            .iter()
            .flat_map(|(router, spec)| spec.entries.iter().map(move |entry| (router, entry.mac)))
            .filter(|(router, mac)| !is_followed(router, *mac))
            .map(|(_, mac)| mac)
            .collect();
        if ended.is_empty() {
            return;
        }
        let ports = config.networks.values().flat_map(|network| network.ports.values());
        let elsewhere = ports.filter(|port| matches!(port.location, Location::Remote { .. })).map(|port| port.mac);
        let ceded: BTreeSet<Mac> = elsewhere.filter(|mac| ended.contains(mac)).collect();
        for (router, spec) in &mut self.told_followed {
            let (entries, kept) = spec.entries.drain(..).partition(|entry| ceded.contains(&entry.mac));
            spec.entries = kept;
            if !Vec::is_empty(&entries) {
                messages.push(ToKeeper::Cede { router: *router, entries });
            }
        }
    }

    fn tell_advertised(&mut self, config: &HostConfig, messages: &mut Vec<ToKeeper>) {
        for (router, spec) in &mut self.told_advertised {
            // A router that this host is not told of any more may go on elsewhere: nothing is said of its end.
            let Some(now) = config.routers.get(router) else { continue };
            let wanted = advertising_devices(now);
            let (stay, ended): (Vec<_>, Vec<_>) = spec.links.drain(..).partition(|link| wanted.contains(&link.link));
            spec.links = stay;
            if !ended.is_empty() {
                // Before the round that takes the devices away.
                let links = ended.into_iter().map(|link| link.link).collect();
                messages.push(ToKeeper::CeaseAdvertising { router: *router, links });
            }
        }
        for (router, spec) in &mut self.advertised {
            let wanted = config.routers.get(router).map(advertising_devices).unwrap_or_default();
            // What was prepared for an earlier configuration.
            spec.links.retain(|link| wanted.contains(&link.link));
        }
        let gone: Vec<RouterId> =
            self.told_advertised.keys().filter(|router| !self.advertised.contains_key(router)).copied().collect();
        for router in gone {
            self.told_advertised.remove(&router);
            messages.push(ToKeeper::Unadvertise { router });
        }
        for (router, spec) in &self.advertised {
            if self.told_advertised.get(router) != Some(spec) {
                self.told_advertised.insert(*router, spec.clone());
                messages.push(ToKeeper::Advertise(spec.clone()));
            }
        }
    }

    fn known_epoch(&self, router: RouterId, config: &HostConfig) -> u64 {
        let server = config.routers.get(&router).and_then(|r| r.ha.as_ref()).map_or(0, |ha| ha.epoch);
        let claimed = self.claims.get(&router).map_or(0, |c| c.epoch);
        let own = self.roles.get(&router).map_or(0, |role| role.epoch);
        server.max(claimed).max(own)
    }

    pub(super) fn claimed(&mut self, router: RouterId, claim: ActiveCopy) {
        let known = self.claims.entry(router).or_insert(claim);
        if claim.epoch >= known.epoch {
            *known = claim;
        }
    }

    /// Takes a transition; false if it was known already.
    pub(super) fn take_transition(&mut self, transition: &Transition, vtep: Option<IpAddr>) -> bool {
        let role = Role {
            state: transition.state,
            epoch: transition.epoch,
            since_ms: Some(transition.at_ms),
            reason: transition.reason.clone(),
            took_us: transition.took_us,
        };
        if transition.state == HaState::Active
            && let Some(vtep) = vtep
        {
            self.claimed(transition.router, ActiveCopy { epoch: transition.epoch, vtep });
        }
        let known = self.roles.get(&transition.router) == Some(&role);
        self.roles.insert(transition.router, role);
        !known
    }

    /// Takes the keeper's status, and names the copies whose state was not known to be so. With the first one of a
    /// connection it says which copies it has.
    pub(super) fn take_status(&mut self, status: Status, wanted: &BTreeSet<RouterId>) -> Vec<(RouterId, HaState)> {
        let mut news = Vec::new();
        for copy in status.routers.iter().filter(|copy| wanted.contains(&copy.router)) {
            match self.roles.get_mut(&copy.router) {
                Some(role) if role.state == copy.state => role.epoch = copy.epoch,
                Some(_) | None => {
                    self.roles.insert(copy.router, found(copy));
                    news.push((copy.router, copy.state));
                }
            }
        }
        for claim in &status.claims {
            if let Some(vtep) = claim.vtep {
                self.claimed(claim.router, ActiveCopy { epoch: claim.epoch, vtep });
            }
        }
        if let Connection::Up { introduced, .. } = &mut self.connection
            && !std::mem::replace(introduced, true)
        {
            let has = |copy: &RouterStatus| (copy.router, Some(copy.netns.clone()).filter(|netns| !netns.is_empty()));
            let before = std::mem::take(&mut self.held);
            self.held = status.routers.iter().map(has).chain(before).collect();
            for router in self.held_but(wanted) {
                // Whatever was waited for in vain on an earlier connection.
                self.released.remove(&router);
                self.let_go(router);
            }
        }
        self.words.status = status;
        news
    }

    pub(super) fn status_deadline(&self) -> Option<Instant> {
        matches!(self.connection, Connection::Up { complete: true, .. }).then_some(self.status_at)
    }

    pub(super) fn status_due(&mut self, now: Instant) -> bool {
        let due = self.status_deadline().is_some_and(|at| at <= now);
        if due {
            self.status_at = now + STATUS_PERIOD;
        }
        due
    }

    pub(super) fn removal_deadline(&self) -> Option<Instant> {
        self.leaving.values().filter_map(|leaving| leaving.until).min()
    }

    /// Until when something unsaid waits for the keeper's words, or for copies that cannot be prepared, as seen at
    /// `after`: what is left to be said later waits for no deadline of this kind.
    pub(super) fn describe_deadline(&self, after: Instant) -> Option<Instant> {
        let Connection::Up { since, greeted: true, introduced, complete: false } = self.connection else { return None };
        let introduction = (!introduced).then_some(since + INTRODUCTION_PATIENCE);
        let description = self.prepared_once.then_some(since + DESCRIBE_PATIENCE);
        introduction.into_iter().chain(description).find(|at| *at > after)
    }

    pub(super) fn warnings(&self, now: Instant) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Connection::Away { since } = self.connection
            && now.saturating_duration_since(since) > AWAY_WORTH_SAYING
        {
            warnings.push("the keeper does not run: HA routers here neither take over nor give way".to_owned());
        }
        let routers = self.words.status.routers.iter().filter(|router| !router.problem.is_empty());
        warnings.extend(routers.map(|router| format!("router {}: {}", router.router, router.problem)));
        let full = self.words.status.replication.iter().filter(|router| !router.active && router.refused > 0);
        warnings.extend(full.map(|router| {
            format!(
                "router {}: this host's kernel has no room for {} replicated connections, which would break if it took over; \
                 connections in use were taken first (is net.netfilter.nf_conntrack_max as on the other hosts?)",
                router.router, router.refused
            )
        }));
        if let Some((version, pid)) = self.words.hello
            && version != PROTOCOL_VERSION
        {
            warnings.push(format!(
                "the running keeper (process {pid}) speaks version {version} of its protocol, this control \
                 {PROTOCOL_VERSION}: stop the daemon cleanly and start it again"
            ));
        }
        warnings
    }

    pub(super) fn released(&self) -> BTreeSet<RouterId> {
        self.released.clone()
    }

    pub(super) fn claims(&self) -> BTreeMap<RouterId, ActiveCopy> {
        self.claims.clone()
    }

    /// What every copy is.
    pub fn roles(&self) -> &BTreeMap<RouterId, Role> {
        &self.roles
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What the keeper said about itself.
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// Where a followed router was last claimed to be.
    pub fn claim(&self, router: RouterId) -> Option<ActiveCopy> {
        self.claims.get(&router).copied()
    }
}

/// The namespace in which a router meets the outside on this host, if it does.
fn gateway_namespace(router: &Router) -> Option<String> {
    match &router.distributed {
        None => Some(names::qrouter_namespace(router.id)),
        Some(parts) => parts.translates_here.then(|| names::snat_namespace(router.id)),
    }
}

/// Whether copies of a router that has none here are elsewhere: its ports are where the active one is.
fn is_ha(router: &Router, config: &HostConfig) -> bool {
    let snat_ports = router.distributed.iter().flat_map(|parts| &parts.snat_ports);
    let inside = snat_ports.map(|(port, interface)| (interface.network_id, *port));
    let mut ports = inside.chain(router.gateway.iter().map(|gateway| (gateway.network_id, gateway.port_id)));
    ports.any(|(network, port)| {
        let told = config.networks.get(&network).and_then(|network| network.ports.get(&port));
        told.is_some_and(|port| matches!(port.location, Location::Active { .. }))
    })
}

/// Devices on which a router is to be advertised.
fn advertising_devices(router: &Router) -> BTreeSet<String> {
    let advertising = router.interfaces.iter().filter(|(_, interface)| interface.advertisement.is_some());
    advertising.filter(|_| router.admin_state_up).map(|(port, _)| names::internal_device(*port)).collect()
}

fn found(copy: &RouterStatus) -> Role {
    Role {
        state: copy.state,
        epoch: copy.epoch,
        since_ms: None,
        reason: "found so when control started".to_owned(),
        took_us: 0,
    }
}
