//! Which routers of a host advertise together.

use evergate_vrrp::pacing::BATCH;

use super::*;

#[test]
fn routers_that_became_active_at_different_moments_advertise_together() {
    let mut host = actives(20, Duration::from_millis(37));
    let batches = interval(&mut host);
    assert_eq!(batches.iter().sum::<usize>(), 20, "each once: {batches:?}");
    assert!(batches.len() <= 3, "{batches:?}");
    assert_eq!(interval(&mut host), batches, "and every interval so");
}

#[test]
fn routers_that_were_kept_from_advertising_do_not_go_on_as_a_burst() {
    let mut host = actives(100, Duration::ZERO);
    // All of them are late by then, and none by so much that another copy has taken over.
    host.now += Duration::from_secs(3);
    assert_eq!(turn(&mut host), 100);
    host.advance(Duration::from_millis(20_007));
    let batches = interval(&mut host);
    assert_eq!(batches.iter().sum::<usize>(), 100, "{batches:?}");
    assert!(batches.iter().all(|batch| *batch <= BATCH), "{batches:?}");
}

#[test]
fn no_other_timer_is_taken_along() {
    let mut host = Host::active();
    host.say(ToKeeper::Router(Box::new(RouterSpec { router: RouterId::from_u128(2), vrid: 2, ..host.spec.clone() })));
    // The first one's last advertisement is within half an interval of the second one's Active_Down_Timer.
    host.advance(ACTIVE_DOWN - Duration::from_millis(20));
    let state = |host: &Host| host.engine.status().routers[1].vrrp_state.clone();
    assert_eq!(state(&host), "backup");
    host.advance(Duration::from_millis(20));
    assert_eq!(state(&host), "active");
}

/// A host with so many active routers, each made so long after the one before.
fn actives(routers: u8, apart: Duration) -> Host {
    let mut host = Host::new();
    for n in 1..=routers {
        let spec = RouterSpec { router: RouterId::from_u128(n.into()), vrid: n, new: true, ..host.spec.clone() };
        host.say(ToKeeper::Router(Box::new(spec)));
        host.advance(apart);
    }
    host.advance(Duration::from_secs(60));
    assert!(host.engine.status().routers.iter().all(|router| router.vrrp_state == "active"));
    host
}

/// Fires what is due; tells how many advertised.
fn turn(host: &mut Host) -> usize {
    host.log.clear();
    host.engine.handle_timeout(host.now);
    host.settle();
    host.log.iter().filter(|line| line.starts_with("advertise")).count()
}

/// Lets an interval pass; tells how many advertised at each moment at which any did.
fn interval(host: &mut Host) -> Vec<usize> {
    let end = host.now + Duration::from_millis(u64::from(host.spec.advertise_interval_cs) * 10);
    let mut batches = Vec::new();
    while let Some((at, _)) = host.engine.poll_timeout().filter(|(at, _)| *at < end) {
        host.now = host.now.max(at);
        batches.push(turn(host));
    }
    host.now = end;
    batches.retain(|advertised| *advertised > 0);
    batches
}
