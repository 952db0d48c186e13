//! The names of all rules and what they are by default, in oslo.policy's language.
//!
//! Three sources make the one list that a policy file can override: the helpers below, the tables of the
//! resources (`create_router`, `create_router:ha`, `create_port:fixed_ips:ip_address`, `get_port:binding:host_id`,
//! ...), and what is none of a table's ([`OTHERS`]). Names are Neutron's. Invariant: every name but a helper's is
//! asked somewhere (`tests/api/policy.rs` puts a request to each).

use std::collections::BTreeMap;

use super::Rule;
use crate::attributes::{Kind, Table};
use crate::resources;

/// Rules that others are made of. An installation's own files refer to them, so all of Neutron's are here.
pub(super) const HELPERS: &[(&str, &str)] = &[
    ("context_is_admin", "role:admin"),
    ("service_api", "role:service"),
    ("context_is_advsvc", "role:advsvc"),
    ("admin_only", "rule:context_is_admin"),
    ("regular_user", ""),
    ("default", "rule:admin_or_owner"),
    ("owner", "tenant_id:%(tenant_id)s"),
    ("admin_or_owner", "rule:context_is_admin or rule:owner"),
    ("network_owner", "tenant_id:%(network:tenant_id)s"),
    ("admin_or_network_owner", "rule:context_is_admin or tenant_id:%(network:tenant_id)s"),
    ("admin_owner_or_network_owner", "rule:owner or rule:admin_or_network_owner"),
    ("ext_parent_owner", "tenant_id:%(ext_parent:tenant_id)s"),
    ("admin_or_ext_parent_owner", "rule:context_is_admin or tenant_id:%(ext_parent:tenant_id)s"),
    ("sg_owner", "tenant_id:%(security_group:tenant_id)s"),
    ("shared", "field:networks:shared=True"),
    ("shared_subnetpools", "field:subnetpools:shared=True"),
    ("shared_address_scopes", "field:address_scopes:shared=True"),
    ("external", "field:networks:router:external=True"),
    ("network_device", "field:port:device_owner=~^network:"),
    ("compute_device", "field:port:device_owner=~^compute:"),
    ("baremetal_device", "field:port:device_owner=~^baremetal:"),
    ("manila_device", "field:port:device_owner=~^manila:"),
    ("external_network", "field:subnets:router:external=True"),
    ("shared_security_group", "field:security_groups:shared=True"),
    ("shared_address_groups", "field:address_groups:shared=True"),
    ("rule_default_sg", "field:security_group_rules:belongs_to_default_sg=True"),
    ("admin_or_sg_owner", "rule:context_is_admin or tenant_id:%(security_group:tenant_id)s"),
    ("admin_owner_or_sg_owner", "rule:owner or rule:admin_or_sg_owner"),
    ("context_with_global_access", "!"),
    (
        "restrict_wildcard",
        "rule:admin_only or (not field:rbac_policy:target_tenant=* and not field:rbac_policy:target_project=*)",
    ),
    ("admin_or_data_plane_int", "rule:context_is_admin or role:data_plane_integrator"),
    ("admin_or_service", "rule:admin_only or rule:service_api"),
    ("admin_or_project_manager", "rule:admin_only or (role:manager and project_id:%(project_id)s)"),
    ("admin_or_project_member", "rule:admin_only or (role:member and project_id:%(project_id)s)"),
    ("admin_or_project_reader", "rule:admin_only or (role:reader and project_id:%(project_id)s)"),
    ("admin_or_parent_owner_member", "rule:admin_only or (role:member and rule:ext_parent_owner)"),
    ("admin_or_parent_owner_reader", "rule:admin_only or (role:reader and rule:ext_parent_owner)"),
    ("admin_or_net_owner_member", "rule:admin_only or (role:member and rule:network_owner)"),
    ("admin_or_net_owner_reader", "rule:admin_only or (role:reader and rule:network_owner)"),
    ("admin_or_sg_owner_member", "rule:admin_only or (role:member and rule:sg_owner)"),
    ("admin_or_sg_owner_reader", "rule:admin_only or (role:reader and rule:sg_owner)"),
];

/// Rules on actions below an object and on what is no resource with a table.
pub(super) const OTHERS: &[(&str, Rule)] = &[
    ("add_router_interface", Rule::Member),
    ("remove_router_interface", Rule::Member),
    ("add_extraroutes", Rule::Member),
    ("remove_extraroutes", Rule::Member),
    ("add_prefixes", Rule::Member),
    ("remove_prefixes", Rule::Member),
    ("onboard_network_subnets", Rule::Member),
    ("get_l3-agents", Rule::Admin),
    ("get_l3-routers", Rule::Admin),
    ("create_l3-router", Rule::Admin),
    ("delete_l3-router", Rule::Admin),
    ("get_network_ip_availability", Rule::AdminOrService),
    ("get_floatingip_pool", Rule::Any),
    ("get_availability_zone", Rule::AnyReader),
    ("get_quota", Rule::Reader),
    ("update_quota", Rule::Admin),
    ("delete_quota", Rule::Admin),
];

/// Older names under which a file may still override a rule.
const RENAMED: &[(&str, &str)] = &[
    ("get_routers_l3_agents", "get_l3-agents"),
    ("create_networks_tags", "create_network:tags"),
    ("update_networks_tags", "update_network:tags"),
    ("delete_networks_tags", "delete_network:tags"),
    ("create_subnets_tags", "create_subnet:tags"),
    ("update_subnets_tags", "update_subnet:tags"),
    ("delete_subnets_tags", "delete_subnet:tags"),
    ("create_subnetpools_tags", "create_subnetpool:tags"),
    ("update_subnetpools_tags", "update_subnetpool:tags"),
    ("delete_subnetpools_tags", "delete_subnetpool:tags"),
    ("create_ports_tags", "create_port:tags"),
    ("update_ports_tags", "update_port:tags"),
    ("delete_ports_tags", "delete_port:tags"),
    ("create_routers_tags", "create_router:tags"),
    ("update_routers_tags", "update_router:tags"),
    ("delete_routers_tags", "delete_router:tags"),
    ("create_floatingips_tags", "create_floatingip:tags"),
    ("update_floatingips_tags", "update_floatingip:tags"),
    ("delete_floatingips_tags", "delete_floatingip:tags"),
    ("create_security_groups_tags", "create_security_group:tags"),
    ("update_security_groups_tags", "update_security_group:tags"),
    ("delete_security_groups_tags", "delete_security_group:tags"),
];

/// Gives every rule that a file can override, and what it is by default.
pub(super) fn all() -> BTreeMap<String, Rule> {
    let mut names = BTreeMap::new();
    for collection in resources::COLLECTIONS {
        if let Some(resource) = resources::find(collection) {
            of_table(resource.table(), &mut names);
        }
    }
    for (_, _, table) in &resources::NESTED {
        of_table(table, &mut names);
    }
    names.extend(OTHERS.iter().map(|(name, rule)| ((*name).to_owned(), *rule)));
    names
}

fn of_table(table: &Table, names: &mut BTreeMap<String, Rule>) {
    let singular = table.policy_name();
    for (verb, rule) in
        [("create", table.create), ("get", table.get), ("update", table.update), ("delete", table.delete)]
    {
        if rule != Rule::Nobody {
            names.insert(format!("{verb}_{singular}"), rule);
        }
    }
    for attribute in table.attributes {
        let mut add = |verb: &str, of: &str, rule: Rule| names.insert(format!("{verb}_{singular}:{of}"), rule);
        // Whose an object is says the token, but for admins; and what is not offered is given by nobody.
        let is_given =
            attribute.name != "project_id" && !matches!(attribute.kind, Kind::NotOffered | Kind::NoneOffered);
        let verbs = [
            ("create", is_given && attribute.post && table.create != Rule::Nobody, attribute.create),
            ("update", is_given && attribute.put && table.update != Rule::Nobody, attribute.update),
        ];
        for (verb, _, rule) in verbs.into_iter().filter(|(_, is_given, _)| *is_given) {
            add(verb, attribute.name, rule);
            for part in attribute.parts {
                add(verb, &format!("{}:{}", attribute.name, part.name), part.set);
            }
        }
        if attribute.see != Rule::Nobody {
            add("get", attribute.name, attribute.see);
        }
    }
    if table.tagged {
        for verb in ["create", "update", "delete"] {
            names.insert(format!("{verb}_{singular}:tags"), table.update);
        }
    }
}

/// The present name of a rule.
pub(super) fn present_name(name: &str) -> &str {
    RENAMED.iter().find(|(old, _)| *old == name).map_or(name, |(_, new)| new)
}
