//! Placement: which agents get a router's copies. Pure: the caller says who there is.
//!
//! As Neutron's least-routers scheduler, spread over availability zones: of the agents that may have
//! the router, the next copy goes to the zone with the fewest of its copies, and there to the agent
//! with the fewest routers. Copies that exist are never moved.

use std::collections::BTreeMap;

use evergate_model::AgentId;

/// An agent that is alive, admitted and able to have a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The agent.
    pub agent_id: AgentId,
    /// Its host: breaks ties, so that the outcome can be predicted.
    pub host: String,
    /// Its availability zone.
    pub zone: String,
    /// Routers it has already.
    pub routers: u64,
}

/// Chooses agents for `missing` further copies of a router that has copies on `present`.
///
/// `hints` names the zones that the router may be in; empty for any.
pub fn choose(candidates: &[Candidate], present: &[AgentId], hints: &[String], missing: usize) -> Vec<AgentId> {
    let allowed = |candidate: &&Candidate| hints.is_empty() || hints.contains(&candidate.zone);
    let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for candidate in candidates.iter().filter(|candidate| present.contains(&candidate.agent_id)) {
        *in_zone.entry(&candidate.zone).or_default() += 1;
    }
    let mut free: Vec<&Candidate> =
        candidates.iter().filter(allowed).filter(|candidate| !present.contains(&candidate.agent_id)).collect();
    let mut chosen = Vec::new();
    while chosen.len() < missing {
        let rank = |candidate: &&&Candidate| {
            let copies = in_zone.get(candidate.zone.as_str()).copied().unwrap_or(0);
            (copies, candidate.routers, candidate.host.clone())
        };
        let Some(next) = free.iter().min_by_key(rank).copied() else { break };
        *in_zone.entry(&next.zone).or_default() += 1;
        chosen.push(next.agent_id);
        free.retain(|candidate| candidate.agent_id != next.agent_id);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(n: u128, zone: &str, routers: u64) -> Candidate {
        Candidate { agent_id: AgentId::from_u128(n), host: format!("h{n}"), zone: zone.into(), routers }
    }

    fn numbers(chosen: Vec<AgentId>) -> Vec<u128> {
        chosen.into_iter().map(|agent| agent.0.as_u128()).collect()
    }

    #[test]
    fn the_least_loaded_agents_get_the_copies() {
        let agents =
            [candidate(1, "nova", 5), candidate(2, "nova", 1), candidate(3, "nova", 3), candidate(4, "nova", 1)];
        assert_eq!(numbers(choose(&agents, &[], &[], 3)), [2, 4, 3]);
    }

    #[test]
    fn copies_spread_over_zones_before_load_counts() {
        let agents = [candidate(1, "a", 0), candidate(2, "a", 0), candidate(3, "b", 9)];
        assert_eq!(numbers(choose(&agents, &[], &[], 2)), [1, 3]);
        assert_eq!(numbers(choose(&agents, &[AgentId::from_u128(3)], &[], 1)), [1]);
    }

    #[test]
    fn hints_keep_a_router_in_its_zones() {
        let agents = [candidate(1, "a", 0), candidate(2, "b", 0), candidate(3, "b", 0)];
        assert_eq!(numbers(choose(&agents, &[], &["b".into()], 3)), [2, 3]);
    }

    #[test]
    fn an_agent_gets_one_copy_and_too_few_agents_are_no_error() {
        let agents = [candidate(1, "a", 0)];
        assert_eq!(numbers(choose(&agents, &[], &[], 3)), [1]);
        assert_eq!(choose(&agents, &[AgentId::from_u128(1)], &[], 3), []);
    }
}
