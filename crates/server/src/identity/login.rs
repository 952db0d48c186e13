//! From a request for a token to a token.
//!
//! Whatever is wrong with who somebody claims to be, the answer is the same 401, so that nobody learns
//! which users and projects exist. Only a body that makes no sense is told so.

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::base64url;
use super::directory::{AppCredential, DOMAIN_ID, DOMAIN_NAME, Directory, Project, User};
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

    let directory = identity.directory();
    let mut found: Option<User> = None;
    let mut parent: Option<Claims> = None;
    let mut credential: Option<AppCredential> = None;
    for method in &methods {
        let user = match *method {
            "password" => by_password(identity, &directory, object(object(who, "password")?, "user")?).await?.clone(),
            "token" => {
                let valid = by_token(identity, object(who, "token")?)?;
                parent = Some(valid.claims);
                valid.user
            }
            "application_credential" => {
                let shown = by_credential(identity, &directory, object(who, "application_credential")?).await?;
                let user = directory.user(&shown.user).filter(|user| user.enabled).ok_or(Denied::Unauthorized)?;
                credential = Some(shown);
                user.clone()
            }
            _ => return Err(Denied::UnsupportedMethod),
        };
        if found.as_ref().is_some_and(|other| other.id != user.id) {
            return Err(Denied::Unauthorized);
        }
        found = Some(user);
    }
    let user = found.ok_or(Denied::Unauthorized)?;
    let scope = match &credential {
        Some(credential) => of_credential(credential, &scope)?,
        None => scope,
    };
    let project = project_in_scope(&directory, &user, &scope)?;
    let mut claims = claims(identity, &user, project, &methods, parent.as_ref(), Timestamp::now());
    if let Some(credential) = credential {
        claims.expires_us = claims.expires_us.min(credential.expires_us.unwrap_or(i64::MAX));
        claims.credential = Some(credential.id);
    }
    Ok(claims)
}

/// Checks a password; answers the user.
async fn by_password<'a>(
    identity: &Identity,
    directory: &'a Directory,
    user: &Map<String, Value>,
) -> Result<&'a User, Denied> {
    let password = user.get("password").and_then(Value::as_str).ok_or_else(|| missing("password"))?;
    let named = named(user)?;
    let known = match &named {
        Named::Id(id) => directory.user(id),
        Named::Name(name) => directory.user_named(name),
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

fn by_token(identity: &Identity, token: &Map<String, Value>) -> Result<Valid, Denied> {
    let id = token.get("id").and_then(Value::as_str).ok_or_else(|| missing("id"))?;
    let valid = identity.validate(id, Timestamp::now()).map_err(|_| Denied::Unauthorized)?;
    // As Keystone: what a credential opened stays where it is.
    if valid.credential.is_some() { Err(Denied::Unauthorized) } else { Ok(valid) }
}

/// Checks an application credential, named by its id, or by its name and its user.
async fn by_credential(
    identity: &Identity,
    directory: &Directory,
    shown: &Map<String, Value>,
) -> Result<AppCredential, Denied> {
    let secret = shown.get("secret").and_then(Value::as_str).ok_or_else(|| missing("secret"))?;
    let known = match shown.get("id").and_then(Value::as_str) {
        Some(id) => directory.app_credential(id),
        None => {
            let name = shown.get("name").and_then(Value::as_str).ok_or_else(|| missing("id"))?;
            let user = match named(object(shown, "user")?)? {
                Named::Id(id) => directory.user(&id),
                Named::Name(name) => directory.user_named(&name),
                Named::Nowhere => None,
            };
            let of_user = |c: &&AppCredential| c.name == name && user.is_some_and(|user| user.id == c.user);
            directory.application_credentials.iter().find(of_user)
        }
    };
    let who = known.map_or("no such application credential", |c| c.id.as_str()).to_owned();
    match identity.passwords.check(&who, secret, known.map(|c| c.secret_hash.as_str()), Instant::now()).await {
        Verdict::Right => known.filter(|c| c.is_good(Timestamp::now())).cloned().ok_or(Denied::Unauthorized),
        Verdict::Wrong => {
            tracing::info!(credential = ?who, "login refused: wrong application credential");
            Err(Denied::Unauthorized)
        }
        Verdict::Refused(seconds) => {
            tracing::warn!(credential = ?who, seconds, "login refused unchecked: too many wrong secrets in a row");
            Err(Denied::TooMany(seconds))
        }
    }
}

/// A credential opens its own project; asking for another makes no sense.
fn of_credential(credential: &AppCredential, scope: &Scope) -> Result<Scope, Denied> {
    match scope {
        Scope::Default => Ok(Scope::Project(Named::Id(credential.project.clone()))),
        Scope::Project(Named::Id(id)) if *id == credential.project => Ok(scope.clone()),
        Scope::Project(_) | Scope::Unscoped | Scope::Elsewhere => {
            Err(Denied::Malformed("Application credentials cannot request a scope.".to_owned()))
        }
    }
}

fn project_in_scope<'a>(directory: &'a Directory, user: &User, scope: &Scope) -> Result<Option<&'a Project>, Denied> {
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
        credential: None,
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
