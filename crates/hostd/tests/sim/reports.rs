//! What the server is told, and what is written below `state_path`.

use std::collections::BTreeSet;

use evergate_hostd::core::{FileJob, PERIOD};
use evergate_keeper::protocol::{FromKeeper, ReplicationStatus, Status};
use evergate_model::host::{AgentGateway, HaStateReport, Location};
use evergate_model::{FloatingIpId, HaState, RouterId};

use crate::common::{EXTERNAL_NETWORK, HOST_VTEP, ROUTER, add_port, mac, port, port_id, remove_router};
use crate::harness::{Sim, became, distributed, transitions, with_router};

#[test]
fn a_tunnel_address_that_is_no_address_of_this_host_is_told() {
    let mut sim = Sim::new(None);
    sim.worker.machine_mut().lacks_address = true;
    sim.snapshot(with_router(5));
    let told =
        |sim: &Sim| sim.report().warnings.iter().any(|text| text.contains("local_ip 192.0.2.11 is not an address"));
    assert!(told(&sim), "{:?}", sim.report().warnings);
    sim.worker.machine_mut().lacks_address = false;
    sim.pass(PERIOD);
    assert!(!told(&sim));
}

#[test]
fn a_floating_ip_that_is_translated_at_the_instance_works_whichever_copy_is_active() {
    let mut sim = Sim::new(None);
    sim.connect_keeper();
    let mut config = distributed(with_router(5));
    let external = port(0x31, &["203.0.113.11"], Location::Local);
    add_port(&mut config, EXTERNAL_NETWORK, port_id(0x31), external);
    let router = config.routers.get_mut(&ROUTER).unwrap();
    router.distributed.as_mut().unwrap().agent_gateway =
        Some(AgentGateway { port_id: port_id(0x31), mac: mac(0x31), addresses: Vec::new() });
    sim.snapshot(config.clone());
    let id = FloatingIpId::from_u128(1);
    assert!(!sim.report().floating_ips_active.contains(&id), "translated where the source NAT is: not here");
    config.revision = 6;
    config.routers.get_mut(&ROUTER).unwrap().floating_ips.get_mut(&id).unwrap().distributed = true;
    sim.change(&config);
    assert!(sim.report().floating_ips_active.contains(&id));
}

#[test]
fn a_transition_is_reported_and_written_at_once() {
    let mut sim = Sim::with_router_in_keeper();
    assert!(sim.report().floating_ips_active.is_empty(), "it does not work on a copy that stands by");
    let reports = sim.reports.len();
    sim.keeper_says(became(HaState::Active, 3, 1000));
    assert_eq!(sim.reports.len(), reports + 1);
    assert_eq!(sim.report().ha_states[&ROUTER], HaStateReport { state: HaState::Active, epoch: 3 });
    assert_eq!(sim.report().floating_ips_active, BTreeSet::from([FloatingIpId::from_u128(1)]));
    assert_eq!(transitions(&sim.files), 1);
    sim.keeper_says(became(HaState::Active, 3, 1000));
    assert_eq!((sim.reports.len(), transitions(&sim.files)), (reports + 1, 1), "told twice, taken once");
}

#[test]
fn connections_that_the_kernel_has_no_room_for_are_told_of_while_it_has_none() {
    let mut sim = Sim::with_router_in_keeper();
    let mut says = |missing| {
        let one = ReplicationStatus {
            router: ROUTER,
            active: false,
            entries: 7,
            peers: 1,
            in_step: true,
            lag_us: 0,
            lags: Default::default(),
            shed: 0,
            resyncs: 0,
            refused: missing,
        };
        sim.keeper_says(FromKeeper::Status(Status { replication: vec![one], ..Status::default() }));
        sim.pass(sim.core.settings().report_interval);
        sim.report().warnings.iter().filter(|text| text.contains("no room for 3 replicated connections")).count()
    };
    assert_eq!([says(0), says(3), says(0)], [0, 1, 0]);
}

#[test]
fn reports_come_at_the_interval_and_count_up() {
    let mut sim = Sim::new(Some(with_router(5)));
    let interval = sim.core.settings().report_interval;
    let before = sim.reports.len();
    sim.pass(interval * 3);
    assert!(sim.reports.len() >= before + 3);
    assert!(sim.reports.windows(2).all(|pair| pair[1].sequence == pair[0].sequence + 1));
    assert!(sim.reports.iter().all(|report| report.host == "network1" && report.incarnation == 1));
}

#[test]
fn the_configuration_for_keepalived_is_written_once_and_goes_with_the_router() {
    let mut sim = Sim::with_router_in_keeper();
    sim.pass(PERIOD * 2);
    let confs: Vec<&String> = sim
        .files
        .iter()
        .filter_map(|job| if let FileJob::KeepalivedConf { text, .. } = job { Some(text) } else { None })
        .collect();
    assert_eq!(confs.len(), 1);
    assert!(confs[0].contains("virtual_router_id 7"), "{}", confs[0]);
    let mut config = with_router(6);
    remove_router(&mut config);
    sim.change(&config);
    let nothing: BTreeSet<RouterId> = BTreeSet::new();
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::Prune { keep } if *keep == nothing)));
}

#[test]
fn the_last_configuration_is_kept_for_a_start_without_the_server() {
    let mut sim = Sim::new(None);
    sim.snapshot(with_router(5));
    assert!(sim.files.iter().any(|job| matches!(job, FileJob::Cache(config) if config.revision == 5)));
    let sim = Sim::new(Some(with_router(5)));
    assert!(sim.core.is_from_cache());
    assert_eq!(sim.core.applied_revision(), Some(5));
}

#[test]
fn agents_are_described_in_neutrons_words() {
    let sim = Sim::new(Some(with_router(5)));
    let report = sim.report();
    let l3 = &report.agents[0].configurations;
    assert_eq!((l3["agent_mode"].as_str(), l3["routers"].as_u64()), (Some("legacy"), Some(1)));
    assert_eq!((l3["ex_gw_ports"].as_u64(), l3["floating_ips"].as_u64()), (Some(1), Some(1)));
    let l2 = &report.agents[1].configurations;
    assert_eq!(l2["tunneling_ip"].as_str(), Some(HOST_VTEP));
    assert_eq!(l2["interface_mappings"]["physnet1"].as_str(), Some("ext0"));
    assert_eq!(l2["tunnel_types"][0].as_str(), Some("vxlan"));
}
