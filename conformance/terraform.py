"""Suite `terraform`: what Terraform's OpenStack provider asks of the networking API, request by request.

The provider itself comes from a registry of its own, which test machines need not reach; these are the requests that
its library (gophercloud) makes for each resource, in the provider's order: look up, create, wait for a status, tag,
read; plan, which reads again and must find no difference to what was asked for; change in place under the revision
that was read; destroy in reverse, and wait until it is gone.
"""

import json
import time
import urllib.error

import upstream
from run import Outcome

# The provider waits for these; anything but a pending status in between is an error to it.
READY = {"networks": {"ACTIVE"}, "routers": {"ACTIVE"}, "ports": {"ACTIVE", "DOWN"}, "floatingips": {"ACTIVE", "DOWN"}}
PENDING = {"BUILD", "PENDING_CREATE", "PENDING_UPDATE"}
TAGGED = {"networks", "subnets", "subnetpools", "ports", "routers", "floatingips", "security-groups"}
PATIENCE = 60


class Difference(Exception):
    """Something is not as the provider expects it."""


class Resource:
    """A resource of a state: where it is, what was asked for."""

    def __init__(self, collection, singular, wanted, below=""):
        self.collection, self.singular, self.wanted = collection, singular, wanted
        self.path, self.id, self.revision = below + collection, None, None

    @property
    def own(self):
        return f"{self.path}/{self.id}"


class Provider:
    def __init__(self, server):
        self.admin = upstream.Admin(server)
        self.state = []

    def ask(self, method, path, body=None, headers=None, expect=(200,)):
        """Makes a request; answers its status and body."""
        headers = {"X-Auth-Token": self.admin.token, "Accept": "application/json", **(headers or {})}
        try:
            with self.admin.send(method, f"/v2.0/{path}", body, headers) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        if status not in expect:
            raise Difference(f"{method} {path} {body or ''}: {status} {text.decode()}")
        return status, json.loads(text) if text else None

    def create(self, collection, singular, wanted, below="", unshown=None):
        resource = Resource(collection, singular, wanted, below)
        _, made = self.ask("POST", resource.path, {singular: wanted | (unshown or {})}, expect=(201,))
        resource.id = made[singular]["id"]
        self.state.append(resource)
        self.wait(resource)
        if collection in TAGGED:
            self.ask("PUT", f"{resource.own}/tags", {"tags": ["managed", "by terraform"]})
        self.read(resource)
        return resource

    def wait(self, resource):
        deadline = time.monotonic() + PATIENCE
        while resource.collection in READY:
            status = self.ask("GET", resource.own)[1][resource.singular]["status"]
            if status in READY[resource.collection]:
                return
            if status not in PENDING or time.monotonic() > deadline:
                raise Difference(f"{resource.own}: status {status}")
            time.sleep(0.2)

    def read(self, resource):
        """Reads a resource; what was asked for must be what is shown, or the next plan wants to change it."""
        shown = self.ask("GET", resource.own)[1][resource.singular]
        resource.revision = shown.get("revision_number")
        for name, value in resource.wanted.items():
            if not same(value, shown.get(name)):
                raise Difference(f"{resource.own} {name}: {shown.get(name)!r} and not {value!r}")
        if resource.collection in TAGGED and sorted(shown["tags"]) != ["by terraform", "managed"]:
            raise Difference(f"{resource.own}: tags {shown['tags']}")
        return shown

    def update(self, resource, **changes):
        self.read(resource)
        headers = {"If-Match": f"revision_number={resource.revision}"} if resource.revision is not None else {}
        self.ask("PUT", resource.own, {resource.singular: changes}, headers)
        resource.wanted |= changes
        self.wait(resource)
        self.read(resource)

    def plan(self):
        for resource in self.state:
            self.read(resource)

    def destroy(self, resource):
        self.ask("GET", resource.own)
        self.ask("DELETE", resource.own, expect=(204,))
        _, error = self.ask("GET", resource.own, expect=(404,))
        if "NeutronError" not in error:
            raise Difference(f"{resource.own}: {error}")
        self.state.remove(resource)

    def data(self, collection, query):
        """A data source: exactly one object fits."""
        found = self.ask("GET", f"{collection}?{query}")[1][collection.replace("-", "_")]
        if len(found) != 1:
            raise Difference(f"{collection}?{query}: {len(found)} found")
        return found[0]

    def interface(self, router, subnet):
        """`openstack_networking_router_interface_v2`."""
        added = self.ask("PUT", f"{router.own}/add_router_interface", {"subnet_id": subnet.id})[1]
        port = Resource("ports", "port", {"device_id": router.id, "network_id": subnet.wanted["network_id"]})
        port.id = added["port_id"]
        self.wait(port)
        shown = self.ask("GET", port.own)[1]["port"]
        if shown["fixed_ips"][0]["subnet_id"] != subnet.id or shown["device_owner"][:25] != "network:router_interface":
            raise Difference(f"{port.own}: {shown}")
        return port

    def remove_interface(self, router, subnet, port):
        self.ask("GET", port.own)
        self.ask("PUT", f"{router.own}/remove_router_interface", {"subnet_id": subnet.id, "port_id": port.id})
        self.ask("GET", port.own, expect=(404,))


def same(wanted, shown):
    """Tells whether something is shown as it was asked for; the server may add to it."""
    if isinstance(wanted, dict):
        return isinstance(shown, dict) and all(same(value, shown.get(key)) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(shown, list) and len(wanted) == len(shown) and all(any(same(w, s) for s in shown) for w in wanted)
    return wanted == shown


def run(server, options):
    upstream.hosts(server)
    upstream.external(server)
    provider, outcomes = Provider(server), []
    for name, part in stories(provider):
        try:
            part()
            outcomes.append(Outcome(name))
        except Difference as problem:
            outcomes.append(Outcome(name, problem=str(problem)))
            break
    return outcomes


def stories(provider):
    """The parts of one life of a configuration; each goes on where the one before ended."""
    made = {}

    def apply():
        public = provider.data("networks", "name=public&router%3Aexternal=true")
        network = provider.create("networks", "network", {
            "name": "tf-net", "description": "of Terraform", "admin_state_up": True, "port_security_enabled": True})
        subnet = provider.create("subnets", "subnet", {
            "name": "tf-subnet", "network_id": network.id, "cidr": "192.168.199.0/24", "ip_version": 4,
            "enable_dhcp": True, "gateway_ip": "192.168.199.1", "dns_nameservers": ["198.51.100.53", "198.51.100.54"],
            "allocation_pools": [{"start": "192.168.199.10", "end": "192.168.199.200"}]})
        beside = provider.create("networks", "network", {"name": "tf-beside", "admin_state_up": True})
        provider.create("subnets", "subnet", {
            "name": "tf-six", "network_id": beside.id, "cidr": "fd00:5ea::/64", "ip_version": 6,
            "ipv6_address_mode": "slaac", "ipv6_ra_mode": "slaac"})
        router = provider.create("routers", "router", {
            "name": "tf-router", "admin_state_up": True, "external_gateway_info": {"network_id": public["id"]}})
        interface = provider.interface(router, subnet)
        group = provider.create("security-groups", "security_group", {"name": "tf-web", "description": ""})
        # delete_default_rules = true
        for rule in provider.ask("GET", group.own)[1]["security_group"]["security_group_rules"]:
            provider.ask("DELETE", f"security-group-rules/{rule['id']}", expect=(204,))
        for low, high, protocol in [(22, 22, "tcp"), (80, 443, "tcp"), (None, None, "icmp")]:
            rule = {"direction": "ingress", "ethertype": "IPv4", "protocol": protocol, "security_group_id": group.id,
                    "remote_ip_prefix": "0.0.0.0/0"}
            if low:
                rule |= {"port_range_min": low, "port_range_max": high}
            provider.create("security-group-rules", "security_group_rule", rule)
        port = provider.create("ports", "port", {
            "name": "tf-port", "network_id": network.id, "admin_state_up": True, "security_groups": [group.id],
            "fixed_ips": [{"subnet_id": subnet.id, "ip_address": "192.168.199.23"}],
            "allowed_address_pairs": [{"ip_address": "192.168.199.24"}],
            "extra_dhcp_opts": [{"opt_name": "mtu", "opt_value": "1400"}], "binding:vnic_type": "normal"})
        floating = provider.create("floatingips", "floatingip", {
            "floating_network_id": public["id"], "description": "first"})
        provider.update(floating, port_id=port.id, fixed_ip_address="192.168.199.23")
        other = provider.create("floatingips", "floatingip", {"floating_network_id": public["id"], "description": ""})
        inner = provider.create("ports", "port", {
            "name": "tf-inner", "network_id": network.id, "fixed_ips": [{"subnet_id": subnet.id}]})
        address = provider.ask("GET", inner.own)[1]["port"]["fixed_ips"][0]["ip_address"]
        provider.create("port_forwardings", "port_forwarding", {
            "internal_port_id": inner.id, "internal_ip_address": address, "internal_port": 22, "external_port": 2222,
            "protocol": "tcp", "description": "ssh"}, f"{other.own}/")
        made.update(locals())

    def more():
        scope = provider.create("address-scopes", "address_scope", {"name": "tf-scope", "ip_version": 4, "shared": False})
        pool = provider.create("subnetpools", "subnetpool", {
            "name": "tf-pool", "prefixes": ["10.77.0.0/16"], "address_scope_id": scope.id, "default_quota": 70000})
        cut = provider.create("networks", "network", {"name": "tf-cut", "admin_state_up": True})
        subnet = {"name": "tf-cut", "network_id": cut.id, "ip_version": 4, "subnetpool_id": pool.id}
        provider.create("subnets", "subnet", subnet, unshown={"prefixlen": 28})
        provider.create("rbac-policies", "rbac_policy", {
            "action": "access_as_shared", "object_id": cut.id, "object_type": "network", "target_tenant": "f" * 32})
        project = provider.data("networks", "name=tf-cut")["project_id"]
        quota = {"floatingip": 60, "network": 110, "port": 510, "rbac_policy": 12, "router": 11, "security_group": 12,
                 "security_group_rule": 110, "subnet": 110, "subnetpool": 5}
        provider.ask("PUT", f"quotas/{project}", {"quota": quota})
        shown = provider.ask("GET", f"quotas/{project}/details.json")[1]["quota"]
        if not same(quota, {name: limits["limit"] for name, limits in shown.items()}):
            raise Difference(f"quotas: {shown}")
        provider.ask("DELETE", f"quotas/{project}", expect=(204,))

    def data_sources():
        network = made["network"]
        provider.data("networks", "name=tf-net&status=ACTIVE&shared=false&admin_state_up=true")
        provider.data("subnets", f"network_id={network.id}&ip_version=4&cidr=192.168.199.0%2F24&enable_dhcp=true")
        provider.data("ports", f"fixed_ips=ip_address%3D192.168.199.23&network_id={network.id}&tags=managed")
        provider.data("routers", "name=tf-router&admin_state_up=true")
        provider.data("security-groups", "name=tf-web&tags-any=managed,other")
        provider.data("floatingips", f"port_id={made['port'].id}&status=DOWN")

    def change():
        provider.update(made["network"], name="tf-net-2", description="changed", mtu=1300)
        provider.update(made["subnet"], name="tf-subnet-2", dns_nameservers=[], gateway_ip="192.168.199.1",
                        host_routes=[{"destination": "10.9.0.0/16", "nexthop": "192.168.199.23"}])
        provider.update(made["router"], name="tf-router-2", admin_state_up=False)
        provider.update(made["router"], admin_state_up=True,
                        routes=[{"destination": "10.9.0.0/16", "nexthop": "192.168.199.23"}])
        provider.update(made["router"], routes=[])
        provider.update(made["port"], name="tf-port-2", allowed_address_pairs=[], admin_state_up=False,
                        fixed_ips=[{"subnet_id": made["subnet"].id, "ip_address": "192.168.199.25"}])
        # Its address went, and so did what led there.
        made["floating"].wanted |= {"port_id": None}
        made["floating"].wanted.pop("fixed_ip_address")
        provider.update(made["floating"], description="second", port_id=made["port"].id)
        made["floating"].wanted |= {"fixed_ip_address": "192.168.199.25"}
        provider.update(made["group"], name="tf-web-2", description="rules")

    def destroy():
        made["floating"].wanted.pop("fixed_ip_address")
        provider.update(made["floating"], port_id=None)
        for resource in reversed(list(provider.state)):
            if resource is made["router"]:
                provider.remove_interface(made["router"], made["subnet"], made["interface"])
            provider.destroy(resource)

    return [("apply", apply), ("plan after apply finds no difference", provider.plan), ("further resources", more),
            ("data sources", data_sources), ("change in place", change),
            ("plan after the change finds no difference", provider.plan), ("destroy", destroy)]
