//! A table as the messages of one transaction.

use std::net::Ipv4Addr;

use evergate_dataplane::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftTable, TABLE_NAME};
use libc::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use super::rule::{Known, expressions};
use super::{ACCEPT, DROP, Links, body, message_kind, with_body};
use crate::error::{Cause, Refusal};
use crate::socket::Socket;
use crate::uapi::*;
use crate::wire::{ATTRIBUTE_MAX, Message};

/// Bytes that an element of a map takes at most: itself, its key and its value are nested attributes.
const ELEMENT_BYTES: usize = 36;

/// An attribute holds 64 KiB, so a large map takes several messages (of the one transaction).
const ELEMENTS_PER_MESSAGE: usize = ATTRIBUTE_MAX / ELEMENT_BYTES;

/// The kernel keeps at most 256 bytes of user data: type, length, text, terminating zero.
const TAG_MAX: usize = 253;

/// What nft keeps beside a map of `typeof @nh,168,8 : ether daddr`, so that it can list what it was made from (captured
/// from nft 1.0.6, on a little-endian machine). To the kernel it means nothing.
const STATIONS_TYPE: [u8; 80] = [
    0x00, 0x04, 0x02, 0x00, 0x00, 0x00, 0x01, 0x04, 0x02, 0x00, 0x00, 0x00, 0x03, 0x26, 0x00, 0x04, 0x07, 0x00, 0x00,
    0x00, 0x01, 0x1e, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x01, 0x04, 0x00, 0x00, 0x00, 0x00, 0x02, 0x04, 0x02, 0x00,
    0x00, 0x00, 0x03, 0x04, 0xa8, 0x00, 0x00, 0x00, 0x04, 0x04, 0x08, 0x00, 0x00, 0x00, 0x04, 0x14, 0x00, 0x04, 0x07,
    0x00, 0x00, 0x00, 0x01, 0x0c, 0x00, 0x04, 0x11, 0x00, 0x00, 0x00, 0x01, 0x04, 0x01, 0x00, 0x00, 0x00, 0x06, 0x04,
    0x00, 0x00, 0x00, 0x00,
];

/// The messages of a transaction, each with words for what it does.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    messages: Vec<Vec<u8>>,
    labels: Vec<String>,
}

impl Batch {
    fn new() -> Self {
        let mut batch = Self::default();
        batch.push_frame(libc::NFNL_MSG_BATCH_BEGIN, "transaction");
        batch
    }

    fn push(&mut self, message: Message, label: impl Into<String>) {
        self.messages.push(message.finish());
        self.labels.push(label.into());
    }

    fn push_frame(&mut self, kind: libc::c_int, label: &str) {
        let message = Message::with_flags(kind as u16, NLM_F_REQUEST)
            .body(&body(libc::AF_UNSPEC as u8, libc::NFNL_SUBSYS_NFTABLES as u16));
        self.push(message, label);
    }

    fn end(mut self) -> Self {
        self.push_frame(libc::NFNL_MSG_BATCH_END, "end of the transaction");
        self
    }

    /// Sends it: all of it happens, or nothing.
    pub(crate) fn send(mut self, socket: &mut Socket) -> Result<(), Cause> {
        socket.transaction(&mut self.messages).map_err(|(index, cause)| match cause {
            Cause::Kernel(Refusal { errno, text }) => {
                Refusal { errno, text: format!("{}: {text}", self.labels[index]) }.into()
            }
            Cause::Io(_) | Cause::NoLink(_) | Cause::NoNetns(_) | Cause::InTheWay(_) | Cause::Invalid(_) => cause,
        })
    }
}

/// Replaces our table, whatever it is now. It forwards to links by their indexes.
pub(crate) fn replace(table: &NftTable, links: &Links) -> Result<Batch, Cause> {
    replace_as(TABLE_NAME, table, links)
}

/// Replaces the table of this name, whatever it is now.
///
/// The kernel has no "replace": adding it first makes deleting it safe where it does not exist.
pub(crate) fn replace_as(name: &str, table: &NftTable, links: &Links) -> Result<Batch, Cause> {
    let place = Place { table: name, family: table.family };
    let mut batch = Batch::new();
    batch.push(place.table_message(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE), "table");
    batch.push(place.table_message(libc::NFT_MSG_DELTABLE, 0), "former table");
    batch.push(place.table_message(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE), "table");
    for (id, (name, map)) in (1..).zip(&table.maps) {
        place.push_map(&mut batch, id, name, map);
    }
    for (name, chain) in &table.chains {
        batch.push(place.chain_message(name, chain), format!("chain {name}"));
    }
    let known = Known { maps: (1..).zip(table.maps.keys()).map(|(id, name)| (name.as_str(), id)).collect(), links };
    for (name, chain) in &table.chains {
        for (number, rule) in (1..).zip(&chain.rules) {
            let label = format!("rule {number} of chain {name}");
            let message =
                place.rule_message(name, rule, &known).map_err(|cause| Cause::Invalid(format!("{label}: {cause}")))?;
            batch.push(message, label);
        }
    }
    Ok(batch.end())
}

/// Deletes our table, whether there is one or not.
pub(crate) fn delete(family: NftFamily) -> Batch {
    delete_as(TABLE_NAME, family)
}

/// Deletes the table of this name, whether there is one or not.
pub(crate) fn delete_as(name: &str, family: NftFamily) -> Batch {
    let place = Place { table: name, family };
    let mut batch = Batch::new();
    batch.push(place.table_message(libc::NFT_MSG_NEWTABLE, NLM_F_CREATE), "table");
    batch.push(place.table_message(libc::NFT_MSG_DELTABLE, 0), "table");
    batch.end()
}

/// What every message names: the table that it is about.
#[derive(Clone, Copy)]
struct Place<'a> {
    table: &'a str,
    family: NftFamily,
}

impl Place<'_> {
    fn request(self, message: libc::c_int, flags: i32) -> Message {
        with_body(Message::request(message_kind(message), flags), self.family)
    }

    fn table_message(self, message: libc::c_int, flags: i32) -> Message {
        self.request(message, flags).attr_str(NFTA_TABLE_NAME, self.table)
    }

    fn push_map(self, batch: &mut Batch, id: u32, name: &str, map: &NftMap) {
        let (key, data) = match map {
            NftMap::Addresses(_) => ((NFT_TYPE_IPV4_ADDR, 4), (NFT_TYPE_IPV4_ADDR, 4)),
            NftMap::Services(_) => ((NFT_TYPE_SERVICE, 8), (NFT_TYPE_SERVICE, 8)),
            NftMap::Stations(_) => ((NFT_TYPE_INTEGER, 1), (NFT_TYPE_ETHER_ADDR, 6)),
        };
        let message = self
            .request(libc::NFT_MSG_NEWSET, NLM_F_CREATE)
            .attr_str(NFTA_SET_TABLE, self.table)
            .attr_str(NFTA_SET_NAME, name)
            .attr_u32_be(NFTA_SET_FLAGS, libc::NFT_SET_MAP as u32)
            .attr_u32_be(NFTA_SET_KEY_TYPE, key.0)
            .attr_u32_be(NFTA_SET_KEY_LEN, key.1)
            .attr_u32_be(NFTA_SET_DATA_TYPE, data.0)
            .attr_u32_be(NFTA_SET_DATA_LEN, data.1)
            .attr_u32_be(NFTA_SET_ID, id)
            .when(matches!(map, NftMap::Stations(_)).then_some(&STATIONS_TYPE), |message, data| {
                message.attr(NFTA_SET_USERDATA, data)
            });
        batch.push(message, format!("map {name}"));
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = match map {
            NftMap::Addresses(elements) => {
                elements.iter().map(|(from, to)| (from.octets().to_vec(), to.octets().to_vec())).collect()
            }
            NftMap::Services(elements) => elements.iter().map(|(from, to)| (service(*from), service(*to))).collect(),
            NftMap::Stations(elements) => elements.iter().map(|(vrid, mac)| (vec![*vrid], mac.0.to_vec())).collect(),
        };
        let mut elements = pairs.iter().peekable();
        while elements.peek().is_some() {
            let message = self
                .request(libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE)
                .attr_str(NFTA_SET_ELEM_LIST_TABLE, self.table)
                .attr_str(NFTA_SET_ELEM_LIST_SET, name)
                .attr_u32_be(NFTA_SET_ELEM_LIST_SET_ID, id)
                .nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
                    elements.by_ref().take(ELEMENTS_PER_MESSAGE).fold(list, |list, (key, value)| {
                        list.nest(NFTA_LIST_ELEM, |element| {
                            element
                                .nest(NFTA_SET_ELEM_KEY, |data| data.attr(NFTA_DATA_VALUE, key))
                                .nest(NFTA_SET_ELEM_DATA, |data| data.attr(NFTA_DATA_VALUE, value))
                        })
                    })
                });
            batch.push(message, format!("elements of map {name}"));
        }
    }

    fn chain_message(self, name: &str, chain: &NftChain) -> Message {
        let kind = match chain.kind {
            NftChainKind::Filter => "filter",
            NftChainKind::Nat => "nat",
        };
        let hook = match &chain.hook {
            NftHook::Ingress { .. } => libc::NF_NETDEV_INGRESS,
            NftHook::Prerouting => libc::NF_INET_PRE_ROUTING,
            NftHook::Input => libc::NF_INET_LOCAL_IN,
            NftHook::Forward => libc::NF_INET_FORWARD,
            NftHook::Output => libc::NF_INET_LOCAL_OUT,
            NftHook::Postrouting => libc::NF_INET_POST_ROUTING,
        };
        self.request(libc::NFT_MSG_NEWCHAIN, NLM_F_CREATE)
            .attr_str(NFTA_CHAIN_TABLE, self.table)
            .attr_str(NFTA_CHAIN_NAME, name)
            .nest(NFTA_CHAIN_HOOK, |data| {
                data.attr_u32_be(NFTA_HOOK_HOOKNUM, hook as u32)
                    .attr_u32_be(NFTA_HOOK_PRIORITY, chain.priority as u32)
                    .when(devices(&chain.hook), |data, devices| match devices.as_slice() {
                        [device] => data.attr_str(NFTA_HOOK_DEV, device),
                        several => data.nest(NFTA_HOOK_DEVS, |list| {
                            several.iter().fold(list, |list, device| list.attr_str(NFTA_DEVICE_NAME, device))
                        }),
                    })
            })
            .attr_u32_be(NFTA_CHAIN_POLICY, if chain.drop_by_default { DROP } else { ACCEPT })
            .attr_str(NFTA_CHAIN_TYPE, kind)
    }

    fn rule_message(self, chain: &str, rule: &NftRule, known: &Known<'_>) -> Result<Message, Cause> {
        let tag = rule.tag();
        if tag.len() > TAG_MAX {
            return Err(Cause::Invalid(format!("its tag has more than {TAG_MAX} bytes")));
        }
        let mut comment = vec![NFTNL_UDATA_RULE_COMMENT, (tag.len() + 1) as u8];
        comment.extend_from_slice(tag.as_bytes());
        comment.push(0);
        let list = expressions(Message::fragment(), rule, self.family, known)?;
        Ok(self
            .request(libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND)
            .attr_str(NFTA_RULE_TABLE, self.table)
            .attr_str(NFTA_RULE_CHAIN, chain)
            .nest(NFTA_RULE_EXPRESSIONS, |message| message.append(list))
            .attr(NFTA_RULE_USERDATA, &comment))
    }
}

/// The devices of a hook that is one of devices.
fn devices(hook: &NftHook) -> Option<Vec<&String>> {
    if let NftHook::Ingress { devices } = hook { Some(devices.iter().collect()) } else { None }
}

/// An address and a port as a concatenation, whose parts begin at multiples of four bytes.
fn service((ip, port): (Ipv4Addr, u16)) -> Vec<u8> {
    [ip.octets().as_slice(), &port.to_be_bytes(), &[0; 2]].concat()
}
