-- Where an HA router's active copy is wanted.

-- The host it belongs to, and whether it goes back there when that host can have it.
ALTER TABLE routers ADD COLUMN preferred_host TEXT;
ALTER TABLE routers ADD COLUMN preempt INTEGER NOT NULL DEFAULT 0 CHECK (preempt IN (0, 1));
-- Where it is to go once: forgotten when it is there.
ALTER TABLE routers ADD COLUMN move_to TEXT;
