//! Questions and answers that go by way of the server, where hosts may not hear each other otherwise.
//!
//! The server carries sealed letters between hosts, and says nothing itself: an answer is as fresh as the question's
//! number, and as authentic as any. A question whose subject is known goes there at the same time as to the other
//! hosts, so the server delays nothing; and what comes back can only keep a copy from taking over
//! ([`Inquiry::handle_answer_by_server`](evergate_vrrp::agreement::Inquiry::handle_answer_by_server)). It moves nothing:
//! whoever is reached by way of the server alone may be cut off from everybody, so on its word no active steps down and
//! no forwarding entry leads to it. Of its claim only the epoch is kept, so that a takeover is newer than it.
//!
//! By way of the server a host is reached even if all hosts' own network is cut off from it. Being heard there is no
//! company, therefore; and whoever is asked says whether it hears anybody but the asker. If it does not know at that
//! moment, it says that it does not, asks, and answers again when somebody has been heard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_model::RouterId;
use evergate_vrrp::agreement::{Answer, Inquiry};

use super::Engine;
use super::copy::RouterCopy;
use super::shared::Shared;
use crate::claims::question::{Kind, Question};
use crate::hex;
use crate::protocol::FromKeeper;

/// Hosts that are asked for a sign of life by one that is asked whether it has company.
const ASKED: usize = 5;
/// How long an answer may be given again.
const OWED: Duration = Duration::from_millis(500);
/// Answers that may be.
const MOST_OWED: usize = 64;

/// The host's part in it.
#[derive(Debug, Default)]
pub(super) struct Post {
    /// The server can be reached.
    pub(super) open: bool,
    /// Questions to send: whose word is wanted, about what.
    pending: BTreeMap<IpAddr, BTreeSet<RouterId>>,
    /// When a host last gave a sign of life in this way, and whether it heard others.
    signs: BTreeMap<IpAddr, (Instant, bool)>,
    /// Questions that were answered without knowing of any company, and when.
    owed: Vec<(Question, Instant)>,
}

impl Post {
    pub(super) fn ask(&mut self, subject: IpAddr, router: Option<RouterId>) {
        if self.open {
            self.pending.entry(subject).or_default().extend(router);
        }
    }

    pub(super) fn take_pending(&mut self) -> BTreeMap<IpAddr, BTreeSet<RouterId>> {
        std::mem::take(&mut self.pending)
    }

    /// Whether a host gave a sign of life after a time, and if so whether it heard others.
    fn sign_since(&self, host: IpAddr, since: Instant) -> Option<bool> {
        self.signs.get(&host).filter(|(at, _)| *at > since).map(|(_, hears_others)| *hears_others)
    }
}

impl Shared {
    pub(super) fn send_letter(&mut self, to: IpAddr, question: &Question) {
        let Some(key) = &self.key else { return };
        let datagram = hex::encode(&question.emit(key));
        self.emit(FromKeeper::Letter { to, datagram });
    }

    /// Adds to a fresh inquiry what is known by way of the server of the one that fell silent.
    pub(super) fn tell_sign_by_server(&self, inquiry: &mut Inquiry) {
        let silent_since = inquiry.suspect().and_then(|host| Some((host, self.liveness.last_heard(host)?)));
        if let Some((host, (heard, interval))) = silent_since
            && let Some(hears_others) = self.agreement.post.sign_since(host, heard + interval)
        {
            inquiry.handle_sign_by_server(hears_others);
        }
    }
}

impl RouterCopy {
    /// VRRP has waited for seconds, so an answer by way of the server is waited for, too, if there is a server.
    pub(super) fn expect_answer_by_server(&mut self, shared: &Shared) {
        if shared.agreement.post.open
            && let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.suspect().is_some())
        {
            inquiry.expect_server();
        }
    }

    fn handle_sign_by_server(&mut self, host: IpAddr, hears_others: bool) {
        if let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.suspect() == Some(host)) {
            inquiry.handle_sign_by_server(hears_others);
        }
    }

    fn handle_answer_by_server(&mut self, answer: Answer, hears_others: bool, shared: &mut Shared, now: Instant) {
        if let Some(inquiry) = &mut self.inquiry {
            inquiry.handle_answer_by_server(answer, hears_others);
            self.decide(shared, now);
            self.drain(shared, now);
        }
    }
}

impl Engine {
    /// Takes a letter that the server brings.
    pub(super) fn handle_letter(&mut self, from: IpAddr, datagram: &str, now: Instant) {
        let (Some(key), Some(own)) = (self.shared.key.clone(), self.shared.settings.vtep) else { return };
        let Ok(bytes) = hex::decode(datagram) else { return self.shared.discards.bump("letter_unreadable") };
        match Question::parse(&bytes, from, &key) {
            Ok(question) if question.kind == Kind::Question && question.subject == own => {
                self.answer_letter(question, own, now);
            }
            Ok(answer) if answer.origin == own && answer.kind == Kind::Answer => self.take_letter(&answer, true, now),
            Ok(answer) if answer.origin == own && answer.kind == Kind::LonelyAnswer => {
                self.take_letter(&answer, false, now);
            }
            // Nothing else is believed in this way: neither claims nor handovers, nor what is passed on.
            Ok(_) => self.shared.discards.bump("letter_astray"),
            Err(reason) => self.shared.discard(None, &reason.to_string(), || from.to_string()),
        }
    }

    fn answer_letter(&mut self, question: Question, own: IpAddr, now: Instant) {
        // It is asked after two intervals of silence, so who was heard within one was heard on this side of a cut.
        let interval = Duration::from_millis(self.shared.settings.bfd.interval_ms.into());
        let since = now.checked_sub(interval).filter(|_| self.shared.liveness.is_on());
        let hears_others = since.is_some_and(|since| self.shared.agreement.company.hears_since(since, question.origin));
        let kind = if hears_others { Kind::Answer } else { Kind::LonelyAnswer };
        self.send_answer_by_letter(&question, kind, own);
        if !hears_others {
            let asked = self.shared.agreement.company.choose(ASKED);
            self.shared.ask(asked.into_iter().filter(|host| *host != question.origin), None, None);
            let owed = &mut self.shared.agreement.post.owed;
            owed.retain(|(_, at)| now.saturating_duration_since(*at) < OWED);
            owed.truncate(MOST_OWED - 1);
            owed.push((question, now));
        }
    }

    fn send_answer_by_letter(&mut self, question: &Question, kind: Kind, own: IpAddr) {
        let entries = self.words_on(question, own);
        let answer = Question { kind, sender: own, subject: own, entries, ..question.clone() };
        self.shared.send_letter(question.origin, &answer);
    }

    /// Somebody was heard, at a time that may be past: this host is not as lonely as it has said.
    pub(super) fn answer_letters_again(&mut self, host: IpAddr, at: Instant) {
        if self.shared.agreement.post.owed.is_empty() {
            return;
        }
        let Some(own) = self.shared.settings.vtep else { return };
        let (now, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.shared.agreement.post.owed)
            .into_iter()
            .filter(|(_, asked)| at.saturating_duration_since(*asked) < OWED)
            .partition(|(question, asked)| question.origin != host && at >= *asked);
        self.shared.agreement.post.owed = later;
        for (question, _) in now {
            self.send_answer_by_letter(&question, Kind::Answer, own);
        }
    }

    fn take_letter(&mut self, answer: &Question, hears_others: bool, now: Instant) {
        let speaker = answer.subject;
        if answer.sender != speaker {
            return self.shared.discards.bump("letter_astray");
        }
        if !self.shared.agreement.is_asked(answer.number, now) {
            return self.shared.discards.bump("answer_unasked");
        }
        // Only hosts that routers are shared with are asked in this way, so there are not more of them.
        self.shared.agreement.post.signs.insert(speaker, (now, hears_others));
        let words = self.take_words_by_letter(answer);
        if words.is_empty() {
            let routers: Vec<RouterId> =
                self.copies.values().filter(|copy| copy.inquiry.is_some()).map(RouterCopy::id).collect();
            for router in routers {
                self.with(router, |copy, _| copy.handle_sign_by_server(speaker, hears_others));
            }
        }
        for (router, answer) in words {
            self.with(router, |copy, shared| copy.handle_answer_by_server(answer, hears_others, shared, now));
        }
    }

    /// Tells what a letter's answer means for each router.
    fn take_words_by_letter(&mut self, answer: &Question) -> Vec<(RouterId, Answer)> {
        let speaker = answer.subject;
        let mut words = Vec::new();
        for entry in &answer.entries {
            let Some(copy) = self.copies.get_mut(&entry.router) else { continue };
            copy.surpass = copy.surpass.max(entry.epoch);
            let known = self.shared.book.known(entry.router);
            let active = entry.vtep == Some(speaker) && entry.epoch >= known.epoch;
            words.push((entry.router, Answer { speaker, active }));
        }
        words
    }
}
