//! What identity says about itself and about where services are.

use serde_json::{Value, json};

use super::REGION;

/// The services: type, name, and the path of their endpoint below the server's root.
const SERVICES: [(&str, &str, &str); 2] = [("identity", "keystone", "/identity"), ("network", "neutron", "")];
const INTERFACES: [&str; 3] = ["public", "internal", "admin"];

/// The catalog in a token.
pub(super) fn catalog(base_url: &str) -> Value {
    let service = |(kind, name, _): &(&str, &str, &str)| {
        let of_service = endpoints(base_url).into_iter().filter(|e| e["service_id"] == *name);
        let trimmed: Vec<Value> = of_service
            .map(|e| json!({"id": e["id"], "interface": e["interface"], "region": REGION, "region_id": REGION, "url": e["url"]}))
            .collect();
        json!({"id": name, "type": kind, "name": name, "endpoints": trimmed})
    };
    SERVICES.iter().map(service).collect()
}

/// `GET /v3/services`.
pub(super) fn services() -> Vec<Value> {
    let service = |(kind, name, _): (&str, &str, &str)| json!({"id": name, "type": kind, "name": name, "enabled": true, "description": ""});
    SERVICES.map(service).to_vec()
}

/// `GET /v3/endpoints`.
pub(super) fn endpoints(base_url: &str) -> Vec<Value> {
    let of_service = |(_, name, path): (&'static str, &'static str, &'static str)| {
        INTERFACES.into_iter().map(move |interface| {
            json!({
                "id": format!("{name}-{interface}"), "service_id": name, "interface": interface, "enabled": true,
                "region": REGION, "region_id": REGION, "url": format!("{base_url}{path}"),
            })
        })
    };
    SERVICES.into_iter().flat_map(of_service).collect()
}

/// `GET /v3/regions`.
pub(super) fn regions() -> Vec<Value> {
    vec![json!({"id": REGION, "description": "", "parent_region_id": null})]
}

/// `GET /identity`: which versions there are.
pub(super) fn versions(base_url: &str) -> Value {
    json!({"versions": {"values": [description(base_url)]}})
}

/// `GET /identity/v3`: this version.
pub(super) fn version(base_url: &str) -> Value {
    json!({"version": description(base_url)})
}

fn description(base_url: &str) -> Value {
    json!({
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": format!("{base_url}/identity/v3/")}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    })
}
