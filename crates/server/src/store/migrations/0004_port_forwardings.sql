-- Ports of a floating IP that lead to ports of instances. Ranges have both ends. Two of one floating IP never
-- overlap: whoever writes one first takes the row of the floating IP (`revision_number`) and then looks.
CREATE TABLE port_forwardings (
    id                  TEXT NOT NULL PRIMARY KEY,
    floating_ip_id      TEXT NOT NULL REFERENCES floating_ips (id),
    internal_port_id    TEXT NOT NULL REFERENCES ports (id),
    internal_ip_address TEXT NOT NULL,
    protocol            TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp', 'sctp', 'dccp')),
    external_port_start INTEGER NOT NULL CHECK (external_port_start >= 1),
    external_port_end   INTEGER NOT NULL
        CHECK (external_port_end BETWEEN external_port_start AND 65535),
    internal_port_start INTEGER NOT NULL CHECK (internal_port_start >= 1),
    internal_port_end   INTEGER NOT NULL
        CHECK (internal_port_end BETWEEN internal_port_start AND 65535),
    description         TEXT NOT NULL DEFAULT '',
    CHECK (internal_port_start = internal_port_end
        OR internal_port_end - internal_port_start = external_port_end - external_port_start),
    UNIQUE (floating_ip_id, protocol, external_port_start),
    UNIQUE (internal_port_id, internal_ip_address, protocol, internal_port_start)
);
