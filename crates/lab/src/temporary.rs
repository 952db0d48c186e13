//! A lab for as long as a value lives: what a test or a measurement builds, and leaves nothing of.
//!
//! Owned: what [`Lab`] owns. [`Traces`] is how one looks, from outside, whether anything of a lab is left on the
//! machine; other labs, of the same process or of another one, are no part of it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::spec::{Spec, netns_prefix};
use crate::{Lab, procs};

/// Lines of each daemon's log that are printed with a failure: all that a machine that is gone afterwards leaves.
const LAST_LINES: usize = 25;

/// A lab that is taken down when this is dropped, however that comes about.
///
/// A thread that panics has the ends of the daemons' logs printed before.
#[derive(Debug)]
pub struct Temporary(Lab);

impl Temporary {
    /// Builds a lab as [`Lab::up`] does, in a folder of its own.
    ///
    /// # Errors
    ///
    /// As [`Lab::up`]; nothing stands then, and the ends of the logs were printed.
    pub fn up(spec: Spec) -> Result<Self> {
        Self::built(&spec.name.clone(), |dir| Lab::up(spec, Some(dir)))
    }

    /// Builds the nodes and wires alone.
    ///
    /// # Errors
    ///
    /// As [`Temporary::up`].
    pub fn up_without_daemons(spec: Spec) -> Result<Self> {
        Self::built(&spec.name.clone(), |dir| Lab::up_without_daemons(spec, Some(dir)))
    }

    fn built(name: &str, build: impl FnOnce(&Path) -> Result<Lab>) -> Result<Self> {
        let dir = Self::folder(name);
        build(&dir).map(Self).inspect_err(|_| {
            print_logs(&dir);
            if let Err(error) = Lab::down(name, Some(&dir), false) {
                eprintln!("lab '{name}' could not be taken down: {error:#}");
            }
        })
    }

    /// Where such a lab keeps its files.
    pub fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("evergate-lab-{name}"))
    }
}

impl Deref for Temporary {
    type Target = Lab;

    fn deref(&self) -> &Lab {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            print_logs(self.dir());
        }
        if let Err(error) = Lab::down(&self.spec().name, Some(self.dir()), false) {
            // A second panic would end the process, and hide the first.
            assert!(panicking, "lab '{}' could not be taken down: {error:#}", self.spec().name);
            eprintln!("lab '{}' could not be taken down: {error:#}", self.spec().name);
        }
    }
}

fn print_logs(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir.join("log")) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        eprintln!("--- the end of {}", path.display());
        for line in lines.iter().skip(lines.len().saturating_sub(LAST_LINES)) {
            eprintln!("{line}");
        }
    }
}

/// What there is of one lab on the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Named network namespaces.
    pub namespaces: BTreeSet<String>,
    /// Mounts, as `/proc/self/mounts` has them.
    pub mounts: BTreeSet<String>,
    /// Arguments of processes that name the lab, its folder or its namespaces.
    pub processes: BTreeSet<String>,
    /// Links in the machine's own namespace that are called as the lab's nodes: a wire that lost its way.
    pub wires: BTreeSet<String>,
    /// Its folder, if it is there.
    pub folder: Option<PathBuf>,
}

impl Traces {
    /// Looks for what there is of the lab of this plan in this folder.
    ///
    /// # Errors
    ///
    /// The machine does not let itself be looked at.
    pub fn of(spec: &Spec, dir: &Path) -> Result<Self> {
        let prefix = netns_prefix(&spec.name);
        let folder = dir.to_string_lossy();
        let ours = |text: &str| text.contains(&prefix) || text.contains(&*folder);
        let nodes: BTreeSet<String> = spec.nodes().iter().map(ToString::to_string).collect();
        let mounts = fs::read_to_string("/proc/self/mounts").context("failed to list mounts")?;
        Ok(Self {
            namespaces: names_in("/run/netns").filter(|name| name.starts_with(&prefix)).collect(),
            mounts: mounts.lines().filter(|line| ours(line)).map(ToOwned::to_owned).collect(),
            processes: procs::all_args().into_iter().filter(|args| ours(args)).collect(),
            wires: names_in("/sys/class/net").filter(|name| nodes.contains(name)).collect(),
            folder: dir.exists().then(|| dir.to_owned()),
        })
    }

    /// Tells whether there is nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a folder has; nothing, where it does not exist.
fn names_in(folder: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}
