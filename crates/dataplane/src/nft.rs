//! The nftables rules of a namespace as data, printed in nft's own syntax.
//!
//! The kernel keeps no copy of a rule's text, so each rule carries a comment (nftables user data) made
//! from its printed form: an observed rule is compared by that. See [`NftRule::tag`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use evergate_model::Mac;
use ipnet::{IpNet, Ipv4Net};

/// Name of our table in every namespace of ours.
pub const TABLE_NAME: &str = "evergate";

/// A table, replaced as a whole in one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftTable {
    /// Protocol family.
    pub family: NftFamily,
    /// Maps by name.
    pub maps: BTreeMap<String, NftMap>,
    /// Chains by name.
    pub chains: BTreeMap<String, NftChain>,
}

/// Protocol family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NftFamily {
    /// `ip`: IPv4.
    Ip,
    /// `ip6`: IPv6.
    Ip6,
    /// `bridge`: frames that the host's bridges forward.
    Bridge,
    /// `netdev`: frames that come in by the devices of a chain.
    Netdev,
}

impl NftFamily {
    /// Tells whether its tables are about frames rather than packets: such are kept in the host's namespace alone.
    pub const fn is_of_frames(self) -> bool {
        match self {
            Self::Bridge | Self::Netdev => true,
            Self::Ip | Self::Ip6 => false,
        }
    }
}

/// A map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftMap {
    /// From address to address: `type ipv4_addr : ipv4_addr`.
    Addresses(BTreeMap<Ipv4Addr, Ipv4Addr>),
    /// From address and port to address and port: `type ipv4_addr . inet_service : ipv4_addr . inet_service`.
    Services(BTreeMap<(Ipv4Addr, u16), (Ipv4Addr, u16)>),
    /// From virtual router identifier to Ethernet address: `typeof @nh,168,8 : ether daddr`.
    Stations(BTreeMap<u8, Mac>),
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftChain {
    /// Type of the chain.
    pub kind: NftChainKind,
    /// Where in the packet's path.
    pub hook: NftHook,
    /// Order among chains of a hook.
    pub priority: i32,
    /// What happens to a packet that no rule decides on: accepted, or dropped.
    pub drop_by_default: bool,
    /// The rules, in order. Observed rules hold [`NftStatement::Observed`], and [`NftStatement::Forward`] where they
    /// forward.
    pub rules: Vec<NftRule>,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NftChainKind {
    /// `filter`
    Filter,
    /// `nat`
    Nat,
}

/// Hook of a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the kernel's own names")]
pub enum NftHook {
    Ingress {
        /// By which the frames come in: fewer than 256, the kernel's `NFT_NETDEVICE_MAX`.
        devices: BTreeSet<String>,
    },
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// A rule: statements from left to right; a match that fails ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftRule {
    /// The statements.
    pub statements: Vec<NftStatement>,
}

/// One statement of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftStatement {
    /// `iifname "x"`, or `!=` when negated.
    InLink {
        /// Interface name.
        name: String,
        /// `!=`
        negated: bool,
    },
    /// `oifname "x"`, or `!=` when negated.
    OutLink {
        /// Interface name.
        name: String,
        /// `!=`
        negated: bool,
    },
    /// `ip saddr a/n`, `ip6 saddr a/n`
    Source {
        /// Prefix, of the table's family.
        net: IpNet,
        /// `!=`
        negated: bool,
    },
    /// `ip daddr a/n`, `ip6 daddr a/n`
    Destination {
        /// Prefix, of the table's family.
        net: IpNet,
        /// `!=`
        negated: bool,
    },
    /// `meta l4proto n`
    Protocol {
        /// IP protocol number.
        number: u8,
    },
    /// `th dport a-b`: of a protocol that has ports.
    DestinationPorts {
        /// First port.
        first: u16,
        /// Last port.
        last: u16,
    },
    /// `icmpv6 type 135-136`: a neighbour solicitation or advertisement (RFC 4861).
    NeighbourDiscovery,
    /// `ct direction reply`
    CtReply,
    /// `ct status dnat`, or `ct status ! dnat` when negated.
    CtDnat {
        /// Matches connections that were not translated.
        negated: bool,
    },
    /// `meta mark & mask == value` (or `!=`).
    Mark {
        /// Bits to compare.
        mask: u32,
        /// Their value.
        value: u32,
        /// `!=`
        negated: bool,
    },
    /// `meta mark set mark & ~mask | value`
    SetMark {
        /// Bits to replace.
        mask: u32,
        /// Their new value.
        value: u32,
    },
    /// `dnat to ip daddr map @m`: no element, no match.
    DnatByMap {
        /// Name of the map.
        map: String,
    },
    /// `dnat to a`, which leaves the port as it is.
    Dnat {
        /// New destination address.
        to: Ipv4Addr,
    },
    /// `dnat to ip daddr . th dport map @m`: no element, no match. A [`NftStatement::Protocol`] with ports
    /// comes before it.
    DnatByServiceMap {
        /// Name of the map.
        map: String,
    },
    /// `snat to ip saddr map @m`: no element, no match.
    SnatByMap {
        /// Name of the map.
        map: String,
    },
    /// `snat to a [fully-random]`
    Snat {
        /// New source address.
        to: Ipv4Addr,
        /// Picks ports at random, as Neutron's `use_random_fully`.
        fully_random: bool,
    },
    /// `ether daddr m arp operation reply`: an answer to a question of the station `m`.
    ArpReply {
        /// Who asked.
        to: Mac,
    },
    /// `arp operation request arp daddr ip a`: a question for who has `a`.
    ArpRequest {
        /// Whose Ethernet address is asked for.
        target: Ipv4Addr,
    },
    /// `ether daddr set ff:ff:ff:ff:ff:ff`: the frame goes to everybody.
    BroadcastFrame,
    /// An advertisement of VRRP over IPv4, without IP options: so its virtual router identifier is byte 21 of the
    /// packet.
    VrrpAdvertisement,
    /// `ether daddr set @nh,168,8 map @m`: the frame goes to who is in the map under the identifier; no element, no
    /// match. A [`NftStatement::VrrpAdvertisement`] comes before it.
    StationByVrid {
        /// Name of the map.
        map: String,
    },
    /// `ether daddr set m`: the frame goes to one station.
    Station {
        /// Whose address it gets.
        mac: Mac,
    },
    /// `fwd to "x"`: the frame leaves by this device, and nothing else happens to it.
    ///
    /// The kernel keeps the device's index, not its name: a device that is made anew by the same name is another one,
    /// and the frame is lost. So an observed rule says where it forwards to beside its tag, or nothing where no device
    /// has the index any more.
    Forward {
        /// Interface name.
        link: String,
    },
    /// `counter`
    Counter,
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// A rule read back from the kernel: its tag.
    Observed {
        /// See [`NftRule::tag`].
        tag: String,
    },
}

impl Default for NftMap {
    /// An empty map of addresses.
    fn default() -> Self {
        Self::Addresses(BTreeMap::new())
    }
}

impl NftTable {
    /// Tells whether something is translated that comes for this address, on whichever port.
    pub fn translates(&self, ip: Ipv4Addr) -> bool {
        let own = IpNet::from(Ipv4Net::from(ip));
        let is_for =
            |one: &NftStatement| matches!(one, NftStatement::Destination { net, negated: false } if *net == own);
        let leads = |rule: &NftRule| {
            let is_dnat = rule.statements.iter().any(|statement| matches!(statement, NftStatement::Dnat { .. }));
            is_dnat && rule.statements.iter().any(is_for)
        };
        self.maps.values().any(|map| map.has_address(ip))
            || self.chains.values().flat_map(|chain| &chain.rules).any(leads)
    }
}

impl NftMap {
    /// Tells whether something is translated at this address, on whichever port.
    pub fn has_address(&self, ip: Ipv4Addr) -> bool {
        match self {
            Self::Addresses(elements) => elements.contains_key(&ip),
            Self::Services(elements) => elements.range((ip, 0)..=(ip, u16::MAX)).next().is_some(),
            Self::Stations(_) => false,
        }
    }

    fn type_text(&self) -> &'static str {
        match self {
            Self::Addresses(_) => "type ipv4_addr : ipv4_addr",
            Self::Services(_) => "type ipv4_addr . inet_service : ipv4_addr . inet_service",
            Self::Stations(_) => "typeof @nh,168,8 : ether daddr",
        }
    }

    fn element_texts(&self) -> Vec<String> {
        match self {
            Self::Addresses(elements) => elements.iter().map(|(from, to)| format!("{from} : {to}")).collect(),
            Self::Services(elements) => {
                let service = |(ip, port): &(Ipv4Addr, u16)| format!("{ip} . {port}");
                elements.iter().map(|(from, to)| format!("{} : {}", service(from), service(to))).collect()
            }
            Self::Stations(elements) => elements.iter().map(|(vrid, mac)| format!("{vrid} : {mac}")).collect(),
        }
    }
}

impl NftTable {
    /// Tells whether an observed table says the same: chains, maps, and every rule by its tag.
    pub fn matches(&self, observed: &Self) -> bool {
        self.family == observed.family
            && self.maps == observed.maps
            && self.chains.len() == observed.chains.len()
            && self.chains.iter().all(|(name, chain)| observed.chains.get(name).is_some_and(|o| chain.matches(o)))
    }

    /// Names the devices that must be there for this table to be made: those of its chains, and those that it forwards
    /// to.
    pub fn devices(&self) -> BTreeSet<&str> {
        let own = self.chains.values().filter_map(NftChain::devices).flatten().map(String::as_str);
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        own.chain(rules.flat_map(NftRule::forwards)).collect()
    }

    /// This table of rules for frames, without what it does to those of some devices.
    pub fn without_devices(&self, is_one: impl Fn(&str) -> bool) -> Self {
        debug_assert!(self.family.is_of_frames(), "a chain of another family has no device");
        let mut table = self.clone();
        for chain in table.chains.values_mut() {
            if let NftHook::Ingress { devices } = &mut chain.hook {
                devices.retain(|device| !is_one(device));
            }
            chain.rules.retain(|rule| !rule.devices().any(&is_one));
        }
        table.chains.retain(|_, chain| !chain.rules.is_empty() && !chain.is_of_no_device());
        let rules = table.chains.values().flat_map(|chain| &chain.rules);
        let used: BTreeSet<&str> = rules.flat_map(NftRule::maps).collect();
        table.maps.retain(|name, _| used.contains(name.as_str()));
        table
    }

    /// Shows this table as it is read back from a kernel: every rule reduced to its tag, and to where it forwards to.
    pub fn as_observed(&self) -> Self {
        let mut table = self.clone();
        for rule in table.chains.values_mut().flat_map(|chain| &mut chain.rules) {
            let tag = NftStatement::Observed { tag: rule.tag() };
            rule.statements.retain(NftStatement::is_forward);
            rule.statements.insert(0, tag);
        }
        table
    }

    /// Takes a device that is gone out of this observed table: no frame comes in by it, and none is forwarded to it.
    ///
    /// On newer kernels (6.18 is one) a chain waits for another device of the name, and stays without any: so more
    /// may be there than this leaves. What matters is that no kernel leads a rule on to another device.
    pub(crate) fn forget_device(&mut self, name: &str) {
        for chain in self.chains.values_mut() {
            if let NftHook::Ingress { devices } = &mut chain.hook {
                devices.remove(name);
            }
            for rule in &mut chain.rules {
                rule.statements.retain(|one| !matches!(one, NftStatement::Forward { link } if link == name));
            }
        }
        self.chains.retain(|_, chain| !chain.is_of_no_device());
    }
}

impl NftChain {
    fn matches(&self, observed: &Self) -> bool {
        let place = |c: &Self| (c.kind, c.priority, c.drop_by_default);
        place(self) == place(observed)
            && self.hook == observed.hook
            && self.rules.len() == observed.rules.len()
            && self.rules.iter().zip(&observed.rules).all(|(rule, observed)| rule.matches(observed))
    }

    /// The devices by which its frames come in, where the hook is one of devices.
    fn devices(&self) -> Option<&BTreeSet<String>> {
        if let NftHook::Ingress { devices } = &self.hook { Some(devices) } else { None }
    }

    fn is_of_no_device(&self) -> bool {
        self.devices().is_some_and(BTreeSet::is_empty)
    }
}

impl NftRule {
    /// The text that the kernel keeps as this rule's comment, by which an observed rule is compared: what
    /// the rule is for, and a hash of what it says.
    ///
    /// At most 60 bytes of printable ASCII without quotes (nft accepts 128 in a comment).
    pub fn tag(&self) -> String {
        if let [NftStatement::Observed { tag }, ..] = self.statements.as_slice() {
            return tag.clone();
        }
        format!("{} {:016x}", self.purpose(), fnv1a(self.text().as_bytes()))
    }

    fn matches(&self, observed: &Self) -> bool {
        self.tag() == observed.tag() && self.forwards().eq(observed.forwards())
    }

    /// Names the devices whose frames or packets alone the rule is about, and those that it forwards to.
    fn devices(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().filter_map(NftStatement::device)
    }

    /// Names the devices that the rule forwards to.
    fn forwards(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().filter(|statement| statement.is_forward()).filter_map(NftStatement::device)
    }

    /// Names the maps that the rule looks things up in.
    pub(crate) fn maps(&self) -> impl Iterator<Item = &str> {
        self.statements.iter().filter_map(NftStatement::map)
    }

    /// Says in a few words what the rule is for, from what decides the packet's fate.
    fn purpose(&self) -> &'static str {
        let hairpin = self.statements.iter().any(|s| matches!(s, NftStatement::CtDnat { negated: false }));
        self.statements
            .iter()
            .find_map(|statement| match statement {
                NftStatement::DnatByMap { .. } => Some("floating to fixed"),
                NftStatement::Dnat { .. } | NftStatement::DnatByServiceMap { .. } => Some("port forwarding"),
                NftStatement::SnatByMap { .. } => Some("fixed to floating"),
                NftStatement::Snat { .. } if hairpin => Some("hairpin source NAT"),
                NftStatement::Snat { .. } => Some("source NAT"),
                NftStatement::SetMark { .. } => Some("mark"),
                NftStatement::BroadcastFrame => Some("answer to everybody"),
                NftStatement::StationByVrid { .. } => Some("advertisement to its copy"),
                NftStatement::Station { .. } => Some("other advertisements"),
                NftStatement::Forward { .. } => Some("advertisement to other hosts"),
                NftStatement::Accept => Some("accept"),
                NftStatement::Drop => Some("drop"),
                NftStatement::InLink { .. }
                | NftStatement::OutLink { .. }
                | NftStatement::Source { .. }
                | NftStatement::Destination { .. }
                | NftStatement::Protocol { .. }
                | NftStatement::DestinationPorts { .. }
                | NftStatement::NeighbourDiscovery
                | NftStatement::CtReply
                | NftStatement::CtDnat { .. }
                | NftStatement::Mark { .. }
                | NftStatement::ArpReply { .. }
                | NftStatement::ArpRequest { .. }
                | NftStatement::VrrpAdvertisement
                | NftStatement::Counter
                | NftStatement::Observed { .. } => None,
            })
            .unwrap_or("rule")
    }

    fn text(&self) -> String {
        let statements: Vec<String> = self.statements.iter().map(ToString::to_string).collect();
        statements.join(" ")
    }
}

impl NftStatement {
    fn device(&self) -> Option<&str> {
        if let Self::InLink { name, negated: false }
        | Self::OutLink { name, negated: false }
        | Self::Forward { link: name } = self
        {
            Some(name)
        } else {
            None
        }
    }

    fn is_forward(&self) -> bool {
        matches!(self, Self::Forward { .. })
    }

    fn map(&self) -> Option<&str> {
        if let Self::DnatByMap { map }
        | Self::DnatByServiceMap { map }
        | Self::SnatByMap { map }
        | Self::StationByVrid { map } = self
        {
            Some(map)
        } else {
            None
        }
    }
}

/// The 64-bit FNV-1a hash: small, and the same on every machine and in every version of ours, which the
/// standard library's hashers do not promise.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME))
}

impl fmt::Display for NftTable {
    /// Prints the table in nft's syntax, as `nft -f` reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {} {TABLE_NAME} {{", self.family)?;
        for (name, map) in &self.maps {
            writeln!(f, "\tmap {name} {{\n\t\t{}", map.type_text())?;
            let elements = map.element_texts();
            if !elements.is_empty() {
                writeln!(f, "\t\telements = {{ {} }}", elements.join(", "))?;
            }
            writeln!(f, "\t}}")?;
        }
        for (name, chain) in &self.chains {
            writeln!(f, "\tchain {name} {{")?;
            let NftChain { kind, hook, priority, drop_by_default, rules } = chain;
            let policy = if *drop_by_default { "drop" } else { "accept" };
            writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy {policy};")?;
            for rule in rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for NftRule {
    /// Prints the rule with its tag as comment. An observed rule has hardly more, and prints as a remark.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.statements.as_slice() {
            [NftStatement::Observed { .. }, ..] => f.write_str(&self.text()),
            _ => write!(f, "{} comment \"{}\"", self.text(), self.tag()),
        }
    }
}

impl fmt::Display for NftStatement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "!= " } else { "" };
        match self {
            Self::InLink { name, negated } => write!(f, "iifname {}\"{name}\"", not(negated)),
            Self::OutLink { name, negated } => write!(f, "oifname {}\"{name}\"", not(negated)),
            Self::Source { net, negated } => write!(f, "{} saddr {}{net}", header(net), not(negated)),
            Self::Destination { net, negated } => write!(f, "{} daddr {}{net}", header(net), not(negated)),
            Self::Protocol { number } => write!(f, "meta l4proto {number}"),
            Self::DestinationPorts { first, last } if first == last => write!(f, "th dport {first}"),
            Self::DestinationPorts { first, last } => write!(f, "th dport {first}-{last}"),
            Self::NeighbourDiscovery => f.write_str("icmpv6 type 135-136"),
            Self::CtReply => f.write_str("ct direction reply"),
            Self::CtDnat { negated: false } => f.write_str("ct status dnat"),
            Self::CtDnat { negated: true } => f.write_str("ct status ! dnat"),
            Self::Mark { mask, value, negated } => {
                let compare = if *negated { "!=" } else { "==" };
                write!(f, "meta mark & {mask:#010x} {compare} {value:#010x}")
            }
            Self::SetMark { mask, value } => {
                write!(f, "meta mark set meta mark & {:#010x} | {value:#010x}", !mask)
            }
            Self::DnatByMap { map } => write!(f, "dnat to ip daddr map @{map}"),
            Self::Dnat { to } => write!(f, "dnat to {to}"),
            Self::DnatByServiceMap { map } => write!(f, "dnat ip to ip daddr . th dport map @{map}"),
            Self::SnatByMap { map } => write!(f, "snat to ip saddr map @{map}"),
            Self::Snat { to, fully_random: false } => write!(f, "snat to {to}"),
            Self::Snat { to, fully_random: true } => write!(f, "snat to {to} fully-random"),
            Self::ArpReply { to } => write!(f, "ether daddr {to} arp operation reply"),
            Self::ArpRequest { target } => write!(f, "arp operation request arp daddr ip {target}"),
            Self::BroadcastFrame => f.write_str("ether daddr set ff:ff:ff:ff:ff:ff"),
            Self::VrrpAdvertisement => f.write_str("meta protocol ip @nh,0,8 0x45 ip daddr 224.0.0.18 ip protocol 112"),
            Self::StationByVrid { map } => write!(f, "ether daddr set @nh,168,8 map @{map}"),
            Self::Station { mac } => write!(f, "ether daddr set {mac}"),
            Self::Forward { link } => write!(f, "fwd to \"{link}\""),
            Self::Counter => f.write_str("counter"),
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Observed { tag } => write!(f, "# rule: {tag}"),
        }
    }
}

/// The header that an address is in.
fn header(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

impl fmt::Display for NftFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
            Self::Netdev => "netdev",
        })
    }
}

impl fmt::Display for NftChainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        })
    }
}

impl fmt::Display for NftHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress { devices } => {
                let quoted: Vec<String> = devices.iter().map(|device| format!("\"{device}\"")).collect();
                return match quoted.as_slice() {
                    [device] => write!(f, "ingress device {device}"),
                    several => write!(f, "ingress devices = {{ {} }}", several.join(", ")),
                };
            }
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(statements: Vec<NftStatement>) -> NftRule {
        NftRule { statements }
    }

    fn table(rules: Vec<NftRule>) -> NftTable {
        let chain = NftChain {
            kind: NftChainKind::Nat,
            hook: NftHook::Postrouting,
            priority: 100,
            drop_by_default: false,
            rules,
        };
        NftTable {
            family: NftFamily::Ip,
            maps: BTreeMap::from([("fixed_to_floating".to_owned(), NftMap::default())]),
            chains: BTreeMap::from([("nat_postrouting".to_owned(), chain)]),
        }
    }

    fn snat(to: &str) -> NftRule {
        let link = NftStatement::OutLink { name: "qg-1".to_owned(), negated: false };
        rule(vec![link, NftStatement::Counter, NftStatement::Snat { to: to.parse().unwrap(), fully_random: true }])
    }

    #[test]
    fn a_tag_says_what_the_rule_is_for_and_does_not_change_between_versions() {
        // The tag is kept in kernels: were the hash to change, an upgrade would replace every table.
        assert_eq!(snat("192.0.2.1").tag(), "source NAT bd73627c47de2ab2");
        assert!(snat("192.0.2.1").tag().len() <= 60);
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // From the test vectors of the hash's authors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_table_matches_itself_as_read_back_and_no_other() {
        let desired = table(vec![snat("192.0.2.1")]);
        assert!(desired.matches(&desired.as_observed()));
        assert!(!desired.matches(&table(vec![snat("192.0.2.2")]).as_observed()));
        assert!(!desired.matches(&table(vec![]).as_observed()));
        let mut other_map = desired.as_observed();
        other_map.maps.values_mut().for_each(|map| {
            *map = NftMap::Addresses([(Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::new(192, 0, 2, 5))].into());
        });
        assert!(!desired.matches(&other_map));
    }

    #[test]
    fn a_table_prints_in_the_syntax_of_nft() {
        let expected = "table ip evergate {\n\
            \tmap fixed_to_floating {\n\
            \t\ttype ipv4_addr : ipv4_addr\n\
            \t}\n\
            \tchain nat_postrouting {\n\
            \t\ttype nat hook postrouting priority 100; policy accept;\n\
            \t\toifname \"qg-1\" counter snat to 192.0.2.1 fully-random comment \"source NAT bd73627c47de2ab2\"\n\
            \t}\n\
            }";
        assert_eq!(table(vec![snat("192.0.2.1")]).to_string(), expected);
    }
}
