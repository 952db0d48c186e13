//! Ports as the store holds them: with their addresses, and made and removed in one place for users,
//! routers, HA copies and floating IPs alike.

use std::collections::{BTreeMap, BTreeSet};

use evergate_model::{Mac, NetworkId, PortId, SubnetId};

use super::subnet::Subnet;
use super::{Later, Standard, ask, ask_in, bump, floating_ip, port_forwarding, query_in, tags};
use crate::error::ApiError;
use crate::ipam::{self, FixedIp, FixedIpRequest, Wanted};
use crate::options::Options;
use crate::random;
use crate::store::{Kind, Row, StoreError, Tx};
use crate::values;

/// What the ports that the server makes itself are for.
pub mod owner {
    /// An external gateway.
    pub const GATEWAY: &str = "network:router_gateway";
    /// An interface of a legacy router.
    pub const INTERFACE: &str = "network:router_interface";
    /// An interface of an HA router: on every copy, in use on the active one.
    pub const HA_REPLICATED: &str = "network:ha_router_replicated_interface";
    /// An interface of a distributed router: on every host that has it.
    pub const DISTRIBUTED: &str = "network:router_interface_distributed";
    /// Of a distributed router: the way from a subnet to its source NAT.
    pub const SNAT: &str = "network:router_centralized_snat";
    /// A host's port on an external network, for floating IPs that are translated on the host.
    pub const AGENT_GATEWAY: &str = "network:floatingip_agent_gateway";
    /// A copy's port on the HA network.
    pub const HA: &str = "network:router_ha_interface";
    /// Holds the address of a floating IP.
    pub const FLOATING_IP: &str = "network:floatingip";
    /// A DHCP server's; Neutron removes them with their network.
    pub const DHCP: &str = "network:dhcp";
}

/// A port with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct Port {
    pub id: PortId,
    pub project_id: String,
    pub network_id: NetworkId,
    pub name: String,
    pub description: String,
    pub mac_address: Mac,
    pub admin_state_up: bool,
    pub status: String,
    pub device_id: String,
    pub device_owner: String,
    pub port_security_enabled: bool,
    pub host_id: String,
    pub vnic_type: String,
    pub binding_profile: serde_json::Value,
    pub allowed_address_pairs: serde_json::Value,
    pub standard: Standard,
    pub fixed_ips: Vec<FixedIp>,
}

/// A port about to be made.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields are Neutron's attributes")]
pub struct NewPort<'a> {
    pub project_id: &'a str,
    pub network_id: NetworkId,
    pub name: &'a str,
    pub description: &'a str,
    pub mac_address: Option<Mac>,
    pub admin_state_up: bool,
    pub status: &'a str,
    pub device_id: &'a str,
    pub device_owner: &'a str,
    pub port_security_enabled: bool,
    pub host_id: &'a str,
    pub vnic_type: &'a str,
    pub binding_profile: String,
    pub allowed_address_pairs: String,
    /// `None`: whatever the network has to give.
    pub fixed_ips: Option<&'a [FixedIpRequest]>,
}

impl<'a> NewPort<'a> {
    /// A port of the server's own, of that kind, with nothing special about it.
    pub fn device(network_id: NetworkId, device_owner: &'a str, device_id: &'a str) -> Self {
        Self {
            project_id: "",
            network_id,
            name: "",
            description: "",
            mac_address: None,
            admin_state_up: true,
            status: "DOWN",
            device_id,
            device_owner,
            // Neutron never filters the ports of its own devices; VRRP depends on it.
            port_security_enabled: false,
            host_id: "",
            vnic_type: "normal",
            binding_profile: "{}".into(),
            allowed_address_pairs: "[]".into(),
            fixed_ips: None,
        }
    }
}

const COLUMNS: &str = "id, project_id, network_id, name, description, mac_address, admin_state_up, status, device_id, \
                       device_owner, port_security_enabled, host_id, vnic_type, binding_profile, \
                       allowed_address_pairs, created_at, updated_at, revision_number";

/// Random MACs that are tried: with 24 random bits, 16 collisions in a row mean a full network.
const MAC_TRIES: usize = 16;

impl Port {
    fn read(row: &Row<'_>) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.parse(0)?,
            project_id: row.text(1)?,
            network_id: row.parse(2)?,
            name: row.text(3)?,
            description: row.text(4)?,
            mac_address: row.parse(5)?,
            admin_state_up: row.bool(6)?,
            status: row.text(7)?,
            device_id: row.text(8)?,
            device_owner: row.text(9)?,
            port_security_enabled: row.bool(10)?,
            host_id: row.text(11)?,
            vnic_type: row.text(12)?,
            binding_profile: row.json(13)?,
            allowed_address_pairs: row.json(14)?,
            standard: Standard::read(row, 15)?,
            fixed_ips: Vec::new(),
        })
    }

    /// Reads one port.
    ///
    /// # Errors
    ///
    /// 404 where there is none.
    pub fn get(tx: &Tx<'_>, id: PortId) -> Result<Self, ApiError> {
        let found = Self::many(tx, &[id.to_string()])?.pop();
        found.ok_or_else(|| ApiError::PortNotFound { id: id.to_string() })
    }

    /// Reads many ports, in no particular order.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn many(tx: &Tx<'_>, ids: &[String]) -> Result<Vec<Self>, StoreError> {
        Self::ask_many(tx, ids)?.read()
    }

    /// Asks for many ports.
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn ask_many<'t>(tx: &'t Tx<'_>, ids: &[String]) -> Result<Later<'t, Vec<Self>>, StoreError> {
        let ports = ask_in(tx, &format!("SELECT {COLUMNS} FROM ports WHERE id IN ({{}})"), ids, Self::read)?;
        Ok(ports.and(ask_fixed_ips_of(tx, ids)?).map(|(mut ports, mut addresses)| {
            for port in &mut ports {
                port.fixed_ips = addresses.remove(&port.id).unwrap_or_default();
            }
            ports
        }))
    }

    /// Makes a port with addresses of its network.
    ///
    /// # Errors
    ///
    /// When the MAC or an address cannot be had.
    pub fn create(tx: &Tx<'_>, options: &Options, new: &NewPort<'_>) -> Result<Self, ApiError> {
        let subnets = Subnet::ask_of_network(tx, new.network_id)?;
        let mac = match new.mac_address {
            Some(mac) => {
                if mac_is_taken(tx, new.network_id, mac)? {
                    let network = new.network_id.to_string();
                    return Err(ApiError::MacAddressInUse { network, mac: mac.to_string() });
                }
                mac
            }
            None => free_mac(tx, options, new.network_id)?,
        };
        let wanted = Wanted {
            network_id: new.network_id,
            subnets: &subnets.read()?,
            mac,
            device_owner: new.device_owner,
            requests: new.fixed_ips,
        };
        let mut fixed_ips = ipam::allocate(tx, wanted)?;
        if new.fixed_ips.is_some_and(|requests| !requests.is_empty()) {
            fixed_ips.extend(ipam::automatic(tx, wanted, &fixed_ips)?);
        }
        let id = PortId(random::id());
        let sql = format!(
            "INSERT INTO ports ({COLUMNS}) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?16, 1)"
        );
        let params = values![
            id,
            new.project_id,
            new.network_id,
            new.name,
            new.description,
            mac,
            new.admin_state_up,
            new.status,
            new.device_id,
            new.device_owner,
            new.port_security_enabled,
            new.host_id,
            new.vnic_type,
            &new.binding_profile,
            &new.allowed_address_pairs,
            tx.now_text(),
        ];
        tx.execute(&sql, &params)?;
        write_fixed_ips(tx, id, new.network_id, &fixed_ips)?;
        tx.changed(Kind::Port, id);
        tx.changed(Kind::Network, new.network_id);
        let now = tx.now_text();
        Ok(Self {
            id,
            project_id: new.project_id.to_owned(),
            network_id: new.network_id,
            name: new.name.to_owned(),
            description: new.description.to_owned(),
            mac_address: mac,
            admin_state_up: new.admin_state_up,
            status: new.status.to_owned(),
            device_id: new.device_id.to_owned(),
            device_owner: new.device_owner.to_owned(),
            port_security_enabled: new.port_security_enabled,
            host_id: new.host_id.to_owned(),
            vnic_type: new.vnic_type.to_owned(),
            binding_profile: serde_json::from_str(&new.binding_profile).unwrap_or_default(),
            allowed_address_pairs: serde_json::from_str(&new.allowed_address_pairs).unwrap_or_default(),
            standard: Standard { created_at: now.clone(), updated_at: now, revision_number: 1 },
            fixed_ips,
        })
    }

    /// Gives the port other addresses, keeping those that still suit what is asked.
    ///
    /// # Errors
    ///
    /// When an address cannot be had.
    pub fn change_fixed_ips(&mut self, tx: &Tx<'_>, requests: &[FixedIpRequest]) -> Result<(), ApiError> {
        let (kept, open) = keep(&self.fixed_ips, requests);
        let subnets = Subnet::of_network(tx, self.network_id)?;
        let sql = "DELETE FROM fixed_ips WHERE port_id = ?1";
        tx.execute(sql, &values![self.id])?;
        write_fixed_ips(tx, self.id, self.network_id, &kept)?;
        let wanted = Wanted {
            network_id: self.network_id,
            subnets: &subnets,
            mac: self.mac_address,
            device_owner: &self.device_owner,
            requests: Some(&open),
        };
        let added = ipam::allocate(tx, wanted)?;
        self.fixed_ips = kept.into_iter().chain(added).collect();
        if !requests.is_empty() {
            self.fixed_ips.extend(ipam::automatic(tx, wanted, &self.fixed_ips)?);
        }
        tx.execute(sql, &values![self.id])?;
        write_fixed_ips(tx, self.id, self.network_id, &self.fixed_ips)?;
        self.note(tx)?;
        Ok(())
    }

    /// Gives the port another MAC, and lets go of the addresses that were made of the one before; answers the
    /// subnets that they are from. They are still the port's until [`Port::change_fixed_ips`].
    ///
    /// # Errors
    ///
    /// As [`Tx::query`].
    pub fn change_mac(&mut self, tx: &Tx<'_>, mac: Mac) -> Result<Vec<SubnetId>, StoreError> {
        let old = std::mem::replace(&mut self.mac_address, mac);
        let subnets = Subnet::of_network(tx, self.network_id)?.into_iter().filter(Subnet::is_auto_address);
        let made: Vec<FixedIp> = subnets
            .map(|subnet| FixedIp { subnet_id: subnet.id, ip_address: ipam::eui64(subnet.cidr, old) })
            .filter(|made| self.fixed_ips.contains(made))
            .collect();
        self.fixed_ips.retain(|fixed| !made.contains(fixed));
        Ok(made.into_iter().map(|fixed| fixed.subnet_id).collect())
    }

    /// Takes the port's addresses of a subnet.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn leave_subnet(&mut self, tx: &Tx<'_>, subnet: evergate_model::SubnetId) -> Result<(), StoreError> {
        tx.execute("DELETE FROM fixed_ips WHERE port_id = ?1 AND subnet_id = ?2", &values![self.id, subnet])?;
        self.fixed_ips.retain(|fixed| fixed.subnet_id != subnet);
        self.note(tx)
    }

    /// Removes a port, frees its addresses, and ends what leads to it: a router's own ports, too, can have been
    /// given floating IPs.
    ///
    /// # Errors
    ///
    /// When something still refers to it.
    pub fn delete(&self, tx: &Tx<'_>) -> Result<(), ApiError> {
        floating_ip::disassociate(tx, self.id, |_| true)?;
        port_forwarding::end(tx, self.id, |_| true)?;
        tags::replace(tx, &self.id.to_string(), &[])?;
        tx.execute("DELETE FROM ports WHERE id = ?1", &values![self.id])?;
        tx.changed(Kind::Port, self.id);
        tx.changed(Kind::Network, self.network_id);
        Ok(())
    }

    /// Counts a change of the port and lets its network's hosts know.
    ///
    /// # Errors
    ///
    /// As [`Tx::execute`].
    pub fn note(&self, tx: &Tx<'_>) -> Result<(), StoreError> {
        tx.changed(Kind::Port, self.id);
        tx.changed(Kind::Network, self.network_id);
        bump(tx, "ports", self.id)
    }

    /// Tells whether the port has that address.
    pub fn has_ip(&self, ip: std::net::IpAddr) -> bool {
        self.fixed_ips.iter().any(|fixed| fixed.ip_address == ip)
    }
}

/// Splits requests into addresses that the port has already and requests still open.
fn keep(have: &[FixedIp], requests: &[FixedIpRequest]) -> (Vec<FixedIp>, Vec<FixedIpRequest>) {
    let (mut kept, mut open) = (Vec::<FixedIp>::new(), Vec::new());
    // Exact addresses choose first, or a request for "any of the subnet" would take theirs.
    let mut ordered: Vec<&FixedIpRequest> = requests.iter().collect();
    ordered.sort_by_key(|request| request.ip_address.is_none());
    for request in ordered {
        let suits = |fixed: &&FixedIp| {
            request.ip_address.is_none_or(|ip| ip == fixed.ip_address)
                && request.subnet_id.is_none_or(|subnet| subnet == fixed.subnet_id)
                && !kept.contains(*fixed)
        };
        match have.iter().find(suits) {
            Some(fixed) => kept.push(*fixed),
            None => open.push(*request),
        }
    }
    (kept, open)
}

fn write_fixed_ips(tx: &Tx<'_>, port: PortId, network: NetworkId, ips: &[FixedIp]) -> Result<(), StoreError> {
    for (position, fixed) in ips.iter().enumerate() {
        let sql = "INSERT INTO fixed_ips (port_id, network_id, subnet_id, ip_address, position) \
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        tx.execute(sql, &values![port, network, fixed.subnet_id, fixed.ip_address, position as i64])?;
    }
    Ok(())
}

/// Reads the addresses of many ports at once, in their order.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn fixed_ips_of(tx: &Tx<'_>, ids: &[String]) -> Result<BTreeMap<PortId, Vec<FixedIp>>, StoreError> {
    ask_fixed_ips_of(tx, ids)?.read()
}

fn ask_fixed_ips_of<'t>(
    tx: &'t Tx<'_>,
    ids: &[String],
) -> Result<Later<'t, BTreeMap<PortId, Vec<FixedIp>>>, StoreError> {
    let sql = "SELECT port_id, subnet_id, ip_address FROM fixed_ips WHERE port_id IN ({}) ORDER BY port_id, position";
    let rows = ask_in(tx, sql, ids, |row| {
        Ok((row.parse(0)?, FixedIp { subnet_id: row.parse(1)?, ip_address: row.parse(2)? }))
    });
    Ok(rows?.by_key())
}

pub(crate) fn mac_is_taken(tx: &Tx<'_>, network: NetworkId, mac: Mac) -> Result<bool, StoreError> {
    let sql = "SELECT count(*) FROM ports WHERE network_id = ?1 AND mac_address = ?2";
    Ok(tx.count(sql, &values![network, mac])? > 0)
}

/// Makes a MAC that the network does not have yet.
pub(crate) fn free_mac(tx: &Tx<'_>, options: &Options, network: NetworkId) -> Result<Mac, ApiError> {
    // As Neutron: three bytes are fixed, or four when the fourth is not zero.
    let fixed = if options.base_mac.0[3] == 0 { 3 } else { 4 };
    for _ in 0..MAC_TRIES {
        let mut mac = Mac(random::bytes());
        mac.0[..fixed].copy_from_slice(&options.base_mac.0[..fixed]);
        if !mac_is_taken(tx, network, mac)? {
            return Ok(mac);
        }
    }
    Err(ApiError::MacAddressGenerationFailure { network: network.to_string() })
}

/// Binds ports to a host, or to none where it is empty, and counts the change where it is one.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn bind(tx: &Tx<'_>, ports: &[PortId], host: &str) -> Result<(), StoreError> {
    for port in ports {
        let sql = "UPDATE ports SET host_id = ?2, status = 'DOWN', updated_at = ?3, \
                   revision_number = revision_number + 1 WHERE id = ?1 AND host_id <> ?2";
        if tx.execute_counted(sql, &values![port, host, tx.now_text()])? > 0 {
            tx.changed(Kind::Port, port);
            let sql = "SELECT network_id FROM ports WHERE id = ?1";
            // Where the port is decides which hosts its network reaches.
            if let Some(network) = tx.query_opt(sql, &values![port], |row| row.text(0))? {
                tx.changed(Kind::Network, network);
            }
        }
    }
    Ok(())
}

/// Takes a host's word on which of its ports are up. Ports it is bound to and does not name are down, and
/// interfaces of distributed routers are up while they are on any host.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn record_status(tx: &Tx<'_>, host: &str, up: &BTreeSet<PortId>) -> Result<(), StoreError> {
    record_distributed_status(tx, host, up)?;
    let sql = "SELECT id, status FROM ports WHERE host_id = ?1 AND status IN ('ACTIVE', 'DOWN')";
    for (id, status) in tx.query(sql, &values![host], |row| Ok((row.parse::<PortId>(0)?, row.text(1)?)))? {
        let reported = if up.contains(&id) { "ACTIVE" } else { "DOWN" };
        if status != reported {
            tx.execute("UPDATE ports SET status = ?2 WHERE id = ?1", &values![id, reported])?;
            bump(tx, "ports", id)?;
            // Followers other than hosts show it; forwarding does not depend on it.
            tx.changed(Kind::Port, id);
        }
    }
    Ok(())
}

fn record_distributed_status(tx: &Tx<'_>, host: &str, up: &BTreeSet<PortId>) -> Result<(), StoreError> {
    let sql = "SELECT rp.port_id, rp.router_id, \
               CASE WHEN EXISTS (SELECT 1 FROM distributed_ports_up u WHERE u.port_id = rp.port_id AND u.host = h.host) \
               THEN 1 ELSE 0 END \
               FROM router_hosts h JOIN router_ports rp ON rp.router_id = h.router_id AND rp.role = 'interface' \
               WHERE h.host = ?1";
    let known = tx.query(sql, &values![host], |row| Ok((row.parse::<PortId>(0)?, row.text(1)?, row.bool(2)?)))?;
    let mut routers = BTreeSet::new();
    for (port, router, was_up) in known {
        let sql = match (was_up, up.contains(&port)) {
            (false, true) => "INSERT INTO distributed_ports_up (port_id, host) VALUES (?1, ?2)",
            (true, false) => "DELETE FROM distributed_ports_up WHERE port_id = ?1 AND host = ?2",
            (false, false) | (true, true) => continue,
        };
        tx.execute(sql, &values![port, host])?;
        routers.insert(router);
    }
    refresh_distributed_status(tx, &Vec::from_iter(routers))
}

/// Writes the status of distributed routers' interfaces from what the hosts said last.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn refresh_distributed_status(tx: &Tx<'_>, routers: &[String]) -> Result<(), StoreError> {
    let sql = "SELECT p.id, p.status, \
               CASE WHEN EXISTS (SELECT 1 FROM distributed_ports_up u WHERE u.port_id = p.id) THEN 1 ELSE 0 END \
               FROM router_ports rp JOIN ports p ON p.id = rp.port_id \
               JOIN routers r ON r.id = rp.router_id AND r.distributed = 1 \
               WHERE rp.role = 'interface' AND rp.router_id IN ({})";
    let rows = query_in(tx, sql, routers, |row| Ok((row.parse::<PortId>(0)?, row.text(1)?, row.bool(2)?)))?;
    for (id, status, is_up) in rows {
        let now = if is_up { "ACTIVE" } else { "DOWN" };
        if status != now {
            tx.execute("UPDATE ports SET status = ?2 WHERE id = ?1", &values![id, now])?;
            bump(tx, "ports", id)?;
            tx.changed(Kind::Port, id);
        }
    }
    Ok(())
}

/// Which hosts have an L2 agent that can bind a port: the others' ports fail to bind.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn l2_hosts<'t>(tx: &'t Tx<'_>) -> Result<Later<'t, BTreeSet<String>>, StoreError> {
    let sql = "SELECT DISTINCT host FROM agents WHERE agent_type <> 'L3 agent'";
    Ok(ask(tx, sql, &[], |row| row.text(0))?.map(|hosts| hosts.into_iter().collect()))
}
