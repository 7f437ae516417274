-- The registry of lakes, dead letters, and the operator's view over all lakes of this database.

SET LOCAL ROLE duckmesh_admin;

-- ---------------------------------------------------------------- registry
CREATE TABLE duckmesh.lake (
  lake       text PRIMARY KEY,
  tenant     text NOT NULL,                                        -- namespace/name of the owner, for people
  tenant_uid text NOT NULL,                                        -- the owner: this very object, not a later one of its name
  data_url   text NOT NULL,
  migration  int NOT NULL,                                         -- newest migration this lake went through; 0 while it is made
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON duckmesh.lake TO duckmesh_control;

-- Claims a lake for its owner (p_migration = 0) before anything is made, and records the number when all is made.
-- Never takes a number back, so an older release run again does not make a newer one repeat its work.
CREATE FUNCTION duckmesh.register_lake(p_lake text, p_tenant text, p_tenant_uid text, p_data_url text, p_migration int) RETURNS void
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
  UPDATE duckmesh.lake SET tenant = p_tenant, migration = greatest(l.migration, p_migration)
   WHERE lake.lake = p_lake AND (l.tenant, l.migration) IS DISTINCT FROM (p_tenant, greatest(l.migration, p_migration));
END $f$;

-- ---------------------------------------------------------------- dead letters
-- Input that cannot be written to the lake, kept with its error. Needs duckmesh.install_bus before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_dead_letters(p_lake text, p_writer name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format($t$
    CREATE TABLE IF NOT EXISTS %1$I.dead_letter (
      last           bigint PRIMARY KEY,                           -- the entry's numbers first..last
      first          bigint NOT NULL,
      kind           text NOT NULL,
      table_name     text NOT NULL,
      schema_version bigint NOT NULL,
      row_count      int NOT NULL,
      payload        bytea STORAGE EXTERNAL NOT NULL,              -- as it was accepted
      error          text NOT NULL,
      accepted_at    timestamptz NOT NULL,
      at             timestamptz NOT NULL DEFAULT clock_timestamp()
    );
  $t$, p_lake || '_bus');
  IF p_writer IS NOT NULL THEN
    EXECUTE format('GRANT SELECT ON %I.dead_letter TO %I', p_lake || '_bus', p_writer);
    EXECUTE format('GRANT EXECUTE ON FUNCTION duckmesh.set_aside(text, bigint, bigint, bigint, text) TO %I', p_writer);
  END IF;
END $f$;

-- Moves the entry p_prev+1..p_tok to the dead letters and the token past it, in one transaction: for the holder of role w.
CREATE FUNCTION duckmesh.set_aside(p_lake text, p_epoch bigint, p_prev bigint, p_tok bigint, p_error text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE n int;
BEGIN
  PERFORM duckmesh.advance(p_lake, p_epoch, p_prev, p_tok);
  EXECUTE format('INSERT INTO %1$I.dead_letter (last, first, kind, table_name, schema_version, row_count, payload, error, accepted_at)
                  SELECT last, first, kind, table_name, schema_version, row_count, payload, $3, accepted_at
                    FROM %1$I.entry WHERE last = $2 AND first > $1 RETURNING row_count', p_lake || '_bus')
    INTO n USING p_prev, p_tok, p_error;
  IF n IS NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% there is no entry ending at %', p_lake, p_tok USING ERRCODE = 'DM002';
  END IF;
  RETURN n;
END $f$;

-- ---------------------------------------------------------------- sweep
-- One row per registered lake, from the tables themselves, so lag rises even when every worker is gone. What cannot be read
-- in one lake (dropped schema, lock held) is that row's error; the others do not notice.
CREATE FUNCTION duckmesh.sweep() RETURNS TABLE (
  lake text, tenant text, tenant_uid text,
  token bigint, last bigint,                                       -- watermark and end of input
  pending_rows bigint, oldest_pending_at timestamptz,
  committed_at timestamptz, snapshot_id bigint, snapshot_at timestamptz,
  files bigint, small_files bigint, bytes bigint,                  -- live data files; small: below 1 MB
  committer text, committer_alive boolean,
  now timestamptz, error text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $f$
#variable_conflict use_column
DECLARE l duckmesh.lake;
BEGIN
  FOR l IN SELECT * FROM duckmesh.lake AS r ORDER BY r.lake LOOP
    lake := l.lake; tenant := l.tenant; tenant_uid := l.tenant_uid; error := NULL;
    token := NULL; last := NULL; pending_rows := NULL; oldest_pending_at := NULL; committed_at := NULL; snapshot_id := NULL;
    snapshot_at := NULL; files := NULL; small_files := NULL; bytes := NULL; committer := NULL; committer_alive := false;
    BEGIN
      SELECT s.token, s.committed_at INTO token, committed_at FROM duckmesh.lake_status AS s WHERE s.lake = l.lake;
      SELECT h.holder, h.expires_at > clock_timestamp() AND h.epoch = e.epoch INTO committer, committer_alive
        FROM duckmesh.heartbeat AS h JOIN duckmesh.lease AS e ON e.lake = h.lake AND e.role = h.role
       WHERE h.lake = l.lake AND h.role = 'w';
      committer_alive := coalesce(committer_alive, false);
      EXECUTE format('SELECT h.last, (SELECT coalesce(sum(e.row_count) FILTER (WHERE e.kind = ''rows''), 0)::bigint
                                        FROM %1$I.entry AS e WHERE e.last > $1),
                             (SELECT min(e.accepted_at) FROM %1$I.entry AS e WHERE e.last > $1)
                        FROM %1$I.head AS h', l.lake || '_bus')
        INTO last, pending_rows, oldest_pending_at USING token;
      EXECUTE format('SELECT s.snapshot_id, s.snapshot_time FROM %I.ducklake_snapshot AS s ORDER BY s.snapshot_id DESC LIMIT 1', l.lake)
        INTO snapshot_id, snapshot_at;
      EXECUTE format('SELECT count(*), count(*) FILTER (WHERE f.file_size_bytes < 1048576), coalesce(sum(f.file_size_bytes), 0)::bigint
                        FROM %I.ducklake_data_file AS f WHERE f.end_snapshot IS NULL', l.lake)
        INTO files, small_files, bytes;
    EXCEPTION WHEN OTHERS THEN
      error := format('%s: %s', SQLSTATE, SQLERRM);
    END;
    now := clock_timestamp();
    RETURN NEXT;
  END LOOP;
END $f$;
GRANT EXECUTE ON FUNCTION duckmesh.sweep() TO duckmesh_control;

RESET ROLE;
