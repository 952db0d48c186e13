//! Changes for a standby's kernel, in as few messages as possible, and with what to do when the kernel
//! holds something else than was thought.

use std::collections::BTreeMap;

use evergate_ctsync::{Change, is_valuable};
use evergate_kernel::conntrack::{EBUSY, EEXIST, ENOENT, ENOMEM, FlowOp, describe};
use evergate_model::{Flow, FlowKey};

/// What the kernel did not take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Refusals {
    pub(super) count: u64,
    /// Why the last one.
    pub(super) words: Option<String>,
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
    mut lesser: impl FnMut() -> Option<FlowKey>,
) -> Refusals {
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
    let mut refusals = Refusals::default();
    // An update finds nothing; so it is made; but something is in the way: three attempts at most.
    for _ in 0..3 {
        let failed: Vec<(FlowOp, i32)> = {
            let results = run(&ops);
            ops.iter().zip(results).filter_map(|(op, result)| Some((*op, result.err()?))).collect()
        };
        ops = failed.into_iter().flat_map(|(op, errno)| again(&op, errno, &mut lesser, &mut refusals)).collect();
        if ops.is_empty() {
            return refusals;
        }
    }
    let given_up = ops.iter().filter(|op| matches!(op, FlowOp::Create(_))).count() as u64;
    refusals.count += given_up;
    refusals.words.get_or_insert_with(|| "something else keeps coming into its place".to_owned());
    refusals
}

/// What to try instead.
fn again(
    op: &FlowOp,
    errno: i32,
    lesser: &mut impl FnMut() -> Option<FlowKey>,
    refusals: &mut Refusals,
) -> Vec<FlowOp> {
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
        (FlowOp::Create(_) | FlowOp::Update(_), _) => {
            // Either this one or the one that gives way.
            refusals.count += 1;
            refusals.words = Some(describe(errno));
            match *op {
                FlowOp::Create(flow) if errno == ENOMEM && is_valuable(&flow) => {
                    lesser().map_or_else(Vec::new, |key| vec![FlowOp::Delete(key), FlowOp::Create(flow)])
                }
                FlowOp::Create(_) | FlowOp::Update(_) | FlowOp::Delete(_) | FlowOp::SetTimeout(..) => Vec::new(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
                FlowOp::Delete(key) => {
                    if let Some(at) = self.holder(&key.original) {
                        self.flows.remove(at);
                    }
                }
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
        Flow {
            original,
            reply: Tuple { src: original.dst, dst: [203, 0, 113, 1].into(), l4, ..original },
            zone: 0,
            status: status::CONFIRMED,
            timeout_s: 100,
            tcp: None,
            mark: 0,
            labels: [0; 16],
            sequence_adjustment: [None; 2],
        }
    }

    fn put(flow: Flow, known: bool) -> Change {
        Change::Put { flow, known, replace: false }
    }

    #[test]
    fn what_is_left_from_an_earlier_time_gives_way_to_whoever_has_its_external_port_now() {
        let mut table = Table { flows: vec![flow(1, 2000), flow(2, 2001), flow(3, 2002)], attempts: 0 };
        // The second has another name and the port of the first, the third the name of one and the port of another.
        let changes = [put(flow(4, 2000), false), put(flow(3, 2001), false), put(flow(5, 2005), false)];
        let refusals = apply(&changes, |ops| table.run(ops), || None);
        assert_eq!(refusals, Refusals::default());
        table.flows.sort_by_key(Flow::key);
        assert_eq!(table.flows, [flow(3, 2001), flow(4, 2000), flow(5, 2005)]);
    }

    #[test]
    fn a_port_that_moves_from_one_connection_to_another_is_set_free_first() {
        let mut table = Table { flows: vec![flow(9, 2000)], attempts: 0 };
        let changes = [Change::Delete(flow(9, 2000).key()), put(flow(1, 2000), false)];
        assert_eq!(apply(&changes, |ops| table.run(ops), || None), Refusals::default());
        assert_eq!((table.flows, table.attempts), (vec![flow(1, 2000)], 1));
    }

    #[test]
    fn what_was_to_be_changed_and_is_gone_is_made_even_if_something_took_its_place() {
        let mut table = Table { flows: vec![flow(7, 2000), flow(8, 2008)], attempts: 0 };
        let assured = Flow { status: status::CONFIRMED | status::ASSURED, ..flow(8, 2008) };
        assert_eq!(apply(&[put(assured, true)], |ops| table.run(ops), || None), Refusals::default());
        // One that is further than what is told is another connection of the same name.
        assert_eq!(
            apply(&[put(flow(1, 2000), true), put(flow(8, 2008), true)], |ops| table.run(ops), || None).count,
            0
        );
        table.flows.sort_by_key(Flow::key);
        assert_eq!(table.flows, [flow(1, 2000), flow(8, 2008)]);
    }

    #[test]
    fn a_full_table_is_told_of_and_not_asked_again() {
        let mut attempts = 0;
        let refusals = apply(
            &[put(flow(1, 1), false), put(flow(2, 2), true)],
            |ops| {
                attempts += 1;
                ops.iter().map(|_| Err(12)).collect()
            },
            || None,
        );
        assert_eq!((refusals.count, attempts), (2, 1));
        assert!(refusals.words.unwrap().contains("full"));
    }

    #[test]
    fn in_a_full_table_connections_in_use_take_the_places_of_attempts() {
        let in_use = |client, port| Flow { status: status::CONFIRMED | status::ASSURED, ..flow(client, port) };
        let mut table = Table { flows: vec![flow(1, 2001), in_use(2, 2002), flow(3, 2003)], ..Table::default() };
        let mut lesser = vec![flow(3, 2003).key(), flow(1, 2001).key()];
        // Room for three. One is new, of one it was thought that it is there, and one is an attempt itself.
        let run = |ops: &[FlowOp]| -> Vec<Result<(), i32>> {
            ops.iter()
                .map(|op| match op {
                    FlowOp::Create(_) if table.flows.len() >= 3 => Err(ENOMEM),
                    FlowOp::Create(_) | FlowOp::Update(_) | FlowOp::Delete(_) | FlowOp::SetTimeout(..) => table.one(op),
                })
                .collect()
        };
        let changes = [
            put(in_use(4, 2004), false),
            put(in_use(5, 2005), true),
            put(flow(6, 2006), false),
            put(in_use(7, 2007), false),
        ];
        let refusals = apply(&changes, run, || lesser.pop());
        assert_eq!(refusals.count, 4, "two gave way, and two have no room");
        table.flows.sort_by_key(Flow::key);
        let all_in_use = table.flows.iter().all(|flow| flow.has(status::ASSURED));
        assert!(all_in_use && table.flows.len() == 3 && lesser.is_empty(), "{:#?}", table.flows);
    }
}
