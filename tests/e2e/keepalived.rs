//! A stock keepalived, started from the file that Evergate wrote, is one of the copies.

use evergate_lab::fault::{Daemon, Fault, Signal};
use evergate_lab::{Machine, Node, wait_for};
use evergate_model::RouterId;

use crate::support::{Cloud, PATIENCE};

#[test]
fn a_stock_keepalived_joins_takes_over_and_gives_way() {
    let mut cloud = Cloud::up("keepalived", Some(1));
    let router = cloud.with_router();
    let active = cloud.lab.wait_active(router).unwrap();
    let mut others = cloud.lab.hosts_of(router);
    others.retain(|node| *node != active);
    let (stock, spare) = (others[0], others[1]);
    let term = Fault::Process(Daemon::Host, Signal::Term);

    // On one host keepalived takes the place of Evergate's copy, in the same namespace.
    let machine = cloud.lab.machine(stock);
    cloud.lab.fail(stock, term.clone()).unwrap();
    wait_stopped(&machine);
    start_keepalived(&machine, router);
    wait_logged(&machine, "Entering BACKUP STATE");

    // It hears the active copy (password, version and checksum fit), so it stays backup for longer than
    // it would wait in silence: three intervals and the skew are less than 4 s.
    let heard = capture(&machine, router, 5);
    assert!(heard.lines().count() >= 4, "advertisements of the active copy: {heard}");
    assert!(heard.lines().all(|line| line.contains("prio 50") && line.contains("authtype simple")), "{heard}");
    assert!(!machine.acts_as_active(router).unwrap());
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [active]);

    // Evergate's copies stop; the last active one resigns. keepalived takes over all that moves.
    cloud.lab.fail(spare, term.clone()).unwrap();
    wait_stopped(&cloud.lab.machine(spare));
    cloud.lab.fail(active, term.clone()).unwrap();
    wait_for("keepalived has taken over", PATIENCE, || {
        let log = machine.shell("tail -n 5 /run/keepalived-test.log")?;
        let active = cloud.lab.active_hosts(router)?;
        anyhow::ensure!(active == [stock], "{active:?} are active; keepalived says: {log}");
        Ok(Some(()))
    })
    .unwrap();
    let addresses = machine.router_addresses(router).unwrap().unwrap();
    let held = |prefix: &str| addresses.iter().any(|(link, list)| link.starts_with(prefix) && !list.is_empty());
    assert!(held("qr-") && held("qg-"), "{addresses:?}");
    let route = machine.shell(&format!("ip -n qrouter-{router} route show default")).unwrap();
    assert!(route.contains("via 203.0.113.254"), "{route}");
    // The world outside finds the router at its new place.
    let external = addresses.iter().find(|(link, _)| link.starts_with("qg-")).unwrap().1[0].replace("/24", "");
    wait_for("the router answers outside", PATIENCE, || {
        cloud.lab.machine(Node::Outside).shell(&format!("ping -c 1 -W 1 {external}")).map(Some)
    })
    .unwrap();

    // Evergate returns elsewhere. With equal priorities and no preemption it stays backup.
    cloud.lab.heal(spare, &term).unwrap();
    let spare = cloud.lab.machine(spare);
    wait_for("Evergate's copy follows keepalived", PATIENCE, || {
        let shown: serde_json::Value = serde_json::from_str(&spare.shell("evergate show --json")?)?;
        Ok((shown["routers"][router.to_string()]["role"] == "standby").then_some(()))
    })
    .unwrap();
    let heard = capture(&spare, router, 5);
    // Of five: a busy machine is late with its capture, or with an advertisement.
    assert!(heard.lines().count() >= 2, "advertisements of keepalived: {heard}");
    assert_eq!(cloud.lab.active_hosts(router).unwrap(), [stock]);

    // keepalived ends cleanly: it says priority 0, and Evergate takes over within the skew.
    machine.shell("kill -TERM $(cat /run/keepalived-test.pid)").unwrap();
    assert_eq!(cloud.lab.wait_active(router).unwrap(), spare.node);
}

fn wait_stopped(machine: &Machine<'_>) {
    wait_for(&format!("Evergate has stopped on {}", machine.node), PATIENCE, || {
        let left = [Daemon::Host, Daemon::Control, Daemon::Keeper].iter().map(|daemon| machine.daemons(*daemon).len());
        Ok((left.sum::<usize>() == 0).then_some(()))
    })
    .unwrap();
}

fn start_keepalived(machine: &Machine<'_>, router: RouterId) {
    let conf = format!("/var/lib/evergate/ha_confs/{router}/keepalived.conf");
    machine
        .shell(&format!(
            "ip netns exec qrouter-{router} keepalived --vrrp --log-console --log-detail --use-file {conf} \
             --pid /run/keepalived-test.pid --vrrp_pid /run/keepalived-vrrp.pid --dont-fork \
             </dev/null >/run/keepalived-test.log 2>&1 &"
        ))
        .unwrap();
}

fn wait_logged(machine: &Machine<'_>, text: &str) {
    wait_for(&format!("keepalived says '{text}'"), PATIENCE, || {
        let log = machine.shell("cat /run/keepalived-test.log")?;
        Ok(log.contains(text).then_some(()))
    })
    .unwrap();
}

/// The VRRP packets that a copy hears in so many seconds, a line each.
fn capture(machine: &Machine<'_>, router: RouterId, seconds: u64) -> String {
    let addresses = machine.router_addresses(router).unwrap().unwrap();
    let link = addresses.keys().find(|link| link.starts_with("ha-")).unwrap();
    let dump = format!("timeout {seconds} tcpdump -ni {link} --direction in proto 112 2>/dev/null || :");
    let heard = machine.shell(&format!("ip netns exec qrouter-{router} sh -c '{dump}'")).unwrap();
    heard.trim().to_owned()
}
