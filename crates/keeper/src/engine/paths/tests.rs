use super::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const C: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));

fn router(n: u8) -> RouterId {
    RouterId::from_u128(u128::from(n))
}

fn entries(n: u8) -> Vec<FollowEntry> {
    let entry = |net| FollowEntry { mac: Mac([2, 0, 0, 0, net, n]), vxlan_ifindex: u32::from(net), tap_ifindex: None };
    vec![entry(1), entry(2)]
}

/// A kernel that does what the messages say, as far as they are about paths.
#[derive(Default)]
struct Kernel {
    messages: usize,
    said: Vec<String>,
}

impl Kernel {
    fn take(&mut self, batch: impl IntoIterator<Item = Batch>) -> usize {
        let before = self.messages;
        for batch in batch {
            self.messages += batch.messages.len();
            self.said.extend(batch.steps.iter().map(|(what, action)| format!("{} {what}", action.verb())));
        }
        self.messages - before
    }
}

/// So many routers at one host.
fn at(host: IpAddr, routers: std::ops::Range<u8>, paths: &mut Paths, kernel: &mut Kernel) {
    for n in routers {
        kernel.take(paths.set(router(n), &entries(n), Some(host)));
    }
}

fn go(paths: &mut Paths, kernel: &mut Kernel, routers: std::ops::Range<u8>, to: IpAddr, now: Instant) -> usize {
    routers.map(|n| kernel.take(paths.go(router(n), &entries(n), to, now))).sum()
}

fn wait(paths: &mut Paths, kernel: &mut Kernel, now: Instant) -> usize {
    let overdue = paths.overdue(now + GATHER);
    let set = |(router, to): (RouterId, IpAddr)| {
        let n = router.0.as_bytes()[15];
        kernel.take(paths.set(router, &entries(n), Some(to)))
    };
    overdue.into_iter().map(set).sum()
}

fn shared() -> Paths {
    Paths::new(Some(FoundPaths::default()))
}

#[test]
fn many_routers_that_move_together_cost_one_message() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..200, &mut paths, &mut kernel);
    assert_eq!(go(&mut paths, &mut kernel, 0..199, B, now), 0, "the last may be about to follow");
    assert_eq!(go(&mut paths, &mut kernel, 199..200, B, now), 1);
    assert_eq!(kernel.said.last().unwrap(), "add path 0 of 200 routers, from 192.0.2.1 to 192.0.2.2");
    assert_eq!((paths.poll_timeout(), wait(&mut paths, &mut kernel, now)), (None, 0));
    assert_eq!(go(&mut paths, &mut kernel, 0..200, A, now), 1);
}

#[test]
fn a_lone_router_moves_at_once() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..1, &mut paths, &mut kernel);
    assert_eq!(go(&mut paths, &mut kernel, 0..1, B, now), 1);
    assert_eq!(go(&mut paths, &mut kernel, 0..1, B, now), 0, "a repeat changes nothing");
}

#[test]
fn routers_that_part_are_groups_of_their_own_from_then_on() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..10, &mut paths, &mut kernel);
    go(&mut paths, &mut kernel, 0..4, B, now);
    let parted = wait(&mut paths, &mut kernel, now);
    // Path and group of each, its entries in two tables on two networks.
    assert_eq!(parted, 4 * (2 + 2 * 2));
    assert_eq!(go(&mut paths, &mut kernel, 4..10, C, now), 1, "the rest is a group, too");
    for n in [0, 1, 2] {
        let to = [A, B, A][n];
        assert_eq!(go(&mut paths, &mut kernel, 4..10, to, now), 1);
    }
    assert_eq!(go(&mut paths, &mut kernel, 0..4, A, now), 1);
}

#[test]
fn a_router_that_is_gone_keeps_nobody_waiting() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..3, &mut paths, &mut kernel);
    go(&mut paths, &mut kernel, 0..2, B, now);
    let led = kernel.take(paths.set(router(2), &entries(2), None));
    assert_eq!(led, 2 * 2 + 1, "its entries, and the path of the others");
    assert_eq!(paths.poll_timeout(), None);
}

#[test]
fn a_router_that_is_active_here_stays_out_of_moves() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..3, &mut paths, &mut kernel);
    assert_eq!(kernel.take(paths.park(router(0))), 0);
    assert_eq!(go(&mut paths, &mut kernel, 1..3, B, now), 1);
    kernel.take(paths.set(router(0), &entries(0), Some(B)));
    assert_eq!(go(&mut paths, &mut kernel, 0..3, A, now), 1);
}

#[test]
fn a_path_goes_with_its_last_router() {
    let (mut paths, mut kernel) = (shared(), Kernel::default());
    at(A, 0..1, &mut paths, &mut kernel);
    kernel.take(paths.set(router(0), &entries(0), None));
    assert_eq!(kernel.said[kernel.said.len() - 2..], ["remove path 0", "remove path 0"]);
}

#[test]
fn what_an_earlier_process_left_is_taken_over_without_a_change_of_path() {
    let mut found = FoundPaths { paths: BTreeMap::from([(3, A), (5, A), (7, C)]), ..FoundPaths::default() };
    found.taken = BTreeSet::from([0]);
    for (n, path) in [(0, Some(5)), (1, Some(5)), (2, None)] {
        found.entries.extend(entries(n).iter().map(|entry| (key(entry), path)));
    }
    let (mut paths, mut kernel) = (Paths::new(Some(found)), Kernel::default());
    at(A, 0..4, &mut paths, &mut kernel);
    let mac = |n: u8| entries(n)[0].mac;
    for (n, path) in [(0, 5), (1, 5), (2, 3), (3, 3)] {
        let expected = format!("add forwarding of {} by path {path} to {A}", mac(n));
        assert!(kernel.said.contains(&expected), "{expected} in {:#?}", kernel.said);
    }
    let removed: Vec<_> = kernel.said.iter().filter(|line| line.starts_with("remove")).collect();
    assert_eq!(removed[0], &format!("remove forwarding of {}", mac(2)), "it named the host itself");
    assert_eq!(removed.len(), 4);
    assert_eq!(kernel.take(paths.sweep()), 2);
    assert!(kernel.said.last().unwrap().contains("path 7"));
    assert_eq!(kernel.take(paths.sweep()), 0);
}

#[test]
fn paths_to_one_host_do_not_become_ever_more() {
    let (mut paths, mut kernel, now) = (shared(), Kernel::default(), Instant::now());
    at(A, 0..100, &mut paths, &mut kernel);
    // One after the other is moved away and comes back.
    for n in 0..100 {
        for to in [B, A] {
            go(&mut paths, &mut kernel, n..n + 1, to, now);
            wait(&mut paths, &mut kernel, now);
        }
        // The patrol comes by.
        at(A, 0..100, &mut paths, &mut kernel);
    }
    let count = paths.shared.as_ref().unwrap().paths.len();
    assert!(count <= MERGE + 1, "{count} paths");
}

#[test]
fn a_kernel_without_nexthop_objects_is_told_entry_by_entry() {
    let (mut paths, mut kernel, now) = (Paths::default(), Kernel::default(), Instant::now());
    at(A, 0..2, &mut paths, &mut kernel);
    assert_eq!(go(&mut paths, &mut kernel, 0..2, B, now), 2 * 4);
    assert_eq!(paths.poll_timeout(), None);
}

#[test]
fn when_numbers_run_out_entries_name_their_host() {
    let taken = (0..rt::PATHS).collect();
    let (mut paths, mut kernel) = (Paths::new(Some(FoundPaths { taken, ..FoundPaths::default() })), Kernel::default());
    at(A, 0..1, &mut paths, &mut kernel);
    assert_eq!(kernel.said[0], format!("add forwarding of {} to {A}", entries(0)[0].mac));
}
