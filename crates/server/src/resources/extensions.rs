//! Extensions: what of Neutron's API beyond the core is offered. Clients decide by this list what they may
//! send, so only what works is on it.

use serde_json::{Value as Json, json};

use crate::error::ApiError;
use crate::options::Options;

/// Alias, name, description, and the date of Neutron's definition.
const EXTENSIONS: &[(&str, &str, &str, &str)] = &[
    ("address-scope", "Address scope", "Scopes in which addresses are unique.", "2015-07-26T10:00:00-00:00"),
    ("agent", "agent", "The hosts' daemons, one agent per role.", "2013-02-03T10:00:00-00:00"),
    ("allowed-address-pairs", "Allowed Address Pairs", "Further addresses of a port.", "2013-07-23T10:00:00-00:00"),
    ("availability_zone", "Availability Zone", "Zones that agents are in.", "2015-01-01T10:00:00-00:00"),
    (
        "availability_zone_filter",
        "Availability Zone Filter Extension",
        "Zones can be filtered.",
        "2018-06-22T10:00:00-00:00",
    ),
    ("binding", "Port Binding", "Which host a port is on.", "2014-02-03T10:00:00-00:00"),
    (
        "default-subnetpools",
        "Default Subnetpools",
        "Subnets can be cut from a default pool.",
        "2016-02-18T18:00:00-00:00",
    ),
    (
        "dvr",
        "Distributed Virtual Router",
        "Routers that route on the hosts of their instances.",
        "2014-06-01T10:00:00-00:00",
    ),
    (
        "empty-string-filtering",
        "Empty String Filtering Extension",
        "Lists can be filtered by empty values.",
        "2018-05-01T10:00:00-00:00",
    ),
    (
        "expose-port-forwarding-in-fip",
        "Expose Floating IP port forwardings",
        "A floating IP shows its port forwardings.",
        "2018-06-28T16:00:00-00:00",
    ),
    (
        "ext-gw-mode",
        "Neutron L3 Configurable external gateway mode",
        "Source NAT of a router can be switched off.",
        "2013-03-28T10:00:00-00:00",
    ),
    ("external-net", "Neutron external network", "Networks that lead outside.", "2013-01-14T10:00:00-00:00"),
    ("extraroute", "Neutron Extra Route", "Extra routes of a router.", "2013-02-01T10:00:00-00:00"),
    (
        "extraroute-atomic",
        "Atomically add/remove extra routes",
        "Extra routes are added and removed in one step.",
        "2019-07-10T00:00:00+00:00",
    ),
    (
        "extra_dhcp_opt",
        "Neutron Extra DHCP options",
        "Options of a port for DHCP servers.",
        "2013-03-17T12:00:00-00:00",
    ),
    (
        "filter-validation",
        "Filter parameters validation",
        "Lists that are filtered by what they cannot be filtered by are refused.",
        "2018-07-04T10:00:00-00:00",
    ),
    (
        "fip-port-details",
        "Floating IP Port Details Extension",
        "A floating IP shows the port that it leads to.",
        "2018-04-09T10:00:00-00:00",
    ),
    (
        "floating-ip-port-forwarding",
        "Floating IP Port Forwarding",
        "Ports of a floating IP that lead to ports of instances.",
        "2018-01-19T10:00:00-00:00",
    ),
    (
        "floating-ip-port-forwarding-description",
        "Floating IP Port Forwarding new attribute description",
        "Port forwardings have a description.",
        "2019-11-01T10:00:00-00:00",
    ),
    (
        "floating-ip-port-forwarding-detail",
        "Floating IP port forwarding detail",
        "A floating IP shows its port forwardings' ids and ports.",
        "2022-05-06T10:00:00-00:00",
    ),
    (
        "floating-ip-port-forwarding-port-ranges",
        "Floating IP Port Forwarding support port ranges",
        "Ranges of ports can be forwarded.",
        "2020-07-01T10:00:00-00:00",
    ),
    (
        "floatingip-pools",
        "Floating IP Pools Extension",
        "The subnets that floating IPs come from.",
        "2018-03-21T10:00:00-00:00",
    ),
    (
        "ip-substring-filtering",
        "IP address substring filtering",
        "Ports can be found by a part of an address.",
        "2017-11-28T09:00:00-00:00",
    ),
    ("l3-ha", "HA Router extension", "Routers with several copies, elected by VRRP.", "2014-04-26T00:00:00-00:00"),
    (
        "l3-port-ip-change-not-allowed",
        "Prevent L3 router ports IP address change extension",
        "A router port's addresses change only through the router.",
        "2018-10-09T10:00:00-00:00",
    ),
    ("l3_agent_scheduler", "L3 Agent Scheduler", "Which agents have a router.", "2013-02-07T10:00:00-00:00"),
    ("net-mtu", "Network MTU", "Networks show their MTU.", "2015-03-25T10:00:00-00:00"),
    ("net-mtu-writable", "Network MTU (writable)", "A network's MTU can be set.", "2017-07-12T00:00:00-00:00"),
    (
        "network_availability_zone",
        "Network Availability Zone",
        "Zones that a network is in.",
        "2015-01-01T10:00:00-00:00",
    ),
    (
        "network-ip-availability",
        "Network IP Availability",
        "How many addresses of a network are in use.",
        "2015-09-24T00:00:00-00:00",
    ),
    ("pagination", "Pagination support", "Lists come in pages.", "2016-06-12T00:00:00-00:00"),
    (
        "port-mac-address-regenerate",
        "Neutron Port MAC address regenerate",
        "A port is given another MAC address by setting it to null.",
        "2018-05-03T10:00:00-00:00",
    ),
    (
        "port-security-groups-filtering",
        "Port filtering on security groups",
        "Ports can be filtered by their security groups.",
        "2018-01-09T09:00:00-00:00",
    ),
    ("port-security", "Port Security", "Address pairs need port security.", "2012-07-23T10:00:00-00:00"),
    ("project-id", "project_id field enabled", "Objects show project_id.", "2016-09-09T09:09:09-09:09"),
    ("provider", "Provider Network", "What carries a network.", "2012-09-07T10:00:00-00:00"),
    (
        "quota-check-limit",
        "Quota engine limit check",
        "A quota below what is used can be refused.",
        "2021-09-08T16:00:00-00:00",
    ),
    ("quota_details", "Quota details management support", "Quotas with what is used.", "2017-02-10T10:00:00-00:00"),
    ("quotas", "Quota management support", "Limits per project.", "2012-07-29T10:00:00-00:00"),
    (
        "rbac-address-scope",
        "Add address_scope type to RBAC",
        "Address scopes can be shared with single projects.",
        "2020-02-12T00:00:00-00:00",
    ),
    (
        "rbac-policies",
        "RBAC Policies",
        "Networks shared with, or external for, single projects.",
        "2015-06-17T12:15:12-00:00",
    ),
    (
        "rbac-security-groups",
        "Add security_group type to network RBAC",
        "Security groups can be shared with single projects.",
        "2019-02-14T00:00:00-00:00",
    ),
    (
        "rbac-subnetpool",
        "Add subnetpool type to RBAC",
        "Subnet pools can be shared with single projects.",
        "2020-02-05T00:00:00-00:00",
    ),
    (
        "revision-if-match",
        "If-Match constraints based on revision_number",
        "A change can depend on the object's revision.",
        "2016-12-11T00:00:00-00:00",
    ),
    ("router", "Neutron L3 Router", "Routers, gateways and floating IPs.", "2012-07-20T10:00:00-00:00"),
    ("router_availability_zone", "Router Availability Zone", "Zones that a router is in.", "2015-01-01T10:00:00-00:00"),
    ("security-group", "security-group", "Security groups and their rules.", "2012-10-05T10:00:00-00:00"),
    (
        "security-groups-normalized-cidr",
        "Normalized CIDR field for security group rules",
        "Rules show their prefix without host bits.",
        "2020-07-28T10:00:00-00:00",
    ),
    (
        "security-groups-rules-belongs-to-default-sg",
        "Security group rule belongs to the project's default security group",
        "Rules tell whether they are of a default group.",
        "2023-05-23T10:00:00-00:00",
    ),
    (
        "security-groups-shared-filtering",
        "Security group filtering on the shared field",
        "Security groups can be filtered by whether they are shared.",
        "2021-10-05T09:00:00-00:00",
    ),
    ("sorting", "Sorting support", "Lists can be sorted.", "2016-06-12T00:00:00-00:00"),
    (
        "standard-attr-description",
        "standard-attr-description",
        "Objects have a description.",
        "2016-02-10T10:00:00-00:00",
    ),
    (
        "standard-attr-revisions",
        "Resource revision numbers",
        "Objects count their changes.",
        "2016-04-11T10:00:00-00:00",
    ),
    (
        "standard-attr-tag",
        "Tag support for resources with standard attribute",
        "Objects have tags.",
        "2017-01-01T00:00:00-00:00",
    ),
    (
        "standard-attr-timestamp",
        "Resource timestamps",
        "Objects show when they were made and changed.",
        "2016-09-12T10:00:00-00:00",
    ),
    (
        "subnet-external-network",
        "Subnet belongs to an external network",
        "Subnets show whether their network is external, and are there for all who may use it.",
        "2024-02-05T18:00:00-00:00",
    ),
    (
        "subnet-service-types",
        "Subnet service types",
        "Subnets reserved for kinds of device.",
        "2016-03-15T18:00:00-00:00",
    ),
    (
        "stateful-security-group",
        "Stateful security group",
        "Groups whose rules know of connections, and others.",
        "2019-11-26T09:00:00-00:00",
    ),
    ("subnet_allocation", "Subnet Allocation", "Subnets are cut from pools.", "2015-03-30T10:00:00-00:00"),
    ("subnet_onboard", "Subnet Onboard", "A network's subnets can be taken into a pool.", "2018-12-18T09:00:00-00:00"),
    (
        "subnetpool-prefix-ops",
        "Subnet Pool Prefix Operations",
        "Prefixes of a pool are added and removed in one step.",
        "2019-02-08T10:00:00-00:00",
    ),
    (
        "tag-creation",
        "Tag creation extension",
        "Tags are added without reading the others.",
        "2024-23-07T10:00:00-00:00",
    ),
    (
        "tag-ports-during-bulk-creation",
        "Tag Ports During Bulk Creation",
        "Ports are made with their tags.",
        "2019-12-29T19:00:00-00:00",
    ),
];

fn show((alias, name, description, updated): &(&str, &str, &str, &str)) -> Json {
    json!({"alias": alias, "name": name, "description": description, "updated": updated, "links": []})
}

fn offered(
    options: &Options,
) -> impl Iterator<Item = &'static (&'static str, &'static str, &'static str, &'static str)> {
    EXTENSIONS.iter().filter(|(alias, ..)| *alias != "dvr" || options.enable_dvr)
}

/// Lists the extensions.
pub fn list(options: &Options) -> Json {
    json!({"extensions": offered(options).map(show).collect::<Vec<_>>()})
}

/// Shows one extension.
///
/// # Errors
///
/// 404 where it is not offered.
pub fn member(options: &Options, alias: &str) -> Result<Json, ApiError> {
    let found = offered(options).find(|extension| extension.0 == alias);
    found
        .map(|extension| json!({"extension": show(extension)}))
        .ok_or_else(|| ApiError::ExtensionNotFound { alias: alias.to_owned() })
}
