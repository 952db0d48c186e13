//! Addresses that a machine has and answers address resolution for, but takes no packets for: a virtual router
//! whose Accept_Mode is false (RFC 9568 §6.1).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_dataplane::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftRule, NftStatement, NftTable};
use ipnet::IpNet;

use crate::error::{Cause, Error};
use crate::netns::NetnsFd;
use crate::nft;
use crate::socket::{Protocol, Socket};

/// Before the ordinary filter (0), so that whatever that accepts does not count.
const PRIORITY: i32 = -10;

const FAMILIES: [NftFamily; 2] = [NftFamily::Ip, NftFamily::Ip6];

/// Sets which addresses of a namespace take no packets: one nftables table per owner and family.
#[derive(Debug)]
pub struct AddressGuard(Socket);

impl AddressGuard {
    /// Opens one in the namespace.
    pub fn open(netns: &NetnsFd) -> Result<Self, Error> {
        let socket = Socket::open_in(netns, Protocol::Netfilter);
        socket.map(Self).map_err(|error| Error::new("open an nftables socket", error))
    }

    /// Drops what comes from other machines for these addresses, and for no others in this table. Neighbour
    /// discovery passes: without it, nobody would find the router.
    pub fn set(&mut self, table: &str, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        let failed = |cause: Cause| Error::new(format!("set the nftables table {table}"), cause);
        for family in FAMILIES {
            let is_of = |ip: &&IpAddr| ip.is_ipv4() == (family == NftFamily::Ip);
            let rules = rules(family, addresses.iter().filter(is_of));
            let batch = match rules {
                None => nft::delete_as(table, family),
                Some(rules) => {
                    nft::replace_as(table, &self::table(family, rules), &nft::Links::new()).map_err(failed)?
                }
            };
            batch.send(&mut self.0).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the table.
    pub fn remove(&mut self, table: &str) -> Result<(), Error> {
        self.set(table, &BTreeSet::new())
    }
}

fn rules<'a>(family: NftFamily, addresses: impl Iterator<Item = &'a IpAddr>) -> Option<Vec<NftRule>> {
    let rule = |statements: Vec<NftStatement>| NftRule { statements };
    let drop_one = |ip: &IpAddr| {
        let remote = NftStatement::InLink { name: "lo".to_owned(), negated: true };
        let own = NftStatement::Destination { net: IpNet::from(*ip), negated: false };
        rule(vec![remote, own, NftStatement::Counter, NftStatement::Drop])
    };
    let drops: Vec<NftRule> = addresses.map(drop_one).collect();
    if drops.is_empty() {
        return None;
    }
    let discovery = rule(vec![NftStatement::NeighbourDiscovery, NftStatement::Accept]);
    Some((family == NftFamily::Ip6).then_some(discovery).into_iter().chain(drops).collect())
}

fn table(family: NftFamily, rules: Vec<NftRule>) -> NftTable {
    let chain = NftChain {
        kind: NftChainKind::Filter,
        hook: NftHook::Input,
        priority: PRIORITY,
        drop_by_default: false,
        rules,
    };
    NftTable { family, maps: BTreeMap::new(), chains: BTreeMap::from([("input".to_owned(), chain)]) }
}
