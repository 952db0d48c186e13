//! What the lab's measurements share: a deployment with one instance, requests, and figures.

pub(crate) mod pair;
pub(crate) mod percentile;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use evergate_lab::probe::ECHO_PORT;
use evergate_lab::spec::WEB;
use evergate_lab::{Lab, Node, Profile, Spec};
use evergate_model::{RouterId, names};
use serde_json::{Value, json};

/// A lab that is taken down when the measurement ends, however it ends.
pub(crate) struct Bench {
    pub(crate) lab: Lab,
}

impl Bench {
    /// Brings a lab up with an external network, and one project network with an instance on `cmp1`.
    pub(crate) fn up(what: &str, advert_int: Option<u8>, bfd_interval_ms: Option<u16>) -> Result<Self> {
        Self::up_as(Profile::Ha, what, advert_int, bfd_interval_ms)
    }

    /// As [`Self::up`], with another deployment than the usual one.
    pub(crate) fn up_as(
        profile: Profile,
        what: &str,
        advert_int: Option<u8>,
        bfd_interval_ms: Option<u16>,
    ) -> Result<Self> {
        Self::up_with(what, |spec| Spec { profile, advert_int, bfd_interval_ms, ..spec })
    }

    /// As [`Self::up`], with whatever settings.
    pub(crate) fn up_with(what: &str, change: impl FnOnce(Spec) -> Spec) -> Result<Self> {
        let bench = Self::bare(what, change)?;
        bench.prepare()?;
        Ok(bench)
    }

    /// Brings a lab up in which nothing is made yet, with whatever settings.
    pub(crate) fn bare(what: &str, change: impl FnOnce(Spec) -> Spec) -> Result<Self> {
        let name = format!("bench_{what}_{}", std::process::id());
        let spec = change(Spec::new(&name, PathBuf::from(env!("CARGO_BIN_EXE_evergate"))));
        let folder = std::env::temp_dir().join(&name);
        let lab = Lab::up(spec, Some(&folder)).inspect_err(|_| drop(Lab::down(&name, Some(&folder), false)))?;
        Ok(Self { lab })
    }

    fn prepare(&self) -> Result<()> {
        let external = self.create(
            "network",
            json!({
                "name": "external", "router:external": true,
                "provider:network_type": "flat", "provider:physical_network": "external"
            }),
        )?;
        self.create(
            "subnet",
            json!({
                "network_id": external, "ip_version": 4, "cidr": "203.0.113.0/24", "gateway_ip": "203.0.113.254",
                "enable_dhcp": false, "allocation_pools": [{"start": "203.0.113.10", "end": "203.0.113.240"}]
            }),
        )?;
        let network = self.create("network", json!({"name": "net1"}))?;
        self.create("subnet", json!({"name": "net1", "network_id": network, "ip_version": 4, "cidr": "10.0.0.0/24"}))?;
        let port = self.create("port", json!({"network_id": network}))?;
        self.lab.add_instance("vm1", &port, Node::Compute(1))?;
        Ok(())
    }

    /// Creates one object and returns its id.
    pub(crate) fn create(&self, kind: &str, body: Value) -> Result<String> {
        let mut wrapped = serde_json::Map::new();
        wrapped.insert(kind.to_owned(), body);
        let answer = self.lab.api_ok("POST", &format!("/v2.0/{kind}s"), Some(&Value::Object(wrapped)))?;
        answer[kind]["id"].as_str().map(ToOwned::to_owned).with_context(|| format!("a {kind} without id: {answer}"))
    }

    /// The id of the one object of this name.
    pub(crate) fn find(&self, kind: &str, name: &str) -> Result<String> {
        let answer = self.lab.api_ok("GET", &format!("/v2.0/{kind}s?name={name}"), None)?;
        let id = answer[format!("{kind}s")][0]["id"].as_str().map(ToOwned::to_owned);
        id.with_context(|| format!("there is no {kind} '{name}'"))
    }

    /// An HA router between the instance's network and the outside. Three requests.
    pub(crate) fn create_router(&self) -> Result<String> {
        let (external, subnet) = (self.find("network", "external")?, self.find("subnet", "net1")?);
        self.create_router_between(&external, &subnet)
    }

    /// As [`Self::create_router`], with the ids looked up beforehand.
    pub(crate) fn create_router_between(&self, external: &str, subnet: &str) -> Result<String> {
        let router = self.create(
            "router",
            json!({
                "name": "r1", "ha": true, "external_gateway_info": {"network_id": external}
            }),
        )?;
        let path = format!("/v2.0/routers/{router}/add_router_interface");
        self.lab.api_ok("PUT", &path, Some(&json!({"subnet_id": subnet})))?;
        Ok(router)
    }

    /// Removes what [`Self::create_router`] made.
    pub(crate) fn delete_router(&self, router: &str) -> Result<()> {
        let subnet = self.find("subnet", "net1")?;
        let path = format!("/v2.0/routers/{router}/remove_router_interface");
        self.lab.api_ok("PUT", &path, Some(&json!({"subnet_id": subnet})))?;
        self.lab.api_ok("DELETE", &format!("/v2.0/routers/{router}"), None)?;
        Ok(())
    }

    /// The host whose copy the API shows as active.
    pub(crate) fn active(&self, router: &str) -> Result<Option<Node>> {
        let answer = self.lab.api_ok("GET", &format!("/v2.0/routers/{router}/l3-agents"), None)?;
        let agents = answer["agents"].as_array().cloned().unwrap_or_default();
        let active = agents.iter().find(|agent| agent["ha_state"] == "active").and_then(|agent| agent["host"].as_str());
        active.map(|host| self.lab.spec().node(host)).transpose()
    }

    /// Whether a host's kernel tracks at least this many established TCP connections for a router: those
    /// of an earlier measurement are closed, and do not count.
    pub(crate) fn tracks(&self, node: Node, router: RouterId, connections: usize) -> Result<Option<()>> {
        let netns = names::qrouter_namespace(router);
        let line = format!("ip netns exec {netns} conntrack -L -p tcp --state ESTABLISHED 2>/dev/null | wc -l");
        let count = self.lab.machine(node).shell(&line)?;
        Ok((count.trim().parse::<usize>()? >= connections).then_some(()))
    }

    /// Moves every active copy away from a host, as an operator does before maintenance.
    pub(crate) fn drain(&self, node: Node) -> Result<()> {
        self.lab.machine(Node::Controller).shell(&format!("evergate drain {node}")).map(drop)
    }

    /// Lets a drained host take part again.
    pub(crate) fn undrain(&self, node: Node) -> Result<()> {
        self.lab.machine(Node::Controller).shell(&format!("evergate undrain {node}")).map(drop)
    }

    /// Waits until every network host sees the two others by BFD, as they do a few seconds after the last
    /// one has booted.
    pub(crate) fn wait_bfd(&self) -> Result<()> {
        for number in 1..=3 {
            let host = self.lab.machine(Node::Network(number));
            let what = format!("BFD on {}", host.node);
            evergate_lab::wait_for(&what, Duration::from_secs(30), || {
                Ok((host.shell("evergate show | grep -c 'BFD.*: up' || true")?.trim() == "2").then_some(()))
            })?;
        }
        Ok(())
    }

    /// Starts a process in the instance that ends with the first answer from outside.
    pub(crate) fn first_answer(&self) -> Result<Waiting> {
        self.first_answer_from("vm1")
    }

    /// The same in another instance.
    pub(crate) fn first_answer_from(&self, instance: &str) -> Result<Waiting> {
        self.first_answer_of(instance, WEB)
    }

    /// Starts a process in an instance that ends with the first answer of an echo server.
    pub(crate) fn first_answer_of(&self, instance: &str, echo: Ipv4Addr) -> Result<Waiting> {
        let mut command = self.lab.instance_command(instance, std::env::current_exe().context("own path")?)?;
        let child = command.args([FIRST_ANSWER, &echo.to_string()]).stdout(Stdio::piped()).spawn();
        Ok(Waiting(child.context("failed to start the waiting process")?))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Err(error) = Lab::down(&self.lab.spec().name, Some(self.lab.dir()), false) {
            eprintln!("the lab could not be taken down: {error:#}");
        }
    }
}

/// The argument that makes a measurement's executable the waiting process itself.
const FIRST_ANSWER: &str = "--first-answer";

/// A process that ends with the first answer from outside.
pub(crate) struct Waiting(Child);

impl Waiting {
    /// Waits for it.
    pub(crate) fn wait(mut self) -> Result<Instant> {
        let status = self.0.wait().context("failed to wait for the first answer")?;
        if !status.success() {
            bail!("no answer from outside in time");
        }
        Ok(Instant::now())
    }
}

/// A list of numbers from the environment, or what is usual.
pub(crate) fn numbers<T: FromStr + Copy>(name: &str, usual: &[T]) -> Result<Vec<T>> {
    let Ok(text) = std::env::var(name) else { return Ok(usual.to_vec()) };
    let parse = |number: &str| {
        number.trim().parse().ok().with_context(|| format!("{name}: '{number}' is no number that makes sense here"))
    };
    text.split(',').filter(|number| !number.is_empty()).map(parse).collect()
}

/// A number from the environment, or what is usual.
pub(crate) fn number<T: FromStr + Copy>(name: &str, usual: T) -> Result<T> {
    match numbers(name, &[usual])?[..] {
        [number] => Ok(number),
        _ => bail!("{name} has to be one number"),
    }
}

/// Becomes the waiting process if the arguments say so. Call first in `main`.
pub(crate) fn wait_if_asked() {
    let mut args = std::env::args().skip_while(|arg| arg != FIRST_ANSWER).skip(1);
    let Some(echo) = args.next().and_then(|text| text.parse().ok()) else { return };
    let answered = UdpSocket::bind("0.0.0.0:0")
        .is_ok_and(|socket| socket.set_read_timeout(Some(Duration::from_millis(1))).is_ok() && hear(&socket, echo));
    std::process::exit(i32::from(!answered));
}

fn hear(socket: &UdpSocket, echo: Ipv4Addr) -> bool {
    let target = SocketAddr::from((echo, ECHO_PORT));
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut buffer = [0; 16];
    while Instant::now() < deadline {
        // Unreachable, or nothing yet: that is what is waited out.
        let _ = socket.send_to(b"now?", target);
        if socket.recv_from(&mut buffer).is_ok() {
            return true;
        }
    }
    false
}

/// Minimum, median and maximum, as text.
pub(crate) fn figures(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.as_slice() {
        [] => "nothing measured".into(),
        all => format!("{:.0} / {:.0} / {:.0}", all[0], all[all.len() / 2], all[all.len() - 1]),
    }
}
