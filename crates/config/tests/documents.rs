//! The files that the two documents describe (MISSION B9, D4), as they stand, for each kind of node.

use std::path::{Path, PathBuf};

use evergate_config::settings::{AgentMode, FlatNetworks, InterfaceDriver};
use evergate_config::{Config, HostSettings, Level, Role, ServerSettings, Sources};
use evergate_model::host::AgentKind;

fn load(node: &str, files: &[&str], role: Role) -> Config {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documents").join(node);
    let files = files.iter().map(|f| dir.join(f)).collect();
    Config::load(&Sources { files, dirs: vec![] }, role).expect("the documented files are accepted")
}

fn warnings(config: &Config) -> Vec<String> {
    let grave = config.findings().iter().filter(|f| f.level <= Level::Warning);
    grave.map(|f| f.text.clone()).collect()
}

#[test]
fn a_controller_is_configured_by_the_documented_files() {
    let config = load("controller", &["neutron.conf", "ml2_conf.ini"], Role::Server);
    assert_eq!(warnings(&config), Vec::<String>::new());
    let settings = ServerSettings::from_config(&config);
    assert!(settings.l3_ha && settings.router_distributed);
    assert_eq!(settings.max_l3_agents_per_router, 3);
    assert_eq!(settings.l3_ha_net_cidr.to_string(), "169.254.192.0/18");
    assert_eq!(settings.type_drivers, ["flat", "vxlan"]);
    assert_eq!(settings.project_network_types, ["vxlan"]);
    assert_eq!(settings.extension_drivers, ["port_security"]);
    assert_eq!(settings.flat_networks, FlatNetworks::Named(vec!["external".into()]));
    assert_eq!(settings.vni_ranges, [1..=1000]);
}

#[test]
fn network_and_compute_hosts_are_configured_by_the_documented_files() {
    let files = ["neutron.conf", "openvswitch_agent.ini", "l3_agent.ini"];
    for (node, mode) in [("network", AgentMode::DvrSnat), ("compute", AgentMode::Dvr)] {
        let config = load(node, &files, Role::Host);
        // A firewall is configured, and none is there: that much must be said.
        let warnings = warnings(&config);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("security groups have no effect"), "{warnings:?}");
        let settings = HostSettings::from_config(&config);
        assert_eq!(settings.agent_mode, mode);
        assert_eq!(settings.interface_driver, InterfaceDriver::OpenVSwitch);
        assert_eq!(settings.l2_agent, AgentKind::OpenVSwitch);
        assert_eq!(settings.physical_device("external"), Some("br-ex"));
        assert_eq!(settings.tunnel_types, ["vxlan"]);
        assert!(settings.l2_population && settings.local_ip.is_some());
        assert_eq!(settings.ha_vrrp_auth_password.is_some(), node == "network");
        assert_eq!(settings.ha_confs_path, PathBuf::from("/var/lib/evergate/ha_confs"));
        assert!(config.findings().iter().any(|f| f.level == Level::Info && f.text.contains("kernel bridge")));
    }
}

#[test]
fn a_host_with_linux_bridges_is_configured_by_the_documented_file() {
    let config = load("linuxbridge", &["l3_agent.ini"], Role::Host);
    assert_eq!(warnings(&config), Vec::<String>::new());
    let driver =
        config.effective().lines().skip_while(|line| !line.contains("l3_agent.ini:2")).nth(1).map(str::to_owned);
    assert_eq!(driver.as_deref(), Some("interface_driver = linuxbridge"), "it is the file's, not the default");
    let settings = HostSettings::from_config(&config);
    assert_eq!(settings.interface_driver, InterfaceDriver::LinuxBridge);
    assert_eq!((settings.agent_mode, settings.l2_agent), (AgentMode::Legacy, AgentKind::LinuxBridge));
    // It is what is meant: nothing need be explained.
    assert!(!config.findings().iter().any(|f| f.text.contains("kernel bridge")), "{:?}", config.findings());
}

#[test]
fn what_check_config_prints_reads_back_as_the_same_settings() {
    let config = load("compute", &["neutron.conf", "openvswitch_agent.ini", "l3_agent.ini"], Role::Host);
    let printed = config.effective();
    let again = Config::from_texts(&[("printed".into(), printed)], "ignored", Role::Host, vec![]).unwrap();
    assert_eq!(HostSettings::from_config(&again), HostSettings::from_config(&config));
}

#[test]
fn check_config_tells_where_a_value_comes_from_and_hides_secrets() {
    let config = load("network", &["neutron.conf", "openvswitch_agent.ini", "l3_agent.ini"], Role::Host);
    let printed = config.effective();
    assert!(printed.contains("l3_agent.ini:6\nagent_mode = dvr_snat\n"), "{printed}");
    assert!(printed.contains("ha_vrrp_auth_password = <secret>\n"), "{printed}");
    assert!(!printed.contains("= password"), "{printed}");
    assert!(printed.contains("no effect: there is no Open vSwitch") || printed.contains("has no effect"), "{printed}");
}
