//! Hosts as members of the cluster, on real hosts: one that is shut out goes on serving, and comes back with a token.

use evergate_lab::{Node, wait_for};

use crate::support::{Cloud, PATIENCE};

#[test]
fn a_host_that_is_shut_out_goes_on_serving_and_comes_back_with_a_token() {
    let mut cloud = Cloud::up_with("membership", |spec| (spec.network_hosts, spec.compute_hosts) = (2, 1));
    let router = cloud.with_router();
    cloud.with_instance();
    let active = cloud.lab.wait_copies(router, 2, &["ha-", "qr-", "qg-"]).unwrap();
    let cluster = |cloud: &Cloud, what: &str| {
        let files = "--config-file /etc/neutron/neutron.conf --config-file /etc/neutron/ml2_conf.ini";
        cloud.lab.machine(Node::Controller).shell(&format!("evergate cluster {what} {files}")).unwrap()
    };
    let says = |cloud: &Cloud, words: &str| {
        wait_for(&format!("{active} says '{words}'"), PATIENCE, || {
            let shown = cloud.lab.machine(active).shell("evergate show")?;
            Ok(shown.lines().any(|line| line.starts_with("server") && line.contains(words)).then_some(()))
        })
        .unwrap();
    };
    assert!(cluster(&cloud, "host list").contains(&format!("{active}\tmember\t")));

    cluster(&cloud, &format!("host revoke {active}"));
    says(&cloud, "was revoked by an operator");
    wait_for("the API shows it dead", PATIENCE, || {
        let agents = cloud.lab.api_ok("GET", &format!("/v2.0/agents?host={active}"), None)?;
        let agents = agents["agents"].as_array().cloned().unwrap_or_default();
        Ok((!agents.is_empty() && agents.iter().all(|agent| agent["alive"] == false)).then_some(()))
    })
    .unwrap();
    // What it is told no more, it still does.
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
    cloud.wait_instance_reaches_the_world();

    // A token of its name, and the daemon takes it by itself.
    let token = cloud.lab.make_token(Some(active)).unwrap();
    cloud.lab.give_token(active, &token).unwrap();
    says(&cloud, " connected ");
    cloud.lab.wait_hosts_alive(&[active]).unwrap();
    let used = cloud.lab.machine(active).shell("ls /var/lib/evergate").unwrap();
    assert!(used.contains("membership.pem") && !used.contains("join-token"), "{used}");
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);
    cloud.wait_instance_reaches_the_world();
}
