use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use evergate_dataplane::nft::{
    NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement as S, NftTable,
};
use evergate_dataplane::state::{KernelState, Netns};
use evergate_dataplane::{Op, compile};
use evergate_kernel::rt::{Filter, NetnsFd, PacketSocket};

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

/// Advertisements that come in by `eth0` go to the copies behind the bridge.
fn frames() -> NftTable {
    compile::dispatch_table(&[("eth0".to_owned(), [(7, mac(7)), (9, mac(9)), (250, mac(250))].into())].into())
}

#[test]
fn a_table_of_frames_is_listed_as_nft_lists_its_text_and_is_seen_again() {
    let mut kernel = host();
    run("ip link add eth0 type veth peer name wire");
    apply(&mut kernel, &[Op::ReplaceNft { netns: Netns::Host, table: frames() }]);
    let ours = run("nft list ruleset");
    assert_eq!(observe(&mut kernel, &Netns::Host).nft.get(&NftFamily::Netdev), Some(&frames().as_observed()));
    apply(&mut kernel, &[Op::DeleteNft { netns: Netns::Host, family: NftFamily::Netdev }]);
    assert!(!observe(&mut kernel, &Netns::Host).nft.contains_key(&NftFamily::Netdev));
    let file = format!("/run/{}.nft", std::process::id());
    std::fs::write(&file, frames().to_string()).unwrap();
    run(&format!("nft -f {file}"));
    assert_eq!(observe(&mut kernel, &Netns::Host).nft.get(&NftFamily::Netdev), Some(&frames().as_observed()));
    assert_eq!(ours, run("nft list ruleset"));
    assert!(
        ours.contains("ether daddr set @nh,168,8 map @copies_eth0 accept comment \"advertisement to its copy "),
        "{ours}"
    );
    // What somebody saved is read again.
    std::fs::write(&file, ours).unwrap();
    run(&format!("nft flush ruleset; nft -f {file}"));
}

#[test]
fn an_advertisement_reaches_the_copy_that_it_is_for_and_no_other() {
    let mut kernel = host();
    apply(&mut kernel, &[bridge(&Netns::Host, "brq")]);
    run(
        "ip link add eth0 type veth peer name wire; ip link set eth0 master brq; ip link set eth0 up; ip link set wire up",
    );
    let copies = [7, 9, 250];
    for vrid in copies {
        run(&format!(
            "ip link add tap{vrid} type veth peer name ha{vrid} address {}; ip link set tap{vrid} master brq; \
             ip link set tap{vrid} up; ip link set ha{vrid} up; bridge fdb replace {} dev tap{vrid} master static",
            mac(vrid),
            mac(vrid)
        ));
    }
    let netns = NetnsFd::host().unwrap();
    let mut open = |name: &str, filter| {
        let index = kernel.link_index(&Netns::Host, name).unwrap().unwrap();
        PacketSocket::open(&netns, index, filter).unwrap()
    };
    let wire = open("wire", Filter::SendOnly);
    let ears = copies.map(|vrid| (vrid, open(&format!("ha{vrid}"), Filter::Vrrp { vrid: None })));
    let send = |vrid: u8, group: u8, options: &[u8]| wire.send(&advertisement(vrid, group, options)).unwrap();
    let heard = || {
        let mut frame = [0; 256];
        let mut all = Vec::new();
        for (vrid, ear) in &ears {
            while let Some(length) = ear.recv(&mut frame).unwrap() {
                all.push((*vrid, frame[..length].to_vec()));
            }
        }
        all
    };
    let vrids = |heard: &[(u8, Vec<u8>)]| heard.iter().map(|(vrid, _)| *vrid).collect::<Vec<_>>();
    // A veth hands over what it is given when the sender's system call returns, or in softirq context soon after.
    let after = |count: usize| {
        let mut all = Vec::new();
        wait_for("an advertisement", || {
            all.extend(heard());
            all.len() >= count
        });
        all
    };
    wait_for("the bridge", || run("bridge link show").matches("state forwarding").count() == 4);
    send(9, 18, &[]);
    assert_eq!(vrids(&after(3)), copies, "flooded without the table");
    apply(&mut kernel, &[Op::ReplaceNft { netns: Netns::Host, table: frames() }]);
    send(9, 18, &[]);
    let one = after(1);
    assert_eq!(vrids(&one), [9]);
    let mut expected = advertisement(9, 18, &[]);
    expected[..6].copy_from_slice(&mac(9).0);
    assert_eq!(one[0].1, expected, "as it was sent, but to its copy");
    send(77, 18, &[]);
    assert_eq!(vrids(&after(1)), [7], "a stranger's goes to who looks for strangers");
    // What is not a plain advertisement is flooded, as ever.
    send(9, 18, &[1; 4]);
    assert_eq!(vrids(&after(3)), copies);
    send(9, 5, &[]);
    assert_eq!(vrids(&after(3)), copies);
}

/// Ethernet, IPv4, VRRP version 2: what matters of the message is where it goes.
fn advertisement(vrid: u8, group: u8, options: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() as u8 / 4;
    let mut ip = vec![0x40 | words, 0xc0, 0, words * 4 + 8, 0, 0, 0, 0, 255, 112, 0, 0];
    ip.extend([169, 254, 192, 9, 224, 0, 0, group]);
    ip.extend(options);
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let ethernet = [0x01, 0x00, 0x5e, 0, 0, group, 2, 0, 0, 0, 0, 1, 8, 0];
    [&ethernet[..], &ip, &[0x21, vrid, 50, 0, 0, 1, 0, 0]].concat()
}
