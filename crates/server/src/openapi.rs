//! `/evergate/v1/openapi.json`: the API described for machines, made from the same tables that check requests.
//!
//! It says of every collection what may be asked and what a body may hold, so that a fuzzer or a client
//! generator need not be told by hand. It is the same for all callers and shows nothing that is kept: no
//! token is needed.

mod actions;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use serde_json::{Map, Value as Json, json};

use crate::attributes::{Absent, Attribute, Kind, Table};
use crate::policy::Rule;
use crate::resources::{COLLECTIONS, NESTED, find};

/// The route, from the server's root.
pub fn routes() -> Router {
    Router::new().route("/evergate/v1/openapi.json", get(answer))
}

async fn answer() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document().to_string())
}

/// Describes the API in the words of OpenAPI 3.1.
pub fn document() -> Json {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for collection in COLLECTIONS {
        let Some(resource) = find(collection) else { continue };
        let table = resource.table();
        paths.insert(format!("/v2.0/{collection}"), collection_path(table));
        paths.insert(format!("/v2.0/{collection}/{{id}}"), member_path(table));
        add_schemas(&mut schemas, table);
    }
    for (above, collection, table) in NESTED {
        let parent = json!({"name": "parent", "in": "path", "required": true, "schema": {"type": "string"}});
        let (mut many, mut one) = (collection_path(table), member_path(table));
        many["parameters"] = json!([parent]);
        one["parameters"].as_array_mut().into_iter().for_each(|parameters| parameters.push(parent.clone()));
        paths.insert(format!("/v2.0/{above}/{{parent}}/{collection}"), many);
        paths.insert(format!("/v2.0/{above}/{{parent}}/{collection}/{{id}}"), one);
        add_schemas(&mut schemas, table);
    }
    actions::add(&mut paths);
    schemas.insert("error".into(), error());
    schemas.insert("unauthorized".into(), unauthorized());
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Networking API v2.0", "version": env!("CARGO_PKG_VERSION")},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
            "schemas": schemas,
        },
    })
}

fn add_schemas(schemas: &mut Map<String, Json>, table: &Table) {
    schemas.insert(table.singular.to_owned(), shown(table));
    schemas.insert(format!("new_{}", table.singular), body(table, |attribute| attribute.post, true));
    schemas.insert(format!("changed_{}", table.singular), body(table, |attribute| attribute.put, false));
}

fn reference(name: &str) -> Json {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn content(schema: Json) -> Json {
    json!({"application/json": {"schema": schema}})
}

/// An object with one key: how the API wraps everything.
fn wrapped(key: &str, schema: Json) -> Json {
    json!({"type": "object", "properties": {key: schema}, "required": [key]})
}

/// The answers of an operation: its success, and Neutron's error body for everything else.
fn responses(status: &str, schema: Option<Json>) -> Json {
    let mut success = json!({"description": "done"});
    if let Some(schema) = schema {
        success["content"] = content(schema);
    }
    json!({
        status: success,
        "401": {"description": "without a token that holds", "content": content(reference("unauthorized"))},
        "default": {"description": "refused", "content": content(reference("error"))},
    })
}

fn collection_path(table: &Table) -> Json {
    let filters = table.attributes.iter().filter(|attribute| attribute.filter != crate::attributes::Filter::No);
    let own = ["limit", "marker", "page_reverse", "fields", "sort_key", "sort_dir"];
    let names = own.into_iter().chain(filters.map(|attribute| attribute.name));
    let parameters: Vec<Json> =
        names.map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})).collect();
    let many = json!({"type": "array", "items": reference(table.singular)});
    let mut path =
        json!({"get": {"parameters": parameters, "responses": responses("200", Some(wrapped(table.plural, many)))}});
    if table.create != Rule::Nobody {
        let one = wrapped(table.singular, reference(&format!("new_{}", table.singular)));
        path["post"] = json!({
            "requestBody": {"required": true, "content": content(one)},
            "responses": responses("201", Some(wrapped(table.singular, reference(table.singular)))),
        });
    }
    path
}

fn member_path(table: &Table) -> Json {
    let shown = || Some(wrapped(table.singular, reference(table.singular)));
    let mut path = json!({
        "parameters": [{"name": "id", "in": "path", "required": true, "schema": {"type": "string"}}],
        "get": {"responses": responses("200", shown())},
    });
    if table.update != Rule::Nobody {
        let changes = wrapped(table.singular, reference(&format!("changed_{}", table.singular)));
        path["put"] = json!({
            "requestBody": {"required": true, "content": content(changes)},
            "responses": responses("200", shown()),
        });
    }
    if table.delete != Rule::Nobody {
        path["delete"] = json!({"responses": responses("204", None)});
    }
    path
}

/// What an object shows; who is no admin is shown less, so nothing is promised.
fn shown(table: &Table) -> Json {
    let seen = table.attributes.iter().filter(|attribute| attribute.see != Rule::Nobody);
    // A value's form when shown is not always the one in which it is given.
    let properties: Map<String, Json> = seen.map(|attribute| (attribute.name.to_owned(), json!({}))).collect();
    json!({"type": "object", "properties": properties})
}

/// What a body may hold.
fn body(table: &Table, allowed: impl Fn(&Attribute) -> bool, create: bool) -> Json {
    let attributes: Vec<&Attribute> = table.attributes.iter().filter(|attribute| allowed(attribute)).collect();
    let properties: Map<String, Json> =
        attributes.iter().map(|attribute| (attribute.name.to_owned(), schema(attribute.kind))).collect();
    // The project is the caller's where it is not given.
    let required = attributes.iter().filter(|a| create && a.absent == Absent::Required && a.name != "project_id");
    let required: Vec<&str> = required.map(|attribute| attribute.name).collect();
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

/// What a kind of value looks like in its plainest spelling; some others are accepted as well.
fn schema(kind: Kind) -> Json {
    let list = |item: Json| json!({"type": "array", "items": item});
    let address = || json!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]});
    let pair =
        |one: &str, other: &str| json!({"type": "object", "properties": {one: address(), other: {"type": "string"}}});
    match kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::BoolOrNull => json!({"type": ["boolean", "null"]}),
        Kind::Int => json!({"type": "integer", "minimum": 0}),
        Kind::IntOrNull => json!({"type": ["integer", "null"], "minimum": 0}),
        Kind::Limit => json!({"type": "integer", "minimum": -1, "maximum": i32::MAX}),
        Kind::PortNumber => json!({"type": "integer", "minimum": 1, "maximum": u16::MAX}),
        Kind::PortRange => json!({"type": "string", "pattern": "^[0-9]+(:[0-9]+)?$"}),
        Kind::OneOf(allowed) => json!({"enum": allowed}),
        Kind::NotBlank(max) => json!({"type": "string", "minLength": 1, "maxLength": max}),
        Kind::Text(max) => json!({"type": "string", "maxLength": max}),
        Kind::TextOrNull(max) => json!({"type": ["string", "null"], "maxLength": max}),
        Kind::Words(words) => json!({"enum": words}),
        Kind::WordsOrNull(words) => json!({"anyOf": [{"enum": words}, {"type": "null"}]}),
        Kind::Scalar => json!({"type": ["string", "integer", "null"]}),
        Kind::Uuids => list(json!({"type": "string", "format": "uuid"})),
        Kind::DhcpOptions => list(json!({"type": "object", "properties": {
            "opt_name": {"type": "string"}, "opt_value": {"type": ["string", "null"]}, "ip_version": {"enum": [4, 6]},
        }})),
        Kind::Uuid => json!({"type": "string", "format": "uuid"}),
        Kind::UuidOrNull => json!({"type": ["string", "null"], "format": "uuid"}),
        Kind::IpOrNull => json!({"anyOf": [address(), {"type": "null"}]}),
        Kind::CidrOrNull | Kind::MacOrNull => json!({"type": ["string", "null"]}),
        Kind::Dict => json!({"type": ["object", "null"]}),
        Kind::Strings(max) => list(json!({"type": "string", "maxLength": max})),
        Kind::Prefixes | Kind::ServiceTypes => list(json!({"type": "string"})),
        Kind::Pools => list(pair("start", "end")),
        Kind::Nameservers => list(address()),
        Kind::Routes => list(pair("nexthop", "destination")),
        Kind::FixedIps => list(pair("ip_address", "subnet_id")),
        Kind::AddressPairs => list(pair("ip_address", "mac_address")),
        Kind::GatewayInfo => json!({"type": ["object", "null"], "properties": {
            "network_id": {"type": "string", "format": "uuid"},
            "enable_snat": {"type": "boolean"},
            "external_fixed_ips": schema(Kind::FixedIps),
        }}),
        Kind::NotOffered => json!({"type": "null"}),
        Kind::NoneOffered => json!({"type": "array", "maxItems": 0}),
        Kind::Computed => json!({}),
    }
}

/// Keystone's form, since it is asked before anything else.
fn unauthorized() -> Json {
    let inner = json!({
        "type": "object",
        "properties": {"code": {"const": 401}, "title": {"type": "string"}, "message": {"type": "string"}},
        "required": ["code", "title", "message"],
    });
    wrapped("error", inner)
}

fn error() -> Json {
    let text = || json!({"type": "string"});
    let inner = json!({
        "type": "object",
        "properties": {"type": text(), "message": text(), "detail": text()},
        "required": ["type", "message", "detail"],
    });
    wrapped("NeutronError", inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_that_a_verb_takes_is_described() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        for collection in COLLECTIONS {
            let table = find(collection).expect("it is listed").table();
            for attribute in table.attributes {
                let in_body = |prefix: &str| {
                    schemas[format!("{prefix}_{}", table.singular)]["properties"].get(attribute.name).is_some()
                };
                assert_eq!(in_body("new"), attribute.post, "{collection}: {}", attribute.name);
                assert_eq!(in_body("changed"), attribute.put, "{collection}: {}", attribute.name);
            }
        }
        assert_eq!(schemas["new_subnet"]["required"], json!(["network_id", "ip_version"]));
        assert!(document["paths"]["/v2.0/agents"].get("post").is_none(), "agents come by themselves");
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Json, schemas: &Json) {
            match value {
                Json::Object(map) => {
                    if let Some(name) = map.get("$ref").and_then(Json::as_str) {
                        let name = name.trim_start_matches("#/components/schemas/");
                        assert!(schemas.get(name).is_some(), "{name}");
                    }
                    map.values().for_each(|inner| check(inner, schemas));
                }
                Json::Array(items) => items.iter().for_each(|inner| check(inner, schemas)),
                Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
            }
        }
        let document = document();
        check(&document["paths"], &document["components"]["schemas"]);
    }
}
