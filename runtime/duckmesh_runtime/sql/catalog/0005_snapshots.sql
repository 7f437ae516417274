-- Pins: snapshots that expiry must leave alone.
--
-- A pin refers to its snapshot by a foreign key, which is what refuses an expiry (SQLSTATE 23503) and what settles the race of
-- the two. Pinning locks the snapshot's row: an expiry under way is waited for, and when it took the snapshot the pin is
-- refused. An expiry that comes later waits for the pin; it runs as REPEATABLE READ, and only the check of a foreign key sees
-- there what was committed after its own start. So a pin that was acknowledged holds.
--
-- A file that no snapshot has any more stays in the store until no query can need it. Its age is by this database's clock:
-- the engine that expires writes the time of its own machine, so a trigger puts the right one in its place.
--
-- The engine writes as a snapshot's time when its transaction began, by the clock of its machine. A trigger puts the time in its
-- place at which it is committed, by this database's clock, so that times ascend as the ids do.
--
-- A lake that stays at migration 4 beside this has no pins and is expired, swept and used as before.

SET LOCAL ROLE duckmesh_admin;

-- ---------------------------------------------------------------- one lake's pins
-- Needs DuckLake's tables and duckmesh.install_bus before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_pins(p_lake text, p_writer name, p_maint name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF p_lake !~ '^[a-z][a-z0-9_]{0,39}$' OR p_lake ~ '^(pg_|duckmesh$|public$|information_schema$)' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY bad lake name %', p_lake USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format($t$
    CREATE TABLE IF NOT EXISTS %1$I.pin (
      snapshot_id bigint NOT NULL CONSTRAINT pin_of_snapshot REFERENCES %2$I.ducklake_snapshot (snapshot_id),
      name        text NOT NULL,                                   -- a person's; with a colon, of the product itself
      pinned_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
      expires_at  timestamptz,                                     -- from then on it is none; NULL: until it is taken off
      PRIMARY KEY (snapshot_id, name)
    );
    CREATE OR REPLACE TRIGGER dm_13_pins BEFORE DELETE ON %2$I.ducklake_snapshot
      FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_expire();
    CREATE OR REPLACE TRIGGER dm_14_clock BEFORE INSERT ON %2$I.ducklake_snapshot
      FOR EACH ROW EXECUTE FUNCTION duckmesh.on_snapshot();
    CREATE OR REPLACE TRIGGER dm_32_clock BEFORE INSERT ON %2$I.ducklake_files_scheduled_for_deletion
      FOR EACH ROW EXECUTE FUNCTION duckmesh.on_schedule();
    GRANT SELECT, INSERT, UPDATE, DELETE ON %1$I.pin TO %3$I;
    GRANT SELECT ON %1$I.pin TO %4$I;
    GRANT EXECUTE ON FUNCTION duckmesh.busy_since(text) TO %4$I;
  $t$, p_lake || '_bus', p_lake, p_writer, p_maint);
END $f$;

-- Before snapshots go: pins that are past their time hold none of them any more. One that is prolonged meanwhile makes the
-- expiry fail (40001), one that is prolonged after it is written anew and finds its snapshot gone.
CREATE FUNCTION duckmesh.on_expire() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('DELETE FROM %I.pin WHERE expires_at <= clock_timestamp()', TG_TABLE_SCHEMA || '_bus');
  RETURN NULL;                                                     -- statement level: the value is ignored
END $f$;

-- A snapshot is made. Of two at once one fails by its id, so the newest that is seen here is the one before.
CREATE FUNCTION duckmesh.on_snapshot() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  v_newest timestamptz;
BEGIN
  EXECUTE format('SELECT snapshot_time FROM %I.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1', TG_TABLE_SCHEMA)
    INTO v_newest;
  NEW.snapshot_time := greatest(clock_timestamp(), v_newest);
  RETURN NEW;
END $f$;

-- A file goes on the list of those to remove.
CREATE FUNCTION duckmesh.on_schedule() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  NEW.schedule_start := clock_timestamp();
  RETURN NEW;
END $f$;

-- When the oldest transaction began that is at work in the lake now; NULL: none is. It finds out what it collides with in the
-- records of snapshots younger than itself, so these must not go. For the lake's own logins.
CREATE FUNCTION duckmesh.busy_since(p_lake text) RETURNS timestamptz
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
  SELECT min(a.xact_start) FROM pg_stat_activity AS a JOIN duckmesh.lease AS l ON l.login = a.usename
   WHERE l.lake = p_lake AND a.datname = current_database() AND starts_with(a.application_name, format('dm:%s:', p_lake))
     AND a.pid <> pg_backend_pid() AND EXISTS (SELECT 1 FROM duckmesh.lease AS o WHERE o.lake = p_lake AND o.login = session_user);
$f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;

RESET ROLE;
