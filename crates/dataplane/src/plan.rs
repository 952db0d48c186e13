//! What is to be done, in order, and what was refused.
//!
//! A plan has three phases, so that whoever reads or interrupts it knows what traffic notices:
//! **build** makes what nobody uses yet, **switch** lets traffic use it, **remove** takes away what is
//! no longer used. Printing a plan is the dry run; applying it means applying
//! exactly [`Plan::ops`], in this order.

use std::fmt;

use crate::op::Op;
use crate::state::Netns;

/// Ordered ops that bring a kernel from what it is to what it must be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Makes namespaces and links, and what they need before they may be up.
    pub build: Vec<Op>,
    /// Changes what traffic meets: rules, addresses, routes, forwarding, settings of existing links.
    pub switch: Vec<Op>,
    /// Removes what nothing needs any more.
    pub remove: Vec<Op>,
}

impl Plan {
    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts the ops.
    pub fn len(&self) -> usize {
        self.build.len() + self.switch.len() + self.remove.len()
    }

    /// Walks over all ops in the order of application.
    pub fn ops(&self) -> impl Iterator<Item = &Op> {
        self.build.iter().chain(&self.switch).chain(&self.remove)
    }

    /// Takes all ops out, in the order of application.
    pub fn into_ops(self) -> Vec<Op> {
        [self.build, self.switch, self.remove].concat()
    }
}

/// An object that stands where one of ours must be, and was not made by Evergate: it is left alone,
/// and so is everything of ours that needs its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Where it is.
    pub netns: Netns,
    /// What it is, such as `link brq1f2e…`.
    pub object: String,
    /// Why it is refused, and what to do about it.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.netns {
            Netns::Host => write!(f, "{}: {}", self.object, self.reason),
            Netns::Named(name) => write!(f, "{} in namespace {name}: {}", self.object, self.reason),
        }
    }
}
