-- The first schema. Every rule that two servers could break by racing is a constraint here.
--
-- Portable SQL: booleans are INTEGER 0/1, times are TEXT (UTC, RFC 3339, whole seconds), ids are
-- TEXT, lists that are only ever shown whole are TEXT holding JSON.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- The change log: what each committed write touched, and the newest revision.
CREATE TABLE revision (
    singleton INTEGER NOT NULL PRIMARY KEY CHECK (singleton = 1),
    revision  BIGINT NOT NULL
);
INSERT INTO revision (singleton, revision) VALUES (1, 0);

CREATE TABLE changes (
    revision  BIGINT NOT NULL,
    kind      TEXT NOT NULL,
    object_id TEXT NOT NULL,
    PRIMARY KEY (revision, kind, object_id)
);

CREATE TABLE networks (
    id                    TEXT NOT NULL PRIMARY KEY,
    project_id            TEXT NOT NULL,
    name                  TEXT NOT NULL,
    description           TEXT NOT NULL DEFAULT '',
    admin_state_up        INTEGER NOT NULL DEFAULT 1 CHECK (admin_state_up IN (0, 1)),
    shared                INTEGER NOT NULL DEFAULT 0 CHECK (shared IN (0, 1)),
    external              INTEGER NOT NULL DEFAULT 0 CHECK (external IN (0, 1)),
    is_default            INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    mtu                   INTEGER NOT NULL,
    port_security_enabled INTEGER NOT NULL DEFAULT 1 CHECK (port_security_enabled IN (0, 1)),
    network_type          TEXT NOT NULL CHECK (network_type IN ('vxlan', 'flat', 'local')),
    physical_network      TEXT CHECK ((network_type = 'flat') = (physical_network IS NOT NULL)),
    segmentation_id       INTEGER CHECK ((network_type = 'vxlan') = (segmentation_id IS NOT NULL)),
    created_at            TEXT NOT NULL,
    updated_at            TEXT NOT NULL,
    revision_number       INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX networks_vni_once ON networks (segmentation_id) WHERE network_type = 'vxlan';
CREATE UNIQUE INDEX networks_flat_once ON networks (physical_network) WHERE network_type = 'flat';
CREATE UNIQUE INDEX networks_default_once ON networks (is_default) WHERE is_default = 1;
CREATE INDEX networks_project ON networks (project_id);
CREATE INDEX networks_name ON networks (name);

CREATE TABLE subnets (
    id                TEXT NOT NULL PRIMARY KEY,
    project_id        TEXT NOT NULL,
    network_id        TEXT NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
    name              TEXT NOT NULL,
    description       TEXT NOT NULL DEFAULT '',
    ip_version        INTEGER NOT NULL CHECK (ip_version IN (4, 6)),
    cidr              TEXT NOT NULL,
    gateway_ip        TEXT,
    enable_dhcp       INTEGER NOT NULL DEFAULT 1 CHECK (enable_dhcp IN (0, 1)),
    ipv6_ra_mode      TEXT,
    ipv6_address_mode TEXT,
    allocation_pools  TEXT NOT NULL DEFAULT '[]',
    dns_nameservers   TEXT NOT NULL DEFAULT '[]',
    host_routes       TEXT NOT NULL DEFAULT '[]',
    service_types     TEXT NOT NULL DEFAULT '[]',
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    revision_number   INTEGER NOT NULL DEFAULT 0,
    UNIQUE (network_id, cidr)
);
CREATE INDEX subnets_project ON subnets (project_id);
CREATE INDEX subnets_name ON subnets (name);

CREATE TABLE ports (
    id                    TEXT NOT NULL PRIMARY KEY,
    project_id            TEXT NOT NULL,
    network_id            TEXT NOT NULL REFERENCES networks (id),
    name                  TEXT NOT NULL DEFAULT '',
    description           TEXT NOT NULL DEFAULT '',
    mac_address           TEXT NOT NULL,
    admin_state_up        INTEGER NOT NULL DEFAULT 1 CHECK (admin_state_up IN (0, 1)),
    status                TEXT NOT NULL DEFAULT 'DOWN',
    device_id             TEXT NOT NULL DEFAULT '',
    device_owner          TEXT NOT NULL DEFAULT '',
    port_security_enabled INTEGER NOT NULL DEFAULT 1 CHECK (port_security_enabled IN (0, 1)),
    host_id               TEXT NOT NULL DEFAULT '',
    vnic_type             TEXT NOT NULL DEFAULT 'normal',
    binding_profile       TEXT NOT NULL DEFAULT '{}',
    allowed_address_pairs TEXT NOT NULL DEFAULT '[]',
    created_at            TEXT NOT NULL,
    updated_at            TEXT NOT NULL,
    revision_number       INTEGER NOT NULL DEFAULT 0,
    UNIQUE (network_id, mac_address)
);
CREATE INDEX ports_project ON ports (project_id);
CREATE INDEX ports_name ON ports (name);
CREATE INDEX ports_device ON ports (device_id);
CREATE INDEX ports_host ON ports (host_id);

-- An address is used once in its subnet, whoever allocates it.
CREATE TABLE fixed_ips (
    port_id    TEXT NOT NULL REFERENCES ports (id) ON DELETE CASCADE,
    network_id TEXT NOT NULL REFERENCES networks (id),
    subnet_id  TEXT NOT NULL REFERENCES subnets (id),
    ip_address TEXT NOT NULL,
    position   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (network_id, subnet_id, ip_address)
);
CREATE INDEX fixed_ips_port ON fixed_ips (port_id);
CREATE INDEX fixed_ips_subnet ON fixed_ips (subnet_id);
CREATE INDEX fixed_ips_address ON fixed_ips (ip_address);

CREATE TABLE routers (
    id                      TEXT NOT NULL PRIMARY KEY,
    project_id              TEXT NOT NULL,
    name                    TEXT NOT NULL,
    description             TEXT NOT NULL DEFAULT '',
    admin_state_up          INTEGER NOT NULL DEFAULT 1 CHECK (admin_state_up IN (0, 1)),
    status                  TEXT NOT NULL DEFAULT 'ACTIVE',
    ha                      INTEGER NOT NULL DEFAULT 0 CHECK (ha IN (0, 1)),
    distributed             INTEGER NOT NULL DEFAULT 0 CHECK (distributed IN (0, 1)),
    enable_snat             INTEGER NOT NULL DEFAULT 1 CHECK (enable_snat IN (0, 1)),
    availability_zone_hints TEXT NOT NULL DEFAULT '[]',
    created_at              TEXT NOT NULL,
    updated_at              TEXT NOT NULL,
    revision_number         INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX routers_project ON routers (project_id);
CREATE INDEX routers_name ON routers (name);

-- Which ports belong to a router, and as what. Unlike `ports.device_id`, no user can write it.
CREATE TABLE router_ports (
    port_id    TEXT NOT NULL PRIMARY KEY REFERENCES ports (id) ON DELETE CASCADE,
    router_id  TEXT NOT NULL REFERENCES routers (id),
    network_id TEXT NOT NULL REFERENCES networks (id),
    role       TEXT NOT NULL CHECK (role IN ('gateway', 'interface', 'ha'))
);
CREATE INDEX router_ports_router ON router_ports (router_id);
CREATE INDEX router_ports_network ON router_ports (network_id);
CREATE UNIQUE INDEX router_ports_one_gateway ON router_ports (router_id) WHERE role = 'gateway';

-- A router has one interface on a subnet.
CREATE TABLE router_subnets (
    router_id TEXT NOT NULL REFERENCES routers (id),
    subnet_id TEXT NOT NULL REFERENCES subnets (id),
    port_id   TEXT NOT NULL REFERENCES ports (id) ON DELETE CASCADE,
    PRIMARY KEY (router_id, subnet_id)
);
CREATE INDEX router_subnets_subnet ON router_subnets (subnet_id);
CREATE INDEX router_subnets_port ON router_subnets (port_id);

CREATE TABLE router_routes (
    router_id   TEXT NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
    destination TEXT NOT NULL,
    nexthop     TEXT NOT NULL,
    PRIMARY KEY (router_id, destination, nexthop)
);

-- The hidden networks that copies of HA routers talk on. A project has a second one (ordinal 1) only
-- when the first has no VRID left.
CREATE TABLE ha_networks (
    network_id TEXT NOT NULL PRIMARY KEY REFERENCES networks (id) ON DELETE CASCADE,
    project_id TEXT NOT NULL,
    ordinal    INTEGER NOT NULL,
    subnet_id  TEXT NOT NULL REFERENCES subnets (id) ON DELETE CASCADE,
    UNIQUE (project_id, ordinal)
);

-- 255 would make the virtual address 169.254.0.255, the broadcast address.
CREATE TABLE ha_routers (
    router_id  TEXT NOT NULL PRIMARY KEY REFERENCES routers (id) ON DELETE CASCADE,
    network_id TEXT NOT NULL REFERENCES ha_networks (network_id),
    vrid       INTEGER NOT NULL CHECK (vrid BETWEEN 1 AND 254),
    UNIQUE (network_id, vrid)
);

CREATE TABLE agents (
    id                TEXT NOT NULL PRIMARY KEY,
    agent_type        TEXT NOT NULL,
    binary_name       TEXT NOT NULL,
    topic             TEXT NOT NULL,
    host              TEXT NOT NULL,
    admin_state_up    INTEGER NOT NULL DEFAULT 1 CHECK (admin_state_up IN (0, 1)),
    description       TEXT,
    availability_zone TEXT,
    configurations    TEXT NOT NULL DEFAULT '{}',
    -- Where tunnels to this host end; from an L2 agent's `configurations`.
    tunnel_ip         TEXT,
    created_at        TEXT NOT NULL,
    started_at        TEXT NOT NULL,
    heartbeat_at      TEXT NOT NULL,
    UNIQUE (agent_type, host)
);
CREATE INDEX agents_host ON agents (host);

-- What a host last said of itself as a whole.
CREATE TABLE hosts (
    name             TEXT NOT NULL PRIMARY KEY,
    incarnation      TEXT NOT NULL,
    sequence         BIGINT NOT NULL,
    applied_revision BIGINT,
    warnings         TEXT NOT NULL DEFAULT '[]',
    reported_at      TEXT NOT NULL
);

-- A copy of a router on an L3 agent. `state`, `epoch` and `reported_at` are the host's word.
CREATE TABLE router_bindings (
    router_id   TEXT NOT NULL REFERENCES routers (id) ON DELETE CASCADE,
    agent_id    TEXT NOT NULL REFERENCES agents (id),
    ha_port_id  TEXT UNIQUE REFERENCES ports (id),
    state       TEXT CHECK (state IN ('active', 'standby')),
    epoch       BIGINT NOT NULL DEFAULT 0,
    reported_at TEXT,
    PRIMARY KEY (router_id, agent_id)
);
CREATE INDEX router_bindings_agent ON router_bindings (agent_id);

CREATE TABLE floating_ips (
    id                  TEXT NOT NULL PRIMARY KEY,
    project_id          TEXT NOT NULL,
    description         TEXT NOT NULL DEFAULT '',
    floating_network_id TEXT NOT NULL REFERENCES networks (id),
    floating_ip_address TEXT NOT NULL,
    floating_port_id    TEXT NOT NULL UNIQUE REFERENCES ports (id),
    router_id           TEXT REFERENCES routers (id),
    port_id             TEXT REFERENCES ports (id),
    fixed_ip_address    TEXT CHECK ((port_id IS NULL) = (fixed_ip_address IS NULL)),
    status              TEXT NOT NULL DEFAULT 'DOWN',
    created_at          TEXT NOT NULL,
    updated_at          TEXT NOT NULL,
    revision_number     INTEGER NOT NULL DEFAULT 0,
    UNIQUE (floating_network_id, floating_ip_address),
    UNIQUE (floating_network_id, port_id, fixed_ip_address)
);
CREATE INDEX floating_ips_project ON floating_ips (project_id);
CREATE INDEX floating_ips_router ON floating_ips (router_id);
CREATE INDEX floating_ips_port ON floating_ips (port_id);

-- Tags of any tagged object: ids are unique across kinds.
CREATE TABLE tags (
    object_id TEXT NOT NULL,
    tag       TEXT NOT NULL,
    PRIMARY KEY (object_id, tag)
);
CREATE INDEX tags_tag ON tags (tag);
