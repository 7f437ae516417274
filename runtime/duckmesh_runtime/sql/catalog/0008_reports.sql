-- What the committer says of the object store, for the sweep: whether it answers, since when, and when that was said last.
--
-- A lake that stays at an earlier migration beside this says nothing of it, which the sweep shows as NULL.

SET LOCAL ROLE duckmesh_admin;

CREATE TABLE duckmesh.store_report (
  lake  text PRIMARY KEY,
  state text NOT NULL CHECK (state IN ('ok', 'unreachable', 'access_denied', 'bucket_missing')),
  since timestamptz NOT NULL,                                      -- when this state was said first
  at    timestamptz NOT NULL                                       -- when it was said last
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Needs duckmesh.install_lake before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_reports(p_lake text, p_writer name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('GRANT EXECUTE ON FUNCTION duckmesh.report_store(text, text) TO %I', p_writer);
END $f$;

CREATE FUNCTION duckmesh.report_store(p_lake text, p_state text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM duckmesh.lease WHERE lake = p_lake AND role = 'w' AND login = session_user) THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  INSERT INTO duckmesh.store_report AS r (lake, state, since, at) VALUES (p_lake, p_state, clock_timestamp(), clock_timestamp())
  ON CONFLICT (lake) DO UPDATE SET state = EXCLUDED.state, at = EXCLUDED.at,
    since = CASE WHEN r.state = EXCLUDED.state THEN r.since ELSE EXCLUDED.since END;
END $f$;

-- ---------------------------------------------------------------- sweep
-- As before. New: store_state, store_since, store_at.
DROP FUNCTION duckmesh.sweep();
CREATE FUNCTION duckmesh.sweep() RETURNS TABLE (
  lake text, tenant text, tenant_uid text,
  token bigint, last bigint,                                       -- watermark and end of input
  pending_rows bigint, oldest_pending_at timestamptz,
  committed_at timestamptz, snapshot_id bigint, snapshot_at timestamptz,
  files bigint, small_files bigint, bytes bigint,                  -- live data files; small: below 1 MB
  committer text, committer_alive boolean,
  now timestamptz, error text,
  dead_letters bigint,
  tables_digest text, tables_ready boolean, tables_problem text,   -- NULL: none were ever declared
  store_state text, store_since timestamptz, store_at timestamptz) -- NULL: no committer ever said it
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $f$
#variable_conflict use_column
DECLARE l duckmesh.lake;
BEGIN
  FOR l IN SELECT * FROM duckmesh.lake AS r ORDER BY r.lake LOOP
    lake := l.lake; tenant := l.tenant; tenant_uid := l.tenant_uid; error := NULL;
    token := NULL; last := NULL; pending_rows := NULL; oldest_pending_at := NULL; committed_at := NULL; snapshot_id := NULL;
    snapshot_at := NULL; files := NULL; small_files := NULL; bytes := NULL; committer := NULL; committer_alive := false;
    dead_letters := NULL; tables_digest := NULL; tables_ready := NULL; tables_problem := NULL;
    store_state := NULL; store_since := NULL; store_at := NULL;
    BEGIN
      SELECT s.token, s.committed_at INTO token, committed_at FROM duckmesh.lake_status AS s WHERE s.lake = l.lake;
      SELECT h.holder, h.expires_at > clock_timestamp() AND h.epoch = e.epoch INTO committer, committer_alive
        FROM duckmesh.heartbeat AS h JOIN duckmesh.lease AS e ON e.lake = h.lake AND e.role = h.role
       WHERE h.lake = l.lake AND h.role = 'w';
      committer_alive := coalesce(committer_alive, false);
      SELECT d.digest, d.ready, d.problem INTO tables_digest, tables_ready, tables_problem
        FROM duckmesh.declared_tables AS d WHERE d.lake = l.lake;
      SELECT r.state, r.since, r.at INTO store_state, store_since, store_at FROM duckmesh.store_report AS r WHERE r.lake = l.lake;
      EXECUTE format('SELECT h.last, (SELECT coalesce(sum(least(e.row_count, e.last - $1)) FILTER (WHERE e.kind IN (''rows'', ''file'')), 0)::bigint
                                        FROM %1$I.entry AS e WHERE e.last > $1),
                             (SELECT min(e.accepted_at) FROM %1$I.entry AS e WHERE e.last > $1)
                        FROM %1$I.head AS h', l.lake || '_bus')
        INTO last, pending_rows, oldest_pending_at USING token;
      EXECUTE format('SELECT count(*) FROM %I.dead_letter', l.lake || '_bus') INTO dead_letters;
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

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;
GRANT EXECUTE ON FUNCTION duckmesh.sweep() TO duckmesh_control;

RESET ROLE;
