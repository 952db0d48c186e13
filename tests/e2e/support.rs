//! A lab with a router in it, for one test.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use evergate_lab::client::Client;
use evergate_lab::{ADMIN_CLOUD, MEMBER_CLOUD, Node, Spec, Temporary, wait_for};
use evergate_model::RouterId;
use serde_json::Value;

/// Longest time that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A lab with two users logged in by the stock client, taken down when the test ends, however it ends.
pub(crate) struct Cloud {
    /// First of all, so that it is the first to go: clients that wait for an answer end with it.
    pub(crate) lab: Temporary,
    pub(crate) admin: Client,
    pub(crate) member: Client,
}

/// Brings a lab up without users, which differs from the usual one.
pub(crate) fn lab(test: &str, differ: impl FnOnce(&mut Spec)) -> Temporary {
    let name = format!("e2e{}_{test}", std::process::id());
    let mut spec = Spec::new(&name, PathBuf::from(env!("CARGO_BIN_EXE_evergate")));
    spec.client = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/openstack"));
    differ(&mut spec);
    Temporary::up(spec).unwrap()
}

impl Cloud {
    /// Brings a lab up. Without an interval, the documented 2 s hold.
    pub(crate) fn up(test: &str, advert_int: Option<u8>) -> Self {
        Self::up_with(test, |spec| spec.advert_int = advert_int)
    }

    /// Brings a lab up that differs from the usual one.
    pub(crate) fn up_with(test: &str, differ: impl FnOnce(&mut Spec)) -> Self {
        let lab = lab(test, differ);
        let admin = Client::start(&lab, ADMIN_CLOUD).unwrap();
        let member = Client::start(&lab, MEMBER_CLOUD).unwrap();
        Self { lab, admin, member }
    }

    /// Makes the external network, the member's network, and an HA router between the two.
    pub(crate) fn with_router(&mut self) -> RouterId {
        for command in [
            "network create public --external --provider-network-type flat --provider-physical-network external",
            "subnet create public-subnet --network public --subnet-range 203.0.113.0/24 --gateway 203.0.113.254 \
             --allocation-pool start=203.0.113.100,end=203.0.113.199 --no-dhcp",
        ] {
            self.admin.ok(command).unwrap();
        }
        self.member.ok("network create private").unwrap();
        self.member.ok("subnet create private-subnet --network private --subnet-range 10.0.0.0/24").unwrap();
        self.admin.ok("router create router1 --ha --project demo").unwrap();
        self.member.ok("router set router1 --external-gateway public").unwrap();
        self.member.ok("router add subnet router1 private-subnet").unwrap();
        self.router_id("router1")
    }

    /// Starts an instance of the member's on `cmp1`, and waits until it reaches the world outside.
    pub(crate) fn with_instance(&mut self) {
        self.member.ok("port create vm1-port --network private").unwrap();
        self.lab.add_instance("vm1", "vm1-port", Node::Compute(1)).unwrap();
        self.wait_instance_reaches_the_world();
    }

    pub(crate) fn wait_instance_reaches_the_world(&self) -> String {
        wait_for("the instance reaches the web server", PATIENCE, || self.fetch("http://198.51.100.10/").map(Some))
            .unwrap()
    }

    /// Fetches a page from inside the instance.
    pub(crate) fn fetch(&self, url: &str) -> anyhow::Result<String> {
        self.lab.instance_shell("vm1", &format!("evergate lab fetch {url}"))
    }

    pub(crate) fn router_id(&mut self, name: &str) -> RouterId {
        self.admin.ok(&format!("router show {name} -f value -c id")).unwrap().trim().parse().unwrap()
    }

    /// What `network agent list --router R --long` shows: host, alive, HA state.
    pub(crate) fn copies(&mut self, router: &str) -> Vec<(String, bool, String)> {
        let list = self.admin.json(&format!("network agent list --router {router} --long")).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rows = list.as_array().unwrap().iter();
        let mut rows: Vec<_> =
            rows.map(|row| (text(&row["Host"]), row["Alive"] == true, text(&row["HA State"]))).collect();
        rows.sort();
        rows
    }

    /// Waits until the API shows `active` as the only active copy, and returns the copies.
    pub(crate) fn wait_shown_active(&mut self, router: &str, active: Node) -> Vec<(String, bool, String)> {
        wait_for(&format!("the API shows {active} as the active host"), PATIENCE, || {
            let copies = self.copies(router);
            let shown: Vec<_> = copies.iter().filter(|(_, _, state)| state == "active").collect();
            Ok((shown.len() == 1 && shown[0].0 == active.to_string()).then_some(copies))
        })
        .unwrap()
    }
}

/// Fails if something ceases to be so for a while.
pub(crate) fn for_a_while(what: &str, time: Duration, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(so(), "ceased: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One column of a list that the client printed as JSON.
pub(crate) fn column(list: &Value, name: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|row| row[name].as_str().unwrap_or_default().to_owned()).collect()
}
