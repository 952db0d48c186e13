//! Our table as the kernel holds it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use evergate_dataplane::nft::{
    NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable, TABLE_NAME,
};
use evergate_model::Mac;
use libc::{NLM_F_DUMP, NLM_F_REQUEST};

use super::{ACCEPT, FOREIGN_TAG, message_kind, protocol, with_body};
use crate::error::Cause;
use crate::socket::Socket;
use crate::uapi::*;
use crate::wire::{Attrs, Frames, Message, text, u32_at, u32_be_at};

/// Length of `struct nfgenmsg`.
const BODY: usize = 4;

/// Name of the link with an index.
type LinkName<'a> = &'a dyn Fn(u32) -> Option<String>;

/// Reads our table of this family, if there is one.
pub(crate) fn observe(
    socket: &mut Socket,
    family: NftFamily,
    link_name: LinkName<'_>,
) -> Result<Option<NftTable>, Cause> {
    match observe_table(socket, family, link_name) {
        // It went, or a part of it did, while we read.
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENOENT => Ok(None),
        result => result,
    }
}

fn observe_table(socket: &mut Socket, family: NftFamily, link_name: LinkName<'_>) -> Result<Option<NftTable>, Cause> {
    socket.get(request(libc::NFT_MSG_GETTABLE, 0, family).attr_str(NFTA_TABLE_NAME, TABLE_NAME))?;
    let mut table = NftTable { family, maps: BTreeMap::new(), chains: BTreeMap::new() };
    let chains = socket.dump(request(libc::NFT_MSG_GETCHAIN, NLM_F_DUMP, family))?;
    for frame in Frames(&chains) {
        table.chains.extend(read_chain(frame.payload));
    }
    let rules = request(libc::NFT_MSG_GETRULE, NLM_F_DUMP, family).attr_str(NFTA_RULE_TABLE, TABLE_NAME);
    let rules = socket.dump(rules)?;
    for frame in Frames(&rules) {
        if let Some((chain, rule)) = read_rule(frame.payload, link_name)
            && let Some(chain) = table.chains.get_mut(&chain)
        {
            chain.rules.push(rule);
        }
    }
    let sets = socket.dump(request(libc::NFT_MSG_GETSET, NLM_F_DUMP, family).attr_str(NFTA_SET_TABLE, TABLE_NAME))?;
    for frame in Frames(&sets) {
        let Some(name) = Attrs::after(frame.payload, BODY).get(NFTA_SET_NAME).map(text) else { continue };
        let map = observe_map(socket, family, &name, Attrs::after(frame.payload, BODY))?;
        table.maps.insert(name, map);
    }
    Ok(Some(table))
}

fn request(message: libc::c_int, flags: i32, family: NftFamily) -> Message {
    with_body(Message::with_flags(message_kind(message), NLM_F_REQUEST | flags), family)
}

/// Reads a map, or a set that somebody else put into our table: that shows as an empty map.
fn observe_map(socket: &mut Socket, family: NftFamily, name: &str, set: Attrs<'_>) -> Result<NftMap, Cause> {
    let elements = request(libc::NFT_MSG_GETSETELEM, NLM_F_DUMP, family)
        .attr_str(NFTA_SET_ELEM_LIST_TABLE, TABLE_NAME)
        .attr_str(NFTA_SET_ELEM_LIST_SET, name);
    let elements = socket.dump(elements)?;
    let lists = || Frames(&elements).map(|frame| Attrs::after(frame.payload, BODY).inside(NFTA_SET_ELEM_LIST_ELEMENTS));
    let all = || lists().flat_map(|list| list.map(|(_, element)| Attrs(element)));
    Ok(match set.get(NFTA_SET_KEY_TYPE).and_then(|kind| u32_be_at(kind, 0)) {
        Some(NFT_TYPE_SERVICE) => NftMap::Services(all().filter_map(read_service).collect()),
        Some(NFT_TYPE_INTEGER) => NftMap::Stations(all().filter_map(read_station).collect()),
        Some(_) | None => NftMap::Addresses(all().filter_map(read_element).collect()),
    })
}

fn read_station(element: Attrs<'_>) -> Option<(u8, Mac)> {
    let vrid = element.inside(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE)?.first()?;
    let mac = element.inside(NFTA_SET_ELEM_DATA).get(NFTA_DATA_VALUE)?.try_into().ok()?;
    Some((*vrid, Mac(mac)))
}

fn read_element(element: Attrs<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let address = |attribute| {
        let octets: [u8; 4] = element.inside(attribute).get(NFTA_DATA_VALUE)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Some((address(NFTA_SET_ELEM_KEY)?, address(NFTA_SET_ELEM_DATA)?))
}

type Service = (Ipv4Addr, u16);

fn read_service(element: Attrs<'_>) -> Option<(Service, Service)> {
    let service = |attribute| {
        // Parts of a concatenation begin at multiples of four bytes.
        let [a, b, c, d, high, low, _, _]: [u8; 8] = element.inside(attribute).get(NFTA_DATA_VALUE)?.try_into().ok()?;
        Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
    };
    Some((service(NFTA_SET_ELEM_KEY)?, service(NFTA_SET_ELEM_DATA)?))
}

/// Reads a chain of our table. One without a hook is none of ours: it is shown as a forward chain that
/// holds a foreign rule, which is in no desired state.
fn read_chain(payload: &[u8]) -> Option<(String, NftChain)> {
    let attrs = Attrs::after(payload, BODY);
    if attrs.get(NFTA_CHAIN_TABLE).map(text).as_deref() != Some(TABLE_NAME) {
        return None;
    }
    let name = attrs.get(NFTA_CHAIN_NAME).map(text)?;
    let number = |attrs: Attrs<'_>, attribute| attrs.get(attribute).and_then(|value| u32_be_at(value, 0));
    let hook = attrs.inside(NFTA_CHAIN_HOOK);
    let of_device = payload.first() == Some(&protocol(NftFamily::Netdev));
    let known = match number(hook, NFTA_HOOK_HOOKNUM).map(|hook| hook as i32) {
        Some(libc::NF_NETDEV_INGRESS) if of_device => {
            let devices = hook.inside(NFTA_HOOK_DEVS).map(|(_, device)| text(device));
            Some(NftHook::Ingress { devices: hook.get(NFTA_HOOK_DEV).map(text).into_iter().chain(devices).collect() })
        }
        _ if of_device => None,
        Some(libc::NF_INET_PRE_ROUTING) => Some(NftHook::Prerouting),
        Some(libc::NF_INET_LOCAL_IN) => Some(NftHook::Input),
        Some(libc::NF_INET_FORWARD) => Some(NftHook::Forward),
        Some(libc::NF_INET_LOCAL_OUT) => Some(NftHook::Output),
        Some(libc::NF_INET_POST_ROUTING) => Some(NftHook::Postrouting),
        Some(_) | None => None,
    };
    let kind = match attrs.get(NFTA_CHAIN_TYPE).map(text).as_deref() {
        Some("nat") => Some(NftChainKind::Nat),
        Some("filter") => Some(NftChainKind::Filter),
        Some(_) | None => None,
    };
    let is_ours = known.is_some() && kind.is_some();
    let chain = NftChain {
        kind: kind.unwrap_or(NftChainKind::Filter),
        hook: known.unwrap_or(NftHook::Forward),
        priority: number(hook, NFTA_HOOK_PRIORITY).unwrap_or(0) as i32,
        drop_by_default: number(attrs, NFTA_CHAIN_POLICY).is_some_and(|policy| policy != ACCEPT),
        rules: if is_ours { Vec::new() } else { vec![observed(FOREIGN_TAG.to_owned())] },
    };
    Some((name, chain))
}

fn read_rule(payload: &[u8], link_name: LinkName<'_>) -> Option<(String, NftRule)> {
    let attrs = Attrs::after(payload, BODY);
    let chain = attrs.get(NFTA_RULE_CHAIN).map(text)?;
    let tag = attrs.get(NFTA_RULE_USERDATA).and_then(comment).unwrap_or_else(|| FOREIGN_TAG.to_owned());
    let mut rule = observed(tag);
    let forwards = forwards(attrs.inside(NFTA_RULE_EXPRESSIONS)).into_iter().filter_map(link_name);
    rule.statements.extend(forwards.map(|link| NftStatement::Forward { link }));
    Some((chain, rule))
}

/// Indexes of the links that a rule forwards to: each is loaded just before.
fn forwards(expressions: Attrs<'_>) -> Vec<u32> {
    let mut found = Vec::new();
    let mut loaded = None;
    for (_, expression) in expressions {
        let expression = Attrs(expression);
        match expression.get(NFTA_EXPR_NAME).map(text).as_deref() {
            Some("immediate") => {
                let value = expression.inside(NFTA_EXPR_DATA).inside(NFTA_IMMEDIATE_DATA).get(NFTA_DATA_VALUE);
                loaded = value.and_then(|value| u32_at(value, 0));
            }
            Some("fwd") => found.extend(loaded),
            Some(_) | None => {}
        }
    }
    found
}

fn observed(tag: String) -> NftRule {
    NftRule { statements: vec![NftStatement::Observed { tag }] }
}

/// The comment among a rule's user data: entries of type, length, value.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == NFTNL_UDATA_RULE_COMMENT {
            return Some(text(value));
        }
        data = &rest[value.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter_map(|c| char::from(c).to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    /// `nft add chain ip evergate prerouting '{ type nat hook prerouting priority -100; policy accept; }'`
    const CHAIN: &str = "020000050d0001006576657267617465000000000f000300707265726f7574696e6700000c0002000000000000000002 \
     14000400080001000000000008000200ffffff9c0800050000000001080007006e61740008000a000000000108000600 \
     00000001";

    /// `nft add rule ip evergate prerouting dnat to ip daddr map @floating comment '"floating to fixed"'`
    const RULE: &str = "020000050d0001006576657267617465000000000f000200707265726f7574696e6700000c0003000000000000000003 \
     ac000400340001000c0001007061796c6f61640024000200080001000000000108000200000000010800030000000010 \
     08000400000000043c0001000b0001006c6f6f6b757000002c0002000d000100666c6f6174696e670000000008000200 \
     000000010800030000000001080005000000000038000100080001006e6174002c000200080001000000000108000200 \
     00000002080003000000000108000400000000010800070000000001180007000012666c6f6174696e6720746f206669 \
     78656400";

    /// `nft add element ip evergate floating '{ 192.0.2.5 : 10.0.0.5 }'`
    const ELEMENTS: &str = "020000050d0001006576657267617465000000000d000200666c6f6174696e6700000000200003001c0001000c000100 \
     08000100c00002050c000200080001000a000005";

    #[test]
    fn what_nft_made_is_read() {
        let (name, chain) = read_chain(&bytes(CHAIN)).unwrap();
        let expected = NftChain {
            kind: NftChainKind::Nat,
            hook: NftHook::Prerouting,
            priority: -100,
            drop_by_default: false,
            rules: vec![],
        };
        assert_eq!((name.as_str(), chain), ("prerouting", expected));
        let expected = ("prerouting".to_owned(), observed("floating to fixed".to_owned()));
        assert_eq!(read_rule(&bytes(RULE), &|_| None), Some(expected));
        let payload = bytes(ELEMENTS);
        let list = Attrs::after(&payload, BODY).inside(NFTA_SET_ELEM_LIST_ELEMENTS);
        let elements: Vec<_> = list.filter_map(|(_, element)| read_element(Attrs(element))).collect();
        assert_eq!(elements, [(Ipv4Addr::new(192, 0, 2, 5), Ipv4Addr::new(10, 0, 0, 5))]);
    }

    /// `nft add chain netdev evergate to_vx '{ type filter hook ingress devices = { tap1, tap2 } priority -500; }'`
    const DEVICES: &str = "050000020d0001006576657267617465000000000a000300746f5f76780000000c000200000000000000000130000400 \
     080001000000000008000200fffffe0c1c00040009000100746170320000000009000100746170310000000008000500 \
     000000010b00070066696c746572000008000a00000000010800060000000001";

    /// `nft add rule netdev evergate to_vx fwd to "vx" comment "out"`, where `vx` was link 6 of a little-endian machine
    const FORWARD: &str = "050000020d0001006576657267617465000000000a000200746f5f76780000000c000300000000000000000248000400 \
     2c0001000e000100696d6d6564696174650000001800020008000100000000010c000200080001000600000018000100 \
     08000100667764000c00020008000100000000010a00070000046f7574000000";

    #[test]
    fn what_is_forwarded_is_read_with_the_name_that_its_link_has_now() {
        let devices = ["tap1", "tap2"].map(str::to_owned).into();
        let (name, chain) = read_chain(&bytes(DEVICES)).unwrap();
        assert_eq!((name.as_str(), chain.hook), ("to_vx", NftHook::Ingress { devices }));
        let read = |name: &dyn Fn(u32) -> Option<String>| read_rule(&bytes(FORWARD), name).unwrap().1.statements;
        let tag = NftStatement::Observed { tag: "out".to_owned() };
        let forward = NftStatement::Forward { link: "vx".to_owned() };
        assert_eq!(read(&|index| (index == 6_u32.to_le()).then(|| "vx".to_owned())), [tag.clone(), forward]);
        assert_eq!(read(&|_| None), [tag]);
    }

    #[test]
    fn what_is_cut_short_is_no_panic() {
        for hex in [CHAIN, RULE, ELEMENTS, DEVICES, FORWARD] {
            let whole = bytes(hex);
            for length in 0..whole.len() {
                let _ = (read_chain(&whole[..length]), read_rule(&whole[..length], &|_| None));
            }
        }
        assert_eq!(comment(&[0, 9, b'x', 0]), None);
        assert_eq!(comment(&[7, 1, b'x', 0, 2, b'y', 0]).as_deref(), Some("y"));
    }
}
