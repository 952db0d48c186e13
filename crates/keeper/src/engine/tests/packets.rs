//! Packets that are refused, and VRIDs that nobody here has.

use super::*;

#[test]
fn foreign_and_malformed_packets_are_counted_and_told_once() {
    let mut host = Host::with_router();
    host.say(ToKeeper::Vrids { network: NetworkId::from_u128(1), vrids: BTreeSet::from([1, 2, 3]) });
    host.log.clear();
    let good = advertisement(200, 50);
    let mut bad_sum = good.clone();
    *bad_sum.last_mut().unwrap() ^= 1;
    let mut low_ttl = good.clone();
    (low_ttl[22], low_ttl[24]) = (254, low_ttl[24].wrapping_add(1)); // TTL, and the header's checksum
    let foreign = advertisement_of(99, 200, 50);
    let neighbour = advertisement_of(3, 200, 50);
    for frame in [&bad_sum, &bad_sum, &low_ttl, &foreign, &neighbour, &vec![0; 5]] {
        host.hear(frame.clone());
    }
    let discards = host.engine.status().discards;
    let expected = [("checksum", 2), ("truncated", 1), ("ttl_not_255", 1), ("unknown_vrid", 1)];
    assert_eq!(discards, expected.map(|(reason, count)| (reason.to_owned(), count)).into());
    // A VRID that is unknown only for now is counted, not told.
    assert_eq!(host.log.len(), 3, "{:?}", host.log);
    assert_eq!(host.engine.status().routers[0].received, 0);
}

#[test]
fn a_vrid_that_stays_unknown_is_told_once() {
    let mut host = Host::with_router();
    host.hear(advertisement_of(99, 200, 50));
    host.log.clear();
    host.advance(Duration::from_secs(11));
    host.log.retain(|line| line.contains("unknown_vrid"));
    assert!(host.log.is_empty());
    for _ in 0..2 {
        host.hear(advertisement_of(99, 200, 50));
    }
    host.log.retain(|line| line.contains("unknown_vrid"));
    assert_eq!(host.log.len(), 1, "{:?}", host.log);
}

#[test]
fn the_lowest_vrid_of_a_network_is_the_sentinel() {
    let mut host = Host::new();
    let with = |router, vrid, network| RouterSpec {
        router: RouterId::from_u128(router),
        vrid,
        ha_network: NetworkId::from_u128(network),
        ..host.spec.clone()
    };
    let specs = [with(1, 30, 1), with(2, 20, 1), with(3, 40, 2), with(4, 25, 1)];
    for spec in specs {
        host.say(ToKeeper::Router(Box::new(spec)));
    }
    let all = |host: &Host| -> Vec<u128> {
        host.listening.iter().filter(|(_, vrid)| vrid.is_none()).map(|(router, _)| router.0.as_u128()).collect()
    };
    assert_eq!(all(&host), [2, 3]);
    host.say(ToKeeper::RemoveRouter { router: RouterId::from_u128(2), how: Removal::Leaves });
    assert_eq!(all(&host), [3, 4]);
}
