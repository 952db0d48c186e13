//! Who there is: users, projects and roles, from a file that is made on first start.
//!
//! The file is the truth: the server's memory follows it ([`super::fresh`]), and whoever changes it, the server
//! itself or `evergate identity`, does so under a lock beside it ([`change`]). It is JSON, so that an operator can
//! add to it by hand as well: a user may be given a `password` in plain, which is replaced by its hash when the
//! file is read. Passwords that were generated are in plain nowhere
//! but in `clouds.yaml` (see [`super::clouds`]).
//!
//! Invariant: what was loaded is consistent: every assignment names a user, a project and a role.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::password;
use crate::{private_file, random};

/// The only domain.
pub(super) const DOMAIN_ID: &str = "default";
/// Its name.
pub(super) const DOMAIN_NAME: &str = "Default";

/// Roles that every deployment has, the stronger before those it implies.
const ROLES: [&str; 5] = ["admin", "manager", "member", "reader", "service"];

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Directory {
    /// Says that this is such a file, and which kind.
    version: u32,
    pub(super) roles: Vec<Role>,
    pub(super) projects: Vec<Project>,
    pub(super) users: Vec<User>,
    pub(super) assignments: Vec<Assignment>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) application_credentials: Vec<AppCredential>,
}

/// A role.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Role {
    pub(super) id: String,
    pub(super) name: String,
}

/// A project.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Project {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
}

/// A user.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default = "yes")]
    pub(super) enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) default_project_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password_hash: Option<String>,
    /// When the password was changed, in microseconds since 1970: older tokens are void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) password_changed_us: Option<i64>,
}

/// What stands for a user on one project, with some of its roles there: for programs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AppCredential {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) description: String,
    pub(super) user: String,
    pub(super) project: String,
    /// Roles by id.
    pub(super) roles: Vec<String>,
    pub(super) secret_hash: String,
    /// When it ends, in microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) expires_us: Option<i64>,
    /// Whether it may make and remove others of its kind.
    #[serde(default)]
    pub(super) unrestricted: bool,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for AppCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppCredential").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A user's role on a project, all by id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Assignment {
    pub(super) user: String,
    pub(super) project: String,
    pub(super) role: String,
}

fn yes() -> bool {
    true
}

impl User {
    /// A user that may log in.
    pub(super) fn new(id: &str, name: &str, default_project_id: Option<String>, password_hash: String) -> Self {
        Self {
            id: id.to_owned(),
            name: name.to_owned(),
            enabled: true,
            default_project_id,
            password: None,
            password_hash: Some(password_hash),
            password_changed_us: None,
        }
    }
}

/// A user whose password was generated just now.
pub(super) struct NewUser {
    pub(super) name: &'static str,
    pub(super) project: &'static str,
    pub(super) password: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be read or written.
    #[error("failed to {action} identity file {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("identity file {path} cannot be used: {reason}")]
    Invalid {
        /// Which file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl Directory {
    /// Reads the file; `None` when there is none yet.
    pub(super) fn load(path: &Path) -> Result<Option<Self>, DirectoryError> {
        let io = |action| move |source| DirectoryError::Io { action, path: path.display().to_string(), source };
        let invalid = |reason: String| DirectoryError::Invalid { path: path.display().to_string(), reason };
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io("read")(error)),
        };
        let mut directory: Self = serde_json::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        directory.check().map_err(invalid)?;
        if directory.hash_plain_passwords().map_err(invalid)? {
            private_file::replace(path, &directory.text()).map_err(io("write"))?;
        }
        Ok(Some(directory))
    }

    /// Writes the file for the first time.
    pub(super) fn create(&self, path: &Path) -> Result<(), DirectoryError> {
        private_file::create(path, &self.text()).map_err(|source| DirectoryError::Io {
            action: "write",
            path: path.display().to_string(),
            source,
        })
    }

    /// Makes an `admin` and a `demo` user, each with a project of that name, and passwords for them.
    pub(super) fn generate() -> Result<(Self, Vec<NewUser>), String> {
        let mut directory = Self {
            version: 1,
            roles: ROLES.map(|name| Role { id: new_id(), name: name.to_owned() }).to_vec(),
            projects: Vec::new(),
            users: Vec::new(),
            assignments: Vec::new(),
            application_credentials: Vec::new(),
        };
        let mut new = Vec::new();
        for (name, role) in [("admin", "admin"), ("demo", "member")] {
            let (project, user) = (new_id(), new_id());
            let password = super::base64url::encode(&random::bytes::<18>());
            directory.projects.push(Project {
                id: project.clone(),
                name: name.to_owned(),
                description: format!("The {name} project, made on first start."),
                enabled: true,
            });
            directory.users.push(User {
                id: user.clone(),
                name: name.to_owned(),
                enabled: true,
                default_project_id: Some(project.clone()),
                password: None,
                password_changed_us: None,
                password_hash: Some(password::hash(&password).map_err(|e| e.to_string())?),
            });
            let role = directory.role_named(role).map(|r| r.id.clone()).unwrap_or_default();
            directory.assignments.push(Assignment { user, project, role });
            new.push(NewUser { name, project: name, password });
        }
        Ok((directory, new))
    }

    fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("strings and booleans are always JSON");
        text.push('\n');
        text
    }

    fn check(&self) -> Result<(), String> {
        if self.version != 1 {
            return Err(format!("it has version {}, and only 1 is known", self.version));
        }
        let names = [
            ("role", self.roles.iter().map(|r| (&r.id, &r.name)).collect::<Vec<_>>()),
            ("project", self.projects.iter().map(|p| (&p.id, &p.name)).collect()),
            ("user", self.users.iter().map(|u| (&u.id, &u.name)).collect()),
        ];
        for (kind, entries) in names {
            let (mut ids, mut seen) = (BTreeSet::new(), BTreeSet::new());
            for (id, name) in entries {
                if id.is_empty() || name.is_empty() || !ids.insert(id) || !seen.insert(name) {
                    return Err(format!("{kind} '{name}' ({id}) has no id or name of its own"));
                }
            }
        }
        for user in &self.users {
            if user.password.is_none() && !user.password_hash.as_deref().is_some_and(password::is_hash) {
                return Err(format!("user '{}' has neither a password nor a hash of one", user.name));
            }
        }
        for c in &self.application_credentials {
            let of_nobody = self.user(&c.user).is_none() || self.project(&c.project).is_none();
            if of_nobody || c.id.is_empty() || !password::is_hash(&c.secret_hash) {
                return Err(format!("application credential {} has no user, project or hash of a secret", c.id));
            }
        }
        for a in &self.assignments {
            if self.user(&a.user).is_none() || self.project(&a.project).is_none() || self.role(&a.role).is_none() {
                return Err(format!("there is no user {}, project {} or role {} to assign", a.user, a.project, a.role));
            }
        }
        Ok(())
    }

    fn hash_plain_passwords(&mut self) -> Result<bool, String> {
        let mut changed = false;
        for user in &mut self.users {
            if let Some(plain) = user.password.take() {
                user.password_hash = Some(password::hash(&plain).map_err(|e| e.to_string())?);
                changed = true;
            }
        }
        Ok(changed)
    }

    pub(super) fn user(&self, id: &str) -> Option<&User> {
        self.users.iter().find(|u| u.id == id)
    }

    pub(super) fn user_named(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|u| u.name == name)
    }

    pub(super) fn project(&self, id: &str) -> Option<&Project> {
        self.projects.iter().find(|p| p.id == id)
    }

    pub(super) fn project_named(&self, name: &str) -> Option<&Project> {
        self.projects.iter().find(|p| p.name == name)
    }

    pub(super) fn role(&self, id: &str) -> Option<&Role> {
        self.roles.iter().find(|r| r.id == id)
    }

    pub(super) fn app_credential(&self, id: &str) -> Option<&AppCredential> {
        self.application_credentials.iter().find(|c| c.id == id)
    }

    pub(super) fn role_named(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|r| r.name == name)
    }

    /// A user's roles on a project, with those that they imply, by name.
    pub(super) fn roles_on(&self, user: &str, project: &str) -> BTreeMap<&str, &Role> {
        let assigned = self.assignments.iter().filter(|a| a.user == user && a.project == project);
        self.with_implied(assigned.filter_map(|a| self.role(&a.role)))
    }

    /// Roles with those that they imply, by name.
    pub(super) fn with_implied<'a>(&'a self, direct: impl Iterator<Item = &'a Role>) -> BTreeMap<&'a str, &'a Role> {
        let mut roles: BTreeMap<&str, &Role> = direct.map(|r| (r.name.as_str(), r)).collect();
        // admin > manager > member > reader; service stands apart.
        let ladder = &ROLES[..4];
        if let Some(top) = ladder.iter().position(|name| roles.contains_key(name)) {
            let implied = ladder[top..].iter().filter_map(|name| self.role_named(name));
            roles.extend(implied.map(|r| (r.name.as_str(), r)));
        }
        roles
    }

    /// The enabled projects that a user has a role on.
    pub(super) fn projects_of(&self, user: &str) -> Vec<&Project> {
        let has_role = |p: &&Project| self.assignments.iter().any(|a| a.user == user && a.project == p.id);
        self.projects.iter().filter(|p| p.enabled).filter(has_role).collect()
    }
}

/// Changes the file as it is now, under a lock that all who change it take; answers what the change answers, and the
/// directory as it has become. Blocks.
pub(super) fn change<T, E: From<DirectoryError>>(
    path: &Path,
    work: impl FnOnce(&mut Directory) -> Result<T, E>,
) -> Result<(T, Directory), E> {
    let io = |action| move |source| DirectoryError::Io { action, path: path.display().to_string(), source };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".lock");
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&beside);
    let lock = lock.map_err(io("lock"))?;
    lock.lock().map_err(io("lock"))?;
    let missing = || io("read")(std::io::ErrorKind::NotFound.into());
    let mut directory = Directory::load(path)?.ok_or_else(missing)?;
    let made = work(&mut directory)?;
    let invalid = |reason: String| DirectoryError::Invalid { path: path.display().to_string(), reason };
    directory.check().map_err(invalid)?;
    private_file::replace(path, &directory.text()).map_err(io("write"))?;
    Ok((made, directory))
}

/// An id as Keystone makes them: a UUID without dashes.
pub(super) fn new_id() -> String {
    uuid::Uuid::from_bytes(random::bytes()).simple().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::private_file::tests::TempDir;

    #[test]
    fn the_file_is_made_once_for_its_owner_alone_and_holds_no_password() {
        let dir = TempDir::new();
        let path = dir.path().join("identity.json");
        assert!(Directory::load(&path).unwrap().is_none());
        let (directory, new) = Directory::generate().unwrap();
        directory.create(&path).unwrap();
        assert_eq!(new.iter().map(|u| u.name).collect::<Vec<_>>(), ["admin", "demo"]);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(new.iter().all(|u| !text.contains(&u.password)));
        assert_eq!(Directory::load(&path).unwrap().unwrap().text(), directory.text());
        assert!(directory.create(&path).is_err());
    }

    #[test]
    fn stronger_roles_imply_weaker_ones() {
        let (directory, _) = Directory::generate().unwrap();
        let names = |name: &str| {
            let (user, project) = (directory.user_named(name).unwrap(), directory.project_named(name).unwrap());
            directory.roles_on(&user.id, &project.id).into_keys().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names("admin"), ["admin", "manager", "member", "reader"]);
        assert_eq!(names("demo"), ["member", "reader"]);
    }

    #[test]
    fn a_password_that_an_operator_wrote_is_replaced_by_its_hash() {
        let dir = TempDir::new();
        let path = dir.path().join("identity.json");
        let (mut directory, _) = Directory::generate().unwrap();
        directory.users[1].password = Some("by hand".into());
        std::fs::write(&path, directory.text()).unwrap();
        let loaded = Directory::load(&path).unwrap().unwrap();
        assert!(!std::fs::read_to_string(&path).unwrap().contains("by hand"));
        assert_ne!(loaded.users[1].password_hash, directory.users[1].password_hash);
    }

    #[test]
    fn an_inconsistent_file_is_refused_with_a_reason() {
        let dir = TempDir::new();
        let path = dir.path().join("identity.json");
        let refused = |change: &dyn Fn(&mut Directory)| {
            let (mut directory, _) = Directory::generate().unwrap();
            change(&mut directory);
            std::fs::write(&path, directory.text()).unwrap();
            Directory::load(&path).unwrap_err().to_string()
        };
        assert!(refused(&|d| d.version = 2).contains("version 2"));
        assert!(refused(&|d| d.users[0].password_hash = None).contains("'admin' has neither"));
        assert!(refused(&|d| d.projects[1].name = "admin".into()).contains("project 'admin'"));
        assert!(refused(&|d| d.assignments[0].role = "x".into()).contains("no user"));
        std::fs::write(&path, "{").unwrap();
        assert!(Directory::load(&path).unwrap_err().to_string().contains("identity.json cannot be used"));
    }
}
