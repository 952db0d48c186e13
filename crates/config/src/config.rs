//! Files in, one [`Config`] out: which value counts, variables in it, and every complaint at once.
//!
//! Which value counts is decided as oslo.config does: the last file that has the option wins; within a
//! file the present name comes before an older one, and of a repeated key the last. Variables
//! (`$state_path`, `${group.name}`) are looked up in the option's own section, then in `[DEFAULT]`.
//!
//! Deviation: oslo.config looks for a section as it is written before it folds case, over all files;
//! here case is folded at once, so `[AGENT]` in a later file wins over `[agent]` in an earlier one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::check;
use crate::finding::{Finding, Level, Location, Refused};
use crate::options::{Default, OPTIONS, Opt, Role, User, find, foreign_section, normal_section};
use crate::similar;
use crate::token::{Token, Tokens, tokenize};
use crate::value::{Kind, Value};

/// The files to read, in the order of the command line; directories come after files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `--config-file`, possibly several.
    pub files: Vec<PathBuf>,
    /// `--config-dir`, possibly several: every `*.conf` in it, sorted by name.
    pub dirs: Vec<PathBuf>,
}

/// The effective configuration of one daemon.
#[derive(Clone, Debug)]
pub struct Config {
    role: Role,
    settings: BTreeMap<(&'static str, &'static str), Setting>,
    findings: Vec<Finding>,
}

/// One option's effective value.
#[derive(Clone, Debug)]
struct Setting {
    opt: &'static Opt,
    /// `None`: unset, and without a default.
    value: Option<Value>,
    /// As it may be shown.
    shown: String,
    /// `None`: the default.
    origin: Option<Location>,
}

/// A file, read and taken apart.
struct File {
    path: Arc<Path>,
    tokens: Tokens,
}

impl Config {
    /// Reads the files for a daemon.
    ///
    /// # Errors
    ///
    /// Everything that keeps the daemon from starting: files that cannot be read, lines that cannot be
    /// parsed, values that are impossible.
    pub fn load(sources: &Sources, role: Role) -> Result<Self, Refused> {
        let (paths, mut findings) = crate::load::paths(sources);
        let mut texts = Vec::new();
        for path in paths {
            match std::fs::read_to_string(&path) {
                Ok(text) => texts.push((path, text)),
                Err(error) => {
                    let text = format!("failed to read configuration file {}: {error}", path.display());
                    findings.push(Finding::new(Level::Error, None, text));
                }
            }
        }
        Self::from_texts(&texts, &crate::load::hostname(), role, findings).inspect_err(|refused| {
            // The errors are the caller's to tell; a warning beside them may be what explains them.
            refused.0.iter().filter(|f| f.level == Level::Warning).for_each(Finding::log);
        })
    }

    /// Makes the configuration from texts that were read already, under the names of their files.
    ///
    /// # Errors
    ///
    /// As [`Config::load`]; `findings` are complaints about the reading itself.
    pub fn from_texts(
        texts: &[(PathBuf, String)],
        hostname: &str,
        role: Role,
        mut findings: Vec<Finding>,
    ) -> Result<Self, Refused> {
        let files: Vec<File> =
            texts.iter().map(|(path, text)| File { path: Arc::from(path.as_path()), tokens: tokenize(text) }).collect();
        for file in &files {
            remark_on(file, &mut findings);
        }
        let resolver = Resolver { files: &files, hostname };
        let settings = OPTIONS.iter().map(|opt| ((opt.section, opt.name), resolver.setting(opt, role, &mut findings)));
        let mut config = Self { role, settings: settings.collect(), findings };
        check::all(&mut config);
        config.findings.sort_by(|a, b| (a.level, &a.at).cmp(&(b.level, &b.at)));
        if config.findings.iter().any(|f| f.level == Level::Error) {
            return Err(Refused(config.findings));
        }
        Ok(config)
    }

    /// Gives all there is to say about the files, the gravest first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Logs the findings.
    pub fn log(&self) {
        for finding in &self.findings {
            finding.log();
        }
    }

    /// Tells which daemon this configures.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Prints the whole effective configuration, itself a file that can be read (except for secrets).
    pub fn effective(&self) -> String {
        let mut out = String::new();
        let used: Vec<&Setting> = self.settings.values().filter(|s| s.opt.is_used_by(self.role)).collect();
        let mut sections: Vec<&str> = used.iter().map(|s| s.opt.section).collect();
        sections.dedup();
        for section in sections {
            let of_section = || used.iter().filter(|s| s.opt.section == section);
            let _ = writeln!(out, "[{section}]");
            for setting in of_section() {
                if let Some(at) = &setting.origin {
                    let _ = writeln!(out, "# {at}\n{} = {}", setting.opt.name, setting.shown);
                }
            }
            if of_section().any(|s| s.origin.is_none()) {
                let _ = writeln!(out, "# defaults");
            }
            for setting in of_section().filter(|s| s.origin.is_none()) {
                let unset = if setting.value.is_none() { "# " } else { "" };
                let _ = writeln!(out, "{unset}{} = {}", setting.opt.name, setting.shown);
            }
            out.push('\n');
        }
        let inert: Vec<&Finding> = self.findings.iter().filter(|f| f.level >= Level::Info).collect();
        if !inert.is_empty() {
            let _ = writeln!(out, "# What else there is to say:");
        }
        for finding in inert {
            let _ = writeln!(out, "# {finding}");
        }
        out
    }

    /// Tells whether a file sets the option.
    pub(crate) fn is_given(&self, section: &str, name: &str) -> bool {
        self.setting(section, name).origin.is_some()
    }

    pub(crate) fn value(&self, section: &str, name: &str) -> Option<&Value> {
        self.setting(section, name).value.as_ref()
    }

    /// Complains about an option's value, where it was given.
    pub(crate) fn complain(&mut self, level: Level, section: &str, name: &str, why: String) {
        let text = format!("option '{name}' in section [{section}]: {why}");
        let at = self.setting(section, name).origin.clone();
        self.findings.push(Finding::new(level, at, text));
    }

    fn setting(&self, section: &str, name: &str) -> &Setting {
        let of_option = self.settings.iter().find(|((s, n), _)| *s == section && *n == name);
        of_option.map(|(_, setting)| setting).expect("only options of the table are asked for")
    }
}

/// Complains about what a file says regardless of what counts in the end.
fn remark_on(file: &File, findings: &mut Vec<Finding>) {
    let at = |line| Some(Location { path: Arc::clone(&file.path), line });
    for fault in &file.tokens.faults {
        findings.push(Finding::new(Level::Error, at(fault.line), fault.text.clone()));
    }
    for doubt in &file.tokens.doubts {
        findings.push(Finding::new(Level::Warning, at(doubt.line), doubt.text.clone()));
    }
    for token in &file.tokens.items {
        match token {
            Token::Section { name, line } => {
                if let Some((level, text)) = remark_on_section(name) {
                    findings.push(Finding::new(level, at(*line), text));
                }
            }
            Token::Assignment { section, key, line, .. } => {
                if is_known_section(section) && find(section, key).is_none() {
                    findings.push(Finding::new(Level::Warning, at(*line), unknown_option(section, key)));
                }
            }
        }
    }
}

fn is_known_section(section: &str) -> bool {
    let section = normal_section(section);
    OPTIONS.iter().any(|o| o.section == section)
}

fn remark_on_section(name: &str) -> Option<(Level, String)> {
    if is_known_section(name) {
        return None;
    }
    if let Some(why) = foreign_section(name) {
        return Some((Level::Debug, format!("section [{name}] has no effect: {why}")));
    }
    let hint = similar::closest(name, OPTIONS.iter().map(|o| o.section)).map(|s| format!(" (did you mean [{s}]?)"));
    Some((Level::Warning, format!("unknown section [{name}]{}", hint.unwrap_or_default())))
}

fn unknown_option(section: &str, key: &str) -> String {
    let folded = normal_section(section);
    let names = OPTIONS.iter().filter(|o| o.section == folded).map(|o| o.name);
    let hint = match OPTIONS.iter().find(|o| o.name == key) {
        Some(elsewhere) => format!(" (it belongs in [{}])", elsewhere.section),
        None => similar::closest(key, names).map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default(),
    };
    format!("unknown option '{key}' in section [{section}]{hint}")
}

/// Decides what counts.
struct Resolver<'a> {
    files: &'a [File],
    hostname: &'a str,
}

/// A text with its variables filled in.
struct Filled {
    text: String,
    /// A secret went into it.
    secret: bool,
}

impl Resolver<'_> {
    fn setting(&self, opt: &'static Opt, role: Role, findings: &mut Vec<Finding>) -> Setting {
        let given = self.given(opt);
        let origin = given.as_ref().map(|g| g.at.clone());
        if let Some(given) = &given {
            findings.extend(given.remarks(opt, role));
        }
        let mut setting = Setting { opt, value: None, shown: String::new(), origin: origin.clone() };
        if matches!((opt.user, opt.kind), (User::Nobody(_), kind) if kind != Kind::Bool) {
            // Whatever it says has no effect, so nothing in it can be wrong.
            return setting;
        }
        let parsed = self.filled(opt, &mut Vec::new()).and_then(|filled| match filled {
            Some(filled) => {
                let shown = if filled.secret { Kind::Secret } else { opt.kind }.shown(&filled.text);
                opt.kind.parse(&filled.text).map(|value| Some((value, shown)))
            }
            None => Ok(None),
        });
        match parsed {
            Ok(Some((value, shown))) => {
                setting.value = Some(value);
                setting.shown = shown;
            }
            Ok(None) => {}
            Err(why) => {
                let text = format!("option '{}' in section [{}]: {why}", opt.name, opt.section);
                findings.push(Finding::new(Level::Error, origin, text));
            }
        }
        setting
    }

    /// Finds the assignment that counts.
    fn given(&self, opt: &Opt) -> Option<Given<'_>> {
        let names = || std::iter::once(&opt.name).chain(opt.older);
        self.files.iter().rev().find_map(|file| names().find_map(|name| last_in(file, opt.section, name)))
    }

    /// Gives an option's text with variables filled in; `on_the_way` are the options that asked for it.
    fn filled(&self, opt: &Opt, on_the_way: &mut Vec<(&'static str, &'static str)>) -> Result<Option<Filled>, String> {
        let text = match (self.given(opt), opt.default) {
            (Some(given), _) => given.value,
            (None, Default::Text(text)) => text,
            (None, Default::Hostname) => return Ok(Some(Filled { text: self.hostname.to_owned(), secret: false })),
            (None, Default::Unset) => return Ok(None),
        };
        if on_the_way.contains(&(opt.section, opt.name)) {
            return Err(format!("the variable ${} leads back to itself", opt.name));
        }
        let mut filled = Filled { text: String::new(), secret: opt.kind == Kind::Secret };
        for piece in pieces(text) {
            match piece {
                Piece::Text(text) => filled.text.push_str(text),
                Piece::Variable(name) => {
                    let variable = variable(opt.section, name).ok_or_else(|| {
                        format!("there is no option '{name}' to put in its place (write $$ for a dollar sign)")
                    })?;
                    on_the_way.push((opt.section, opt.name));
                    let inner = self.filled(variable, on_the_way)?;
                    on_the_way.pop();
                    if let Some(inner) = inner {
                        filled.text.push_str(&inner.text);
                        filled.secret |= inner.secret;
                    }
                }
            }
        }
        Ok(Some(filled))
    }
}

/// Finds what a variable in a value of `section` stands for.
fn variable(section: &str, name: &str) -> Option<&'static Opt> {
    match name.split_once('.') {
        Some((group, option)) => find(group, option),
        None => find(section, name).or_else(|| find("DEFAULT", name)),
    }
}

/// The assignment that counts, and others in the same file.
struct Given<'a> {
    key: &'a str,
    value: &'a str,
    at: Location,
    /// Lines of the same file that this one overrides.
    overridden: Vec<u32>,
}

impl Given<'_> {
    fn remarks(&self, opt: &Opt, role: Role) -> Vec<Finding> {
        let mut remarks = Vec::new();
        let mut say = |level, text| remarks.push(Finding::new(level, Some(self.at.clone()), text));
        let place = format!("option '{}' in section [{}]", self.key, opt.section);
        if self.key != opt.name {
            say(Level::Debug, format!("{place} is an older name of '{}'", opt.name));
        }
        for line in &self.overridden {
            say(Level::Info, format!("{place} counts, and not what line {line} says"));
        }
        match opt.user {
            User::Nobody(why) => say(Level::Debug, format!("{place} has no effect: {why}")),
            // Whoever asks for it must learn that they do not get it; whoever repeats the default does.
            User::NotYet(why) => {
                let default = if let Default::Text(text) = opt.default { opt.kind.parse(text).ok() } else { None };
                let asked = opt.kind.parse(self.value).ok() != default;
                say(if asked { Level::Info } else { Level::Debug }, format!("{place} has no effect: {why}"));
            }
            User::Server if role == Role::Host => say(Level::Debug, format!("{place} concerns the server")),
            User::Host if role == Role::Server => say(Level::Debug, format!("{place} concerns the hosts")),
            User::Server | User::Host | User::Both => {}
        }
        remarks
    }
}

fn last_in<'a>(file: &'a File, section: &str, name: &str) -> Option<Given<'a>> {
    let mut found: Option<Given<'a>> = None;
    for token in &file.tokens.items {
        let Token::Assignment { section: in_section, key, value, line } = token else { continue };
        if key != name || normal_section(in_section) != section {
            continue;
        }
        let mut overridden = Vec::new();
        if let Some(before) = found.take() {
            overridden = before.overridden;
            overridden.push(before.at.line);
        }
        found = Some(Given { key, value, at: Location { path: Arc::clone(&file.path), line: *line }, overridden });
    }
    found
}

/// A part of a value.
enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

/// Takes a value apart at its variables, by the rules of Python's `string.Template`: `$name`,
/// `${name}`, `$$` for a dollar sign; oslo.config adds `\$` for one.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        let after = &from[1..];
        if let Some(before) = before.strip_suffix('\\') {
            pieces.extend([Piece::Text(before), Piece::Text("$")]);
            rest = after;
            continue;
        }
        pieces.push(Piece::Text(before));
        if let Some(after) = after.strip_prefix('$') {
            pieces.push(Piece::Text("$"));
            rest = after;
        } else if let Some((name, after)) = braced(after).or_else(|| bare(after)) {
            pieces.push(Piece::Variable(name));
            rest = after;
        } else {
            pieces.push(Piece::Text("$"));
            rest = after;
        }
    }
    pieces.push(Piece::Text(rest));
    pieces
}

fn braced(text: &str) -> Option<(&str, &str)> {
    let (name, after) = text.strip_prefix('{')?.split_once('}')?;
    bare(name).filter(|(_, rest)| rest.is_empty()).map(|_| (name, after))
}

fn bare(text: &str) -> Option<(&str, &str)> {
    let begins = text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    let end = text.find(|c: char| !(c == '_' || c == '.' || c.is_ascii_alphanumeric())).unwrap_or(text.len());
    begins.then(|| text.split_at(end))
}

#[cfg(test)]
mod tests;
