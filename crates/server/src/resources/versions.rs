//! Version discovery: what there is at `/` and at `/v2.0`.

use serde_json::{Value as Json, json};

use super::COLLECTIONS;

/// Lists the versions of the API; `base` is the URL of the service.
pub fn versions(base: &str) -> Json {
    json!({"versions": [{
        "id": "v2.0",
        "status": "CURRENT",
        "links": [{"rel": "self", "href": format!("{base}/v2.0/")}],
    }]})
}

/// Lists the resources of version 2.0.
pub fn resources(base: &str) -> Json {
    let more = ["extensions", "availability_zones", "quotas"];
    let resources = COLLECTIONS.into_iter().chain(more).map(|collection| {
        let name = match super::find(collection) {
            Some(resource) => resource.table().singular,
            None => collection.strip_suffix('s').unwrap_or(collection),
        };
        let links = json!([{"rel": "self", "href": format!("{base}/v2.0/{collection}")}]);
        json!({"name": name, "collection": collection, "links": links})
    });
    json!({"resources": resources.collect::<Vec<_>>()})
}
