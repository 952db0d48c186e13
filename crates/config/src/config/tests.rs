use std::path::PathBuf;

use super::*;
use crate::settings::{Database, HostSettings, ServerSettings};

fn read(role: Role, texts: &[(&str, &str)]) -> Result<Config, Refused> {
    let texts: Vec<(PathBuf, String)> = texts.iter().map(|(p, t)| (PathBuf::from(p), (*t).to_owned())).collect();
    Config::from_texts(&texts, "h1", role, Vec::new())
}

fn errors(role: Role, text: &str) -> Vec<String> {
    let refused = read(role, &[("x.conf", text)]).expect_err("something is wrong in it");
    refused.errors().map(ToString::to_string).collect()
}

fn warnings(role: Role, text: &str) -> Vec<String> {
    let config = read(role, &[("x.conf", text)]).expect("nothing is wrong in it");
    config.findings.iter().filter(|f| f.level == Level::Warning).map(ToString::to_string).collect()
}

#[test]
fn without_any_file_the_defaults_run() {
    let server = ServerSettings::from_config(&read(Role::Server, &[]).unwrap());
    assert_eq!(server.database, Database::Sqlite("/var/lib/evergate/evergate.sqlite".into()));
    assert_eq!((server.bind_host.as_str(), server.bind_port), ("0.0.0.0", 9696));
    assert_eq!(server.pagination_max_limit, None);
    assert_eq!(server.project_network_types, ["vxlan"]);
    let host = HostSettings::from_config(&read(Role::Host, &[]).unwrap());
    assert_eq!(host.host, "h1");
    assert!(host.roles.l2 && host.roles.l3);
    assert_eq!((host.ha_vrrp_advert_int, server.ha_vrrp_priority), (2, 50));
    assert_eq!(host.tunnel_types, ["vxlan"]);
}

#[test]
fn the_last_file_wins_and_in_a_file_the_last_line() {
    let config = read(
        Role::Server,
        &[
            ("a.conf", "[DEFAULT]\nmax_l3_agents_per_router = 1\nl3_ha = True\n"),
            ("b.conf", "[DEFAULT]\nmax_l3_agents_per_router = 2\nmax_l3_agents_per_router = 4\n"),
        ],
    )
    .unwrap();
    let settings = ServerSettings::from_config(&config);
    assert_eq!(settings.max_l3_agents_per_router, 4);
    assert!(settings.l3_ha);
    let remark = config.findings.iter().find(|f| f.level == Level::Info).map(ToString::to_string);
    assert_eq!(
        remark.as_deref(),
        Some("b.conf:3: option 'max_l3_agents_per_router' in section [DEFAULT] counts, and not what line 2 says")
    );
}

#[test]
fn an_older_name_counts_where_the_present_one_is_not_given() {
    let types =
        |texts: &[(&str, &str)]| ServerSettings::from_config(&read(Role::Server, texts).unwrap()).project_network_types;
    let old = "[ml2]\ntenant_network_types = local\n";
    assert_eq!(types(&[("a", old)]), ["local"]);
    assert_eq!(types(&[("a", &format!("{old}project_network_types = flat\n"))]), ["flat"]);
    assert_eq!(types(&[("a", "[ml2]\nproject_network_types = flat\n"), ("b", old)]), ["local"]);
}

#[test]
fn an_unknown_option_is_a_warning_with_file_line_and_a_guess() {
    assert_eq!(
        warnings(
            Role::Server,
            "[DEFAULT]\n\nl3-ha = True\nmax_l3_agents_per_ruter = 3\nfrobnicate = 1\nlocal_ip = ::1\n"
        ),
        [
            "x.conf:3: unknown option 'l3-ha' in section [DEFAULT] (did you mean 'l3_ha'?)",
            "x.conf:4: unknown option 'max_l3_agents_per_ruter' in section [DEFAULT] (did you mean 'max_l3_agents_per_router'?)",
            "x.conf:5: unknown option 'frobnicate' in section [DEFAULT]",
            "x.conf:6: unknown option 'local_ip' in section [DEFAULT] (it belongs in [ovs])",
        ]
    );
    assert_eq!(
        warnings(Role::Server, "[default]\nl3_ha = True\n[zebra]\nx = 1\n[nova]\nx = 1\n"),
        ["x.conf:1: unknown section [default] (did you mean [DEFAULT]?)", "x.conf:3: unknown section [zebra]"]
    );
}

#[test]
fn all_impossible_values_are_told_at_once() {
    assert_eq!(
        errors(
            Role::Server,
            "[DEFAULT]\nl3_ha = perhaps\nbind_port = 70000\nl3_ha_net_cidr = 169.254.192.0/30\nstray\n\
             [ml2]\ntype_drivers = flat,carrier-pigeon\n"
        ),
        [
            "x.conf:2: option 'l3_ha' in section [DEFAULT]: 'perhaps' is neither true nor false",
            "x.conf:3: option 'bind_port' in section [DEFAULT]: 70000 is too large: at most 65535 is possible",
            "x.conf:4: option 'l3_ha_net_cidr' in section [DEFAULT]: 169.254.192.0/30 has no room for the copies of a router: /29 or larger is needed",
            "x.conf:5: the line is neither 'key = value', nor a section, nor a comment",
            "x.conf:7: option 'type_drivers' in section [ml2]: 'carrier-pigeon' is not one of local, flat, vlan, gre, vxlan, geneve",
        ]
    );
}

#[test]
fn what_cannot_work_here_is_refused_where_it_stands() {
    let one = |role, text: &str| {
        let errors = errors(role, text);
        assert_eq!(errors.len(), 1, "{errors:?}");
        errors.into_iter().next().unwrap()
    };
    let server = |text| one(Role::Server, text);
    let host = |text| one(Role::Host, text);
    assert!(server("[database]\nconnection = mysql+pymysql://neutron:pw@db/neutron\n").starts_with("x.conf:2: "));
    assert!(!server("[database]\nconnection = mysql+pymysql://neutron:pw@db/neutron\n").contains("pw@"));
    assert!(server("[ml2]\nproject_network_types = vlan\n").contains("not carried"));
    assert!(server("[ml2]\ntype_drivers = flat\n").contains("'vxlan' is a project network type"));
    assert!(server("[DEFAULT]\ndvr_base_mac = fa:16:3e:00:00:00\n").contains("must differ"));
    assert!(server("[DEFAULT]\nl3_ha_network_type = flat\n").contains("l3_ha_network_physical_name"));
    assert!(host("[DEFAULT]\nha_vrrp_auth_type = AH\nha_vrrp_auth_password = x\n").contains("use PASS"));
    assert!(host("[ovs]\nlocal_ip = TUNNEL_INTERFACE_IP_ADDRESS\n").contains("is not an IP address"));
    assert!(host("[ovs]\nlocal_ip = 192.0.2.1\n[vxlan]\nlocal_ip = 192.0.2.2\n").contains("contradicts"));
    assert!(host("[agent]\ntunnel_types = gre\n").contains("only vxlan"));
    assert!(host("[linux_bridge]\nphysical_interface_mappings = p:a-name-far-too-long\n").contains("interface's name"));
    assert!(host("[DEFAULT]\nhost = a/b\n").contains("cannot be a host's name"));
    assert!(host("[evergate]\nserver_url = controller:9696\n").contains("https://"));
    assert!(host("[evergate]\nserver_url = https://a:9696, b:9696\n").contains("separated by commas"));
    assert!(server("[ssl]\nkey_file = /k\n").contains("set cert_file"));
    assert!(server("[ssl]\nca_file = /k\n").contains("set use_ssl"));
    assert!(server("[DEFAULT]\nuse_ssl = True\n[evergate]\npublic_url = http://a\n").contains("turned away"));
    assert!(host("[DEFAULT]\nha_vrrp_advert_int = 0\n").contains("at least 1"));
    let ms = "[evergate]\nvrrp_advert_interval_ms = ";
    let v3 = "\n[evergate]\nvrrp_version = 3\n";
    let error = |text: String| one(Role::Host, &text);
    assert!(error(format!("{ms}100\n")).starts_with("x.conf:2: "));
    assert!(error(format!("{ms}100\n")).contains("whole seconds"));
    assert!(error(format!("{ms}105{v3}")).contains("steps of 10"));
    assert!(error(format!("{ms}9{v3}")).contains("at least 10"));
    assert!(error(format!("{ms}40960{v3}")).contains("at most 40950"));
    let long = error(format!("[DEFAULT]\nha_vrrp_advert_int = 41{v3}"));
    assert!(long.starts_with("x.conf:2: ") && long.contains("40 seconds"), "{long}");
    assert!(error(format!("[DEFAULT]\nha_vrrp_auth_password = x{v3}")).contains("no password"));
    // The other daemon does not mind.
    assert!(read(Role::Host, &[("x.conf", "[database]\nconnection = mysql://db/neutron\n")]).is_ok());
}

#[test]
fn variables_that_lead_nowhere_are_refused() {
    assert_eq!(
        errors(Role::Host, "[DEFAULT]\nha_confs_path = $stat_path/ha\n"),
        ["x.conf:2: option 'ha_confs_path' in section [DEFAULT]: there is no option 'stat_path' to put in its place \
             (write $$ for a dollar sign)"]
    );
    let circle = errors(Role::Host, "[DEFAULT]\nstate_path = $ha_confs_path\nha_confs_path = ${state_path}/ha\n");
    assert!(circle.iter().any(|e| e.contains("leads back to itself")), "{circle:?}");
}

#[test]
fn a_secret_stays_one_in_whatever_it_is_put_into() {
    let text = "[DEFAULT]\nha_vrrp_auth_password = hunter2\nstate_path = /x/$ha_vrrp_auth_password\n";
    let config = read(Role::Host, &[("x.conf", text)]).unwrap();
    assert!(!config.effective().contains("hunter2"), "{}", config.effective());
    assert!(!format!("{:?}", HostSettings::from_config(&config).ha_vrrp_auth_password).contains("hunter2"));
}

#[test]
fn values_and_variables_mean_what_they_mean_to_oslo_config() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oslo");
    let text = std::fs::read_to_string(dir.join("typed.conf")).unwrap();
    let recorded = std::fs::read_to_string(dir.join("typed.json")).unwrap();
    let recorded: serde_json::Value = serde_json::from_str(&recorded).unwrap();
    let config = read(Role::Host, &[("typed.conf", &text)]).unwrap();
    for (section, options) in recorded["values"].as_object().unwrap() {
        for (name, expected) in options.as_object().unwrap() {
            let found = match config.value(section, name) {
                Some(Value::Bool(value)) => serde_json::json!(value),
                Some(Value::Int(value)) => serde_json::json!(value),
                Some(Value::Text(value)) => serde_json::json!(value),
                Some(Value::List(value)) => serde_json::json!(value),
                other => panic!("[{section}] {name} is {other:?}"),
            };
            assert_eq!(&found, expected, "[{section}] {name}");
        }
    }
}

#[test]
fn files_of_a_directory_come_sorted_and_a_missing_file_is_named() {
    let dir = std::env::temp_dir().join(format!("evergate-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (name, copies) in [("20.conf", 2), ("10.conf", 1), ("30.conf.bak", 3)] {
        std::fs::write(dir.join(name), format!("[DEFAULT]\nmax_l3_agents_per_router = {copies}\n")).unwrap();
    }
    let config = Config::load(&Sources { files: vec![], dirs: vec![dir.clone()] }, Role::Server);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(ServerSettings::from_config(&config.unwrap()).max_l3_agents_per_router, 2);

    let missing = Sources { files: vec![dir.join("absent.conf")], dirs: vec![dir] };
    let refused = Config::load(&missing, Role::Server).unwrap_err();
    assert_eq!(refused.errors().count(), 2);
    assert!(refused.to_string().contains("absent.conf: No such file"), "{refused}");
}

#[test]
fn what_is_asked_for_and_not_there_yet_is_said() {
    let said = |text: &str| {
        let config = read(Role::Server, &[("x.conf", text)]).unwrap();
        let infos = config.findings.iter().filter(|f| f.level == Level::Info);
        infos.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        said("[DEFAULT]\ndns_domain = example.org\n"),
        ["x.conf:2: option 'dns_domain' in section [DEFAULT] has no effect: ports have no names in the DNS"]
    );
    assert_eq!(said("[DEFAULT]\ndns_domain = openstacklocal\n"), Vec::<String>::new());
    assert!(read(Role::Server, &[("x.conf", "[DEFAULT]\nallow_automatic_l3agent_failover = x\n")]).is_err());
}

#[test]
fn a_host_speaks_tls_whatever_an_older_file_says() {
    let text = "[evergate]\nserver_url = http://a:9696, https://b:9696\nhost_token_file = /x\n";
    let config = read(Role::Host, &[("x.conf", text)]).unwrap();
    assert_eq!(HostSettings::from_config(&config).server_urls, ["https://a:9696", "https://b:9696"]);
    let findings = config.findings().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    assert!(findings.contains("counts as https://"), "{findings}");
}
