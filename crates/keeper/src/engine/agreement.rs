//! What this host asks others before its copies take over, what it answers, and whether it is cut off.
//!
//! The rules are in [`evergate_vrrp::agreement`], with their reasons; here they meet routers, datagrams
//! and BFD. A copy's own part is in [`inquiry`](super::inquiry); what goes by way of the server, in
//! [`letters`](super::letters).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use evergate_model::RouterId;
use evergate_vrrp::agreement::{Answer, Company, News, Rules};
use tracing::info;

use super::Engine;
use super::copy::RouterCopy;
use super::effect::Effect;
use super::letters::Post;
use super::liveness::LISTEN;
use super::shared::Shared;
use crate::claims::book::Learned;
use crate::claims::question::{IS_OVER, Kind, MAX_ENTRIES, Numbers, Question};
use crate::claims::wire::{ClaimKey, Entry};

/// Hosts of a router's networks that are asked besides those of the other copies: enough that one of them is
/// on the same side as the active, wherever the cut is that both sides survive.
pub(super) const WITNESSES: usize = 3;
/// Silence of everybody after which an active wonders whether it is cut off, where BFD does not say.
const QUIET: Duration = Duration::from_secs(3);
/// Bounds of how long it asks then. Shorter, and a host that is short of processor time is taken for cut
/// off; longer, and a host that is cut off serves for too long beside its successor.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(60), Duration::from_millis(300));
/// Longest that it asks where it was late itself lately: its questions may have been answered as late, or not read yet.
const LATE_PATIENCE: Duration = Duration::from_secs(1);

/// The host's part in agreements.
#[derive(Debug)]
pub(super) struct Agreement {
    pub(super) company: Company,
    /// How many routers concern each host.
    concerned: BTreeMap<IpAddr, usize>,
    changed: bool,
    /// Questions to send: to whom, whose word is wanted, about what.
    pending: BTreeMap<(IpAddr, IpAddr), BTreeSet<RouterId>>,
    numbers: Numbers,
    /// For which sign of life of a host it was already asked whether it lives.
    doubted: BTreeMap<IpAddr, Instant>,
    /// What goes by way of the server.
    pub(super) post: Post,
}

impl Agreement {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            company: Company::default(),
            concerned: BTreeMap::new(),
            changed: true,
            pending: BTreeMap::new(),
            numbers: Numbers::after(seed),
            doubted: BTreeMap::new(),
            post: Post::default(),
        }
    }

    /// The settings have changed.
    pub(super) fn reconfigure(&mut self) {
        self.changed = true;
    }

    /// A router concerns other hosts than before.
    pub(super) fn concern(&mut self, before: &BTreeSet<IpAddr>, after: &BTreeSet<IpAddr>) {
        self.changed |= before != after;
        for host in after {
            *self.concerned.entry(*host).or_default() += 1;
        }
        for host in before {
            if let Some(count) = self.concerned.get_mut(host) {
                *count -= 1;
                if *count == 0 {
                    self.concerned.remove(host);
                }
            }
        }
    }

    /// Whether an answer is one to a question of this host, and not too late.
    pub(super) fn is_asked(&self, number: u64, now: Instant) -> bool {
        self.numbers.is_drawn(number, IS_OVER, now)
    }

    /// Whether a question of this number was asked within so short a time.
    pub(super) fn is_just_asked(&self, number: u64, within: Duration, now: Instant) -> bool {
        self.numbers.is_drawn(number, within, now)
    }

    /// Asks a host directly for its word about a router, and nobody else.
    pub(super) fn ask_alone(&mut self, host: IpAddr, router: RouterId) {
        self.pending.entry((host, host)).or_default().insert(router);
    }
}

impl Shared {
    /// How long is waited for what. Where processors are short, answers take as long as this process was late itself.
    pub(super) fn rules(&self, now: Instant) -> Rules {
        let bfd = self.settings.bfd;
        let interval = Duration::from_millis(bfd.interval_ms.into());
        let listen = if self.liveness.is_on() { interval.min(LISTEN) } else { LISTEN };
        let patience = self.quiet_and_patience().1;
        let listen = listen.max(self.lateness.worst_lately(now).min(patience));
        Rules { listen, patience, serve_alone: self.settings.serve_alone }
    }

    /// The silence of everybody that is worth asking about, and for how long.
    pub(super) fn quiet_and_patience(&self) -> (Duration, Duration) {
        let bfd = self.settings.bfd;
        let detection = Duration::from_millis(bfd.interval_ms.into()) * u32::from(bfd.multiplier);
        let quiet = if self.liveness.is_on() { detection } else { QUIET };
        (quiet, (quiet / 3).clamp(PATIENCE.0, PATIENCE.1))
    }

    /// Whether there is anybody who could be asked, and who could believe us.
    pub(super) fn can_ask(&self) -> bool {
        self.key.is_some() && self.settings.vtep.is_some()
    }

    /// Asks these hosts for the word of `subject`, and it itself by way of the server; without one, each for its own.
    pub(super) fn ask(
        &mut self,
        to: impl IntoIterator<Item = IpAddr>,
        subject: Option<IpAddr>,
        router: Option<RouterId>,
    ) {
        let own = self.settings.vtep;
        if let Some(subject) = subject.filter(|subject| Some(*subject) != own) {
            self.agreement.post.ask(subject, router);
        }
        for host in to.into_iter().filter(|host| Some(*host) != own) {
            self.agreement.pending.entry((host, subject.unwrap_or(host))).or_default().extend(router);
        }
    }

    /// Sends the questions that are to be asked: routers that ask at once share datagrams.
    pub(super) fn flush_questions(&mut self, now: Instant) {
        let pending = std::mem::take(&mut self.agreement.pending);
        let letters = self.agreement.post.take_pending();
        let nothing = pending.is_empty() && letters.is_empty();
        let Some(own) = self.settings.vtep.filter(|_| !nothing) else { return };
        let number = self.agreement.numbers.draw(now);
        for ((to, subject), routers) in pending {
            for question in self.questions(own, subject, number, routers) {
                self.send_question(to, &question);
            }
        }
        for (subject, routers) in letters {
            for question in self.questions(own, subject, number, routers) {
                self.send_letter(subject, &question);
            }
        }
    }

    /// One question, in as many datagrams as it needs.
    fn questions(&self, own: IpAddr, subject: IpAddr, number: u64, routers: BTreeSet<RouterId>) -> Vec<Question> {
        let entry = |router| Entry { router, epoch: self.book.known(router).epoch, vtep: None };
        let entries: Vec<Entry> = routers.into_iter().map(entry).collect();
        let question = |entries: &[Entry]| Question {
            kind: Kind::Question,
            sender: own,
            origin: own,
            subject,
            number,
            entries: entries.to_vec(),
        };
        if entries.is_empty() {
            return vec![question(&[])];
        }
        entries.chunks(MAX_ENTRIES).map(question).collect()
    }

    pub(super) fn send_question(&mut self, to: IpAddr, question: &Question) {
        let Some(key) = &self.key else { return };
        let to = SocketAddr::new(to, self.settings.claim_port);
        self.effects.push_back(Effect::SendClaim { to, datagram: question.emit(key) });
    }
}

impl Engine {
    /// Takes a question or an answer from the claim socket.
    pub(super) fn handle_question(&mut self, datagram: &[u8], from: IpAddr, key: &ClaimKey, now: Instant) {
        match Question::parse(datagram, from, key) {
            Ok(question) => {
                self.hear_host(question.sender, now);
                match question.kind {
                    Kind::Question => self.answer(question, now),
                    Kind::Answer => self.take_answer(question, now),
                    Kind::Handover => self.handle_handover(&question, now),
                    // It has another way here.
                    Kind::LonelyAnswer => self.shared.discards.bump("answer_astray"),
                }
            }
            Err(reason) => self.shared.discard(None, &reason.to_string(), || from.to_string()),
        }
    }

    /// Says what is known here, and passes the question on to whose word is wanted.
    fn answer(&mut self, mut question: Question, now: Instant) {
        let Some(own) = self.shared.settings.vtep else { return };
        self.confirm_handovers(&question, now);
        let entries = self.words_on(&question, own);
        let answer = Question { kind: Kind::Answer, sender: own, subject: own, entries, ..question.clone() };
        self.shared.send_question(question.sender, &answer);
        if question.subject != own && question.sender == question.origin {
            question.sender = own;
            self.shared.send_question(question.subject, &question);
        }
    }

    /// What this host knows of the routers that it is asked about.
    pub(super) fn words_on(&self, question: &Question, own: IpAddr) -> Vec<Entry> {
        let known = |entry: &Entry| self.is_relevant(entry.router).then(|| self.word_of(entry.router, own));
        question.entries.iter().filter_map(known).collect()
    }

    /// What this host knows of a router, with its own address where its copy is active.
    fn word_of(&self, router: RouterId, own: IpAddr) -> Entry {
        match self.copies.get(&router).filter(|copy| copy.is_active()) {
            Some(copy) => Entry { router, epoch: copy.epoch, vtep: Some(own) },
            None => {
                let known = self.shared.book.known(router);
                Entry { router, epoch: known.epoch, vtep: known.vtep.filter(|vtep| *vtep != own) }
            }
        }
    }

    fn take_answer(&mut self, mut answer: Question, now: Instant) {
        let Some(own) = self.shared.settings.vtep else { return };
        if answer.origin != own {
            // It was asked through us.
            if answer.sender == answer.subject {
                let to = answer.origin;
                answer.sender = own;
                self.shared.send_question(to, &answer);
            }
            return;
        }
        if !self.shared.agreement.is_asked(answer.number, now) {
            return self.shared.discards.bump("answer_unasked");
        }
        let speaker = answer.subject;
        self.hear_host(speaker, now);
        for (router, answer) in self.take_words(&answer, now) {
            self.with(router, |copy, shared| copy.handle_answer(answer, shared, now));
        }
    }

    /// Learns what an answer says, and tells what that means for each router.
    fn take_words(&mut self, answer: &Question, now: Instant) -> Vec<(RouterId, Answer)> {
        let speaker = answer.subject;
        let mut words = Vec::new();
        for entry in &answer.entries {
            if !self.is_relevant(entry.router) {
                continue;
            }
            self.learn(entry.router, entry.epoch, entry.vtep, now);
            let known = self.shared.book.known(entry.router);
            // Whoever is active in an epoch that is over does not know it yet, and will step down.
            let active = entry.vtep == Some(speaker) && entry.epoch >= known.epoch;
            words.push((entry.router, Answer { speaker, active }));
        }
        words
    }

    /// Any authentic word of a host says that there is a way to it.
    pub(super) fn hear_host(&mut self, host: IpAddr, at: Instant) {
        if self.shared.agreement.company.heard(host, at) == Some(News::Accompanied) {
            info!(%host, "this host is not alone any more");
        }
        self.answer_letters_again(host, at);
    }

    /// Sees to the company of other hosts, and sends what is to be asked.
    pub(super) fn attend_agreement(&mut self, now: Instant) {
        let own = self.shared.settings.vtep;
        if std::mem::take(&mut self.shared.agreement.changed) {
            let (quiet, patience) = self.shared.quiet_and_patience();
            let agreement = &mut self.shared.agreement;
            let members = agreement.concerned.keys().copied().filter(|host| Some(*host) != own).collect();
            agreement.company.configure(members, quiet, patience);
        }
        if self.shared.can_ask() {
            let late = self.shared.lateness.worst_lately(now).min(LATE_PATIENCE);
            let patience = self.shared.quiet_and_patience().1.max(late);
            self.shared.agreement.company.set_patience(patience);
            self.shared.agreement.company.set_serving(!self.actives.is_empty());
            self.doubt_hosts(now);
            match self.shared.agreement.company.handle_timeout(now) {
                Some(News::Ask(hosts)) => self.shared.ask(hosts, None, None),
                Some(News::Alone) => self.handle_isolation(now),
                Some(News::Accompanied) | None => {}
            }
        }
        self.shared.flush_questions(now);
    }

    pub(super) fn agreement_timeout(&self) -> Option<Instant> {
        let company = self.shared.agreement.company.poll_timeout();
        company.into_iter().chain(self.doubts().map(|(.., at)| at)).min().filter(|_| self.shared.can_ask())
    }

    /// Hosts whose BFD packets are late, with their last sign of life, and when to ask whether they live: early
    /// enough that their answer, should they live, is there when BFD gives them up.
    fn doubts(&self) -> impl Iterator<Item = (IpAddr, Instant, Instant)> {
        self.shared.liveness.waiting_for().filter_map(|(host, heard, detection)| {
            let asked = self.shared.agreement.doubted.get(&host) == Some(&heard);
            (!asked).then(|| (host, heard, heard + detection * 2 / 3))
        })
    }

    fn doubt_hosts(&mut self, now: Instant) {
        let late: Vec<_> = self.doubts().filter(|(.., at)| *at <= now).collect();
        for (host, heard, _) in late {
            self.shared.agreement.doubted.insert(host, heard);
            let mut asked = self.shared.agreement.company.choose(WITNESSES);
            asked.insert(host);
            self.shared.ask(asked, Some(host), None);
        }
    }

    /// Nobody answers any more: what was active here in company gives up.
    fn handle_isolation(&mut self, now: Instant) {
        let serve = self.shared.settings.serve_alone;
        let what = if serve {
            "its routers go on, as isolation_policy says"
        } else {
            "what is active here steps down, so that the connected side serves (isolation_policy)"
        };
        self.shared.warn(format!("no other host answers any more, so it is this host that is cut off: {what}"));
        let last = self.shared.agreement.company.last();
        for router in self.actives.clone() {
            self.with(router, |copy, shared| copy.handle_isolation(last, shared, now));
        }
    }

    /// Tells a host that claims less than is known what is known: if another has the router, it steps down; if
    /// nobody has it in the newer epoch any more, it claims anew.
    pub(super) fn correct(&mut self, host: IpAddr, router: RouterId) {
        let known = self.shared.book.known(router);
        if known.vtep != Some(host) && Some(host) != self.shared.settings.vtep {
            self.acknowledge(host, vec![Entry { router, epoch: known.epoch, vtep: known.vtep }]);
        }
    }
}

/// The hosts that a copy concerns.
pub(super) fn circle(copy: Option<&RouterCopy>) -> BTreeSet<IpAddr> {
    let spec = copy.map(|copy| &copy.spec);
    spec.into_iter().flat_map(|spec| spec.claim_to.iter().chain(spec.peer_hosts.values())).copied().collect()
}

/// Whether a claim that was just learned ends somebody's role: whose, if so.
pub(super) fn ended(before: Option<IpAddr>, learned: Learned, now: Option<IpAddr>) -> Option<IpAddr> {
    before.filter(|_| learned == Learned::Newer && now.is_some() && before != now)
}
