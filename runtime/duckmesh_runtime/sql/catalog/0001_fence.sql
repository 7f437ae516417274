-- The fence: lease, watermark and policy of every DuckLake catalog in this database.
--
-- Applied once per catalog database by `duckmesh migrate` as a superuser (or a role that may create roles and grant the two
-- pg_* roles); the loader opens the transaction. A lake is the schema of the same name: DuckLake makes it as duckmesh_admin,
-- stores the option data_inlining_row_limit = 0, then duckmesh.install_lake puts the triggers below on its tables. From then
-- on every catalog change passes them, the admin's too.
--
-- A connection says who it is by start-up options (DISCARD ALL of a pool restores them):
--   options='-c duckmesh.role=w -c duckmesh.epoch=42'   application_name='dm:<lake>:w:42'
-- A commit says what it is by commit_extra_info (CALL lake.set_commit_message(.., extra_info => '..')):
--   {"role":"w","prev":41,"tok":58}   writer: moves the lake's token from 41 to 58 (tok = prev: a change without input)
--   {"role":"m"}                      maintenance: merge and rewrite only, the token stays
--   "base": 7  (optional, both)       refused unless the new snapshot is 8
--
-- SQLSTATE  marker in the text  meaning for the caller
--   DM001   DUCKMESH_FENCED     the lease is no longer this connection's: give up the role
--   DM002   DUCKMESH_POLICY     a change that is never allowed: a bug, do not repeat it
--   DM003   DUCKMESH_TOKEN      the token is not prev: reread lake_status (this commit may have landed already)
--   DM004   DUCKMESH_BASE       someone committed after base: read again, decide again
--   DM005   DUCKMESH_OWNED      the lake belongs to another tenant or lies elsewhere: a person decides
-- DuckLake repeats a commit whose error text holds "unique", "primary key", "conflict" or "concurrent": no message here may.
--
-- What this does not stop: SQL written by hand under a writer's login with the current epoch, which never touches
-- ducklake_snapshot; and deletion of objects in the store (delete_orphaned_files). Logins and store keys bound those.

-- Roles are the server's, not the database's: another catalog database may be migrated at this moment.
DO $do$
DECLARE r name;
BEGIN
  FOREACH r IN ARRAY ARRAY['duckmesh_admin', 'duckmesh_control'] LOOP
    BEGIN
      IF to_regrole(r) IS NULL THEN EXECUTE format('CREATE ROLE %I NOLOGIN', r); END IF;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
    END;
  END LOOP;
  IF NOT pg_has_role(current_user, 'duckmesh_admin', 'SET') THEN EXECUTE format('GRANT duckmesh_admin TO %I', current_user); END IF;
  IF NOT pg_has_role('duckmesh_admin', 'pg_signal_backend', 'USAGE') THEN GRANT pg_signal_backend TO duckmesh_admin; END IF;
  IF NOT pg_has_role('duckmesh_admin', 'pg_read_all_stats', 'USAGE') THEN GRANT pg_read_all_stats TO duckmesh_admin; END IF;
  -- take_over ends the connections of a stopped holder: both pg_* roles are for that.

  -- The database is for catalogs alone: whoever connects is named in a grant.
  EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
  EXECUTE format('GRANT CREATE, CONNECT ON DATABASE %I TO duckmesh_admin WITH GRANT OPTION', current_database());
  EXECUTE format('GRANT CONNECT ON DATABASE %I TO duckmesh_control', current_database());
END $do$;

CREATE SCHEMA IF NOT EXISTS duckmesh AUTHORIZATION duckmesh_admin;
REVOKE ALL ON SCHEMA duckmesh FROM PUBLIC;
GRANT USAGE ON SCHEMA duckmesh TO PUBLIC;                          -- objects inside are granted one by one
SET LOCAL ROLE duckmesh_admin;
ALTER DEFAULT PRIVILEGES IN SCHEMA duckmesh REVOKE ALL ON TABLES FROM PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM PUBLIC;      -- by schema it could only add rights, so for all of this role's

-- ---------------------------------------------------------------- tables
-- What of sql/catalog/ has been applied; written by the loader in the migration's own transaction.
CREATE TABLE IF NOT EXISTS duckmesh.schema_migration (
  number     int PRIMARY KEY,
  name       text NOT NULL,
  checksum   text NOT NULL,                                        -- SHA-256 of the file: a landed migration is never edited
  applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Progress. Written only by commits of role w (and advance()), so no other writer can make such a commit fail at this row.
CREATE TABLE IF NOT EXISTS duckmesh.lake_status (
  lake              text PRIMARY KEY,
  token             bigint NOT NULL DEFAULT 0,                     -- input consumed up to here, in snapshot token_snapshot_id
  token_snapshot_id bigint,
  committed_at      timestamptz,
  epoch             bigint                                         -- the lease epoch that wrote the row
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Who may commit. Changed only by take_over: every commit holds its row FOR SHARE in a REPEATABLE READ transaction.
CREATE TABLE IF NOT EXISTS duckmesh.lease (
  lake     text NOT NULL,
  role     text NOT NULL CHECK (role IN ('w', 'm')),
  epoch    bigint NOT NULL DEFAULT 0,
  login    name,                                                   -- when set, only this login may act in this role
  taken_at timestamptz,
  PRIMARY KEY (lake, role)
);

-- Liveness, written often. Nothing in a commit reads or locks it.
CREATE TABLE IF NOT EXISTS duckmesh.heartbeat (
  lake        text NOT NULL,
  role        text NOT NULL,
  epoch       bigint NOT NULL,
  holder      text,
  address     text,
  expires_at  timestamptz NOT NULL,
  inflight_to bigint,                                              -- the token the running commit aims at
  PRIMARY KEY (lake, role)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A login sees the rows of the lakes whose schema it may use; duckmesh_control sees all.
DO $do$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['lake_status', 'lease', 'heartbeat'] LOOP
    EXECUTE format($t$
      ALTER TABLE duckmesh.%1$I ENABLE ROW LEVEL SECURITY;
      DROP POLICY IF EXISTS own_lake ON duckmesh.%1$I;
      DROP POLICY IF EXISTS control ON duckmesh.%1$I;
      CREATE POLICY own_lake ON duckmesh.%1$I FOR SELECT
        USING (coalesce(has_schema_privilege(to_regnamespace(quote_ident(lake))::oid, 'USAGE'), false));
      CREATE POLICY control ON duckmesh.%1$I FOR SELECT TO duckmesh_control USING (true);
      GRANT SELECT ON duckmesh.%1$I TO duckmesh_control;
    $t$, t);
  END LOOP;
END $do$;

-- ---------------------------------------------------------------- the lease check
CREATE OR REPLACE FUNCTION duckmesh.check_lease(p_lake text, p_role text, p_epoch bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lease;
BEGIN
  -- Kept to COMMIT: take_over waits. Another's lease is neither locked nor told.
  SELECT * INTO l FROM duckmesh.lease WHERE lake = p_lake AND role = p_role AND (login IS NULL OR login = session_user) FOR SHARE;
  IF l.epoch IS NULL OR p_epoch IS NULL OR l.epoch <> p_epoch THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% role=% mine=% current=% login=%', p_lake, coalesce(p_role, 'none'),
      coalesce(p_epoch::text, 'none'), coalesce(l.epoch::text, 'none'), session_user USING ERRCODE = 'DM001';
  END IF;
END $f$;

-- Snapshots, their change records and the list of files to delete. Argument 1: the only role allowed, or '*'.
CREATE OR REPLACE FUNCTION duckmesh.on_fenced() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE r text := nullif(current_setting('duckmesh.role', true), '');
BEGIN
  PERFORM duckmesh.check_lease(TG_TABLE_SCHEMA, r, nullif(current_setting('duckmesh.epoch', true), '')::bigint);
  IF TG_ARGV[0] NOT IN ('*', r) THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% role=% may not % %', TG_TABLE_SCHEMA, r, TG_OP, TG_TABLE_NAME USING ERRCODE = 'DM002';
  END IF;
  RETURN NULL;                                                     -- statement level: the value is ignored
END $f$;

-- Rows that nothing may change after they were written.
CREATE OR REPLACE FUNCTION duckmesh.on_frozen() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  RAISE EXCEPTION 'DUCKMESH_POLICY lake=% % of % is never allowed', TG_TABLE_SCHEMA, TG_OP, TG_TABLE_NAME USING ERRCODE = 'DM002';
END $f$;

-- ---------------------------------------------------------------- one row per commit: policy and watermark
CREATE OR REPLACE FUNCTION duckmesh.on_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  r text := nullif(current_setting('duckmesh.role', true), '');
  x jsonb; prev bigint; tok bigint; base bigint; n bigint;
BEGIN
  IF NEW.changes_made ~ '(^|,)inlined_' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% inlined change refused: %', TG_TABLE_SCHEMA, NEW.changes_made USING ERRCODE = 'DM002';
  END IF;
  IF NEW.commit_extra_info IS NULL OR NEW.commit_extra_info IS NOT JSON OBJECT THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% commit without extra_info refused: %', TG_TABLE_SCHEMA, NEW.changes_made USING ERRCODE = 'DM002';
  END IF;
  x := NEW.commit_extra_info::jsonb;
  IF r IS NULL OR x->>'role' IS DISTINCT FROM r THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% commit claims role %, connection has %', TG_TABLE_SCHEMA,
      coalesce(x->>'role', 'none'), coalesce(r, 'none') USING ERRCODE = 'DM002';
  END IF;
  IF jsonb_path_exists(x, '$.keyvalue() ? ((@.key == "prev" || @.key == "tok" || @.key == "base") && @.value.type() != "number")') THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% extra_info malformed', TG_TABLE_SCHEMA USING ERRCODE = 'DM002';
  END IF;
  base := (x->>'base')::bigint;
  IF base IS NOT NULL AND NEW.snapshot_id <> base + 1 THEN
    RAISE EXCEPTION 'DUCKMESH_BASE lake=% base=% snapshot=%', TG_TABLE_SCHEMA, base, NEW.snapshot_id USING ERRCODE = 'DM004';
  END IF;

  IF r = 'm' THEN
    IF coalesce(NEW.changes_made, '') !~ '^(merge_adjacent|rewrite_delete):[0-9]+(,(merge_adjacent|rewrite_delete):[0-9]+)*$' THEN
      RAISE EXCEPTION 'DUCKMESH_POLICY lake=% maintenance may only merge and rewrite: %', TG_TABLE_SCHEMA, NEW.changes_made USING ERRCODE = 'DM002';
    END IF;
    RETURN NEW;
  END IF;

  IF NEW.changes_made ~ '(^|,)(merge_adjacent|rewrite_delete|compacted_table):' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% the writer may not compact: %', TG_TABLE_SCHEMA, NEW.changes_made USING ERRCODE = 'DM002';
  END IF;
  prev := (x->>'prev')::bigint; tok := (x->>'tok')::bigint;
  IF prev IS NULL OR tok IS NULL OR tok < prev THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% prev=% tok=%: both needed, tok not below prev', TG_TABLE_SCHEMA, prev, tok USING ERRCODE = 'DM002';
  END IF;
  UPDATE duckmesh.lake_status SET token = tok, token_snapshot_id = NEW.snapshot_id, committed_at = clock_timestamp(),
         epoch = nullif(current_setting('duckmesh.epoch', true), '')::bigint
   WHERE lake = TG_TABLE_SCHEMA AND token = prev;
  GET DIAGNOSTICS n = ROW_COUNT;
  IF n <> 1 THEN
    RAISE EXCEPTION 'DUCKMESH_TOKEN lake=% prev=% tok=%', TG_TABLE_SCHEMA, prev, tok USING ERRCODE = 'DM003';
  END IF;
  RETURN NEW;
END $f$;

-- ---------------------------------------------------------------- stored options
CREATE OR REPLACE FUNCTION duckmesh.on_option() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF (TG_OP <> 'INSERT' AND OLD.key = 'data_inlining_row_limit' AND (TG_OP = 'DELETE' OR NEW.key <> OLD.key))
     OR (TG_OP <> 'DELETE' AND NEW.key = 'data_inlining_row_limit' AND NEW.value IS DISTINCT FROM '0') THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% data_inlining_row_limit must stay 0', TG_TABLE_SCHEMA USING ERRCODE = 'DM002';
  END IF;
  IF TG_OP = 'DELETE' THEN RETURN OLD; END IF;
  RETURN NEW;
END $f$;

-- ---------------------------------------------------------------- calls for the owner of a role
-- Input that changes nothing makes no snapshot in DuckLake: move the token here.
CREATE OR REPLACE FUNCTION duckmesh.advance(p_lake text, p_epoch bigint, p_prev bigint, p_tok bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.check_lease(p_lake, 'w', p_epoch);
  IF p_tok IS NULL OR p_prev IS NULL OR p_tok < p_prev THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% prev=% tok=%', p_lake, p_prev, p_tok USING ERRCODE = 'DM002';
  END IF;
  UPDATE duckmesh.lake_status SET token = p_tok, committed_at = clock_timestamp(), epoch = p_epoch WHERE lake = p_lake AND token = p_prev;
  IF NOT FOUND THEN RAISE EXCEPTION 'DUCKMESH_TOKEN lake=% prev=% tok=%', p_lake, p_prev, p_tok USING ERRCODE = 'DM003'; END IF;
END $f$;

-- True: the lease is still mine. Takes no lock on lease and touches only heartbeat.
CREATE OR REPLACE FUNCTION duckmesh.beat(p_lake text, p_role text, p_epoch bigint, p_holder text, p_address text,
                                         p_ttl interval, p_inflight_to bigint DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM duckmesh.lease WHERE lake = p_lake AND role = p_role AND epoch = p_epoch
                 AND (login IS NULL OR login = session_user)) THEN RETURN false; END IF;
  INSERT INTO duckmesh.heartbeat AS h VALUES (p_lake, p_role, p_epoch, p_holder, p_address, clock_timestamp() + p_ttl, p_inflight_to)
  ON CONFLICT (lake, role) DO UPDATE SET epoch = EXCLUDED.epoch, holder = EXCLUDED.holder, address = EXCLUDED.address,
    expires_at = EXCLUDED.expires_at, inflight_to = EXCLUDED.inflight_to WHERE h.epoch <= EXCLUDED.epoch;
  RETURN FOUND;
END $f$;

-- A new epoch, for the lake's own login of that role and for duckmesh_control. With p_epoch only if that is still the current
-- one, else NULL: two standbys that saw the same holder go cannot both follow it. Waits for a running commit of the old holder;
-- after p_wait_ms that holder's connections are ended, by application_name.
CREATE OR REPLACE FUNCTION duckmesh.take_over(p_lake text, p_role text, p_wait_ms int DEFAULT 1000, p_epoch bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE l duckmesh.lease; e bigint; again boolean := false;
BEGIN
  SELECT * INTO l FROM duckmesh.lease WHERE lake = p_lake AND role = p_role;
  IF l.login IS DISTINCT FROM session_user AND NOT pg_has_role(session_user, 'duckmesh_control', 'MEMBER') THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% role=% is not for login %', p_lake, p_role, session_user USING ERRCODE = 'DM001';
  END IF;
  IF l.lake IS NULL THEN RAISE EXCEPTION 'DUCKMESH_POLICY no lake % with role %', p_lake, p_role USING ERRCODE = 'DM002'; END IF;
  PERFORM set_config('lock_timeout', p_wait_ms::text, true);
  LOOP
    BEGIN
      UPDATE duckmesh.lease SET epoch = epoch + 1, taken_at = clock_timestamp()
       WHERE lake = p_lake AND role = p_role AND (p_epoch IS NULL OR epoch = p_epoch) RETURNING epoch INTO e;
      RETURN e;
    EXCEPTION WHEN lock_not_available THEN
      IF again THEN RAISE; END IF;
      again := true;
      PERFORM pg_stat_clear_snapshot();
      PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity
        WHERE datname = current_database() AND starts_with(application_name, format('dm:%s:%s:', p_lake, p_role))
          AND (l.login IS NULL OR usename = l.login) AND pid <> pg_backend_pid();
    END;
  END LOOP;
END $f$;

-- ---------------------------------------------------------------- per lake
-- Triggers, rows and rights of one lake. Repeating it changes nothing.
CREATE OR REPLACE FUNCTION duckmesh.install_lake(p_lake text, p_writer name DEFAULT NULL, p_maint name DEFAULT NULL,
                                                 p_reader name DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bad text; who name; zeros bigint;
BEGIN
  IF p_lake !~ '^[a-z][a-z0-9_]{0,39}$' OR p_lake ~ '^(pg_|duckmesh$|public$|information_schema$)' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY bad lake name %', p_lake USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format('SELECT count(*) FILTER (WHERE value = ''0'' AND scope IS NULL), string_agg(value, '','') FILTER (WHERE value <> ''0'')
                  FROM %I.ducklake_metadata WHERE key = ''data_inlining_row_limit''', p_lake) INTO zeros, bad;
  IF zeros = 0 OR bad IS NOT NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% store data_inlining_row_limit = 0 first (found %)', p_lake, coalesce(bad, 'nothing') USING ERRCODE = 'DM002';
  END IF;
  INSERT INTO duckmesh.lake_status (lake) SELECT p_lake WHERE NOT EXISTS (SELECT 1 FROM duckmesh.lake_status WHERE lake = p_lake);
  INSERT INTO duckmesh.lease (lake, role, login) VALUES (p_lake, 'w', p_writer), (p_lake, 'm', p_maint)
    ON CONFLICT (lake, role) DO UPDATE SET login = EXCLUDED.login WHERE lease.login IS DISTINCT FROM EXCLUDED.login;
  EXECUTE format($t$
    CREATE OR REPLACE TRIGGER dm_10_fence  BEFORE INSERT ON %1$I.ducklake_snapshot FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('*');
    CREATE OR REPLACE TRIGGER dm_11_expire BEFORE DELETE ON %1$I.ducklake_snapshot FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('m');
    CREATE OR REPLACE TRIGGER dm_12_frozen BEFORE UPDATE ON %1$I.ducklake_snapshot FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_frozen();
    CREATE OR REPLACE TRIGGER dm_20_fence  BEFORE INSERT ON %1$I.ducklake_snapshot_changes FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('*');
    CREATE OR REPLACE TRIGGER dm_21_expire BEFORE DELETE ON %1$I.ducklake_snapshot_changes FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('m');
    CREATE OR REPLACE TRIGGER dm_22_frozen BEFORE UPDATE ON %1$I.ducklake_snapshot_changes FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_frozen();
    CREATE OR REPLACE TRIGGER dm_23_commit BEFORE INSERT ON %1$I.ducklake_snapshot_changes FOR EACH ROW EXECUTE FUNCTION duckmesh.on_commit();
    CREATE OR REPLACE TRIGGER dm_30_fence  BEFORE INSERT ON %1$I.ducklake_files_scheduled_for_deletion
      FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('*');   -- a writer's delete may replace a delete file
    CREATE OR REPLACE TRIGGER dm_31_clean  BEFORE UPDATE OR DELETE ON %1$I.ducklake_files_scheduled_for_deletion
      FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('m');
    CREATE OR REPLACE TRIGGER dm_40_fence  BEFORE INSERT OR UPDATE OR DELETE ON %1$I.ducklake_metadata FOR EACH STATEMENT EXECUTE FUNCTION duckmesh.on_fenced('*');
    CREATE OR REPLACE TRIGGER dm_41_option BEFORE INSERT OR UPDATE OR DELETE ON %1$I.ducklake_metadata FOR EACH ROW EXECUTE FUNCTION duckmesh.on_option();
  $t$, p_lake);
  -- One row per file: a path registered twice is deleted by cleanup while its second row still lives.
  EXECUTE format('CREATE UNIQUE INDEX IF NOT EXISTS dm_path ON %I.ducklake_data_file (table_id, path)', p_lake);
  FOREACH who IN ARRAY ARRAY[p_writer, p_maint] LOOP
    CONTINUE WHEN who IS NULL;
    EXECUTE format('GRANT USAGE ON SCHEMA %1$I TO %2$I; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO %2$I', p_lake, who);
    EXECUTE format('GRANT EXECUTE ON FUNCTION duckmesh.advance(text, bigint, bigint, bigint), duckmesh.take_over(text, text, int, bigint),
      duckmesh.beat(text, text, bigint, text, text, interval, bigint) TO %I', who);
  END LOOP;
  IF p_reader IS NOT NULL THEN
    EXECUTE format('GRANT USAGE ON SCHEMA %1$I TO %2$I; GRANT SELECT ON ALL TABLES IN SCHEMA %1$I TO %2$I', p_lake, p_reader);
  END IF;
  FOREACH who IN ARRAY ARRAY[p_writer, p_maint, p_reader] LOOP
    CONTINUE WHEN who IS NULL;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), who);
    EXECUTE format('GRANT SELECT ON duckmesh.lake_status, duckmesh.lease, duckmesh.heartbeat TO %I', who);
  END LOOP;
END $f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;       -- trigger functions need no grant to fire
GRANT EXECUTE ON FUNCTION duckmesh.take_over(text, text, int, bigint), duckmesh.advance(text, bigint, bigint, bigint),
  duckmesh.beat(text, text, bigint, text, text, interval, bigint) TO duckmesh_control;

RESET ROLE;
