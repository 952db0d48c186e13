//! What DHCP servers shall tell the devices of ports: kept and shown; no DHCP server here asks for it.

use std::collections::BTreeMap;

use evergate_model::PortId;
use serde::{Deserialize, Serialize};

use super::{Later, ask_in};
use crate::store::{StoreError, Tx};
use crate::values;

/// One option of a port; without a value it is to be removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpOption {
    /// Its name, as DHCP servers know it.
    pub opt_name: String,
    /// What to tell.
    pub opt_value: Option<String>,
    /// Of which IP version's DHCP it is.
    pub ip_version: u8,
}

/// Reads the options of many ports.
///
/// # Errors
///
/// As [`Tx::query`].
pub fn of_ports<'t>(
    tx: &'t Tx<'_>,
    ports: &[String],
) -> Result<Later<'t, BTreeMap<PortId, Vec<DhcpOption>>>, StoreError> {
    let sql = "SELECT port_id, opt_name, opt_value, ip_version FROM port_dhcp_options WHERE port_id IN ({}) \
               ORDER BY port_id, opt_name, ip_version";
    let rows = ask_in(tx, sql, ports, |row| {
        let option = DhcpOption { opt_name: row.text(1)?, opt_value: row.opt_text(2)?, ip_version: row.num(3)? };
        Ok((row.parse(0)?, option))
    });
    Ok(rows?.by_key())
}

/// Sets options of a port, or removes those without a value. Others stay.
///
/// # Errors
///
/// As [`Tx::execute`].
pub fn change(tx: &Tx<'_>, port: PortId, options: &[DhcpOption]) -> Result<(), StoreError> {
    for option in options {
        let sql = "DELETE FROM port_dhcp_options WHERE port_id = ?1 AND opt_name = ?2 AND ip_version = ?3";
        tx.execute(sql, &values![port, &option.opt_name, option.ip_version])?;
        if let Some(value) = &option.opt_value {
            let sql = "INSERT INTO port_dhcp_options (port_id, opt_name, ip_version, opt_value) \
                       VALUES (?1, ?2, ?3, ?4)";
            tx.execute(sql, &values![port, &option.opt_name, option.ip_version, value])?;
        }
    }
    Ok(())
}
