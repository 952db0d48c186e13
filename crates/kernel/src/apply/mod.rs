//! Ops to messages, and messages in few sends.
//!
//! Consecutive ops of one sort and one namespace gather in a [`Batch`]; an op that does not fit it, or that
//! needs to know the outcome of a gathered one, lets it be carried out first. Whatever the order of ops
//! means is thereby kept.

mod links;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use evergate_dataplane::nft::NftTable;
use evergate_dataplane::state::{Link, Route};
use evergate_dataplane::{Netns, Op};

use crate::error::{Cause, Error};
use crate::kernel::Kernel;
use crate::nft::{self, Links};
use crate::route::link::Target;
use crate::route::{address, neighbour, routes, rule};
use crate::socket::is_already_so;
use links::NewLink;
use words::{describe, is_removal, links_of};

/// Applies a list of ops.
pub(crate) struct Run<'a> {
    kernel: &'a mut Kernel,
    ops: &'a [Op],
    results: Vec<Result<(), Error>>,
    batch: Batch,
    /// What link names stand for, as far as it was looked up in this run.
    indexes: BTreeMap<(Netns, String), u32>,
}

/// What is to be carried out next. Everything in it comes with the number of its op.
#[derive(Debug, Default)]
enum Batch {
    #[default]
    Nothing,
    /// Messages for one namespace.
    Messages(Netns, Messages),
    /// Paths and values of kernel settings.
    Settings(Netns, Vec<(usize, String, String)>),
    /// Names of links to delete.
    Links(Netns, Vec<(usize, String)>),
    /// Names of namespaces to delete.
    Namespaces(Vec<(usize, String)>),
}

#[derive(Debug, Default)]
struct Messages {
    messages: Vec<(usize, Vec<u8>)>,
    /// What is left to do in other namespaces once an op has succeeded in this one.
    elsewhere: Vec<(usize, Netns, Vec<Vec<u8>>)>,
    /// The ops that make links.
    creating: Vec<usize>,
    /// The links that they make.
    unsettled: BTreeSet<(Netns, String)>,
}

impl<'a> Run<'a> {
    pub(crate) fn new(kernel: &'a mut Kernel, ops: &'a [Op]) -> Self {
        let results = ops.iter().map(|_| Ok(())).collect();
        Self { kernel, ops, results, batch: Batch::Nothing, indexes: BTreeMap::new() }
    }

    pub(crate) fn apply(mut self) -> Vec<Result<(), Error>> {
        for (number, op) in self.ops.iter().enumerate() {
            match self.gather(number, op) {
                Ok(()) => {}
                // With the link or the namespace went all that was on it.
                Err(Cause::NoLink(_) | Cause::NoNetns(_)) if is_removal(op) => {}
                Err(cause) => self.fail(number, cause),
            }
        }
        self.flush();
        self.results
    }

    /// Adds the op to the batch, or carries it out.
    fn gather(&mut self, number: usize, op: &Op) -> Result<(), Cause> {
        match op {
            Op::AddNetns { name, alias } => {
                self.flush();
                self.kernel.add_netns(name, alias)
            }
            Op::DeleteNetns { name } => {
                if !matches!(self.batch, Batch::Namespaces(_)) {
                    self.flush_for(Batch::Namespaces(Vec::new()));
                }
                let Batch::Namespaces(names) = &mut self.batch else { unreachable!("made just now") };
                names.push((number, name.clone()));
                Ok(())
            }
            Op::DeleteLink { netns, name } => {
                if !matches!(&self.batch, Batch::Links(gathered, _) if gathered == netns) {
                    self.flush_for(Batch::Links(netns.clone(), Vec::new()));
                }
                let Batch::Links(_, links) = &mut self.batch else { unreachable!("made just now") };
                links.push((number, name.clone()));
                Ok(())
            }
            Op::SetSysctl { netns, path, value } => {
                check_path(path)?;
                if !matches!(&self.batch, Batch::Settings(gathered, _) if gathered == netns) {
                    self.flush_for(Batch::Settings(netns.clone(), Vec::new()));
                }
                let Batch::Settings(_, settings) = &mut self.batch else { unreachable!("made just now") };
                settings.push((number, path.clone(), value.clone()));
                Ok(())
            }
            Op::ReplaceNft { netns, table } => {
                self.flush();
                self.replace_nft(netns, table)
            }
            Op::DeleteNft { netns, family } => {
                self.flush();
                self.send_nft(netns, nft::delete(*family))
            }
            Op::AddLink { netns, .. }
            | Op::SetLink { netns, .. }
            | Op::AddAddress { netns, .. }
            | Op::DeleteAddress { netns, .. }
            | Op::AddRoute { netns, .. }
            | Op::DeleteRoute { netns, .. }
            | Op::AddRule { netns, .. }
            | Op::DeleteRule { netns, .. }
            | Op::SetNeighbour { netns, .. }
            | Op::DeleteNeighbour { netns, .. }
            | Op::SetFdb { netns, .. }
            | Op::DeleteFdb { netns, .. } => self.gather_messages(number, op, netns),
        }
    }

    /// A device that is missing is left out of the table, and told.
    fn replace_nft(&mut self, netns: &Netns, table: &NftTable) -> Result<(), Cause> {
        let (mut links, mut missing) = (Links::new(), None);
        for device in table.devices() {
            match self.kernel.link(netns, device)? {
                Some(link) => drop(links.insert(device.to_owned(), link.index)),
                None => missing = missing.or_else(|| Some(device.to_owned())),
            }
        }
        let Some(missing) = missing else { return self.send_nft(netns, nft::replace(table, &links)?) };
        let rest = table.without_devices(|device| !links.contains_key(device));
        self.send_nft(netns, nft::replace(&rest, &links)?)?;
        Err(Cause::NoLink(missing))
    }

    fn send_nft(&mut self, netns: &Netns, batch: nft::Batch) -> Result<(), Cause> {
        let socket = self.kernel.space(netns)?.nft.as_mut();
        batch.send(socket.ok_or_else(|| Cause::Invalid("this kernel has no nftables".to_owned()))?)
    }

    /// Adds an op that is a message, or several.
    fn gather_messages(&mut self, number: usize, op: &Op, netns: &Netns) -> Result<(), Cause> {
        let fits = match &self.batch {
            // What a link that is being made will be known by shows once it is made.
            Batch::Messages(gathered, messages) => {
                gathered == netns
                    && (messages.unsettled.is_empty()
                        || !links_of(op).iter().any(|link| messages.unsettled.contains(link)))
            }
            Batch::Nothing | Batch::Settings(..) | Batch::Links(..) | Batch::Namespaces(_) => false,
        };
        if !fits {
            self.flush_for(Batch::Messages(netns.clone(), Messages::default()));
        }
        let new = NewLink::of(number, op).transpose()?;
        let (here, there) = match (new, op) {
            (Some(new), _) => {
                let making = self.making(new)?;
                (making.here, making.there)
            }
            (None, Op::SetLink { name, change, .. }) => (self.changing(netns, name, change)?, None),
            (None, op) => (vec![self.encode(op)?], None),
        };
        let Batch::Messages(_, batch) = &mut self.batch else { unreachable!("made above, and not flushed since") };
        batch.messages.extend(here.into_iter().map(|message| (number, message)));
        batch.elsewhere.extend(there.map(|(netns, messages)| (number, netns, messages)));
        if let Some(new) = new {
            batch.creating.push(number);
            batch.unsettled.extend(new.ends());
        }
        Ok(())
    }

    /// The message of an op about something on a link.
    fn encode(&mut self, op: &Op) -> Result<Vec<u8>, Cause> {
        Ok(match op {
            Op::AddAddress { netns, address } => address::add(self.index(netns, &address.link)?, address),
            Op::DeleteAddress { netns, address } => address::delete(self.index(netns, &address.link)?, address.net),
            Op::AddRoute { netns, route } => routes::add(route, self.route_link(netns, route)?)?,
            Op::DeleteRoute { netns, route } => routes::delete(route, self.route_link(netns, route)?)?,
            Op::AddRule { rule, .. } => rule::add(rule)?,
            Op::DeleteRule { rule, .. } => rule::delete(rule)?,
            Op::SetNeighbour { netns, link, ip, mac } => neighbour::set(self.index(netns, link)?, *ip, *mac),
            Op::DeleteNeighbour { netns, link, ip } => neighbour::delete(self.index(netns, link)?, *ip),
            Op::SetFdb { netns, entry } => neighbour::set_fdb(self.index(netns, &entry.link)?, entry.mac, &entry.table),
            Op::DeleteFdb { netns, entry } => {
                neighbour::delete_fdb(self.index(netns, &entry.link)?, entry.mac, &entry.table)
            }
            Op::AddNetns { .. }
            | Op::DeleteNetns { .. }
            | Op::AddLink { .. }
            | Op::SetLink { .. }
            | Op::DeleteLink { .. }
            | Op::SetSysctl { .. }
            | Op::ReplaceNft { .. }
            | Op::DeleteNft { .. } => return Err(Cause::Invalid("it is not a single message".to_owned())),
        })
    }

    fn route_link(&mut self, netns: &Netns, route: &Route) -> Result<Option<u32>, Cause> {
        route.link.as_ref().map(|link| self.index(netns, link)).transpose()
    }

    /// Index of a link that must exist.
    fn index(&mut self, netns: &Netns, name: &str) -> Result<u32, Cause> {
        let key = (netns.clone(), name.to_owned());
        if let Some(index) = self.indexes.get(&key) {
            return Ok(*index);
        }
        let link = self.kernel.link(netns, name)?.ok_or_else(|| Cause::NoLink(name.to_owned()))?;
        self.indexes.insert(key, link.index);
        Ok(link.index)
    }

    fn master(&mut self, netns: &Netns, link: &Link) -> Result<Option<u32>, Cause> {
        link.master.as_ref().map(|master| self.index(netns, master)).transpose()
    }

    fn flush_for(&mut self, next: Batch) {
        self.flush();
        self.batch = next;
    }

    /// Carries out what was gathered, and distributes the answers.
    fn flush(&mut self) {
        match std::mem::take(&mut self.batch) {
            Batch::Nothing => {}
            Batch::Messages(netns, messages) => self.flush_messages(&netns, messages),
            Batch::Settings(netns, settings) => self.write_settings(&netns, &settings),
            Batch::Links(netns, links) => {
                // Of a veth, the other end goes as well, whatever its name is.
                self.indexes.clear();
                let targets: Vec<_> = links.iter().map(|(_, name)| Target::Name(name)).collect();
                let results = self.kernel.delete_links(&netns, &targets);
                self.distribute(links.iter().map(|(number, _)| *number), results);
            }
            Batch::Namespaces(names) => {
                self.indexes.clear();
                let (numbers, names): (Vec<_>, Vec<_>) = names.into_iter().unzip();
                let results = self.kernel.delete_namespaces(&names);
                self.distribute(numbers, results);
            }
        }
    }

    fn distribute(&mut self, numbers: impl IntoIterator<Item = usize>, results: Vec<Result<(), Cause>>) {
        for (number, result) in numbers.into_iter().zip(results) {
            if let Err(cause) = result {
                self.fail(number, cause);
            }
        }
    }

    fn flush_messages(&mut self, netns: &Netns, batch: Messages) {
        self.send(netns, batch.messages);
        let failed: Vec<usize> = batch.creating.into_iter().filter(|number| self.results[*number].is_err()).collect();
        failed.iter().for_each(|number| self.retry_link(*number));
        // One send per namespace, again. (A retried link was settled on the way.)
        let mut elsewhere: BTreeMap<Netns, Vec<(usize, Vec<u8>)>> = BTreeMap::new();
        for (number, netns, messages) in batch.elsewhere {
            if !failed.contains(&number) {
                let messages = messages.into_iter().map(|message| (number, message));
                elsewhere.entry(netns).or_default().extend(messages);
            }
        }
        for (netns, messages) in elsewhere {
            self.send(&netns, messages);
        }
    }

    fn send(&mut self, netns: &Netns, messages: Vec<(usize, Vec<u8>)>) {
        if messages.is_empty() {
            return;
        }
        let (numbers, mut messages): (Vec<_>, Vec<_>) = messages.into_iter().unzip();
        let answers = match self.kernel.space(netns) {
            Ok(space) => space.route.exchange(&mut messages),
            Err(_) => messages.iter().map(|_| Err(Cause::NoNetns(netns.to_string()))).collect(),
        };
        for ((number, message), answer) in numbers.into_iter().zip(&messages).zip(answers) {
            match answer {
                Ok(()) => {}
                Err(Cause::Kernel(refusal)) if is_already_so(message, refusal.errno) => {}
                Err(Cause::NoNetns(_)) if is_removal(&self.ops[number]) => {}
                Err(cause) => self.fail(number, cause),
            }
        }
    }

    /// Sends messages of one op.
    fn send_all(&mut self, number: usize, netns: &Netns, messages: Vec<Vec<u8>>) {
        self.send(netns, messages.into_iter().map(|message| (number, message)).collect());
    }

    /// Keeps the first failure of an op: the others follow from it.
    fn fail(&mut self, number: usize, cause: Cause) {
        if self.results[number].is_ok() {
            self.results[number] = Err(Error::new(describe(&self.ops[number]), cause));
        }
    }

    /// Settings are files that show the namespace of the thread that opens them, so one thread goes there
    /// and writes all.
    fn write_settings(&mut self, netns: &Netns, settings: &[(usize, String, String)]) {
        let write = |(_, path, value): &(usize, String, String)| {
            fs::write(format!("/proc/sys/net/{path}"), value).map_err(Cause::Io)
        };
        let numbers = settings.iter().map(|(number, ..)| *number);
        let space = match self.kernel.space(netns) {
            Ok(space) => space,
            Err(_) => return numbers.for_each(|number| self.fail(number, Cause::NoNetns(netns.to_string()))),
        };
        match space.netns.inside(|| settings.iter().map(write).collect()) {
            Ok(results) => self.distribute(numbers, results),
            Err(error) => {
                let cause = || Cause::Invalid(format!("its namespace cannot be entered: {error}"));
                numbers.for_each(|number| self.fail(number, cause()));
            }
        }
    }
}

/// The message of one op, for later.
pub(crate) fn encode_one(kernel: &mut Kernel, op: &Op) -> Result<Vec<u8>, Error> {
    Run::new(kernel, &[]).encode(op).map_err(|cause| Error::new(format!("prepare to {}", describe(op)), cause))
}

/// A setting's path must stay below `/proc/sys/net`.
fn check_path(path: &str) -> Result<(), Cause> {
    if path.is_empty() || path.starts_with('/') || path.split('/').any(|part| part == ".." || part.is_empty()) {
        return Err(Cause::Invalid(format!("'{path}' is not a path below /proc/sys/net")));
    }
    Ok(())
}
