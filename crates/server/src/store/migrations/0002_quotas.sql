-- Limits of projects that differ from the configured ones. What is used is counted when it is asked for.
CREATE TABLE quotas (
    project_id TEXT NOT NULL,
    resource   TEXT NOT NULL,
    max_count  INTEGER NOT NULL CHECK (max_count >= -1),
    PRIMARY KEY (project_id, resource)
);
