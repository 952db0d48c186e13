-- Distributed routers: which hosts have them, and the ports that come with that.

-- A router's port may also be for source NAT (`snat`): the CHECK grows by that word.
CREATE TABLE router_ports_with_snat (
    port_id    TEXT NOT NULL PRIMARY KEY REFERENCES ports (id) ON DELETE CASCADE,
    router_id  TEXT NOT NULL REFERENCES routers (id),
    network_id TEXT NOT NULL REFERENCES networks (id),
    role       TEXT NOT NULL CHECK (role IN ('gateway', 'interface', 'ha', 'snat'))
);
INSERT INTO router_ports_with_snat (port_id, router_id, network_id, role)
    SELECT port_id, router_id, network_id, role FROM router_ports;
DROP TABLE router_ports;
ALTER TABLE router_ports_with_snat RENAME TO router_ports;
CREATE INDEX router_ports_router ON router_ports (router_id);
CREATE INDEX router_ports_network ON router_ports (network_id);
CREATE UNIQUE INDEX router_ports_one_gateway ON router_ports (router_id) WHERE role = 'gateway';

-- Hosts that route for a distributed router. Follows from ports, bindings and agents: what a write changes
-- of it is written in the same transaction.
CREATE TABLE router_hosts (
    router_id TEXT NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
    host      TEXT NOT NULL,
    PRIMARY KEY (router_id, host)
);
CREATE INDEX router_hosts_host ON router_hosts (host);

-- A host's port on an external network, for the floating IPs that are translated on the host itself.
CREATE TABLE agent_gateway_ports (
    network_id TEXT NOT NULL REFERENCES networks (id),
    host       TEXT NOT NULL,
    port_id    TEXT NOT NULL UNIQUE REFERENCES ports (id) ON DELETE CASCADE,
    PRIMARY KEY (network_id, host)
);
CREATE INDEX agent_gateway_ports_host ON agent_gateway_ports (host);

-- Where an interface of a distributed router is up, by the hosts' word: it is up if it is anywhere.
CREATE TABLE distributed_ports_up (
    port_id TEXT NOT NULL REFERENCES ports (id) ON DELETE CASCADE,
    host    TEXT NOT NULL,
    PRIMARY KEY (port_id, host)
);
CREATE INDEX distributed_ports_up_host ON distributed_ports_up (host);
