//! Addresses: pools of a subnet, and which address a port gets.
//!
//! The arithmetic is pure. [`allocate`] asks the store what is in use; the schema has the last word
//! (`fixed_ips` holds an address once per subnet).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use evergate_model::{Mac, NetworkId, SubnetId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::error::ApiError;
use crate::objects::subnet::Subnet;
use crate::random;
use crate::store::Tx;
use crate::values;

/// A range that a subnet hands addresses out of; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

/// What a client asks for one address: a subnet, an address, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct FixedIpRequest {
    /// From this subnet.
    pub subnet_id: Option<SubnetId>,
    /// Exactly this address.
    pub ip_address: Option<IpAddr>,
}

/// An address that a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedIp {
    /// The subnet it is from.
    pub subnet_id: SubnetId,
    /// The address.
    pub ip_address: IpAddr,
}

/// Random addresses that are tried before all used ones are read.
const RANDOM_TRIES: usize = 8;

/// The address as a number.
pub fn to_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// The address of the same family as `like` with that number.
pub fn from_number(n: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(n as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(n)),
    }
}

/// First and last address that an interface on the subnet can have.
pub fn usable(cidr: IpNet) -> (u128, u128) {
    let (first, last) = (to_number(cidr.network()), to_number(cidr.broadcast()));
    match cidr {
        // RFC 3021: both addresses of a /31 are usable; a /32 is an address by itself.
        IpNet::V4(net) if net.prefix_len() >= 31 => (first, last),
        IpNet::V4(_) => (first + 1, last - 1),
        // RFC 4291 §2.6.1: the first address is the subnet-router anycast address.
        IpNet::V6(net) if net.prefix_len() >= 127 => (first, last),
        IpNet::V6(_) => (first + 1, last),
    }
}

/// Tells whether an interface on the subnet can have the address.
pub fn is_usable(cidr: IpNet, ip: IpAddr) -> bool {
    let (first, last) = usable(cidr);
    cidr.contains(&ip) && (first..=last).contains(&to_number(ip))
}

/// The gateway of a subnet whose creator named none: the first address.
pub fn default_gateway(cidr: IpNet) -> Option<IpAddr> {
    let second = to_number(cidr.network()).checked_add(1)?;
    let gateway = from_number(second, cidr.network());
    cidr.contains(&gateway).then_some(gateway)
}

/// Everything usable but the gateway.
pub fn default_pools(cidr: IpNet, gateway: Option<IpAddr>) -> Vec<Pool> {
    let (first, last) = usable(cidr);
    let pool = |start, end| Pool { start: from_number(start, cidr.network()), end: from_number(end, cidr.network()) };
    match gateway.filter(|gateway| cidr.contains(gateway)).map(to_number) {
        Some(gateway) if (first..=last).contains(&gateway) => {
            let before = (gateway > first).then(|| pool(first, gateway - 1));
            let after = (gateway < last).then(|| pool(gateway + 1, last));
            before.into_iter().chain(after).collect()
        }
        _ => vec![pool(first, last)],
    }
}

/// Prints a pool as Neutron's messages do.
pub fn pool_text(pool: &Pool) -> String {
    format!("{}-{}", pool.start, pool.end)
}

/// Checks pools that a client asked for.
///
/// # Errors
///
/// When one is backwards, leaves the subnet, overlaps another, or holds the gateway.
pub fn check_pools(pools: &[Pool], cidr: IpNet, gateway: Option<IpAddr>) -> Result<(), ApiError> {
    let (first, last) = usable(cidr);
    for (index, pool) in pools.iter().enumerate() {
        let (start, end) = (to_number(pool.start), to_number(pool.end));
        let family = |ip: IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4();
        if start > end || !family(pool.start) || !family(pool.end) {
            return Err(ApiError::InvalidAllocationPool { pool: pool_text(pool) });
        }
        if start < first || end > last {
            return Err(ApiError::OutOfBoundsAllocationPool { pool: pool_text(pool), cidr: cidr.to_string() });
        }
        let overlaps = |other: &&Pool| start <= to_number(other.end) && to_number(other.start) <= end;
        if let Some(other) = pools[..index].iter().find(overlaps) {
            return Err(ApiError::OverlappingAllocationPools {
                first: pool_text(other),
                second: pool_text(pool),
                cidr: cidr.to_string(),
            });
        }
        if let Some(gateway) = gateway
            && family(gateway)
            && (start..=end).contains(&to_number(gateway))
        {
            let (gateway, pool) = (gateway.to_string(), pool_text(pool));
            return Err(ApiError::GatewayConflictWithAllocationPools { gateway, pool });
        }
    }
    Ok(())
}

/// The address that a host makes for itself on a SLAAC subnet (RFC 4291 appendix A).
pub fn eui64(cidr: IpNet, mac: Mac) -> IpAddr {
    let [a, b, c, d, e, f] = mac.0;
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    from_number(to_number(cidr.network()) | u128::from(interface), cidr.network())
}

/// A port that needs addresses.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The network it is on.
    pub network_id: NetworkId,
    /// The network's subnets, oldest first.
    pub subnets: &'a [Subnet],
    /// Its Ethernet address, for SLAAC.
    pub mac: Mac,
    /// What it is for: routers may take addresses that others may not.
    pub device_owner: &'a str,
    /// What was asked for; `None` for whatever the network has to give.
    pub requests: Option<&'a [FixedIpRequest]>,
}

/// Chooses addresses for a port. Nothing is written.
///
/// # Errors
///
/// When an address is outside the subnet or in use, or a subnet has none left.
pub fn allocate(tx: &Tx<'_>, wanted: Wanted<'_>) -> Result<Vec<FixedIp>, ApiError> {
    match wanted.requests {
        Some(requests) => requested(tx, wanted, wanted.subnets, requests),
        None => one_of_each_family(tx, wanted, wanted.subnets),
    }
}

fn requested(
    tx: &Tx<'_>,
    wanted: Wanted<'_>,
    subnets: &[Subnet],
    requests: &[FixedIpRequest],
) -> Result<Vec<FixedIp>, ApiError> {
    let mut chosen: Vec<FixedIp> = Vec::new();
    // Exact addresses first, so that a random choice does not take one of them.
    for (request, ip) in requests.iter().filter_map(|request| Some((request, request.ip_address?))) {
        let subnet = subnet_for(wanted, subnets, request.subnet_id, ip)?;
        if is_taken(tx, subnet, ip)? {
            let (ip, subnet) = (ip.to_string(), subnet.id.to_string());
            return Err(ApiError::IpAddressAlreadyAllocated { ip, subnet });
        }
        chosen.push(FixedIp { subnet_id: subnet.id, ip_address: ip });
    }
    for request in requests.iter().filter(|request| request.ip_address.is_none()) {
        let ip = match request.subnet_id {
            Some(id) => {
                let subnet = find(wanted, subnets, id)?;
                choose(tx, wanted, subnet, &chosen)?.map(|ip| FixedIp { subnet_id: subnet.id, ip_address: ip })
            }
            // An empty request is one for any address.
            None => one_of_each_family(tx, wanted, subnets)?.into_iter().next(),
        };
        chosen.push(ip.ok_or_else(|| exhausted(wanted))?);
    }
    Ok(chosen)
}

/// Addresses that the port's host makes for itself on SLAAC subnets beside those that it has, whatever was asked for.
/// Routers choose theirs.
///
/// # Errors
///
/// When the store cannot be read.
pub fn automatic(tx: &Tx<'_>, wanted: Wanted<'_>, have: &[FixedIp]) -> Result<Vec<FixedIp>, ApiError> {
    let mut added = Vec::new();
    if wanted.device_owner.starts_with("network:") {
        return Ok(added);
    }
    for subnet in offered_to(wanted.subnets, wanted.device_owner) {
        let is_new = !have.iter().any(|fixed| fixed.subnet_id == subnet.id);
        if subnet.is_auto_address() && is_new {
            let ip = eui64(subnet.cidr, wanted.mac);
            if !is_taken(tx, subnet, ip)? {
                added.push(FixedIp { subnet_id: subnet.id, ip_address: ip });
            }
        }
    }
    Ok(added)
}

/// As Neutron: one IPv4 address, one stateful IPv6 address, and one from every SLAAC subnet.
fn one_of_each_family(tx: &Tx<'_>, wanted: Wanted<'_>, subnets: &[Subnet]) -> Result<Vec<FixedIp>, ApiError> {
    let offered = offered_to(subnets, wanted.device_owner);
    let mut chosen = Vec::new();
    let (automatic, managed): (Vec<_>, Vec<_>) = offered.into_iter().partition(|subnet| subnet.is_auto_address());
    for family in [4, 6] {
        let mut candidates = managed.iter().filter(|subnet| subnet.ip_version == family).peekable();
        if candidates.peek().is_none() {
            continue;
        }
        let mut found = None;
        for subnet in candidates {
            found = choose(tx, wanted, subnet, &chosen)?.map(|ip| FixedIp { subnet_id: subnet.id, ip_address: ip });
            if found.is_some() {
                break;
            }
        }
        chosen.push(found.ok_or_else(|| exhausted(wanted))?);
    }
    for subnet in automatic {
        chosen.push(FixedIp { subnet_id: subnet.id, ip_address: eui64(subnet.cidr, wanted.mac) });
    }
    Ok(chosen)
}

/// Subnets reserved for this kind of device, or else those reserved for none.
fn offered_to<'s>(subnets: &'s [Subnet], device_owner: &str) -> Vec<&'s Subnet> {
    let reserved = |subnet: &&Subnet| subnet.service_types.iter().any(|owner| owner == device_owner);
    let matching: Vec<_> = subnets.iter().filter(reserved).collect();
    if matching.is_empty() {
        subnets.iter().filter(|subnet| subnet.service_types.is_empty()).collect()
    } else {
        matching
    }
}

fn find<'s>(wanted: Wanted<'_>, subnets: &'s [Subnet], id: SubnetId) -> Result<&'s Subnet, ApiError> {
    subnets.iter().find(|subnet| subnet.id == id).ok_or_else(|| {
        let network = wanted.network_id;
        ApiError::invalid(format!(
            "Failed to create port on network {network}, because fixed_ips included invalid subnet {id}"
        ))
    })
}

fn subnet_for<'s>(
    wanted: Wanted<'_>,
    subnets: &'s [Subnet],
    id: Option<SubnetId>,
    ip: IpAddr,
) -> Result<&'s Subnet, ApiError> {
    let subnet = match id {
        Some(id) => {
            let subnet = find(wanted, subnets, id)?;
            if !is_usable(subnet.cidr, ip) {
                return Err(ApiError::InvalidIpForSubnet { ip: ip.to_string() });
            }
            subnet
        }
        None => subnets
            .iter()
            .find(|subnet| is_usable(subnet.cidr, ip))
            .ok_or_else(|| ApiError::InvalidIpForNetwork { ip: ip.to_string() })?,
    };
    let by_itself = subnet.is_auto_address() && ip != eui64(subnet.cidr, wanted.mac);
    if by_itself && !wanted.device_owner.starts_with("network:") {
        return Err(ApiError::invalid(format!(
            "IPv6 address {ip} can not be directly assigned to a port on subnet {} since the subnet is configured \
             for automatic addresses",
            subnet.id
        )));
    }
    Ok(subnet)
}

fn exhausted(wanted: Wanted<'_>) -> ApiError {
    ApiError::IpAddressGenerationFailure { network: wanted.network_id.to_string() }
}

fn is_taken(tx: &Tx<'_>, subnet: &Subnet, ip: IpAddr) -> Result<bool, ApiError> {
    let sql = "SELECT count(*) FROM fixed_ips WHERE network_id = ?1 AND subnet_id = ?2 AND ip_address = ?3";
    Ok(tx.count(sql, &values![subnet.network_id, subnet.id, ip])? > 0)
}

/// Picks a free address of the subnet's pools, or `None` when there is none.
fn choose(tx: &Tx<'_>, wanted: Wanted<'_>, subnet: &Subnet, chosen: &[FixedIp]) -> Result<Option<IpAddr>, ApiError> {
    let own = |ip: IpAddr| chosen.iter().any(|fixed| fixed.subnet_id == subnet.id && fixed.ip_address == ip);
    if subnet.is_auto_address() {
        // There is one such address per MAC: asked for twice, it is taken.
        let ip = eui64(subnet.cidr, wanted.mac);
        if own(ip) || is_taken(tx, subnet, ip)? {
            let (ip, subnet) = (ip.to_string(), subnet.id.to_string());
            return Err(ApiError::IpAddressAlreadyAllocated { ip, subnet });
        }
        return Ok(Some(ip));
    }
    let sizes: Vec<u128> =
        subnet.allocation_pools.iter().map(|pool| to_number(pool.end) - to_number(pool.start) + 1).collect();
    let total: u128 = sizes.iter().sum();
    if total == 0 {
        return Ok(None);
    }
    for _ in 0..RANDOM_TRIES {
        let mut offset = random::below(total);
        for (pool, size) in subnet.allocation_pools.iter().zip(&sizes) {
            if offset < *size {
                let ip = from_number(to_number(pool.start) + offset, pool.start);
                if !own(ip) && !is_taken(tx, subnet, ip)? {
                    return Ok(Some(ip));
                }
                break;
            }
            offset -= size;
        }
    }
    first_free(tx, subnet, chosen)
}

/// The first free address of a subnet that is nearly full.
fn first_free(tx: &Tx<'_>, subnet: &Subnet, chosen: &[FixedIp]) -> Result<Option<IpAddr>, ApiError> {
    let sql = "SELECT ip_address FROM fixed_ips WHERE subnet_id = ?1";
    let used = tx.query(sql, &values![subnet.id], |row| row.parse::<IpAddr>(0))?;
    let chosen = chosen.iter().filter(|fixed| fixed.subnet_id == subnet.id).map(|fixed| fixed.ip_address);
    let used: BTreeSet<u128> = used.into_iter().chain(chosen).map(to_number).collect();
    for pool in &subnet.allocation_pools {
        let (start, end) = (to_number(pool.start), to_number(pool.end));
        let mut candidate = start;
        for taken in used.range(start..=end) {
            if *taken != candidate {
                break;
            }
            candidate += 1;
        }
        if candidate <= end {
            return Ok(Some(from_number(candidate, pool.start)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pool(start: &str, end: &str) -> Pool {
        Pool { start: ip(start), end: ip(end) }
    }

    #[test]
    fn a_subnets_pool_is_all_but_network_gateway_and_broadcast() {
        let pools = default_pools(net("10.0.0.0/24"), Some(ip("10.0.0.1")));
        assert_eq!(pools, [pool("10.0.0.2", "10.0.0.254")]);
        let pools = default_pools(net("10.0.0.0/24"), Some(ip("10.0.0.100")));
        assert_eq!(pools, [pool("10.0.0.1", "10.0.0.99"), pool("10.0.0.101", "10.0.0.254")]);
        assert_eq!(default_pools(net("169.254.192.0/18"), None), [pool("169.254.192.1", "169.254.255.254")]);
        assert_eq!(default_pools(net("10.0.0.0/24"), Some(ip("192.0.2.1"))), [pool("10.0.0.1", "10.0.0.254")]);
        assert_eq!(default_pools(net("10.0.0.0/31"), Some(ip("10.0.0.1"))), [pool("10.0.0.0", "10.0.0.0")]);
        let v6 = default_pools(net("2001:db8::/64"), Some(ip("2001:db8::1")));
        assert_eq!(v6, [pool("2001:db8::2", "2001:db8::ffff:ffff:ffff:ffff")]);
    }

    #[test]
    fn a_pool_must_lie_in_its_subnet_and_keep_off_the_others_and_the_gateway() {
        let cidr = net("10.0.0.0/24");
        let refused = |pools: &[Pool]| check_pools(pools, cidr, Some(ip("10.0.0.1"))).unwrap_err().type_name();
        assert_eq!(refused(&[pool("10.0.0.9", "10.0.0.5")]), "InvalidAllocationPool");
        assert_eq!(refused(&[pool("10.0.0.9", "10.0.1.5")]), "OutOfBoundsAllocationPool");
        assert_eq!(refused(&[pool("10.0.0.9", "10.0.0.255")]), "OutOfBoundsAllocationPool");
        assert_eq!(refused(&[pool("10.0.0.1", "10.0.0.5")]), "GatewayConflictWithAllocationPools");
        let overlapping = [pool("10.0.0.9", "10.0.0.20"), pool("10.0.0.20", "10.0.0.30")];
        assert_eq!(refused(&overlapping), "OverlappingAllocationPools");
        check_pools(&[pool("10.0.0.9", "10.0.0.19"), pool("10.0.0.20", "10.0.0.30")], cidr, None).unwrap();
    }

    #[test]
    fn a_slaac_address_comes_from_the_mac() {
        let mac = "fa:16:3e:05:51:d4".parse().unwrap();
        assert_eq!(eui64(net("2001:db8::/64"), mac), ip("2001:db8::f816:3eff:fe05:51d4"));
    }
}
