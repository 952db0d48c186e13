//! `/v3/users/<id>/application_credentials`: what a user gives a program instead of the own password.
//!
//! As in Keystone: a credential is for the project of the token that it is made with, has some of the user's roles
//! there, shows its secret once, and cannot make others of its kind unless it is `unrestricted`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::directory::{self, AppCredential, Directory, DirectoryError, new_id};
use super::http::{Asked, Fault, Filters, Shared, answer};
use super::{Identity, Valid, base64url, password, time_text};
use crate::random;

/// Most credentials of one user.
const MOST: usize = 100;
/// Bytes of a secret that is made here.
const SECRET_BYTES: usize = 48;

impl AppCredential {
    /// Tells whether it has not ended.
    pub(super) fn is_good(&self, now: Timestamp) -> bool {
        self.expires_us.is_none_or(|end| end > now.as_microsecond())
    }
}

/// The body of a POST.
#[derive(Deserialize)]
struct Asking {
    application_credential: New,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct New {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    secret: Option<String>,
    #[serde(default)]
    expires_at: Option<String>,
    #[serde(default)]
    roles: Option<Vec<RoleRef>>,
    #[serde(default)]
    unrestricted: Option<bool>,
    /// The user's default project is not asked: the token's counts.
    #[serde(default, rename = "project_id")]
    _project_id: Option<String>,
    #[serde(default)]
    access_rules: Option<Vec<Value>>,
}

#[derive(Deserialize)]
struct RoleRef {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
}

/// What stops a change of the directory.
enum Stop {
    Fault(Fault),
    Directory(DirectoryError),
}

impl From<DirectoryError> for Stop {
    fn from(error: DirectoryError) -> Self {
        Self::Directory(error)
    }
}

pub(super) async fn list(
    State(identity): Shared,
    Path(id): Path<String>,
    query: RawQuery,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = asked(&identity, &headers, &id, "list_application_credentials")?;
    let (directory, filters) = (identity.directory(), Filters::from(&query));
    let own = directory.application_credentials.iter().filter(|c| c.user == id).map(|c| shown(&directory, c));
    Ok(asked.list(&format!("users/{id}/application_credentials"), own.filter(|c| filters.accept(c)).collect()))
}

pub(super) async fn show(
    State(identity): Shared,
    Path((id, credential)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = asked(&identity, &headers, &id, "get_application_credential")?;
    let directory = identity.directory();
    let found = directory.app_credential(&credential).filter(|c| c.user == id);
    let found = found.ok_or_else(|| Fault::not_found("Application Credential", &credential))?;
    let object = shown(&directory, found);
    Ok(asked.one(&format!("users/{id}/application_credentials"), "application_credential", object))
}

pub(super) async fn create(
    State(identity): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Fault> {
    let asked = asked(&identity, &headers, &id, "create_application_credential")?;
    refuse_restricted(&asked.by, "create_application_credential")?;
    if asked.by.user.id != id {
        return Err(Fault::forbidden("create_application_credential"));
    }
    let asking: Asking = serde_json::from_slice(&body).map_err(|error| bad(error.to_string()))?;
    let (new, secret) = new_credential(&asked.by, asking.application_credential)?;
    let (credential, directory) = change(&identity, move |directory| {
        let own: Vec<_> = directory.application_credentials.iter().filter(|c| c.user == new.user).collect();
        if own.iter().any(|c| c.name == new.name) {
            let message = format!(
                "Conflict occurred attempting to store application_credential - Duplicate entry found with name {}.",
                new.name
            );
            return Err(Fault::new(StatusCode::CONFLICT, message));
        }
        if own.len() >= MOST {
            let message = format!("A user has {MOST} application credentials at most: delete some.");
            return Err(Fault::new(StatusCode::FORBIDDEN, message));
        }
        directory.application_credentials.push(new.clone());
        Ok(new)
    })
    .await?;
    tracing::info!(target: "audit", user = asked.by.user.name, credential = credential.id, "application credential made");
    let mut object = shown(&directory, &credential);
    object["secret"] = json!(secret);
    let object = asked.linked(&format!("users/{id}/application_credentials"), object);
    Ok(answer(StatusCode::CREATED, &json!({"application_credential": object})))
}

pub(super) async fn delete(
    State(identity): Shared,
    Path((id, credential)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let asked = asked(&identity, &headers, &id, "delete_application_credential")?;
    refuse_restricted(&asked.by, "delete_application_credential")?;
    let name = credential.clone();
    change(&identity, move |directory| {
        let before = directory.application_credentials.len();
        directory.application_credentials.retain(|c| c.id != name || c.user != id);
        let gone = directory.application_credentials.len() < before;
        if gone { Ok(()) } else { Err(Fault::not_found("Application Credential", &name)) }
    })
    .await?;
    tracing::info!(target: "audit", user = asked.by.user.name, credential, "application credential removed");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Only a user and admins deal with a user's credentials.
fn asked(identity: &Identity, headers: &HeaderMap, user: &str, action: &str) -> Result<Asked, Fault> {
    let asked = Asked::from(identity, headers)?;
    if asked.by.user.id == user || asked.by.is_admin() { Ok(asked) } else { Err(Fault::forbidden(action)) }
}

/// A program must not give itself what outlives its own credential.
fn refuse_restricted(by: &Valid, action: &str) -> Result<(), Fault> {
    match &by.credential {
        Some(credential) if !credential.unrestricted => Err(Fault::forbidden(action)),
        _ => Ok(()),
    }
}

fn new_credential(by: &Valid, new: New) -> Result<(AppCredential, String), Fault> {
    let project = by.project.as_ref().ok_or_else(|| bad("A token that is scoped to a project is needed."))?;
    if new.name.is_empty() || new.name.chars().count() > 255 {
        return Err(bad("A name of 1 to 255 letters is needed."));
    }
    if new.access_rules.is_some_and(|rules| !rules.is_empty()) {
        return Err(bad("Access rules are not supported."));
    }
    let expires_us = match &new.expires_at {
        None => None,
        Some(text) => {
            let zoned = text.parse::<Timestamp>().or_else(|_| format!("{text}Z").parse());
            let end = zoned.map_err(|_| bad("expires_at is not of the form 2027-01-01T00:00:00."))?;
            if end <= Timestamp::now() {
                return Err(bad("expires_at is in the past."));
            }
            Some(end.as_microsecond())
        }
    };
    let mut roles: Vec<String> = by.roles.values().map(|role| role.id.clone()).collect();
    if let Some(wanted) = new.roles.filter(|wanted| !wanted.is_empty()) {
        let find = |wanted: &RoleRef| {
            by.roles
                .values()
                .find(|role| wanted.id.as_ref().map_or(wanted.name.as_ref() == Some(&role.name), |id| *id == role.id))
        };
        let found: Option<Vec<String>> = wanted.iter().map(|wanted| find(wanted).map(|role| role.id.clone())).collect();
        roles = found.ok_or_else(|| bad("Some of the roles are none that the token has."))?;
    }
    let secret = new.secret.unwrap_or_else(|| base64url::encode(&random::bytes::<SECRET_BYTES>()));
    if secret.is_empty() || secret.len() > 255 {
        return Err(bad("A secret of 1 to 255 bytes is needed."));
    }
    let secret_hash = password::hash(&secret).map_err(|_| bad("The secret cannot be used."))?;
    let credential = AppCredential {
        id: new_id(),
        name: new.name,
        description: new.description.unwrap_or_default(),
        user: by.user.id.clone(),
        project: project.id.clone(),
        roles,
        secret_hash,
        expires_us,
        unrestricted: new.unrestricted.unwrap_or(false),
    };
    Ok((credential, secret))
}

fn bad(message: impl Into<String>) -> Fault {
    Fault::new(StatusCode::BAD_REQUEST, message)
}

fn shown(directory: &Directory, credential: &AppCredential) -> Value {
    let roles = credential.roles.iter().filter_map(|id| directory.role(id));
    json!({
        "id": credential.id,
        "name": credential.name,
        "description": credential.description,
        "project_id": credential.project,
        "user_id": credential.user,
        "expires_at": credential.expires_us.map(time_text),
        "unrestricted": credential.unrestricted,
        "system": null,
        "roles": roles.map(|role| json!({"id": role.id, "name": role.name, "domain_id": null})).collect::<Value>(),
    })
}

/// Changes the file, and the server's memory with it.
async fn change<T: Send + 'static>(
    identity: &Arc<Identity>,
    work: impl FnOnce(&mut Directory) -> Result<T, Fault> + Send + 'static,
) -> Result<(T, Arc<Directory>), Fault> {
    let changing = Arc::clone(identity);
    let blocking = move || {
        let (made, directory) = directory::change(&changing.identity_file, |d| work(d).map_err(Stop::Fault))?;
        changing.set_directory(directory);
        Ok((made, changing.directory()))
    };
    match tokio::task::spawn_blocking(blocking).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Stop::Fault(fault))) => Err(fault),
        Ok(Err(Stop::Directory(error))) => Err(Fault::internal(&error)),
        Err(panic) => Err(Fault::internal(&panic)),
    }
}
