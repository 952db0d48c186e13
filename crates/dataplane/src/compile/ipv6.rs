//! IPv6 on a router's devices.
//!
//! A device with IPv6 addresses also has the link-local one that follows from its Ethernet address. On an HA
//! router all copies share that address with the Ethernet address, so to instances it is one router, and it
//! moves with the role as every other address does.
//!
//! *A copy that stands by must say nothing*: any frame from the shared Ethernet address moves the entry of
//! every switch that hears it. So the kernel makes no address by itself ([`settings`]), which leaves it
//! without anything to solicit, to detect duplicates of or to answer for; and what it still reports to
//! multicast routers (a router's device listens to all-routers; an address that goes, goes with its
//! solicited-node group) has the unspecified address as its source, and is dropped ([`keep_quiet`]). The active
//! copy has a link-local address, so its reports go out.
//!
//! IPv6 is not translated. Where no address scopes are at stake nothing tracks connections either, so a
//! failover has nothing to carry over.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use evergate_model::Mac;
use evergate_model::host::Router;
use ipnet::{IpNet, Ipv6Net};

use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftRule, NftStatement, NftTable};
use crate::state::NetnsState;

/// RFC 4291 §2.5.6: the prefix length of link-local addresses.
const LINK_LOCAL_LEN: u8 = 64;

/// The link-local address of a device with this Ethernet address (RFC 4291, appendix A).
pub(super) fn link_local(mac: Mac) -> Ipv6Net {
    let [a, b, c, d, e, f] = mac.0;
    let octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Net::new_assert(Ipv6Addr::from(octets), LINK_LOCAL_LEN)
}

/// Whether the router has an IPv6 address anywhere.
pub(super) fn is_spoken(router: &Router) -> bool {
    let gateway = router.gateway.iter().flat_map(|gateway| &gateway.addresses);
    let interfaces = router.interfaces.values().flat_map(|interface| &interface.addresses);
    gateway.chain(interfaces).any(|net| net.addr().is_ipv6())
}

/// Turns IPv6 on for a device, in this order: before that, the kernel is told to make no addresses.
pub(super) fn settings(link: &str) -> [(String, String); 2] {
    // IN6_ADDR_GEN_MODE_NONE
    let quiet = (format!("ipv6/conf/{link}/addr_gen_mode"), "1".to_owned());
    [quiet, (format!("ipv6/conf/{link}/disable_ipv6"), "0".to_owned())]
}

/// Adds the rule of a copy that may have to stand by: nothing is sent from the unspecified address.
pub(super) fn keep_quiet(state: &mut NetnsState) {
    let unspecified = IpNet::V6(Ipv6Net::from(Ipv6Addr::UNSPECIFIED));
    let from_nobody = NftStatement::Source { net: unspecified, negated: false };
    let statements = vec![from_nobody, NftStatement::Counter, NftStatement::Drop];
    let chain = NftChain {
        kind: NftChainKind::Filter,
        hook: NftHook::Output,
        // NF_IP6_PRI_FILTER
        priority: 0,
        drop_by_default: false,
        rules: vec![NftRule { statements }],
    };
    let nothing = NftTable { family: NftFamily::Ip6, maps: BTreeMap::new(), chains: BTreeMap::new() };
    let table = state.nft.entry(NftFamily::Ip6).or_insert(nothing);
    table.chains.insert("no_speech_without_address".to_owned(), chain);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_local_address_is_that_of_the_kernel() {
        // `ip link set v0 address fa:16:3e:00:00:01; ip -6 address show v0`
        let expected: Ipv6Net = "fe80::f816:3eff:fe00:1/64".parse().unwrap();
        assert_eq!(link_local(Mac([0xfa, 0x16, 0x3e, 0, 0, 1])), expected);
    }
}
