//! Availability zones: those that L3 agents are in.

use serde_json::{Value as Json, json};

use super::Call;
use crate::attributes::{Object, query};
use crate::error::ApiError;
use crate::policy;

const FILTERS: [&str; 3] = ["name", "resource", "state"];

/// Lists the zones; each is available while one of its agents is admitted.
///
/// # Errors
///
/// When the store cannot be read, or is asked for what no zone has.
pub fn list(call: Call<'_>, pairs: &[(String, String)]) -> Result<Json, ApiError> {
    query::refuse_unknown(pairs, |name| FILTERS.contains(&name))?;
    let fields = query::fields(pairs);
    // As Neutron: who may see none sees a list all the same.
    if policy::require(call.ctx, "get_availability_zone", call.ctx.project()).is_err() {
        return Ok(json!({"availability_zones": []}));
    }
    let sql = "SELECT availability_zone, max(admin_state_up) FROM agents WHERE availability_zone IS NOT NULL \
               GROUP BY availability_zone ORDER BY availability_zone";
    let zones = call.tx.query(sql, &[], |row| Ok((row.text(0)?, row.bool(1)?)))?;
    let shown = zones.into_iter().map(|(name, available)| {
        let state = if available { "available" } else { "unavailable" };
        json!({"name": name, "resource": "router", "state": state})
    });
    let wanted = |zone: &Json| {
        FILTERS.into_iter().all(|key| {
            let mut asked = pairs.iter().filter(|(name, _)| name == key).map(|(_, value)| value.as_str()).peekable();
            asked.peek().is_none() || asked.any(|value| zone[key] == value)
        })
    };
    let shown = shown.filter(wanted).map(|zone| {
        let mut zone = super::object(zone);
        zone.retain(|key, _| fields.is_empty() || fields.contains(key));
        zone
    });
    Ok(json!({"availability_zones": shown.collect::<Vec<Object>>()}))
}
