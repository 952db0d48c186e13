//! Claims and epochs: who is told, how often, and what is believed.

use super::*;

#[test]
fn the_highest_epoch_wins_whatever_the_order_of_arrival() {
    let mut host = Host::with_router();
    host.claim_from(THEIRS, Kind::Claim, 5);
    host.claim_from(THIRD, Kind::Claim, 4);
    host.claim_from(THEIRS, Kind::Repeat, 5);
    let follows: Vec<_> = host.log.iter().filter(|line| line.starts_with("follow +")).collect();
    assert_eq!(follows, ["follow + 192.0.2.2"]);
    assert!(host.log.contains(&"claim 192.0.2.3 ack 5".to_owned()), "the loser hears of the higher epoch");
    // Both fall silent at once, as if this host were cut off.
    host.say(ToKeeper::Settings { settings: Settings { serve_alone: true, ..settings() } });
    host.advance(Duration::from_millis(300));
    host.advance(ACTIVE_DOWN);
    assert!(host.log.contains(&"transition active 6".to_owned()), "the next epoch is above all that are known");
}

#[test]
fn a_claim_under_another_key_or_for_another_host_changes_nothing() {
    let mut host = Host::with_router();
    host.log.clear();
    let entry = Entry { router: R, epoch: 9, vtep: Some(THEIRS) };
    let message = Message { kind: Kind::Claim, sender: THEIRS, entries: vec![entry] };
    let foreign = message.emit(&ClaimKey::new(vec![1]).unwrap());
    let ours = message.emit(&key());
    for (datagram, from) in [(foreign.clone(), THEIRS), (foreign, THEIRS), (ours, THIRD), (vec![0; 60], THEIRS)] {
        host.engine.handle_claim(&datagram, from, host.now);
        host.settle();
    }
    let discards = host.engine.status().discards;
    assert_eq!((discards["claim_key"], discards["claim_sender"], discards["claim_format"]), (2, 1, 1));
    assert_eq!(host.log.len(), 3, "each is told once per kind and sender: {:?}", host.log);
    assert!(host.log.iter().all(|line| line.starts_with("warning refused a packet")));
}

#[test]
fn a_claim_for_an_unknown_router_is_not_acknowledged_so_that_it_comes_again() {
    let mut host = Host::new();
    host.log.clear();
    host.claim_from(THEIRS, Kind::Claim, 5);
    assert_eq!(host.log, [""; 0]);
    assert!(host.engine.status().claims.is_empty(), "and takes no memory");
}

#[test]
fn a_claim_is_repeated_until_it_is_acknowledged() {
    let mut host = Host::active();
    host.log.clear();
    host.advance(Duration::from_millis(100));
    assert_eq!(host.sent_to(THEIRS), 2, "after 20 and 60 ms: {:?}", host.log);
    host.say_known(THEIRS, 1, Some(OURS));
    host.log.clear();
    host.advance(Duration::from_millis(500));
    assert_eq!((host.sent_to(THEIRS), host.sent_to(THIRD) > 0), (0, true));
}

#[test]
fn an_epoch_of_ours_that_others_remember_is_exceeded() {
    let mut host = Host::active();
    let entry = Entry { router: R, epoch: 40, vtep: Some(OURS) };
    let ack = Message { kind: Kind::Ack, sender: THEIRS, entries: vec![entry] };
    host.engine.handle_claim(&ack.emit(&key()), THEIRS, host.now);
    host.settle();
    assert!(host.log.contains(&"claimed 41 192.0.2.1".to_owned()));
}
