//! Who may do what: Neutron's default policy, as data on actions and attributes.
//!
//! Which *objects* a caller sees is a matter of the store's query ([`Table::scope`]); what remains is
//! decided here, from the caller's roles and whose object it is. Objects a caller must not know of
//! are "not found"; what it sees and may not do is "forbidden".
//!
//! [`Table::scope`]: crate::attributes::Table::scope

use crate::context::Context;
use crate::error::ApiError;

/// A condition on the caller, given the object it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Whoever may do the action at all.
    Any,
    /// Admins.
    Admin,
    /// Nobody: the attribute exists only for the server.
    Nobody,
    /// Admins, and managers of the object's project.
    Manager,
    /// Admins, and members of the object's project.
    Member,
    /// Admins, and members of the project that owns the object's network.
    NetworkOwner,
    /// As [`Rule::NetworkOwner`], and anybody where the network is shared.
    NetworkOwnerOrShared,
    /// Admins, and members of the project that owns the object or its network.
    MemberOrNetworkOwner,
    /// As [`Rule::NetworkOwner`], except that a value without the prefix `network:` is free for all.
    NotNetworkDevice,
    /// Anybody, except that only admins name every project at once, as `*`.
    NotEveryProject,
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

impl Rule {
    /// Tells whether the rule lets the caller pass. `value` is the attribute's, where there is one.
    pub fn allows(self, ctx: &Context, target: &Target, value: Option<&serde_json::Value>) -> bool {
        if self == Self::Nobody {
            return false;
        }
        if ctx.is_admin {
            return true;
        }
        let owns = ctx.project_id.as_deref().is_some_and(|project| project == target.project_id);
        let owns_network = ctx.project_id.is_some() && ctx.project_id == target.network_project_id;
        match self {
            Self::Any => true,
            Self::Admin | Self::Nobody => false,
            Self::Manager => owns && ctx.has_role("manager"),
            Self::Member => owns && ctx.may_write(),
            Self::NetworkOwner => owns_network && ctx.may_write(),
            Self::NetworkOwnerOrShared => (owns_network || target.network_shared) && ctx.may_write(),
            Self::MemberOrNetworkOwner => (owns || owns_network) && ctx.may_write(),
            Self::NotNetworkDevice => {
                let is_device = value.and_then(|v| v.as_str()).is_some_and(|owner| owner.starts_with("network:"));
                !is_device || (owns_network && ctx.may_write())
            }
            Self::NotEveryProject => value.and_then(|v| v.as_str()) != Some("*"),
        }
    }

    /// Tells whether the caller sees what is marked with this rule, whatever object it is on.
    pub fn shows(self, ctx: &Context) -> bool {
        match self {
            Self::Any => true,
            Self::Nobody => false,
            Self::Admin
            | Self::Manager
            | Self::Member
            | Self::NetworkOwner
            | Self::NetworkOwnerOrShared
            | Self::MemberOrNetworkOwner
            | Self::NotNetworkDevice
            | Self::NotEveryProject => ctx.is_admin,
        }
    }
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
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn caller(project: &str, role: &str) -> Context {
        Context {
            project_id: Some(project.into()),
            roles: BTreeSet::from([role.to_owned()]),
            is_admin: role == "admin",
            ..Context::default()
        }
    }

    #[test]
    fn a_reader_changes_nothing_and_a_member_only_what_its_project_owns() {
        let mine = Target::of_project("p");
        assert!(Rule::Member.allows(&caller("p", "member"), &mine, None));
        assert!(!Rule::Member.allows(&caller("p", "reader"), &mine, None));
        assert!(!Rule::Member.allows(&caller("q", "member"), &mine, None));
        assert!(Rule::Member.allows(&caller("q", "admin"), &mine, None));
    }

    #[test]
    fn a_caller_without_a_project_does_not_own_what_belongs_to_no_project() {
        let nobody = Context { roles: BTreeSet::from(["member".to_owned()]), ..Context::default() };
        assert!(!Rule::Member.allows(&nobody, &Target::of_project(""), None));
        assert!(!Rule::NetworkOwner.allows(&nobody, &Target::default(), None));
    }

    #[test]
    fn only_a_network_owner_pretends_to_be_a_network_device() {
        let shared = Target { network_project_id: Some("q".into()), network_shared: true, ..Target::of_project("p") };
        let member = caller("p", "member");
        assert!(Rule::NotNetworkDevice.allows(&member, &shared, Some(&"compute:nova".into())));
        assert!(!Rule::NotNetworkDevice.allows(&member, &shared, Some(&"network:dhcp".into())));
    }

    #[test]
    fn a_refusal_names_the_rules() {
        let text = forbidden("create_router", &["ha"]).to_string();
        assert_eq!(text, "(rule:create_router and rule:create_router:ha) is disallowed by policy");
        assert_eq!(forbidden("create_router", &[]).to_string(), "rule:create_router is disallowed by policy");
    }
}
