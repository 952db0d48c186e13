-- Address scopes: prefixes in one are unique. Their times and revision numbers are not shown.
CREATE TABLE address_scopes (
    id              TEXT NOT NULL PRIMARY KEY,
    project_id      TEXT NOT NULL,
    name            TEXT NOT NULL,
    ip_version      INTEGER NOT NULL CHECK (ip_version IN (4, 6)),
    created_at      TEXT NOT NULL,
    updated_at      TEXT NOT NULL,
    revision_number INTEGER NOT NULL DEFAULT 0,
    UNIQUE (id, ip_version)
);
CREATE INDEX address_scopes_project ON address_scopes (project_id);

-- Prefixes that subnets are cut from. A pool and its scope are of one IP version.
CREATE TABLE subnet_pools (
    id                TEXT NOT NULL PRIMARY KEY,
    project_id        TEXT NOT NULL,
    name              TEXT NOT NULL,
    description       TEXT NOT NULL DEFAULT '',
    ip_version        INTEGER NOT NULL CHECK (ip_version IN (4, 6)),
    prefixes          TEXT NOT NULL,
    min_prefixlen     INTEGER NOT NULL CHECK (min_prefixlen >= 0),
    max_prefixlen     INTEGER NOT NULL CHECK (max_prefixlen <= CASE ip_version WHEN 4 THEN 32 ELSE 128 END),
    default_prefixlen INTEGER NOT NULL CHECK (default_prefixlen BETWEEN min_prefixlen AND max_prefixlen),
    default_quota     BIGINT,
    is_default        INTEGER NOT NULL DEFAULT 0 CHECK (is_default IN (0, 1)),
    address_scope_id  TEXT,
    created_at        TEXT NOT NULL,
    updated_at        TEXT NOT NULL,
    revision_number   INTEGER NOT NULL DEFAULT 0,
    FOREIGN KEY (address_scope_id, ip_version) REFERENCES address_scopes (id, ip_version)
);
CREATE UNIQUE INDEX subnet_pools_default_once ON subnet_pools (ip_version) WHERE is_default = 1;
CREATE INDEX subnet_pools_project ON subnet_pools (project_id);
CREATE INDEX subnet_pools_scope ON subnet_pools (address_scope_id);

ALTER TABLE subnets ADD COLUMN subnetpool_id TEXT REFERENCES subnet_pools (id);
CREATE UNIQUE INDEX subnets_prefix_once_per_pool ON subnets (subnetpool_id, cidr);

-- Policies are about more than networks now. Invariant: networks.shared says whether a network has the
-- policy access_as_shared for '*'; both are written together.
CREATE TABLE rbac_policies_of_all_kinds (
    id             TEXT NOT NULL PRIMARY KEY,
    project_id     TEXT NOT NULL,
    object_type    TEXT NOT NULL
        CHECK (object_type IN ('network', 'subnetpool', 'address_scope', 'security_group', 'address_group')),
    object_id      TEXT NOT NULL,
    target_project TEXT NOT NULL,
    action         TEXT NOT NULL CHECK (action = 'access_as_shared'
        OR (action = 'access_as_external' AND object_type = 'network')),
    UNIQUE (object_id, action, target_project)
);
INSERT INTO rbac_policies_of_all_kinds (id, project_id, object_type, object_id, target_project, action)
SELECT id, project_id, object_type, object_id, target_project, action FROM rbac_policies;
DROP TABLE rbac_policies;
ALTER TABLE rbac_policies_of_all_kinds RENAME TO rbac_policies;
CREATE INDEX rbac_policies_project ON rbac_policies (project_id);
CREATE INDEX rbac_policies_target ON rbac_policies (target_project);
