//! Who may do what: Neutron's default policy as data on actions and attributes, and an operator's overrides.
//!
//! Every action and attribute has a rule by Neutron's name (`create_router:ha`). What it is by default stands
//! beside it in the resource's table, as a [`Rule`]; each of those is a condition in oslo.policy's language
//! ([`Rule::condition`]). A policy file replaces conditions by name ([`names`] lists what there is to replace),
//! and both are decided by the same evaluation ([`check`]).
//!
//! Which *objects* a caller sees is first of all a matter of the store's query ([`Table::scope`]), as in
//! Neutron: an override of `get_x` narrows that and never widens it, except for admins and services. Objects a
//! caller must not know of are "not found"; what it sees and may not do is "forbidden".
//!
//! [`Table::scope`]: crate::attributes::Table::scope

mod check;
mod file;
mod names;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::attributes::{Attribute, Object, Part, Table};
use crate::context::Context;
use crate::error::ApiError;
use check::Check;

pub use file::PolicyError;
pub use watch::{Watched, find, keep_fresh};

/// What a rule is by default: a condition on the caller, given the object it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Whoever may do the action at all.
    Any,
    /// Admins.
    Admin,
    /// Nobody: the attribute exists only for the server. Cannot be overridden.
    Nobody,
    /// Services of the cloud, such as Nova.
    Service,
    /// Admins and services.
    AdminOrService,
    /// Admins, and managers of the object's project.
    Manager,
    /// Admins, and members of the object's project.
    Member,
    /// As [`Rule::Member`], and services.
    MemberOrService,
    /// Admins, and readers of the object's project.
    Reader,
    /// Any reader, of whatever project.
    AnyReader,
    /// As [`Rule::Reader`], and anybody whom the object is shared with.
    ReaderOrGranted,
    /// As [`Rule::Reader`], services, and anybody whom the object is shared with or external for.
    ReaderOrShared,
    /// Admins, services, and readers of the project that owns the object or its network.
    ReaderOrNetworkOwner,
    /// Admins, and members of the project that owns the object's network.
    NetworkOwner,
    /// As [`Rule::NetworkOwner`], and services.
    NetworkOwnerOrService,
    /// As [`Rule::NetworkOwnerOrService`], and any member where the network is shared.
    NetworkOwnerOrShared,
    /// Admins, services, and managers of the project that owns the object's network.
    NetworkManagerOrService,
    /// Admins, and members of the project that owns the object or its network.
    MemberOrNetworkOwner,
    /// As [`Rule::MemberOrNetworkOwner`], except that what another service plugged in is for services and admins
    /// to remove.
    Unplugs,
    /// As [`Rule::NetworkOwnerOrService`], except that a value without the prefix `network:` is free for all.
    NotNetworkDevice,
    /// Anybody, except that only admins name every project at once, as `*`.
    NotEveryProject,
}

impl Rule {
    const ALL: [Self; 21] = [
        Self::Any,
        Self::Admin,
        Self::Nobody,
        Self::Service,
        Self::AdminOrService,
        Self::Manager,
        Self::Member,
        Self::MemberOrService,
        Self::Reader,
        Self::AnyReader,
        Self::ReaderOrGranted,
        Self::ReaderOrShared,
        Self::ReaderOrNetworkOwner,
        Self::NetworkOwner,
        Self::NetworkOwnerOrService,
        Self::NetworkOwnerOrShared,
        Self::NetworkManagerOrService,
        Self::MemberOrNetworkOwner,
        Self::Unplugs,
        Self::NotNetworkDevice,
        Self::NotEveryProject,
    ];

    /// The rule as a policy file would say it.
    pub const fn condition(self) -> &'static str {
        match self {
            Self::Any => "rule:regular_user",
            Self::Admin => "rule:admin_only",
            Self::Nobody => "!",
            Self::Service => "rule:service_api",
            Self::AdminOrService => "rule:admin_or_service",
            Self::Manager => "rule:admin_or_project_manager",
            Self::Member => "rule:admin_or_project_member",
            Self::MemberOrService => "rule:admin_or_project_member or rule:service_api",
            Self::Reader => "rule:admin_or_project_reader",
            Self::AnyReader => "role:reader",
            // The object's own attribute, whatever it is.
            Self::ReaderOrGranted => "rule:admin_or_project_reader or rule:shared_subnetpools",
            Self::ReaderOrShared => "rule:admin_or_project_reader or rule:service_api or rule:shared or rule:external",
            Self::ReaderOrNetworkOwner => {
                "rule:admin_or_project_reader or rule:service_api or rule:admin_or_net_owner_reader"
            }
            Self::NetworkOwner => "rule:admin_or_net_owner_member",
            Self::NetworkOwnerOrService => "rule:admin_or_net_owner_member or rule:service_api",
            Self::NetworkOwnerOrShared => {
                "rule:admin_or_net_owner_member or rule:service_api or (role:member and rule:shared)"
            }
            Self::MemberOrNetworkOwner => "rule:admin_or_project_member or rule:admin_or_net_owner_member",
            Self::NetworkManagerOrService => "rule:admin_or_service or (role:manager and rule:network_owner)",
            Self::Unplugs => {
                "rule:admin_or_service or (not rule:compute_device and not rule:baremetal_device and not \
                 rule:manila_device and (rule:admin_or_project_member or rule:admin_or_net_owner_member))"
            }
            Self::NotNetworkDevice => "not rule:network_device or rule:admin_or_net_owner_member or rule:service_api",
            Self::NotEveryProject => "rule:restrict_wildcard",
        }
    }
}

/// What a rule is judged against: the object, or what it is about to be.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The object's project.
    pub project_id: String,
    /// The project that owns the network it is on, if it is on one.
    pub network_project_id: Option<String>,
    /// Its network is shared with all projects.
    pub network_shared: bool,
}

impl Target {
    /// An object that belongs to a project and to no network.
    pub fn of_project(project_id: &str) -> Self {
        Self { project_id: project_id.to_owned(), ..Self::default() }
    }
}

/// All that a condition can ask about an object.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whose it is.
    pub target: &'a Target,
    /// What a request makes it.
    pub given: Option<&'a Object>,
    /// What it is already.
    pub object: Option<&'a Object>,
}

impl<'a> Facts<'a> {
    /// Of which nothing is known but whose it is.
    pub fn of(target: &'a Target) -> Self {
        Self { target, given: None, object: None }
    }

    fn value(&self, name: &str) -> Option<&'a Value> {
        self.given.and_then(|given| given.get(name)).or_else(|| self.object.and_then(|object| object.get(name)))
    }

    /// The attribute that `%(name)s` stands for.
    fn text(&self, name: &str) -> Option<String> {
        match name {
            "project_id" | "tenant_id" => Some(self.target.project_id.clone()),
            "network:tenant_id" | "network:project_id" | "network_tenant_id" => self.target.network_project_id.clone(),
            // What is part of something belongs to the same project.
            _ if name.ends_with(":tenant_id") || name.ends_with(":project_id") => Some(self.target.project_id.clone()),
            _ => self.value(name).and_then(check::text_of),
        }
    }

    /// The attribute that `field:` asks for, of the object itself or of the network it is on.
    fn field(&self, name: &str, of_network: bool) -> Option<Value> {
        if of_network && name == "shared" && self.target.network_project_id.is_some() {
            return Some(self.target.network_shared.into());
        }
        self.value(name).cloned()
    }
}

/// All rules: what they are by default, and what a file makes of them.
#[derive(Debug)]
pub struct Policy {
    helpers: BTreeMap<String, Check>,
    defaults: BTreeMap<Rule, Check>,
    names: BTreeMap<String, Rule>,
    overrides: BTreeMap<String, Check>,
    /// What the files say, for printing.
    texts: BTreeMap<String, String>,
}

static STANDARD: LazyLock<Arc<Policy>> = LazyLock::new(|| Arc::new(Policy::without_overrides()));

impl Default for Policy {
    fn default() -> Self {
        Self::without_overrides()
    }
}

impl Policy {
    /// Neutron's default policy.
    pub fn standard() -> Arc<Self> {
        Arc::clone(&STANDARD)
    }

    fn without_overrides() -> Self {
        let parsed = |text: &str| Check::parse(text).expect("the conditions of this module parse, as its tests show");
        Self {
            helpers: names::HELPERS.iter().map(|(name, text)| ((*name).to_owned(), parsed(text))).collect(),
            defaults: Rule::ALL.iter().map(|rule| (*rule, parsed(rule.condition()))).collect(),
            names: names::all(),
            overrides: BTreeMap::new(),
            texts: BTreeMap::new(),
        }
    }

    /// Reads files, in an order in which later ones win; one that is not there says nothing. Warns of what names nothing.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or something in it makes no sense.
    pub fn load(files: &[PathBuf]) -> Result<Self, PolicyError> {
        let mut policy = Self::without_overrides();
        let mut read = Vec::new();
        for path in files {
            match file::read(path) {
                Ok(entries) => read.extend(entries.into_iter().map(|entry| (path, entry))),
                Err(PolicyError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let mut wanted = BTreeSet::new();
        read.iter().for_each(|(_, entry)| entry.check.references(&mut wanted));
        for (path, entry) in &read {
            let name = names::present_name(&entry.name);
            let (is_known, is_helper) = (policy.names.contains_key(name), policy.helpers.contains_key(name));
            if !is_known && !is_helper && !wanted.contains(name) {
                let place = format!("{}:{}", path.display(), entry.line);
                tracing::warn!("{place}: rule '{name}' decides nothing: there is no such action or attribute here");
            }
            policy.texts.insert(name.to_owned(), entry.text.clone());
            let rules = if is_known { &mut policy.overrides } else { &mut policy.helpers };
            rules.insert(name.to_owned(), entry.check.clone());
        }
        for (path, entry) in &read {
            policy.check_references(path, entry)?;
        }
        Ok(policy)
    }

    /// Warns of references that lead nowhere, and refuses those that lead back.
    fn check_references(&self, path: &std::path::Path, entry: &file::Entry) -> Result<(), PolicyError> {
        let mut seen = BTreeSet::new();
        let mut ahead = BTreeSet::new();
        entry.check.references(&mut ahead);
        while let Some(name) = ahead.pop_first() {
            if name == entry.name {
                let reason = format!("rule '{name}' leads back to itself");
                return Err(PolicyError::Invalid { path: path.to_owned(), line: entry.line, reason });
            }
            if !seen.insert(name.clone()) {
                continue;
            }
            match self.named(&name) {
                Some(check) => check.references(&mut ahead),
                None => {
                    let place = format!("{}:{}", path.display(), entry.line);
                    tracing::warn!(
                        "{place}: rule '{}' refers to '{name}', which is not there: nobody passes it",
                        entry.name
                    );
                }
            }
        }
        Ok(())
    }

    /// The condition of a rule by its name: a file's, a helper's or the default.
    fn named(&self, name: &str) -> Option<&Check> {
        self.overrides
            .get(name)
            .or_else(|| self.helpers.get(name))
            .or_else(|| self.names.get(name).and_then(|rule| self.defaults.get(rule)))
    }

    fn decide(&self, check: &Check, ctx: &Context, facts: Option<&Facts<'_>>) -> Option<bool> {
        check.decide(ctx, facts, &|name| self.named(name))
    }

    /// What counts for a rule that is `default` unless a file says otherwise.
    fn condition(&self, default: Rule, name: impl FnOnce() -> String) -> (&Check, bool) {
        // Making names costs more than deciding, and most policies have no overrides.
        let replaced =
            if self.overrides.is_empty() || default == Rule::Nobody { None } else { self.overrides.get(&name()) };
        match replaced {
            Some(check) => (check, true),
            None => (self.defaults.get(&default).unwrap_or(&Check::Never), false),
        }
    }

    /// Fills in what the caller is by the rules that Neutron keeps for that.
    pub fn introduce(self: &Arc<Self>, ctx: &mut Context) {
        let is = |name: &str| self.named(name).is_some_and(|check| self.decide(check, ctx, None) == Some(true));
        let (is_admin, is_service) = (is("context_is_admin"), is("service_api") || is("context_is_advsvc"));
        (ctx.is_admin, ctx.is_service) = (is_admin, is_service);
        ctx.policy = Arc::clone(self);
    }

    /// Names every rule that decides about something by itself, and that a file can replace.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Writes every rule as it is in force, the defaults behind `#`: a policy file to begin with.
    pub fn print(&self) -> String {
        let helpers = names::HELPERS.iter().map(|(name, text)| (*name, *text));
        let defaults: BTreeMap<&str, &str> =
            helpers.chain(self.names.iter().map(|(name, rule)| (name.as_str(), rule.condition()))).collect();
        let mut out = String::new();
        for (name, text) in &defaults {
            match self.texts.get(*name) {
                Some(text) => _ = writeln!(out, "{}: {}", Value::from(*name), Value::from(text.as_str())),
                None => _ = writeln!(out, "# {}: {}", Value::from(*name), Value::from(*text)),
            }
        }
        for (name, text) in self.texts.iter().filter(|(name, _)| !defaults.contains_key(name.as_str())) {
            let _ = writeln!(out, "{}: {}", Value::from(name.as_str()), Value::from(text.as_str()));
        }
        out
    }
}

/// What a caller sees of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Nothing at all.
    pub nothing: bool,
    /// What belongs to others as well.
    pub everything: bool,
    /// Each object is to be judged by itself ([`may_see`]).
    pub each: bool,
}

/// Tells what the caller sees of a resource's objects.
pub fn sight(table: &Table, ctx: &Context) -> Sight {
    let (check, replaced) = ctx.policy.condition(table.get, || format!("get_{}", table.policy_name()));
    let decided = ctx.policy.decide(check, ctx, None);
    Sight {
        nothing: decided == Some(false),
        everything: ctx.is_admin || ctx.is_service && decided == Some(true),
        // The store's query has answered what the default asks of an object, but not what it asks of the caller.
        each: decided.is_none() && (replaced || !ctx.has_role("reader")),
    }
}

/// Tells whether the caller may see this object.
pub fn may_see(table: &Table, ctx: &Context, target: &Target, object: &Object) -> bool {
    let facts = Facts { target, given: None, object: Some(object) };
    let (check, _) = ctx.policy.condition(table.get, || format!("get_{}", table.policy_name()));
    ctx.policy.decide(check, ctx, Some(&facts)) == Some(true)
}

/// Tells whether the caller may do something to an object; `rule` is the table's for the verb.
pub fn may(table: &Table, ctx: &Context, verb: &str, rule: Rule, facts: Facts<'_>) -> bool {
    let (check, _) = ctx.policy.condition(rule, || format!("{verb}_{}", table.policy_name()));
    ctx.policy.decide(check, ctx, Some(&facts)) == Some(true)
}

/// Tells whether the caller may give an attribute.
pub fn may_give(table: &Table, ctx: &Context, attribute: &Attribute, create: bool, facts: Facts<'_>) -> bool {
    let (verb, rule) = if create { ("create", attribute.create) } else { ("update", attribute.update) };
    let (check, _) = ctx.policy.condition(rule, || format!("{verb}_{}:{}", table.policy_name(), attribute.name));
    ctx.policy.decide(check, ctx, Some(&facts)) == Some(true)
}

/// Tells whether the caller may give a part of an attribute.
pub fn may_give_part(
    table: &Table,
    ctx: &Context,
    (attribute, part): (&Attribute, &Part),
    create: bool,
    facts: Facts<'_>,
) -> bool {
    let verb = if create { "create" } else { "update" };
    let name = || format!("{verb}_{}:{}:{}", table.policy_name(), attribute.name, part.name);
    let (check, _) = ctx.policy.condition(part.set, name);
    ctx.policy.decide(check, ctx, Some(&facts)) == Some(true)
}

/// Tells whether the caller is shown an attribute: on no object, on every one, or (`None`) it depends on the object.
pub fn shows(table: &Table, ctx: &Context, attribute: &Attribute) -> Option<bool> {
    let (check, _) = ctx.policy.condition(attribute.see, || format!("get_{}:{}", table.policy_name(), attribute.name));
    ctx.policy.decide(check, ctx, None)
}

/// Tells whether the caller is shown an attribute of this object.
pub fn shows_of(table: &Table, ctx: &Context, attribute: &Attribute, object: &Object) -> bool {
    let target = Target::of_project(object.get("project_id").and_then(Value::as_str).unwrap_or(""));
    let facts = Facts { target: &target, given: None, object: Some(object) };
    let (check, _) = ctx.policy.condition(attribute.see, || format!("get_{}:{}", table.policy_name(), attribute.name));
    ctx.policy.decide(check, ctx, Some(&facts)) == Some(true)
}

/// Tells whether the caller passes a rule that belongs to no table, by its name.
pub fn passes(ctx: &Context, name: &str, facts: Facts<'_>) -> bool {
    ctx.policy.named(name).is_some_and(|check| ctx.policy.decide(check, ctx, Some(&facts)) == Some(true))
}

/// Tells whether the caller may change an object by an action that may have a rule of its own.
pub fn may_act(table: &Table, ctx: &Context, action: &str, facts: Facts<'_>) -> bool {
    match ctx.policy.named(action) {
        Some(check) => ctx.policy.decide(check, ctx, Some(&facts)) == Some(true),
        None => may(table, ctx, "update", table.update, facts),
    }
}

/// Refuses a caller that does not pass a rule about no object in particular.
///
/// # Errors
///
/// 403.
pub fn require(ctx: &Context, name: &str, project_id: &str) -> Result<(), ApiError> {
    let target = Target::of_project(project_id);
    if passes(ctx, name, Facts::of(&target)) { Ok(()) } else { Err(forbidden(name, &[])) }
}

/// The answer to somebody who may see the object but not do this, in the policy engine's words.
pub fn forbidden(action: &str, attributes: &[&str]) -> ApiError {
    let message = if attributes.is_empty() {
        format!("rule:{action} is disallowed by policy")
    } else {
        let parts: Vec<_> = attributes.iter().map(|name| format!(" and rule:{action}:{name}")).collect();
        format!("(rule:{action}{}) is disallowed by policy", parts.concat())
    };
    ApiError::HTTPForbidden { message }
}

#[cfg(test)]
mod neutrons;
#[cfg(test)]
mod tests;
