//! Changes for a standby's kernel, in as few messages as possible, and with what to do when the kernel
//! holds something else than was thought.

use std::collections::{BTreeMap, BTreeSet};

use evergate_ctsync::{Change, is_valuable};
use evergate_kernel::conntrack::{EBUSY, EEXIST, ENOENT, ENOMEM, FlowOp, describe};
use evergate_model::{Flow, FlowKey};

/// Attempts at most: an update finds nothing, so it is made, but something is in the way.
const ATTEMPTS: usize = 3;

/// What is not in the kernel although it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Flows that it did not take, and those that gave way to others.
    pub(super) flows: BTreeSet<FlowKey>,
    /// Why it did not take one.
    pub(super) words: Option<String>,
}

impl Missing {
    fn add(&mut self, flow: &Flow, words: impl FnOnce() -> String) {
        self.flows.insert(flow.key());
        self.words.get_or_insert_with(words);
    }
}

/// What is to become of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Put { flow: Flow, known: bool, replace: bool },
    Delete,
    Expire(u32),
}

/// Only the last change of each flow matters; with one exception: what was removed and came back is another
/// connection.
fn fates(changes: &[Change]) -> BTreeMap<FlowKey, Fate> {
    let mut fates = BTreeMap::new();
    for change in changes {
        match *change {
            Change::Put { flow, known, replace } => {
                let fate = match fates.get(&flow.key()) {
                    None => Fate::Put { flow, known, replace },
                    Some(Fate::Put { known: before, replace: replaced, .. }) => {
                        Fate::Put { flow, known: *before, replace: replace || *replaced }
                    }
                    Some(Fate::Delete | Fate::Expire(_)) => Fate::Put { flow, known: true, replace: true },
                };
                fates.insert(flow.key(), fate);
            }
            Change::Delete(key) => drop(fates.insert(key, Fate::Delete)),
            Change::Expire(key, seconds) => drop(fates.insert(key, Fate::Expire(seconds))),
        }
    }
    fates
}

/// Carries changes out; `run` attempts each of a list of operations. In a full table, connections in use take the
/// places of those that `lesser` names.
pub(super) fn apply(
    changes: &[Change],
    mut run: impl FnMut(&[FlowOp]) -> Vec<Result<(), i32>>,
    lesser: impl FnMut() -> Option<FlowKey>,
) -> Missing {
    let fates = fates(changes);
    let mut ops = Vec::with_capacity(fates.len());
    // First what goes: it may hold the external port of one that comes.
    ops.extend(fates.iter().filter(|(_, fate)| **fate == Fate::Delete).map(|(key, _)| FlowOp::Delete(*key)));
    for (key, fate) in fates {
        match fate {
            Fate::Put { flow, replace: true, .. } => ops.extend([FlowOp::Delete(key), FlowOp::Create(flow)]),
            Fate::Put { flow, known: true, .. } => ops.push(FlowOp::Update(flow)),
            Fate::Put { flow, .. } => ops.push(FlowOp::Create(flow)),
            Fate::Delete => {}
            Fate::Expire(seconds) => ops.push(FlowOp::SetTimeout(key, seconds)),
        }
    }
    let mut missing = Missing::default();
    let mut homeless = attempt(ops, &mut run, &mut missing);
    if homeless.is_empty() {
        return missing;
    }
    let places = make_room(homeless.len(), &mut run, lesser, &mut missing);
    let without = homeless.split_off(places.min(homeless.len()));
    let left = attempt(homeless.into_iter().map(FlowOp::Create).collect(), &mut run, &mut missing);
    for flow in without.into_iter().chain(left) {
        missing.add(&flow, || describe(ENOMEM));
    }
    missing
}

/// Attempts operations, and what follows from their failures; yields connections in use that there is no room for.
fn attempt(
    mut ops: Vec<FlowOp>,
    run: &mut impl FnMut(&[FlowOp]) -> Vec<Result<(), i32>>,
    missing: &mut Missing,
) -> Vec<Flow> {
    let mut homeless = Vec::new();
    for _ in 0..ATTEMPTS {
        if ops.is_empty() {
            return homeless;
        }
        let results = run(&ops);
        let failed = ops.iter().zip(results).filter_map(|(op, result)| Some((*op, result.err()?)));
        ops = failed.flat_map(|(op, errno)| again(&op, errno, &mut homeless, missing)).collect();
    }
    for op in ops {
        if let FlowOp::Create(flow) = op {
            missing.add(&flow, || "something else keeps coming into its place".to_owned());
        }
    }
    homeless
}

/// What to try instead.
fn again(op: &FlowOp, errno: i32, homeless: &mut Vec<Flow>, missing: &mut Missing) -> Vec<FlowOp> {
    match (*op, errno) {
        // One of its tuples is taken: by an entry of the same name from an earlier time, or by another one that
        // has the same answer, because its external port was free on the active host. Both are of the past:
        // there, this flow is the one that has the two.
        (FlowOp::Create(flow), EEXIST) => vec![
            FlowOp::Delete(flow.key()),
            FlowOp::Delete(FlowKey { zone: flow.zone, original: flow.reply }),
            FlowOp::Create(flow),
        ],
        // It was forgotten meanwhile.
        (FlowOp::Update(flow), ENOENT) => vec![FlowOp::Create(flow)],
        // It is an earlier connection of the same name, and further than this one.
        (FlowOp::Update(flow), EBUSY) => vec![FlowOp::Delete(flow.key()), FlowOp::Create(flow)],
        (FlowOp::Delete(_) | FlowOp::SetTimeout(..), _) => Vec::new(),
        (FlowOp::Create(flow), ENOMEM) if is_valuable(&flow) => {
            homeless.push(flow);
            Vec::new()
        }
        (FlowOp::Create(flow) | FlowOp::Update(flow), _) => {
            missing.add(&flow, || describe(errno));
            Vec::new()
        }
    }
}

/// Removes flows that give way until there are so many places, or no more of them; tells how many places there are.
fn make_room(
    wanted: usize,
    run: &mut impl FnMut(&[FlowOp]) -> Vec<Result<(), i32>>,
    mut lesser: impl FnMut() -> Option<FlowKey>,
    missing: &mut Missing,
) -> usize {
    let mut places = 0;
    while places < wanted {
        let turn: Vec<FlowKey> = std::iter::from_fn(&mut lesser).take(wanted - places).collect();
        if turn.is_empty() {
            break;
        }
        let ops: Vec<FlowOp> = turn.iter().copied().map(FlowOp::Delete).collect();
        // One that has expired meanwhile leaves no place.
        let gone = turn.into_iter().zip(run(&ops)).filter_map(|(key, result)| result.ok().map(|()| key));
        for key in gone {
            places += 1;
            missing.flows.insert(key);
            missing.words.get_or_insert_with(|| describe(ENOMEM));
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use evergate_kernel::conntrack::FlowTable;
    use evergate_kernel::rt::NetnsFd;
    use evergate_kernel::sys;
    use evergate_model::flow::{L4, Tuple, protocol, status};

    /// A table with the kernel's rule: no tuple is in it twice, whichever direction it is of.
    #[derive(Default)]
    struct Table {
        flows: Vec<Flow>,
        attempts: usize,
    }

    impl Table {
        fn holder(&self, tuple: &Tuple) -> Option<usize> {
            self.flows.iter().position(|flow| flow.original == *tuple || flow.reply == *tuple)
        }

        fn run(&mut self, ops: &[FlowOp]) -> Vec<Result<(), i32>> {
            self.attempts += 1;
            ops.iter().map(|op| self.one(op)).collect()
        }

        fn one(&mut self, op: &FlowOp) -> Result<(), i32> {
            match *op {
                FlowOp::Create(flow) => {
                    if self.holder(&flow.original).or(self.holder(&flow.reply)).is_some() {
                        return Err(EEXIST);
                    }
                    self.flows.push(flow);
                }
                FlowOp::Update(flow) => {
                    let at = self.holder(&flow.original).ok_or(ENOENT)?;
                    let lost = self.flows[at].status & !flow.status & status::ASSURED;
                    if lost != 0 {
                        return Err(EBUSY);
                    }
                    self.flows[at] = Flow { reply: self.flows[at].reply, ..flow };
                }
                FlowOp::SetTimeout(key, timeout_s) => {
                    let at = self.holder(&key.original).ok_or(ENOENT)?;
                    self.flows[at].timeout_s = timeout_s;
                }
                FlowOp::Delete(key) => drop(self.flows.remove(self.holder(&key.original).ok_or(ENOENT)?)),
            }
            Ok(())
        }
    }

    fn flow(client: u8, external_port: u16) -> Flow {
        let original = Tuple {
            src: [10, 0, 0, client].into(),
            dst: [198, 51, 100, 1].into(),
            protocol: protocol::TCP,
            l4: L4::Ports { src: 1000, dst: 80 },
        };
        let l4 = L4::Ports { src: 80, dst: external_port };
        let reply = Tuple { src: original.dst, dst: [203, 0, 113, 1].into(), l4, ..original };
        Flow { status: status::CONFIRMED, timeout_s: 100, ..Flow::new(original, reply) }
    }

    fn put(flow: Flow, known: bool) -> Change {
        Change::Put { flow, known, replace: false }
    }

    #[test]
    fn what_is_left_from_an_earlier_time_gives_way_to_whoever_has_its_external_port_now() {
        let mut table = Table { flows: vec![flow(1, 2000), flow(2, 2001), flow(3, 2002)], attempts: 0 };
        // The second has another name and the port of the first, the third the name of one and the port of another.
        let changes = [put(flow(4, 2000), false), put(flow(3, 2001), false), put(flow(5, 2005), false)];
        let missing = apply(&changes, |ops| table.run(ops), || None);
        assert_eq!(missing, Missing::default());
        table.flows.sort_by_key(Flow::key);
        assert_eq!(table.flows, [flow(3, 2001), flow(4, 2000), flow(5, 2005)]);
    }

    #[test]
    fn a_port_that_moves_from_one_connection_to_another_is_set_free_first() {
        let mut table = Table { flows: vec![flow(9, 2000)], attempts: 0 };
        let changes = [Change::Delete(flow(9, 2000).key()), put(flow(1, 2000), false)];
        assert_eq!(apply(&changes, |ops| table.run(ops), || None), Missing::default());
        assert_eq!((table.flows, table.attempts), (vec![flow(1, 2000)], 1));
    }

    #[test]
    fn what_was_to_be_changed_and_is_gone_is_made_even_if_something_took_its_place() {
        let mut table = Table { flows: vec![flow(7, 2000), flow(8, 2008)], attempts: 0 };
        let assured = Flow { status: status::CONFIRMED | status::ASSURED, ..flow(8, 2008) };
        assert_eq!(apply(&[put(assured, true)], |ops| table.run(ops), || None), Missing::default());
        // One that is further than what is told is another connection of the same name.
        let changes = [put(flow(1, 2000), true), put(flow(8, 2008), true)];
        assert_eq!(apply(&changes, |ops| table.run(ops), || None), Missing::default());
        table.flows.sort_by_key(Flow::key);
        assert_eq!(table.flows, [flow(1, 2000), flow(8, 2008)]);
    }

    #[test]
    fn a_full_table_is_told_of_and_not_asked_again() {
        let mut attempts = 0;
        let missing = apply(
            &[put(flow(1, 1), false), put(flow(2, 2), true)],
            |ops| {
                attempts += 1;
                ops.iter().map(|_| Err(12)).collect()
            },
            || None,
        );
        assert_eq!((missing.flows.len(), attempts), (2, 1));
        assert!(missing.words.unwrap().contains("full"));
    }

    fn in_use(client: u8, port: u16) -> Flow {
        Flow { status: status::CONFIRMED | status::ASSURED, ..flow(client, port) }
    }

    /// The same with room for so many.
    fn run_with_room(table: &mut Table, room: usize, ops: &[FlowOp]) -> Vec<Result<(), i32>> {
        let one = |op: &FlowOp| match op {
            FlowOp::Create(_) if table.flows.len() >= room => Err(ENOMEM),
            FlowOp::Create(_) | FlowOp::Update(_) | FlowOp::Delete(_) | FlowOp::SetTimeout(..) => table.one(op),
        };
        ops.iter().map(one).collect()
    }

    #[test]
    fn in_a_full_table_connections_in_use_take_the_places_of_attempts() {
        let mut table = Table { flows: vec![flow(1, 2001), in_use(2, 2002), flow(3, 2003)], ..Table::default() };
        let mut lesser = vec![flow(3, 2003).key(), flow(1, 2001).key()];
        // Of these, one is new, of one it was thought that it is there, and one is an attempt itself.
        let changes = [
            put(in_use(4, 2004), false),
            put(in_use(5, 2005), true),
            put(flow(6, 2006), false),
            put(in_use(7, 2007), false),
        ];
        let missing = apply(&changes, |ops| run_with_room(&mut table, 3, ops), || lesser.pop());
        let expected = [flow(1, 2001), flow(3, 2003), flow(6, 2006), in_use(5, 2005)];
        assert_eq!(missing.flows, expected.map(|flow| flow.key()).into(), "two gave way, and two have no room");
        table.flows.sort_by_key(Flow::key);
        let all_in_use = table.flows.iter().all(|flow| flow.has(status::ASSURED));
        assert!(all_in_use && table.flows.len() == 3 && lesser.is_empty(), "{:#?}", table.flows);
    }

    #[test]
    fn an_attempt_that_is_gone_already_gives_no_place_and_the_next_one_is_asked() {
        let mut table = Table { flows: vec![flow(8, 2008), in_use(9, 2009)], ..Table::default() };
        let mut lesser: Vec<FlowKey> = (1..=8).rev().map(|n| flow(n, 2000 + u16::from(n)).key()).collect();
        let missing = apply(&[put(in_use(10, 2010), false)], |ops| run_with_room(&mut table, 2, ops), || lesser.pop());
        assert_eq!((missing.flows, lesser), ([flow(8, 2008).key()].into(), Vec::new()));
        assert_eq!(table.flows, [in_use(9, 2009), in_use(10, 2010)]);
    }

    /// A kernel's limit is for each namespace, and can be set for all of them alone: so a table is filled as it is.
    /// Needs root.
    #[test]
    fn in_a_kernels_full_table_connections_in_use_take_the_places_of_attempts() {
        // In a namespace that ends with its thread.
        let done = std::thread::spawn(fill_a_table).join();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    fn fill_a_table() {
        const IN_USE: usize = 50;
        let limit = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
        let limit: u32 = limit.trim().parse().unwrap();
        if limit > 1 << 20 {
            eprintln!("not tested: to fill a table of {limit} entries takes too long");
            return;
        }
        sys::unshare(&[sys::Namespace::Net]).expect("tests of this crate must run as root");
        let mut table = FlowTable::open(&NetnsFd::open(Path::new("/proc/thread-self/ns/net")).unwrap()).unwrap();
        let numbered = |n: u32| {
            let mut flow = Flow { timeout_s: 3600, ..flow(1, 1) };
            flow.original.src = (0x0a00_0000 + n).to_be_bytes().into();
            flow.reply.dst = flow.original.src;
            flow
        };
        // The kernel gives up some by itself where it has no room, but only some: it looks at a few chains.
        let (mut made, mut refused) = (Vec::new(), Vec::new());
        for first in (0..).step_by(4096) {
            let batch: Vec<FlowOp> = (first..first + 4096).map(|n| FlowOp::Create(numbered(n))).collect();
            let results = table.apply(&batch);
            for (n, result) in (first..).zip(&results) {
                if result.is_ok() { made.push(n) } else { refused.push(n) }
            }
            if results.iter().all(|result| *result == Err(ENOMEM)) {
                break;
            }
            assert!(first < 2 * limit, "{} attempts are in a table of {limit}: {:?}", made.len(), results.last());
        }
        let mut lesser = refused.into_iter().take(1000).chain(made).map(|n| numbered(n).key());
        let in_use = |n| Flow { status: status::CONFIRMED | status::ASSURED, ..numbered(n) };
        let in_use: Vec<Flow> = (0x0080_0000..).take(IN_USE).map(in_use).collect();
        let changes: Vec<Change> = in_use.iter().map(|flow| put(*flow, false)).collect();
        let missing = apply(&changes, |ops| table.apply(ops), || lesser.next());
        let none = in_use.iter().find(|flow| missing.flows.contains(&flow.key()));
        assert_eq!(none, None, "{:?}", missing.words);
        let there: Vec<FlowOp> = in_use.into_iter().map(FlowOp::Update).collect();
        assert_eq!(table.apply(&there), [Ok(()); IN_USE]);
    }

    #[test]
    fn a_connection_that_finds_no_place_is_missing_once() {
        let mut table = Table { flows: vec![in_use(1, 2001)], ..Table::default() };
        let mut lesser = vec![flow(2, 2002).key(), flow(3, 2003).key()];
        let missing = apply(&[put(in_use(4, 2004), true)], |ops| run_with_room(&mut table, 1, ops), || lesser.pop());
        assert_eq!(missing.flows, [in_use(4, 2004).key()].into());
    }
}
