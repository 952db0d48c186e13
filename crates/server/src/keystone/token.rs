//! What Keystone says of a token.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Deserialize;

use crate::context::Context;

/// Longest token that is asked about: Fernet tokens have some hundred letters, JWS ones some more.
const LONGEST: usize = 8192;

/// Tells whether a text may be a token at all.
pub(super) fn is_possible(token: &str) -> bool {
    !token.is_empty() && token.len() <= LONGEST && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A token that Keystone knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    user_id: String,
    user_name: String,
    user_domain_id: Option<String>,
    scope: Scope,
    pub(super) roles: BTreeSet<String>,
    expires: Timestamp,
}

/// What a token is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Nothing,
    Project { id: String, name: String, domain_id: Option<String> },
    Domain(String),
    System,
}

#[derive(Deserialize)]
struct Answer {
    token: Said,
}

#[derive(Deserialize)]
struct Said {
    user: Thing,
    #[serde(default)]
    project: Option<Thing>,
    #[serde(default)]
    domain: Option<Thing>,
    #[serde(default)]
    system: Option<serde_json::Value>,
    #[serde(default)]
    roles: Vec<Thing>,
    expires_at: Timestamp,
}

/// Something with an id and a name, perhaps in a domain.
#[derive(Deserialize)]
struct Thing {
    #[serde(default)]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    domain: Option<Box<Thing>>,
}

impl Token {
    /// Reads Keystone's answer.
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let said = serde_json::from_str::<Answer>(text)?.token;
        let scope = match (said.project, said.domain, said.system) {
            (Some(project), _, _) => {
                Scope::Project { id: project.id, name: project.name, domain_id: project.domain.map(|d| d.id) }
            }
            (None, Some(domain), _) => Scope::Domain(domain.id),
            (None, None, Some(_)) => Scope::System,
            (None, None, None) => Scope::Nothing,
        };
        Ok(Self {
            user_id: said.user.id,
            user_name: said.user.name,
            user_domain_id: said.user.domain.map(|d| d.id),
            scope,
            roles: said.roles.into_iter().map(|role| role.name).collect(),
            expires: said.expires_at,
        })
    }

    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires <= now
    }

    /// The scope that the API does not serve, if it is one.
    pub(super) fn foreign_scope(&self) -> Option<&'static str> {
        match self.scope {
            Scope::Nothing | Scope::Project { .. } => None,
            Scope::Domain(_) => Some("domain"),
            Scope::System => Some("system"),
        }
    }

    /// The caller that the token stands for.
    pub(super) fn context(&self, request_id: &str, service_roles: BTreeSet<String>) -> Context {
        let mut context = Context {
            user_id: self.user_id.clone(),
            user_name: self.user_name.clone(),
            user_domain_id: self.user_domain_id.clone(),
            roles: self.roles.clone(),
            service_roles,
            request_id: request_id.to_owned(),
            ..Context::default()
        };
        match &self.scope {
            Scope::Nothing => {}
            Scope::Project { id, name, domain_id } => {
                context.project_id = Some(id.clone());
                context.project_name = Some(name.clone());
                context.project_domain_id.clone_from(domain_id);
            }
            Scope::Domain(id) => context.domain_id = Some(id.clone()),
            Scope::System => context.system_scope = Some("all".to_owned()),
        }
        context
    }
}
