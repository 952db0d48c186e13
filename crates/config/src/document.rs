//! The table of options as a page for people: `docs/configuration.md` is what this prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::options::{Default, FOREIGN_SECTIONS, OPTIONS, Opt, User};
use crate::value::Kind;

const INTRODUCTION: &str = "\
# Configuration

`evergate server` and `evergate host` read files in oslo.config's format: the ones that a Neutron deployment has, as
they stand. `--config-file FILE` may be repeated, and later files win; `--config-dir DIR` adds every `*.conf` in it,
sorted by name. Without any file the defaults run. Evergate's own options are in section `[evergate]` of the same files.

`--check-config` prints the whole effective configuration with the file and line that each value comes from, and stops.
Secrets are not shown. An unknown option is a warning with file and line; an impossible value is an error with file and
line, all errors are told at once, and the daemon does not start.

- A value may use others: `$state_path/x`, `${agent.availability_zone}`; `$$` is a dollar sign.
- A line that begins with a blank continues the value above it. Comments begin with `#` or `;` at the start of a line;
  there are none behind a value.
- Case does not matter in the names of sections, except that `[DEFAULT]` is written so.

This page is made from the table in `crates/config/src/options.rs`; a test keeps the two equal.
";

/// Prints the page.
pub fn page() -> String {
    let mut page = INTRODUCTION.to_owned();
    let daemons = [("the server", User::Server), ("the hosts", User::Host), ("both", User::Both)];
    for (who, user) in daemons {
        let _ = writeln!(page, "\n## Options of {who}\n\n| section | option | default | meaning |\n|---|---|---|---|");
        for opt in OPTIONS.iter().filter(|o| o.user == user) {
            let _ = writeln!(
                page,
                "| `[{}]` | {} | {} | {}{} |",
                opt.section,
                names(opt),
                default(opt),
                opt.help,
                values(opt.kind)
            );
        }
    }
    page.push_str("\n## Checked, but without effect yet\n\n| section | option | default | why |\n|---|---|---|---|\n");
    for opt in OPTIONS {
        if let User::NotYet(why) = opt.user {
            let _ = writeln!(page, "| `[{}]` | {} | {} | {}. |", opt.section, names(opt), default(opt), capital(why));
        }
    }
    page.push_str(
        "\n## Accepted without effect\n\nDeployments have these in their files; here they change nothing.\n\n",
    );
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for opt in OPTIONS {
        if let User::Nobody(why) = opt.user {
            reasons.entry(why).or_default().push(format!("`[{}] {}`", opt.section, opt.name));
        }
    }
    for (section, why) in FOREIGN_SECTIONS {
        reasons.entry(why).or_default().push(format!("all of `[{section}]`"));
    }
    for (why, options) in reasons {
        let _ = writeln!(page, "- {}: {}", capital(why), options.join(", "));
    }
    page
}

fn names(opt: &Opt) -> String {
    let older: Vec<String> = opt.older.iter().map(|name| format!("`{name}`")).collect();
    let older = if older.is_empty() { String::new() } else { format!(" (older name: {})", older.join(", ")) };
    format!("`{}`{older}", opt.name)
}

fn default(opt: &Opt) -> String {
    match opt.default {
        Default::Unset => String::new(),
        Default::Text("") => "empty".to_owned(),
        Default::Text(text) => format!("`{text}`"),
        Default::Hostname => "the machine's name".to_owned(),
    }
}

/// What values an option takes, where its meaning does not say.
fn values(kind: Kind) -> String {
    let words = |words: &[&str]| {
        let words: Vec<String> = words.iter().filter(|w| !w.is_empty()).map(|w| format!("`{w}`")).collect();
        words.join(", ")
    };
    match kind {
        Kind::Choice(choices) => format!(" One of {}.", words(choices)),
        Kind::ListOf(choices) => format!(" Any of {}, separated by commas.", words(choices)),
        Kind::List => " Separated by commas.".to_owned(),
        Kind::Int(min, max) if max < i64::from(u16::MAX) => format!(" {min} to {max}."),
        Kind::VniRanges => " `first:last` pairs, separated by commas.".to_owned(),
        Kind::Bool
        | Kind::Int(..)
        | Kind::Seconds(_)
        | Kind::Text
        | Kind::Secret
        | Kind::Path
        | Kind::Url
        | Kind::Mapping
        | Kind::Mtus
        | Kind::Ip
        | Kind::Ipv4Cidr
        | Kind::Mac => String::new(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
