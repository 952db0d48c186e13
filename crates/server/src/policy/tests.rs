use serde_json::json;

use super::*;
use crate::private_file::tests::TempDir;

fn caller(project: &str, role: &str) -> Context {
    caller_under(&Policy::standard(), project, role)
}

/// A caller with a role, and those that it implies.
fn caller_under(policy: &Arc<Policy>, project: &str, role: &str) -> Context {
    let ladder = ["admin", "manager", "member", "reader"];
    let from = ladder.iter().position(|r| *r == role);
    let implied = from.map_or(&[][..], |from| &ladder[from..]);
    let roles = implied.iter().copied().chain([role]).map(str::to_owned).collect();
    let mut ctx = Context { project_id: Some(project.into()), roles, ..Context::default() };
    policy.introduce(&mut ctx);
    ctx
}

fn decide(text: &str, ctx: &Context, target: &Target, object: Value) -> bool {
    let check = Check::parse(text).unwrap();
    let object = object.as_object().cloned().unwrap_or_default();
    let facts = Facts { target, given: None, object: Some(&object) };
    ctx.policy.decide(&check, ctx, Some(&facts)) == Some(true)
}

fn allows(rule: Rule, ctx: &Context, target: &Target) -> bool {
    decide(rule.condition(), ctx, target, json!({}))
}

#[test]
fn a_reader_changes_nothing_and_a_member_only_what_its_project_owns() {
    let mine = Target::of_project("p");
    assert!(allows(Rule::Member, &caller("p", "member"), &mine));
    assert!(!allows(Rule::Member, &caller("p", "reader"), &mine));
    assert!(!allows(Rule::Member, &caller("q", "member"), &mine));
    assert!(allows(Rule::Member, &caller("q", "admin"), &mine));
    assert!(allows(Rule::Manager, &caller("p", "manager"), &mine));
    assert!(!allows(Rule::Manager, &caller("p", "member"), &mine));
    assert!(allows(Rule::AdminOrService, &caller("q", "service"), &mine));
    assert!(!allows(Rule::Service, &caller("q", "admin"), &mine), "not even admins");
}

#[test]
fn a_caller_without_a_project_does_not_own_what_belongs_to_no_project() {
    let nobody = Context { roles: BTreeSet::from(["member".to_owned()]), ..Context::default() };
    assert!(!allows(Rule::Member, &nobody, &Target::of_project("")));
    assert!(!allows(Rule::NetworkOwner, &nobody, &Target::default()));
    let nameless = Context { project_id: Some(String::new()), ..nobody };
    assert!(!allows(Rule::Member, &nameless, &Target::of_project("")));
}

#[test]
fn only_a_network_owner_pretends_to_be_a_network_device() {
    let shared = Target { network_project_id: Some("q".into()), network_shared: true, ..Target::of_project("p") };
    let rule = Rule::NotNetworkDevice.condition();
    let member = caller("p", "member");
    assert!(decide(rule, &member, &shared, json!({"device_owner": "compute:nova"})));
    assert!(!decide(rule, &member, &shared, json!({"device_owner": "network:dhcp"})));
    assert!(decide(rule, &caller("q", "member"), &shared, json!({"device_owner": "network:dhcp"})));
    assert!(allows(Rule::NetworkOwnerOrShared, &member, &shared));
    assert!(!allows(Rule::NetworkOwnerOrService, &member, &shared));
}

#[test]
fn the_language_is_oslo_policys() {
    let ctx = Context { user_id: "u1".into(), ..caller("p", "member") };
    let target = Target { network_project_id: Some("n".into()), ..Target::of_project("p") };
    let object = json!({"name": "x", "shared": true, "count": 3, "router:external": false, "owner": "u1"});
    for (text, expected) in [
        ("", true),
        ("@", true),
        ("!", false),
        ("role:member", true),
        ("role:MEMBER", true),
        ("not role:admin", true),
        ("role:admin or role:member and project_id:%(project_id)s", true),
        ("(role:admin or role:member) and project_id:other", false),
        ("not (role:admin or role:member)", false),
        ("project_id:%(project_id)s", true),
        ("tenant_id:%(tenant_id)s", true),
        ("tenant_id:%(network:tenant_id)s", false),
        ("project_id:%(nothing)s", false),
        ("user_id:%(owner)s", true),
        ("field:routers:name=x", true),
        ("field:routers:name=~^[w-y]$", true),
        ("field:routers:count=3", true),
        ("field:routers:shared=True", true),
        // What a network shares is asked of the network that the object is on.
        ("field:networks:shared=True", false),
        ("field:networks:router:external=False", true),
        ("'x':%(name)s", true),
        ("True:%(shared)s", true),
        ("is_admin:True", false),
        ("is_admin:False", true),
        ("rule:admin_only", false),
        ("rule:no_such_rule", false),
        ("not rule:no_such_rule", true),
    ] {
        assert_eq!(decide(text, &ctx, &target, object.clone()), expected, "{text}");
    }
    assert_eq!(
        check::of_lists(&[vec!["role:a".into(), "role:b".into()], vec!["role:c".into()]]),
        "(role:a and role:b) or (role:c)"
    );
    assert_eq!((check::of_lists(&[]).as_str(), check::of_lists(&[vec![]]).as_str()), ("@", "!"));
}

#[test]
fn what_cannot_be_parsed_is_told() {
    for text in [
        "role:a and",
        "or role:a",
        "(role:a",
        "role:a)",
        "role:a role:b",
        "not",
        "a",
        ")role:a(",
        "x:%(y)z",
        "field:a",
        "field:a:b=~(",
    ] {
        assert!(Check::parse(text).is_err(), "{text}");
    }
}

#[test]
fn what_depends_on_an_object_is_undecided_without_one() {
    let ctx = caller("p", "member");
    let decided = |text: &str| ctx.policy.decide(&Check::parse(text).unwrap(), &ctx, None);
    assert_eq!(decided("role:member and project_id:%(project_id)s"), None);
    assert_eq!(decided("role:admin and project_id:%(project_id)s"), Some(false));
    assert_eq!(decided("role:member or project_id:%(project_id)s"), Some(true));
    assert_eq!(decided("not project_id:%(project_id)s"), None);
}

fn policy(text: &str) -> Result<Arc<Policy>, PolicyError> {
    let dir = TempDir::new();
    let path = dir.path().join("policy.yaml");
    std::fs::write(&path, text).unwrap();
    Policy::load(&[path, dir.path().join("not-there.yaml")]).map(Arc::new)
}

#[test]
fn a_file_replaces_rules_and_helpers_by_name() {
    let ours =
        policy("context_is_admin: role:boss\nget_l3-agents: role:auditor\nmine: role:member\nget_agent: rule:mine\n")
            .unwrap();
    assert!(caller_under(&ours, "p", "boss").is_admin);
    assert!(!caller_under(&ours, "p", "admin").is_admin);
    assert!(require(&caller_under(&ours, "p", "auditor"), "get_l3-agents", "").is_ok());
    assert!(require(&caller_under(&ours, "p", "boss"), "get_l3-agents", "").is_err());
    assert!(require(&caller_under(&ours, "p", "member"), "get_agent", "").is_ok());
    assert!(require(&caller_under(&ours, "p", "boss"), "create_l3-router", "").is_ok(), "others stay as they are");
}

#[test]
fn a_circle_is_refused_with_its_line() {
    let refused = policy("a: rule:b\nb: rule:c or role:x\nc: rule:a\n").unwrap_err().to_string();
    assert!(refused.contains("policy.yaml:1") && refused.contains("leads back"), "{refused}");
}

#[test]
fn every_rule_is_printed_and_can_be_read_again() {
    let printed = policy("create_router: role:architect\n").unwrap().print();
    assert!(printed.contains("\"create_router\": \"role:architect\"\n"));
    assert!(printed.contains("# \"create_router:ha\": \"rule:admin_only\"\n"));
    assert!(printed.contains("# \"get_port:binding:host_id\": \"rule:admin_or_service\"\n"));
    let uncommented = printed.replace("# \"", "\"");
    let again = policy(&uncommented).unwrap();
    assert!(again.overrides.len() > 150);
    // All of it said explicitly, nothing is different.
    let ctx = |role: &str| caller_under(&again, "p", role);
    assert!(require(&ctx("admin"), "create_l3-router", "").is_ok());
    assert!(require(&ctx("member"), "create_l3-router", "").is_err());
}

#[test]
fn a_refusal_names_the_rules() {
    let text = forbidden("create_router", &["ha"]).to_string();
    assert_eq!(text, "(rule:create_router and rule:create_router:ha) is disallowed by policy");
    assert_eq!(forbidden("create_router", &[]).to_string(), "rule:create_router is disallowed by policy");
}
