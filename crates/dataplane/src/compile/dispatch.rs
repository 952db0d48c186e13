//! Advertisements to the copy that they are for.
//!
//! Every advertisement is for the group, so a bridge floods it to all copies of the HA network on the host, and each
//! but one throws it away: what that costs grows with the square of the routers. Where many copies are, an
//! advertisement that comes in by the tunnel is given the Ethernet address of the copy with its virtual router
//! identifier; the bridge does the rest. One of an identifier without a copy here goes to the copy with the lowest one,
//! which listens for strangers (`keeper`). The copy takes it as it takes any other: whatever is in it is judged
//! there.
//!
//! Only frames of the tunnel are changed, and no others than advertisements: who is plugged into the bridge by hand is heard
//! by all. It does not hear other hosts' advertisements any more where many copies are.

use std::collections::BTreeMap;

use evergate_model::{Mac, NetworkId};

use super::Compiler;
use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};
use crate::state::{FdbEntry, FdbTable};

/// With fewer copies flooding costs less than the exchange of the table with every router that comes or goes.
const MANY: usize = 8;

/// Before whatever else an operator may have put there.
const PRIORITY: i32 = -500;

/// A tunnel device of an HA network, with the copies behind it, by virtual router identifier.
pub type Copies = BTreeMap<String, BTreeMap<u8, Mac>>;

/// The table that leads the advertisements of these networks to the copies that they are for.
pub fn dispatch_table(networks: &Copies) -> NftTable {
    let mut table = NftTable { family: NftFamily::Netdev, maps: BTreeMap::new(), chains: BTreeMap::new() };
    for (vxlan, copies) in networks {
        let Some((_, &lowest)) = copies.first_key_value() else { continue };
        let map = format!("copies_{}", vxlan.replace('-', "_"));
        let to_copy =
            [NftStatement::VrrpAdvertisement, NftStatement::StationByVrid { map: map.clone() }, NftStatement::Accept];
        let others = [NftStatement::VrrpAdvertisement, NftStatement::Station { mac: lowest }];
        let rules = [NftRule { statements: to_copy.into() }, NftRule { statements: others.into() }];
        let chain = NftChain {
            kind: NftChainKind::Filter,
            hook: NftHook::Ingress,
            priority: PRIORITY,
            drop_by_default: false,
            rules: rules.into(),
        };
        table.maps.insert(map, NftMap::Stations(copies.clone()));
        table.chains.insert(vxlan.clone(), chain);
    }
    table
}

/// A copy's place on its HA network.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) vrid: u8,
    pub(super) mac: Mac,
    pub(super) tap: String,
}

impl Compiler<'_> {
    pub(super) fn advertisements(&mut self) {
        let mut copies_on: BTreeMap<NetworkId, Vec<Copy>> = BTreeMap::new();
        for (network, copy) in std::mem::take(&mut self.ha_copies) {
            copies_on.entry(network).or_default().push(copy);
        }
        let mut networks = Copies::new();
        for (network, copies) in copies_on.into_iter().filter(|(_, copies)| copies.len() >= MANY) {
            let vxlan = self.segments.get(&network).and_then(|segment| segment.vxlan.clone());
            // Elsewhere an advertisement comes in by a device that carries other networks, too.
            let Some(vxlan) = vxlan else { continue };
            for copy in &copies {
                // A backup says nothing that the bridge could learn its place from.
                let entry = FdbEntry { link: copy.tap.clone(), mac: copy.mac, table: FdbTable::Bridge };
                self.host_ns.fdb.insert(entry);
            }
            networks.insert(vxlan, copies.into_iter().map(|copy| (copy.vrid, copy.mac)).collect());
        }
        if !networks.is_empty() {
            let table = dispatch_table(&networks);
            self.host_ns.nft.insert(table.family, table);
        }
    }
}
