//! One kernel request each.
//!
//! Every op is idempotent in its effect: adding what is there, or deleting what is gone, succeeds.

use std::net::IpAddr;

use evergate_model::Mac;

use crate::nft::NftTable;
use crate::state::{Address, BridgePort, FdbEntry, Link, Netns, Route, Rule};

/// One kernel request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a namespace below `/run/netns`, brings its loopback up and puts the owner mark on it.
    AddNetns {
        /// Its name.
        name: String,
        /// Alias of its loopback device.
        alias: String,
    },
    /// Removes a namespace with all in it.
    DeleteNetns {
        /// Its name.
        name: String,
    },
    /// Makes a link as described: kind, alias, addresses, MTU, master, flags and state.
    ///
    /// A veth is made with its peer, which takes `peer_link`'s settings.
    AddLink {
        /// Where.
        netns: Netns,
        /// Its name.
        name: String,
        /// What it must be.
        link: Link,
        /// For a veth, what the other end must be (its `kind` names this end).
        peer_link: Option<Box<Link>>,
    },
    /// Changes what differs on a link; `None` leaves a setting as it is.
    SetLink {
        /// Where.
        netns: Netns,
        /// Its name.
        name: String,
        /// What to change.
        change: LinkChange,
    },
    /// Removes a link; of a veth, both ends.
    DeleteLink {
        /// Where.
        netns: Netns,
        /// Its name.
        name: String,
    },
    /// Adds an address, without duplicate address detection.
    AddAddress {
        /// Where.
        netns: Netns,
        /// What.
        address: Address,
    },
    /// Removes an address.
    DeleteAddress {
        /// Where.
        netns: Netns,
        /// What.
        address: Address,
    },
    /// Adds or replaces a route.
    AddRoute {
        /// Where.
        netns: Netns,
        /// What.
        route: Route,
    },
    /// Removes a route.
    DeleteRoute {
        /// Where.
        netns: Netns,
        /// What.
        route: Route,
    },
    /// Adds a policy rule.
    AddRule {
        /// Where.
        netns: Netns,
        /// What.
        rule: Rule,
    },
    /// Removes a policy rule.
    DeleteRule {
        /// Where.
        netns: Netns,
        /// What.
        rule: Rule,
    },
    /// Sets a permanent neighbour entry.
    SetNeighbour {
        /// Where.
        netns: Netns,
        /// On which link.
        link: String,
        /// Protocol address.
        ip: IpAddr,
        /// Ethernet address.
        mac: Mac,
    },
    /// Removes a neighbour entry.
    DeleteNeighbour {
        /// Where.
        netns: Netns,
        /// On which link.
        link: String,
        /// Protocol address.
        ip: IpAddr,
    },
    /// Sets a static forwarding entry. For [`Mac::ZERO`] the destination is appended to the flood list;
    /// for any other address it replaces the entry there is.
    SetFdb {
        /// Where.
        netns: Netns,
        /// What.
        entry: FdbEntry,
    },
    /// Removes a static forwarding entry.
    DeleteFdb {
        /// Where.
        netns: Netns,
        /// What.
        entry: FdbEntry,
    },
    /// Sets a kernel setting.
    SetSysctl {
        /// Where.
        netns: Netns,
        /// Path below `/proc/sys/net`.
        path: String,
        /// New value.
        value: String,
    },
    /// Replaces our nftables table, in one transaction, with this one. Devices that are not there are left out of it,
    /// and the first of them is told as the op's failure: what a table does for others must not wait for them.
    ReplaceNft {
        /// Where.
        netns: Netns,
        /// The whole table.
        table: NftTable,
    },
    /// Removes our nftables table.
    DeleteNft {
        /// Where.
        netns: Netns,
        /// Which.
        family: crate::nft::NftFamily,
    },
}

/// What to change on a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// Up or down.
    pub up: Option<bool>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Becomes a port of this bridge; `Some(None)` leaves its bridge.
    pub master: Option<Option<String>>,
    /// Interface alias.
    pub alias: Option<String>,
    /// Bridge port flags.
    pub port: Option<BridgePort>,
}
