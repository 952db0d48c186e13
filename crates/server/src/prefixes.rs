//! Sets of addresses written as prefixes: what subnet pools are made of and subnets are cut from.
//!
//! Pure arithmetic. All prefixes of one call are of one IP version.

use ipnet::{IpNet, IpSubnets, Ipv4Subnets, Ipv6Subnets};

use crate::ipam::{from_number, to_number};

/// The fewest prefixes that cover the same addresses, in order.
pub fn compact(prefixes: &[IpNet]) -> Vec<IpNet> {
    let truncated: Vec<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
    IpNet::aggregate(&truncated)
}

/// Tells whether two prefixes have an address in common.
pub fn overlap(one: &IpNet, other: &IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Tells whether any prefix of one list overlaps one of the other.
pub fn intersect(one: &[IpNet], other: &[IpNet]) -> bool {
    one.iter().any(|prefix| other.iter().any(|second| overlap(prefix, second)))
}

/// Tells whether every address of `inner` is one of `outer`.
pub fn is_subset(inner: &[IpNet], outer: &[IpNet]) -> bool {
    let outer = compact(outer);
    compact(inner).iter().all(|prefix| outer.iter().any(|covering| covering.contains(prefix)))
}

/// What is left of `from` without `taken`, as the fewest prefixes, in order.
pub fn difference(from: &[IpNet], taken: &[IpNet]) -> Vec<IpNet> {
    let taken = compact(taken);
    let mut left = Vec::new();
    for prefix in compact(from) {
        let end = to_number(prefix.broadcast());
        let mut next = Some(to_number(prefix.network()));
        for hole in taken.iter().filter(|hole| overlap(hole, &prefix)) {
            if let Some(start) = next
                && start < to_number(hole.network())
            {
                left.extend(blocks(&prefix, start, to_number(hole.network()) - 1));
            }
            // The address space may end with the hole.
            next = to_number(hole.broadcast()).checked_add(1);
        }
        if let Some(start) = next
            && start <= end
        {
            left.extend(blocks(&prefix, start, end));
        }
    }
    left
}

/// The fewest prefixes that cover the addresses from the first to the last.
fn blocks(like: &IpNet, first: u128, last: u128) -> IpSubnets {
    let (first, last) = (from_number(first, like.addr()), from_number(last, like.addr()));
    match (first, last) {
        (std::net::IpAddr::V4(first), std::net::IpAddr::V4(last)) => IpSubnets::V4(Ipv4Subnets::new(first, last, 0)),
        (std::net::IpAddr::V6(first), std::net::IpAddr::V6(last)) => IpSubnets::V6(Ipv6Subnets::new(first, last, 0)),
        // Both are made like the same address.
        _ => IpSubnets::V4(Ipv4Subnets::new([0, 0, 0, 1].into(), [0, 0, 0, 0].into(), 0)),
    }
}

/// Cuts a free prefix of that length, from the smallest block that has room: large ones stay for large wishes.
pub fn cut(from: &[IpNet], taken: &[IpNet], length: u8) -> Option<IpNet> {
    let free = difference(from, taken);
    let smallest = free.into_iter().filter(|block| block.prefix_len() <= length).max_by_key(IpNet::prefix_len)?;
    IpNet::new(smallest.network(), length).ok()
}

/// How many units a prefix takes of a quota: addresses of IPv4, /64 of IPv6.
pub fn quota_units(prefix: &IpNet) -> u128 {
    let unit = if prefix.addr().is_ipv4() { 32 } else { 64 };
    // What is smaller than a unit counts as one.
    1u128 << u32::from(u8::saturating_sub(unit, prefix.prefix_len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(text: &str) -> Vec<IpNet> {
        text.split_whitespace().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn prefixes_are_joined() {
        assert_eq!(compact(&nets("10.0.1.0/24 10.0.0.0/24 10.0.0.128/25")), nets("10.0.0.0/23"));
        assert!(is_subset(&nets("10.0.0.0/23"), &nets("10.0.0.0/24 10.0.1.0/24")));
        assert!(!is_subset(&nets("10.0.0.0/22"), &nets("10.0.0.0/24 10.0.1.0/24")));
        assert!(intersect(&nets("10.0.0.0/8"), &nets("192.0.2.0/24 10.3.0.0/16")));
    }

    #[test]
    fn what_is_taken_is_left_out() {
        let left = difference(&nets("10.0.0.0/24"), &nets("10.0.0.64/26"));
        assert_eq!(left, nets("10.0.0.0/26 10.0.0.128/25"));
        assert_eq!(difference(&nets("10.0.0.0/24"), &nets("10.0.0.0/8")), []);
        assert_eq!(difference(&nets("255.255.255.0/24"), &nets("255.255.255.128/25")), nets("255.255.255.0/25"));
        assert_eq!(difference(&nets("::/0"), &nets("8000::/1")), nets("::/1"));
        assert_eq!(difference(&nets("::/0"), &nets("::/1")), nets("8000::/1"));
    }

    #[test]
    fn a_subnet_is_cut_from_the_smallest_block() {
        let (pool, taken) = (nets("10.0.0.0/16 192.168.0.0/25"), nets("10.0.0.0/24"));
        assert_eq!(cut(&pool, &taken, 26), Some("192.168.0.0/26".parse().unwrap()));
        assert_eq!(cut(&pool, &taken, 24), Some("10.0.1.0/24".parse().unwrap()));
        assert_eq!(cut(&pool, &taken, 16), None);
        assert_eq!(cut(&nets("2001:db8::/48"), &nets("2001:db8::/64"), 64), Some("2001:db8:0:1::/64".parse().unwrap()));
    }

    #[test]
    fn quotas_count_addresses_or_64s() {
        assert_eq!(quota_units(&"10.0.0.0/24".parse().unwrap()), 256);
        assert_eq!(quota_units(&"2001:db8::/56".parse().unwrap()), 256);
        assert_eq!(quota_units(&"2001:db8::/80".parse().unwrap()), 1);
        assert_eq!(quota_units(&"::/0".parse().unwrap()), 1 << 64);
    }
}
