//! From what compile says about an HA router to what the keeper is told: names become indexes, ops
//! become messages.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use evergate_dataplane::compile::{Advertising, Follow, PreparedItem};
use evergate_dataplane::{Desired, Netns, Prepared, keepalived};
use evergate_keeper::hex;
use evergate_keeper::protocol::{
    AdvertiseLink, AdvertiseSpec, Announce, FollowEntry, FollowSpec, GatewaySpec, Item, Place, RouterSpec, WishSpec,
};
use evergate_model::RouterId;
use evergate_model::host::{HaCopy, Router};

use super::{Machine, Planned, Worker};
use crate::round::{PreparedCopy, Round};

impl<M: Machine> Worker<M> {
    /// Prepares every copy that can be; says why the others cannot.
    pub(super) fn prepare_copies(
        &mut self,
        round: &Round,
        sight: &Planned,
    ) -> (BTreeMap<RouterId, PreparedCopy>, Vec<String>) {
        let (mut copies, mut problems) = (BTreeMap::new(), Vec::new());
        for (id, prepared) in &sight.desired.prepared {
            let Some(router) = round.config.routers.get(id) else { continue };
            let Some(copy) = &router.ha else { continue };
            match self.spec(router, copy, prepared) {
                Ok(mut spec) => {
                    let hindrance = self.hindrance(round, router, prepared, sight).unwrap_or_default();
                    spec.ready = hindrance.is_empty();
                    spec.new = round.live && copy.epoch == 0 && !round.config.active_copies.contains_key(id);
                    spec.inherits = copy.inherits.filter(|_| round.live);
                    let keepalived_conf = keepalived::render(*id, copy, prepared, &self.vrrp);
                    let checked = self.vrrp.health_check.is_some() && !prepared.gateways.is_empty();
                    let check_script =
                        checked.then(|| (keepalived::script_name(copy), keepalived::script(copy, prepared)));
                    copies.insert(*id, PreparedCopy { spec, hindrance, keepalived_conf, check_script });
                }
                Err(error) => problems.push(format!("router {id} cannot take part here: {error:#}")),
            }
        }
        (copies, problems)
    }

    fn spec(&mut self, router: &Router, copy: &HaCopy, prepared: &Prepared) -> anyhow::Result<RouterSpec> {
        let netns = Netns::Named(prepared.netns.clone());
        let ha_ifindex = self.index(&netns, &prepared.ha_link)?;
        let items = prepared.items.iter().map(|item| self.item(item)).collect::<anyhow::Result<_>>()?;
        let mut announce = Vec::with_capacity(prepared.announce.len());
        for address in &prepared.announce {
            let ifindex = self.index(&netns, &address.link)?;
            announce.push(Announce { link: address.link.clone(), ifindex, mac: address.mac, ip: address.ip });
        }
        let mut gateways = Vec::with_capacity(prepared.gateways.len());
        for one in &prepared.gateways {
            let (link, ifindex) = (one.link.clone(), self.index(&netns, &one.link)?);
            gateways.push(GatewaySpec { gateway: one.gateway, link, ifindex, mac: one.mac, source: one.source });
        }
        Ok(RouterSpec {
            router: router.id,
            ha_network: copy.network_id,
            netns: prepared.netns.clone(),
            ha_link: prepared.ha_link.clone(),
            ha_ifindex,
            ha_mac: copy.mac,
            ha_address: copy.address,
            vrid: copy.vrid,
            virtual_address: copy.virtual_address,
            vrrp_version: self.vrrp.version,
            priority: copy.priority,
            advertise_interval_cs: self.vrrp.advertise_interval_cs,
            preempt: self.vrrp.preempt,
            preempt_delay_s: self.vrrp.preempt_delay_s,
            password: self.vrrp.password.clone(),
            peers: copy.peers.values().map(|peer| peer.address).collect(),
            peer_hosts: copy.peers.values().filter_map(|peer| Some((peer.address, peer.vtep?))).collect(),
            items,
            announce,
            gateways,
            uplinks: self.uplinks(prepared),
            claim_to: prepared.claim_to.clone(),
            epoch: copy.epoch,
            wish: copy.wish.as_ref().and_then(|wish| {
                let host = copy.peers.get(&wish.host)?.vtep?;
                Some(WishSpec { host, at_once: wish.at_once })
            }),
            new: false,
            inherits: None,
            ready: false,
        })
    }

    /// One that has just gone is left out, and so is not waited for: the next round knows better.
    fn uplinks(&mut self, prepared: &Prepared) -> BTreeSet<u32> {
        let index = |link: &String| self.machine.link_index(&Netns::Host, link).ok().flatten();
        prepared.uplinks.iter().filter_map(index).collect()
    }

    fn item(&mut self, item: &PreparedItem) -> anyhow::Result<Item> {
        let mut encode = |op| self.machine.encode(op).map(|bytes| hex::encode(&bytes));
        let add = encode(&item.add).with_context(|| format!("failed to prepare {}", item.key))?;
        let del = match &item.del {
            Some(op) => encode(op).with_context(|| format!("failed to prepare the undoing of {}", item.key))?,
            None => String::new(),
        };
        let place = match item.netns {
            Netns::Host => Place::Host,
            Netns::Named(_) => Place::Router,
        };
        Ok(Item { key: item.key.clone(), place, add, del })
    }

    fn index(&mut self, netns: &Netns, link: &str) -> anyhow::Result<u32> {
        self.machine.link_index(netns, link)?.with_context(|| format!("there is no link {link} in {netns}"))
    }

    /// Prepares what is advertised. A device that is not there is left out: the round that makes it brings it.
    pub(super) fn prepare_advertised(&mut self, desired: &Desired) -> BTreeMap<RouterId, AdvertiseSpec> {
        desired.advertise.iter().map(|(id, advertising)| (*id, self.advertise_spec(*id, advertising))).collect()
    }

    fn advertise_spec(&mut self, router: RouterId, advertising: &Advertising) -> AdvertiseSpec {
        let netns = Netns::Named(advertising.netns.clone());
        let mut links = Vec::with_capacity(advertising.links.len());
        for link in &advertising.links {
            let Ok(ifindex) = self.index(&netns, &link.link) else { continue };
            links.push(AdvertiseLink {
                link: link.link.clone(),
                ifindex,
                mac: link.mac,
                source: link.source,
                mtu: link.mtu,
                prefixes: link.advertisement.prefixes.clone(),
                dns_servers: link.advertisement.dns_servers.clone(),
            });
        }
        AdvertiseSpec {
            router,
            netns: advertising.netns.clone(),
            follows_role: advertising.follows_role,
            interval: self.rtr_adv_interval,
            links,
        }
    }

    /// Prepares what follows an active copy. An entry whose VXLAN device is not there is left out: the
    /// round that makes the device brings it.
    pub(super) fn prepare_followed(&mut self, desired: &Desired) -> BTreeMap<RouterId, FollowSpec> {
        desired.follow.iter().map(|(id, follow)| (*id, self.follow_spec(*id, follow))).collect()
    }

    fn follow_spec(&mut self, router: RouterId, follow: &Follow) -> FollowSpec {
        let mut entries = Vec::with_capacity(follow.entries.len());
        for entry in &follow.entries {
            let Ok(Some(vxlan_ifindex)) = self.machine.link_index(&Netns::Host, &entry.vxlan) else { continue };
            let tap = entry.tap.as_ref().and_then(|tap| self.machine.link_index(&Netns::Host, tap).ok().flatten());
            entries.push(FollowEntry { mac: entry.mac, vxlan_ifindex, tap_ifindex: tap });
        }
        let (epoch, vtep) = follow.active.map_or((0, None), |active| (active.epoch, Some(active.vtep)));
        FollowSpec { router, epoch, vtep, entries }
    }
}
