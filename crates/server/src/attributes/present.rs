//! Showing objects: what the caller may see, and of that what it asked for.

use serde_json::Value;

use super::{Attribute, Object, Table};
use crate::context::Context;
use crate::policy;

/// What of a resource's attributes one caller is shown.
#[derive(Debug)]
pub struct View<'a> {
    hidden: Vec<&'static str>,
    /// Hidden on some objects.
    doubtful: Vec<&'static Attribute>,
    table: &'a Table,
    ctx: &'a Context,
    fields: &'a [String],
}

impl<'a> View<'a> {
    /// Prepares the view once for any number of objects. Empty `fields` means all.
    pub fn new(table: &'a Table, ctx: &'a Context, fields: &'a [String]) -> Self {
        let (mut hidden, mut doubtful) = (Vec::new(), Vec::new());
        for attribute in table.attributes {
            match policy::shows(table, ctx, attribute) {
                Some(true) => {}
                Some(false) => hidden.push(attribute.name),
                None => doubtful.push(attribute),
            }
        }
        Self { hidden, doubtful, table, ctx, fields }
    }

    /// Cuts an object down to the view.
    pub fn show(&self, mut object: Object) -> Object {
        if let Some(project) = object.get("project_id").cloned() {
            object.insert("tenant_id".into(), project);
        }
        for attribute in &self.doubtful {
            if !policy::shows_of(self.table, self.ctx, attribute, &object) {
                object.remove(attribute.name);
            }
        }
        let wanted = |name: &str| self.fields.is_empty() || self.fields.iter().any(|field| field == name);
        object.retain(|name, _| wanted(name) && !self.hidden.contains(&name.as_str()));
        object
    }
}

/// Tells whether what an object shows under `name` is one of the wanted texts.
pub fn matches(object: &Object, name: &str, wanted: &[String]) -> bool {
    let text = match object.get(name) {
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        Some(other) => other.to_string(),
        None => return false,
    };
    wanted.contains(&text)
}
