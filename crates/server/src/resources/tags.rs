//! Tags of any tagged object, below `/v2.0/<collection>/<id>/tags`.

use serde_json::{Value as Json, json};

use super::{Call, Resource, visible, writable};
use crate::attributes::{Kind, Object};
use crate::error::ApiError;
use crate::objects::{bump, tags};

/// Longest tag.
const MAX_LENGTH: usize = 255;
/// Most tags of one object.
const MAX_TAGS: usize = 50;

fn writable_id(call: Call<'_>, resource: &dyn Resource, id: &str, verb: &str) -> Result<String, ApiError> {
    if !resource.table().tagged {
        return Err(ApiError::not_found());
    }
    let object = writable(call, resource, id, &format!("{verb}_{}:tags", resource.table().policy_name()))?;
    Ok(object.get("id").and_then(Json::as_str).unwrap_or_default().to_owned())
}

fn checked(value: &Json) -> Result<Vec<String>, ApiError> {
    let refuse = |reason: String| ApiError::bad_request(format!("Invalid input for tags. Reason: {reason}."));
    let list = Kind::Strings(MAX_LENGTH).convert(value).map_err(|refusal| match refusal {
        crate::attributes::kind::Refusal::Reason(reason) | crate::attributes::kind::Refusal::Conversion(reason) => {
            refuse(reason)
        }
    })?;
    let tags: Vec<String> =
        list.as_array().into_iter().flatten().filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    if tags.len() > MAX_TAGS {
        return Err(refuse(format!("The number of tags exceed the per-resource limit of {MAX_TAGS}")));
    }
    if let Some(bad) = tags.iter().find(|tag| tag.is_empty() || tag.contains(',')) {
        return Err(refuse(format!("'{bad}' is not a valid tag")));
    }
    Ok(tags)
}

/// Lists an object's tags.
///
/// # Errors
///
/// 404 where there is no such object.
pub fn list(call: Call<'_>, resource: &dyn Resource, id: &str) -> Result<Json, ApiError> {
    let object = visible(call, resource, id)?;
    Ok(json!({"tags": object.get("tags").cloned().unwrap_or_else(|| json!([]))}))
}

/// Answers with success where the object has the tag.
///
/// # Errors
///
/// 404 where it has not.
pub fn check(call: Call<'_>, resource: &dyn Resource, id: &str, tag: &str) -> Result<(), ApiError> {
    let object = visible(call, resource, id)?;
    let has = object.get("tags").and_then(Json::as_array).is_some_and(|tags| tags.iter().any(|t| t == tag));
    if has { Ok(()) } else { Err(ApiError::TagNotFound { tag: tag.to_owned() }) }
}

/// Replaces an object's tags, or with `add` adds to them.
///
/// # Errors
///
/// When they are no tags, or the caller may not.
pub fn put(call: Call<'_>, resource: &dyn Resource, id: &str, json: &Object, add: bool) -> Result<Json, ApiError> {
    let id = writable_id(call, resource, id, if add { "create" } else { "update" })?;
    let given = json.get("tags").ok_or_else(|| ApiError::bad_request("Invalid tags body"))?;
    let mut wanted = checked(given)?;
    if add {
        wanted.extend(tags::of(call.tx, &id)?);
        wanted.sort();
        wanted.dedup();
    }
    tags::replace(call.tx, &id, &wanted)?;
    bump(call.tx, resource.table().sql, &id)?;
    Ok(json!({"tags": tags::of(call.tx, &id)?}))
}

/// Adds one tag.
///
/// # Errors
///
/// When it is none, or the caller may not.
pub fn add(call: Call<'_>, resource: &dyn Resource, id: &str, tag: &str) -> Result<(), ApiError> {
    let id = writable_id(call, resource, id, "update")?;
    checked(&json!([tag]))?;
    tags::add(call.tx, &id, tag)?;
    Ok(bump(call.tx, resource.table().sql, &id)?)
}

/// Removes one tag, or all.
///
/// # Errors
///
/// 404 where the object does not have it, 403 where the caller may not.
pub fn remove(call: Call<'_>, resource: &dyn Resource, id: &str, tag: Option<&str>) -> Result<(), ApiError> {
    let id = writable_id(call, resource, id, "delete")?;
    match tag {
        None => tags::replace(call.tx, &id, &[])?,
        Some(tag) => {
            if !tags::remove(call.tx, &id, tag)? {
                return Err(ApiError::TagNotFound { tag: tag.to_owned() });
            }
        }
    }
    Ok(bump(call.tx, resource.table().sql, &id)?)
}
