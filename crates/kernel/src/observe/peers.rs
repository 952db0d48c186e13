//! Both ends of veth pairs.

use std::collections::BTreeMap;

use evergate_dataplane::Netns;

use super::Raw;
use crate::error::Cause;
use crate::kernel::Kernel;
use crate::route::link::RawLink;

/// Where the other ends of veths are.
#[derive(Debug, Default)]
pub(super) struct Peers(BTreeMap<(Netns, u32), (Netns, String)>);

impl Peers {
    /// Pairs up veth ends that name each other.
    ///
    /// Indexes are unique within a namespace only, so two ends that name each other's index may still not
    /// belong together: one of them is asked which namespace its other end is in.
    pub(super) fn find(kernel: &mut Kernel, raw: &BTreeMap<Netns, Raw>) -> Result<Self, Cause> {
        let mut ends: BTreeMap<(u32, u32), Vec<(&Netns, &RawLink)>> = BTreeMap::new();
        for (netns, found) in raw {
            for link in found.links.iter().filter(|link| link.kind == "veth") {
                ends.entry((link.index, link.peer_index.unwrap_or(0))).or_default().push((netns, link));
            }
        }
        let mut numbers = BTreeMap::new();
        let mut peers = BTreeMap::new();
        for (netns, found) in raw {
            for link in found.links.iter().filter(|link| link.kind == "veth") {
                let mirrored = (link.peer_index.unwrap_or(0), link.index);
                for (peer_netns, peer) in ends.get(&mirrored).into_iter().flatten() {
                    if is_end_in(kernel, &mut numbers, (peer_netns, peer), netns)? {
                        peers.insert((netns.clone(), link.index), ((*peer_netns).clone(), peer.name.clone()));
                    }
                }
            }
        }
        Ok(Self(peers))
    }

    /// Namespace and name of a veth's other end, if that is in a namespace of ours.
    pub(super) fn of(&self, netns: &Netns, link: &RawLink) -> Option<&(Netns, String)> {
        self.0.get(&(netns.clone(), link.index))
    }
}

/// By which number a namespace (first) knows another (second), as far as it was asked.
type Numbers = BTreeMap<(Netns, Netns), Option<i32>>;

/// Tells whether the other end of this veth end is in the given namespace.
fn is_end_in(
    kernel: &mut Kernel,
    numbers: &mut Numbers,
    (netns, link): (&Netns, &RawLink),
    other: &Netns,
) -> Result<bool, Cause> {
    let Some(number) = link.peer_netns else { return Ok(netns == other) };
    if netns == other {
        return Ok(false);
    }
    let key = (netns.clone(), other.clone());
    if let Some(known) = numbers.get(&key) {
        return Ok(*known == Some(number));
    }
    let asked = kernel.netns_number(netns, other);
    let known = match asked {
        Ok(known) => known,
        Err(Cause::NoNetns(_)) => None,
        Err(cause) => return Err(cause),
    };
    numbers.insert(key, known);
    Ok(known == Some(number))
}
