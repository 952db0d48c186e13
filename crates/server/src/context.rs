//! Who asks: what identity found out about a request before the API sees it.

use std::collections::BTreeSet;

/// The caller of one request. Identity puts it into the request's extensions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The user's id.
    pub user_id: String,
    /// The user's name, for logs.
    pub user_name: String,
    /// The project that the token is scoped to, if any.
    pub project_id: Option<String>,
    /// Names of the roles the user has there.
    pub roles: BTreeSet<String>,
    /// Holds the admin role: sees and may do everything.
    pub is_admin: bool,
    /// Names this request in logs and in `X-Openstack-Request-Id` (`req-<uuid>`).
    pub request_id: String,
}

impl Context {
    /// Tells whether the caller may change things in its own project.
    pub fn may_write(&self) -> bool {
        self.is_admin || self.has_role("manager") || self.has_role("member")
    }

    /// Tells whether the caller has the role, by itself or implied by a stronger one.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// The project, or the empty text that no project has.
    pub fn project(&self) -> &str {
        self.project_id.as_deref().unwrap_or("")
    }
}
