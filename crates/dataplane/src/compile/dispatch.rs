//! Advertisements to the copy that they are for, and from the copies to the other hosts.
//!
//! Every advertisement is for the group, so a bridge floods it to all copies of the HA network on the host, and each
//! but one throws it away: what that costs grows with the square of the routers. Where many copies are, an
//! advertisement that comes in by the tunnel is given the Ethernet address of the copy with its virtual router
//! identifier; the bridge does the rest. One of an identifier without a copy here goes to the copy with the lowest one,
//! which listens for strangers (`keeper`). The copy takes it as it takes any other: whatever is in it is judged
//! there.
//!
//! An advertisement of a copy here is for other hosts alone (copies of one host do not hear each other: their taps are
//! isolated ports), but the bridge looks at each port before it finds that out. So it goes from the copy's tap to the
//! tunnel at once.
//!
//! Only frames of the tunnel are changed, only those of the copies forwarded, and no others than advertisements. Who is
//! plugged into the bridge by hand, where many copies are, hears neither other hosts' advertisements for identifiers
//! with a copy here nor those of this host; who listens in a router's namespace, or on a tap, hears what is heard and
//! said there.
//!
//! Flooding is what is left whenever something is amiss, and is never wrong: a table that differs goes before the new
//! one is made ([`diff`](crate::diff())); of a device that is gone, nothing is left in it, and a tunnel that was made
//! anew is told from the one that was forwarded to ([`NftStatement::Forward`]).

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::Mac;

use super::Compiler;
use crate::nft::{NftChain, NftChainKind, NftFamily, NftHook, NftMap, NftRule, NftStatement, NftTable};
use crate::state::{FdbEntry, FdbTable};

/// With fewer copies flooding costs less than the exchange of the table with every router that comes or goes.
const MANY: usize = 8;

/// Before whatever else an operator may have put there.
const PRIORITY: i32 = -500;

/// A tunnel device of an HA network, with the copies behind it, by virtual router identifier. (1 to 255: as many
/// devices as the kernel takes for a chain.)
pub type Copies = BTreeMap<String, BTreeMap<u8, CopyPort>>;

/// A copy's place on the bridge of its HA network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPort {
    /// Ethernet address of its HA interface.
    pub mac: Mac,
    /// The bridge's port.
    pub tap: String,
}

/// The table that leads the advertisements of these networks to the copies that they are for, and out by the tunnels.
pub fn dispatch_table(networks: &Copies) -> NftTable {
    let mut table = NftTable { family: NftFamily::Netdev, maps: BTreeMap::new(), chains: BTreeMap::new() };
    for (vxlan, copies) in networks {
        let Some((_, lowest)) = copies.first_key_value() else { continue };
        let name = vxlan.replace('-', "_");
        let map = format!("copies_{name}");
        let to_copy =
            [NftStatement::VrrpAdvertisement, NftStatement::StationByVrid { map: map.clone() }, NftStatement::Accept];
        let others = [NftStatement::VrrpAdvertisement, NftStatement::Station { mac: lowest.mac }];
        let out = [NftStatement::VrrpAdvertisement, NftStatement::Forward { link: vxlan.clone() }];
        let taps = copies.values().map(|copy| copy.tap.clone()).collect();
        table.chains.insert(format!("from_{name}"), chain([vxlan.clone()].into(), vec![to_copy.into(), others.into()]));
        table.chains.insert(format!("to_{name}"), chain(taps, vec![out.into()]));
        table.maps.insert(map, NftMap::Stations(copies.iter().map(|(vrid, copy)| (*vrid, copy.mac)).collect()));
    }
    table
}

fn chain(devices: BTreeSet<String>, rules: Vec<Vec<NftStatement>>) -> NftChain {
    NftChain {
        kind: NftChainKind::Filter,
        hook: NftHook::Ingress { devices },
        priority: PRIORITY,
        drop_by_default: false,
        rules: rules.into_iter().map(|statements| NftRule { statements }).collect(),
    }
}

impl Compiler<'_> {
    pub(super) fn advertisements(&mut self) {
        let mut networks = Copies::new();
        for (network, copies) in std::mem::take(&mut self.ha_copies) {
            if copies.len() < MANY {
                continue;
            }
            let vxlan = self.segments.get(&network).and_then(|segment| segment.vxlan.clone());
            // Elsewhere an advertisement comes in by a device that carries other networks, too.
            let Some(vxlan) = vxlan else { continue };
            for copy in copies.values() {
                // A backup says nothing that the bridge could learn its place from, and what an active copy says goes
                // past the bridge.
                let entry = FdbEntry { link: copy.tap.clone(), mac: copy.mac, table: FdbTable::Bridge };
                self.host_ns.fdb.insert(entry);
            }
            networks.insert(vxlan, copies);
        }
        if !networks.is_empty() {
            let table = dispatch_table(&networks);
            self.host_ns.nft.insert(table.family, table);
        }
    }
}
