//! Which hosts route for which distributed routers.
//!
//! A host does if a port that is bound to it is on one of the router's subnets: an instance's, or any other's
//! but a router's. It also does if a router that shares a subnet with this one is on the host, since traffic
//! from there reaches this router's address on that subnet; and so on from router to router. Hosts whose L3
//! agent is missing, disabled or in mode `legacy` route for none.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::RouterId;

use crate::objects::fleet::Fleet;
use crate::objects::port::{self, owner};
use crate::objects::query_in;
use crate::store::{Kind, StoreError, Tx};
use crate::values;

/// A router and a host.
type Pair = (String, String);

/// The given routers, and all distributed ones that share subnets with them, directly or by way of others.
pub(super) fn connected(tx: &Tx<'_>, routers: &[String]) -> Result<Vec<String>, StoreError> {
    let sql = "WITH RECURSIVE near (router_id) AS ( \
                 SELECT router_id FROM router_subnets WHERE router_id IN ({}) \
                 UNION \
                 SELECT theirs.router_id FROM near \
                 JOIN router_subnets mine ON mine.router_id = near.router_id \
                 JOIN router_subnets theirs ON theirs.subnet_id = mine.subnet_id \
                 JOIN routers r ON r.id = theirs.router_id AND r.distributed = 1) \
               SELECT router_id FROM near";
    let mut ids: BTreeSet<String> = routers.iter().cloned().collect();
    ids.extend(query_in(tx, sql, routers, |row| row.text(0))?);
    Ok(ids.into_iter().collect())
}

/// Writes which hosts route for these routers, which must be all that are [`connected`]. Whoever gains or loses
/// a host is changed, so that the others on its networks hear.
pub(super) fn settle(tx: &Tx<'_>, fleet: &Fleet, routers: &[String]) -> Result<(), StoreError> {
    let mut wanted = spread(seeds(tx, routers)?, &links(tx, routers)?);
    wanted.retain(|(_, host)| fleet.host(host).is_some_and(|host| host.routes()));
    let sql = "SELECT router_id, host FROM router_hosts WHERE router_id IN ({})";
    let have: BTreeSet<Pair> =
        query_in(tx, sql, routers, |row| Ok((row.text(0)?, row.text(1)?)))?.into_iter().collect();
    let lost: Vec<&Pair> = have.difference(&wanted).collect();
    for (router, host) in &lost {
        tx.execute("DELETE FROM router_hosts WHERE router_id = ?1 AND host = ?2", &values![router, host])?;
        let sql = "DELETE FROM distributed_ports_up WHERE host = ?2 AND port_id IN \
                   (SELECT port_id FROM router_ports WHERE router_id = ?1)";
        tx.execute(sql, &values![router, host])?;
    }
    for (router, host) in wanted.difference(&have) {
        tx.execute("INSERT INTO router_hosts (router_id, host) VALUES (?1, ?2)", &values![router, host])?;
    }
    let moved: BTreeSet<&String> = have.symmetric_difference(&wanted).map(|(router, _)| router).collect();
    for id in moved {
        tx.changed(Kind::Router, id);
    }
    if !lost.is_empty() {
        port::refresh_distributed_status(tx, routers)?;
    }
    Ok(())
}

/// For each of these routers: hosts, with the reason, that have ports on its subnets and cannot route for a
/// distributed router. Hosts that nobody has heard of are not among them: their ports are bound in vain anyway.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn unserved(tx: &Tx<'_>, fleet: &Fleet, routers: &[String]) -> Result<BTreeMap<RouterId, Vec<String>>, StoreError> {
    let sql = format!(
        "SELECT DISTINCT rs.router_id, p.host_id FROM router_subnets rs \
         JOIN fixed_ips f ON f.subnet_id = rs.subnet_id JOIN ports p ON p.id = f.port_id \
         WHERE p.host_id <> '' AND p.device_owner <> '{}' AND rs.router_id IN ({{}}) \
         AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = p.id) ORDER BY rs.router_id, p.host_id",
        // A DHCP server answers on its own network, and needs no router for that.
        owner::DHCP
    );
    let mut unserved = BTreeMap::<RouterId, Vec<String>>::new();
    for (router, name) in query_in(tx, &sql, routers, |row| Ok((row.parse(0)?, row.text(1)?)))? {
        let Some(host) = fleet.host(&name).filter(|host| host.has_l2 && !host.routes()) else { continue };
        let why = match host.l3 {
            Some((_, mode)) => format!("agent_mode {}", mode.as_str()),
            None if host.has_l3 => "its L3 agent is disabled".to_owned(),
            None => "it has no L3 agent".to_owned(),
        };
        unserved.entry(router).or_default().push(format!("{name} ({why})"));
    }
    Ok(unserved)
}

/// Hosts that need a router for what is on one of its subnets.
fn seeds(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeSet<Pair>, StoreError> {
    let by_port = "SELECT DISTINCT rs.router_id, p.host_id FROM router_subnets rs \
                   JOIN routers r ON r.id = rs.router_id AND r.distributed = 1 \
                   JOIN fixed_ips f ON f.subnet_id = rs.subnet_id JOIN ports p ON p.id = f.port_id \
                   WHERE p.host_id <> '' AND rs.router_id IN ({}) \
                   AND NOT EXISTS (SELECT 1 FROM router_ports rp WHERE rp.port_id = p.id) \
                   AND NOT EXISTS (SELECT 1 FROM agent_gateway_ports g WHERE g.port_id = p.id)";
    // A copy of a central router, or the source NAT of another distributed one: extra routes lead from there to
    // here. Source NAT without a gateway is on no subnet.
    let by_copy = "SELECT DISTINCT mine.router_id, a.host FROM router_subnets mine \
                   JOIN routers r ON r.id = mine.router_id AND r.distributed = 1 \
                   JOIN router_subnets theirs ON theirs.subnet_id = mine.subnet_id AND theirs.router_id <> mine.router_id \
                   JOIN routers t ON t.id = theirs.router_id AND (t.distributed = 0 OR EXISTS \
                     (SELECT 1 FROM router_ports gw WHERE gw.router_id = t.id AND gw.role = 'gateway')) \
                   JOIN router_bindings b ON b.router_id = theirs.router_id \
                   JOIN agents a ON a.id = b.agent_id AND a.admin_state_up = 1 WHERE mine.router_id IN ({})";
    let mut seeds = BTreeSet::new();
    for sql in [by_port, by_copy] {
        seeds.extend(query_in(tx, sql, routers, |row| Ok((row.text(0)?, row.text(1)?)))?);
    }
    Ok(seeds)
}

/// Which distributed routers share a subnet.
fn links(tx: &Tx<'_>, routers: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>, StoreError> {
    let sql = "SELECT DISTINCT mine.router_id, theirs.router_id FROM router_subnets mine \
               JOIN router_subnets theirs ON theirs.subnet_id = mine.subnet_id AND theirs.router_id <> mine.router_id \
               JOIN routers a ON a.id = mine.router_id AND a.distributed = 1 \
               JOIN routers b ON b.id = theirs.router_id AND b.distributed = 1 WHERE mine.router_id IN ({})";
    let mut links = BTreeMap::<String, BTreeSet<String>>::new();
    for (from, to) in query_in(tx, sql, routers, |row| Ok((row.text(0)?, row.text(1)?)))? {
        links.entry(from).or_default().insert(to);
    }
    Ok(links)
}

/// Takes every host of a router to the routers that it is linked with, until nothing is added.
fn spread(seeds: BTreeSet<Pair>, links: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Pair> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<Pair> = seeds.into_iter().collect();
    while let Some((router, host)) = open.pop() {
        if reached.insert((router.clone(), host.clone())) {
            let linked = links.get(&router).into_iter().flatten();
            open.extend(linked.map(|other| (other.clone(), host.clone())));
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> BTreeSet<Pair> {
        pairs.iter().map(|(router, host)| ((*router).to_owned(), (*host).to_owned())).collect()
    }

    fn links(of: &[(&str, &str)]) -> BTreeMap<String, BTreeSet<String>> {
        let mut links = BTreeMap::<String, BTreeSet<String>>::new();
        for (a, b) in of {
            links.entry((*a).to_owned()).or_default().insert((*b).to_owned());
            links.entry((*b).to_owned()).or_default().insert((*a).to_owned());
        }
        links
    }

    #[test]
    fn a_host_is_taken_along_a_chain_of_routers_and_no_further() {
        let reached = spread(pairs(&[("a", "h1"), ("d", "h2")]), &links(&[("a", "b"), ("b", "c")]));
        assert_eq!(reached, pairs(&[("a", "h1"), ("b", "h1"), ("c", "h1"), ("d", "h2")]));
    }

    #[test]
    fn routers_in_a_circle_come_to_an_end() {
        let reached = spread(pairs(&[("a", "h1")]), &links(&[("a", "b"), ("b", "c"), ("c", "a")]));
        assert_eq!(reached, pairs(&[("a", "h1"), ("b", "h1"), ("c", "h1")]));
    }
}
