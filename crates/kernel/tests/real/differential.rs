//! The same ops on the fake kernel and on this machine's: each op meets the same fate, and both hold the
//! same afterwards.
//!
//! Where they disagree, the fake is wrong, and with it every plan that was computed by its rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use evergate_dataplane::Op;
use evergate_dataplane::fake::{FakeError, FakeKernel, Impossible};
use evergate_dataplane::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};
use evergate_dataplane::op::LinkChange;
use evergate_dataplane::state::{BridgePort, KernelState, Link, LinkKind, Netns, NetnsState, Route, Rule, TABLE_MAIN};
use evergate_model::Mac;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use crate::sandbox::*;

/// Small enough a world that ops often meet.
const BRIDGES: [&str; 2] = ["br0", "br1"];
const VXLANS: [(&str, u32); 2] = [("vx7", 7), ("vx8", 8)];
const VETHS: [(&str, &str); 2] = [("tap1", "qr-1"), ("tap2", "qr-2")];
const ADDRESSES: [&str; 6] =
    ["10.0.0.1/24", "10.0.0.2/24", "10.1.0.1/24", "10.0.0.1/32", "2001:db8::1/64", "2001:db8::2/64"];
const PATHS: [&str; 4] =
    ["ipv6/conf/qr-1/disable_ipv6", "ipv4/ip_forward", "ipv4/conf/br0/rp_filter", "ipv4/conf/qr-1/arp_announce"];

fn spaces() -> impl Strategy<Value = Netns> {
    select(vec![Netns::Host, Netns::Host, named("n1"), named("n2")])
}

/// Links, mostly where the start state has them.
fn links() -> impl Strategy<Value = (Netns, String)> {
    let host =
        ["br0", "br0", "br1", "vx7", "vx7", "vx8", "tap1", "tap1", "tap2", "none"].map(|name| (Netns::Host, name));
    let n1 = ["qr-1", "qr-1", "qr-1", "qr-2", "br0"].map(|name| (named("n1"), name));
    let n2 = ["qr-1", "qr-2"].map(|name| (named("n2"), name));
    select([host.as_slice(), n1.as_slice(), n2.as_slice()].concat()).prop_map(|(netns, name)| (netns, name.to_owned()))
}

fn macs() -> impl Strategy<Value = Mac> {
    select(vec![mac(7), mac(8)])
}

fn ports() -> impl Strategy<Value = BridgePort> {
    any::<[bool; 3]>().prop_map(|[learning, neigh_suppress, isolated]| BridgePort {
        learning,
        neigh_suppress,
        isolated,
    })
}

fn masters() -> impl Strategy<Value = Option<String>> {
    select(vec![None, Some("br0"), Some("br0"), Some("br1")]).prop_map(|master| master.map(str::to_owned))
}

fn plain(kind: LinkKind, up: bool, last: u8) -> Link {
    Link { kind, alias: Some(ALIAS.to_owned()), up, mtu: Some(1400), mac: Some(mac(last)), master: None, port: None }
}

fn with_master(link: Link, master: Option<String>, port: BridgePort) -> Link {
    let port = master.as_ref().map(|_| port);
    Link { master, port, ..link }
}

fn add_links() -> impl Strategy<Value = Op> {
    let bridges = (spaces(), select(BRIDGES.to_vec()), any::<bool>())
        .prop_map(|(netns, name, up)| add_link(&netns, name, plain(LinkKind::Bridge, up, 20)));
    let vxlans =
        (select(VXLANS.to_vec()), any::<bool>(), masters(), ports()).prop_map(|((name, vni), up, master, port)| {
            let kind = LinkKind::Vxlan { vni, local: Ipv4Addr::new(192, 0, 2, 1).into(), port: 4789 };
            add_link(&Netns::Host, name, with_master(plain(kind, up, 30), master, port))
        });
    let veths = (select(VETHS.to_vec()), spaces(), any::<bool>(), masters(), ports()).prop_map(
        |((name, inner), netns, up, master, port)| {
            let end =
                |peer: Netns, name: &str, last| plain(LinkKind::Veth { peer: Some((peer, name.to_owned())) }, up, last);
            Op::AddLink {
                netns: Netns::Host,
                name: name.to_owned(),
                link: with_master(end(netns.clone(), inner, 40), master, port),
                peer_link: Some(Box::new(end(Netns::Host, name, 41))),
            }
        },
    );
    prop_oneof![bridges, vxlans, veths]
}

fn change_links() -> impl Strategy<Value = Op> {
    let parts = (
        proptest::option::of(any::<bool>()),
        proptest::option::of(select(vec![1300_u32, 1400])),
        proptest::option::of(select(vec![mac(50), mac(51)])),
        proptest::option::of(masters()),
    );
    // Flags alone: on a link that is no port they are refused, after the other changes were made.
    let changes = prop_oneof![
        3 => parts.prop_map(|(up, mtu, mac, master)| LinkChange { up, mtu, mac, master, ..LinkChange::default() }),
        1 => ports().prop_map(|port| LinkChange { port: Some(port), ..LinkChange::default() }),
    ];
    let set = (links(), changes).prop_map(|((netns, name), mut change)| {
        // A bridge is no port of a bridge; nobody plans that.
        change.master = change.master.filter(|_| !name.starts_with("br"));
        Op::SetLink { netns, name, change }
    });
    let delete = links().prop_map(|(netns, name)| Op::DeleteLink { netns, name });
    prop_oneof![3 => set, 1 => delete]
}

fn addresses() -> impl Strategy<Value = Op> {
    (links(), select(ADDRESSES.to_vec()), 0..3).prop_map(|((netns, link), net, add)| {
        if add > 0 { add_address(&netns, &link, net) } else { delete_address(&netns, &link, net) }
    })
}

fn routes() -> impl Strategy<Value = Op> {
    let destinations = select(vec!["0.0.0.0/0", "192.168.0.0/16", "198.51.100.1/32"]);
    let vias = select(vec![None, Some("10.0.0.9"), Some("10.1.0.9"), Some("198.51.100.1")]);
    let tables = select(vec![TABLE_MAIN, TABLE_MAIN, 1000]);
    (links(), destinations, vias, tables, 0..3).prop_map(|((netns, link), to, via, table, add)| {
        let route = Route { table, ..route(to, via, Some(&link)) };
        if add > 0 { Op::AddRoute { netns, route } } else { Op::DeleteRoute { netns, route } }
    })
}

fn rules() -> impl Strategy<Value = Op> {
    (spaces(), select(vec![100_u32, 101]), any::<bool>(), any::<bool>()).prop_map(|(netns, priority, iif, add)| {
        let iif = iif.then(|| "qr-1".to_owned());
        let rule = Rule { priority, from: Some("10.0.0.0/24".parse().unwrap()), to: None, iif, table: 16 };
        if add { Op::AddRule { netns, rule } } else { Op::DeleteRule { netns, rule } }
    })
}

fn neighbours() -> impl Strategy<Value = Op> {
    let ips = select(vec!["10.0.0.5", "2001:db8::5"]);
    (links(), ips, macs(), 0..3).prop_map(|((netns, link), ip, mac, add)| {
        let ip = ip.parse().unwrap();
        if add > 0 { Op::SetNeighbour { netns, link, ip, mac } } else { Op::DeleteNeighbour { netns, link, ip } }
    })
}

fn forwarding() -> impl Strategy<Value = Op> {
    let macs = || select(vec![mac(7), mac(8), Mac::ZERO]);
    let ports = select(vec!["vx7", "vx8", "tap1", "tap2", "br0", "none"]);
    let by_port = (ports, macs()).prop_map(|(link, mac)| behind(link, mac));
    // (On other links the kernel takes such an entry for one more address to listen to.)
    let vxlans = select(vec!["vx7", "vx7", "vx8", "none"]);
    let by_tunnel =
        (vxlans, macs(), select(vec!["192.0.2.2", "192.0.2.3"])).prop_map(|(link, mac, dst)| tunnel(link, mac, dst));
    (prop_oneof![by_port, by_tunnel], any::<bool>())
        .prop_map(|(entry, add)| if add { set_fdb(entry) } else { delete_fdb(entry) })
}

fn settings() -> impl Strategy<Value = Op> {
    (spaces(), select(PATHS.to_vec()), select(vec!["0", "1"])).prop_map(|(netns, path, value)| Op::SetSysctl {
        netns,
        path: path.to_owned(),
        value: value.to_owned(),
    })
}

fn tables() -> impl Strategy<Value = Op> {
    let spaces = || select(vec![named("n1"), named("n2")]);
    let replace = (spaces(), 1..4_u8, any::<bool>()).prop_map(|(netns, last, known)| {
        let map = if known { "known" } else { "unknown" };
        let statements = vec![NftStatement::DnatByMap { map: map.to_owned() }];
        let chain = NftChain {
            kind: NftChainKind::Nat,
            hook: NftHook::Prerouting,
            priority: -100,
            drop_by_default: false,
            rules: vec![NftRule { statements }],
        };
        let elements = BTreeMap::from([(Ipv4Addr::new(192, 0, 2, last), Ipv4Addr::new(10, 0, 0, last))]);
        let table = NftTable {
            family: NftFamily::Ip,
            maps: BTreeMap::from([("known".to_owned(), NftMap::Addresses(elements))]),
            chains: BTreeMap::from([("prerouting".to_owned(), chain)]),
        };
        Op::ReplaceNft { netns, table }
    });
    let delete = spaces().prop_map(|netns| Op::DeleteNft { netns, family: NftFamily::Ip });
    prop_oneof![2 => replace, 1 => delete]
}

fn namespaces() -> impl Strategy<Value = Op> {
    (select(vec!["n1", "n2"]), any::<bool>())
        .prop_map(|(name, add)| if add { add_netns(name) } else { Op::DeleteNetns { name: name.to_owned() } })
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => namespaces(),
        5 => add_links(),
        6 => change_links(),
        6 => addresses(),
        4 => routes(),
        1 => rules(),
        3 => neighbours(),
        5 => forwarding(),
        3 => settings(),
        2 => tables(),
    ]
}

/// The state that is asked for: all settings of the world.
fn asked() -> KernelState {
    let sysctls: BTreeMap<_, _> = PATHS.map(|path| (path.to_owned(), String::new())).into();
    let state = NetnsState { sysctls, ..NetnsState::default() };
    KernelState { netns: [Netns::Host, named("n1"), named("n2")].map(|netns| (netns, state.clone())).into() }
}

/// What may differ without meaning anything: the fake shows namespaces that are asked for only if they exist,
/// and so does the real one; host rules are shown where they are wanted.
fn comparable(mut state: KernelState) -> KernelState {
    if let Some(host) = state.netns.get_mut(&Netns::Host) {
        host.rules = BTreeSet::new();
    }
    state
}

/// A network with a router's port, so that most ops find what they are about.
fn start() -> Vec<Op> {
    let port = BridgePort { learning: true, neigh_suppress: false, isolated: false };
    let vxlan = LinkKind::Vxlan { vni: 7, local: Ipv4Addr::new(192, 0, 2, 1).into(), port: 4789 };
    let end = |netns, name: &str, last| plain(LinkKind::Veth { peer: Some((netns, name.to_owned())) }, true, last);
    let tap = with_master(end(named("n1"), "qr-1", 40), Some("br0".to_owned()), port);
    let peer_link = Some(Box::new(end(Netns::Host, "tap1", 41)));
    vec![
        add_netns("n1"),
        add_netns("n2"),
        add_link(&Netns::Host, "br0", plain(LinkKind::Bridge, true, 20)),
        add_link(&Netns::Host, "vx7", with_master(plain(vxlan, true, 30), Some("br0".to_owned()), port)),
        Op::AddLink { netns: Netns::Host, name: "tap1".to_owned(), link: tap, peer_link },
    ]
}

fn compare(ops: &[Op]) -> Result<(), TestCaseError> {
    let mut real = host();
    let mut fake = FakeKernel::new();
    let start = start();
    apply(&mut real, &start);
    fake.apply(&start);
    // Distributions set it either way.
    for netns in [Netns::Host, named("n1"), named("n2")] {
        let path = "ipv4/conf/all/promote_secondaries".to_owned();
        apply(&mut real, &[Op::SetSysctl { netns, path, value: "0".to_owned() }]);
    }
    let (results, expected) = (real.apply(ops), fake.apply(ops));
    for (number, (result, expected)) in results.iter().zip(&expected).enumerate() {
        // With the namespace went what was to be removed: the fake is stricter than it need be.
        let is_gone =
            matches!(expected, Err(FakeError::Impossible(Impossible::Missing(what))) if what.starts_with("namespace"));
        if is_gone && result.is_ok() {
            continue;
        }
        let (real, fake) = (result.as_ref().map_err(evergate_kernel::Error::full), expected);
        prop_assert_eq!(real.is_ok(), fake.is_ok(), "op {}: real {:?}, fake {:?}", number, real, fake);
    }
    let seen = comparable(real.observe(&asked()).unwrap());
    let expected = comparable(fake.observe(&asked()));
    for (netns, seen) in &seen.netns {
        differ(netns, "links", &seen.links, expected.netns.get(netns).map(|ns| &ns.links))?;
        differ(netns, "addresses", &seen.addresses, expected.netns.get(netns).map(|ns| &ns.addresses))?;
        differ(netns, "routes", &seen.routes, expected.netns.get(netns).map(|ns| &ns.routes))?;
        differ(netns, "neighbours", &seen.neighbours, expected.netns.get(netns).map(|ns| &ns.neighbours))?;
        differ(netns, "forwarding", &seen.fdb, expected.netns.get(netns).map(|ns| &ns.fdb))?;
        differ(netns, "settings", &seen.sysctls, expected.netns.get(netns).map(|ns| &ns.sysctls))?;
    }
    prop_assert_eq!(seen, expected);
    Ok(())
}

/// Says which part of a namespace differs, rather than printing all of both.
fn differ<T: PartialEq + std::fmt::Debug>(
    netns: &Netns,
    what: &str,
    seen: &T,
    expected: Option<&T>,
) -> Result<(), TestCaseError> {
    prop_assert!(Some(seen) == expected, "{} in {}: real {:?}, fake {:?}", what, netns, seen, expected);
    Ok(())
}

/// Runs a case on a thread of its own, whose namespaces go with it.
fn in_a_new_host(ops: Vec<Op>) -> Result<(), TestCaseError> {
    std::thread::spawn(move || compare(&ops)).join().map_err(|_| TestCaseError::fail("it panicked"))?
}

#[test]
fn real_and_fake_kernel_agree() {
    let cases = std::env::var("EVERGATE_TEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(40);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(
        config,
        // The same world on every run; more of it by EVERGATE_TEST_CASES.
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    match runner.run(&proptest::collection::vec(ops(), 1..30), in_a_new_host) {
        Ok(()) => {}
        Err(TestError::Fail(reason, ops)) => {
            let ops: Vec<_> = ops.iter().map(ToString::to_string).collect();
            panic!("after\n{}\n{reason}", ops.join("\n"));
        }
        Err(error @ TestError::Abort(_)) => panic!("{error}"),
    }
}
