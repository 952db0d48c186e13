-- Which hosts are of the cluster: tokens that let one in, and the certificates that were given out.

CREATE TABLE join_tokens (
    id            TEXT NOT NULL PRIMARY KEY,
    -- Of the secret; it is shown once, to whoever asked for the token.
    secret_sha256 TEXT NOT NULL,
    -- The only host that it lets in; NULL for any that is not there yet.
    host          TEXT,
    created_at    TEXT NOT NULL,
    expires_at    TEXT NOT NULL
);

CREATE TABLE host_certificates (
    -- SHA-256 of the certificate.
    fingerprint TEXT NOT NULL PRIMARY KEY,
    host        TEXT NOT NULL,
    public_key  TEXT NOT NULL,
    issued_at   TEXT NOT NULL,
    expires_at  TEXT NOT NULL,
    -- Why it counts no more; kept to be told.
    revoked     TEXT CHECK (revoked IN ('replaced', 'revoked'))
);
CREATE INDEX host_certificates_host ON host_certificates (host);
