//! Where VXLAN forwarding entries lead, as the keeper finds and changes it: by nexthop objects, so that many
//! entries move by one message.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use evergate_dataplane::state::FdbTable;
use evergate_model::Mac;

use super::BatchSocket;
use crate::error::{Cause, Error};
use crate::route::neighbour::{dump_fdb, read_fdb};
use crate::route::nexthop::{self, Kind, RawNexthop};
use crate::wire::Frames;

/// Ids of nexthop objects that are Evergate's: two for each path, its leaf's and its group's.
const FIRST_ID: u32 = 0x4556_0000;

/// So many paths there can be.
pub const PATHS: u16 = 1 << 14;

/// The path by which the kernel is asked whether it can do all this.
const PROBE: u16 = PATHS;

/// What there is of it in the host's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundPaths {
    /// Ours, by number: where each leads.
    pub paths: BTreeMap<u16, IpAddr>,
    /// Numbers that cannot be used, because somebody else has an id of theirs.
    pub taken: BTreeSet<u16>,
    /// Entries of VXLAN devices, by device and address, and the path that each points at; `None` for one that
    /// names a tunnel address itself.
    pub entries: BTreeMap<(u32, Mac), Option<u16>>,
}

/// Looks for paths; `None` where the kernel has no nexthop objects for forwarding entries.
pub fn find_paths(socket: &mut BatchSocket) -> Result<Option<FoundPaths>, Error> {
    let probe = [path_message(PROBE, IpAddr::from([192, 0, 2, 1])), group_message(PROBE)];
    let works = socket.send_batch(&probe).iter().all(Result::is_ok);
    socket.send_batch(&remove_messages(PROBE));
    if !works {
        return Ok(None);
    }
    let list = |cause: Cause| Error::new("list nexthop objects", cause);
    let objects = socket.0.dump(nexthop::dump()).map_err(list)?;
    let objects: Vec<RawNexthop> = Frames(&objects).filter_map(|frame| nexthop::read(frame.payload)).collect();
    let entries = socket.0.dump(dump_fdb()).map_err(|cause| Error::new("list forwarding entries", cause))?;
    let mut found = sort_out(&objects);
    for entry in Frames(&entries).filter_map(|frame| read_fdb(frame.payload)).filter(|entry| entry.mac != Mac::ZERO) {
        let path = match entry.table {
            FdbTable::Nexthop { group } => number_of(group),
            FdbTable::Vxlan { .. } => None,
            FdbTable::Bridge | FdbTable::BridgeSticky => continue,
        };
        found.entries.insert((entry.index, entry.mac), path);
    }
    Ok(Some(found))
}

/// Where each group of ours leads, by its id; nothing where the kernel has no nexthop objects.
pub fn list_paths(socket: &mut BatchSocket) -> Result<BTreeMap<u32, IpAddr>, Error> {
    let objects = match socket.0.dump(nexthop::dump()) {
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::EOPNOTSUPP => return Ok(BTreeMap::new()),
        objects => objects.map_err(|cause| Error::new("list nexthop objects", cause))?,
    };
    let objects: Vec<RawNexthop> = Frames(&objects).filter_map(|frame| nexthop::read(frame.payload)).collect();
    Ok(sort_out(&objects).paths.into_iter().map(|(number, to)| (group_id(number), to)).collect())
}

/// A path is whole with both objects. What is half of one, or anybody else's, keeps its number from being used
/// unless making it anew would mend it.
fn sort_out(objects: &[RawNexthop]) -> FoundPaths {
    let mut found = FoundPaths::default();
    let groups: BTreeSet<u16> = objects
        .iter()
        .filter_map(|object| number_of(object.id).filter(|n| object.what == Kind::Group(leaf_id(*n))))
        .collect();
    for object in objects {
        let Some(number) = number_of(object.id) else { continue };
        match object.what {
            Kind::Leaf(to) if object.id == leaf_id(number) => {
                if groups.contains(&number) {
                    found.paths.insert(number, to);
                }
            }
            Kind::Group(leaf) if object.id == group_id(number) && leaf == leaf_id(number) => {}
            Kind::Leaf(_) | Kind::Group(_) | Kind::Foreign => {
                found.taken.insert(number);
            }
        }
    }
    found.paths.retain(|number, _| !found.taken.contains(number));
    found
}

fn leaf_id(number: u16) -> u32 {
    FIRST_ID + 2 * u32::from(number)
}

fn group_id(number: u16) -> u32 {
    leaf_id(number) + 1
}

fn number_of(id: u32) -> Option<u16> {
    id.checked_sub(FIRST_ID).map(|offset| offset / 2).filter(|number| *number <= u32::from(PATHS)).map(|n| n as u16)
}

/// The message that makes a path's leaf, or lets it lead elsewhere: **the** message of a failover.
pub fn path_message(number: u16, to: IpAddr) -> Vec<u8> {
    nexthop::set_leaf(leaf_id(number), to)
}

/// The message that makes a path's group, which entries point at. The leaf comes before it.
pub fn group_message(number: u16) -> Vec<u8> {
    nexthop::set_group(group_id(number), leaf_id(number))
}

/// The messages that remove a path, with the entries that point at it.
pub fn remove_messages(number: u16) -> [Vec<u8>; 2] {
    [nexthop::delete(group_id(number)), nexthop::delete(leaf_id(number))]
}

/// Where an entry is that points at a path.
pub fn path_table(number: u16) -> FdbTable {
    FdbTable::Nexthop { group: group_id(number) }
}

/// The path that an entry points at, if it is one of ours.
pub fn path_of(table: &FdbTable) -> Option<u16> {
    match table {
        FdbTable::Nexthop { group } => number_of(*group),
        FdbTable::Bridge | FdbTable::BridgeSticky | FdbTable::Vxlan { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_foreigners_are_no_paths() {
        let to = IpAddr::from([192, 0, 2, 9]);
        let object = |id, what| RawNexthop { id, what };
        let found = sort_out(&[
            object(leaf_id(1), Kind::Leaf(to)),
            object(group_id(1), Kind::Group(leaf_id(1))),
            object(leaf_id(2), Kind::Leaf(to)),
            object(leaf_id(3), Kind::Foreign),
            object(leaf_id(4), Kind::Leaf(to)),
            object(group_id(4), Kind::Group(77)),
            object(77, Kind::Leaf(to)),
        ]);
        assert_eq!(found.paths, BTreeMap::from([(1, to)]));
        assert_eq!(found.taken, BTreeSet::from([3, 4]));
    }

    #[test]
    fn numbers_and_ids_belong_together() {
        for number in [0, 1, PATHS] {
            assert_eq!([leaf_id(number), group_id(number)].map(number_of), [Some(number); 2]);
        }
        assert_eq!(number_of(FIRST_ID - 1), None);
        assert_eq!(number_of(group_id(PATHS) + 1), None);
        assert_eq!(path_of(&path_table(5)), Some(5));
    }
}
