//! What is no collection: actions on members, what is below them, quotas and views.

use serde_json::{Map, Value as Json, json};

use super::{body, content, responses, schema};
use crate::attributes::Kind;
use crate::resources::{COLLECTIONS, find, quotas};

/// One operation: a path, the verb, what the body holds (null for none), and the status of success.
type Operation = (&'static str, &'static str, fn() -> Json, &'static str);

const OPERATIONS: &[Operation] = &[
    ("/v2.0/routers/{id}/add_router_interface", "put", interface, "200"),
    ("/v2.0/routers/{id}/remove_router_interface", "put", interface, "200"),
    ("/v2.0/routers/{id}/add_extraroutes", "put", routes, "200"),
    ("/v2.0/routers/{id}/remove_extraroutes", "put", routes, "200"),
    ("/v2.0/routers/{id}/l3-agents", "get", nothing, "200"),
    ("/v2.0/routers/{id}/evergate:hosts", "get", nothing, "200"),
    ("/v2.0/agents/{id}/l3-routers", "get", nothing, "200"),
    ("/v2.0/agents/{id}/l3-routers", "post", router, "201"),
    ("/v2.0/agents/{id}/l3-routers/{router}", "delete", nothing, "204"),
    ("/v2.0/subnetpools/{id}/add_prefixes", "put", prefixes, "200"),
    ("/v2.0/subnetpools/{id}/remove_prefixes", "put", prefixes, "200"),
    ("/v2.0/subnetpools/{id}/onboard_network_subnets", "put", network, "200"),
    ("/v2.0/quotas", "get", nothing, "200"),
    ("/v2.0/quotas/{project}", "get", nothing, "200"),
    ("/v2.0/quotas/{project}", "put", limits, "200"),
    ("/v2.0/quotas/{project}", "delete", nothing, "204"),
    ("/v2.0/quotas/{project}/default", "get", nothing, "200"),
    ("/v2.0/quotas/{project}/details", "get", nothing, "200"),
    ("/v2.0/network-ip-availabilities", "get", nothing, "200"),
    ("/v2.0/network-ip-availabilities/{network}", "get", nothing, "200"),
    ("/v2.0/floatingip_pools", "get", nothing, "200"),
    ("/v2.0/availability_zones", "get", nothing, "200"),
    ("/v2.0/extensions", "get", nothing, "200"),
    ("/v2.0/extensions/{alias}", "get", nothing, "200"),
];

/// Operations on the tags of a member.
const TAGS: &[Operation] = &[
    ("/tags", "get", nothing, "200"),
    ("/tags", "put", tags, "200"),
    ("/tags", "post", tags, "201"),
    ("/tags", "delete", nothing, "204"),
    ("/tags/{tag}", "get", nothing, "204"),
    ("/tags/{tag}", "put", nothing, "201"),
    ("/tags/{tag}", "delete", nothing, "204"),
];

fn nothing() -> Json {
    Json::Null
}

fn interface() -> Json {
    let id = || schema(Kind::Uuid);
    json!({"type": "object", "properties": {"subnet_id": id(), "port_id": id()}, "additionalProperties": false})
}

fn one(key: &str, value: Json) -> Json {
    json!({"type": "object", "properties": {key: value}, "required": [key], "additionalProperties": false})
}

fn routes() -> Json {
    one("router", one("routes", schema(Kind::Routes)))
}

fn router() -> Json {
    one("router_id", schema(Kind::Uuid))
}

fn prefixes() -> Json {
    one("prefixes", schema(Kind::Prefixes))
}

fn network() -> Json {
    one("network_id", schema(Kind::Uuid))
}

fn tags() -> Json {
    one("tags", schema(Kind::Strings(255)))
}

fn limits() -> Json {
    one("quota", body(&quotas::TABLE, |attribute| attribute.put, false))
}

/// Adds every operation to its path.
pub(super) fn add(paths: &mut Map<String, Json>) {
    for (path, verb, body, status) in OPERATIONS {
        add_one(paths, path, verb, body(), status);
    }
    for collection in COLLECTIONS {
        if find(collection).is_some_and(|resource| resource.table().tagged) {
            for (below, verb, body, status) in TAGS {
                add_one(paths, &format!("/v2.0/{collection}/{{id}}{below}"), verb, body(), status);
            }
        }
    }
}

fn add_one(paths: &mut Map<String, Json>, path: &str, verb: &str, body: Json, status: &str) {
    let names = path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
    let parameters: Vec<Json> =
        names.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}})).collect();
    // Shown is what the resource's own lists and members show; one tag is answered with nothing.
    let shown = (status != "204" && !path.ends_with("{tag}")).then(|| json!({"type": ["object", "null"]}));
    let mut operation = json!({"responses": responses(status, shown)});
    if !body.is_null() {
        operation["requestBody"] = json!({"required": true, "content": content(body)});
    }
    let entry = paths.entry(path.to_owned()).or_insert_with(|| json!({"parameters": parameters}));
    entry[verb] = operation;
}

#[cfg(test)]
mod tests {
    use super::super::{document, reference};

    #[test]
    fn actions_tags_and_quotas_are_described() {
        let document = document();
        let paths = &document["paths"];
        assert!(paths["/v2.0/networks/{id}/tags/{tag}"]["delete"].is_object());
        assert!(paths.get("/v2.0/agents/{id}/tags").is_none(), "agents have none");
        let action = &paths["/v2.0/routers/{id}/add_router_interface"]["put"]["requestBody"];
        assert!(action["content"]["application/json"]["schema"]["properties"]["subnet_id"].is_object());
        let quota = &paths["/v2.0/quotas/{project}"]["put"]["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(quota["properties"]["quota"]["properties"]["router_route"]["minimum"], -1);
        assert_eq!(paths["/v2.0/quotas/{project}"]["parameters"][0]["name"], "project");
        let error = &paths["/v2.0/quotas"]["get"]["responses"]["default"]["content"]["application/json"]["schema"];
        assert_eq!(*error, reference("error"));
    }
}
