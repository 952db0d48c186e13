-- Who else may use an object: one project, or '*' for all. Invariant: networks.shared says whether a
-- network has the policy access_as_shared for '*'; both are written together.
CREATE TABLE rbac_policies (
    id             TEXT NOT NULL PRIMARY KEY,
    project_id     TEXT NOT NULL,
    object_type    TEXT NOT NULL CHECK (object_type IN ('network')),
    object_id      TEXT NOT NULL,
    target_project TEXT NOT NULL,
    action         TEXT NOT NULL CHECK (action IN ('access_as_shared', 'access_as_external')),
    UNIQUE (object_id, action, target_project)
);
CREATE INDEX rbac_policies_project ON rbac_policies (project_id);
CREATE INDEX rbac_policies_target ON rbac_policies (target_project);

-- What was shared or external before there were policies; their ids are made from the networks'.
INSERT INTO rbac_policies (id, project_id, object_type, object_id, target_project, action)
SELECT '5ba0ed00' || substr(id, 9), project_id, 'network', id, '*', 'access_as_shared' FROM networks WHERE shared = 1;
INSERT INTO rbac_policies (id, project_id, object_type, object_id, target_project, action)
SELECT 'e0e00a11' || substr(id, 9), project_id, 'network', id, '*', 'access_as_external' FROM networks
WHERE external = 1;
