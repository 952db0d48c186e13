//! Bodies of POST and PUT: unwrapped, checked against the table, completed and converted.
//!
//! The order of checks is Neutron's, so that a body with several faults is refused for the same one:
//! wrapper, project, unknown attributes, what the verb does not allow, values, and then policy.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::kind::Refusal;
use super::{Absent, Attribute, Object, Table};
use crate::context::Context;
use crate::error::ApiError;
use crate::policy::{self, Facts, Target};

/// Objects of one request, at most: with its defaults, an object of a few bytes takes a few kilobytes.
const MOST_AT_ONCE: usize = 10_000;

/// A body that passed: every attribute known, converted, and on POST completed with defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Body {
    attributes: Object,
    /// What the client gave itself, as opposed to defaults: policy looks at those only.
    given: Vec<&'static str>,
}

/// One or several objects of a POST.
#[derive(Clone, Debug, PartialEq)]
pub enum Posted {
    /// Wrapped in the singular.
    One(Body),
    /// Wrapped in the plural: all or nothing.
    Bulk(Vec<Body>),
}

impl Posted {
    /// All objects.
    pub fn bodies(&self) -> &[Body] {
        match self {
            Self::One(body) => std::slice::from_ref(body),
            Self::Bulk(bodies) => bodies,
        }
    }
}

impl Body {
    /// Reads the body of a POST.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn of_post(table: &Table, ctx: &Context, json: &Object) -> Result<Posted, ApiError> {
        if let Some(items) = json.get(table.plural) {
            if !table.bulk {
                return Err(ApiError::bad_request("Bulk operation not supported"));
            }
            let Value::Array(items) = items else {
                return Err(ApiError::bad_request("Body contains invalid data"));
            };
            if items.is_empty() {
                return Err(ApiError::bad_request("Resources required"));
            }
            if items.len() > MOST_AT_ONCE {
                let message = format!("At most {MOST_AT_ONCE} objects are made by one request");
                return Err(ApiError::bad_request(message));
            }
            let bodies = items.iter().map(|item| {
                // Each item may be wrapped once more in the singular.
                let inner = item.get(table.singular).filter(|inner| inner.is_object()).unwrap_or(item);
                Self::complete(table, ctx, object(inner)?)
            });
            return bodies.collect::<Result<_, _>>().map(Posted::Bulk);
        }
        Self::complete(table, ctx, unwrap(table, json)?).map(Posted::One)
    }

    /// Reads the body of a PUT: what is absent stays as it is.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn of_put(table: &Table, json: &Object) -> Result<Self, ApiError> {
        let given = unwrap(table, json)?;
        refuse_unknown(table, given)?;
        let mut body = Self::default();
        for (name, value) in given {
            let attribute = known(table, name)?;
            if !attribute.put {
                return Err(ApiError::bad_request(format!("Cannot update read-only attribute {name}")));
            }
            body.insert_given(attribute, name, value)?;
        }
        Ok(body)
    }

    fn complete(table: &Table, ctx: &Context, given: &Object) -> Result<Self, ApiError> {
        let project = project_of(ctx, given)?;
        refuse_unknown(table, given)?;
        for attribute in table.attributes {
            if !attribute.post && given.contains_key(attribute.name) {
                return Err(ApiError::bad_request(format!("Attribute '{}' not allowed in POST", attribute.name)));
            }
            let required = attribute.absent == Absent::Required && attribute.name != "project_id";
            if attribute.post && required && !given.contains_key(attribute.name) {
                let message = format!("Failed to parse request. Required attribute '{}' not specified", attribute.name);
                return Err(ApiError::bad_request(message));
            }
        }
        let mut body = Self::default();
        for attribute in table.attributes.iter().filter(|attribute| attribute.post) {
            match given.get(attribute.name) {
                Some(value) if attribute.name != "project_id" => {
                    body.insert_given(attribute, attribute.name, value)?;
                }
                _ => {
                    if let Some(value) = default(attribute.absent) {
                        body.attributes.insert(attribute.name.into(), value);
                    }
                }
            }
        }
        if table.attribute("project_id").is_some() {
            body.attributes.insert("project_id".into(), project.into());
        }
        Ok(body)
    }

    fn insert_given(&mut self, attribute: &'static Attribute, name: &str, value: &Value) -> Result<(), ApiError> {
        let converted = attribute.kind.convert(value).map_err(|refusal| match refusal {
            Refusal::Reason(reason) => ApiError::bad_request(format!("Invalid input for {name}. Reason: {reason}.")),
            Refusal::Conversion(reason) => ApiError::invalid(reason),
        })?;
        self.given.push(attribute.name);
        self.attributes.insert(attribute.name.into(), converted);
        Ok(())
    }

    /// Refuses what policy does not let the caller give.
    ///
    /// # Errors
    ///
    /// 403 with the rules that were asked.
    pub fn check_policy(&self, table: &Table, ctx: &Context, facts: Facts<'_>, create: bool) -> Result<(), ApiError> {
        let facts = Facts { given: Some(&self.attributes), ..facts };
        let mut refused = Vec::new();
        for name in &self.given {
            let attribute = known(table, name)?;
            // A default given in so many words is as good as not given.
            let value = self.attributes.get(*name);
            if create && default(attribute.absent).as_ref() == value {
                continue;
            }
            if !policy::may_give(table, ctx, attribute, create, facts) {
                refused.push((*name).to_owned());
            }
            let parts = attribute.parts.iter().filter(|part| value.is_some_and(|value| part.is_in(value)));
            let forbidden = parts.filter(|part| !policy::may_give_part(table, ctx, (attribute, part), create, facts));
            refused.extend(forbidden.map(|part| format!("{name}:{}", part.name)));
        }
        if refused.is_empty() {
            return Ok(());
        }
        let verb = if create { "create" } else { "update" };
        let refused: Vec<&str> = refused.iter().map(String::as_str).collect();
        Err(policy::forbidden(&format!("{verb}_{}", table.policy_name()), &refused))
    }

    /// What policy can ask about a new object.
    pub fn facts<'a>(&'a self, target: &'a Target) -> Facts<'a> {
        Facts { target, given: Some(&self.attributes), object: None }
    }

    /// Tells whether the client gave the attribute, or on POST its default is a value.
    pub fn has(&self, name: &str) -> bool {
        self.attributes.contains_key(name)
    }

    /// Tells whether the client itself gave the attribute.
    pub fn was_given(&self, name: &str) -> bool {
        self.given.contains(&name)
    }

    /// Tells whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// Reads an attribute; `None` where it is absent. Read null with an `Option` inside.
    ///
    /// # Errors
    ///
    /// 500 when the attribute's kind lets through what the handler cannot read: our mistake.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.attributes.get(name) else { return Ok(None) };
        serde_json::from_value(value.clone())
            .map(Some)
            .map_err(|error| ApiError::internal(format!("attribute {name} is not what its kind promises: {error}")))
    }

    /// Reads an attribute that POST always has.
    ///
    /// # Errors
    ///
    /// 500 when it is absent or not of the type: our mistake.
    pub fn need<T: DeserializeOwned>(&self, name: &str) -> Result<T, ApiError> {
        self.get(name)?.ok_or_else(|| ApiError::internal(format!("attribute {name} has no default")))
    }

    /// Reads an attribute that is shown as it is stored: lists and dictionaries.
    pub fn json(&self, name: &str) -> Option<&Value> {
        self.attributes.get(name)
    }
}

fn default(absent: Absent) -> Option<Value> {
    match absent {
        Absent::Required | Absent::Unset => None,
        Absent::Null => Some(Value::Null),
        Absent::Bool(b) => Some(b.into()),
        Absent::Text(s) => Some(s.into()),
        Absent::EmptyList => Some(Value::Array(Vec::new())),
    }
}

fn object(value: &Value) -> Result<&Object, ApiError> {
    value.as_object().ok_or_else(|| ApiError::bad_request("Body contains invalid data"))
}

fn unwrap<'j>(table: &Table, json: &'j Object) -> Result<&'j Object, ApiError> {
    match json.get(table.singular) {
        Some(inner) => object(inner),
        None => Err(ApiError::bad_request(format!("Unable to find '{}' in request body", table.singular))),
    }
}

fn known(table: &Table, name: &str) -> Result<&'static Attribute, ApiError> {
    table.attribute(name).ok_or_else(|| ApiError::bad_request(format!("Unrecognized attribute(s) '{name}'")))
}

fn refuse_unknown(table: &Table, given: &Object) -> Result<(), ApiError> {
    let unknown: Vec<_> = given.keys().filter(|name| table.attribute(name).is_none()).map(String::as_str).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("Unrecognized attribute(s) '{}'", unknown.join(", "))))
}

/// Finds whose the new object is: the caller's, unless an admin or a service says otherwise.
fn project_of(ctx: &Context, given: &Object) -> Result<String, ApiError> {
    let named = |key: &str| given.get(key).filter(|value| !value.is_null());
    let (project, tenant) = (named("project_id"), named("tenant_id"));
    if let (Some(project), Some(tenant)) = (project, tenant)
        && project != tenant
    {
        return Err(ApiError::bad_request("'project_id' and 'tenant_id' do not match"));
    }
    match project.or(tenant) {
        Some(Value::String(project)) => {
            if !ctx.is_admin && !ctx.is_service && ctx.project_id.as_ref() != Some(project) {
                let message = "Specifying 'project_id' or 'tenant_id' other than the authenticated project in \
                               request requires admin privileges";
                return Err(ApiError::bad_request(message));
            }
            if project.chars().count() > 255 {
                let message =
                    format!("Invalid input for project_id. Reason: '{project}' exceeds maximum length of 255.");
                return Err(ApiError::bad_request(message));
            }
            Ok(project.clone())
        }
        Some(other) => {
            let text = super::kind::shown(other);
            Err(ApiError::bad_request(format!("Invalid input for project_id. Reason: '{text}' is not a valid string.")))
        }
        None => match &ctx.project_id {
            Some(project) => Ok(project.clone()),
            None => Err(ApiError::bad_request(
                "Running without a project-scoped token requires that project_id is specified",
            )),
        },
    }
}
