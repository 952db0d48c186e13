//! Whatever was there before, one plan brings a host to what it must be, and touches nothing foreign.

use evergate_dataplane::fake::FakeKernel;
use evergate_dataplane::state::{Address, FdbEntry, FdbTable, Link, LinkKind, NeighbourKey, Netns, Route, TABLE_MAIN};
use evergate_dataplane::{Desired, KernelState, NetnsState, compile, diff};
use evergate_model::host::{ExtraRoute, FloatingIp, Location};
use evergate_model::{FloatingIpId, HostConfig, RouterId, names};
use proptest::prelude::*;

use crate::cloud::{self, COMPUTE, INSTANCE_PORT, NETWORK_1, NETWORK_2, PROJECT_NET, QR_PORT, ROUTER, mac};

/// A host's configuration as a few choices.
#[derive(Clone, Debug)]
struct Choices {
    ha: bool,
    router: bool,
    admin_up: bool,
    gateway: bool,
    snat: bool,
    interface: bool,
    floating_ips: u8,
    second_address: bool,
    extra_route: bool,
    location: u8,
    peers: u8,
    uplink_is_bridge: bool,
    tap: bool,
    local_ip: bool,
    extra_networks: u8,
}

fn choices() -> impl Strategy<Value = Choices> {
    let flags = prop::array::uniform11(any::<bool>());
    (flags, 0u8..4, 0u8..4, 0u8..4, 0u8..3).prop_map(|(b, floating_ips, location, peers, extra_networks)| Choices {
        ha: b[0],
        // Mostly present: an absent router has little to get wrong.
        router: b[1] || b[2],
        admin_up: b[2] || b[3],
        gateway: b[4] || b[5],
        snat: b[5],
        interface: b[6] || b[7],
        floating_ips,
        second_address: b[7],
        extra_route: b[8],
        location,
        peers,
        uplink_is_bridge: b[9],
        tap: b[10],
        local_ip: b[3] || b[9] || b[0],
        extra_networks,
    })
}

fn config(choices: &Choices) -> HostConfig {
    let mut config = if choices.ha { cloud::ha_host() } else { cloud::legacy_host() };
    let location = match choices.location {
        0 => Location::Local,
        1 => Location::Unbound,
        2 => Location::Remote { vtep: COMPUTE },
        _ => Location::Remote { vtep: NETWORK_2 },
    };
    let project = config.networks.get_mut(&PROJECT_NET).unwrap();
    project.ports.get_mut(&INSTANCE_PORT).unwrap().location = location;
    project.peers = [COMPUTE, NETWORK_2].into_iter().take(usize::from(choices.peers)).collect();
    for n in 0..choices.extra_networks {
        let mut network = project_clone(&config);
        network.id = evergate_model::NetworkId::from_u128((0xe0 + u128::from(n)) << 120);
        network.segment = evergate_model::host::Segment::Vxlan { vni: 200 + u32::from(n) };
        network.ports.clear();
        config.networks.insert(network.id, network);
    }
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.admin_state_up = choices.admin_up;
    let gateway = router.gateway.as_mut().unwrap();
    gateway.enable_snat = choices.snat;
    if choices.second_address {
        gateway.addresses.push("203.0.113.11/24".parse().unwrap());
        gateway.onlink_subnets.push("198.51.100.0/24".parse().unwrap());
    }
    for n in 1..=choices.floating_ips {
        let fip =
            FloatingIp { floating: [203, 0, 113, 50 + n].into(), fixed: [10, 0, 0, n % 3].into(), distributed: false };
        router.floating_ips.insert(FloatingIpId::from_u128(u128::from(n)), fip);
    }
    if choices.extra_route {
        router
            .routes
            .insert(ExtraRoute { destination: "172.16.0.0/12".parse().unwrap(), nexthop: cloud::ip("10.0.0.7") });
    }
    if !choices.gateway {
        router.gateway = None;
    }
    if !choices.interface {
        router.interfaces.clear();
    }
    if !choices.router {
        config.routers.clear();
    }
    config
}

fn project_clone(config: &HostConfig) -> evergate_model::host::Network {
    config.networks[&PROJECT_NET].clone()
}

fn desired(choices: &Choices) -> Desired {
    let taps: &[_] = if choices.tap { &[INSTANCE_PORT] } else { &[] };
    let mut view = cloud::view(taps);
    if !choices.uplink_is_bridge {
        view.bridges.clear();
    }
    let mut settings = cloud::settings(NETWORK_1);
    settings.local_ip = settings.local_ip.filter(|_| choices.local_ip);
    compile(&config(choices), &settings, &view)
}

/// What others, or a crash, may have done to the host meanwhile.
#[derive(Clone, Debug)]
enum Mishap {
    LoseLink(usize),
    DownLink(usize),
    ChangeMtu(usize),
    StrayAddress(usize),
    StrayFdb(usize),
    LoseNetns,
    LeftoverNetns,
    LeftoverLink,
    UnplugPort(usize),
    ForeignLink(usize),
    ForeignNetns,
    /// One table of a namespace changed.
    Table(TableMishap),
}

#[derive(Clone, Debug)]
enum TableMishap {
    LoseAddress(usize),
    LoseRoute,
    StrayRoute,
    LoseFdb(usize),
    LoseNeighbour,
    StrayNeighbour,
    LoseSysctl(usize),
    LoseNft,
    ShortenNft,
}

fn mishap() -> impl Strategy<Value = Mishap> {
    let n = 0usize..64;
    prop_oneof![
        2 => n.clone().prop_map(Mishap::LoseLink),
        1 => n.clone().prop_map(Mishap::DownLink),
        1 => n.clone().prop_map(Mishap::ChangeMtu),
        1 => n.clone().prop_map(Mishap::StrayAddress),
        1 => n.clone().prop_map(Mishap::StrayFdb),
        1 => Just(Mishap::LoseNetns),
        1 => Just(Mishap::LeftoverNetns),
        1 => Just(Mishap::LeftoverLink),
        1 => n.clone().prop_map(Mishap::UnplugPort),
        1 => n.prop_map(Mishap::ForeignLink),
        1 => Just(Mishap::ForeignNetns),
        6 => table_mishap().prop_map(Mishap::Table),
    ]
}

fn table_mishap() -> impl Strategy<Value = TableMishap> {
    let n = 0usize..64;
    prop_oneof![
        n.clone().prop_map(TableMishap::LoseAddress),
        Just(TableMishap::LoseRoute),
        Just(TableMishap::StrayRoute),
        n.clone().prop_map(TableMishap::LoseFdb),
        Just(TableMishap::LoseNeighbour),
        Just(TableMishap::StrayNeighbour),
        n.prop_map(TableMishap::LoseSysctl),
        Just(TableMishap::LoseNft),
        Just(TableMishap::ShortenNft),
    ]
}

fn foreign() -> Link {
    Link { kind: LinkKind::Other, alias: None, up: true, mtu: Some(1500), mac: None, master: None, port: None }
}

fn strike(kernel: &mut FakeKernel, mishap: &Mishap) {
    use evergate_dataplane::op::{LinkChange, Op};
    let router = Netns::Named(names::qrouter_namespace(ROUTER));
    let owned: Vec<(Netns, String)> = kernel
        .state()
        .netns
        .iter()
        .flat_map(|(netns, ns)| ns.links.iter().map(move |(name, link)| (netns.clone(), name.clone(), link.clone())))
        .filter(|(_, _, link)| link.is_owned() && link.kind != LinkKind::Loopback)
        .map(|(netns, name, _)| (netns, name))
        .collect();
    let pick = |n: &usize| (!owned.is_empty()).then(|| owned[n % owned.len()].clone());
    let change = |netns, name, change| Op::SetLink { netns, name, change };
    match mishap {
        Mishap::LoseLink(n) => {
            if let Some((netns, name)) = pick(n) {
                kernel.apply(&[Op::DeleteLink { netns, name }]);
            }
        }
        Mishap::DownLink(n) => {
            if let Some((netns, name)) = pick(n) {
                kernel.apply(&[change(netns, name, LinkChange { up: Some(false), ..LinkChange::default() })]);
            }
        }
        Mishap::ChangeMtu(n) => {
            if let Some((netns, name)) = pick(n) {
                kernel.apply(&[change(netns, name, LinkChange { mtu: Some(999), ..LinkChange::default() })]);
            }
        }
        Mishap::UnplugPort(n) => {
            if let Some((netns, name)) = pick(n) {
                kernel.apply(&[change(netns, name, LinkChange { master: Some(None), ..LinkChange::default() })]);
            }
        }
        Mishap::StrayAddress(n) => {
            if let Some((netns, link)) = pick(n) {
                let address = Address { link, net: "10.0.0.77/24".parse().unwrap() };
                kernel.apply(&[Op::AddAddress { netns, address }]);
            }
        }
        Mishap::StrayFdb(n) => {
            if let Some((netns, link)) = pick(n) {
                let entry = FdbEntry { link, mac: mac(77), table: FdbTable::Bridge };
                kernel.apply(&[Op::SetFdb { netns, entry }]);
            }
        }
        Mishap::ForeignLink(n) => {
            // Somebody else's link takes the place of one of ours in the host.
            if let Some((Netns::Host, name)) = pick(n) {
                kernel.apply(&[Op::DeleteLink { netns: Netns::Host, name: name.clone() }]);
                kernel.state_mut().netns.get_mut(&Netns::Host).unwrap().links.insert(name, foreign());
            }
        }
        Mishap::LeftoverNetns => {
            let name = names::qrouter_namespace(RouterId::from_u128(77));
            kernel.apply(&[Op::AddNetns { name, alias: "evergate: router 77".to_owned() }]);
        }
        Mishap::LeftoverLink => {
            let link = Link { kind: LinkKind::Bridge, alias: Some("evergate: network 77".to_owned()), ..foreign() };
            kernel.apply(&[Op::AddLink { netns: Netns::Host, name: "brq77".to_owned(), link, peer_link: None }]);
        }
        Mishap::LoseNetns => {
            kernel.apply(&[Op::DeleteNetns { name: names::qrouter_namespace(ROUTER) }]);
        }
        Mishap::ForeignNetns => {
            kernel.apply(&[Op::DeleteNetns { name: names::qrouter_namespace(ROUTER) }]);
            kernel.state_mut().netns.insert(router, NetnsState::default());
        }
        Mishap::Table(mishap) => strike_table(kernel, mishap, &router),
    }
}

fn strike_table(kernel: &mut FakeKernel, mishap: &TableMishap, router: &Netns) {
    let mut nothing = NetnsState::default();
    let qr = names::internal_device(QR_PORT);
    let bridge = names::bridge(PROJECT_NET);
    let state = kernel.state_mut();
    match mishap {
        TableMishap::LoseFdb(n) => drop_nth(&mut state.netns.get_mut(&Netns::Host).unwrap().fdb, *n),
        TableMishap::LoseNeighbour => drop(state.netns.get_mut(&Netns::Host).unwrap().neighbours.pop_first()),
        TableMishap::StrayNeighbour => {
            let host = state.netns.get_mut(&Netns::Host).unwrap();
            if host.links.contains_key(&bridge) {
                host.neighbours.insert(NeighbourKey { link: bridge, ip: cloud::ip("10.0.0.77") }, mac(77));
            }
        }
        TableMishap::LoseAddress(n) => drop_nth(&mut state.netns.get_mut(router).unwrap_or(&mut nothing).addresses, *n),
        TableMishap::LoseRoute => drop(state.netns.get_mut(router).unwrap_or(&mut nothing).routes.pop_first()),
        TableMishap::StrayRoute => {
            let ns = state.netns.get_mut(router).unwrap_or(&mut nothing);
            if ns.links.contains_key(&qr) {
                let destination = "198.18.0.0/15".parse().unwrap();
                ns.routes.insert(Route { table: TABLE_MAIN, destination, via: None, link: Some(qr) });
            }
        }
        TableMishap::LoseSysctl(n) => {
            let ns = state.netns.get_mut(router).unwrap_or(&mut nothing);
            let paths: Vec<String> = ns.sysctls.keys().cloned().collect();
            if !paths.is_empty() {
                ns.sysctls.remove(&paths[n % paths.len()]);
            }
        }
        TableMishap::LoseNft => state.netns.get_mut(router).unwrap_or(&mut nothing).nft.clear(),
        TableMishap::ShortenNft => {
            for table in state.netns.get_mut(router).unwrap_or(&mut nothing).nft.values_mut() {
                table.chains.pop_first();
            }
        }
    }
}

fn drop_nth<T: Ord + Clone>(set: &mut std::collections::BTreeSet<T>, n: usize) {
    if let Some(element) = set.iter().nth(n % set.len().max(1)).cloned() {
        set.remove(&element);
    }
}

/// What is not ours on this kernel, as far as our ops could change it.
fn foreign_objects(kernel: &KernelState) -> Vec<String> {
    let links = kernel.netns.iter().flat_map(|(netns, ns)| {
        ns.links
            .iter()
            .filter(|(_, link)| !link.is_owned())
            .map(move |(name, link)| format!("{netns} {name} {:?} {:?} {:?}", link.kind, link.mtu, link.mac))
    });
    let namespaces = kernel.netns.iter().filter(|(_, ns)| !ns.owned).map(|(netns, _)| format!("namespace {netns}"));
    links.chain(namespaces).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn one_plan_suffices_whatever_was_there(before in choices(), after in choices(), mishaps in prop::collection::vec(mishap(), 0..6)) {
        let mut kernel = cloud::kernel(&[INSTANCE_PORT]);
        let first = desired(&before).kernel;
        kernel.apply(&diff(&first, &kernel.observe(&first)).0.into_ops());
        for mishap in &mishaps {
            strike(&mut kernel, mishap);
        }
        let foreign = foreign_objects(kernel.state());

        let desired = desired(&after).kernel;
        let (plan, refusals) = diff(&desired, &kernel.observe(&desired));
        for (op, result) in plan.ops().zip(kernel.apply(&plan.clone().into_ops())) {
            prop_assert!(result.is_ok(), "{op}: {result:?}\nin plan\n{plan}");
        }
        let (again, refusals_again) = diff(&desired, &kernel.observe(&desired));
        prop_assert!(again.is_empty(), "left to do:\n{again}after\n{plan}in\n{}", kernel.state());
        prop_assert_eq!(refusals, refusals_again);
        prop_assert_eq!(foreign, foreign_objects(kernel.state()));
    }

    #[test]
    fn nothing_of_ours_is_left_on_a_host_that_has_nothing_to_do(before in choices()) {
        let mut kernel = cloud::kernel(&[INSTANCE_PORT]);
        let first = desired(&before).kernel;
        kernel.apply(&diff(&first, &kernel.observe(&first)).0.into_ops());
        let nothing = compile(&HostConfig::default(), &cloud::settings(NETWORK_1), &cloud::view(&[INSTANCE_PORT]));
        kernel.apply(&diff(&nothing.kernel, &kernel.observe(&nothing.kernel)).0.into_ops());
        let owned = kernel.state().netns.values().flat_map(|ns| ns.links.values()).filter(|link| link.is_owned()).count();
        prop_assert_eq!(owned, 0);
        prop_assert_eq!(kernel.state().netns.len(), 1);
        prop_assert!(kernel.state().netns[&Netns::Host].fdb.is_empty());
    }

    #[test]
    fn the_same_input_always_gives_the_same_output(choices in choices()) {
        let (one, two) = (desired(&choices), desired(&choices));
        prop_assert_eq!(diff(&one.kernel, &KernelState::default()), diff(&two.kernel, &KernelState::default()));
        prop_assert_eq!(one, two);
    }
}
