-- What maintenance says of a lake, for the sweep and the lake's own processes: how much there is to merge, how the last run of a
-- Job ended, whether the files are whole, what lies in the store without a snapshot.
--
-- A lake that stays at an earlier migration beside this says nothing of it, which the sweep shows as NULL.

SET LOCAL ROLE duckmesh_admin;

-- A report is a flat object: a tenant's own login writes it, and others read it. Only `tables` is a list, of texts.
CREATE DOMAIN duckmesh.flat_report AS jsonb CHECK (
  octet_length(VALUE::text) <= 4096 AND jsonb_typeof(VALUE) = 'object'
  AND NOT jsonb_path_exists(VALUE, 'strict $.keyvalue() ? (@.value.type() == "object" || @.value.type() == "array" && @.key != "tables")')
  AND NOT coalesce(jsonb_path_exists(VALUE, 'strict $.tables[*] ? (@.type() != "string")', silent => true), false));

CREATE TABLE duckmesh.maintenance_report (
  lake          text PRIMARY KEY,
  debt_at       timestamptz,                                       -- when the five below were found
  debt_files    bigint,                                            -- live files that maintenance would save
  debt_bytes    bigint,                                            -- bytes it would rewrite for that
  most_files    bigint,                                            -- live files of the table with most
  deleted_ratio real,                                              -- of the worst table: deleted rows / rows of its files
  merged_at     timestamptz,                                       -- when a step of compaction ended well last
  run           duckmesh.flat_report,    -- {id, startedAt, finishedAt, result, filesIn, filesOut, bytesRewritten, error, why, tables}
  integrity     duckmesh.flat_report,    -- {checkedAt, mode, state, files, missing, damaged, message}
  orphans       duckmesh.flat_report,    -- {checkedAt, files, bytes, deleted}
  deep          duckmesh.flat_report     -- as integrity, of the last deep check
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A login sees the rows of the lakes whose schema it may use.
ALTER TABLE duckmesh.maintenance_report ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_lake ON duckmesh.maintenance_report FOR SELECT
  USING (coalesce(has_schema_privilege(to_regnamespace(quote_ident(lake))::oid, 'USAGE'), false));
CREATE POLICY control ON duckmesh.maintenance_report FOR SELECT TO duckmesh_control USING (true);
GRANT SELECT ON duckmesh.maintenance_report TO duckmesh_control;

-- Needs duckmesh.install_lake before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_maintenance(p_lake text, p_writer name, p_maint name, p_reader name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE who name;
BEGIN
  FOREACH who IN ARRAY ARRAY[p_writer, p_maint, p_reader] LOOP
    EXECUTE format('GRANT SELECT ON duckmesh.maintenance_report TO %I', who);
  END LOOP;
  EXECUTE format('GRANT EXECUTE ON FUNCTION duckmesh.report_debt(text, bigint, bigint, bigint, real),
    duckmesh.report_merged(text), duckmesh.report_run(text, jsonb), duckmesh.report_integrity(text, jsonb),
    duckmesh.report_orphans(text, jsonb) TO %I', p_maint);
END $f$;

-- ---------------------------------------------------------------- for the lake's maintenance login
-- Refuses any other login; makes the lake's row.
CREATE FUNCTION duckmesh.may_report(p_lake text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM duckmesh.lease WHERE lake = p_lake AND role = 'm' AND login = session_user) THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  INSERT INTO duckmesh.maintenance_report (lake) VALUES (p_lake) ON CONFLICT (lake) DO NOTHING;
END $f$;

-- Whether what was said at an earlier time comes too late. A time to come counts as none.
CREATE FUNCTION duckmesh.outdated(p_had jsonb, p_said jsonb, p_time text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE had timestamptz := p_had->>p_time; said timestamptz := p_said->>p_time;
BEGIN
  RETURN coalesce(said < had AND had <= clock_timestamp(), false);
END $f$;

-- What there is to do, found now.
CREATE FUNCTION duckmesh.report_debt(p_lake text, p_files bigint, p_bytes bigint, p_most_files bigint, p_deleted_ratio real) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.may_report(p_lake);
  UPDATE duckmesh.maintenance_report SET debt_at = clock_timestamp(), debt_files = p_files, debt_bytes = p_bytes,
         most_files = p_most_files, deleted_ratio = p_deleted_ratio WHERE lake = p_lake;
END $f$;

-- A step of compaction ended well.
CREATE FUNCTION duckmesh.report_merged(p_lake text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.may_report(p_lake);
  UPDATE duckmesh.maintenance_report SET merged_at = clock_timestamp() WHERE lake = p_lake;
END $f$;

-- A run of a Job ended.
CREATE FUNCTION duckmesh.report_run(p_lake text, p_run jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.may_report(p_lake);
  UPDATE duckmesh.maintenance_report SET run = p_run
   WHERE lake = p_lake AND NOT duckmesh.outdated(run, p_run, 'finishedAt');
END $f$;

-- What the last check of the files found. What a deep check found wrong stays until a deep one finds nothing: a cheap one does
-- not look for it.
CREATE FUNCTION duckmesh.report_integrity(p_lake text, p_integrity jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.may_report(p_lake);
  IF p_integrity->>'mode' = 'deep' THEN
    UPDATE duckmesh.maintenance_report SET integrity = p_integrity, deep = p_integrity
     WHERE lake = p_lake AND NOT duckmesh.outdated(deep, p_integrity, 'checkedAt');
    RETURN;
  END IF;
  UPDATE duckmesh.maintenance_report AS m SET integrity = CASE WHEN m.deep->>'state' = 'Damaged' THEN p_integrity || jsonb_build_object(
           'state', 'Damaged',
           'missing', greatest(p_integrity->'missing', m.deep->'missing'),
           'damaged', greatest(p_integrity->'damaged', m.deep->'damaged'),
           'message', CASE WHEN p_integrity->>'state' = 'Damaged' AND p_integrity->'message' <> m.deep->'message'
                           THEN left(concat_ws('; ', p_integrity->>'message', m.deep->>'message'), 500)
                           ELSE m.deep->>'message' END) ELSE p_integrity END
   WHERE m.lake = p_lake AND NOT duckmesh.outdated(m.integrity, p_integrity, 'checkedAt');
END $f$;

-- What the last look at the store found.
CREATE FUNCTION duckmesh.report_orphans(p_lake text, p_orphans jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  PERFORM duckmesh.may_report(p_lake);
  UPDATE duckmesh.maintenance_report SET orphans = p_orphans
   WHERE lake = p_lake AND NOT duckmesh.outdated(orphans, p_orphans, 'checkedAt');
END $f$;

-- ---------------------------------------------------------------- sweep
-- As before. New: debt_at to deep, NULL until it was said once.
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
  store_state text, store_since timestamptz, store_at timestamptz, -- NULL: no committer ever said it
  debt_at timestamptz, debt_files bigint, debt_bytes bigint, most_files bigint, deleted_ratio real,
  merged_at timestamptz, run jsonb, integrity jsonb, orphans jsonb, deep jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $f$
#variable_conflict use_column
DECLARE l duckmesh.lake;
BEGIN
  FOR l IN SELECT * FROM duckmesh.lake AS r ORDER BY r.lake LOOP
    lake := l.lake; tenant := l.tenant; tenant_uid := l.tenant_uid; error := NULL;
    token := NULL; last := NULL; pending_rows := NULL; oldest_pending_at := NULL; committed_at := NULL; snapshot_id := NULL;
    snapshot_at := NULL; files := NULL; small_files := NULL; bytes := NULL; committer := NULL; committer_alive := false;
    dead_letters := NULL; tables_digest := NULL; tables_ready := NULL; tables_problem := NULL;
    store_state := NULL; store_since := NULL; store_at := NULL; debt_at := NULL; debt_files := NULL; debt_bytes := NULL;
    most_files := NULL; deleted_ratio := NULL; merged_at := NULL; run := NULL; integrity := NULL; orphans := NULL; deep := NULL;
    BEGIN
      SELECT s.token, s.committed_at INTO token, committed_at FROM duckmesh.lake_status AS s WHERE s.lake = l.lake;
      SELECT h.holder, h.expires_at > clock_timestamp() AND h.epoch = e.epoch INTO committer, committer_alive
        FROM duckmesh.heartbeat AS h JOIN duckmesh.lease AS e ON e.lake = h.lake AND e.role = h.role
       WHERE h.lake = l.lake AND h.role = 'w';
      committer_alive := coalesce(committer_alive, false);
      SELECT d.digest, d.ready, d.problem INTO tables_digest, tables_ready, tables_problem
        FROM duckmesh.declared_tables AS d WHERE d.lake = l.lake;
      SELECT r.state, r.since, r.at INTO store_state, store_since, store_at FROM duckmesh.store_report AS r WHERE r.lake = l.lake;
      SELECT m.debt_at, m.debt_files, m.debt_bytes, m.most_files, m.deleted_ratio, m.merged_at, m.run, m.integrity, m.orphans, m.deep
        INTO debt_at, debt_files, debt_bytes, most_files, deleted_ratio, merged_at, run, integrity, orphans, deep
        FROM duckmesh.maintenance_report AS m WHERE m.lake = l.lake;
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
    -- A tenant's login writes the bus: a time that no reader can take must not end the sweep of all the others.
    IF oldest_pending_at NOT BETWEEN timestamptz 'epoch' AND now THEN oldest_pending_at := now; END IF;
    IF snapshot_at NOT BETWEEN timestamptz 'epoch' AND now THEN snapshot_at := NULL; END IF;
    RETURN NEXT;
  END LOOP;
END $f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;
GRANT EXECUTE ON FUNCTION duckmesh.sweep() TO duckmesh_control;

RESET ROLE;
