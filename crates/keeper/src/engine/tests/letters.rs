//! Questions and answers that go by way of the server.

use super::agreement::{Say, active, shared};
use super::liveness::Peer;
use super::*;

impl Host {
    /// The letters that were given to the server.
    fn letters(&mut self) -> Vec<(IpAddr, Question)> {
        std::mem::take(&mut self.letters)
    }

    fn letter_from(&mut self, from: IpAddr, question: &Question) {
        self.say(ToKeeper::Letter { from, datagram: hex::encode(&question.emit(&key())) });
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
fn an_answer_counts_however_many_questions_were_asked_since() {
    let mut host = bereaved(Some(Say::LonelyAnswer));
    let (_, question) = host.letters().pop().unwrap();
    // Others of its routers ask, each in a turn of its own, before the answer is back.
    for n in 0..200 {
        host.engine.shared.ask([THIRD], None, Some(RouterId::from_u128(100 + n)));
        host.claim_from(THIRD, Kind::Repeat, 0);
    }
    let entries = vec![Entry { router: R, epoch: 1, vtep: Some(THEIRS) }];
    host.letter_from(THEIRS, &Question { kind: Say::Answer, sender: THEIRS, entries, ..question });
    host.advance(Duration::from_millis(350));
    assert_eq!((host.state(), host.discards("answer_unasked")), ("backup".to_owned(), 0));
}

#[test]
fn an_answer_by_way_of_the_server_moves_nothing_and_its_epoch_is_surpassed() {
    // The one that was asked has become active anew, and its letter comes when this one has taken over.
    let mut host = bereaved(None);
    let (_, question) = host.letters().pop().unwrap();
    let entries = vec![Entry { router: R, epoch: 7, vtep: Some(THEIRS) }];
    let answer = Question { kind: Say::Answer, sender: THEIRS, entries, ..question };
    host.advance(Duration::from_millis(20));
    assert_eq!(host.state(), "active");
    host.log.clear();
    host.letter_from(THEIRS, &answer);
    assert_eq!((host.state(), host.log.len()), ("active".to_owned(), 0), "{:?}", host.log);
    // What it says itself, by the hosts' network, counts as ever; and so does what this one claims then.
    host.claim_from(THEIRS, Kind::Claim, 7);
    assert_eq!(host.state(), "backup");

    // It comes in time, keeps this one from taking over, and that is all.
    let mut host = bereaved(Some(Say::LonelyAnswer));
    host.say(ToKeeper::Follow(follow(0, None)));
    let (_, question) = host.letters().pop().unwrap();
    host.log.clear();
    host.letter_from(THEIRS, &Question { number: question.number, ..answer });
    host.advance(Duration::from_millis(350));
    assert_eq!(host.state(), "backup");
    let moved = |line: &String| line.starts_with("follow") || line.starts_with("claimed");
    assert!(!host.log.iter().any(moved), "{:?}", host.log);
    // At last it answers no more.
    host.advance(Duration::from_secs(2));
    assert_eq!(host.state(), "active");
    assert!(host.log.contains(&"transition active 8".to_owned()), "newer than what was heard: {:?}", host.log);
}
