-- Purge of a lake with its Tenant, and hand-over of a retained lake to a new Tenant.
--
-- A purge is begun for good: from begin_purge on, the lake can be neither migrated nor served, only removed. Its files go
-- first, since only the record tells where they are; then purge_lake takes everything out of the database but the record,
-- which tells the operator whose logins are left to drop; forget_lake takes the record. Each may be repeated.

SET LOCAL ROLE duckmesh_admin;

ALTER TABLE duckmesh.lake
  ADD COLUMN purge_started_at timestamptz,                       -- files may be missing from then on
  ADD COLUMN purged_at timestamptz;                               -- only this record and the logins are left

-- As before; a lake whose purge was begun is not made anew.
CREATE OR REPLACE FUNCTION duckmesh.register_lake(p_lake text, p_tenant text, p_tenant_uid text, p_data_url text, p_migration int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lake;
BEGIN
  INSERT INTO duckmesh.lake (lake, tenant, tenant_uid, data_url, migration)
  VALUES (p_lake, p_tenant, p_tenant_uid, p_data_url, p_migration) ON CONFLICT (lake) DO NOTHING;
  SELECT * INTO l FROM duckmesh.lake WHERE lake.lake = p_lake FOR UPDATE;
  IF l.tenant_uid <> p_tenant_uid THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% belongs to another tenant', p_lake USING ERRCODE = 'DM005';
  END IF;
  IF l.data_url <> p_data_url THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% has its data elsewhere', p_lake USING ERRCODE = 'DM005';
  END IF;
  IF l.purge_started_at IS NOT NULL THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% is being purged', p_lake USING ERRCODE = 'DM005';
  END IF;
  UPDATE duckmesh.lake SET tenant = p_tenant, migration = greatest(l.migration, p_migration)
   WHERE lake.lake = p_lake AND (l.tenant, l.migration) IS DISTINCT FROM (p_tenant, greatest(l.migration, p_migration));
END $f$;

-- ---------------------------------------------------------------- purge
-- Its record, locked to COMMIT, if it is this owner's; NULL where there is no such lake.
CREATE FUNCTION duckmesh.own_lake(p_lake text, p_tenant_uid text) RETURNS duckmesh.lake
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lake;
BEGIN
  SELECT * INTO l FROM duckmesh.lake WHERE lake = p_lake FOR UPDATE;
  IF l.tenant_uid <> p_tenant_uid THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% belongs to another tenant', p_lake USING ERRCODE = 'DM005';
  END IF;
  RETURN l;
END $f$;

-- Begins to purge a lake: returns where its files are, NULL when nothing is left of it. Ends the sessions of its logins.
CREATE FUNCTION duckmesh.begin_purge(p_lake text, p_tenant_uid text, p_data_url text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lake := duckmesh.own_lake(p_lake, p_tenant_uid);
BEGIN
  IF l.lake IS NULL OR l.purged_at IS NOT NULL THEN RETURN NULL; END IF;
  IF l.data_url <> p_data_url THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% has its data elsewhere', p_lake USING ERRCODE = 'DM005';
  END IF;
  IF EXISTS (SELECT 1 FROM duckmesh.lake AS o WHERE o.lake <> l.lake
              AND (starts_with(o.data_url, l.data_url) OR starts_with(l.data_url, o.data_url))) THEN
    RAISE EXCEPTION 'DUCKMESH_OWNED lake=% shares its place with another lake', p_lake USING ERRCODE = 'DM005';
  END IF;
  UPDATE duckmesh.lake SET purge_started_at = coalesce(purge_started_at, clock_timestamp()) WHERE lake = l.lake;
  PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND usename IN (p_lake || '_w', p_lake || '_m', p_lake || '_r');
  RETURN l.data_url;
END $f$;

-- Takes the lake out of the database, all at once; its files must be gone. What stays is the record and, without a right, its logins.
CREATE FUNCTION duckmesh.purge_lake(p_lake text, p_tenant_uid text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lake := duckmesh.own_lake(p_lake, p_tenant_uid); who name;
BEGIN
  IF l.lake IS NULL THEN RETURN; END IF;
  IF l.purge_started_at IS NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% is not being purged', p_lake USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', l.lake || '_bus');
  EXECUTE format('DROP SCHEMA IF EXISTS %I CASCADE', l.lake);
  FOR who IN SELECT c.relname FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'lake'
              WHERE c.relnamespace = 'duckmesh'::regnamespace AND c.relkind = 'r' AND c.relname <> 'lake' LOOP
    EXECUTE format('DELETE FROM duckmesh.%I WHERE lake = $1', who) USING l.lake;
  END LOOP;
  -- A login with a right left could not be dropped.
  FOR who IN SELECT rolname FROM pg_roles WHERE rolname IN (l.lake || '_w', l.lake || '_m', l.lake || '_r') LOOP
    EXECUTE format('REVOKE ALL ON ALL TABLES IN SCHEMA duckmesh FROM %1$I; REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM %1$I', who);
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM %I', current_database(), who);
  END LOOP;
  UPDATE duckmesh.lake SET purged_at = coalesce(purged_at, clock_timestamp()) WHERE lake = l.lake;
END $f$;

-- The last step, after the logins: the record of a purged lake.
CREATE FUNCTION duckmesh.forget_lake(p_lake text, p_tenant_uid text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
  DELETE FROM duckmesh.lake WHERE lake = p_lake AND tenant_uid = p_tenant_uid AND purged_at IS NOT NULL;
$f$;

-- ---------------------------------------------------------------- hand-over
-- Gives a lake to another owner of the same namespace and name; false: it is not p_from's (any more), or p_to has one already.
CREATE FUNCTION duckmesh.adopt_lake(p_lake text, p_from text, p_to text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  UPDATE duckmesh.lake SET tenant_uid = p_to
   WHERE lake = p_lake AND tenant_uid = p_from AND NOT EXISTS (SELECT 1 FROM duckmesh.lake AS o WHERE o.tenant_uid = p_to);
  RETURN FOUND;
END $f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;
GRANT EXECUTE ON FUNCTION duckmesh.forget_lake(text, text), duckmesh.adopt_lake(text, text, text) TO duckmesh_control;

RESET ROLE;
