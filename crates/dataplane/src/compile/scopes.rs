//! Address scopes: which of a router's networks may reach which others without translation.
//!
//! Packets carry a mark for the network that they came in by, and are dropped where they would leave for a
//! network of another scope. As with Neutron:
//! - Networks without a scope are of one scope of their own kind: they reach each other.
//! - Into the external network everything may go where it is translated on the way, and answers come back.
//! - A floating IP or a forwarded port is a way in, whatever the scopes.
//! - Towards an external network of the same scope nothing is translated.

use std::collections::BTreeMap;

use evergate_model::AddressScopeId;
use evergate_model::host::AddressScopes;

use super::namespace::{Leg, RouterNamespace};
use super::nat::{self, PRIORITY_MANGLE};
use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftRule, NftStatement, NftTable};

/// The upper half of the mark, as with Neutron; the lower one has other uses.
const MARK_MASK: u32 = 0xffff_0000;
const MARK_SHIFT: u32 = 16;

/// NF_IP_PRI_FILTER
const PRIORITY_FILTER: i32 = 0;

type Scope = Option<AddressScopeId>;

/// A device, the scope of its network, and whether that is the external one.
struct Edge<'a> {
    link: &'a str,
    scope: Scope,
    is_external: bool,
}

/// Adds the rules that the router's address scopes ask for, if they ask for any.
pub(super) fn keep_apart(parts: &mut RouterNamespace<'_>) {
    for family in [NftFamily::Ip, NftFamily::Ip6] {
        let edges = edges(parts, family);
        let mut marks: BTreeMap<Scope, u32> = edges.iter().map(|edge| (edge.scope, 0)).collect();
        (1_u32..).zip(marks.values_mut()).for_each(|(number, mark)| *mark = number << MARK_SHIFT);
        let external = edges.iter().find(|edge| edge.is_external);
        // Where all are of one scope, only an external network of that scope makes a difference.
        let untranslated = external.filter(|edge| edge.scope.is_some() && family == NftFamily::Ip);
        if marks.len() < 2 && untranslated.is_none() {
            continue;
        }
        let translates = family == NftFamily::Ip && parts.state.nft.contains_key(&family);
        let is_led_out =
            translates && external.is_some() && parts.gateway.as_ref().is_some_and(|(_, gateway)| gateway.enable_snat);
        let chains = [mark(&edges, &marks), drop_foreign(&edges, &marks, translates, is_led_out)];
        let spared = untranslated.map(|edge| (edge.link.to_owned(), marks[&edge.scope]));
        let nothing = NftTable { family, maps: BTreeMap::new(), chains: BTreeMap::new() };
        let table = parts.state.nft.entry(family).or_insert(nothing);
        table.chains.extend(chains);
        if let Some((link, value)) = spared {
            let to_outside = NftStatement::OutLink { name: link, negated: false };
            let of_scope = NftStatement::Mark { mask: MARK_MASK, value, negated: false };
            nat::spare(table, NftRule { statements: vec![to_outside, of_scope, NftStatement::Accept] });
        }
    }
}

fn edges<'a>(parts: &'a RouterNamespace<'_>, family: NftFamily) -> Vec<Edge<'a>> {
    let router = parts.router;
    let scopes = |leg: &Leg| -> AddressScopes {
        let central = router.distributed.as_ref().and_then(|distributed| distributed.snat_ports.get(&leg.port));
        router.interfaces.get(&leg.port).or(central).map(|interface| interface.address_scopes).unwrap_or_default()
    };
    let inner = parts.interfaces.iter().map(|leg| (leg, scopes(leg), false));
    let outer = parts.gateway.iter().map(|(leg, gateway)| (leg, gateway.address_scopes, true));
    let is_spoken = |leg: &Leg| leg.addresses.iter().any(|net| net.addr().is_ipv4() == (family == NftFamily::Ip));
    inner
        .chain(outer)
        .filter(|(leg, _, _)| is_spoken(leg))
        .map(|(leg, scopes, is_external)| Edge {
            link: &leg.link,
            scope: if family == NftFamily::Ip { scopes.v4 } else { scopes.v6 },
            is_external,
        })
        .collect()
}

fn mark(edges: &[Edge<'_>], marks: &BTreeMap<Scope, u32>) -> (String, NftChain) {
    let rule = |edge: &Edge<'_>| NftRule {
        statements: vec![
            NftStatement::InLink { name: edge.link.to_owned(), negated: false },
            NftStatement::SetMark { mask: MARK_MASK, value: marks[&edge.scope] },
        ],
    };
    let rules = edges.iter().map(rule).collect();
    ("mark_scope".to_owned(), chain(NftHook::Prerouting, PRIORITY_MANGLE, rules))
}

fn drop_foreign(
    edges: &[Edge<'_>],
    marks: &BTreeMap<Scope, u32>,
    translates: bool,
    is_led_out: bool,
) -> (String, NftChain) {
    let mut rules = Vec::new();
    if translates {
        rules.push(NftRule { statements: vec![NftStatement::CtReply, NftStatement::Accept] });
        rules.push(NftRule { statements: vec![NftStatement::CtDnat { negated: false }, NftStatement::Accept] });
    }
    for edge in edges.iter().filter(|edge| !(edge.is_external && is_led_out)) {
        rules.push(NftRule {
            statements: vec![
                NftStatement::OutLink { name: edge.link.to_owned(), negated: false },
                NftStatement::Mark { mask: MARK_MASK, value: marks[&edge.scope], negated: true },
                NftStatement::Counter,
                NftStatement::Drop,
            ],
        });
    }
    ("keep_scopes_apart".to_owned(), chain(NftHook::Forward, PRIORITY_FILTER, rules))
}

fn chain(hook: NftHook, priority: i32, rules: Vec<NftRule>) -> NftChain {
    NftChain { kind: NftChainKind::Filter, hook, priority, drop_by_default: false, rules }
}
