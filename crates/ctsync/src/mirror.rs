//! A standby's side of one router: what it was told, and what its kernel must be told because of that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use evergate_model::flow::{Flow, FlowKey, Tuple};

use crate::table::{hash, is_valuable};

/// A stream that was silent for this long (three checks) gives way to any other.
pub(crate) const SILENT: Duration = Duration::from_secs(15);

/// Flows that a new active copy does not know are kept for this long: should the change of copies be a
/// short mistake, they are used again, which renews them.
const LEFT_OVER_S: u32 = 120;

/// What a standby's kernel must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The flow is so.
    Put {
        /// The flow.
        flow: Flow,
        /// Whether there should be an entry of it.
        known: bool,
        /// That entry is another connection's, with another translation: it must go first.
        replace: bool,
    },
    /// There is no such flow any more.
    Delete(FlowKey),
    /// Nobody vouches for the flow: forget it after so many seconds unless it is used.
    Expire(FlowKey, u32),
}

#[derive(Clone, Copy, Debug)]
struct Known {
    reply: Tuple,
    generation: u32,
    valuable: bool,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    peer: IpAddr,
    generation: u32,
    epoch: u64,
    heard: Instant,
    /// The first check was seen.
    complete: bool,
    /// The sender is the same as before, so what it does not mention is gone.
    same_sender: bool,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Fine,
    /// Ask this peer to begin anew.
    Resubscribe,
}

/// The flows of one router that this host stands by for.
#[derive(Debug, Default)]
pub(crate) struct Mirror {
    known: BTreeMap<FlowKey, Known>,
    /// Those of them that are in the kernel, and give way where there is no room: attempts and ends.
    lesser: BTreeSet<FlowKey>,
    /// Those of them that the kernel had no room for.
    missing: BTreeSet<FlowKey>,
    digest: u64,
    /// Whether what the kernel held from an earlier time is known.
    listed: bool,
    stream: Option<Stream>,
    /// The streams asked for.
    pub(crate) tokens: BTreeMap<IpAddr, u32>,
    pub(crate) resyncs: u64,
}

impl Mirror {
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.stream.is_some_and(|stream| stream.complete)
    }

    /// Of a copy that has told of these flows until now, and has them in its kernel.
    pub(crate) fn of<'a>(flows: impl Iterator<Item = &'a Flow>) -> Self {
        let mut mirror = Self { listed: true, ..Self::default() };
        flows.for_each(|flow| mirror.find(flow));
        mirror
    }

    /// What the kernel holds; what was not told of is from an earlier time. That may be found out when something was
    /// told already; what a stream should have mentioned by then is let go of.
    pub(crate) fn handle_listing(&mut self, flows: &[Flow]) -> Vec<Change> {
        self.listed = true;
        let unknown: Vec<&Flow> = flows.iter().filter(|flow| !self.known.contains_key(&flow.key())).collect();
        if self.is_complete() {
            return unknown.into_iter().map(|flow| Change::Expire(flow.key(), LEFT_OVER_S)).collect();
        }
        unknown.into_iter().for_each(|flow| self.find(flow));
        Vec::new()
    }

    /// The kernel holds a flow that no stream has mentioned.
    fn find(&mut self, flow: &Flow) {
        self.remember(flow, 0);
        self.note_place(flow.key());
    }

    /// Whether what the kernel held from an earlier time is known.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    /// What should be in the kernel.
    pub(crate) fn in_kernel(&self) -> impl Iterator<Item = FlowKey> {
        self.known.keys().filter(|key| !self.missing.contains(key)).copied()
    }

    /// Takes what came of changes: what they put is in the kernel now, but for what is missing.
    pub(crate) fn injected(&mut self, changes: &[Change], missing: &BTreeSet<FlowKey>) {
        for change in changes {
            if let Change::Put { flow, .. } = change
                && !missing.contains(&flow.key())
            {
                self.note_place(flow.key());
            }
        }
        for key in missing.iter().filter(|key| self.known.contains_key(key)) {
            self.lesser.remove(key);
            self.missing.insert(*key);
        }
    }

    /// A flow is in the kernel.
    fn note_place(&mut self, key: FlowKey) {
        let Some(known) = self.known.get(&key) else { return };
        self.missing.remove(&key);
        if !known.valuable {
            self.lesser.insert(key);
        }
    }

    pub(crate) fn missing(&self) -> usize {
        self.missing.len()
    }

    fn remember(&mut self, flow: &Flow, generation: u32) -> Option<Known> {
        let (key, valuable) = (flow.key(), is_valuable(flow));
        if valuable {
            self.lesser.remove(&key);
        }
        let before = self.known.insert(key, Known { reply: flow.reply, generation, valuable });
        if before.is_none() {
            self.digest = self.digest.wrapping_add(hash(&key));
        }
        before
    }

    fn forget(&mut self, key: &FlowKey) -> bool {
        self.lesser.remove(key);
        self.missing.remove(key);
        let gone = self.known.remove(key).is_some();
        if gone {
            self.digest = self.digest.wrapping_sub(hash(key));
        }
        gone
    }

    /// Names a flow that is in the kernel, as far as is known, and may go so that one that matters more has room; each
    /// once, until it changes.
    pub(crate) fn take_lesser(&mut self) -> Option<FlowKey> {
        self.lesser.pop_first()
    }

    pub(crate) fn begin(&mut self, peer: IpAddr, token: u32, generation: u32, epoch: u64, now: Instant) {
        if self.tokens.get(&peer) != Some(&token) {
            return;
        }
        let old = self.stream;
        let rival = old.is_some_and(|old| old.peer != peer && old.epoch > epoch && now < old.heard + SILENT);
        if rival {
            return;
        }
        let same_sender = old.is_some_and(|old| old.peer == peer && old.epoch == epoch);
        self.stream = Some(Stream { peer, generation, epoch, heard: now, complete: false, same_sender });
    }

    fn is_from_stream(&mut self, peer: IpAddr, generation: u32, now: Instant) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let fits = stream.peer == peer && stream.generation == generation;
        if fits {
            stream.heard = now;
        }
        fits
    }

    pub(crate) fn put(&mut self, peer: IpAddr, generation: u32, flow: Flow, now: Instant) -> Option<Change> {
        if !self.is_from_stream(peer, generation, now) {
            return None;
        }
        let before = self.remember(&flow, generation);
        let replace = before.is_some_and(|before| before.reply != flow.reply);
        Some(Change::Put { flow, known: before.is_some(), replace })
    }

    pub(crate) fn delete(&mut self, peer: IpAddr, generation: u32, key: FlowKey, now: Instant) -> Option<Change> {
        if !self.is_from_stream(peer, generation, now) {
            return None;
        }
        self.forget(&key);
        Some(Change::Delete(key))
    }

    pub(crate) fn check(
        &mut self,
        peer: IpAddr,
        generation: u32,
        (count, digest): (u64, u64),
        now: Instant,
    ) -> (Vec<Change>, Verdict) {
        if !self.is_from_stream(peer, generation, now) {
            // Another copy streams, and this one was not listened to. If the other has fallen silent, it is
            // this one's turn.
            let silent = self.stream.is_none_or(|stream| stream.heard + SILENT <= now);
            return (Vec::new(), if silent { Verdict::Resubscribe } else { Verdict::Fine });
        }
        let changes = self.sweep(generation);
        let agrees = (self.known.len() as u64, self.digest) == (count, digest);
        if !agrees {
            self.resyncs += 1;
        }
        (changes, if agrees { Verdict::Fine } else { Verdict::Resubscribe })
    }

    /// Lets go of what a completed stream did not mention.
    fn sweep(&mut self, generation: u32) -> Vec<Change> {
        let Some(stream) = self.stream.as_mut().filter(|stream| !stream.complete) else { return Vec::new() };
        stream.complete = true;
        let same_sender = stream.same_sender;
        let unmentioned: Vec<FlowKey> =
            self.known.iter().filter(|(_, known)| known.generation != generation).map(|(key, _)| *key).collect();
        let let_go = |key| if same_sender { Change::Delete(key) } else { Change::Expire(key, LEFT_OVER_S) };
        for key in &unmentioned {
            self.forget(key);
        }
        unmentioned.into_iter().map(let_go).collect()
    }

    /// The peer's process is another one now: its streams are over.
    pub(crate) fn peer_restarted(&mut self, peer: IpAddr) {
        self.tokens.remove(&peer);
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.peer == peer) {
            // Whoever speaks next is listened to.
            stream.epoch = 0;
            stream.generation = 0;
        }
    }
}
