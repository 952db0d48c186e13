//! Too few hosts for a router: visible, where Neutron shows ACTIVE and says nothing.
//!
//! A router that no host has is `ALLOCATING`: Neutron's word for a router whose resources are not there
//! yet, which is so, since it gets its copies when hosts appear. One that works with less than it should
//! have stays `ACTIVE`, because it is, and clients wait for that word; what is amiss stands in
//! `evergate:warnings`, which only admins see, and only while there is something to say.

use std::collections::BTreeMap;

use evergate_model::RouterId;

use super::Call;
use crate::error::ApiError;
use crate::objects::agent::alive_since;
use crate::objects::query_in;
use crate::objects::router::Router;

/// The attribute that says what is amiss.
pub const WARNINGS: &str = "evergate:warnings";

const ALLOCATING: &str = "ALLOCATING";

/// [`Copies::status`] as lists filter and sort by it.
pub const STATUS: &str =
    "(CASE WHEN EXISTS (SELECT 1 FROM router_bindings b WHERE b.router_id = t.id) THEN t.status ELSE 'ALLOCATING' END)";

/// How many copies routers have, and how many of these serve.
#[derive(Debug)]
pub struct Copies {
    /// Copies, and those of them on hosts that are alive and admitted.
    counts: BTreeMap<RouterId, (u32, u32)>,
    /// Copies that an HA router shall have.
    wanted: u32,
}

impl Copies {
    /// Counts the copies of many routers at once.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    pub fn of_many(call: Call<'_>, ids: &[String]) -> Result<Self, ApiError> {
        let since = alive_since(call.tx.now(), call.options);
        let sql = "SELECT b.router_id, a.admin_state_up, a.heartbeat_at FROM router_bindings b \
                   JOIN agents a ON a.id = b.agent_id WHERE b.router_id IN ({})";
        let rows =
            query_in(call.tx, sql, ids, |row| Ok((row.parse::<RouterId>(0)?, row.bool(1)? && row.text(2)? >= since)))?;
        let mut counts: BTreeMap<RouterId, (u32, u32)> = BTreeMap::new();
        for (router, serves) in rows {
            let (copies, serving) = counts.entry(router).or_default();
            *copies += 1;
            *serving += u32::from(serves);
        }
        // "On every host" is as many as there are; but one alone is no redundancy.
        let wanted = match call.options.max_l3_agents_per_router {
            0 => 2,
            max => max,
        };
        Ok(Self { counts, wanted })
    }

    /// What the router's `status` is.
    pub fn status<'r>(&self, router: &'r Router) -> &'r str {
        if self.counts.contains_key(&router.id) { &router.status } else { ALLOCATING }
    }

    /// What an admin should know of the router's copies.
    pub fn warnings(&self, router: &Router) -> Vec<String> {
        let (copies, serving) = self.counts.get(&router.id).copied().unwrap_or_default();
        let wanted = if router.ha { self.wanted } else { 1 };
        let mut warnings = Vec::new();
        if copies < wanted {
            warnings.push(format!(
                "{copies} of {wanted} copies: more come when there are more L3 agents that may have the router, or by \
                 'network agent add router'"
            ));
        }
        if serving < copies {
            warnings.push(format!(
                "{} of {copies} copies are on hosts that are disabled or not heard of",
                copies - serving
            ));
        }
        warnings
    }
}
