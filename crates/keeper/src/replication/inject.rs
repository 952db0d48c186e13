//! Changes for a standby's kernel, in as few messages as possible, and with what to do when the kernel
//! holds something else than was thought.

use std::collections::BTreeMap;

use evergate_ctsync::Change;
use evergate_kernel::conntrack::{EBUSY, EEXIST, ENOENT, FlowOp, FlowTable, describe};
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

/// Carries changes out.
pub(super) fn apply(table: &mut FlowTable, changes: &[Change]) -> Refusals {
    let mut ops = Vec::with_capacity(changes.len());
    for (key, fate) in fates(changes) {
        match fate {
            Fate::Put { flow, replace: true, .. } => ops.extend([FlowOp::Delete(key), FlowOp::Create(flow)]),
            Fate::Put { flow, known: true, .. } => ops.push(FlowOp::Update(flow)),
            Fate::Put { flow, .. } => ops.push(FlowOp::Create(flow)),
            Fate::Delete => ops.push(FlowOp::Delete(key)),
            Fate::Expire(seconds) => ops.push(FlowOp::SetTimeout(key, seconds)),
        }
    }
    let results = table.apply(&ops);
    let failed = ops.iter().zip(results).filter_map(|(op, result)| Some((op, result.err()?)));
    let mut refusals = Refusals::default();
    let second: Vec<FlowOp> = failed.flat_map(|(op, errno)| again(op, errno, &mut refusals)).collect();
    if !second.is_empty() {
        for (op, result) in second.iter().zip(table.apply(&second)) {
            if let (FlowOp::Create(_) | FlowOp::Update(_), Err(errno)) = (op, result) {
                refusals.count += 1;
                refusals.words = Some(describe(errno));
            }
        }
    }
    refusals
}

/// What to try instead.
fn again(op: &FlowOp, errno: i32, refusals: &mut Refusals) -> Vec<FlowOp> {
    match (*op, errno) {
        // It was there, from an earlier time, perhaps with another translation.
        (FlowOp::Create(flow), EEXIST) => vec![FlowOp::Delete(flow.key()), FlowOp::Create(flow)],
        // It was forgotten meanwhile.
        (FlowOp::Update(flow), ENOENT) => vec![FlowOp::Create(flow)],
        // It is an earlier connection of the same name, and further than this one.
        (FlowOp::Update(flow), EBUSY) => vec![FlowOp::Delete(flow.key()), FlowOp::Create(flow)],
        (FlowOp::Delete(_) | FlowOp::SetTimeout(..), _) => Vec::new(),
        (FlowOp::Create(_) | FlowOp::Update(_), _) => {
            refusals.count += 1;
            refusals.words = Some(describe(errno));
            Vec::new()
        }
    }
}
