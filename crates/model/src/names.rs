//! Neutron's names for what stands on a host, in one place.
//!
//! Operators search for these names, and the tools they know print them. A device name is the prefix
//! and the first eleven characters of the id, because Neutron cuts them to 14 characters.

use crate::id::{NetworkId, PortId, RouterId};

/// Neutron cuts device names to this many characters (the kernel's limit is 15).
pub const DEVICE_NAME_LEN: usize = 14;

/// The MAC address prefix Neutron gives to ports by default (`base_mac`, `fa:16:3e:00:00:00`).
pub const BASE_MAC_PREFIX: [u8; 3] = [0xfa, 0x16, 0x3e];

fn device(prefix: &str, id: impl std::fmt::Display) -> String {
    let mut name = format!("{prefix}{id}");
    name.truncate(DEVICE_NAME_LEN);
    name
}

/// The namespace of a router: `qrouter-<id>`.
pub fn qrouter_namespace(router: RouterId) -> String {
    format!("qrouter-{router}")
}

/// The router a `qrouter-<id>` namespace belongs to, if the name is of that form.
pub fn router_of_namespace(name: &str) -> Option<RouterId> {
    name.strip_prefix("qrouter-")?.parse().ok()
}

/// The namespace of a distributed router's source NAT: `snat-<id>`.
pub fn snat_namespace(router: RouterId) -> String {
    format!("snat-{router}")
}

/// The router a `snat-<id>` namespace belongs to, if the name is of that form.
pub fn router_of_snat_namespace(name: &str) -> Option<RouterId> {
    name.strip_prefix("snat-")?.parse().ok()
}

/// The namespace of a host's floating IPs on an external network: `fip-<id>`.
pub fn fip_namespace(external: NetworkId) -> String {
    format!("fip-{external}")
}

/// The bridge of a network: `brq<id>`.
pub fn bridge(network: NetworkId) -> String {
    device("brq", network)
}

/// The VXLAN device of a network: `vxlan-<vni>`.
pub fn vxlan(vni: u32) -> String {
    format!("vxlan-{vni}")
}

/// The bridge side of any port: `tap<id>`. A hypervisor, or the lab, makes an instance's tap by this name.
pub fn tap(port: PortId) -> String {
    device("tap", port)
}

/// The router side of an internal port: `qr-<id>`.
pub fn internal_device(port: PortId) -> String {
    device("qr-", port)
}

/// The router side of an external gateway port: `qg-<id>`.
pub fn external_device(port: PortId) -> String {
    device("qg-", port)
}

/// The router side of an HA port: `ha-<id>`.
pub fn ha_device(port: PortId) -> String {
    device("ha-", port)
}

/// The gateway side of a distributed router's port for source NAT: `sg-<id>`.
pub fn snat_device(port: PortId) -> String {
    device("sg-", port)
}

/// A host's device on an external network, in its `fip-` namespace: `fg-<id>`.
pub fn agent_gateway_device(port: PortId) -> String {
    device("fg-", port)
}

/// The router's end of the pair between `qrouter-<id>` and the `fip-` namespace: `rfp-<id>`.
pub fn router_to_fip_device(router: RouterId) -> String {
    device("rfp-", router)
}

/// The other end of that pair: `fpr-<id>`.
pub fn fip_to_router_device(router: RouterId) -> String {
    device("fpr-", router)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_are_those_that_neutron_was_seen_to_use() {
        let port: PortId = "1c6f46c9-0cb8-4b37-bda4-33a104d6a994".parse().unwrap();
        assert_eq!(ha_device(port), "ha-1c6f46c9-0c");
        assert_eq!(tap(port), "tap1c6f46c9-0c");
        let network: NetworkId = "d66e9571-964e-476b-9e16-d470ba999890".parse().unwrap();
        assert_eq!(bridge(network), "brqd66e9571-96");
    }

    #[test]
    fn a_router_is_found_from_its_namespace() {
        let router = RouterId::from_u128(7);
        assert_eq!(router_of_namespace(&qrouter_namespace(router)), Some(router));
        assert_eq!(router_of_namespace("qrouter-mine"), None);
        assert_eq!(router_of_snat_namespace(&snat_namespace(router)), Some(router));
        assert_eq!(router_of_snat_namespace(&qrouter_namespace(router)), None);
        assert_eq!(router_of_namespace("snat-00000000-0000-0000-0000-000000000007"), None);
    }
}
