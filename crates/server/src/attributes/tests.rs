use serde_json::{Value, json};

use super::kind::{Refusal, shown};
use super::*;
use crate::resources::{COLLECTIONS, find};

fn converts(kind: Kind, given: Value, expected: Value) {
    assert_eq!(kind.convert(&given), Ok(expected), "{kind:?} of {given}");
}

fn refuses(kind: Kind, given: Value) -> String {
    match kind.convert(&given) {
        Err(Refusal::Reason(text) | Refusal::Conversion(text)) => text,
        Ok(value) => panic!("{kind:?} takes {given} for {value}"),
    }
}

#[test]
fn truth_has_several_spellings() {
    for given in [
        json!(true),
        json!("True"),
        json!("TRUE"),
        json!("1"),
        json!(1),
        json!(" Yes "),
        json!("on"),
        json!("t"),
        json!("y"),
    ] {
        converts(Kind::Bool, given, json!(true));
    }
    for given in [json!(false), json!("false"), json!(0), json!("no"), json!("off"), json!("F"), json!("n")] {
        converts(Kind::Bool, given, json!(false));
    }
    for given in [json!("perhaps"), json!(""), json!(2), json!(null), json!([]), json!(0.5)] {
        refuses(Kind::Bool, given);
    }
    converts(Kind::BoolOrNull, json!(null), json!(null));
}

#[test]
fn numbers_may_be_written_as_text() {
    converts(Kind::Int, json!("1450"), json!(1450));
    converts(Kind::OneOf(&[4, 6]), json!("6"), json!(6));
    assert_eq!(refuses(Kind::OneOf(&[4, 6]), json!(5)), "'5' is not in [4, 6]");
    assert_eq!(refuses(Kind::Int, json!(true)), "'True' is not an integer");
    assert_eq!(refuses(Kind::Int, json!(-5)), "'-5' should be non-negative");
}

#[test]
fn addresses_come_out_in_one_form() {
    converts(Kind::IpOrNull, json!("2001:DB8:0::1"), json!("2001:db8::1"));
    converts(Kind::CidrOrNull, json!("10.0.0.9/24"), json!("10.0.0.0/24"));
    converts(Kind::MacOrNull, json!("FA-16-3E-00-00-01"), json!("fa:16:3e:00:00:01"));
    converts(Kind::MacOrNull, json!(null), json!(null));
    let text = refuses(Kind::CidrOrNull, json!("10.0.0.1"));
    assert_eq!(text, "'10.0.0.1' isn't a recognized IP subnet cidr, '10.0.0.1/32' is recommended");
    for given in ["10.0.0.01", "10.0.0", " 10.0.0.1", "10.0.0.1/24"] {
        refuses(Kind::IpOrNull, json!(given));
    }
    for given in ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"] {
        refuses(Kind::MacOrNull, json!(given));
    }
}

#[test]
fn a_gateway_is_a_network_or_nothing() {
    let network = "b27aa9ad-a70f-4cfe-8c72-777ecdb74f95";
    for nothing in [json!(null), json!({}), json!({"network_id": null})] {
        converts(Kind::GatewayInfo, nothing, json!(null));
    }
    let given = json!({"network_id": network.to_uppercase(), "enable_snat": "False", "external_fixed_ips": null});
    converts(Kind::GatewayInfo, given, json!({"network_id": network, "enable_snat": false}));
    assert_eq!(refuses(Kind::GatewayInfo, json!({"network_id": network, "x": 1})), "Unexpected keys supplied: x");
    refuses(Kind::GatewayInfo, json!({"enable_snat": true}));
}

#[test]
fn lists_hold_each_item_once() {
    let route = json!({"destination": "192.0.2.7/24", "nexthop": "10.0.0.9"});
    let canonical = json!({"destination": "192.0.2.0/24", "nexthop": "10.0.0.9"});
    converts(Kind::Routes, json!([route]), json!([canonical]));
    converts(Kind::Routes, json!(null), json!([]));
    assert!(refuses(Kind::Routes, json!([route, canonical])).starts_with("Duplicate hostroute"));
    assert_eq!(refuses(Kind::Nameservers, json!(["::1", "0::1"])), "Duplicate nameserver '::1'");
    let many = |count: usize| Value::from((0..count).map(|n| n.to_string()).collect::<Vec<_>>());
    assert!(Kind::Strings(9).convert(&many(1000)).is_ok());
    assert_eq!(refuses(Kind::Strings(9), many(1001)), "The list has more than 1000 items");
    assert_eq!(refuses(Kind::Strings(9), json!(["a", "a"])), "Duplicate items in the list: 'a'");
}

#[test]
fn messages_print_values_as_neutrons_do() {
    assert_eq!(shown(&json!({"a": [1, "b", null, true]})), "{'a': [1, 'b', None, True]}");
}

#[test]
fn tables_name_each_attribute_once_and_agree_with_themselves() {
    for collection in COLLECTIONS {
        let table = find(collection).unwrap().table();
        assert_eq!(table.plural, collection.replace('-', "_"));
        let mut names: Vec<_> = table.attributes.iter().map(|attribute| attribute.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "{collection} names an attribute twice");
        for attribute in table.attributes {
            let settable = attribute.post || attribute.put;
            assert!(!settable || attribute.kind != Kind::Computed, "{collection}: {} cannot be given", attribute.name);
            assert!(attribute.post || attribute.absent == Absent::Unset, "{collection}: {}", attribute.name);
        }
    }
}
