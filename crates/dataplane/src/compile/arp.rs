//! Addresses that move between instances: allowed address pairs, a pair of the tenant's own VRRP routers.
//!
//! Nobody tells the server where such an address is now. It is learned as on any Ethernet: by asking, and by the
//! gratuitous ARP of whoever takes it. Two things stand in the way of that, and only on networks that have such
//! addresses they are changed:
//! - A bridge with neighbour suppression keeps gratuitous ARP from the tunnel: so it does not suppress.
//! - A distributed router has the same address and Ethernet address on every host. When it asks for an address
//!   that is on another host, the answer goes to the copy *there*, and the one that asked never hears of it. So
//!   an answer to a distributed router is broadcast: all of its copies hear it, and those that asked are served.
//!
//! Without suppression, an instance's question for its gateway would be answered by every host: such a question
//! does not leave the host.

use std::collections::BTreeMap;
use std::net::IpAddr;

use evergate_model::host::Network;

use super::Compiler;
use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftRule, NftStatement, NftTable};

/// NF_BR_PRI_NAT_DST_BRIDGED: before the bridge looks where the frame is to go.
const PRIORITY_PREROUTING: i32 = -300;
/// NF_BR_PRI_FILTER_BRIDGED.
const PRIORITY_FORWARD: i32 = -200;

/// Tells whether addresses of the network may move between instances.
pub(super) fn may_move(network: &Network) -> bool {
    network.ports.values().any(|port| !port.allowed_addresses.is_empty())
}

impl Compiler<'_> {
    pub(super) fn moving_addresses(&mut self) {
        let (mut answers, mut questions) = (Vec::new(), Vec::new());
        for leg in &self.anycast {
            let vxlan = self.segments.get(&leg.network).and_then(|segment| segment.vxlan.clone());
            let network = self.config.networks.get(&leg.network).filter(|network| may_move(network));
            let (Some(vxlan), Some(_)) = (vxlan, network) else { continue };
            answers.push(rule([NftStatement::ArpReply { to: leg.mac }, NftStatement::BroadcastFrame]));
            for address in &leg.addresses {
                let IpAddr::V4(target) = address.addr() else { continue };
                let out = NftStatement::OutLink { name: vxlan.clone(), negated: false };
                questions.push(rule([out, NftStatement::ArpRequest { target }, NftStatement::Drop]));
            }
        }
        if answers.is_empty() {
            return;
        }
        let chain = |hook, priority, rules| NftChain {
            kind: NftChainKind::Filter,
            hook,
            priority,
            drop_by_default: false,
            rules,
        };
        let chains = BTreeMap::from([
            ("answers_to_routers".to_owned(), chain(NftHook::Prerouting, PRIORITY_PREROUTING, answers)),
            ("questions_for_routers".to_owned(), chain(NftHook::Forward, PRIORITY_FORWARD, questions)),
        ]);
        let table = NftTable { family: NftFamily::Bridge, maps: BTreeMap::new(), chains };
        self.host_ns.nft.insert(table.family, table);
    }
}

fn rule<const N: usize>(statements: [NftStatement; N]) -> NftRule {
    NftRule { statements: statements.into() }
}
