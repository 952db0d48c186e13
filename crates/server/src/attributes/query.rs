//! The query of a list: filters, fields, sorting and pages.

use std::collections::BTreeSet;

use super::kind::Refusal;
use super::{Attribute, Filter, Kind, Table};
use crate::context::Context;
use crate::error::ApiError;
use crate::policy::{self, Rule};
use crate::store::Value;

/// A list's query, checked against the resource's table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListQuery {
    /// SQL conditions that all must hold, with their values.
    pub conditions: Vec<Condition>,
    /// Attributes that are compared with what is shown, and the wanted texts.
    pub shown: Vec<(&'static str, Vec<String>)>,
    /// Attributes to show; empty for all.
    pub fields: Vec<String>,
    /// SQL expressions, in which `?` stands for the caller's project, and whether they descend.
    pub sort: Vec<(&'static str, bool)>,
    /// Largest number of objects to answer.
    pub limit: Option<usize>,
    /// Id of the object that the page starts after.
    pub marker: Option<String>,
    /// Go backwards from the marker.
    pub page_reverse: bool,
}

/// An SQL condition. `{}` stands for as many `?` as there are values; each `?` takes the next one.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    /// The SQL.
    pub sql: String,
    /// What the parameters are, in order.
    pub values: Vec<Value>,
}

impl Condition {
    /// Writes the condition with numbered parameters, the first of which is `?<first>`.
    pub fn numbered(&self, first: usize) -> String {
        let list = vec!["?"; self.values.len()].join(", ");
        let mut pieces = self.sql.replace("{}", &list).split('?').map(str::to_owned).collect::<Vec<_>>().into_iter();
        let mut sql = pieces.next().unwrap_or_default();
        for (index, piece) in pieces.enumerate() {
            sql.push_str(&format!("?{}{piece}", first + index));
        }
        sql
    }
}

/// Splits a raw query into its pairs; names may repeat.
pub fn pairs(raw: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(raw.unwrap_or("").as_bytes()).into_owned().collect()
}

/// Values of all pairs of that name.
fn all<'p>(pairs: &'p [(String, String)], name: &str) -> Vec<&'p str> {
    pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
}

/// The attributes that `fields` asks for; empty for all.
pub fn fields(pairs: &[(String, String)]) -> Vec<String> {
    all(pairs, "fields").into_iter().filter(|field| !field.is_empty()).map(str::to_owned).collect()
}

impl ListQuery {
    /// Reads a list's query. What the resource cannot be filtered by is refused, as by Neutron with
    /// `filter-validation`, and so is what the caller does not see: otherwise one could find it out by asking.
    ///
    /// # Errors
    ///
    /// When a value cannot be what its attribute is, or filters, sorting and paging make no sense.
    pub fn parse(
        table: &Table,
        ctx: &Context,
        pairs: &[(String, String)],
        max_limit: Option<usize>,
    ) -> Result<Self, ApiError> {
        let mut query = Self {
            fields: fields(pairs),
            sort: sort_keys(table, ctx, pairs)?,
            limit: limit(pairs, max_limit)?,
            ..Self::default()
        };
        // Without pages there is nowhere to be.
        if query.limit.is_some() {
            query.marker = all(pairs, "marker").last().filter(|id| !id.is_empty()).map(|id| (*id).to_owned());
            query.page_reverse =
                all(pairs, "page_reverse").last().is_some_and(|text| text.eq_ignore_ascii_case("true"));
        }
        let names = refuse_unknown(pairs, |name| {
            (table.tagged && TAG_FILTERS.contains(&name))
                || usable(table, ctx, name).is_some_and(|attribute| attribute.filter != Filter::No)
        })?;
        for name in names {
            query.add_filter(table, ctx, name, &all(pairs, name))?;
        }
        Ok(query)
    }

    fn add_filter(&mut self, table: &Table, ctx: &Context, name: &str, wanted: &[&str]) -> Result<(), ApiError> {
        if table.tagged
            && let Some(condition) = tag_condition(name, wanted)
        {
            self.conditions.push(condition);
            return Ok(());
        }
        let Some(attribute) = usable(table, ctx, name) else { return Ok(()) };
        let values = || filter_values(attribute, wanted);
        match attribute.filter {
            Filter::No => {}
            Filter::Column(column) => {
                self.conditions.push(Condition { sql: format!("{column} IN ({{}})"), values: values()? });
            }
            Filter::ForProject(expression) => {
                let wanted = values()?;
                let sql = format!("{expression} IN ({})", vec!["?"; wanted.len()].join(", "));
                let project = Value::from(ctx.project_id.as_deref());
                self.conditions.push(Condition { sql, values: [vec![project], wanted].concat() });
            }
            Filter::FixedIps => self.conditions.extend(fixed_ip_condition(wanted)?),
            Filter::Exists(sql) => self.conditions.push(Condition { sql: sql.to_owned(), values: values()? }),
            Filter::Shown => {
                let boolean = matches!(attribute.kind, Kind::Bool | Kind::BoolOrNull);
                let texts = values()?.into_iter().map(|value| match value {
                    Value::Int(n) if boolean => (n != 0).to_string(),
                    Value::Int(n) => n.to_string(),
                    Value::Text(text) => text.to_ascii_lowercase(),
                    Value::Null => String::new(),
                });
                self.shown.push((attribute.name, texts.collect()));
            }
        }
        Ok(())
    }
}

/// What a query says besides filters.
const NO_FILTERS: [&str; 6] = ["fields", "sort_key", "sort_dir", "limit", "marker", "page_reverse"];
/// Filters of whatever has tags.
const TAG_FILTERS: [&str; 4] = ["tags", "tags-any", "not-tags", "not-tags-any"];

/// Gives the names of a query's filters, each once.
///
/// # Errors
///
/// When some of them are not known.
pub fn refuse_unknown(pairs: &[(String, String)], is_known: impl Fn(&str) -> bool) -> Result<BTreeSet<&str>, ApiError> {
    let names = pairs.iter().map(|(name, _)| name.as_str()).filter(|name| !NO_FILTERS.contains(name));
    let (known, unknown): (BTreeSet<_>, BTreeSet<_>) = names.partition(|name| is_known(name));
    if unknown.is_empty() {
        return Ok(known);
    }
    let unknown: Vec<String> = unknown.into_iter().map(|name| format!("'{name}'")).collect();
    Err(ApiError::bad_request(format!("[{}] is invalid attribute for filtering", unknown.join(", "))))
}

/// Finds an attribute that the caller may ask by: one that it sees on every object. What nobody is shown may be
/// there just for that.
fn usable(table: &Table, ctx: &Context, name: &str) -> Option<&'static Attribute> {
    let seen = |attribute: &&Attribute| policy::shows(table, ctx, attribute) == Some(true);
    table.attribute(name).filter(|attribute| attribute.see == Rule::Nobody || seen(attribute))
}

fn filter_values(attribute: &Attribute, wanted: &[&str]) -> Result<Vec<Value>, ApiError> {
    let values = wanted.iter().map(|text| {
        attribute.kind.filter_value(text).map_err(|refusal| match refusal {
            Refusal::Reason(reason) | Refusal::Conversion(reason) => ApiError::invalid(reason),
        })
    });
    values.collect()
}

/// `tags` must all be there, `tags-any` one of them; `not-` turns either round.
fn tag_condition(name: &str, wanted: &[&str]) -> Option<Condition> {
    let (negated, any) = match name {
        "tags" => (false, false),
        "tags-any" => (false, true),
        "not-tags" => (true, false),
        "not-tags-any" => (true, true),
        _ => return None,
    };
    let mut tags: Vec<&str> = wanted.iter().flat_map(|text| text.split(',')).filter(|tag| !tag.is_empty()).collect();
    tags.sort_unstable();
    tags.dedup();
    if tags.is_empty() {
        return Some(Condition { sql: "1 = 1".into(), values: Vec::new() });
    }
    let least = if any { 1 } else { tags.len() };
    let has = format!("(SELECT count(*) FROM tags WHERE object_id = t.id AND tag IN ({{}})) >= {least}");
    let sql = if negated { format!("NOT ({has})") } else { has };
    Some(Condition { sql, values: tags.into_iter().map(Value::from).collect() })
}

/// `fixed_ips=ip_address=10.0.0.3`, `fixed_ips=subnet_id=...` and `fixed_ips=ip_address_substr=10.0`: one address
/// must match all kinds, and of each kind one of the values. Other kinds say nothing.
fn fixed_ip_condition(wanted: &[&str]) -> Result<Option<Condition>, ApiError> {
    let (mut addresses, mut parts, mut subnets) = (Vec::new(), Vec::new(), Vec::new());
    for text in wanted {
        let pair = text.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let Some((key, value)) = pair.filter(|(key, _)| !key.is_empty()) else {
            return Err(ApiError::invalid(format!("'{text}' is not of the form <key>=[value]")));
        };
        match key {
            "ip_address" => addresses.push(Value::from(canonical_address(value))),
            "subnet_id" => subnets.push(Value::from(value.to_ascii_lowercase())),
            // What is no part of any address is found in none, and must not be a pattern.
            "ip_address_substr" => {
                let is_part = value.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':'));
                parts.push(Value::from(if is_part {
                    format!("%{}%", value.to_ascii_lowercase())
                } else {
                    String::new()
                }));
            }
            _ => {}
        }
    }
    let (mut sql, mut values) = (Vec::new(), Vec::new());
    for (column, texts) in [("f.ip_address", addresses), ("f.subnet_id", subnets)] {
        if !texts.is_empty() {
            sql.push(format!("{column} IN ({})", vec!["?"; texts.len()].join(", ")));
            values.extend(texts);
        }
    }
    if !parts.is_empty() {
        sql.push(format!("({})", vec!["f.ip_address LIKE ?"; parts.len()].join(" OR ")));
        values.extend(parts);
    }
    if sql.is_empty() {
        return Ok(None);
    }
    let sql = format!("EXISTS (SELECT 1 FROM fixed_ips f WHERE f.port_id = t.id AND {})", sql.join(" AND "));
    Ok(Some(Condition { sql, values }))
}

fn canonical_address(text: &str) -> String {
    text.parse::<std::net::IpAddr>().map_or_else(|_| text.to_owned(), |ip| ip.to_string())
}

fn sort_keys(table: &Table, ctx: &Context, pairs: &[(String, String)]) -> Result<Vec<(&'static str, bool)>, ApiError> {
    let (keys, directions) = (all(pairs, "sort_key"), all(pairs, "sort_dir"));
    if keys.len() != directions.len() {
        return Err(ApiError::bad_request("The number of sort_keys and sort_dirs must be same"));
    }
    let sortable = |key: &&str| usable(table, ctx, key).and_then(|attribute| attribute.sort);
    let invalid: Vec<_> = keys.iter().filter(|key| sortable(key).is_none()).map(|key| format!("'{key}'")).collect();
    if !invalid.is_empty() {
        return Err(ApiError::bad_request(format!("[{}] is invalid attribute for sort_keys", invalid.join(", "))));
    }
    let mut sort = Vec::new();
    for (key, direction) in keys.iter().zip(&directions) {
        let descending = match *direction {
            "asc" => false,
            "desc" => true,
            other => {
                let message = format!("['{other}'] is invalid value for sort_dirs, valid value is 'asc' and 'desc'");
                return Err(ApiError::bad_request(message));
            }
        };
        sort.extend(sortable(key).map(|column| (column, descending)));
    }
    Ok(sort)
}

fn limit(pairs: &[(String, String)], max: Option<usize>) -> Result<Option<usize>, ApiError> {
    let Some(text) = all(pairs, "limit").last().copied() else { return Ok(max) };
    let Ok(limit) = text.parse::<usize>() else {
        let reason = format!("Limit must be an integer 0 or greater and not '{text}'");
        return Err(ApiError::BadRequest { resource: "limit".to_owned(), reason });
    };
    // 0 stands for no limit of the client's own.
    Ok(match (limit, max) {
        (0, max) => max,
        (limit, Some(max)) => Some(limit.min(max)),
        (limit, None) => Some(limit),
    })
}
