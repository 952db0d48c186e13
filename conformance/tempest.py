"""Suite `tempest`: Tempest's own tests of the network API, as they are in its package.

Its accounts are made beforehand: the embedded identity takes no new users through its API.
"""

import secrets

import upstream
import yaml

# What is not run, by a part of the name, and why.
WITHOUT = {
    "test_create_router_setting_project_id": "makes a project through the identity API; evergate identity does that",
}

CONFIG = """\
[DEFAULT]
log_file = {directory}/tempest.log
[oslo_concurrency]
lock_path = {directory}
[auth]
use_dynamic_credentials = false
test_accounts_file = {directory}/accounts.yaml
default_credentials_domain_name = Default
[identity]
auth_version = v3
uri_v3 = {url}/identity/v3
region = RegionOne
[service_available]
neutron = true
nova = false
glance = false
cinder = false
swift = false
horizon = false
[validation]
run_validation = false
[network]
public_network_id = {public}
floating_network_name = public
[network-feature-enabled]
ipv6 = true
ipv6_subnet_attributes = true
api_extensions = {extensions}
"""


def run(server, options):
    upstream.hosts(server)
    directory = server.state.parent / "tempest"
    directory.mkdir()
    (directory / "accounts.yaml").write_text(yaml.safe_dump(accounts(server)))
    aliases = [extension["alias"] for extension in upstream.Admin(server).call("GET", "extensions")["extensions"]]
    public = upstream.external(server)
    config = CONFIG.format(directory=directory, url=server.url, public=public, extensions=",".join(aliases))
    (directory / "tempest.conf").write_text(config)
    environment = {"TEMPEST_CONFIG_DIR": str(directory), "TEMPEST_CONFIG": "tempest.conf"}
    return upstream.tests("tempest.api.network", directory, environment, options, WITHOUT)


def accounts(server):
    """An admin, and a member and a reader of each of two projects."""
    login = yaml.safe_load(server.clouds.read_text())["clouds"]["evergate-admin"]["auth"]
    made = [{"username": "admin", "project_name": "admin", "password": login["password"], "roles": ["admin"]}]
    projects = [f"tempest-{number}" for number in (1, 2)]
    for project in projects:
        upstream.identity(server, "project", "add", project)
    # Members first: who asks for anybody is given the first that is free.
    for role in ("member", "reader"):
        for project in projects:
            user, password = f"{project}-{role}", secrets.token_hex()
            upstream.identity(server, "user", "add", user, "--project", project, "--role", role, password=password)
            made.append({"username": user, "project_name": project, "password": password, "roles": [role]})
    return made
