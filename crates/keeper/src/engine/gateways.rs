//! Rounds of questions to gateways, and what their answers say. Pure: asks by returning frames.
//!
//! In a round, each gateway is asked by ARP or neighbour solicitation (`evergate_vrrp::reach` says what an answer
//! proves), and once more half-way if it has not answered: first the one that answered before, then everybody,
//! as a gateway may itself have moved. The round after settles the account. An operator's script, where there is
//! one, is one more to be asked.

use std::time::{Duration, Instant};

use evergate_vrrp::reach;

use crate::protocol::{GatewaySpec, HealthSettings};

/// Longest wait for the answer to the first question of a round.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be done in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Send a question.
    Send {
        /// On which interface of the router's namespace.
        ifindex: u32,
        /// The frame.
        frame: Vec<u8>,
    },
    /// Run the script.
    Run,
}

/// Questions to all gateways of one router.
#[derive(Debug)]
pub(super) struct Checks {
    targets: Vec<Target>,
    settings: HealthSettings,
    /// There was a round.
    asked: bool,
    /// When the next round begins; this one's account is settled then.
    next: Instant,
    /// When those that have not answered are asked again.
    again: Option<Instant>,
    /// Rounds in a row in which all answered.
    good: u32,
    /// What the first round is longer by, in parts of 256.
    shift: u8,
}

#[derive(Debug)]
struct Target {
    what: What,
    answered: bool,
    /// Rounds in a row without an answer.
    misses: u32,
}

#[derive(Debug)]
enum What {
    Gateway { spec: GatewaySpec, mac: Option<[u8; 6]> },
    Script,
}

/// What the checks have found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing is lost.
    Nothing,
    /// Some are lost, by name.
    Some(Vec<String>),
    /// All are.
    All(Vec<String>),
}

impl Checks {
    /// Begins at once. `shift` spreads the later rounds of many routers.
    pub(super) fn start(gateways: &[GatewaySpec], settings: &HealthSettings, shift: u8, now: Instant) -> Option<Self> {
        let target = |what| Target { what, answered: true, misses: 0 };
        let gateway = |spec: &GatewaySpec| target(What::Gateway { spec: spec.clone(), mac: None });
        let script = settings.script.iter().map(|_| target(What::Script));
        let targets: Vec<Target> = gateways.iter().map(gateway).chain(script).collect();
        if gateways.is_empty() || settings.interval_s == 0 {
            return None;
        }
        Some(Self { targets, settings: settings.clone(), asked: false, next: now, again: None, good: 0, shift })
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.settings.interval_s.into())
    }

    /// Whether these are still the right questions.
    pub(super) fn fits(&self, gateways: &[GatewaySpec], settings: &HealthSettings) -> bool {
        let mine = self.targets.iter().filter_map(|target| match &target.what {
            What::Gateway { spec, .. } => Some(spec),
            What::Script => None,
        });
        self.settings == *settings && mine.eq(gateways)
    }

    /// Asks what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Ask> {
        if self.next <= now {
            // After so long a delay it was we who were away, and answers may have been lost here.
            let late = now.saturating_duration_since(self.next) > self.interval() / 4;
            if std::mem::replace(&mut self.asked, true) && !late {
                self.settle();
            }
            let shift = self.interval() * u32::from(std::mem::take(&mut self.shift)) / 256;
            self.next = now + self.interval() + shift;
            self.again = Some(now + (self.interval() / 2).min(PATIENCE));
            return self.ask(true);
        }
        if self.again.take_if(|at| *at <= now).is_some() {
            return self.ask(false);
        }
        Vec::new()
    }

    /// Settles the account of the round that ends.
    fn settle(&mut self) {
        for target in &mut self.targets {
            target.misses = if target.answered { 0 } else { target.misses.saturating_add(1) };
        }
        let all = self.targets.iter().all(|target| target.answered);
        self.good = if all { self.good.saturating_add(1) } else { 0 };
    }

    fn ask(&mut self, first: bool) -> Vec<Ask> {
        let mut asks = Vec::new();
        for target in &mut self.targets {
            match &target.what {
                _ if !first && target.answered => {}
                What::Script if !first => {}
                What::Script => asks.push(Ask::Run),
                What::Gateway { spec, mac } => {
                    let question = reach::Question { mac: spec.mac.0, source: spec.source, target: spec.gateway };
                    let frame = reach::question(&question, mac.filter(|_| first));
                    asks.extend(frame.map(|frame| Ask::Send { ifindex: spec.ifindex, frame }));
                }
            }
            if first {
                target.answered = false;
            }
        }
        asks
    }

    /// A frame came that may be an answer.
    pub(super) fn handle_frame(&mut self, frame: &[u8]) {
        let Some((ip, from)) = reach::answer(frame) else { return };
        for target in &mut self.targets {
            if let What::Gateway { spec, mac } = &mut target.what
                && spec.gateway == ip
            {
                *mac = Some(from);
                target.answered = true;
            }
        }
    }

    /// The script has ended.
    pub(super) fn handle_script(&mut self, well: bool) {
        for target in self.targets.iter_mut().filter(|target| matches!(target.what, What::Script)) {
            target.answered |= well;
        }
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.again.map_or(self.next, |again| again.min(self.next))
    }

    /// What is lost.
    pub(super) fn found(&self) -> Found {
        let fall = u32::from(self.settings.fall.max(1));
        let lost: Vec<&Target> = self.targets.iter().filter(|target| target.misses >= fall).collect();
        let is_gateway = |target: &&Target| matches!(target.what, What::Gateway { .. });
        let gateways = self.targets.iter().filter(is_gateway).count();
        let names = || lost.iter().map(|target| target.name()).collect();
        match lost.len() {
            0 => Found::Nothing,
            // The script speaks for all of them.
            _ if lost.iter().any(|target| !is_gateway(target)) || lost.len() == gateways => Found::All(names()),
            _ => Found::Some(names()),
        }
    }

    /// All have answered for long enough.
    pub(super) fn is_well(&self) -> bool {
        self.good >= u32::from(self.settings.rise.max(1))
    }
}

impl Target {
    fn name(&self) -> String {
        match &self.what {
            What::Gateway { spec, .. } => format!("gateway {} on {}", spec.gateway, spec.link),
            What::Script => "the health check script".to_owned(),
        }
    }
}
