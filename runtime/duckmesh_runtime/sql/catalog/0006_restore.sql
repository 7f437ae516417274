-- Restore to a snapshot: an entry of the bus like a change of a table, but of all tables at once.
--
-- A snapshot's commit tells its token t: the lake held what came up to t. So a restore with the number r takes back the numbers
-- between t and r. The definitions are those that were accepted with a number up to t; idempotency keys between t and r
-- are forgotten once it has landed (the lake's token has reached r), for as long as no later one goes back to before r.
--
-- Needs the pins of migration 5. A lake that stays behind this migration keeps its idempotency keys and has no restore.

SET LOCAL ROLE duckmesh_admin;

-- ---------------------------------------------------------------- one lake
-- Needs duckmesh.install_bus and duckmesh.install_pins before. Repeating it changes nothing.
CREATE FUNCTION duckmesh.install_restore(p_lake text, p_writer name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bus text := p_lake || '_bus'; fresh boolean;
BEGIN
  IF p_lake !~ '^[a-z][a-z0-9_]{0,39}$' OR p_lake ~ '^(pg_|duckmesh$|public$|information_schema$)' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY bad lake name %', p_lake USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format('SELECT xmin = pg_current_xact_id()::xid FROM %I.head', bus) INTO fresh;  -- the bus was made just now
  UPDATE duckmesh.lease SET protocol = 3 WHERE lake = p_lake AND role = 'w' AND fresh;
  IF NOT EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(format('%I.table_version', bus)) AND attname = 'number') THEN
    EXECUTE format($t$
      LOCK TABLE %1$I.head IN EXCLUSIVE MODE;                      -- appends end first and wait: they take head before the rest
      ALTER TABLE %1$I.entry DROP CONSTRAINT entry_kinds,
        ADD CONSTRAINT entry_kinds CHECK (kind IN ('rows', 'file', 'create_table', 'alter_table', 'drop_table', 'restore'));
      -- Of the entry that brought the definition. Which one that was is not known of those from before, only that it was one
      -- up to restorable_from: to what is older than that there is no way back.
      ALTER TABLE %1$I.table_version ADD COLUMN number bigint NOT NULL DEFAULT 0;
      ALTER TABLE %1$I.head ADD COLUMN restorable_from bigint NOT NULL DEFAULT 0;
      UPDATE %1$I.head SET restorable_from = last WHERE EXISTS (SELECT 1 FROM %1$I.table_version);
    $t$, bus);
  END IF;
  EXECUTE format($t$
    CREATE OR REPLACE TRIGGER dm_50_number AFTER INSERT ON %1$I.entry FOR EACH ROW
      WHEN (NEW.kind IN ('create_table', 'alter_table', 'drop_table')) EXECUTE FUNCTION duckmesh.on_change();
    CREATE OR REPLACE TRIGGER dm_51_unpin AFTER DELETE ON %1$I.entry FOR EACH ROW
      WHEN (OLD.kind = 'restore') EXECUTE FUNCTION duckmesh.on_restored();
    GRANT EXECUTE ON FUNCTION duckmesh.restore(text, bigint, bytea, bytea),
      %1$I.replayable(bigint[]), %1$I.replay_letters(bigint[], bigint[]) TO %2$I;
  $t$, bus, p_writer);
END $f$;

-- A table change was accepted: whoever did it, also a process of the release before.
CREATE FUNCTION duckmesh.on_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('UPDATE %I.table_version SET number = $1 WHERE name = $2 AND schema_version = $3', TG_TABLE_SCHEMA)
    USING NEW.last, NEW.table_name, NEW.schema_version + 1;
  RETURN NULL;
END $f$;

-- A restore is done with, and its entry goes: so does the pin of its snapshot, and, unless the lake refused it, what was
-- refused of the input that it took back. What became of another restore stays to be seen.
CREATE FUNCTION duckmesh.on_restored() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('DELETE FROM %I.pin WHERE name = $1', TG_TABLE_SCHEMA) USING 'restore:' || OLD.last;
  EXECUTE format('DELETE FROM %1$I.dead_letter AS d USING %1$I.restored AS r
                   WHERE r.number = $1 AND d.first > r.tok AND d.first < r.number AND d.kind <> ''restore''', TG_TABLE_SCHEMA)
    USING OLD.last;
  RETURN NULL;
END $f$;

-- ---------------------------------------------------------------- accepting one
-- Accepts a restore of the lake to a snapshot, for its writer. When it cannot be, nothing is written and `problem` says why:
--   missing            there is no such snapshot, or not any more; `oldest` and `newest` are what is kept
--   no_token           it was made by maintenance or with the lake itself; `nearest` is the one before it that was not
--   in_request         it holds the first rows of a request and not the others: its key could be neither known nor forgotten
--   too_old            it is from before this migration, and which tables there were is not known
--   conflict           p_key was used with other content
-- p_key, p_content: idempotency key of the request, or NULL; a known one gives the number of the first restore again.
CREATE FUNCTION duckmesh.restore(p_lake text, p_snapshot bigint, p_key bytea, p_content bytea,
                                 OUT problem text, OUT nearest bigint, OUT known boolean, OUT number bigint,
                                 OUT timeline int, OUT accepted_at timestamptz, OUT oldest bigint, OUT newest bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
#variable_conflict use_column
DECLARE bus text := p_lake || '_bus'; tok bigint; there bigint; h record; k record; payload bytea; half boolean;
BEGIN
  IF NOT coalesce(has_table_privilege(session_user, to_regclass(format('%I.record_key', bus))::oid, 'INSERT'), false) THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  known := false;
  EXECUTE format('SELECT * FROM %I.head', bus) INTO h;
  timeline := h.timeline;
  PERFORM pg_advisory_xact_lock(hashtextextended('duckmesh.keys ' || p_lake, 0));  -- no generation is opened or dropped beside this
  IF p_key IS NOT NULL THEN
    EXECUTE format('SELECT content, number FROM %I.known_keys(''{}'', ARRAY[$1])', bus) INTO k USING p_key;
    IF k.number IS NOT NULL THEN
      known := true; number := k.number;
      IF k.content <> p_content THEN problem := 'conflict'; END IF;
      RETURN;
    END IF;
  END IF;

  -- The snapshot, locked as a pin locks it: an expiry under way is waited for.
  EXECUTE format('SELECT snapshot_id FROM %I.ducklake_snapshot WHERE snapshot_id = $1 FOR KEY SHARE', p_lake) INTO there USING p_snapshot;
  IF there IS NULL THEN
    EXECUTE format('SELECT min(snapshot_id), max(snapshot_id) FROM %I.ducklake_snapshot', p_lake) INTO oldest, newest;
    problem := 'missing'; RETURN;
  END IF;
  EXECUTE format($q$
    SELECT max((x->>'tok')::bigint) FILTER (WHERE snapshot_id = $1), max(snapshot_id) FILTER (WHERE snapshot_id < $1)
      FROM (SELECT snapshot_id, CASE WHEN commit_extra_info IS JSON OBJECT THEN commit_extra_info::jsonb END AS x
              FROM %1$I.ducklake_snapshot_changes JOIN %1$I.ducklake_snapshot USING (snapshot_id)
             WHERE snapshot_id <= $1 ORDER BY snapshot_id DESC LIMIT 10000) AS c
     WHERE x->>'role' = 'w' $q$, p_lake) INTO tok, nearest USING p_snapshot;
  IF tok IS NULL THEN problem := 'no_token'; RETURN; END IF;
  IF tok < h.restorable_from THEN problem := 'too_old'; RETURN; END IF;
  -- Its rows came in one append, so numbers without a gap. It was accepted before the snapshot, so no lock is needed to see it.
  EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I.request_key WHERE number > $1 AND number - accepted < $1)', bus) INTO half USING tok;
  IF half THEN problem := 'in_request'; RETURN; END IF;

  -- The newest keys are read through while appends go on; should some have come meanwhile, they are not read again.
  PERFORM duckmesh.renew_generations(bus, tok);
  there := h.last;
  EXECUTE format('SELECT * FROM %I.head FOR NO KEY UPDATE', bus) INTO h;      -- to COMMIT; what follows sees what is committed by now
  IF h.last <> there THEN PERFORM duckmesh.renew_generations(bus, 0); END IF;
  number := h.last + 1; accepted_at := clock_timestamp();
  EXECUTE format($q$
    WITH was AS (SELECT DISTINCT ON (name) name, definition, version FROM %1$I.table_version WHERE number <= $1 ORDER BY name, schema_version DESC),
      told AS (
        INSERT INTO %1$I.table_version (name, schema_version, definition, version, number)  -- each stands alone, whatever was before
        SELECT name, $2, w.definition, coalesce(w.version, d.version), $3
          FROM was AS w FULL JOIN %1$I.table_def AS d USING (name) WHERE w.definition IS NOT NULL OR d.name IS NOT NULL
        RETURNING name, definition)
    SELECT convert_to(jsonb_build_object('snapshot_id', $4,
             'tables', coalesce(jsonb_agg(definition ORDER BY name COLLATE "C") FILTER (WHERE definition IS NOT NULL), '[]'))::text, 'UTF8')
      FROM told $q$, bus) INTO payload USING tok, h.schema_version + 1, number, p_snapshot;
  PERFORM duckmesh.define_tables(bus, NULL);
  EXECUTE format('UPDATE %I.head SET last = $1, schema_version = schema_version + 1', bus) USING number;
  EXECUTE format('INSERT INTO %I.entry (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
                  VALUES ($1, $1, ''restore'', ''*'', $2, 1, length($3), $3, $4)', bus)
    USING number, h.schema_version, payload, accepted_at;
  IF p_key IS NOT NULL THEN
    EXECUTE format('INSERT INTO %1$I.idempotency (key, content, number, request, accepted, rejected, accepted_at, generation)
                    SELECT $1, $2, $3, true, 0, 0, $4, max(generation) FROM %1$I.key_generation WHERE request', bus)
      USING p_key, p_content, number, accepted_at;
  END IF;
  EXECUTE format('INSERT INTO %I.pin (snapshot_id, name) VALUES ($1, $2)', bus) USING p_snapshot, 'restore:' || number;
  -- Below the oldest generation no key is known.
  EXECUTE format('DELETE FROM %1$I.restored WHERE accepted_at < (SELECT min(opened_at) FROM %1$I.key_generation)', bus);
  EXECUTE format('INSERT INTO %1$I.restored (number, tok, snapshot_id, accepted_at, chain)
                  SELECT $1, $2, $3, $4, $1 || coalesce((SELECT chain FROM %1$I.restored WHERE number <= $2 ORDER BY number DESC LIMIT 1), ''{}'')', bus)
    USING number, tok, p_snapshot, accepted_at;
END $f$;

-- Forgotten keys may come again, and in a generation each can be but once: opens new ones where the newest holds a key whose
-- number, or that of its record's replay, is above p_tok.
CREATE FUNCTION duckmesh.renew_generations(p_bus text, p_tok bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE k record; used boolean;
BEGIN
  FOR k IN EXECUTE format('SELECT request, max(generation) AS newest FROM %I.key_generation GROUP BY request', p_bus) LOOP
    EXECUTE format('SELECT EXISTS (SELECT 1 FROM %1$I.%2$I WHERE number > $1)
                        OR EXISTS (SELECT 1 FROM %1$I.replayed WHERE number > $1) AND EXISTS (SELECT 1 FROM %1$I.%2$I)',
                   p_bus, CASE WHEN k.request THEN 'request_key_' ELSE 'record_key_' END || k.newest) INTO used USING p_tok;
    IF used THEN PERFORM duckmesh.open_generation(p_bus, k.request, k.newest + 1); END IF;
  END LOOP;
END $f$;

-- Makes table_def what table_version says last: for these tables, or for all.
CREATE FUNCTION duckmesh.define_tables(p_bus text, p_names text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format('DELETE FROM %I.table_def WHERE $1 IS NULL OR name = ANY($1)', p_bus) USING p_names;
  EXECUTE format($q$
    INSERT INTO %1$I.table_def (name, definition, version)
    SELECT name, definition, version
      FROM (SELECT DISTINCT ON (name) * FROM %1$I.table_version WHERE $1 IS NULL OR name = ANY($1) ORDER BY name, schema_version DESC) AS v
     WHERE definition IS NOT NULL $q$, p_bus) USING p_names;
END $f$;

-- ---------------------------------------------------------------- forgotten keys
-- As before, but that known_keys leaves out the keys that a restore took back. It runs with its owner's rights, since it
-- alone looks at the restores.
CREATE OR REPLACE FUNCTION duckmesh.install_append(p_bus text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format($t$
    CREATE TABLE IF NOT EXISTS %1$I.restored (
      number         bigint PRIMARY KEY,                           -- of the restore
      tok            bigint NOT NULL,                              -- what the lake went back to
      snapshot_id    bigint NOT NULL,
      accepted_at    timestamptz NOT NULL,
      -- The restores that hold once this one has landed: what is between their tok and number is not in the lake. This one,
      -- the newest up to its tok, the newest up to that one's, and so on: the others were taken back themselves.
      chain          bigint[] NOT NULL
    );

    -- The numbers first..last of dead letters that were replayed, and what the last of them became; each number that they
    -- ever had. A record keeps the key of its first number.
    CREATE TABLE IF NOT EXISTS %1$I.replayed (
      first          bigint NOT NULL,
      last           bigint NOT NULL,
      number         bigint NOT NULL,
      at             timestamptz NOT NULL DEFAULT clock_timestamp(),
      PRIMARY KEY (first, number)
    );

    -- Which of these keys are known. Every generation is asked, which is why there are few: with 1, 7 and 25 of 40,000 keys
    -- or more, 10 keys take 0.2, 0.5 and 1.6 ms of CPU, 500 keys 2, 10 and 36 ms. A new generation looks small to the
    -- planner, and the plan stays while it grows: hence never a scan of it all, and never a plan for these very keys.
    CREATE OR REPLACE FUNCTION %1$I.known_keys(p_records bytea[], p_requests bytea[])
    RETURNS TABLE (request boolean, key bytea, content bytea, number bigint, accepted int, rejected int)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
    SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $b$
    #variable_conflict use_column
    DECLARE holding bigint[];
    BEGIN
      SELECT r.chain INTO holding FROM %1$I.restored AS r
       WHERE r.number <= (SELECT s.token FROM duckmesh.lake_status AS s WHERE s.lake = %2$L) ORDER BY r.number DESC LIMIT 1;
      IF cardinality(p_records) > 0 THEN
        RETURN QUERY SELECT false, k.key, k.content, k.number, k.accepted, k.rejected
                       FROM %1$I.record_key AS k WHERE k.key = ANY(p_records)
                        AND (holding IS NULL OR NOT EXISTS (
                          SELECT 1 FROM %1$I.restored AS r,
                            greatest(k.number, (SELECT max(p.number - (p.last - k.number)) FROM %1$I.replayed AS p
                                                 WHERE p.first <= k.number AND p.last >= k.number)) AS n
                           WHERE r.number = ANY(holding) AND n > r.tok AND n < r.number));
      END IF;
      IF cardinality(p_requests) > 0 THEN
        RETURN QUERY SELECT true, k.key, k.content, k.number, k.accepted, k.rejected
                       FROM %1$I.request_key AS k WHERE k.key = ANY(p_requests)
                        -- Of a request whose rows were replayed in part nothing can be sent again.
                        AND (holding IS NULL OR NOT EXISTS (
                          SELECT 1 FROM %1$I.restored AS r,
                            greatest(k.number, (SELECT max(p.number - (p.last - k.number)) FROM %1$I.replayed AS p
                                                 WHERE p.first <= k.number AND p.last >= k.number
                                                   AND p.first <= k.number - k.accepted + 1)) AS n
                           WHERE r.number = ANY(holding) AND n > r.tok AND n < r.number));
      END IF;
    END $b$;

    -- Those of these dead letters that may be replayed: there, and not of input that a restore took back.
    CREATE OR REPLACE FUNCTION %1$I.replayable(p_first bigint[]) RETURNS SETOF bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $b$
      SELECT d.first FROM %1$I.dead_letter AS d WHERE d.first = ANY(p_first)
         AND NOT EXISTS (SELECT 1 FROM %1$I.restored AS r JOIN duckmesh.lake_status AS s ON r.number <= s.token
                          WHERE s.lake = %2$L AND d.first > r.tok AND d.first < r.number)
    $b$;

    -- Takes dead letters away that were accepted again, and keeps in mind which numbers their rows got: up to p_last.
    CREATE OR REPLACE FUNCTION %1$I.replay_letters(p_first bigint[], p_last bigint[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $b$
      DELETE FROM %1$I.replayed WHERE at < (SELECT min(opened_at) FROM %1$I.key_generation);
      WITH gone AS (
        DELETE FROM %1$I.dead_letter AS d USING unnest(p_first, p_last) AS u (first, last)
         WHERE d.first = u.first RETURNING d.first, d.last, u.last AS number),
        before AS (                                                -- the letter was itself of replayed rows: n became n + by
          SELECT greatest(p.first, g.first - p.by) AS first, least(p.last, g.last - p.by) AS last, p.by + g.number - g.last AS by
            FROM gone AS g JOIN (SELECT *, number - last AS by FROM %1$I.replayed) AS p
              ON p.first + p.by <= g.last AND p.number >= g.first)
      INSERT INTO %1$I.replayed (first, last, number)
        SELECT first, last, number FROM gone UNION ALL SELECT first, last, last + by FROM before
        ON CONFLICT DO NOTHING;
    $b$;

    REVOKE ALL ON FUNCTION %1$I.known_keys(bytea[], bytea[]), %1$I.replayable(bigint[]), %1$I.replay_letters(bigint[], bigint[])
      FROM PUBLIC;

    -- Writes entries and keys, their numbers counted from the head's, when the tables are at p_version and no key is known.
    -- Otherwise it writes nothing and accepted_at is NULL.
    CREATE OR REPLACE FUNCTION %1$I.append_rows(
      p_version bigint, p_rows bigint, p_first bigint[], p_last bigint[], p_kind text[], p_table text[], p_bytes int[],
      p_payload bytea[], p_key bytea[], p_content bytea[], p_number bigint[], p_request boolean[], p_accepted int[], p_rejected int[],
      OUT last bigint, OUT schema_version bigint, OUT timeline int, OUT accepted_at timestamptz)
    LANGUAGE plpgsql AS $b$
    #variable_conflict use_column
    DECLARE h %1$I.head; keyed boolean := cardinality(p_key) > 0; now timestamptz;
    BEGIN
      SELECT * INTO h FROM %1$I.head FOR NO KEY UPDATE;            -- to COMMIT; each statement below sees what is committed by now
      last := h.last; schema_version := h.schema_version; timeline := h.timeline;
      IF h.schema_version <> p_version THEN RETURN; END IF;
      IF keyed THEN
        PERFORM 1 FROM %1$I.known_keys(
          ARRAY(SELECT u.key FROM unnest(p_key, p_request) AS u (key, request) WHERE NOT u.request),
          ARRAY(SELECT u.key FROM unnest(p_key, p_request) AS u (key, request) WHERE u.request));
        IF FOUND THEN RETURN; END IF;
      END IF;
      now := clock_timestamp(); accepted_at := now;
      UPDATE %1$I.head SET last = h.last + p_rows;
      INSERT INTO %1$I.entry (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
        SELECT h.last + u.first, h.last + u.last, u.kind, u.tab, p_version, u.last - u.first + 1, u.bytes, u.payload, now
          FROM unnest(p_first, p_last, p_kind, p_table, p_bytes, p_payload) AS u (first, last, kind, tab, bytes, payload);
      IF keyed THEN
        INSERT INTO %1$I.idempotency (key, content, number, request, accepted, rejected, accepted_at, generation)
          SELECT u.key, u.content, h.last + u.number, u.request, u.accepted, u.rejected, now, g.newest
            FROM unnest(p_key, p_content, p_number, p_request, p_accepted, p_rejected)
              AS u (key, content, number, request, accepted, rejected)
            JOIN (SELECT request, max(generation) AS newest FROM %1$I.key_generation GROUP BY request) AS g USING (request);
      END IF;
    END $b$;
  $t$, p_bus, left(p_bus, -4));
END $f$;

-- ---------------------------------------------------------------- dead letters
-- As before, and for a restore that the lake refused: what it took back is there still, and its keys are known again.
CREATE OR REPLACE FUNCTION duckmesh.set_aside_change(p_lake text, p_epoch bigint, p_prev bigint, p_tok bigint, p_error text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bus text := p_lake || '_bus'; e record; names text[];
BEGIN
  PERFORM duckmesh.advance(p_lake, p_epoch, p_prev, p_tok);
  EXECUTE format('UPDATE %I.head SET schema_version = schema_version + 1', bus);
  EXECUTE format($q$
    INSERT INTO %1$I.dead_letter (first, last, kind, table_name, schema_version, row_count, payload, error, accepted_at)
    SELECT first, last, kind, table_name, schema_version, row_count, payload, $3, accepted_at FROM %1$I.entry
     WHERE last = $2 AND first = $1 + 1 AND first = last AND kind IN ('create_table', 'alter_table', 'drop_table', 'restore')
    RETURNING kind, table_name, schema_version $q$, bus) INTO e USING p_prev, p_tok, p_error;
  IF e.table_name IS NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% % is no table change', p_lake, p_tok USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format($q$
    WITH RECURSIVE gone AS (
      SELECT name, schema_version FROM %1$I.table_version WHERE schema_version = $2 AND ($3 OR name = $1)
      UNION ALL
      SELECT v.name, v.schema_version FROM %1$I.table_version AS v JOIN gone ON v.name = gone.name AND v.base = gone.schema_version),
    deleted AS (
      DELETE FROM %1$I.table_version AS v USING gone
       WHERE v.name = gone.name AND v.schema_version = gone.schema_version RETURNING v.name)
    SELECT array_agg(DISTINCT name) FROM deleted $q$, bus)
    INTO names USING e.table_name, e.schema_version + 1, e.kind = 'restore';
  PERFORM duckmesh.define_tables(bus, coalesce(names, ARRAY[e.table_name]));
  IF e.kind = 'restore' THEN
    EXECUTE format('DELETE FROM %I.restored WHERE number = $1', bus) USING p_tok;
  END IF;
END $f$;

-- ---------------------------------------------------------------- a catalog from a backup
-- Begins a new timeline in every lake of this database: for an administrator who has restored the catalog to an earlier time,
-- before any worker starts. Tokens that were given since the backup name rows that are not there, and their numbers will be
-- given again: so every earlier token is refused from here on. What a worker does between the restore and this would be told
-- apart by nothing, so nothing is done while one is connected. Timelines and epochs go on at the seconds since 2026: those of
-- the time that was lost, also of an earlier restore of the same backup, do not come again.
CREATE FUNCTION duckmesh.begin_timeline() RETURNS TABLE (lake text, timeline int)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
#variable_conflict use_column
DECLARE l record; now_s int := extract(epoch FROM clock_timestamp() - timestamptz '2026-01-01 00:00:00+00'); who text;
BEGIN
  SELECT string_agg(DISTINCT a.usename::text, ', ') INTO who FROM pg_stat_activity AS a JOIN duckmesh.lake AS r
      ON a.usename IN (r.lake || '_w', r.lake || '_m', r.lake || '_r') WHERE a.datname = current_database();
  IF who IS NOT NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY workers are connected: suspend their Tenants first (%)', who USING ERRCODE = 'DM002';
  END IF;
  FOR l IN SELECT r.lake FROM duckmesh.lake AS r JOIN pg_namespace AS n ON n.nspname = r.lake || '_bus' ORDER BY r.lake LOOP
    lake := l.lake;
    UPDATE duckmesh.lease AS e SET epoch = greatest(e.epoch + 1, now_s) WHERE e.lake = l.lake;
    EXECUTE format('UPDATE %I.head AS h SET timeline = greatest(h.timeline + 1, $1) RETURNING h.timeline', lake || '_bus')
      INTO timeline USING now_s;
    RETURN NEXT;
  END LOOP;
END $f$;

-- ---------------------------------------------------------------- rights
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA duckmesh FROM PUBLIC;

RESET ROLE;
