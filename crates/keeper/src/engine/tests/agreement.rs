//! Never two actives: claims supersede, silence is asked about, and whoever is cut off gives up.

use super::*;
pub(super) use crate::claims::question::Kind as Say;

/// Another copy of the router, on `THEIRS`, whose HA address is higher or lower than ours; `THIRD` only has
/// the networks.
pub(super) fn shared(octet: u8) -> Host {
    let mut host = Host::new();
    let copy = Ipv4Addr::new(169, 254, 192, octet);
    host.spec.peers.insert(copy);
    host.spec.peer_hosts.insert(copy, THEIRS);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.say(ToKeeper::Follow(follow(0, None)));
    host.log.clear();
    host
}

pub(super) fn active(octet: u8) -> Host {
    let mut host = shared(octet);
    host.advance(ACTIVE_DOWN + Duration::from_millis(200));
    assert_eq!(host.state(), "active");
    host.log.clear();
    host.asked.clear();
    host
}

impl Host {
    pub(super) fn receive(&mut self, question: &Question) {
        self.engine.handle_claim(&question.emit(&key()), question.sender, self.now);
        self.settle();
    }

    /// A host answers everything that it was asked; `active`: that its copy, in this epoch, is active.
    pub(super) fn answered_by(&mut self, speaker: IpAddr, through: IpAddr, active: Option<u64>) -> usize {
        let asked = std::mem::take(&mut self.asked);
        let about = |(_, q): &&(IpAddr, Question)| q.kind == Say::Question && !q.entries.is_empty();
        let mut count = 0;
        for (to, question) in asked.iter().filter(about).filter(|(to, _)| *to == through) {
            assert_eq!(question.origin, OURS);
            let entry = Entry { router: R, epoch: active.unwrap_or(0), vtep: active.map(|_| speaker) };
            let sender = *to;
            self.receive(&Question {
                kind: Say::Answer,
                sender,
                subject: speaker,
                entries: vec![entry],
                ..question.clone()
            });
            count += 1;
        }
        count
    }

    pub(super) fn told(&self, what: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with("warning") && line.contains(what)).count()
    }

    pub(super) fn problem(&self) -> String {
        self.engine.status().routers[0].problem.clone()
    }
}

#[test]
fn an_older_active_steps_down_at_once_when_it_hears_a_newer_claim() {
    let mut host = active(200);
    host.claim_from(THIRD, Kind::Claim, 2);
    assert_eq!((host.state(), host.kernel.len()), ("backup".to_owned(), 0));
    assert!(!host.log.contains(&"advertise 0".to_owned()), "a resignation would make a third one take over");
    assert!(host.log.contains(&"follow + 192.0.2.3".to_owned()), "{:?}", host.log);
    assert!(host.log.iter().any(|line| line.starts_with("note 192.0.2.3 claims it with epoch 2")));
}

#[test]
fn the_server_s_word_of_a_newer_active_counts_as_well() {
    let mut host = active(200);
    host.say(ToKeeper::Follow(follow(2, Some(THEIRS))));
    assert_eq!(host.state(), "backup");
}

#[test]
fn of_two_that_took_the_same_epoch_one_stays_in_a_new_one() {
    let mut host = active(200);
    host.claim_from(THEIRS, Kind::Claim, 1);
    assert_eq!(host.state(), "backup", "the higher tunnel address stays");
    assert!(host.log.contains(&"follow + 192.0.2.2".to_owned()), "{:?}", host.log);

    let mut host = active(200);
    let lower = IpAddr::from([192, 0, 2, 0]);
    host.claim_from(lower, Kind::Claim, 1);
    assert_eq!(host.state(), "active");
    assert!(host.log.contains(&"claimed 2 192.0.2.1".to_owned()), "{:?}", host.log);
}

#[test]
fn whoever_claims_an_epoch_that_is_over_is_told_so() {
    let mut host = Host::with_router();
    host.claim_from(THEIRS, Kind::Claim, 4);
    host.log.clear();
    host.claim_from(THIRD, Kind::Claim, 5);
    assert!(host.log.contains(&"claim 192.0.2.2 ack 5".to_owned()), "the one that had it: {:?}", host.log);
    host.log.clear();
    host.claim_from(THEIRS, Kind::Repeat, 4);
    assert_eq!(host.log, ["claim 192.0.2.2 ack 5"]);

    // The newer one was ours, and is over: whoever goes on has to know, or others would not follow it.
    let mut host = active(5);
    host.say_known(THEIRS, 6, Some(OURS));
    host.hear(advertisement(5, 51));
    assert_eq!(host.state(), "backup");
    host.log.clear();
    host.claim_from(THEIRS, Kind::Repeat, 2);
    assert_eq!(host.log, ["claim 192.0.2.2 ack 7"]);
}

#[test]
fn two_actives_that_hear_each_other_settle_it_by_claims_and_then_by_address() {
    // Ours is known there: the other one steps down.
    let mut host = active(200);
    host.hear(advertisement(200, 50));
    assert_eq!(host.log[..2], ["claim 192.0.2.2 claim 1", "advertise 50"]);
    host.say_known(THEIRS, 1, Some(OURS));
    host.advance(Duration::from_secs(1));
    assert_eq!(host.state(), "active");
    // It goes on all the same: something else uses its address.
    host.hear(advertisement(200, 50));
    assert_eq!(host.state(), "backup");

    // Theirs is newer.
    let mut host = active(5);
    host.hear(advertisement(5, 50));
    host.say_known(THEIRS, 2, Some(THEIRS));
    assert_eq!(host.state(), "backup");

    // Nothing is heard on other paths, and the claim that comes too late is answered by a newer one.
    let mut host = active(5);
    host.hear(advertisement(5, 50));
    host.advance(Duration::from_millis(250));
    host.log.clear();
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert!(host.log.contains(&"claimed 3 192.0.2.1".to_owned()), "{:?}", host.log);
}

#[test]
fn a_router_whose_active_answers_by_another_way_stays_where_it_is_and_the_operator_is_told_once() {
    for through in [THEIRS, THIRD] {
        let mut host = shared(200);
        host.claim_from(THEIRS, Kind::Claim, 3);
        host.hear(advertisement(200, 50));
        host.log.clear();
        for _ in 0..4 {
            host.advance(ACTIVE_DOWN - Duration::from_millis(20));
            assert_eq!(host.answered_by(THEIRS, through, Some(3)), 1);
            assert_eq!(host.state(), "backup");
        }
        assert_eq!(host.told("not heard on the HA network, but says by another way"), 1, "{:?}", host.log);
        assert!(host.problem().contains("192.0.2.2"));
        host.hear(advertisement(200, 50));
        assert_eq!(host.problem(), "");
        assert!(host.log.last().unwrap().starts_with("note the active copy is heard"), "{:?}", host.log);
    }
}

#[test]
fn an_active_that_others_do_not_reach_either_is_replaced() {
    let mut host = shared(200);
    host.claim_from(THEIRS, Kind::Claim, 3);
    host.hear(advertisement(200, 50));
    host.advance(ACTIVE_DOWN - Duration::from_millis(20));
    assert_eq!(host.answered_by(THIRD, THIRD, None), 1);
    assert_eq!(host.state(), "backup", "its answer may be on its way");
    host.advance(Duration::from_millis(20));
    assert_eq!(host.state(), "active");
}

#[test]
fn an_active_that_says_that_it_is_none_is_replaced_at_once() {
    let mut host = shared(200);
    host.hear(advertisement(200, 50));
    host.advance(ACTIVE_DOWN - Duration::from_millis(20));
    host.answered_by(THEIRS, THEIRS, None);
    assert_eq!(host.state(), "active");
}

#[test]
fn an_answer_that_was_not_asked_for_says_nothing() {
    let mut host = shared(200);
    host.claim_from(THEIRS, Kind::Claim, 3);
    host.hear(advertisement(200, 50));
    host.advance(ACTIVE_DOWN - Duration::from_millis(20));
    let (_, question) = host.asked.last().unwrap().clone();
    let entries = vec![Entry { router: R, epoch: 3, vtep: Some(THEIRS) }];
    let answer = Question { kind: Say::Answer, sender: THEIRS, subject: THEIRS, entries, ..question };
    host.receive(&Question { number: answer.number.wrapping_sub(500), ..answer });
    host.advance(Duration::from_millis(320));
    assert_eq!(host.state(), "active");
    assert_eq!(host.engine.status().discards["answer_unasked"], 1);
}

#[test]
fn a_copy_that_used_to_reach_others_and_reaches_nobody_stays_unless_it_may_serve_alone() {
    for (serve_alone, state) in [(false, "backup"), (true, "active")] {
        let mut host = shared(200);
        host.say(ToKeeper::Settings { settings: Settings { serve_alone, ..settings() } });
        host.claim_from(THIRD, Kind::Repeat, 0);
        host.hear(advertisement(200, 50));
        host.log.clear();
        host.advance(ACTIVE_DOWN + Duration::from_secs(3));
        assert_eq!(host.state(), state);
        assert_eq!(
            (host.told("this host is cut off"), host.problem().is_empty()),
            (usize::from(!serve_alone), serve_alone)
        );
    }
}

#[test]
fn an_active_that_loses_all_company_steps_down_unless_it_may_serve_alone_or_never_had_any() {
    for (company, serve_alone, state) in [(true, false, "backup"), (true, true, "active"), (false, false, "active")] {
        let mut host = active(200);
        host.say(ToKeeper::Settings { settings: Settings { serve_alone, ..settings() } });
        if company {
            host.say_known(THIRD, 1, Some(OURS));
            host.say_known(THEIRS, 1, Some(OURS));
        }
        host.log.clear();
        host.advance(Duration::from_secs(4));
        assert_eq!(host.state(), state, "{company} {serve_alone}");
        assert_eq!(host.told("no other host answers any more"), usize::from(company));
        assert_eq!(host.log.contains(&"advertise 0".to_owned()), state == "backup", "in case that somebody hears it");
    }
}

#[test]
fn an_active_that_was_late_itself_gives_the_others_as_long_before_it_takes_itself_for_cut_off() {
    let steps_down_after = |late: Duration| {
        let mut host = active(200);
        host.say_known(THIRD, 1, Some(OURS));
        host.say_known(THEIRS, 1, Some(OURS));
        let heard = host.now;
        host.advance(Duration::from_secs(2));
        host.engine.handle_wakeup(host.now - late, host.now);
        while host.state() == "active" {
            host.advance(Duration::from_millis(10));
        }
        host.now - heard
    };
    let usual = steps_down_after(Duration::ZERO);
    let late = steps_down_after(Duration::from_millis(800));
    assert_eq!((late - usual).as_millis(), 500, "instead of 300 ms");
    assert_eq!((steps_down_after(Duration::from_secs(60)) - usual).as_millis(), 700, "at most a second");
}

#[test]
fn a_host_that_comes_back_after_long_asks_whoever_it_is_told_of_before_it_takes_over() {
    for lives in [true, false] {
        let mut host = active(200);
        host.say_known(THIRD, 1, Some(OURS));
        host.say_known(THEIRS, 1, Some(OURS));
        host.advance(Duration::from_secs(90));
        assert_eq!(host.state(), "backup", "it is cut off however long ago others were heard");
        let about = |(to, q): &&(IpAddr, Question)| *to == THIRD && !q.entries.is_empty();
        let mut question = host.asked.iter().rfind(about).map(|(_, question)| question.clone()).unwrap();
        (question.kind, question.sender, question.subject) = (Say::Answer, THIRD, THIRD);
        question.entries = vec![Entry { router: R, epoch: 2, vtep: Some(THEIRS) }];
        host.asked.clear();
        host.receive(&question);
        let named = |host: &Host| host.asked.iter().any(|(to, asked)| *to == THIRD && asked.subject == THEIRS);
        for _ in 0..110 {
            if !named(&host) {
                host.advance(Duration::from_millis(10));
            }
        }
        assert!(named(&host), "{:?}", host.asked);
        assert_eq!(host.state(), "backup", "one way is back, and others may be on their way");
        host.answered_by(THEIRS, THIRD, lives.then_some(2));
        host.advance(Duration::from_secs(2));
        assert_eq!(host.state(), if lives { "backup" } else { "active" });
    }
}

#[test]
fn what_an_active_said_as_it_was_cut_off_moves_nothing_when_it_arrives_at_last() {
    for (successor, state, stale) in [(THIRD, "backup", 1), (THEIRS, "active", 0)] {
        let mut host = shared(200);
        host.claim_from(THEIRS, Kind::Claim, 1);
        host.hear(advertisement(200, 50));
        host.claim_from(successor, Kind::Claim, 2);
        // Kept by a tunnel's neighbour that did not answer, in the order in which it was said.
        host.hear(advertisement(200, 50));
        host.hear(advertisement(200, 0));
        host.advance(Duration::from_millis(900));
        assert_eq!(host.state(), state);
        assert_eq!(host.engine.status().discards.get("resignation_stale").copied().unwrap_or(0), stale);
    }
}

#[test]
fn a_host_says_what_it_knows_and_passes_the_question_on() {
    let mut host = active(200);
    let entry = Entry { router: R, epoch: 0, vtep: None };
    let question = |sender, origin, subject| Question {
        kind: Say::Question,
        sender,
        origin,
        subject,
        number: 9,
        entries: vec![entry],
    };
    let said = |host: &mut Host| -> Vec<(IpAddr, Say, IpAddr, Option<IpAddr>)> {
        let asked = std::mem::take(&mut host.asked);
        asked.into_iter().map(|(to, q)| (to, q.kind, q.subject, q.entries[0].vtep)).collect()
    };
    host.receive(&question(THEIRS, THEIRS, OURS));
    assert_eq!(said(&mut host), [(THEIRS, Say::Answer, OURS, Some(OURS))]);
    host.receive(&question(THEIRS, THEIRS, THIRD));
    assert_eq!(said(&mut host), [(THEIRS, Say::Answer, OURS, Some(OURS)), (THIRD, Say::Question, THIRD, None)]);
    // What was passed on already goes no further; the answer goes back.
    host.receive(&question(THEIRS, THIRD, OURS));
    assert_eq!(said(&mut host), [(THEIRS, Say::Answer, OURS, Some(OURS))]);
    host.receive(&question(THIRD, THEIRS, IpAddr::from([192, 0, 2, 9])));
    assert_eq!(said(&mut host), [(THIRD, Say::Answer, OURS, Some(OURS))]);
    let answer = |sender| Question { kind: Say::Answer, ..question(sender, THEIRS, THIRD) };
    host.receive(&answer(THIRD));
    assert_eq!(said(&mut host), [(THEIRS, Say::Answer, THIRD, None)]);
    host.receive(&answer(IpAddr::from([192, 0, 2, 9])));
    assert_eq!(said(&mut host), []);
}

#[test]
fn a_host_whose_packets_are_late_is_asked_by_other_ways_before_it_is_given_up() {
    for answers in [true, false] {
        let (mut host, mut peer) = Host::with_session();
        host.hear(advertisement(200, 50));
        host.run_beside(&mut peer, Duration::from_millis(500));
        host.asked.clear();
        let mut early = Vec::new();
        while !host.is_down(THEIRS) {
            host.advance(Duration::from_millis(10));
            for (to, question) in std::mem::take(&mut host.asked) {
                if to == THIRD && question.subject == THEIRS && question.entries.is_empty() {
                    early.push(question.clone());
                    if answers {
                        let answer = Question { kind: Say::Answer, sender: THIRD, ..question };
                        host.receive(&answer);
                    }
                }
            }
        }
        assert_eq!(early.len(), 1);
        // Its word on the router itself is waited for a little longer if it lives.
        host.advance(Duration::from_millis(60));
        assert_eq!(host.state() == "active", !answers);
        if answers {
            host.claim_from(THIRD, Kind::Repeat, 0);
            assert!(host.answered_by(THEIRS, THIRD, Some(0)) > 0);
            host.advance(Duration::from_millis(500));
            assert_eq!(host.state(), "backup");
        }
    }
}

#[test]
fn a_host_that_is_short_of_processors_gives_others_as_long_as_it_needs_itself() {
    for (late, state) in [(Duration::ZERO, "active"), (Duration::from_millis(120), "backup")] {
        let (mut host, mut peer) = Host::with_session();
        host.hear(advertisement(200, 50));
        host.run_beside(&mut peer, Duration::from_millis(100));
        let (due, _) = host.engine.poll_timeout().unwrap();
        host.now = due + late;
        host.engine.handle_timeout(host.now);
        host.settle();
        while !host.is_down(THEIRS) {
            host.advance(Duration::from_millis(10));
        }
        host.advance(Duration::from_millis(60));
        assert_eq!(host.state(), state);
        host.advance(Duration::from_millis(100));
        assert_eq!(host.state(), "active");
    }
}

#[test]
fn a_host_of_another_release_is_named_and_not_believed() {
    let mut host = shared(200);
    let entries = vec![Entry { router: R, epoch: 9, vtep: Some(THEIRS) }];
    let mut claim = Message { kind: Kind::Claim, sender: THEIRS, entries }.emit(&key());
    let question =
        Question { kind: Say::Question, sender: THEIRS, origin: THEIRS, subject: OURS, number: 1, entries: Vec::new() };
    let mut question = question.emit(&key());
    host.asked.clear();
    for datagram in [&mut claim, &mut question] {
        datagram[4] += 1;
        host.engine.handle_claim(datagram, THEIRS, host.now);
        host.settle();
    }
    assert_eq!(host.discards("claim_version"), 2);
    assert_eq!(host.told("refused a packet from 192.0.2.2: claim_version (it speaks another version"), 1);
    assert!(host.asked.is_empty() && !host.log.iter().any(|line| line.contains(" ack ")), "{:?}", host.log);
}
