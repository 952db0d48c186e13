use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use evergate_dataplane::Op;
use evergate_dataplane::compile::{CopyPort, dispatch_table};
use evergate_dataplane::nft::{
    NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement as S, NftTable,
};
use evergate_dataplane::state::{KernelState, Netns};
use evergate_kernel::Kernel;

use crate::sandbox::*;

fn chain(kind: NftChainKind, hook: NftHook, priority: i32, rules: Vec<Vec<S>>) -> NftChain {
    let rules = rules.into_iter().map(|statements| NftRule { statements }).collect();
    NftChain { kind, hook, priority, drop_by_default: false, rules }
}

fn iif(name: &str, negated: bool) -> S {
    S::InLink { name: name.to_owned(), negated }
}

fn oif(name: &str, negated: bool) -> S {
    S::OutLink { name: name.to_owned(), negated }
}

/// A table with every statement there is.
fn table() -> NftTable {
    let net = |net: &str| net.parse().unwrap();
    let ip = |ip: &str| ip.parse::<Ipv4Addr>().unwrap();
    let map = |pairs: &[(&str, &str)]| NftMap::Addresses(pairs.iter().map(|(a, b)| (ip(a), ip(b))).collect());
    let prerouting = vec![
        vec![
            iif("qr-1", false),
            S::Source { net: net("10.0.0.0/24"), negated: false },
            S::SetMark { mask: 0xffff, value: 2 },
        ],
        vec![S::DnatByMap { map: "floating".to_owned() }],
        vec![S::Protocol { number: 6 }, S::DnatByServiceMap { map: "forwarded".to_owned() }],
        vec![
            S::Destination { net: net("192.0.2.7/32"), negated: false },
            S::Protocol { number: 17 },
            S::DestinationPorts { first: 5000, last: 5999 },
            S::Dnat { to: ip("10.0.0.7") },
        ],
    ];
    let postrouting = vec![
        vec![iif("qg-1", true), oif("qg-1", true), S::CtDnat { negated: true }, S::Accept],
        vec![S::SnatByMap { map: "fixed".to_owned() }],
        vec![oif("qg-1", false), S::Counter, S::Snat { to: ip("192.0.2.9"), fully_random: true }],
        vec![
            S::Mark { mask: 0xffff, value: 2, negated: true },
            S::CtDnat { negated: false },
            S::Snat { to: ip("192.0.2.9"), fully_random: false },
        ],
    ];
    let forward = vec![
        vec![S::CtReply, S::Accept],
        vec![S::Protocol { number: 6 }, S::DestinationPorts { first: 22, last: 22 }, S::Drop],
        vec![S::Mark { mask: u32::MAX, value: 7, negated: false }, S::Counter, S::Drop],
        vec![
            S::Destination { net: net("10.0.0.7/32"), negated: true },
            S::Source { net: net("172.16.0.0/12"), negated: true },
            S::Accept,
        ],
    ];
    NftTable {
        family: NftFamily::Ip,
        maps: BTreeMap::from([
            ("floating".to_owned(), map(&[("192.0.2.5", "10.0.0.5"), ("192.0.2.6", "10.0.0.6")])),
            ("fixed".to_owned(), map(&[("10.0.0.5", "192.0.2.5")])),
            ("forwarded".to_owned(), NftMap::Services([((ip("192.0.2.7"), 80), (ip("10.0.0.7"), 8080))].into())),
            ("nobody".to_owned(), NftMap::default()),
        ]),
        chains: BTreeMap::from([
            ("prerouting".to_owned(), chain(NftChainKind::Nat, NftHook::Prerouting, -100, prerouting)),
            ("postrouting".to_owned(), chain(NftChainKind::Nat, NftHook::Postrouting, 100, postrouting)),
            (
                "forward".to_owned(),
                NftChain { drop_by_default: true, ..chain(NftChainKind::Filter, NftHook::Forward, 0, forward) },
            ),
            ("input".to_owned(), chain(NftChainKind::Filter, NftHook::Input, 5, vec![])),
            ("output".to_owned(), chain(NftChainKind::Filter, NftHook::Output, -5, vec![])),
        ]),
    }
}

fn replace(netns: &str, table: NftTable) -> Op {
    Op::ReplaceNft { netns: named(netns), table }
}

fn list(netns: &str) -> String {
    run(&format!("ip netns exec {netns} nft list ruleset"))
}

fn feed_nft(netns: &str, text: &str) {
    let mut child =
        Command::new("ip").args(["netns", "exec", netns, "nft", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft refused: {text}");
}

#[test]
fn our_table_and_the_one_that_nft_makes_of_its_text_list_the_same() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ours"), add_netns("nfts"), replace("ours", table())]);
    feed_nft("nfts", &table().to_string());
    // Chains and maps are listed in the order of their making, which is ours in both.
    assert_eq!(list("ours"), list("nfts"));
    assert!(list("ours").contains("comment \"source NAT "));
}

#[test]
fn tables_are_observed_as_they_were_made_by_us_and_by_nft() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ours"), add_netns("nfts"), replace("ours", table())]);
    feed_nft("nfts", &table().to_string());
    let state = kernel.observe(&KernelState::default()).unwrap();
    for netns in ["ours", "nfts"] {
        assert_eq!(state.netns[&named(netns)].nft.get(&NftFamily::Ip), Some(&table().as_observed()));
    }
}

#[test]
fn what_others_put_into_our_table_shows_as_drift_and_goes_with_the_next_replacement() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), replace("ns", table())]);
    let tampered = [
        "add rule ip evergate forward accept",
        "insert rule ip evergate postrouting counter",
        "add chain ip evergate extra",
        "add element ip evergate floating { 192.0.2.7 : 10.0.0.7 }",
        "add set ip evergate extra { type ipv4_addr; }",
        "delete chain ip evergate input",
    ];
    for change in tampered {
        run(&format!("ip netns exec ns nft '{change}'"));
        let seen = observe(&mut kernel, &named("ns")).nft.remove(&NftFamily::Ip).unwrap();
        assert!(!table().matches(&seen), "'{change}' was not noticed");
        apply(&mut kernel, &[replace("ns", table())]);
        assert_eq!(observe(&mut kernel, &named("ns")).nft.get(&NftFamily::Ip), Some(&table().as_observed()));
    }
}

#[test]
fn foreign_tables_are_neither_seen_nor_touched() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns")]);
    run("ip netns exec ns nft 'add table ip other; add chain ip other c; add table ip6 other'");
    assert!(observe(&mut kernel, &named("ns")).nft.is_empty());
    let delete = Op::DeleteNft { netns: named("ns"), family: NftFamily::Ip };
    apply(&mut kernel, &[replace("ns", table()), delete.clone(), delete]);
    assert!(observe(&mut kernel, &named("ns")).nft.is_empty());
    assert!(list("ns").contains("table ip other") && list("ns").contains("chain c"));
}

#[test]
fn a_map_of_many_elements_takes_several_messages_of_one_transaction() {
    let mut kernel = host();
    let mut big = table();
    let elements = (0..20_000_u32).map(|i| (Ipv4Addr::from(0x0a00_0000 + i), Ipv4Addr::from(0xc000_0000 + i)));
    big.maps.insert("floating".to_owned(), NftMap::Addresses(elements.collect()));
    apply(&mut kernel, &[add_netns("ns"), replace("ns", big.clone())]);
    assert_eq!(observe(&mut kernel, &named("ns")).nft.get(&NftFamily::Ip), Some(&big.as_observed()));
    apply(&mut kernel, &[replace("ns", table())]);
    assert_eq!(observe(&mut kernel, &named("ns")).nft.get(&NftFamily::Ip), Some(&table().as_observed()));
}

#[test]
fn a_refused_table_changes_nothing_and_the_error_names_the_rule() {
    let mut kernel = host();
    apply(&mut kernel, &[add_netns("ns"), replace("ns", table())]);
    let mut bad = table();
    // Source NAT belongs after routing.
    let snat = S::Snat { to: Ipv4Addr::new(192, 0, 2, 9), fully_random: false };
    bad.chains.get_mut("forward").unwrap().rules.push(NftRule { statements: vec![snat] });
    let error = refused(&mut kernel, replace("ns", bad)).full();
    assert!(error.starts_with("failed to replace the nftables table in ns: rule 5 of chain forward: "), "{error}");
    assert_eq!(observe(&mut kernel, &named("ns")).nft.get(&NftFamily::Ip), Some(&table().as_observed()));

    let mut bad = table();
    bad.maps.remove("floating");
    let error = refused(&mut kernel, replace("ns", bad)).full();
    assert!(error.ends_with("rule 2 of chain prerouting: the table has no map 'floating'"), "{error}");
    let six = NftTable { family: NftFamily::Ip6, ..table() };
    assert!(refused(&mut kernel, replace("ns", six)).full().contains("in a table of family ip6"));
}

#[test]
fn a_table_of_family_ip6_compares_ipv6_addresses() {
    let mut kernel = host();
    let rules = vec![
        vec![iif("qr-1", false), oif("qr-2", true), S::Counter, S::Drop],
        vec![S::Source { net: "::/128".parse().unwrap(), negated: false }, S::Drop],
        vec![S::Destination { net: "2001:db8::/33".parse().unwrap(), negated: true }, S::Accept],
    ];
    let table = NftTable {
        family: NftFamily::Ip6,
        maps: BTreeMap::new(),
        chains: BTreeMap::from([("forward".to_owned(), chain(NftChainKind::Filter, NftHook::Forward, 0, rules))]),
    };
    apply(&mut kernel, &[add_netns("ours"), add_netns("nfts"), replace("ours", table.clone())]);
    feed_nft("nfts", &table.to_string());
    assert_eq!(list("ours"), list("nfts"));
    assert_eq!(observe(&mut kernel, &named("ours")).nft.get(&NftFamily::Ip6), Some(&table.as_observed()));
}

/// Advertisements that come in by `eth0` go to the copies behind the bridge, and theirs out by it.
pub(crate) fn frames() -> NftTable {
    frames_of([7, 9, 250])
}

fn frames_of(vrids: impl IntoIterator<Item = u8>) -> NftTable {
    let copies = vrids.into_iter().map(|vrid| (vrid, CopyPort { mac: mac(vrid), tap: format!("tap{vrid}") }));
    dispatch_table(&[("eth0".to_owned(), copies.collect())].into())
}

fn replace_frames(table: &NftTable) -> Op {
    Op::ReplaceNft { netns: Netns::Host, table: table.clone() }
}

fn seen_frames(kernel: &mut Kernel) -> NftTable {
    observe(kernel, &Netns::Host).nft.remove(&NftFamily::Netdev).unwrap()
}

fn make_devices<'a>(names: impl IntoIterator<Item = &'a str>) {
    names.into_iter().for_each(|name| drop(run(&format!("ip link add {name} type veth peer name other-{name}"))));
}

#[test]
fn a_table_of_frames_is_listed_as_nft_lists_its_text_and_is_seen_again() {
    let mut kernel = host();
    make_devices(frames().devices());
    apply(&mut kernel, &[replace_frames(&frames())]);
    let ours = run("nft list ruleset");
    assert_eq!(seen_frames(&mut kernel), frames().as_observed());
    apply(&mut kernel, &[Op::DeleteNft { netns: Netns::Host, family: NftFamily::Netdev }]);
    assert!(!observe(&mut kernel, &Netns::Host).nft.contains_key(&NftFamily::Netdev));
    let file = format!("/run/{}.nft", std::process::id());
    std::fs::write(&file, frames().to_string()).unwrap();
    run(&format!("nft -f {file}"));
    assert_eq!(seen_frames(&mut kernel), frames().as_observed());
    assert_eq!(ours, run("nft list ruleset"));
    assert!(
        ours.contains("ether daddr set @nh,168,8 map @copies_eth0 accept comment \"advertisement to its copy "),
        "{ours}"
    );
    assert!(ours.contains("devices = { tap250, tap7, tap9 }"), "{ours}");
    assert!(ours.contains("fwd to \"eth0\" comment \"advertisement to other hosts "), "{ours}");
    // What somebody saved is read again.
    std::fs::write(&file, ours).unwrap();
    run(&format!("nft flush ruleset; nft -f {file}"));
}

#[test]
fn a_device_that_was_made_anew_is_not_the_one_that_is_forwarded_to() {
    let mut kernel = host();
    make_devices(frames().devices());
    apply(&mut kernel, &[replace_frames(&frames())]);
    assert!(frames().matches(&seen_frames(&mut kernel)));
    for change in
        ["ip link set eth0 name eth1; ip link set tap9 name eth0", "ip link del eth0; ip link set eth1 name tap9"]
    {
        run(change);
        assert!(!frames().matches(&seen_frames(&mut kernel)), "after {change}");
    }
    // Whether or not a kernel takes up the chains of its former namesake.
    run("ip link add eth0 type veth peer name wire");
    assert!(!frames().matches(&seen_frames(&mut kernel)));
    apply(&mut kernel, &[replace_frames(&frames())]);
    assert_eq!(seen_frames(&mut kernel), frames().as_observed());
    // A copy's device is known by its name.
    run("ip link del tap7; ip link del tap9; ip link del tap250");
    make_devices(["tap7", "tap9", "tap250"]);
    apply(&mut kernel, &[replace_frames(&frames())]);
    assert_eq!(seen_frames(&mut kernel), frames().as_observed());
}

#[test]
fn what_is_missing_is_left_out_of_a_table_of_frames_and_told() {
    let mut kernel = host();
    make_devices(["tap9"]);
    let error = refused(&mut kernel, replace_frames(&frames())).full();
    assert!(error.starts_with("failed to replace the nftables table in host: there is no link eth0"), "{error}");
    assert!(seen_frames(&mut kernel).chains.is_empty(), "nothing comes in or goes out by a tunnel that is not there");
    make_devices(["eth0", "tap250"]);
    let error = refused(&mut kernel, replace_frames(&frames())).full();
    assert!(error.contains("tap7"), "{error}");
    let seen = seen_frames(&mut kernel);
    assert_eq!(seen, frames().without_devices(|device| device == "tap7").as_observed());
    assert!(!frames().matches(&seen));
    make_devices(["tap7"]);
    apply(&mut kernel, &[replace_frames(&frames())]);
    assert!(frames().matches(&seen_frames(&mut kernel)));
}

#[test]
fn a_network_may_have_as_many_copies_on_a_host_as_there_are_identifiers() {
    let mut kernel = host();
    let all = frames_of(1..=u8::MAX);
    let lines: String = (0..=u8::MAX)
        .step_by(2)
        .map(|n| format!("link add tap{n} type veth peer name tap{}\n", n + 1))
        .chain(["link add eth0 type veth peer name wire\n".to_owned()])
        .collect();
    let file = format!("/run/{}.ip", std::process::id());
    std::fs::write(&file, lines).unwrap();
    run(&format!("ip -batch {file}"));
    apply(&mut kernel, &[replace_frames(&all)]);
    assert_eq!(seen_frames(&mut kernel), all.as_observed());
}
