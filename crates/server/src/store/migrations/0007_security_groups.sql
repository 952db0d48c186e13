-- Security groups: kept and shown exactly; nothing filters by them yet. Each project has one that is its
-- default, made when it is first needed.
CREATE TABLE security_groups (
    id              TEXT NOT NULL PRIMARY KEY,
    project_id      TEXT NOT NULL,
    name            TEXT NOT NULL,
    description     TEXT NOT NULL DEFAULT '',
    is_default      INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    stateful        INTEGER NOT NULL DEFAULT 1 CHECK (stateful IN (0, 1)),
    created_at      TEXT NOT NULL,
    updated_at      TEXT NOT NULL,
    revision_number INTEGER NOT NULL DEFAULT 0,
    CHECK (is_default = 0 OR name = 'default')
);
CREATE UNIQUE INDEX security_groups_default_once ON security_groups (project_id) WHERE is_default = 1;
CREATE INDEX security_groups_project ON security_groups (project_id);

CREATE TABLE security_group_rules (
    id                TEXT NOT NULL PRIMARY KEY,
    project_id        TEXT NOT NULL,
    security_group_id TEXT NOT NULL REFERENCES security_groups (id) ON DELETE CASCADE,
    direction         TEXT NOT NULL CHECK (direction IN ('ingress', 'egress')),
    ethertype         TEXT NOT NULL CHECK (ethertype IN ('IPv4', 'IPv6')),
    protocol          TEXT,
    port_range_min    INTEGER,
    port_range_max    INTEGER,
    remote_ip_prefix  TEXT,
    -- Without the host bits that `remote_ip_prefix` may have.
    normalized_cidr   TEXT,
    remote_group_id   TEXT REFERENCES security_groups (id) ON DELETE CASCADE,
    description       TEXT NOT NULL DEFAULT '',
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    revision_number   INTEGER NOT NULL DEFAULT 0,
    CHECK (remote_ip_prefix IS NULL OR remote_group_id IS NULL)
);
CREATE INDEX security_group_rules_group ON security_group_rules (security_group_id);
CREATE INDEX security_group_rules_remote ON security_group_rules (remote_group_id);
CREATE INDEX security_group_rules_project ON security_group_rules (project_id);

-- A group that a port is in stays.
CREATE TABLE port_security_groups (
    port_id           TEXT NOT NULL REFERENCES ports (id) ON DELETE CASCADE,
    security_group_id TEXT NOT NULL REFERENCES security_groups (id),
    PRIMARY KEY (port_id, security_group_id)
);
CREATE INDEX port_security_groups_group ON port_security_groups (security_group_id);

-- What DHCP servers shall tell a port's device: kept for them, and shown.
CREATE TABLE port_dhcp_options (
    port_id    TEXT NOT NULL REFERENCES ports (id) ON DELETE CASCADE,
    opt_name   TEXT NOT NULL,
    ip_version INTEGER NOT NULL CHECK (ip_version IN (4, 6)),
    opt_value  TEXT NOT NULL,
    PRIMARY KEY (port_id, opt_name, ip_version)
);
