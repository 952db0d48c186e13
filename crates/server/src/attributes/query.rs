//! The query of a list: filters, fields, sorting and pages.

use super::kind::Refusal;
use super::{Attribute, Filter, Table};
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
    /// SQL expressions and whether they descend.
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
    /// Reads a list's query. What is no attribute of the resource is ignored, as Neutron does, and so is
    /// what the caller does not see: otherwise one could find it out by asking.
    ///
    /// # Errors
    ///
    /// When a value cannot be what its attribute is, or sorting and paging make no sense.
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
            marker: all(pairs, "marker").last().filter(|id| !id.is_empty()).map(|id| (*id).to_owned()),
            page_reverse: all(pairs, "page_reverse").last().is_some_and(|text| text.eq_ignore_ascii_case("true")),
            ..Self::default()
        };
        let mut seen: Vec<&str> = Vec::new();
        for (name, _) in pairs {
            if seen.contains(&name.as_str()) {
                continue;
            }
            seen.push(name);
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
        if name == "fixed_ips" && table.attribute(name).is_some() {
            self.conditions.extend(fixed_ip_condition(wanted)?);
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
            Filter::Exists(sql) => self.conditions.push(Condition { sql: sql.to_owned(), values: values()? }),
            Filter::Shown => {
                // Checked for its spelling like any other.
                values()?;
                let texts = wanted.iter().map(|text| text.to_ascii_lowercase()).collect();
                self.shown.push((attribute.name, texts));
            }
        }
        Ok(())
    }
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
/// must match all kinds.
fn fixed_ip_condition(wanted: &[&str]) -> Result<Option<Condition>, ApiError> {
    let (mut sql, mut values) = (Vec::new(), Vec::new());
    for (key, column) in [("ip_address", "f.ip_address"), ("subnet_id", "f.subnet_id")] {
        let texts = wanted.iter().filter_map(|text| text.strip_prefix(key)?.strip_prefix('='));
        let texts: Vec<_> = texts.map(canonical_address).collect();
        if !texts.is_empty() {
            sql.push(format!("{column} IN ({})", vec!["?"; texts.len()].join(", ")));
            values.extend(texts.into_iter().map(Value::from));
        }
    }
    for text in wanted.iter().filter_map(|text| text.strip_prefix("ip_address_substr=")) {
        // What is no part of any address is found in none, and must not be a pattern.
        let part = text.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, '.' | ':'));
        sql.push(if part { "f.ip_address LIKE ?".to_owned() } else { "f.ip_address = ?".to_owned() });
        values.push(Value::from(if part { format!("%{}%", text.to_ascii_lowercase()) } else { String::new() }));
    }
    if values.is_empty() {
        let message = format!("Invalid filter fixed_ips: '{}' is not of the form key=value", wanted.join(","));
        return if wanted.is_empty() { Ok(None) } else { Err(ApiError::bad_request(message)) };
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
        let message = format!("limit must be an integer 0 or greater and not '{text}'");
        return Err(ApiError::bad_request(message));
    };
    // 0 stands for no limit of the client's own.
    Ok(match (limit, max) {
        (0, max) => max,
        (limit, Some(max)) => Some(limit.min(max)),
        (limit, None) => Some(limit),
    })
}
