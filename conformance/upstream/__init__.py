"""What the suites `sdk` and `tempest` share: tests of PyPI packages, unmodified, in a virtual environment of their own.

`inside.py` is what runs there. The environment is made in `.venv-conformance` by the first suite that needs it.
"""

import http.client
import json
import os
import pathlib
import ssl
import subprocess
import sys
import urllib.request

import yaml
from run import Outcome

HERE = pathlib.Path(__file__).resolve().parent
VENV = HERE.parent.parent / ".venv-conformance"


def virtual_environment(venv, requirements, what):
    """A virtual environment with these packages; installs them where that was not done yet."""
    installed = venv / "requirements.txt"
    if not installed.exists() or installed.read_text() != requirements.read_text():
        print(f"Installing {what} into {venv.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        pip = [venv / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", requirements]
        subprocess.run(pip, check=True)
        # The mark of a finished installation.
        installed.write_text(requirements.read_text())
    return venv


def tests(package, directory, environment, options, without):
    """Runs a package's tests; `without` says of which not, and why: parts of names and reasons."""
    directory.mkdir(parents=True, exist_ok=True)
    report, log = directory / "report", directory / "log"
    venv = virtual_environment(VENV, HERE / "requirements.txt", "the tests of openstacksdk and Tempest")
    command = [venv / "bin/python", HERE / "inside.py", report, package]
    command += ["--only", options.only] if options.only else []
    for part in without:
        command += ["--without", part]
    with open(log, "w") as output:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        ended = subprocess.run(command, env=environment, stdout=output, stderr=output, cwd=directory).returncode
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    outcomes = [Outcome(line["name"], line.get("problem"), line.get("skipped")) for line in lines]
    for outcome in outcomes:
        if outcome.skipped in without:
            outcome.skipped = without[outcome.skipped]
    if ended:
        outcomes.append(Outcome(package, problem=f"it ended with {ended}: {log.read_text()[-2000:]}"))
    return outcomes


def hosts(server):
    """Joins and reports as three network hosts would, once: schedulers and HA routers need some."""
    if (server.state.parent / "net1").exists():
        return
    evergate, conf = server.evergate, server.state.parent / "server.conf"
    create = [evergate, "cluster", "token", "create", "--config-file", conf]
    token = subprocess.run(create, check=True, capture_output=True, text=True).stdout
    address = server.url.partition("://")[2]
    for number in (1, 2, 3):
        state = server.state.parent / f"net{number}"
        host_conf = server.state.parent / f"net{number}.conf"
        host_conf.write_text(f"[DEFAULT]\nhost = net{number}\nstate_path = {state}\n"
                             f"[evergate]\nserver_url = https://{address}\n")
        join = [evergate, "join", "--config-file", host_conf, "--token-file", "-"]
        subprocess.run(join, check=True, capture_output=True, text=True, input=token)
        bridge = {"tunneling_ip": f"192.0.2.{number}", "tunnel_types": ["vxlan"],
                  "bridge_mappings": {"physnet1": "br-ex"}}
        report = {
            "host": f"net{number}", "incarnation": 1, "sequence": 1, "applied_revision": None, "ha_states": {},
            "ports_up": [], "floating_ips_active": [], "warnings": [],
            "agents": [
                {"kind": "l3", "availability_zone": "nova", "configurations": {"agent_mode": "legacy"}},
                {"kind": "linux_bridge", "availability_zone": None, "configurations": bridge},
            ],
        }
        send_as_member(address, state, f"/evergate/v1/hosts/net{number}/report", report)


def send_as_member(address, state, path, body):
    """Posts as a host does: it calls the server by the name of its cluster's servers, and shows its certificate."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=state / "ca.pem")
    context.load_cert_chain(state / "membership.pem")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.connect()
    connection.sock = context.wrap_socket(connection.sock, server_hostname="server.evergate.internal")
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 204:
        raise SystemExit(f"{path}: {answer.status} {answer.read().decode()}")
    connection.close()


def identity(server, *arguments, password=None):
    """Runs `evergate identity` on the server's users and projects."""
    command = [server.evergate, "identity", "--config-file", server.state.parent / "server.conf", *arguments]
    if password:
        command += ["--password-file", "-"]
    subprocess.run(command, input=password, text=True, check=True, capture_output=True)


def external(server):
    """The id of the external network `public`, which is made when it is not there."""
    admin = Admin(server)
    if found := admin.call("GET", "networks?name=public")["networks"]:
        return found[0]["id"]
    public = admin.call("POST", "networks", {"network": {
        "name": "public", "router:external": True,
        "provider:network_type": "flat", "provider:physical_network": "physnet1",
    }})["network"]["id"]
    subnet = {"network_id": public, "ip_version": 4, "cidr": "198.18.0.0/16", "enable_dhcp": False}
    admin.call("POST", "subnets", {"subnet": subnet})
    return public


class Admin:
    """A caller of the API with the role admin."""

    def __init__(self, server):
        self.url = server.url
        login = yaml.safe_load(server.clouds.read_text())["clouds"]["evergate-admin"]["auth"]
        domain = {"id": "default"}
        user = {"name": login["username"], "domain": domain, "password": login["password"]}
        scope = {"project": {"name": login["project_name"], "domain": domain}}
        identity = {"methods": ["password"], "password": {"user": user}}
        answer = self.send("POST", "/identity/v3/auth/tokens", {"auth": {"identity": identity, "scope": scope}}, {})
        self.token = answer.headers["X-Subject-Token"]

    def call(self, method, path, body=None):
        return json.load(self.send(method, f"/v2.0/{path}", body, {"X-Auth-Token": self.token}))

    def send(self, method, path, body, headers):
        data = json.dumps(body).encode() if body else None
        headers = {"Content-Type": "application/json", **headers}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers, method=method), timeout=60)
