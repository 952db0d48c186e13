//! A router's address translation: source NAT for the many, floating IPs one to one.
//!
//! The same table stands on every copy of an HA router, so that a takeover need not touch it.
//!
//! Floating IPs are two maps, so that their number does not lengthen the path of a packet. What the
//! chains achieve is what Neutron's do:
//! - A packet to a floating IP goes to its fixed address, wherever it came from, the router included.
//! - A connection that leaves by the gateway takes its floating IP as source, or else the gateway address.
//! - *Hairpin*: an instance that calls another by its floating IP is seen with its own floating IP, or
//!   else the gateway address, so that the answer comes back through the router. What came in from outside
//!   keeps its source.
//! - A forwarded port leads to its instance's port, from outside and inside alike; hairpins are as above.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use evergate_model::PortForwardingId;
use evergate_model::host::{FloatingIp, PortForwarding};
use ipnet::Ipv4Net;

use super::Problem;
use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};

/// Netfilter's places: NF_IP_PRI_MANGLE, NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC.
pub(super) const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_DNAT: i32 = -100;
const PRIORITY_SNAT: i32 = 100;

/// Ports of one forwarding that get other numbers: each is an element of a map, which is sent to the kernel as a
/// whole with every change of the router.
const MOST_RENUMBERED: usize = 4096;

/// An address and a port.
type Service = (Ipv4Addr, u16);

const FLOATING_TO_FIXED: &str = "floating_to_fixed";
const FIXED_TO_FLOATING: &str = "fixed_to_floating";

/// Builds the table of a router whose gateway is `external`; `snat` is the address for all who have no
/// floating IP, unless source NAT is off.
pub(super) fn table<'a>(
    external: &str,
    snat: Option<Ipv4Addr>,
    floating_ips: impl Iterator<Item = &'a FloatingIp>,
) -> NftTable {
    let (mut floating_to_fixed, mut fixed_to_floating) = (BTreeMap::new(), BTreeMap::new());
    for fip in floating_ips {
        floating_to_fixed.insert(fip.floating, fip.fixed);
        // A fixed address with several floating IPs is reached by all, and calls out by the first.
        fixed_to_floating.entry(fip.fixed).or_insert(fip.floating);
    }
    let maps = BTreeMap::from([
        (FLOATING_TO_FIXED.to_owned(), NftMap::Addresses(floating_to_fixed)),
        (FIXED_TO_FLOATING.to_owned(), NftMap::Addresses(fixed_to_floating)),
    ]);
    let to_fixed = || vec![rule([NftStatement::DnatByMap { map: FLOATING_TO_FIXED.to_owned() }])];
    let chain = |kind, hook, priority, rules| NftChain { kind, hook, priority, drop_by_default: false, rules };
    let chains = BTreeMap::from([
        ("nat_prerouting".to_owned(), chain(NftChainKind::Nat, NftHook::Prerouting, PRIORITY_DNAT, to_fixed())),
        ("nat_output".to_owned(), chain(NftChainKind::Nat, NftHook::Output, PRIORITY_DNAT, to_fixed())),
        (
            "nat_postrouting".to_owned(),
            chain(NftChainKind::Nat, NftHook::Postrouting, PRIORITY_SNAT, source_nat(external, snat)),
        ),
    ]);
    NftTable { family: NftFamily::Ip, maps, chains }
}

/// The rules that choose a connection's source address, in order.
fn source_nat(external: &str, snat: Option<Ipv4Addr>) -> Vec<NftRule> {
    let mut rules = vec![
        // Between the router's own networks nothing is translated, hairpins excepted.
        rule([
            NftStatement::OutLink { name: external.to_owned(), negated: true },
            NftStatement::CtDnat { negated: true },
            NftStatement::Accept,
        ]),
        rule([NftStatement::SnatByMap { map: FIXED_TO_FLOATING.to_owned() }]),
    ];
    if let Some(to) = snat {
        // Ports are picked at random, as Neutron does (`use_random_fully`): two connections that start at
        // the same time must not race for one port.
        let snat = NftStatement::Snat { to, fully_random: true };
        rules.push(rule([
            NftStatement::OutLink { name: external.to_owned(), negated: false },
            NftStatement::Counter,
            snat.clone(),
        ]));
        rules.push(rule([
            // Neutron marks what comes in by the gateway (`external_ingress_mark`): a rule for each of a connection's
            // packets, where this one is asked about its first alone.
            NftStatement::InLink { name: external.to_owned(), negated: true },
            NftStatement::CtDnat { negated: false },
            NftStatement::Counter,
            snat,
        ]));
    }
    rules
}

/// Adds the forwarding of ports; says which are left out, and why. Those of one protocol share a map, so that
/// their number does not lengthen the path of a packet, but for ranges that keep their numbers: a rule each.
pub(super) fn forward_ports(
    table: &mut NftTable,
    forwardings: &BTreeMap<PortForwardingId, PortForwarding>,
) -> Vec<Problem> {
    let mut services: BTreeMap<u8, BTreeMap<Service, Service>> = BTreeMap::new();
    let (mut ranges, mut problems) = (Vec::new(), Vec::new());
    for (id, forwarding) in forwardings {
        let PortForwarding { floating, protocol, external_ports: outside, fixed, internal_ports: inside, .. } =
            *forwarding;
        if outside == inside && outside.0 != outside.1 {
            ranges.push(rule([
                NftStatement::Destination { net: Ipv4Net::from(floating).into(), negated: false },
                NftStatement::Protocol { number: protocol },
                NftStatement::DestinationPorts { first: outside.0, last: outside.1 },
                NftStatement::Dnat { to: fixed },
            ]));
            continue;
        }
        let count = usize::from(outside.1.saturating_sub(outside.0)) + 1;
        if count > MOST_RENUMBERED {
            let text = format!(
                "is left out: it gives {count} ports other numbers, of at most {MOST_RENUMBERED}; use several smaller \
                 ranges, or the same numbers outside and inside"
            );
            problems.push(Problem { object: format!("port forwarding {id}"), text });
            continue;
        }
        // Several ports outside may lead to a single one.
        let step = u16::from(inside.0 != inside.1);
        let pairs = (outside.0..=outside.1).zip(0..).map(|(port, number): (u16, u16)| {
            ((floating, port), (fixed, inside.0.saturating_add(number.saturating_mul(step)).min(inside.1)))
        });
        services.entry(protocol).or_default().extend(pairs);
    }
    let mut rules = Vec::new();
    for (protocol, elements) in services {
        let map = forwarded(protocol);
        table.maps.insert(map.clone(), NftMap::Services(elements));
        rules.push(rule([NftStatement::Protocol { number: protocol }, NftStatement::DnatByServiceMap { map }]));
    }
    rules.extend(ranges);
    for chain in ["nat_prerouting", "nat_output"] {
        if let Some(chain) = table.chains.get_mut(chain) {
            chain.rules.extend(rules.iter().cloned());
        }
    }
    problems
}

/// Adds a rule in front of source NAT for the many: what it accepts keeps its source address.
pub(super) fn spare(table: &mut NftTable, rule: NftRule) {
    let Some(chain) = table.chains.get_mut("nat_postrouting") else { return };
    let is_for_all = |rule: &NftRule| rule.statements.iter().any(|s| matches!(s, NftStatement::Snat { .. }));
    let at = chain.rules.iter().position(is_for_all).unwrap_or(chain.rules.len());
    chain.rules.insert(at, rule);
}

/// Name of the map of a protocol's forwarded ports.
fn forwarded(protocol: u8) -> String {
    match protocol {
        6 => "forwarded_tcp".to_owned(),
        17 => "forwarded_udp".to_owned(),
        other => format!("forwarded_{other}"),
    }
}

fn rule<const N: usize>(statements: [NftStatement; N]) -> NftRule {
    NftRule { statements: statements.into() }
}
