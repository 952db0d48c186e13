//! The embedded identity: as much of Keystone v3 as the stock client needs, and no more.
//!
//! - [`directory`]: who there is, from a file made on first start; [`fresh`]: noticing its changes;
//! - [`manage`]: `evergate identity`, which changes the file; [`app_credentials`]: what users change in it themselves;
//! - [`password`], [`token`]: how a user shows who they are, once and afterwards;
//! - [`login`]: from a request for a token to a token;
//! - [`http`]: the API below `/identity`; [`catalog`]: what it says about where things are;
//! - [`guard`]: what stands before the Neutron API and turns a token into a [`Context`].
//!
//! There is one domain, `Default`. Users, projects and roles are changed in the file, not by the API; application
//! credentials are changed by the API as well.
//! Beside the file, the store keeps the key that tokens are signed with and the list of revoked ones.
//!
//! [`Context`]: crate::context::Context

mod app_credentials;
mod base64url;
mod catalog;
mod clouds;
mod directory;
mod fresh;
mod guard;
mod http;
mod login;
pub mod manage;
mod password;
mod token;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use evergate_config::ServerSettings;
use jiff::Timestamp;

pub use directory::DirectoryError;
pub use fresh::keep_fresh;
pub(crate) use guard::admit;
pub use guard::guard;
pub use http::routes;

use crate::random;
use crate::store::{Store, StoreError};
use directory::{AppCredential, Directory, Project, Role, User};
use password::Passwords;
use token::{Claims, Invalid, KEY_BYTES, Signer};

/// The only region.
pub(crate) const REGION: &str = "RegionOne";

/// Name of the setting that keeps the signing key, in hexadecimal.
const KEY_SETTING: &str = "identity.token_key";
/// Name of the setting that keeps the revoked tokens: audit id to end, as JSON.
const REVOKED_SETTING: &str = "identity.revoked_tokens";

/// Why identity cannot start.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The identity file cannot be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The client's file could not be written.
    #[error("failed to write {path}")]
    Clouds {
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The store failed.
    #[error("failed to keep the key of tokens in the store")]
    Store(#[from] StoreError),
    /// Passwords cannot be hashed.
    #[error("failed to prepare passwords: {0}")]
    Password(String),
}

/// Who there is, and how they show it.
pub struct Identity {
    directory: RwLock<Arc<Directory>>,
    identity_file: PathBuf,
    signer: Signer,
    passwords: Passwords,
    /// Audit ids of revoked tokens, and when these would have ended by themselves (microseconds).
    revoked: Mutex<BTreeMap<String, i64>>,
    store: Arc<Store>,
    public_url: Option<String>,
    clouds_file: PathBuf,
    lifetime: Duration,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// A token that holds, with what it leads to.
struct Valid {
    claims: Claims,
    user: User,
    project: Option<Project>,
    /// By name.
    roles: BTreeMap<String, Role>,
    /// The application credential that it was made with.
    credential: Option<AppCredential>,
}

impl Valid {
    fn is_admin(&self) -> bool {
        self.roles.contains_key("admin")
    }
}

impl Identity {
    /// Reads the identity file, or makes it together with `clouds.yaml`.
    ///
    /// # Errors
    ///
    /// When a file or the store cannot be used.
    pub fn open(settings: &ServerSettings, store: Arc<Store>) -> Result<Self, IdentityError> {
        let clouds_file = settings.clouds_file();
        let directory = match Directory::load(&settings.identity_file)? {
            Some(directory) => directory,
            None => {
                let (directory, users) = Directory::generate().map_err(IdentityError::Password)?;
                // The passwords first: if the machine stops in between, new ones are made next time.
                let url = settings.public_url.clone().unwrap_or_default();
                clouds::write(&clouds_file, &users, &url)
                    .map_err(|source| IdentityError::Clouds { path: clouds_file.display().to_string(), source })?;
                directory.create(&settings.identity_file)?;
                directory
            }
        };
        let (key, revoked) = store.write(|tx| -> Result<_, StoreError> {
            let key = match tx.setting(KEY_SETTING)?.as_deref().and_then(from_hex) {
                Some(key) => key,
                None => {
                    let key = random::bytes::<KEY_BYTES>();
                    tx.set_setting(KEY_SETTING, &to_hex(&key))?;
                    key
                }
            };
            let revoked = tx.setting(REVOKED_SETTING)?.unwrap_or_default();
            // Unreadable is as good as empty: it can only come from outside, and must not stop the API.
            Ok((key, serde_json::from_str(&revoked).unwrap_or_default()))
        })?;
        Ok(Self {
            directory: RwLock::new(Arc::new(directory)),
            identity_file: settings.identity_file.clone(),
            signer: Signer::new(&key),
            passwords: Passwords::new().map_err(|e| IdentityError::Password(e.to_string()))?,
            revoked: Mutex::new(revoked),
            store,
            public_url: settings.public_url.clone(),
            clouds_file,
            lifetime: settings.token_expiration,
        })
    }

    /// Writes into `clouds.yaml` where the server is and, where it needs saying, by which authority it is known;
    /// tells whether the file is there.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn announce(&self, local_url: &str, authority: Option<&Path>) -> Result<bool, IdentityError> {
        let url = self.public_url.as_deref().unwrap_or(local_url);
        clouds::refresh(&self.clouds_file, url, authority)
            .map_err(|source| IdentityError::Clouds { path: self.clouds_file.display().to_string(), source })
    }

    /// Checks a token and looks up what it leads to now.
    fn validate(&self, token: &str, now: Timestamp) -> Result<Valid, Invalid> {
        let claims = self.signer.verify(token, now)?;
        let revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        if claims.audit_ids.iter().any(|id| revoked.contains_key(id)) {
            return Err(Invalid::Revoked);
        }
        drop(revoked);
        let directory = self.directory();
        let user = directory.user(&claims.user_id).filter(|u| u.enabled).ok_or(Invalid::Obsolete)?.clone();
        // What was logged in before a password was changed may be whoever it was changed for.
        if claims.credential.is_none() && user.password_changed_us.is_some_and(|changed| claims.issued_us < changed) {
            return Err(Invalid::Obsolete);
        }
        let project = match &claims.project_id {
            Some(id) => Some(directory.project(id).filter(|p| p.enabled).ok_or(Invalid::Obsolete)?.clone()),
            None => None,
        };
        let credential = match &claims.credential {
            Some(id) => Some(directory.app_credential(id).filter(|c| c.is_good(now)).ok_or(Invalid::Obsolete)?.clone()),
            None => None,
        };
        let mut roles: BTreeMap<String, Role> = BTreeMap::new();
        if let Some(project) = &project {
            let held = directory.roles_on(&user.id, &project.id);
            // A credential has of the user's roles those that it was given, as long as the user has them.
            let given =
                credential.as_ref().map(|c| directory.with_implied(c.roles.iter().filter_map(|id| directory.role(id))));
            let counts = |name: &&str| given.as_ref().is_none_or(|given| given.contains_key(name));
            roles.extend(
                held.iter().filter(|(name, _)| counts(name)).map(|(name, role)| ((*name).to_owned(), (*role).clone())),
            );
            if roles.is_empty() {
                return Err(Invalid::Obsolete);
            }
        }
        Ok(Valid { claims, user, project, roles, credential })
    }

    /// Who there is now.
    fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what the file has become.
    fn set_directory(&self, directory: Directory) {
        *self.directory.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
    }

    /// Makes a token useless, and those that were made from it.
    async fn revoke(self: &Arc<Self>, claims: &Claims, now: Timestamp) -> Result<(), StoreError> {
        let identity = Arc::clone(self);
        let (id, end) = (claims.audit_ids.first().cloned().unwrap_or_default(), claims.expires_us);
        let work = move || {
            // The list is made inside the write, so that of two at once, also on two servers, the later holds both.
            identity.store.write(|tx| {
                let stored: BTreeMap<String, i64> =
                    tx.setting(REVOKED_SETTING)?.and_then(|list| serde_json::from_str(&list).ok()).unwrap_or_default();
                let mut revoked = identity.revoked.lock().unwrap_or_else(PoisonError::into_inner);
                revoked.extend(stored);
                revoked.retain(|_, end| *end > now.as_microsecond());
                revoked.insert(id.clone(), end);
                let list = serde_json::to_string(&*revoked).expect("strings and numbers are always JSON");
                drop(revoked);
                tx.set_setting(REVOKED_SETTING, &list)
            })
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Ok(()))
    }

    /// The root URL that the client is told.
    fn base_url(&self, headers: &axum::http::HeaderMap) -> String {
        crate::base_url::base_url(self.public_url.as_deref(), headers)
    }
}

/// A time as Keystone prints it.
fn time_text(microseconds: i64) -> String {
    let time = Timestamp::from_microsecond(microseconds).unwrap_or(Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests;
