//! Never two actives: claims supersede, silence is asked about, and whoever is cut off gives up.

use evergate_vrrp::router::Version;

use super::*;
use crate::claims::question::Kind as Say;

const COPY: Ipv4Addr = Ipv4Addr::new(169, 254, 192, 200);

/// Another copy of the router, on `THEIRS`, whose HA address is higher or lower than ours; `THIRD` only has
/// the networks.
fn shared(octet: u8) -> Host {
    let mut host = Host::new();
    let copy = Ipv4Addr::new(169, 254, 192, octet);
    host.spec.peers.insert(copy);
    host.spec.peer_hosts.insert(copy, THEIRS);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.say(ToKeeper::Follow(follow(0, None)));
    host.log.clear();
    host
}

fn active(octet: u8) -> Host {
    let mut host = shared(octet);
    host.advance(ACTIVE_DOWN + Duration::from_millis(200));
    assert_eq!(host.state(), "active");
    host.log.clear();
    host.asked.clear();
    host
}

impl Host {
    fn receive(&mut self, question: &Question) {
        self.engine.handle_claim(&question.emit(&key()), question.sender, self.now);
        self.settle();
    }

    /// A host answers everything that it was asked; `active`: that its copy, in this epoch, is active.
    fn answered_by(&mut self, speaker: IpAddr, through: IpAddr, active: Option<u64>) -> usize {
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

    fn told(&self, what: &str) -> usize {
        self.log.iter().filter(|line| line.starts_with("warning") && line.contains(what)).count()
    }

    fn problem(&self) -> String {
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
        let mut host = Host::beside(THEIRS, 300);
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
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

impl Host {
    /// The letters that were given to the server.
    fn letters(&mut self) -> Vec<(IpAddr, Question)> {
        std::mem::take(&mut self.letters)
    }

    fn letter_from(&mut self, from: IpAddr, question: &Question) {
        self.say(ToKeeper::Letter { from, datagram: hex::encode(&question.emit(&key())) });
    }

    fn discards(&self, reason: &str) -> u64 {
        self.engine.status().discards.get(reason).copied().unwrap_or(0)
    }
}

/// Backup of a router that `THEIRS` has, which was just found to be silent; who answered by way of the server when its
/// packets were late, if anybody did.
fn bereaved(answers: Option<Say>) -> Host {
    let mut host = Host::beside(THEIRS, 300);
    host.say(ToKeeper::Server { reachable: true });
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.claim_from(THEIRS, Kind::Claim, 1);
    host.hear(advertisement(200, 50));
    host.run_beside(&mut peer, Duration::from_millis(500));
    host.letters();
    let mut early = 0;
    while !host.is_down(THEIRS) {
        host.advance(Duration::from_millis(10));
        if host.is_down(THEIRS) {
            break;
        }
        for (to, question) in host.letters() {
            assert_eq!((to, question.subject, question.entries.len()), (THEIRS, THEIRS, 0));
            early += 1;
            if let Some(kind) = answers {
                host.letter_from(THEIRS, &Question { kind, sender: THEIRS, ..question });
            }
        }
    }
    assert_eq!(early, 1);
    host
}

#[test]
fn an_active_that_answers_by_way_of_the_server_alone_keeps_the_role() {
    let mut host = bereaved(Some(Say::LonelyAnswer));
    host.advance(Duration::from_millis(100));
    assert_eq!(host.state(), "backup", "its word is waited for, since it lives");
    let (_, question) = host.letters().pop().unwrap();
    let entries = vec![Entry { router: R, epoch: 1, vtep: Some(THEIRS) }];
    let answer = Question { kind: Say::LonelyAnswer, sender: THEIRS, entries, ..question };
    host.letter_from(THEIRS, &answer);
    host.advance(Duration::from_millis(250));
    assert_eq!(host.state(), "backup");
    assert_eq!(host.told("not heard on the HA network, but says by another way"), 1, "{:?}", host.log);

    // It is asked again and again; and when it does not answer any more, that is the end of it.
    host.advance(Duration::from_millis(1500));
    assert_eq!(host.state(), "active");
    assert!(!host.letters().is_empty());
}

#[test]
fn a_host_that_is_short_of_processors_gives_others_as_long_as_it_needs_itself() {
    for (late, state) in [(Duration::ZERO, "active"), (Duration::from_millis(120), "backup")] {
        let mut host = Host::beside(THEIRS, 300);
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
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
fn a_server_that_says_nothing_or_is_away_delays_no_takeover() {
    let mut host = bereaved(None);
    host.advance(Duration::from_millis(20));
    assert_eq!(host.state(), "active");

    let mut host = shared(200);
    host.say(ToKeeper::Server { reachable: true });
    host.say(ToKeeper::Server { reachable: false });
    host.hear(advertisement(200, 50));
    host.advance(ACTIVE_DOWN);
    assert_eq!((host.state(), host.letters().len()), ("active".to_owned(), 0));
}

#[test]
fn an_active_that_hears_nobody_else_is_replaced_where_others_answer_and_one_that_does_is_not() {
    for (kind, state) in [(Say::LonelyAnswer, "active"), (Say::Answer, "backup")] {
        let mut host = bereaved(Some(kind));
        let entries = vec![Entry { router: R, epoch: 1, vtep: Some(THEIRS) }];
        let (_, question) = host.letters().pop().unwrap();
        host.answered_by(THIRD, THIRD, None);
        host.letter_from(THEIRS, &Question { kind, sender: THEIRS, entries, ..question });
        host.advance(Duration::from_millis(350));
        assert_eq!(host.state(), state);
    }
}

#[test]
fn letters_that_are_recorded_forged_or_anything_but_answers_are_refused_and_counted() {
    let mut host = bereaved(Some(Say::LonelyAnswer));
    let (_, question) = host.letters().pop().unwrap();
    let entries = vec![Entry { router: R, epoch: 1, vtep: Some(THEIRS) }];
    let answer = Question { kind: Say::Answer, sender: THEIRS, entries, ..question };
    host.letter_from(THEIRS, &Question { number: answer.number.wrapping_sub(500), ..answer.clone() });
    assert_eq!(host.discards("answer_unasked"), 1);
    // As another host's, and by another key.
    host.letter_from(THIRD, &answer);
    host.say(ToKeeper::Letter { from: THEIRS, datagram: "zz".to_owned() });
    let forged = hex::encode(&answer.emit(&ClaimKey::new(b"other".to_vec()).unwrap()));
    host.say(ToKeeper::Letter { from: THEIRS, datagram: forged });
    // What may only come by the hosts' own network.
    host.letter_from(THEIRS, &Question { kind: Say::Handover, origin: THEIRS, ..answer.clone() });
    host.letter_from(THEIRS, &Question { kind: Say::Question, subject: THIRD, ..answer.clone() });
    assert_eq!((host.discards("letter_astray"), host.discards("letter_unreadable")), (2, 1));
    assert_eq!(
        (host.discards("claim_sender"), host.discards("claim_key")),
        (1, 1),
        "{:?}",
        host.engine.status().discards
    );
    host.advance(Duration::from_millis(350));
    assert_eq!(host.state(), "active", "none of it kept the router");
}

#[test]
fn whoever_is_asked_by_letter_says_whether_it_has_company_as_soon_as_it_knows() {
    let mut host = active(200);
    host.say(ToKeeper::Server { reachable: true });
    let entries = vec![Entry { router: R, epoch: 0, vtep: None }];
    let (origin, kind) = (THEIRS, Say::Question);
    let question = Question { kind, sender: THEIRS, origin, subject: OURS, number: 9, entries };
    host.letter_from(THEIRS, &question);
    let said = |host: &mut Host| -> Vec<(IpAddr, Say, u64, Option<IpAddr>)> {
        host.letters().into_iter().map(|(to, q)| (to, q.kind, q.number, q.entries[0].vtep)).collect()
    };
    assert_eq!(said(&mut host), [(THEIRS, Say::LonelyAnswer, 9, Some(OURS))]);
    assert!(host.asked.iter().any(|(to, q)| *to == THIRD && q.kind == Say::Question), "{:?}", host.asked);
    host.advance(Duration::from_millis(10));
    host.claim_from(THIRD, Kind::Repeat, 0);
    assert_eq!(said(&mut host), [(THEIRS, Say::Answer, 9, Some(OURS))]);
    host.claim_from(THIRD, Kind::Repeat, 0);
    assert_eq!(said(&mut host), [], "once");

    // Being reached by way of the server is no company: whoever loses all others gives up all the same.
    let mut host = active(200);
    host.say(ToKeeper::Server { reachable: true });
    host.say_known(THIRD, 1, Some(OURS));
    host.say_known(THEIRS, 1, Some(OURS));
    for _ in 0..20 {
        host.advance(Duration::from_millis(200));
        host.letter_from(THEIRS, &question);
    }
    assert_eq!(host.state(), "backup");
}

#[test]
fn a_handover_is_taken_at_once_and_a_recorded_one_is_not() {
    let mut host = shared(200);
    host.claim_from(THEIRS, Kind::Claim, 3);
    host.hear(advertisement(200, 50));
    let entry = |epoch| Entry { router: R, epoch, vtep: Some(THEIRS) };
    let handover = |epoch| Question {
        kind: Say::Handover,
        sender: THEIRS,
        origin: THEIRS,
        subject: OURS,
        number: 1,
        entries: vec![entry(epoch)],
    };
    host.receive(&handover(2));
    assert_eq!(host.state(), "backup");
    host.receive(&handover(3));
    assert_eq!(host.state(), "active");
    assert!(host.log.contains(&"transition active 4".to_owned()), "{:?}", host.log);
    assert!(host.engine.status().routers[0].problem.is_empty() && COPY.is_link_local());
}

#[test]
fn a_handover_that_waited_while_nobody_ran_is_not_taken_and_one_that_comes_again_is() {
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.claim_from(THEIRS, Kind::Claim, 3);
    host.hear(advertisement(200, 50));
    let entries = vec![Entry { router: R, epoch: 3, vtep: Some(THEIRS) }];
    let wanted = Question { kind: Say::Handover, sender: THEIRS, origin: THEIRS, subject: OURS, number: 1, entries };
    host.now += Duration::from_millis(700);
    host.receive(&wanted);
    assert_eq!((host.state(), host.discards("handover_stale")), ("backup".to_owned(), 1));
    // Another one waited, and is read when the timers have had their turn.
    host.run_beside(&mut peer, Duration::from_millis(50));
    host.receive(&wanted);
    assert_eq!((host.state(), host.discards("handover_stale")), ("backup".to_owned(), 2));
    host.run_beside(&mut peer, Duration::from_millis(300));
    host.receive(&wanted);
    assert_eq!(host.state(), "active");
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

/// What was asked of another host's copy, as (receiver, epoch).
fn handovers(host: &mut Host) -> Vec<(IpAddr, u64)> {
    let asked = std::mem::take(&mut host.asked);
    let handovers = asked.into_iter().filter(|(_, question)| question.kind == Say::Handover);
    handovers.map(|(to, question)| (to, question.entries[0].epoch)).collect()
}

#[test]
fn a_stopping_keeper_hands_over_and_goes_on_until_the_other_is_ready() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.engine.handle_stop(host.now);
    host.settle();
    assert_eq!(handovers(&mut host), [(THEIRS, 1)]);
    host.advance(Duration::from_millis(120));
    assert_eq!(handovers(&mut host), [(THEIRS, 1); 2], "a request may be lost");
    // The other one advertises before its kernel is ready.
    host.hear(advertisement(200, 50));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    assert!(!host.log.iter().any(|line| line.contains("claim 192.0.2.2 claim")), "{:?}", host.log);
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert_eq!((host.state(), host.kernel.len()), ("backup".to_owned(), 4), "it goes on for a moment");
    assert!(!host.engine.is_stopped());
    host.advance(Duration::from_millis(300));
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
    assert!(!host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    assert!(host.log.contains(&"follow + 192.0.2.2".to_owned()), "{:?}", host.log);
}

#[test]
fn a_handover_that_nobody_takes_becomes_a_resignation() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.engine.handle_stop(host.now);
    host.settle();
    host.advance(Duration::from_millis(999));
    assert!(!host.engine.is_stopped() && host.kernel.len() == 4);
    host.advance(Duration::from_millis(10));
    assert!(host.engine.is_stopped() && host.kernel.is_empty());
    assert!(host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
}

#[test]
fn a_router_that_is_taken_from_this_host_is_handed_over_first() {
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    assert_eq!(handovers(&mut host), [(THEIRS, 1)]);
    assert_eq!((host.kernel.len(), host.log.contains(&"removed".to_owned())), (4, false));
    host.claim_from(THEIRS, Kind::Claim, 2);
    assert_eq!(host.kernel.len(), 4, "it goes on for a moment");
    host.advance(Duration::from_millis(300));
    assert_eq!(host.kernel, [""; 0]);
    assert_eq!(host.log[host.log.len() - 2..], ["close", "removed"]);
    assert!(!host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);

    // It is wanted again meanwhile.
    let mut host = active(200);
    host.say_known(THEIRS, 1, Some(OURS));
    host.say(ToKeeper::RemoveRouter { router: R, how: Removal::Leaves });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.log.clear();
    host.advance(Duration::from_secs(2));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    assert!(!host.log.contains(&"removed".to_owned()));
}

/// Active, with a standby on each of the two other hosts, and connections to replicate.
fn active_and_replicating() -> Host {
    let mut host = active(200);
    host.spec.peer_hosts.insert(Ipv4Addr::new(169, 254, 192, 5), THIRD);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    host.say(ToKeeper::Settings { settings: Settings { replication_port: Some(3797), ..settings() } });
    for other in [THEIRS, THIRD] {
        host.say_known(other, 1, Some(OURS));
    }
    host.asked.clear();
    host.log.clear();
    host
}

#[test]
fn a_handover_waits_for_a_host_that_was_just_started_and_for_its_copy() {
    for returns in [true, false] {
        let mut host = Host::beside(THEIRS, 300);
        let replicating = Settings { replication_port: Some(3797), ..bfd_settings(300) };
        host.say(ToKeeper::Settings { settings: replicating });
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_secs(3));
        // It stops, as the first host of a rolling restart, and this one takes over.
        peer.stop(host.now);
        host.hear(advertisement(200, 0));
        host.run_beside(&mut peer, Duration::from_secs(2));
        assert_eq!(host.state(), "active");
        host.asked.clear();
        host.engine.handle_stop(host.now);
        host.settle();
        host.advance(Duration::from_secs(2));
        assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
        if !returns {
            host.advance(Duration::from_millis(3900));
            assert_eq!(handovers(&mut host), []);
            host.advance(Duration::from_millis(200));
            assert!(!handovers(&mut host).is_empty(), "it may be that BFD alone does not pass");
            host.advance(Duration::from_millis(1000));
            assert!(host.engine.is_stopped(), "but nobody waits for ever");
            continue;
        }
        let mut peer = Peer::new(THEIRS, 300);
        host.run_beside(&mut peer, Duration::from_millis(2500));
        assert_eq!(handovers(&mut host), [], "its kernel does not hold the connections yet");
        host.complete = BTreeSet::from([THEIRS]);
        host.run_beside(&mut peer, Duration::from_millis(1200));
        let asked = handovers(&mut host).len();
        assert!(asked > 20, "its copy may take no part yet, so it is asked again and again: {asked}");
        host.claim_from(THEIRS, Kind::Claim, 2);
        host.run_beside(&mut peer, Duration::from_millis(300));
        assert!(host.engine.is_stopped() && !host.log.contains(&"advertise 0".to_owned()), "{:?}", host.log);
    }
}

#[test]
fn a_keeper_that_is_restarted_on_purpose_is_given_time_even_at_short_intervals() {
    let mut host = Host::beside(THEIRS, 300);
    (host.spec.vrrp_version, host.spec.advertise_interval_cs) = (3, 10);
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.claim_from(THEIRS, Kind::Claim, 1);
    host.log.clear();
    let config = Config::neutron(Vrid::new(1).unwrap(), COPY);
    let config = Config { version: Version::V3, advertise_interval_cs: 10, ..config };
    host.hear(frame_of(&config, 200, 50));
    peer.stop(host.now);
    host.run_beside(&mut peer, Duration::from_millis(2900));
    assert_eq!(host.state(), "backup", "{:?}", host.log);
    host.advance(Duration::from_millis(400));
    assert_eq!(host.state(), "active", "but not for ever");

    // Whoever restarts says so, and touches nothing.
    let mut host = Host::beside(THEIRS, 300);
    let mut peer = Peer::new(THEIRS, 300);
    host.run_beside(&mut peer, Duration::from_secs(3));
    host.hear(advertisement(200, 0));
    host.run_beside(&mut peer, Duration::from_secs(2));
    assert_eq!((host.state(), host.kernel.len()), ("active".to_owned(), 4));
    host.log.clear();
    host.engine.handle_restart(host.now);
    host.settle();
    host.run_beside(&mut peer, Duration::from_millis(1));
    assert_eq!(peer.last_change, Some((State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN)));
    assert_eq!((host.kernel.len(), host.log.len()), (4, 0), "{:?}", host.log);
}

#[test]
fn a_handover_waits_for_a_copy_that_holds_all_connections() {
    let mut host = active_and_replicating();
    host.engine.handle_stop(host.now);
    host.settle();
    host.advance(Duration::from_millis(500));
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
    // Not the one with the highest address, but the one that is ready.
    host.complete = BTreeSet::from([THIRD]);
    host.advance(Duration::from_millis(60));
    assert_eq!(handovers(&mut host).first(), Some(&(THIRD, 1)));
    // It does not take the router over: the other one is asked as soon as it is ready, too.
    host.complete = BTreeSet::from([THEIRS, THIRD]);
    host.advance(Duration::from_millis(1100));
    assert_eq!(handovers(&mut host).last(), Some(&(THEIRS, 1)));
}

#[test]
fn a_copy_that_never_holds_all_connections_is_asked_in_the_end_and_the_operator_is_told() {
    let mut host = active_and_replicating();
    host.engine.handle_stop(host.now);
    host.settle();
    for _ in 0..3 {
        host.advance(Duration::from_millis(1300));
        host.say_known(THEIRS, 1, Some(OURS));
    }
    assert_eq!(handovers(&mut host), []);
    host.advance(Duration::from_millis(200));
    assert_eq!(handovers(&mut host).first(), Some(&(THEIRS, 1)));
    let told = host.log.iter().filter(|line| line.contains("not known to hold all its connections")).count();
    assert_eq!(told, 1, "{:?}", host.log);
}

#[test]
fn the_role_goes_where_it_is_wanted_when_that_host_can_have_it_and_is_not_forced_on_it() {
    let mut host = active_and_replicating();
    host.complete = BTreeSet::from([THEIRS]);
    host.spec.wish = Some(WishSpec { host: THIRD, at_once: true });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let keep = |host: &mut Host, seconds: u64| {
        for _ in 0..seconds {
            host.advance(Duration::from_secs(1));
            host.say_known(THEIRS, 1, Some(OURS));
            host.say_known(THIRD, 1, Some(OURS));
        }
    };
    keep(&mut host, 40);
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()), "it lacks connections");
    assert_eq!(host.told("does not take it over yet"), 1);
    host.complete = BTreeSet::from([THEIRS, THIRD]);
    keep(&mut host, 20);
    let asked = handovers(&mut host);
    assert!(!asked.is_empty() && asked.iter().all(|one| *one == (THIRD, 1)), "{asked:?}");
    // It is not wanted there any more.
    host.spec.wish = None;
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    keep(&mut host, 2);
    host.asked.clear();
    keep(&mut host, 20);
    assert_eq!((handovers(&mut host), host.state()), (vec![], "active".to_owned()));
}

#[test]
fn a_router_returns_to_where_it_belongs_after_a_while_and_later_each_time_that_it_comes_back() {
    let mut host = active_and_replicating();
    host.complete = BTreeSet::from([THIRD]);
    host.spec.wish = Some(WishSpec { host: THIRD, at_once: false });
    host.say(ToKeeper::Router(Box::new(host.spec.clone())));
    let mut waits = Vec::new();
    for round in 1..=2_u64 {
        host.asked.clear();
        let mut waited = 0;
        while handovers(&mut host).is_empty() {
            host.advance(Duration::from_secs(1));
            host.say_known(THEIRS, round * 2 - 1, Some(OURS));
            host.say_known(THIRD, round * 2 - 1, Some(OURS));
            waited += 1;
            assert!(waited < 60, "round {round}: {:?}", host.log);
        }
        waits.push(waited);
        host.claim_from(THIRD, Kind::Claim, round * 2);
        assert_eq!(host.state(), "backup");
        host.advance(Duration::from_millis(500));
        let entries = vec![Entry { router: R, epoch: round * 2, vtep: Some(THIRD) }];
        let give_back =
            Question { kind: Say::Handover, sender: THIRD, origin: THIRD, subject: OURS, number: 1, entries };
        host.receive(&give_back);
        assert_eq!(host.state(), "active");
    }
    assert!(waits[0] >= 10 && waits[1] >= 20, "{waits:?}");
}
