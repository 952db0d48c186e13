//! A kernel in memory, for tests: the real one's rules ([`crate::effects`]), and faults on demand.

use std::collections::BTreeMap;
use std::fmt;

use crate::effects;
use crate::op::Op;
use crate::state::{Address, KernelState, Link, LinkKind, Netns, NetnsState};

pub use crate::effects::Impossible;

/// Why the fake kernel did not do an op.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FakeError {
    /// A real kernel would not do it either.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// A test asked for this failure.
    #[error("{0}")]
    Injected(String),
}

type Which = Box<dyn Fn(&Op) -> bool + Send>;

/// A kernel in memory.
pub struct FakeKernel {
    state: KernelState,
    /// When each address was added: the first of a subnet on a link is its primary.
    added: BTreeMap<(Netns, Address), u64>,
    clock: u64,
    faults: Vec<(String, Which)>,
    log: Vec<Op>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKernel").field("state", &self.state).field("faults", &self.faults.len()).finish()
    }
}

impl FakeKernel {
    /// Makes one with nothing but the host's empty namespace.
    pub fn new() -> Self {
        let host = NetnsState { owned: true, ..NetnsState::default() };
        Self::with_state(KernelState { netns: BTreeMap::from([(Netns::Host, host)]) })
    }

    /// Makes one that holds this already.
    pub fn with_state(state: KernelState) -> Self {
        Self { state, added: BTreeMap::new(), clock: 0, faults: Vec::new(), log: Vec::new() }
    }

    /// Shows all that it holds, ours and foreign.
    pub fn state(&self) -> &KernelState {
        &self.state
    }

    /// Gives access to all that it holds, for what other programs do behind our back.
    pub fn state_mut(&mut self) -> &mut KernelState {
        &mut self.state
    }

    /// Shows every op that was done, in order.
    pub fn log(&self) -> &[Op] {
        &self.log
    }

    /// Makes a link in the host's namespace that is not ours, such as an instance's tap or an uplink.
    pub fn add_foreign_link(&mut self, name: &str) {
        let link = Link {
            kind: LinkKind::Other,
            alias: None,
            up: false,
            mtu: Some(1500),
            mac: None,
            master: None,
            port: None,
        };
        self.state.netns.entry(Netns::Host).or_default().links.insert(name.to_owned(), link);
    }

    /// Removes a link of the host's namespace, as its owner would.
    pub fn remove_link(&mut self, name: &str) {
        effects::delete_link(&mut self.state, &Netns::Host, name);
    }

    /// Makes the next op that satisfies `which` fail with `error`; once.
    pub fn fail_next(&mut self, error: &str, which: impl Fn(&Op) -> bool + Send + 'static) {
        self.faults.push((error.to_owned(), Box::new(which)));
    }

    /// Attempts every op; result i belongs to op i.
    pub fn apply(&mut self, ops: &[Op]) -> Vec<Result<(), FakeError>> {
        ops.iter().map(|op| self.apply_one(op)).collect()
    }

    /// Reports what the real kernel crate reports for this desired state: the host's namespace and every
    /// other that is owned or wanted; in them our links, wanted ones and ports of our bridges; settings as
    /// they are wanted.
    pub fn observe(&self, desired: &KernelState) -> KernelState {
        let wanted_netns = |netns: &Netns| *netns == Netns::Host || desired.netns.contains_key(netns);
        let seen = self.state.netns.iter().filter(|(netns, ns)| ns.owned || wanted_netns(netns));
        let nothing = NetnsState::default();
        let netns = seen.map(|(netns, ns)| {
            let wanted = desired.netns.get(netns).unwrap_or(&nothing);
            (netns.clone(), self.observe_netns(netns, ns, wanted))
        });
        KernelState { netns: netns.collect() }
    }

    fn observe_netns(&self, netns: &Netns, ns: &NetnsState, wanted: &NetnsState) -> NetnsState {
        if !ns.owned {
            return NetnsState::default();
        }
        let owned = |name: &str| ns.links.get(name).is_some_and(Link::is_owned);
        let mut seen = ns.clone();
        seen.links.retain(|name, link| {
            link.is_owned() || wanted.links.contains_key(name) || link.master.as_deref().is_some_and(owned)
        });
        seen.addresses.retain(|address| owned(&address.link));
        seen.neighbours.retain(|key, _| owned(&key.link));
        seen.fdb.retain(|entry| owned(&entry.link));
        let probe = |path: &str| effects::require_sysctl(&self.state, netns, path).is_ok();
        let value = |path: &str| ns.sysctls.get(path).cloned().unwrap_or_else(|| default_setting(path).to_owned());
        let paths = wanted.sysctls.keys().filter(|path| probe(path));
        seen.sysctls = paths.map(|path| (path.clone(), value(path))).collect();
        seen
    }

    fn apply_one(&mut self, op: &Op) -> Result<(), FakeError> {
        if let Some(fault) = self.faults.iter().position(|(_, which)| which(op)) {
            return Err(FakeError::Injected(self.faults.remove(fault).0));
        }
        self.require_master(op)?;
        let lost = self.secondaries_lost(op);
        effects::apply(&mut self.state, op)?;
        if let Op::AddAddress { netns, address } = op {
            self.clock += 1;
            self.added.entry((netns.clone(), address.clone())).or_insert(self.clock);
        }
        if let Op::DeleteAddress { netns, address } = op {
            self.added.remove(&(netns.clone(), address.clone()));
        }
        for (netns, address) in lost {
            effects::apply(&mut self.state, &Op::DeleteAddress { netns: netns.clone(), address: address.clone() })?;
            self.added.remove(&(netns, address));
        }
        self.log.push(op.clone());
        Ok(())
    }

    /// A port needs its bridge.
    fn require_master(&self, op: &Op) -> Result<(), Impossible> {
        let (netns, master) = if let Op::AddLink { netns, link, .. } = op {
            (netns, link.master.as_ref())
        } else if let Op::SetLink { netns, change, .. } = op {
            (netns, change.master.as_ref().and_then(Option::as_ref))
        } else {
            return Ok(());
        };
        let is_there = |name: &String| self.state.netns.get(netns).is_some_and(|ns| ns.links.contains_key(name));
        match master {
            Some(name) if !is_there(name) => Err(Impossible::Missing(format!("link {name}"))),
            _ => Ok(()),
        }
    }

    /// The addresses that go with a primary address, unless the namespace promotes one of them.
    fn secondaries_lost(&self, op: &Op) -> Vec<(Netns, Address)> {
        let Op::DeleteAddress { netns, address } = op else { return Vec::new() };
        let Some(ns) = self.state.netns.get(netns) else { return Vec::new() };
        let promotes = ns.sysctls.get("ipv4/conf/all/promote_secondaries").is_some_and(|value| value == "1");
        if promotes || !ns.addresses.contains(address) {
            return Vec::new();
        }
        let age = |a: &Address| self.added.get(&(netns.clone(), a.clone())).copied().unwrap_or(0);
        let same_subnet = |a: &&Address| a.link == address.link && a.net.trunc() == address.net.trunc();
        let others: Vec<&Address> = ns.addresses.iter().filter(same_subnet).filter(|a| *a != address).collect();
        if others.iter().any(|a| age(a) < age(address)) {
            return Vec::new();
        }
        others.into_iter().map(|a| (netns.clone(), a.clone())).collect()
    }
}

/// The kernel's own value of a setting.
fn default_setting(path: &str) -> &'static str {
    if path.ends_with("/send_redirects") { "1" } else { "0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(link: &str, net: &str) -> Op {
        Op::AddAddress {
            netns: Netns::Named("ns".to_owned()),
            address: Address { link: link.to_owned(), net: net.parse().unwrap() },
        }
    }

    fn delete(link: &str, net: &str) -> Op {
        let Op::AddAddress { netns, address } = add(link, net) else { unreachable!("made one line above") };
        Op::DeleteAddress { netns, address }
    }

    fn bridge_in_a_namespace() -> FakeKernel {
        let mut kernel = FakeKernel::new();
        let link = Link {
            kind: LinkKind::Bridge,
            alias: Some("evergate: test".to_owned()),
            up: true,
            mtu: None,
            mac: None,
            master: None,
            port: None,
        };
        let netns = Netns::Named("ns".to_owned());
        let made = kernel.apply(&[
            Op::AddNetns { name: "ns".to_owned(), alias: "evergate: test".to_owned() },
            Op::AddLink { netns, name: "br".to_owned(), link, peer_link: None },
        ]);
        assert_eq!(made, [Ok(()), Ok(())]);
        kernel
    }

    fn addresses(kernel: &FakeKernel) -> Vec<String> {
        let ns = &kernel.state().netns[&Netns::Named("ns".to_owned())];
        ns.addresses.iter().map(|a| a.net.to_string()).collect()
    }

    #[test]
    fn a_primary_address_takes_its_secondaries_along() {
        let mut kernel = bridge_in_a_namespace();
        kernel.apply(&[add("br", "10.0.0.1/24"), add("br", "10.0.0.2/24"), add("br", "10.1.0.1/24")]);
        kernel.apply(&[delete("br", "10.0.0.1/24")]);
        assert_eq!(addresses(&kernel), ["10.1.0.1/24"]);
    }

    #[test]
    fn a_namespace_that_promotes_keeps_the_secondaries() {
        let mut kernel = bridge_in_a_namespace();
        let netns = Netns::Named("ns".to_owned());
        let path = "ipv4/conf/all/promote_secondaries".to_owned();
        kernel.apply(&[Op::SetSysctl { netns, path, value: "1".to_owned() }]);
        kernel.apply(&[add("br", "10.0.0.1/24"), add("br", "10.0.0.2/24"), delete("br", "10.0.0.1/24")]);
        assert_eq!(addresses(&kernel), ["10.0.0.2/24"]);
    }

    #[test]
    fn a_fault_strikes_once_and_leaves_the_rest_alone() {
        let mut kernel = bridge_in_a_namespace();
        kernel.fail_next("out of memory", |op| matches!(op, Op::AddAddress { .. }));
        let results = kernel.apply(&[add("br", "10.0.0.1/24"), add("br", "10.0.0.2/24")]);
        assert_eq!(results, [Err(FakeError::Injected("out of memory".to_owned())), Ok(())]);
        assert_eq!(addresses(&kernel), ["10.0.0.2/24"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut kernel = bridge_in_a_namespace();
        let error = kernel.apply(&[add("br9", "10.0.0.1/24")]).remove(0).unwrap_err();
        assert_eq!(error.to_string(), "link br9 does not exist");
    }
}
