//! From a request for a token to a token.
//!
//! Whatever is wrong with who somebody claims to be, the answer is the same 401, so that nobody learns
//! which users and projects exist. Only a body that makes no sense is told so.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::base64url;
use super::directory::{DOMAIN_ID, DOMAIN_NAME, Project, User};
use super::password::Verdict;
use super::token::Claims;
use super::{Identity, Valid};
use crate::random;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The body makes no sense.
    Malformed(String),
    /// Not who they claim to be, or not there.
    Unauthorized,
    /// A way of logging in that there is not.
    UnsupportedMethod,
    /// Too many wrong passwords: seconds to wait.
    TooMany(u64),
}

/// What the token is to be good for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    /// The user's default project, where there is one.
    Default,
    /// Nothing in particular.
    Unscoped,
    /// A project.
    Project(Named),
    /// A domain or the system: nobody has roles there.
    Elsewhere,
}

/// A user or project as requests name them.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Id(String),
    Name(String),
    /// By name, in a domain that there is not.
    Nowhere,
}

/// Reads a request body and makes the token it asks for.
pub(super) async fn login(identity: &Arc<Identity>, body: &[u8]) -> Result<Claims, Denied> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|e| Denied::Malformed(format!("Expecting to find valid JSON in the request body: {e}.")))?;
    let auth = object(&body, "auth")?;
    let who = object(auth, "identity")?;
    let methods = who.get("methods").and_then(Value::as_array).ok_or_else(|| missing("methods"))?;
    let methods: Vec<&str> = methods.iter().filter_map(Value::as_str).collect();
    if methods.is_empty() {
        return Err(missing("methods"));
    }
    let scope = scope(auth.get("scope"))?;

    let mut found: Option<&User> = None;
    let mut parent: Option<Claims> = None;
    for method in &methods {
        let user = match *method {
            "password" => by_password(identity, object(object(who, "password")?, "user")?).await?,
            "token" => {
                let valid = by_token(identity, object(who, "token")?)?;
                parent = Some(valid.claims);
                valid.user
            }
            _ => return Err(Denied::UnsupportedMethod),
        };
        if found.is_some_and(|other| other.id != user.id) {
            return Err(Denied::Unauthorized);
        }
        found = Some(user);
    }
    let user = found.ok_or(Denied::Unauthorized)?;
    let project = project_in_scope(identity, user, &scope)?;
    Ok(claims(identity, user, project, &methods, parent.as_ref(), Timestamp::now()))
}

/// Checks a password; answers the user.
async fn by_password<'a>(identity: &'a Arc<Identity>, user: &Map<String, Value>) -> Result<&'a User, Denied> {
    let password = user.get("password").and_then(Value::as_str).ok_or_else(|| missing("password"))?;
    let named = named(user)?;
    let known = match &named {
        Named::Id(id) => identity.directory.user(id),
        Named::Name(name) => identity.directory.user_named(name),
        Named::Nowhere => None,
    };
    let who = match (known, &named) {
        (Some(user), _) => user.id.clone(),
        (None, Named::Id(name) | Named::Name(name)) => name.clone(),
        (None, Named::Nowhere) => String::new(),
    };
    let stored = known.and_then(|u| u.password_hash.as_deref());
    match identity.passwords.check(&who, password, stored, Instant::now()).await {
        Verdict::Right => known.filter(|u| u.enabled).ok_or(Denied::Unauthorized),
        Verdict::Wrong => {
            tracing::info!(user = ?who, "login refused: wrong name or password");
            Err(Denied::Unauthorized)
        }
        Verdict::Refused(seconds) => {
            tracing::warn!(user = ?who, seconds, "login refused unchecked: too many wrong passwords in a row");
            Err(Denied::TooMany(seconds))
        }
    }
}

fn by_token<'a>(identity: &'a Arc<Identity>, token: &Map<String, Value>) -> Result<Valid<'a>, Denied> {
    let id = token.get("id").and_then(Value::as_str).ok_or_else(|| missing("id"))?;
    identity.validate(id, Timestamp::now()).map_err(|_| Denied::Unauthorized)
}

fn project_in_scope<'a>(
    identity: &'a Arc<Identity>,
    user: &User,
    scope: &Scope,
) -> Result<Option<&'a Project>, Denied> {
    let directory = &identity.directory;
    let usable = |p: &&Project| p.enabled && !directory.roles_on(&user.id, &p.id).is_empty();
    match scope {
        Scope::Unscoped => Ok(None),
        Scope::Elsewhere => Err(Denied::Unauthorized),
        Scope::Default => Ok(user.default_project_id.as_ref().and_then(|id| directory.project(id)).filter(usable)),
        Scope::Project(named) => {
            let project = match named {
                Named::Id(id) => directory.project(id),
                Named::Name(name) => directory.project_named(name),
                Named::Nowhere => None,
            };
            project.filter(usable).map(Some).ok_or(Denied::Unauthorized)
        }
    }
}

fn claims(
    identity: &Identity,
    user: &User,
    project: Option<&Project>,
    methods: &[&str],
    parent: Option<&Claims>,
    now: Timestamp,
) -> Claims {
    let mut audit_ids = vec![base64url::encode(&random::bytes::<16>())];
    let mut all_methods: Vec<String> = methods.iter().map(|m| (*m).to_owned()).collect();
    let lifetime = i64::try_from(identity.lifetime.as_micros()).unwrap_or(i64::MAX);
    let mut expires_us = now.as_microsecond().saturating_add(lifetime);
    if let Some(parent) = parent {
        // The first of the chain is what links the tokens of one login.
        audit_ids.extend(parent.audit_ids.last().cloned());
        all_methods.extend(parent.methods.iter().filter(|m| !methods.contains(&m.as_str())).cloned());
        // A token must not prolong itself.
        expires_us = expires_us.min(parent.expires_us);
    }
    Claims {
        user_id: user.id.clone(),
        project_id: project.map(|p| p.id.clone()),
        methods: all_methods,
        issued_us: now.as_microsecond(),
        expires_us,
        audit_ids,
    }
}

fn scope(scope: Option<&Value>) -> Result<Scope, Denied> {
    match scope {
        None | Some(Value::Null) => Ok(Scope::Default),
        Some(Value::String(word)) if word == "unscoped" => Ok(Scope::Unscoped),
        Some(Value::Object(map)) if map.contains_key("unscoped") => Ok(Scope::Unscoped),
        Some(Value::Object(map)) if map.contains_key("project") => named(object(map, "project")?).map(Scope::Project),
        Some(Value::Object(map)) if map.contains_key("domain") || map.contains_key("system") => Ok(Scope::Elsewhere),
        Some(_) => Err(Denied::Malformed("'scope' must name a project, or be 'unscoped'.".to_owned())),
    }
}

fn named(map: &Map<String, Value>) -> Result<Named, Denied> {
    if let Some(id) = map.get("id").and_then(Value::as_str) {
        return Ok(Named::Id(id.to_owned()));
    }
    let name = map.get("name").and_then(Value::as_str).ok_or_else(|| missing("id"))?;
    let domain = object(map, "domain")?;
    let ours = match (domain.get("id").and_then(Value::as_str), domain.get("name").and_then(Value::as_str)) {
        (Some(id), _) => id == DOMAIN_ID,
        (None, Some(name)) => name == DOMAIN_NAME,
        (None, None) => return Err(missing("domain")),
    };
    Ok(if ours { Named::Name(name.to_owned()) } else { Named::Nowhere })
}

/// What has members by name: a JSON value or an object already.
trait Members {
    fn member(&self, name: &str) -> Option<&Value>;
}

impl Members for Value {
    fn member(&self, name: &str) -> Option<&Value> {
        self.get(name)
    }
}

impl Members for Map<String, Value> {
    fn member(&self, name: &str) -> Option<&Value> {
        self.get(name)
    }
}

fn object<'a>(of: &'a impl Members, name: &str) -> Result<&'a Map<String, Value>, Denied> {
    of.member(name).and_then(Value::as_object).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> Denied {
    Denied::Malformed(format!("Expecting to find {name} in the request body."))
}
