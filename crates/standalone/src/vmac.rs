//! The device that has a virtual router's own Ethernet address (`use_vmac`).
//!
//! It is ours: made when it is needed, marked by its alias, removed at the end. It is up only while its instance is
//! active, so a backup takes no frames for the virtual router (RFC 9568 §6.4.2). A device of its name that is not
//! marked is somebody else's, and left alone.
//!
//! Advertisements are sent and heard on the interface itself, with this address as their sender.

use std::fs;

use evergate_kernel::rt::{find_link, make_macvlan, remove_link};
use evergate_model::Mac;
use evergate_vrrp::router::Vrid;
use tracing::{debug, info, warn};

use crate::instance::Space;

/// Begins the alias of what is ours.
const MARK: &str = "evergate: vrrp";

/// RFC 9568 §7.3: 00-00-5E-00-01-{VRID} for IPv4, 00-00-5E-00-02-{VRID} for IPv6.
pub(crate) fn virtual_mac(vrid: Vrid, ipv6: bool) -> [u8; 6] {
    [0x00, 0x00, 0x5e, 0x00, if ipv6 { 2 } else { 1 }, vrid.get()]
}

/// Makes the device, unless it is there; returns its index.
pub(crate) fn ensure(space: &mut Space, link: &str, base: (&str, u32), mac: [u8; 6]) -> Result<u32, String> {
    let (base_name, base) = base;
    let found = find_link(&mut space.route, link).map_err(|error| error.full())?;
    let ifindex = match found {
        Some(found) if !found.alias.as_ref().is_some_and(|alias| alias.starts_with(MARK)) => {
            return Err(format!("device {link} is there and not ours: remove it, or give use_vmac another name"));
        }
        Some(found) if found.kind == "macvlan" && found.base == Some(base) && found.mac == Mac(mac) => found.ifindex,
        found => {
            if let Some(old) = found {
                remove_link(&mut space.route, old.ifindex).map_err(|error| error.full())?;
            }
            info!(link, base = base_name, "made the device of a virtual router's Ethernet address");
            make_macvlan(&mut space.route, link, base, Mac(mac), MARK).map_err(|error| error.full())?
        }
    };
    set_up(space, link, base_name);
    Ok(ifindex)
}

/// Removes it, if it is ours.
pub(crate) fn remove(space: &mut Space, link: &str) {
    let removed = find_link(&mut space.route, link).and_then(|found| match found {
        Some(found) if found.alias.as_ref().is_some_and(|alias| alias.starts_with(MARK)) => {
            remove_link(&mut space.route, found.ifindex)
        }
        Some(_) | None => Ok(()),
    });
    if let Err(error) = removed {
        warn!(link, "the device of a virtual router stays behind: {}", error.full());
    }
}

/// Each device answers for its own addresses, and asks with one of its own, or neighbours would learn the
/// interface's Ethernet address for the virtual router's. What comes in on the one may leave by the other, which is on the same link. And no address is derived
/// from the virtual one (RFC 9568 §7.4).
fn set_up(space: &Space, link: &str, base: &str) {
    let settings = [
        (format!("ipv4/conf/{link}/arp_ignore"), "1"),
        (format!("ipv4/conf/{link}/rp_filter"), "2"),
        (format!("ipv4/conf/{link}/promote_secondaries"), "1"),
        (format!("ipv6/conf/{link}/addr_gen_mode"), "1"),
        (format!("ipv6/conf/{link}/accept_ra"), "0"),
        (format!("ipv6/conf/{link}/dad_transmits"), "0"),
    ];
    // The interface is the operator's: what is set there already, and everything else, is left as it is.
    let of_base = [("arp_ignore", "1"), ("arp_announce", "2")];
    let write = || {
        for (path, value) in &settings {
            // A kernel without IPv6 has none of its settings.
            if let Err(error) = fs::write(format!("/proc/sys/net/{path}"), value) {
                debug!("{path} is not set: {error}");
            }
        }
        for (name, value) in of_base {
            let path = format!("/proc/sys/net/ipv4/conf/{base}/{name}");
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "0")
                && let Err(error) = fs::write(&path, value)
            {
                warn!("{name} of {base} is not set, so it speaks for the virtual addresses, too: {error}");
            }
        }
    };
    if let Err(error) = space.netns.run(write) {
        warn!("settings of {link} are not made: {}", error.full());
    }
}
