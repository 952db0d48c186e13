//! Whether the active copy has what the role is for: its way to the outside.
//!
//! An active whose uplink has no carrier, or whose gateways do not answer any more, gives the role away and
//! gets a *handicap*: as a backup it waits whole intervals longer than others (`Config::handicap`), so it comes
//! last. Copies do not tell each other how they are; the one that takes over finds out for itself. If it has
//! lost its gateways, too, it gives the role away in turn, and each resignation that a copy hears takes one off
//! its own handicap. So the role goes round, the copy that failed longest ago first, until one of them
//! answers. Whether a link is down, backups know as well, and stand back at once.
//!
//! What bounds the harm:
//!
//! - Nobody gives the role away when no other copy is there to take it.
//! - Whoever took the role although it lacks something keeps it for a *turn*: as long as the checks need to find
//!   a loss, and at least [`SHORTEST_TURN`]. A turn doubles each time nobody else took the role.
//! - Where some gateways are lost and others are not (IPv6 alone, say), the role moves once in
//!   [`PARTIAL_PAUSE`]: the other copies may well see the same, and what works must not suffer for it.

use std::time::{Duration, Instant};

use tracing::info;

use super::Engine;
use super::copy::RouterCopy;
use super::effect::{AnswersOn, Effect, ScriptRun};
use super::gateways::{Ask, Checks, Found};
use super::shared::Shared;
use crate::protocol::{GatewaySpec, HealthSettings};
use evergate_model::RouterId;

/// A link that is down for a moment (a bridge that is made anew, a cable that is negotiating) is no loss.
const LINK_GRACE: Duration = Duration::from_millis(200);
/// So long at least the role stays with a copy that lacks something when no better one took it.
const SHORTEST_TURN: Duration = Duration::from_secs(5);
/// Doublings of a turn that nobody ended.
const LONGEST_BACKOFF: u32 = 5;
/// Between two times that the role is given away although some gateways answer.
const PARTIAL_PAUSE: Duration = Duration::from_secs(600);
/// Whether another copy is there by now.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What was found out about gateways this long ago says nothing any more.
const STALE: Duration = Duration::from_secs(60);

/// What is known of a copy's way to the outside.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Questions to the gateways; an active copy's alone.
    checks: Option<Checks>,
    link_down: Option<LinkDown>,
    /// Other copies that come before this one since it gave the role away, and until when.
    behind: Option<(u8, Instant)>,
    /// Set while it is active.
    active: Option<Active>,
    /// Times in a row that it gave the role away and nobody took it.
    untaken: u32,
    /// It gave the role away and has not had it since: whether another active was heard.
    gave_away: Option<Taken>,
    /// Another active is heard.
    rival: bool,
    /// No sooner than this is the role given away because of a part of the gateways.
    partial_until: Option<Instant>,
    /// The loss that was told of.
    told: Option<String>,
    /// When the role is to be given away.
    resign_at: Option<Instant>,
}

/// A copy's time with the role.
#[derive(Clone, Copy, Debug)]
struct Active {
    since: Instant,
    /// It took the role although it lacked something.
    limping: bool,
    /// Since when it is known to lack something.
    lost: Option<Instant>,
    /// Nobody was there to take the role; look again then.
    look_again: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Yes,
    NotYet,
}

#[derive(Clone, Debug)]
struct LinkDown {
    what: String,
    since: Instant,
}

/// A loss, and whether something of the kind still works.
struct Loss {
    text: String,
    partial: bool,
}

impl Health {
    /// How many intervals the copy is to wait longer than others.
    pub(super) fn handicap(&self) -> u8 {
        let behind = self.behind.map_or(0, |(level, _)| level);
        behind.max(u8::from(self.link_down.is_some()))
    }

    /// What is lacking, in words.
    pub(super) fn impairment(&self) -> String {
        self.loss().map(|loss| loss.text).unwrap_or_default()
    }

    fn loss(&self) -> Option<Loss> {
        if let Some(down) = &self.link_down {
            return Some(Loss { text: format!("{} has no carrier", down.what), partial: false });
        }
        match self.checks.as_ref()?.found() {
            Found::Nothing => None,
            Found::Some(names) => Some(Loss { text: no_answer(&names), partial: true }),
            Found::All(names) => Some(Loss { text: no_answer(&names), partial: false }),
        }
    }

    /// Somebody else resigned: it comes after us now.
    fn rival_resigned(&mut self) {
        self.behind = self.behind.and_then(|(level, until)| Some((level.checked_sub(1)?, until))).filter(|it| it.0 > 0);
    }

    /// When the role is to be given away, if it lacks something.
    fn due(&self, settings: &HealthSettings) -> Option<Instant> {
        let active = self.active?;
        let loss = self.loss()?;
        let backoff = 1 << self.untaken.min(LONGEST_BACKOFF);
        let turn = if active.limping { turn(settings) * backoff } else { Duration::ZERO };
        let grace = self.link_down.as_ref().map(|down| down.since + LINK_GRACE);
        let pause = self.partial_until.filter(|_| loss.partial);
        [Some(active.since + turn), active.lost, active.look_again, grace, pause].into_iter().flatten().max()
    }

    /// Nothing is lost, as far as can be known.
    fn is_well(&self, settings: &HealthSettings) -> bool {
        let answered = self.checks.as_ref().map_or(settings.interval_s == 0, Checks::is_well);
        answered && self.loss().is_none()
    }
}

fn turn(settings: &HealthSettings) -> Duration {
    let checks = Duration::from_secs(settings.interval_s.into()) * u32::from(settings.fall.max(1));
    checks.max(SHORTEST_TURN)
}

fn no_answer(names: &[String]) -> String {
    format!("no answer from {}", names.join(", "))
}

/// Where the answers of these gateways come in.
pub(super) fn answers_on(gateways: &[GatewaySpec], settings: &HealthSettings) -> Option<AnswersOn> {
    let ifindex = gateways.first().filter(|_| settings.interval_s > 0)?.ifindex;
    let any = |v4: bool| gateways.iter().any(|one| one.gateway.is_ipv4() == v4 && one.ifindex == ifindex);
    Some(AnswersOn { ifindex, v4: any(true), v6: any(false) })
}

impl RouterCopy {
    /// Looks at links, asks what is due, and draws the consequences. Called after whatever may matter to it.
    pub(super) fn attend_health(&mut self, shared: &mut Shared, now: Instant) {
        self.look_at_links(shared, now);
        self.note_role(now);
        self.ask_gateways(shared, now);
        if self.health.behind.is_some_and(|(_, until)| until <= now) {
            self.health.behind = None;
        }
        if self.health.active.is_some() && self.health.is_well(&shared.settings.health) {
            (self.health.untaken, self.health.partial_until, self.health.behind) = (0, None, None);
        }
        self.tell_of_loss(shared, now);
        if self.health.due(&shared.settings.health).is_some_and(|at| at <= now) {
            self.give_away(shared, now);
        }
        self.health.resign_at = self.health.due(&shared.settings.health);
        self.take_handicap(shared, now);
    }

    fn look_at_links(&mut self, shared: &Shared, now: Instant) {
        let before = self.health.link_down.take();
        let was_down = before.is_some();
        let since = before.map_or(now, |down| down.since);
        self.health.link_down = self.dead_link(shared).map(|what| LinkDown { what, since });
        if was_down && self.health.link_down.is_none() {
            self.health.behind = None;
        }
    }

    /// The link to the outside that cannot carry anything, if there is one.
    fn dead_link(&self, shared: &Shared) -> Option<String> {
        let gateway = self.spec.gateways.first()?;
        let uplinks = &self.spec.uplinks;
        let runs = |index: &u32| shared.host_links.get(index).copied().unwrap_or(false);
        // Every namespace has links: where none is known, nobody watches them.
        if !uplinks.is_empty() && !shared.host_links.is_empty() && !uplinks.iter().any(runs) {
            return Some(format!("the uplink below {}", gateway.link));
        }
        (self.link_runs(gateway.ifindex) == Some(false)).then(|| gateway.link.clone())
    }

    /// Notes when the role came and went.
    pub(super) fn note_role(&mut self, now: Instant) {
        let is_active = self.is_active();
        let health = &mut self.health;
        if is_active && health.active.is_none() {
            match health.gave_away.take() {
                Some(Taken::NotYet) => health.untaken += 1,
                Some(Taken::Yes) | None => health.untaken = 0,
            }
            let limping = health.handicap() > 0;
            health.rival = false;
            health.active = Some(Active { since: now, limping, lost: None, look_again: None });
        } else if !is_active && health.active.is_some() {
            (health.active, health.checks) = (None, None);
        }
    }

    fn ask_gateways(&mut self, shared: &mut Shared, now: Instant) {
        let settings = &shared.settings.health;
        // Before the kernel has the addresses, nobody could answer.
        if self.health.active.is_none() || !self.waiting.is_over() {
            return;
        }
        if !self.health.checks.as_ref().is_some_and(|checks| checks.fits(&self.spec.gateways, settings)) {
            let shift = self.id().0.as_bytes()[15];
            self.health.checks = Checks::start(&self.spec.gateways, settings, shift, now);
        }
        let Some(checks) = &mut self.health.checks else { return };
        for ask in checks.handle_timeout(now) {
            let router = self.spec.router;
            shared.effects.push_back(match ask {
                Ask::Send { ifindex, frame } => Effect::SendFrame { router, ifindex, frame },
                Ask::Run => Effect::RunScript(self.script_run(&shared.settings.health)),
            });
        }
    }

    fn script_run(&self, settings: &HealthSettings) -> ScriptRun {
        let gateways = self.spec.gateways.iter().map(|one| one.gateway.to_string());
        ScriptRun {
            router: self.id(),
            netns: self.spec.netns.clone(),
            program: settings.script.clone().unwrap_or_default(),
            arguments: std::iter::once(self.id().to_string()).chain(gateways).collect(),
            patience: Duration::from_secs(settings.interval_s.into()),
        }
    }

    fn tell_of_loss(&mut self, shared: &mut Shared, now: Instant) {
        let loss = self.health.loss().filter(|_| self.health.active.is_some()).map(|loss| loss.text);
        if let Some(active) = &mut self.health.active {
            active.lost = active.lost.or(Some(now)).filter(|_| loss.is_some());
        }
        if loss == self.health.told {
            return;
        }
        let router = self.id();
        match &loss {
            Some(text) if self.others_may_take_it(shared) => {
                shared.warn(format!("router {router}: {text}; another copy is asked to take over"));
            }
            Some(text) => {
                shared.warn(format!("router {router}: {text}; no other copy is there, so it stays active here"));
            }
            None if self.health.active.is_some() => info!(%router, "the way to the gateways is there again"),
            None => {}
        }
        self.health.told = loss;
    }

    /// Whether there is anybody to give the role to.
    fn others_may_take_it(&self, shared: &Shared) -> bool {
        let mut peers = self.spec.peers.iter();
        // Of a host that speaks no BFD with us, nobody knows better.
        peers.any(|peer| self.spec.peer_hosts.get(peer).is_none_or(|host| shared.liveness.hears(*host) != Some(false)))
    }

    fn give_away(&mut self, shared: &mut Shared, now: Instant) {
        let may = self.others_may_take_it(shared);
        if let Some(active) = self.health.active.as_mut().filter(|_| !may) {
            active.look_again = Some(now + LOOK_AGAIN);
            return;
        }
        if self.health.loss().is_some_and(|loss| loss.partial) {
            self.health.partial_until = Some(now + PARTIAL_PAUSE);
        }
        let others = u8::try_from(self.spec.peers.len()).unwrap_or(u8::MAX);
        let round = 2 * turn(&shared.settings.health) * (u32::from(others) + 1);
        self.health.behind = Some((others, now + round.max(STALE)));
        self.health.gave_away = Some(Taken::NotYet);
        // First the handicap, so that not even a moment is waited without it.
        self.take_handicap(shared, now);
        self.vrrp.handle_resign(now);
        self.drain(shared, now);
    }

    fn take_handicap(&mut self, shared: &mut Shared, now: Instant) {
        let handicap = self.health.handicap();
        if self.vrrp.config().handicap != handicap {
            let config = evergate_vrrp::router::Config { handicap, ..self.vrrp.config().clone() };
            self.vrrp.handle_config(config, now);
            self.drain(shared, now);
        }
    }

    /// An advertisement of another copy was received.
    pub(super) fn heard_rival(&mut self, priority: u8, shared: &mut Shared, now: Instant) {
        if priority > 0 {
            self.health.rival = true;
            self.health.gave_away = self.health.gave_away.map(|_| Taken::Yes);
        } else if std::mem::take(&mut self.health.rival) {
            // Once for each: a resignation may arrive twice.
            self.health.rival_resigned();
            self.take_handicap(shared, now);
        }
    }

    /// A gateway may have answered.
    pub(super) fn gateway_answered(&mut self, frame: &[u8]) {
        if let Some(checks) = &mut self.health.checks {
            checks.handle_frame(frame);
        }
    }

    pub(super) fn script_ended(&mut self, well: bool) {
        if let Some(checks) = &mut self.health.checks {
            checks.handle_script(well);
        }
    }

    /// When `attend_health` is wanted.
    pub(super) fn health_deadline(&self) -> Option<Instant> {
        let checks = self.health.checks.as_ref().filter(|_| self.waiting.is_over()).map(Checks::poll_timeout);
        let behind = self.health.behind.map(|(_, until)| until);
        [checks, behind, self.health.resign_at].into_iter().flatten().min()
    }
}

impl Engine {
    /// Takes the state of a link in the host's own namespace; `None`: it is gone.
    pub fn handle_host_link(&mut self, ifindex: u32, up: Option<bool>, now: Instant) {
        let before = match up {
            Some(up) => self.shared.host_links.insert(ifindex, up),
            None => self.shared.host_links.remove(&ifindex),
        };
        if before == up {
            return;
        }
        let concerned: Vec<RouterId> =
            self.copies.values().filter(|copy| copy.spec.uplinks.contains(&ifindex)).map(RouterCopy::id).collect();
        for router in concerned {
            self.with(router, |copy, shared| copy.attend_health(shared, now));
        }
        self.finish(now);
    }

    /// Takes a frame from the socket that gateways answer on.
    pub fn handle_answer(&mut self, router: RouterId, frame: &[u8]) {
        if let Some(copy) = self.copies.get_mut(&router) {
            copy.gateway_answered(frame);
        }
    }

    /// Takes what came of [`Effect::RunScript`].
    pub fn handle_script(&mut self, router: RouterId, well: bool) {
        if let Some(copy) = self.copies.get_mut(&router) {
            copy.script_ended(well);
        }
    }
}
