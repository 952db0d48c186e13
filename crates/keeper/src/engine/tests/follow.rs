//! Forwarding entries of routers whose active copy is elsewhere.

use super::*;

#[test]
fn forwarding_entries_that_are_no_longer_followed_are_removed() {
    let mut host = Host::with_router();
    host.say(ToKeeper::Follow(follow(3, Some(THEIRS))));
    host.log.clear();
    let mut changed = follow(3, Some(THEIRS));
    changed.entries[0].mac = Mac([2, 0, 0, 0, 0, 9]);
    host.say(ToKeeper::Follow(changed));
    assert_eq!(host.log, ["follow -", "follow + 192.0.2.2"]);
    host.log.clear();
    host.say(ToKeeper::Unfollow { router: R });
    assert_eq!(host.log, ["follow -"]);
}

#[test]
fn forwarding_entries_that_are_controls_from_now_on_stay_as_they_are() {
    let mut host = Host::new();
    host.connect();
    let spec = follow(3, Some(THEIRS));
    host.say(ToKeeper::Follow(spec.clone()));
    host.say(ToKeeper::EndOfState);
    host.log.clear();
    host.say(ToKeeper::Cede { router: R, entries: spec.entries });
    host.claim_from(THIRD, Kind::Claim, 4);
    host.say(ToKeeper::Unfollow { router: R });
    assert!(!host.log.iter().any(|line| line.starts_with("follow")), "{:?}", host.log);
}

#[test]
fn followed_routers_that_move_together_move_by_one_message() {
    let mut host = Host::new();
    let start = Start { seed: 1, paths: Some(FoundPaths::default()), ..Start::default() };
    host.engine = Engine::new(start, host.now);
    host.connect();
    let routers: Vec<RouterId> = (1..=60).map(RouterId::from_u128).collect();
    for (n, router) in (1..).zip(&routers) {
        let mac = Mac([2, 0, 0, 0, 0, n]);
        let entries = vec![FollowEntry { mac, vxlan_ifindex: 5, tap_ifindex: None }];
        host.say(ToKeeper::Follow(FollowSpec { router: *router, epoch: 3, vtep: Some(THIRD), entries }));
    }
    host.say(ToKeeper::EndOfState);
    let mut messages = 0;
    let mut claim = |host: &mut Host, routers: &[RouterId], epoch| {
        let entry = |router: &RouterId| Entry { router: *router, epoch, vtep: Some(THEIRS) };
        for some in routers.chunks(MAX_ENTRIES) {
            let entries = some.iter().map(entry).collect();
            let datagram = Message { kind: Kind::Claim, sender: THEIRS, entries }.emit(&key());
            host.engine.handle_claim(&datagram, THEIRS, host.now);
            while let Some(effect) = host.engine.poll_effect() {
                if let Effect::RunBatch(batch) = &effect {
                    messages += batch.messages.len();
                }
                host.carry_out(effect);
            }
        }
        std::mem::take(&mut messages)
    };
    assert_eq!(claim(&mut host, &routers, 4), 1, "in two datagrams");
    assert_eq!(claim(&mut host, &routers, 4), 0, "a claim that comes again changes nothing");
    assert_eq!(claim(&mut host, &routers, 2), 0, "nor does one that comes late");
    host.log.clear();
    host.advance(Duration::from_secs(1));
    assert_eq!(host.log, [""; 0], "nobody waits for anybody");
}
