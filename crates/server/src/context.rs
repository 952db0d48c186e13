//! Who asks: what identity found out about a request before the API sees it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::policy::Policy;

/// The caller of one request. Identity puts it into the request's extensions.
#[derive(Clone, Debug)]
pub struct Context {
    /// The user's id.
    pub user_id: String,
    /// The user's name, for logs.
    pub user_name: String,
    /// The user's domain, by id.
    pub user_domain_id: Option<String>,
    /// The project that the token is scoped to, if any.
    pub project_id: Option<String>,
    /// That project's name.
    pub project_name: Option<String>,
    /// That project's domain, by id.
    pub project_domain_id: Option<String>,
    /// The domain that the token is scoped to, if any.
    pub domain_id: Option<String>,
    /// `all`, where the token is scoped to the whole system.
    pub system_scope: Option<String>,
    /// Names of the roles the user has there.
    pub roles: BTreeSet<String>,
    /// Names of the roles of the service that passes the request on, if one does.
    pub service_roles: BTreeSet<String>,
    /// Is an admin by the policy's rule `context_is_admin`: sees everything.
    pub is_admin: bool,
    /// Is a service of the cloud by the rule `service_api`: sees what services may see of any project.
    pub is_service: bool,
    /// Names this request in logs and in `X-Openstack-Request-Id` (`req-<uuid>`).
    pub request_id: String,
    /// The rules that the request is judged by.
    pub policy: Arc<Policy>,
}

impl Default for Context {
    fn default() -> Self {
        Self {
            user_id: String::new(),
            user_name: String::new(),
            user_domain_id: None,
            project_id: None,
            project_name: None,
            project_domain_id: None,
            domain_id: None,
            system_scope: None,
            roles: BTreeSet::new(),
            service_roles: BTreeSet::new(),
            is_admin: false,
            is_service: false,
            request_id: String::new(),
            policy: Policy::standard(),
        }
    }
}

impl Context {
    /// Tells whether the caller has the role, by itself or implied by a stronger one.
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// The project, or the empty text that no project has.
    pub fn project(&self) -> &str {
        self.project_id.as_deref().unwrap_or("")
    }

    /// Tells whether the caller has a credential of this value, under oslo.policy's name for it.
    pub(crate) fn credential_is(&self, name: &str, wanted: &str) -> bool {
        // What a caller does not have equals nothing, not even an object's lack of the same.
        let is = |value: Option<&str>| value.is_some_and(|value| !value.is_empty() && value == wanted);
        match name {
            "is_admin" => wanted == if self.is_admin { "True" } else { "False" },
            "user_id" | "user" => is(Some(&self.user_id)),
            "user_name" => is(Some(&self.user_name)),
            "project_id" | "tenant_id" | "tenant" => is(self.project_id.as_deref()),
            "project_name" => is(self.project_name.as_deref()),
            "domain_id" => is(self.domain_id.as_deref()),
            "user_domain_id" => is(self.user_domain_id.as_deref()),
            "project_domain_id" => is(self.project_domain_id.as_deref()),
            "system_scope" => is(self.system_scope.as_deref()),
            "roles" => self.roles.contains(wanted),
            "service_roles" => self.service_roles.contains(wanted),
            _ => false,
        }
    }
}
