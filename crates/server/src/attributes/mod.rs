//! What a resource is made of: one table of attributes per resource, and one engine that obeys it.
//!
//! A [`Table`] says of every attribute what it may hold, whether POST and PUT may give it, what it is
//! when absent, who may give and see it, and whether lists can be filtered and sorted by it. The
//! engine checks bodies against it ([`body`]), reads a list's query ([`query`]) and shows objects
//! ([`present`]). Adding a resource is adding a table and a handler
//! ([`Resource`](crate::resources::Resource)).

pub mod body;
pub mod kind;
pub mod present;
pub mod query;

use crate::policy::Rule;

pub use body::Body;
pub use kind::Kind;

/// An object as the API shows it.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// What an attribute is when POST does not give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// An error.
    Required,
    /// Left to the handler.
    Unset,
    /// JSON's null.
    Null,
    /// This truth value.
    Bool(bool),
    /// This text.
    Text(&'static str),
    /// A list without items.
    EmptyList,
}

/// How a list can be narrowed by an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Not at all: asked for, the list is refused.
    No,
    /// By an SQL expression over the resource's row `t`.
    Column(&'static str),
    /// By an SQL expression over the row `t` and, at its only `?`, the caller's project.
    ForProject(&'static str),
    /// By parts of a port's addresses, each `key=value`.
    FixedIps,
    /// By an SQL condition in which `{}` stands for the list of wanted values.
    Exists(&'static str),
    /// By what is shown, after reading.
    Shown,
}

/// What an attribute's value, a dictionary or a list of some, may have under a key.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The key.
    pub name: &'static str,
    /// Who may give it.
    pub set: Rule,
}

impl Part {
    /// Names a part and who may give it.
    pub const fn new(name: &'static str, set: Rule) -> Self {
        Self { name, set }
    }

    /// Tells whether a value has it.
    pub fn is_in(&self, value: &serde_json::Value) -> bool {
        let items = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        items.iter().any(|item| item.get(self.name).is_some_and(|part| !part.is_null()))
    }
}

/// One attribute of a resource.
#[derive(Clone, Copy, Debug)]
pub struct Attribute {
    /// Its name in bodies.
    pub name: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// POST may give it.
    pub post: bool,
    /// PUT may give it.
    pub put: bool,
    /// What it is when POST does not give it.
    pub absent: Absent,
    /// Who may give it on POST.
    pub create: Rule,
    /// Who may give it on PUT.
    pub update: Rule,
    /// Who sees it.
    pub see: Rule,
    /// What of its value has rules of its own.
    pub parts: &'static [Part],
    /// How lists are filtered by it.
    pub filter: Filter,
    /// The SQL expression over the row `t` that lists are sorted by; `?` stands for the caller's project.
    pub sort: Option<&'static str>,
}

impl Attribute {
    /// Starts an attribute that only the server sets and everybody sees.
    pub const fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            post: false,
            put: false,
            absent: Absent::Unset,
            create: Rule::Any,
            update: Rule::Any,
            see: Rule::Any,
            parts: &[],
            filter: Filter::No,
            sort: None,
        }
    }

    /// May be given on POST; otherwise it is `absent`.
    pub const fn post(mut self, absent: Absent) -> Self {
        self.post = true;
        self.absent = absent;
        self
    }

    /// May be given on PUT.
    pub const fn put(mut self) -> Self {
        self.put = true;
        self
    }

    /// May be filtered and sorted by this column.
    pub const fn column(mut self, column: &'static str) -> Self {
        self.filter = Filter::Column(column);
        self.sort = Some(column);
        self
    }

    /// May be filtered by.
    pub const fn filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// May be sorted by this column.
    pub const fn sort(mut self, column: &'static str) -> Self {
        self.sort = Some(column);
        self
    }

    /// Is given and seen by those only.
    pub const fn only(mut self, rule: Rule) -> Self {
        self.create = rule;
        self.update = rule;
        self.see = rule;
        self
    }

    /// Is given by those only, and seen by all.
    pub const fn set_by(mut self, rule: Rule) -> Self {
        self.create = rule;
        self.update = rule;
        self
    }

    /// Is given on PUT by those only.
    pub const fn updated_by(mut self, rule: Rule) -> Self {
        self.update = rule;
        self
    }

    /// Has parts with rules of their own.
    pub const fn parts(mut self, parts: &'static [Part]) -> Self {
        self.parts = parts;
        self
    }

    /// Is seen by those only.
    pub const fn seen_by(mut self, rule: Rule) -> Self {
        self.see = rule;
        self
    }
}

/// A resource: its names, attributes and who may do what.
#[derive(Debug)]
pub struct Table {
    /// Name of one object: the wrapper of a body.
    pub singular: &'static str,
    /// Name of many: the URL's collection and the wrapper of a list.
    pub plural: &'static str,
    /// The SQL table whose row `t` filters and sort keys speak of.
    pub sql: &'static str,
    /// Every attribute.
    pub attributes: &'static [Attribute],
    /// POST takes several at once.
    pub bulk: bool,
    /// Objects carry tags.
    pub tagged: bool,
    /// Who may create.
    pub create: Rule,
    /// Who may see; [`Table::scope`] says which objects.
    pub get: Rule,
    /// Who may update.
    pub update: Rule,
    /// Who may delete.
    pub delete: Rule,
    /// An SQL condition on `t`: what project `?1` sees. Admins see everything.
    pub scope: &'static str,
}

impl Table {
    /// What the resource is called in the names of rules.
    pub fn policy_name(&self) -> &'static str {
        // Neutron names what is below something after both.
        if self.singular == "port_forwarding" { "floatingip_port_forwarding" } else { self.singular }
    }

    /// Finds an attribute; `tenant_id` is an older name of `project_id`.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        let name = if name == "tenant_id" { "project_id" } else { name };
        self.attributes.iter().find(|attribute| attribute.name == name)
    }
}

/// `id`, which every resource has.
pub const ID: Attribute = Attribute::new("id", Kind::Uuid).column("t.id");
/// `name`.
pub const NAME: Attribute = Attribute::new("name", Kind::Text(255)).post(Absent::Text("")).put().column("t.name");
/// `description`.
pub const DESCRIPTION: Attribute =
    Attribute::new("description", Kind::Text(255)).post(Absent::Text("")).put().filter(Filter::Column("t.description"));
/// `admin_state_up`.
pub const ADMIN_STATE_UP: Attribute =
    Attribute::new("admin_state_up", Kind::Bool).post(Absent::Bool(true)).put().column("t.admin_state_up");
/// `project_id`, also known as `tenant_id`; the engine fills it in from the token.
pub const PROJECT_ID: Attribute =
    Attribute::new("project_id", Kind::Text(255)).post(Absent::Required).column("t.project_id");
/// `created_at`.
pub const CREATED_AT: Attribute = Attribute::new("created_at", Kind::Text(32)).sort("t.created_at");
/// `updated_at`.
pub const UPDATED_AT: Attribute = Attribute::new("updated_at", Kind::Text(32)).sort("t.updated_at");
/// `revision_number`.
pub const REVISION_NUMBER: Attribute =
    Attribute::new("revision_number", Kind::Int).filter(Filter::Column("t.revision_number"));
/// `tags`, set through their own URLs and, as in the body of a port, on POST.
pub const TAGS: Attribute = Attribute::new("tags", Kind::Strings(255));

#[cfg(test)]
mod tests;
