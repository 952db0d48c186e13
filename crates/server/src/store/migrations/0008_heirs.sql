-- Which host served a router until it was converted, and up to which epoch: its copy goes on as the active one.
ALTER TABLE ha_routers ADD COLUMN heir TEXT;
ALTER TABLE ha_routers ADD COLUMN heir_epoch INTEGER NOT NULL DEFAULT 0;
