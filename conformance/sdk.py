"""Suite `sdk`: openstacksdk's own functional tests of the network service, as they are in its package."""

import argparse

import upstream

# What is not run, by a part of the name, and why.
WITHOUT = {
    "test_quota.TestQuota.test_quota": "makes a project through the identity API; evergate identity does that",
    "test_agent_add_remove_network": "puts a network on a DHCP agent, and there are none",
    "test_service_provider": "routers have no service providers to choose from, and service-type is not on the list",
}


def run(server, options):
    upstream.hosts(server)
    upstream.external(server)
    clouds = {"OS_CLIENT_CONFIG_FILE": str(server.clouds), "OPENSTACKSDK_FUNC_TEST_TIMEOUT": "60"}
    # Its default of 5 s is for unit tests.
    clouds["OS_TEST_TIMEOUT"] = "120"
    for role in ["OS_CLOUD", "OPENSTACKSDK_SYSTEM_ADMIN_CLOUD", "OPENSTACKSDK_OPERATOR_CLOUD"]:
        clouds[role] = "evergate-admin"
    for role in ["OPENSTACKSDK_DEMO_CLOUD", "OPENSTACKSDK_DEMO_CLOUD_ALT"]:
        clouds[role] = "evergate-demo"
    package, directory = "openstack.tests.functional.network.v2", server.state.parent / "sdk"
    outcomes = upstream.tests(package, directory, clouds, options, WITHOUT)
    blind = {outcome.name for outcome in outcomes if outcome.skipped == "No agents available"}
    if not blind:
        return outcomes
    # They ask for agents as a plain user, who sees none: once more, as an admin.
    for role in ["OPENSTACKSDK_DEMO_CLOUD", "OPENSTACKSDK_DEMO_CLOUD_ALT"]:
        clouds[role] = "evergate-admin"
    again = argparse.Namespace(**{**vars(options), "only": "test_agent"})
    seeing = upstream.tests(package, directory / "as-admin", clouds, again, WITHOUT)
    seeing = {outcome.name: outcome for outcome in seeing}
    return [seeing.get(outcome.name, outcome) if outcome.name in blind else outcome for outcome in outcomes]
