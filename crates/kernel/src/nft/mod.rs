//! nftables: a table as one transaction, and a table as observed.
//!
//! A rule's text is not kept by the kernel, so each rule carries its tag as a comment (`nft list ruleset`
//! prints it), and is observed by that. What else is in a rule is not read back.

mod decode;
mod encode;
mod rule;

pub(crate) use decode::observe;
pub(crate) use encode::{Batch, delete, delete_as, replace, replace_as};

use std::collections::BTreeMap;

use evergate_dataplane::nft::NftFamily;

use crate::wire::Message;

/// Indexes of links, by name.
pub(crate) type Links = BTreeMap<String, u32>;

/// Tag of a rule that carries none: somebody else put it into our table.
pub(crate) const FOREIGN_TAG: &str = "<foreign>";

const ACCEPT: u32 = libc::NF_ACCEPT as u32;
const DROP: u32 = libc::NF_DROP as u32;

fn protocol(family: NftFamily) -> u8 {
    match family {
        NftFamily::Ip => libc::NFPROTO_IPV4 as u8,
        NftFamily::Ip6 => libc::NFPROTO_IPV6 as u8,
        NftFamily::Bridge => libc::NFPROTO_BRIDGE as u8,
        NftFamily::Netdev => libc::NFPROTO_NETDEV as u8,
    }
}

/// Number of an nftables message among those of all netfilter subsystems.
const fn message_kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | message as u16
}

/// `struct nfgenmsg`: family, version, and a number in network order.
fn body(family: u8, number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [family, libc::NFNETLINK_V0 as u8, high, low]
}

fn with_body(message: Message, family: NftFamily) -> Message {
    message.body(&body(protocol(family), 0))
}
