"""Ids that exist, in most of the requests: otherwise nearly all would be about what is not there."""

import json
import os
import random
import time
import urllib.request

import schemathesis

URL, TOKEN = os.environ["EVERGATE_FUZZ_URL"], os.environ["EVERGATE_FUZZ_TOKEN"]

# Which collection's ids an attribute holds, by the end of its name.
HOLDERS = {
    "network_id": "networks", "subnet_id": "subnets", "port_id": "ports", "router_id": "routers",
    "subnetpool_id": "subnetpools", "address_scope_id": "address-scopes", "group_id": "security-groups",
    "object_id": "networks", "network": "networks", "router": "routers", "parent": "floatingips",
}
# How long what is known counts.
FRESH = 2.0
# Of so many ids, all but one exist.
ONE_IN = 5

_known = {}


def known(collection):
    """Ids of a collection, not older than a moment."""
    at, ids = _known.get(collection, (0, []))
    if time.monotonic() - at > FRESH:
        request = urllib.request.Request(f"{URL}/v2.0/{collection}?fields=id&limit=200", headers={"X-Auth-Token": TOKEN})
        with urllib.request.urlopen(request, timeout=30) as answer:
            ids = [item["id"] for item in json.load(answer)[collection.replace("-", "_")]]
        _known[collection] = (time.monotonic(), ids)
    return ids


def instead(value, collection):
    """Another value in the place of an id, made of it so that a run can be repeated."""
    chosen = random.Random(repr(value))
    ids = known(collection)
    return chosen.choice(ids) if ids and chosen.randrange(ONE_IN) else value


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    if not isinstance(path_parameters, dict):
        return path_parameters
    collection = context.operation.path.removeprefix("/v2.0/").split("/")[0]
    changed = {}
    for name, value in path_parameters.items():
        if name == "id" and "{parent}" not in context.operation.path:
            value = instead(value, collection)
        elif name in HOLDERS:
            value = instead(value, HOLDERS[name])
        changed[name] = value
    return changed


@schemathesis.hook
def map_body(context, body):
    return with_ids(body)


def with_ids(value, collection=None):
    if isinstance(value, dict):
        return {key: with_ids(inner, holder(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_ids(inner, collection) for inner in value]
    return instead(value, collection) if collection and isinstance(value, str) else value


def holder(key):
    if key == "security_groups":
        return "security-groups"
    return next((collection for end, collection in HOLDERS.items() if key.endswith("_id") and key.endswith(end)), None)
