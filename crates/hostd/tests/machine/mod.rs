//! The kernel in memory, as the worker sees it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use evergate_dataplane::fake::FakeKernel;
use evergate_dataplane::{KernelState, Netns, Op, View};
use evergate_hostd::worker::Machine;

/// Length of a netlink message's header.
const HEADER: usize = 16;

/// The kernel in memory, with indexes of links.
#[derive(Default)]
pub struct FakeMachine {
    pub kernel: FakeKernel,
    indexes: BTreeMap<(Netns, String), u32>,
    next_index: u32,
    /// It cannot even be looked at.
    pub broken: bool,
    pub observations: usize,
    /// No device has the tunnel address.
    pub lacks_address: bool,
    /// What was encoded, by the text that its message holds.
    encoded: BTreeMap<String, Op>,
}

impl FakeMachine {
    fn links(&self) -> impl Iterator<Item = (Netns, String)> {
        self.kernel.state().netns.iter().flat_map(|(n, s)| s.links.keys().map(|l| (n.clone(), l.clone())))
    }

    /// Does what a prepared message says.
    pub fn send(&mut self, message: &[u8]) -> Result<(), String> {
        let op = std::str::from_utf8(&message[HEADER..]).ok().and_then(|text| self.encoded.get(text)).cloned();
        let op = op.ok_or("this was never prepared here")?;
        self.kernel.apply(&[op]).remove(0).map_err(|error| error.to_string())
    }

    fn number_links(&mut self) {
        let links: BTreeSet<_> = self.links().collect();
        self.indexes.retain(|link, _| links.contains(link));
        for link in links {
            self.next_index += 1;
            self.indexes.entry(link).or_insert(self.next_index);
        }
    }
}

impl Machine for FakeMachine {
    fn view(&mut self) -> anyhow::Result<View> {
        anyhow::ensure!(!self.broken, "out of memory");
        self.number_links();
        let host = &self.kernel.state().netns[&Netns::Host];
        Ok(View { links: host.links.keys().cloned().collect(), has_ipv6: true, ..View::default() })
    }

    fn has_address(&mut self, _: std::net::IpAddr) -> bool {
        !self.lacks_address
    }

    fn has_netns(&mut self, name: &str) -> bool {
        self.kernel.state().netns.contains_key(&Netns::Named(name.to_owned()))
    }

    fn observe(&mut self, desired: &KernelState) -> anyhow::Result<KernelState> {
        self.observations += 1;
        Ok(self.kernel.observe(desired))
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<anyhow::Result<()>> {
        let results = self.kernel.apply(ops).into_iter().map(|r| Ok(r?)).collect();
        self.number_links();
        results
    }

    fn encode(&mut self, op: &Op) -> anyhow::Result<Vec<u8>> {
        let text = op.to_string();
        // The keeper reads a message's header: its length and its flags.
        let mut message = (HEADER as u32 + text.len() as u32).to_ne_bytes().to_vec();
        message.resize(HEADER, 0);
        message.extend(text.bytes());
        self.encoded.insert(text, op.clone());
        Ok(message)
    }

    fn link_index(&mut self, netns: &Netns, link: &str) -> anyhow::Result<Option<u32>> {
        Ok(self.indexes.get(&(netns.clone(), link.to_owned())).copied())
    }
}
