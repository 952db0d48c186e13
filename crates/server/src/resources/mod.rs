//! The resources of the API: a table of attributes and a handler each, and what all of them share.
//!
//! A [`Resource`] says how its objects are read, made, changed and removed; checking bodies, policy,
//! filters, pages, revision numbers and what is shown is done here once for all of them. Every
//! request is one transaction of the store, so nothing is ever half-done.

pub mod address_scopes;
pub mod agents;
pub mod availability_zones;
pub mod extensions;
pub mod floating_ips;
pub mod gateway;
pub mod interfaces;
pub mod networks;
pub mod port_forwardings;
pub mod ports;
pub mod quotas;
pub mod rbac_policies;
pub mod routers;
pub mod scheduling;
pub mod security_group_rules;
pub mod security_groups;
pub mod shortage;
pub mod subnet_pools;
pub mod subnets;
pub mod tags;
pub mod versions;
pub mod views;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::{Value as Json, json};

use crate::attributes::body::Posted;
use crate::attributes::present::{View, matches};
use crate::attributes::query::{Condition, ListQuery};
use crate::attributes::{Body, Object, Table};
use crate::context::Context;
use crate::error::ApiError;
use crate::objects::{self, Later};
use crate::options::Options;
use crate::policy::{self, Facts, Rule, Target};
use crate::store::{Tx, Value};

/// One call of the API: who asks, under which settings, in which transaction.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The transaction that everything happens in.
    pub tx: &'a Tx<'a>,
    /// The caller.
    pub ctx: &'a Context,
    /// The settings.
    pub options: &'a Options,
}

/// A kind of object that the API offers.
pub trait Resource: Sync {
    /// Its names, attributes and rules.
    fn table(&self) -> &'static Table;

    /// The error for an object that is not there, or not the caller's to see.
    fn not_found(&self, id: &str) -> ApiError;

    /// What all of its objects have in common beside the table's scope: their parent.
    fn within(&self) -> Option<Condition> {
        None
    }

    /// Reads objects as the API shows them to an admin, in no particular order.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn load(&self, call: Call<'_>, ids: &[String]) -> Result<Vec<Object>, ApiError>;

    /// Finds what policy judges a new object by.
    ///
    /// # Errors
    ///
    /// When what it is to be part of is not there.
    fn target(&self, _call: Call<'_>, body: &Body) -> Result<Target, ApiError> {
        Ok(Target::of_project(&body.get::<String>("project_id")?.unwrap_or_default()))
    }

    /// Finds what policy judges an object by that is there already.
    ///
    /// # Errors
    ///
    /// When the store cannot be read.
    fn target_of(&self, _call: Call<'_>, object: &Object) -> Result<Target, ApiError> {
        Ok(Target::of_project(object.get("project_id").and_then(Json::as_str).unwrap_or("")))
    }

    /// Names the attribute that says what a new object is to be part of, where [`Resource::target`] looks at that.
    fn parent(&self) -> Option<&'static str> {
        None
    }

    /// Makes an object; answers its id.
    ///
    /// # Errors
    ///
    /// Why it cannot be made.
    fn create(&self, call: Call<'_>, body: &Body) -> Result<String, ApiError>;

    /// Makes several objects; answers their ids.
    ///
    /// # Errors
    ///
    /// Why they cannot be made at once.
    fn create_all(&self, call: Call<'_>, bodies: &[Body]) -> Result<Vec<String>, ApiError> {
        bodies.iter().map(|body| self.create(call, body)).collect()
    }

    /// Changes an object.
    ///
    /// # Errors
    ///
    /// Why it cannot be changed so.
    fn update(&self, call: Call<'_>, id: &str, body: &Body) -> Result<(), ApiError>;

    /// Removes an object.
    ///
    /// # Errors
    ///
    /// Why it must stay.
    fn delete(&self, call: Call<'_>, id: &str) -> Result<(), ApiError>;
}

/// Finds a resource by its collection's name in URLs.
pub fn find(collection: &str) -> Option<&'static dyn Resource> {
    let resource: &'static dyn Resource = match collection {
        "networks" => &networks::Networks,
        "subnets" => &subnets::Subnets,
        "ports" => &ports::Ports,
        "routers" => &routers::Routers,
        "floatingips" => &floating_ips::FloatingIps,
        "agents" => &agents::Agents,
        "address-scopes" => &address_scopes::AddressScopes,
        "subnetpools" => &subnet_pools::SubnetPools,
        "security-groups" => &security_groups::SecurityGroups,
        "security-group-rules" => &security_group_rules::SecurityGroupRules,
        "rbac-policies" => &rbac_policies::RbacPolicies,
        _ => return None,
    };
    Some(resource)
}

/// Names of all collections, for the list of resources.
pub const COLLECTIONS: [&str; 11] = [
    "networks",
    "subnets",
    "subnetpools",
    "address-scopes",
    "ports",
    "routers",
    "floatingips",
    "agents",
    "security-groups",
    "security-group-rules",
    "rbac-policies",
];

/// Collections below the members of another one: its name, theirs, and their table.
pub static NESTED: [(&str, &str, &Table); 1] = [("floatingips", "port_forwardings", &port_forwardings::TABLE)];

/// Objects of a list that are read and put into words at once: the words are a fraction of what the objects take.
const LISTED_AT_ONCE: usize = 500;

/// Objects of a request that is over its project's quota whose parents are looked up nevertheless.
const LOOKED_AT_OVER_QUOTA: usize = 100;

/// Answers a list, in JSON.
///
/// # Errors
///
/// When the query makes no sense, or its marker is not there.
pub fn list(
    call: Call<'_>,
    resource: &dyn Resource,
    pairs: &[(String, String)],
    url: &str,
) -> Result<Vec<u8>, ApiError> {
    let table = resource.table();
    let query = ListQuery::parse(table, call.ctx, pairs, call.options.pagination_max_limit)?;
    let view = View::new(table, call.ctx, &query.fields);
    let mut listed = Listed::of(table.plural);
    let mut of_page = Page { ids: Vec::new(), has_next: false, has_previous: false };
    let sight = policy::sight(table, call.ctx);
    if sight.nothing {
    } else if query.shown.is_empty() && !sight.each {
        of_page = page_of(call, resource, &query)?;
        for ids in of_page.ids.chunks(LISTED_AT_ONCE) {
            let objects = in_order(resource.load(call, ids)?, ids);
            objects.into_iter().for_each(|object| listed.add(&view.show(object)));
        }
    } else {
        let ids = matching_ids(call, resource, &query, None)?;
        let mut all = in_order(resource.load(call, &ids)?, &ids);
        if sight.each {
            all = seen_each(call, resource, all)?;
        }
        all.retain(|object| query.shown.iter().all(|(name, wanted)| matches(object, name, wanted)));
        of_page = page(resource, all.iter().map(id_of).collect(), &query)?;
        let ids: BTreeSet<&String> = of_page.ids.iter().collect();
        let objects = all.into_iter().filter(|object| ids.contains(&id_of(object)));
        objects.for_each(|object| listed.add(&view.show(object)));
    }
    let mut links = Vec::new();
    if query.limit.is_some() {
        let (first, last) = (of_page.ids.first(), of_page.ids.last());
        let both = [("next", of_page.has_next, last, false), ("previous", of_page.has_previous, first, true)];
        let there = both.into_iter().filter(|(_, is_there, ..)| *is_there);
        links.extend(
            there.map(|(rel, _, marker, reverse)| json!({"rel": rel, "href": page_url(url, pairs, marker, reverse)})),
        );
    }
    Ok(listed.end(query.limit.map(|_| Json::Array(links))))
}

/// A list in the making, in JSON.
struct Listed {
    plural: &'static str,
    text: Vec<u8>,
    is_empty: bool,
}

impl Listed {
    fn of(plural: &'static str) -> Self {
        Self { plural, text: format!("{{\"{plural}\":[").into_bytes(), is_empty: true }
    }

    fn add(&mut self, object: &Object) {
        if !std::mem::take(&mut self.is_empty) {
            self.text.push(b',');
        }
        serde_json::to_writer(&mut self.text, object).expect("maps with textual keys are always JSON");
    }

    fn end(mut self, links: Option<Json>) -> Vec<u8> {
        self.text.push(b']');
        if let Some(links) = links {
            self.text.extend_from_slice(format!(",\"{}_links\":{links}", self.plural).as_bytes());
        }
        self.text.push(b'}');
        self.text
    }
}

/// Answers one object.
///
/// # Errors
///
/// 404 when it is not there, or not the caller's to see.
pub fn show(call: Call<'_>, resource: &dyn Resource, id: &str, fields: &[String]) -> Result<Json, ApiError> {
    let object = visible(call, resource, id)?;
    Ok(shown(call, resource, object, fields))
}

fn shown(call: Call<'_>, resource: &dyn Resource, object: Object, fields: &[String]) -> Json {
    let table = resource.table();
    json!({table.singular: View::new(table, call.ctx, fields).show(object)})
}

/// Reads the body of a POST, which takes no transaction.
///
/// # Errors
///
/// What is wrong with it.
pub fn read_post(ctx: &Context, resource: &dyn Resource, json: &Object) -> Result<Posted, ApiError> {
    let table = resource.table();
    if table.create == Rule::Nobody {
        return Err(not_allowed("POST", table.plural));
    }
    Body::of_post(table, ctx, json)
}

/// Makes one object, or several at once.
///
/// The writers' turn is held meanwhile, so what a request costs is bounded before it is worked on: by the
/// project's quota, and what its objects are part of is looked up once.
///
/// # Errors
///
/// What is forbidden or in the way; nothing is made then.
pub fn create(call: Call<'_>, resource: &dyn Resource, posted: &Posted) -> Result<Json, ApiError> {
    let (table, bodies) = (resource.table(), posted.bodies());
    let targets = claimed_targets(call, resource, bodies)?;
    for (body, target) in bodies.iter().zip(&targets) {
        let facts = body.facts(target);
        if !policy::may(table, call.ctx, "create", table.create, facts) {
            return Err(policy::forbidden(&format!("create_{}", table.policy_name()), &[]));
        }
        body.check_policy(table, call.ctx, facts, true)?;
    }
    let ids = resource.create_all(call, bodies)?;
    let mut objects = in_order(resource.load(call, &ids)?, &ids);
    match posted {
        Posted::One(_) => {
            let object = objects.pop().ok_or_else(|| ApiError::internal("a new object cannot be read back"))?;
            Ok(shown(call, resource, object, &[]))
        }
        Posted::Bulk(_) => {
            let view = View::new(table, call.ctx, &[]);
            let all: Vec<Json> = objects.into_iter().map(|object| Json::Object(view.show(object))).collect();
            Ok(json!({table.plural: all}))
        }
    }
}

/// Claims places for new objects, and finds what policy judges each of them by.
///
/// As in Neutron, what an object is to be part of is missed before a place is, and policy is asked after both.
fn claimed_targets(call: Call<'_>, resource: &dyn Resource, bodies: &[Body]) -> Result<Vec<Rc<Target>>, ApiError> {
    let mut by_project = BTreeMap::<String, i64>::new();
    for body in bodies {
        *by_project.entry(body.get("project_id")?.unwrap_or_default()).or_default() += 1;
    }
    let kind = resource.table().singular;
    let claims = by_project.iter().map(|(project, count)| quotas::ask_claim(call, kind, project, *count));
    let mut claims = claims.collect::<Result<Vec<_>, _>>()?;
    let mut known = BTreeMap::new();
    let (mut targets, mut has_room) = (Vec::new(), true);
    for (n, body) in bodies.iter().enumerate() {
        if !has_room && n >= LOOKED_AT_OVER_QUOTA {
            break;
        }
        let of_body = |name: &str| body.json(name).map(Json::to_string);
        let target = match known.entry((resource.parent().and_then(of_body), of_body("project_id"))) {
            Entry::Occupied(known) => Rc::clone(known.get()),
            Entry::Vacant(new) => Rc::clone(new.insert(Rc::new(resource.target(call, body)?))),
        };
        targets.push(target);
        // They were asked together with the first target.
        for claim in claims.drain(..) {
            has_room &= claim.read()?;
        }
    }
    if has_room { Ok(targets) } else { Err(quotas::over(kind)) }
}

/// Reads the body of a PUT, which takes no transaction.
///
/// # Errors
///
/// What is wrong with it.
pub fn read_put(resource: &dyn Resource, json: &Object) -> Result<Body, ApiError> {
    let table = resource.table();
    if table.update == Rule::Nobody {
        return Err(not_allowed("PUT", table.plural));
    }
    Body::of_put(table, json)
}

/// Changes an object, if it is still at the revision that `If-Match` names.
///
/// # Errors
///
/// What is forbidden or in the way; nothing is changed then.
pub fn update(
    call: Call<'_>,
    resource: &dyn Resource,
    id: &str,
    if_match: Option<i64>,
    body: &Body,
) -> Result<Json, ApiError> {
    let table = resource.table();
    let object = visible(call, resource, id)?;
    let target = resource.target_of(call, &object)?;
    let facts = Facts { object: Some(&object), ..body.facts(&target) };
    if !policy::may(table, call.ctx, "update", table.update, facts) {
        return Err(policy::forbidden(&format!("update_{}", table.policy_name()), &[]));
    }
    body.check_policy(table, call.ctx, facts, false)?;
    check_revision(&object, if_match)?;
    if !body.is_empty() {
        resource.update(call, &id_of(&object), body)?;
    }
    show(call, resource, id, &[])
}

/// Removes an object, if it is still at the revision that `If-Match` names.
///
/// # Errors
///
/// When it is forbidden, or something needs the object.
pub fn delete(call: Call<'_>, resource: &dyn Resource, id: &str, if_match: Option<i64>) -> Result<(), ApiError> {
    let table = resource.table();
    let object = visible(call, resource, id)?;
    let target = resource.target_of(call, &object)?;
    let facts = Facts { target: &target, given: None, object: Some(&object) };
    if !policy::may(table, call.ctx, "delete", table.delete, facts) {
        return Err(policy::forbidden(&format!("delete_{}", table.policy_name()), &[]));
    }
    check_revision(&object, if_match)?;
    resource.delete(call, &id_of(&object))
}

/// Makes sure that the caller may see an object.
///
/// # Errors
///
/// 404 otherwise.
pub fn must_see(call: Call<'_>, resource: &dyn Resource, id: &str) -> Result<(), ApiError> {
    let sight = policy::sight(resource.table(), call.ctx);
    if sight.nothing || sight.each {
        return visible(call, resource, id).map(drop);
    }
    let only = Condition { sql: "t.id = ?".into(), values: vec![Value::from(id.to_ascii_lowercase())] };
    let query = ListQuery { conditions: vec![only], ..ListQuery::default() };
    let is_there = !matching_ids(call, resource, &query, Some(1))?.is_empty();
    if is_there { Ok(()) } else { Err(resource.not_found(id)) }
}

/// Reads an object that the caller may see.
///
/// # Errors
///
/// 404 otherwise.
pub fn visible(call: Call<'_>, resource: &dyn Resource, id: &str) -> Result<Object, ApiError> {
    let table = resource.table();
    let sight = policy::sight(table, call.ctx);
    if sight.nothing {
        return Err(ApiError::not_found());
    }
    let id_of_row = id.to_ascii_lowercase();
    let only = Condition { sql: "t.id = ?".into(), values: vec![Value::from(&id_of_row)] };
    let query = ListQuery { conditions: vec![only], ..ListQuery::default() };
    // Whether it may be seen is asked together with what it is.
    let ids = ask_matching_ids(call, resource, &query, None)?;
    let mut found = resource.load(call, &[id_of_row])?;
    if ids.read()?.is_empty() {
        found.clear();
    }
    if sight.each {
        found = seen_each(call, resource, found)?;
    }
    found.pop().ok_or_else(|| resource.not_found(id))
}

/// Keeps of objects those that policy lets the caller see, each judged by itself.
fn seen_each(call: Call<'_>, resource: &dyn Resource, objects: Vec<Object>) -> Result<Vec<Object>, ApiError> {
    let mut seen = Vec::new();
    for object in objects {
        let target = resource.target_of(call, &object)?;
        if policy::may_see(resource.table(), call.ctx, &target, &object) {
            seen.push(object);
        }
    }
    Ok(seen)
}

/// Refuses a caller that may see an object but not change it by this action.
///
/// # Errors
///
/// 404 or 403.
pub fn writable(call: Call<'_>, resource: &dyn Resource, id: &str, action: &str) -> Result<Object, ApiError> {
    let object = visible(call, resource, id)?;
    let target = resource.target_of(call, &object)?;
    let facts = Facts { target: &target, given: None, object: Some(&object) };
    if policy::may_act(resource.table(), call.ctx, action, facts) {
        Ok(object)
    } else {
        Err(policy::forbidden(action, &[]))
    }
}

fn not_allowed(verb: &str, plural: &str) -> ApiError {
    ApiError::HTTPMethodNotAllowed { message: format!("The method {verb} is not allowed for {plural}.") }
}

fn check_revision(object: &Object, if_match: Option<i64>) -> Result<(), ApiError> {
    let current = object.get("revision_number").and_then(Json::as_i64);
    match (if_match, current) {
        (Some(expected), Some(current)) if expected != current => {
            let (expected, current) = (expected.to_string(), current.to_string());
            Err(ApiError::RevisionNumberConstraintFailed { expected, current })
        }
        _ => Ok(()),
    }
}

/// Finds ids of the objects that a query wants and the caller may see, in the query's order.
fn matching_ids(
    call: Call<'_>,
    resource: &dyn Resource,
    query: &ListQuery,
    limit: Option<usize>,
) -> Result<Vec<String>, ApiError> {
    Ok(ask_matching_ids(call, resource, query, limit)?.read()?)
}

fn ask_matching_ids<'t>(
    call: Call<'t>,
    resource: &dyn Resource,
    query: &ListQuery,
    limit: Option<usize>,
) -> Result<Later<'t, Vec<String>>, ApiError> {
    let table = resource.table();
    let (mut conditions, mut params) = (Vec::new(), Vec::new());
    if !policy::sight(table, call.ctx).everything {
        // A caller without a project owns nothing: NULL equals nothing, whereas HA networks have the
        // project ''.
        conditions.push(format!("({})", table.scope));
        // PostgreSQL refuses a parameter that nothing uses.
        if table.scope.contains("?1") {
            params.push(Value::from(call.ctx.project_id.as_deref().filter(|project| !project.is_empty())));
        }
    }
    for condition in query.conditions.iter().chain(&resource.within()) {
        conditions.push(format!("({})", condition.numbered(params.len() + 1)));
        params.extend(condition.values.iter().cloned());
    }
    let mut sql = format!("SELECT t.id FROM {} t", table.sql);
    if !conditions.is_empty() {
        sql.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
    }
    let mut order = Vec::new();
    for (expression, descending) in &query.sort {
        let by = if expression.contains('?') {
            params.push(Value::from(call.ctx.project_id.as_deref()));
            expression.replace('?', &format!("?{}", params.len()))
        } else {
            (*expression).to_owned()
        };
        // What is unknown is less than anything, in both databases.
        order.push(format!("{by} {}", if *descending { "DESC NULLS LAST" } else { "ASC NULLS FIRST" }));
    }
    order.push("t.id ASC".to_owned());
    sql.push_str(&format!(" ORDER BY {}", order.join(", ")));
    if let Some(limit) = limit {
        params.push(Value::from(i64::try_from(limit).unwrap_or(i64::MAX)));
        sql.push_str(&format!(" LIMIT ?{}", params.len()));
    }
    Ok(objects::ask(call.tx, &sql, &params, |row| row.text(0))?)
}

/// Finds the ids of a page, and no others where the database can tell where it begins.
fn page_of(call: Call<'_>, resource: &dyn Resource, query: &ListQuery) -> Result<Page, ApiError> {
    let begins = query.marker.is_none() || query.sort.is_empty();
    let Some(limit) = query.limit.filter(|_| begins && !query.page_reverse) else {
        return page(resource, matching_ids(call, resource, query, None)?, query);
    };
    let mut rest = query.clone();
    if let Some(marker) = rest.marker.take() {
        let by_id = |sql: &str| Condition { sql: sql.into(), values: vec![Value::from(&marker)] };
        let mut only = rest.clone();
        only.conditions.push(by_id("t.id = ?"));
        if matching_ids(call, resource, &only, Some(1))?.is_empty() {
            return Err(resource.not_found(&marker));
        }
        rest.conditions.push(by_id("t.id > ?"));
    }
    let ids = matching_ids(call, resource, &rest, Some(limit))?;
    Ok(Page { has_next: ids.len() >= limit, has_previous: true, ids })
}

/// One page of a list: its ids, and whether there may be pages beside it.
struct Page {
    ids: Vec<String>,
    has_next: bool,
    has_previous: bool,
}

fn page(resource: &dyn Resource, ids: Vec<String>, query: &ListQuery) -> Result<Page, ApiError> {
    let limit = query.limit.unwrap_or(usize::MAX);
    let (start, end) = match &query.marker {
        None if query.page_reverse => (ids.len().saturating_sub(limit), ids.len()),
        None => (0, limit.min(ids.len())),
        Some(marker) => {
            let at = ids.iter().position(|id| id == marker).ok_or_else(|| resource.not_found(marker))?;
            if query.page_reverse {
                (at.saturating_sub(limit), at)
            } else {
                (at + 1, (at + 1).saturating_add(limit).min(ids.len()))
            }
        }
    };
    // As Neutron: there may be more where a page is full, and there is a way back wherever one came forward.
    let is_full = end - start >= limit;
    Ok(Page {
        ids: ids[start..end].to_vec(),
        has_next: is_full || query.page_reverse,
        has_previous: is_full || !query.page_reverse,
    })
}

fn page_url(url: &str, pairs: &[(String, String)], marker: Option<&String>, reverse: bool) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in pairs.iter().filter(|(name, _)| name != "marker" && name != "page_reverse") {
        query.append_pair(name, value);
    }
    if let Some(marker) = marker {
        query.append_pair("marker", marker);
    }
    if reverse {
        query.append_pair("page_reverse", "True");
    }
    format!("{url}?{}", query.finish())
}

fn id_of(object: &Object) -> String {
    object.get("id").and_then(Json::as_str).unwrap_or_default().to_owned()
}

fn in_order(objects: Vec<Object>, ids: &[String]) -> Vec<Object> {
    let mut by_id: BTreeMap<String, Object> = objects.into_iter().map(|object| (id_of(&object), object)).collect();
    ids.iter().filter_map(|id| by_id.remove(id)).collect()
}

/// Shows what every object has: times, revision number and tags.
pub(crate) fn standard(object: &mut Object, standard: &objects::Standard, tags: Option<Vec<String>>) {
    object.insert("created_at".into(), standard.created_at.clone().into());
    object.insert("updated_at".into(), standard.updated_at.clone().into());
    object.insert("revision_number".into(), standard.revision_number.into());
    object.insert("tags".into(), tags.unwrap_or_default().into());
}

/// Turns a JSON literal into an object.
pub(crate) fn object(json: Json) -> Object {
    if let Json::Object(object) = json { object } else { Object::new() }
}

/// Reads an id of a URL or a store's row; what is no id names nothing.
pub(crate) fn parse_id<T: std::str::FromStr>(resource: &dyn Resource, id: &str) -> Result<T, ApiError> {
    id.parse().map_err(|_| resource.not_found(id))
}
