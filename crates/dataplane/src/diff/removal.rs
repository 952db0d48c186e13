//! The last phase: what is ours and no longer wanted goes.
//!
//! In the host's own namespace only what is on links of ours is ours: routes, policy rules and settings
//! there belong to the operator.

use std::collections::BTreeSet;

use super::{LinkSet, Phase, Planner};
use crate::nft::NftFamily;
use crate::op::{LinkChange, Op};
use crate::state::{Address, KeeperOwned, Link, LinkKind, Netns, NetnsState};

/// What goes as a whole, so that nothing on it need be removed one by one.
struct Doomed {
    netns: BTreeSet<Netns>,
    links: LinkSet,
}

impl Doomed {
    fn has_link(&self, netns: &Netns, link: &str) -> bool {
        self.links.contains(netns, link)
    }
}

impl Planner<'_> {
    pub(super) fn remove(&mut self) {
        self.phase = Phase::Remove;
        let doomed = self.doomed();
        let namespaces: Vec<Netns> = self
            .now
            .netns
            .iter()
            .filter(|(n, ns)| self.ours(n, ns) && !doomed.netns.contains(n))
            .map(|(n, _)| n.clone())
            .collect();
        let nothing = NetnsState::default();
        for netns in &namespaces {
            let wanted = self.desired.netns.get(netns).unwrap_or(&nothing);
            self.remove_rules(netns, wanted);
            self.remove_routes(netns, wanted, &doomed);
            self.remove_addresses(netns, wanted, &doomed);
            self.remove_neighbours(netns, wanted, &doomed);
            self.remove_fdb(netns, wanted, &doomed);
            self.remove_nft(netns, wanted, |_| true);
            self.unplug_taps(netns, wanted, &doomed);
        }
        self.delete_links(&doomed);
        for netns in doomed.netns {
            if let Netns::Named(name) = netns {
                self.emit(Op::DeleteNetns { name });
            }
        }
    }

    fn ours(&self, netns: &Netns, ns: &NetnsState) -> bool {
        (*netns == Netns::Host || ns.owned) && !self.blocked.netns.contains(netns)
    }

    fn doomed(&self) -> Doomed {
        let mut doomed = Doomed { netns: BTreeSet::new(), links: LinkSet::default() };
        for (netns, ns) in self.now.netns.iter().filter(|(netns, ns)| self.ours(netns, ns)) {
            let wanted = self.desired.netns.get(netns);
            if wanted.is_none() && *netns != Netns::Host {
                doomed.netns.insert(netns.clone());
                continue;
            }
            for (name, link) in ns.links.iter().filter(|(_, link)| link.is_owned()) {
                let wanted = wanted.and_then(|wanted| wanted.links.get(name));
                // A leftover of ours by the name of a tap that somebody else is to make is not wanted.
                let wanted = wanted.filter(|wanted| wanted.kind != LinkKind::Other);
                if wanted.is_none() && link.kind != LinkKind::Loopback {
                    doomed.links.insert(netns, name);
                }
            }
        }
        doomed
    }

    /// Tells whether something on this link is ours to remove by itself.
    fn tidy(&self, netns: &Netns, link: &str, doomed: &Doomed) -> bool {
        let owned = self.link_now(netns, link).is_some_and(Link::is_owned);
        owned && !doomed.has_link(netns, link) && !self.blocked.has_link(netns, link)
    }

    fn remove_rules(&mut self, netns: &Netns, wanted: &NetnsState) {
        if *netns == Netns::Host {
            return;
        }
        let Some(ns) = self.now.netns.get(netns) else { return };
        let surplus: Vec<_> = ns.rules.difference(&wanted.rules).cloned().collect();
        for rule in surplus {
            self.emit(Op::DeleteRule { netns: netns.clone(), rule });
        }
    }

    fn remove_routes(&mut self, netns: &Netns, wanted: &NetnsState, doomed: &Doomed) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        let mut surplus = Vec::new();
        for route in ns.routes.difference(&wanted.routes) {
            let ours = match &route.link {
                Some(link) => !wanted.keeper.links.contains(link) && self.tidy(netns, link, doomed),
                None => *netns != Netns::Host,
            };
            if ours {
                surplus.push(route.clone());
            }
        }
        // The other way round than they were added: a next hop's own route goes last.
        surplus.sort_by_key(|route| route.via.is_none());
        for route in surplus {
            self.emit(Op::DeleteRoute { netns: netns.clone(), route });
        }
    }

    fn remove_addresses(&mut self, netns: &Netns, wanted: &NetnsState, doomed: &Doomed) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        let surplus = ns.addresses.difference(&wanted.addresses);
        let surplus: Vec<Address> = surplus
            .filter(|a| !follows_role(&wanted.keeper, a) && self.tidy(netns, &a.link, doomed))
            .cloned()
            .collect();
        let promotes = wanted.sysctls.get("ipv4/conf/all/promote_secondaries").is_some_and(|value| value == "1");
        for address in surplus {
            self.emit(Op::DeleteAddress { netns: netns.clone(), address: address.clone() });
            if promotes {
                continue;
            }
            // Where the kernel does not promote secondary addresses, they may have gone with their primary.
            let same_subnet = |a: &&Address| a.link == address.link && a.net.trunc() == address.net.trunc();
            for address in wanted.addresses.iter().filter(same_subnet) {
                self.emit(Op::AddAddress { netns: netns.clone(), address: address.clone() });
            }
        }
    }

    fn remove_neighbours(&mut self, netns: &Netns, wanted: &NetnsState, doomed: &Doomed) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        let surplus = ns.neighbours.keys().filter(|key| !wanted.neighbours.contains_key(key));
        let surplus: Vec<_> = surplus.filter(|key| self.tidy(netns, &key.link, doomed)).cloned().collect();
        for key in surplus {
            self.emit(Op::DeleteNeighbour { netns: netns.clone(), link: key.link, ip: key.ip });
        }
    }

    fn remove_fdb(&mut self, netns: &Netns, wanted: &NetnsState, doomed: &Doomed) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        let surplus = ns.fdb.difference(&wanted.fdb);
        let surplus: Vec<_> = surplus
            .filter(|entry| !wanted.keeper.fdb_macs.contains(&entry.mac) && self.tidy(netns, &entry.link, doomed))
            .cloned()
            .collect();
        for entry in surplus {
            self.emit(Op::DeleteFdb { netns: netns.clone(), entry });
        }
    }

    pub(super) fn remove_nft(&mut self, netns: &Netns, wanted: &NetnsState, which: impl Fn(NftFamily) -> bool) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        // In the host's namespace only the tables of frames are looked for without being wanted.
        let is_ours = |family: &&NftFamily| *netns != Netns::Host || family.is_of_frames();
        let wanted: BTreeSet<NftFamily> = self.tables(netns, wanted).iter().map(|table| table.family).collect();
        let surplus = ns.nft.keys().filter(is_ours).filter(|family| !wanted.contains(family));
        let surplus: Vec<_> = surplus.copied().filter(|family| which(*family)).collect();
        for family in surplus {
            self.emit(Op::DeleteNft { netns: netns.clone(), family });
        }
    }

    /// A tap whose port is gone leaves our bridge, so that its instance is cut off at once.
    fn unplug_taps(&mut self, netns: &Netns, wanted: &NetnsState, doomed: &Doomed) {
        let Some(ns) = self.now.netns.get(netns) else { return };
        let in_a_bridge_of_ours = |link: &Link| {
            let master = link.master.as_ref();
            master.is_some_and(|master| self.tidy(netns, master, doomed))
        };
        let taps: Vec<String> = ns
            .links
            .iter()
            .filter(|(name, link)| {
                !link.is_owned() && is_tap(name) && !wanted.links.contains_key(*name) && in_a_bridge_of_ours(link)
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in taps {
            let change = LinkChange { master: Some(None), ..LinkChange::default() };
            self.emit(Op::SetLink { netns: netns.clone(), name, change });
        }
    }

    /// Ports before their bridges. A pair whose other end is in a namespace that goes is deleted by
    /// itself first: namespaces are torn down later, when the kernel finds the time.
    fn delete_links(&mut self, doomed: &Doomed) {
        let mut links: Vec<(&Netns, &String)> = doomed.links.iter().collect();
        links.sort_by_key(|(netns, name)| self.link_now(netns, name).is_some_and(|l| l.kind == LinkKind::Bridge));
        for (netns, name) in links {
            if self.link_now(netns, name).is_some() {
                self.emit(Op::DeleteLink { netns: netns.clone(), name: name.clone() });
            }
        }
    }
}

fn follows_role(keeper: &KeeperOwned, address: &Address) -> bool {
    keeper.links.contains(&address.link) || keeper.addresses.contains(address)
}

/// Names that a hypervisor gives to the taps of Neutron's ports: see [`evergate_model::names::tap`].
fn is_tap(name: &str) -> bool {
    name.starts_with("tap") && name.len() == evergate_model::names::DEVICE_NAME_LEN
}
