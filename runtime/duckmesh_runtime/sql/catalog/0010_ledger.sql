-- The ledger: how many rows each table has by what was committed to it, counted apart from DuckLake's own catalog.
--
-- A commit of role w tells in its extra_info what it did to which table, and the trigger that moves the watermark keeps the
-- totals, in the same transaction:
--   {"role":"w","prev":41,"tok":58,"rows":{"events":[17,0]},"ended":["old"]}
-- `rows` has rows inserted and deleted by table; `ended` names tables that were dropped, also those made anew under their name.
-- Maintenance changes no count. Only commits of role w write the ledger, as they alone write lake_status: no other update can
-- meet theirs.
--
-- A commit without `rows` is of the release before: what it did is not known, so the lake's ledger ends. The next commit with
-- `rows` begins it anew, from what the catalog has then; lake_status.ledger_from says with which snapshot that was. So also in a
-- lake that was made before this migration.

SET LOCAL ROLE duckmesh_admin;

CREATE TABLE duckmesh.ledger (
  lake       text NOT NULL,
  table_name text NOT NULL,
  row_count  bigint NOT NULL,
  PRIMARY KEY (lake, table_name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A login sees the rows of the lakes whose schema it may use.
ALTER TABLE duckmesh.ledger ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_lake ON duckmesh.ledger FOR SELECT
  USING (coalesce(has_schema_privilege(to_regnamespace(quote_ident(lake))::oid, 'USAGE'), false));

ALTER TABLE duckmesh.lake_status ADD COLUMN ledger_from bigint;    -- the snapshot that the ledger began with; NULL: there is none

-- ---------------------------------------------------------------- one lake
-- Needs duckmesh.install_lake and duckmesh.install_bus before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_ledger(p_lake text, p_maint name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('GRANT SELECT ON duckmesh.ledger TO %I', p_maint);
  EXECUTE format('GRANT EXECUTE ON FUNCTION duckmesh.catalog_rows(text), duckmesh.compare_ledger(text) TO %I', p_maint);
  -- Files that wait to be sent in again are named there alone.
  EXECUTE format('GRANT SELECT (kind, payload) ON %I.dead_letter TO %I', p_lake || '_bus', p_maint);
END $f$;

-- ---------------------------------------------------------------- counts
-- How many rows each table has by its live files.
CREATE FUNCTION duckmesh.catalog_rows(p_lake text) RETURNS TABLE (table_name text, row_count bigint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  RETURN QUERY EXECUTE format($q$
    SELECT t.table_name::text, (coalesce(f.inserted, 0) - coalesce(d.deleted, 0))::bigint
      FROM %1$I.ducklake_table AS t JOIN %1$I.ducklake_schema AS s USING (schema_id)
      LEFT JOIN (SELECT table_id, sum(record_count) AS inserted FROM %1$I.ducklake_data_file
                  WHERE end_snapshot IS NULL GROUP BY table_id) AS f USING (table_id)
      LEFT JOIN (SELECT x.table_id, sum(x.delete_count) AS deleted
                   FROM %1$I.ducklake_delete_file AS x JOIN %1$I.ducklake_data_file AS y USING (data_file_id)
                  WHERE x.end_snapshot IS NULL AND y.end_snapshot IS NULL GROUP BY x.table_id) AS d USING (table_id)
     WHERE t.end_snapshot IS NULL AND s.end_snapshot IS NULL AND s.schema_name = 'main' $q$, p_lake);
END $f$;

-- The tables whose rows the catalog counts otherwise than the ledger; NULL: one of them does not have the table. Nothing while
-- there is no ledger.
CREATE FUNCTION duckmesh.compare_ledger(p_lake text) RETURNS TABLE (table_name text, catalog bigint, ledger bigint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $f$
  SELECT table_name, c.row_count, l.row_count
    FROM duckmesh.catalog_rows(p_lake) AS c
    FULL JOIN (SELECT * FROM duckmesh.ledger WHERE lake = p_lake) AS l USING (table_name)
   WHERE c.row_count IS DISTINCT FROM l.row_count
     AND EXISTS (SELECT 1 FROM duckmesh.lake_status WHERE lake = p_lake AND ledger_from IS NOT NULL)
   ORDER BY table_name;
$f$;

-- ---------------------------------------------------------------- one row per commit: policy, watermark and ledger
-- As before, and it keeps the ledger. DuckLake writes this row last: the catalog has all else of the commit by then.
CREATE OR REPLACE FUNCTION duckmesh.on_commit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  r text := nullif(current_setting('duckmesh.role', true), '');
  x jsonb; prev bigint; tok bigint; base bigint; began bigint;
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
         epoch = nullif(current_setting('duckmesh.epoch', true), '')::bigint,
         ledger_from = CASE WHEN x ? 'rows' THEN coalesce(ledger_from, NEW.snapshot_id) END
   WHERE lake = TG_TABLE_SCHEMA AND token = prev RETURNING ledger_from INTO began;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'DUCKMESH_TOKEN lake=% prev=% tok=%', TG_TABLE_SCHEMA, prev, tok USING ERRCODE = 'DM003';
  END IF;
  IF began IS NULL THEN
    DELETE FROM duckmesh.ledger WHERE lake = TG_TABLE_SCHEMA;
  ELSIF began = NEW.snapshot_id THEN
    DELETE FROM duckmesh.ledger WHERE lake = TG_TABLE_SCHEMA;
    INSERT INTO duckmesh.ledger (lake, table_name, row_count)
      SELECT TG_TABLE_SCHEMA, c.table_name, c.row_count FROM duckmesh.catalog_rows(TG_TABLE_SCHEMA) AS c;
  ELSE
    IF x ? 'ended' THEN
      DELETE FROM duckmesh.ledger WHERE lake = TG_TABLE_SCHEMA
         AND table_name IN (SELECT jsonb_array_elements_text(x->'ended'));
    END IF;
    INSERT INTO duckmesh.ledger AS l (lake, table_name, row_count)
      SELECT TG_TABLE_SCHEMA, e.key, (e.value->>0)::bigint - (e.value->>1)::bigint FROM jsonb_each(x->'rows') AS e
      ON CONFLICT (lake, table_name) DO UPDATE SET row_count = l.row_count + EXCLUDED.row_count;
  END IF;
  RETURN NEW;
END $f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;

RESET ROLE;
