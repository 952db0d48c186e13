//! The file system's part: which files there are, and what the machine is called.

use std::path::PathBuf;

use crate::config::Sources;
use crate::finding::{Finding, Level};

/// Lists the files to read, in the order in which later ones win.
pub(crate) fn paths(sources: &Sources) -> (Vec<PathBuf>, Vec<Finding>) {
    let mut paths = sources.files.clone();
    let mut findings = Vec::new();
    for dir in &sources.dirs {
        match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            Ok(entries) => {
                let mut found: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
                // As a shell's *.conf: hidden files are not meant.
                found.retain(|p| {
                    let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                    name.ends_with(".conf") && !name.starts_with('.')
                });
                found.sort();
                paths.extend(found);
            }
            Err(error) => {
                let text = format!("failed to read configuration directory {}: {error}", dir.display());
                findings.push(Finding::new(Level::Error, None, text));
            }
        }
    }
    (paths, findings)
}

/// Tells what the machine is called.
pub(crate) fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}
