//! Links and namespaces go in groups.
//!
//! Unregistering a link waits for an RCU grace period, with the kernel's network lock held: tens of
//! milliseconds on a busy host, in which the keeper, too, waits for that lock. The wait is the same for one
//! link and for a thousand that are deleted by one request, so links are put into a group of their own
//! (`ip link set … group`) and that is deleted.

use evergate_dataplane::Netns;

use crate::error::Cause;
use crate::kernel::{Kernel, is_ours};
use crate::route::link::{self, Target};

/// Bit that keeps our group numbers away from those that people choose.
const GROUP_BASE: u32 = 1 << 30;

impl Kernel {
    /// Deletes links of one namespace; result i belongs to link i. One that is gone already is no failure.
    pub(crate) fn delete_links(&mut self, netns: &Netns, links: &[Target<'_>]) -> Vec<Result<(), Cause>> {
        let group = GROUP_BASE | self.unused_index();
        let mut messages: Vec<_> = links.iter().map(|link| link::set_group(*link, group)).collect();
        messages.push(link::delete_group(group));
        let route = match self.space(netns) {
            Ok(space) => &mut space.route,
            Err(_) => return links.iter().map(|_| Ok(())).collect(),
        };
        let mut answers = route.exchange(&mut messages);
        let together = answers.pop().map_or(Ok(()), gone_is_fine);
        let settle = |(link, answer): (&Target<'_>, Result<(), Cause>)| match gone_is_fine(answer) {
            Ok(()) if together.is_ok() => Ok(()),
            // One link that cannot be deleted keeps the whole group: hardware, for instance.
            Ok(()) => {
                let mut messages = [link::set_group(*link, 0), link::delete(*link)];
                route.exchange(&mut messages).into_iter().try_for_each(gone_is_fine)
            }
            Err(cause) => Err(cause),
        };
        links.iter().zip(answers).map(settle).collect()
    }

    /// Deletes namespaces that carry our mark, with our links in them; result i belongs to name i.
    ///
    /// A namespace itself lives until the last socket and process in it are gone, perhaps the keeper's.
    /// Our links must not, as their other ends are in the host's bridges.
    pub(crate) fn delete_namespaces(&mut self, names: &[String]) -> Vec<Result<(), Cause>> {
        let mut taps = Vec::new();
        let mut results: Vec<_> = names.iter().map(|name| self.find_taps(name, &mut taps)).collect();
        let taps: Vec<_> = taps.into_iter().map(Target::Index).collect();
        if !taps.is_empty() {
            // What fails here is tried again from the other side.
            self.delete_links(&Netns::Host, &taps);
        }
        for (name, result) in names.iter().zip(&mut results) {
            if result.is_ok() {
                *result = self.delete_namespace(name);
            }
        }
        results
    }

    /// Collects the links in the host's namespace that lead into this one of ours.
    fn find_taps(&mut self, name: &str, taps: &mut Vec<u32>) -> Result<(), Cause> {
        let netns = Netns::Named(name.to_owned());
        let links = match self.links(&netns) {
            Ok(links) => links,
            Err(Cause::NoNetns(_)) => return Ok(()),
            Err(cause) => return Err(cause),
        };
        if !links.iter().any(|link| link.is_loopback && is_ours(link)) {
            return Err(Cause::InTheWay("Evergate did not make it".to_owned()));
        }
        let host = self.netns_number(&netns, &Netns::Host)?;
        let to_host = links.iter().filter(|link| link.kind == "veth" && host.is_some() && link.peer_netns == host);
        taps.extend(to_host.filter(|link| is_ours(link)).filter_map(|link| link.peer_index));
        Ok(())
    }

    /// Deletes what is left of our links in a namespace, and its name.
    fn delete_namespace(&mut self, name: &str) -> Result<(), Cause> {
        let netns = Netns::Named(name.to_owned());
        match self.links(&netns) {
            Ok(links) => {
                let ours = links.iter().filter(|link| is_ours(link) && !link.is_loopback);
                let ours: Vec<_> = ours.map(|link| Target::Index(link.index)).collect();
                if !ours.is_empty() {
                    // Whatever cannot be deleted here goes with the namespace.
                    self.delete_links(&netns, &ours);
                }
            }
            // Nothing, or the file that an interrupted creation left.
            Err(Cause::NoNetns(_)) => {}
            Err(cause) => return Err(cause),
        }
        self.close(&netns);
        self.directory.delete(name)
    }

    /// By which number a namespace knows another one, if it does.
    pub(crate) fn netns_number(&mut self, netns: &Netns, other: &Netns) -> Result<Option<i32>, Cause> {
        let request = link::get_netns_number(&self.space(other)?.netns);
        self.space(netns)?.route.netns_number(request)
    }
}

fn gone_is_fine(answer: Result<(), Cause>) -> Result<(), Cause> {
    match answer {
        Err(Cause::Kernel(refusal)) if refusal.errno == libc::ENODEV => Ok(()),
        answer => answer,
    }
}
