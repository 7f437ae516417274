-- The whole write path: staged files and changed tables on the bus, history of tables, idempotency keys in generations,
-- dead letters of single records and of table changes, and what a lake's declared tables came to.
--
-- Bus tables are brought forward in place by `duckmesh.install_bus`, which the migrate Job runs for a lake whose number is
-- behind. Processes of the release before go on working on such a lake until they are replaced, and lakes that stay at
-- migration 3 beside it are not touched: `duckmesh.set_aside` with five arguments and `duckmesh.install_dead_letters` are theirs.

SET LOCAL ROLE duckmesh_admin;

-- ---------------------------------------------------------------- one lake's bus
CREATE OR REPLACE FUNCTION duckmesh.install_bus(p_lake text, p_writer name, p_maint name, p_reader name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bus text := p_lake || '_bus'; old boolean; fresh boolean := to_regclass(format('%I.head', bus)) IS NULL;
BEGIN
  IF p_lake !~ '^[a-z][a-z0-9_]{0,39}$' OR p_lake ~ '^(pg_|duckmesh$|public$|information_schema$)' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY bad lake name %', p_lake USING ERRCODE = 'DM002';
  END IF;
  SELECT c.relkind = 'r' INTO old FROM pg_class AS c WHERE c.oid = to_regclass(format('%I.idempotency', bus));
  IF old THEN
    PERFORM duckmesh.upgrade_bus(bus);
    EXECUTE format('REVOKE ALL ON %I.record_key_0 FROM %I, %I, %I', bus, p_writer, p_maint, p_reader);
  END IF;
  EXECUTE format($t$
    CREATE SCHEMA IF NOT EXISTS %1$I;

    -- One row, rewritten by every group commit. Half-empty pages keep its versions on one page, where they are pruned in
    -- passing (HOT); the fixed threshold is the net below, since a fraction of one row means nothing.
    CREATE TABLE IF NOT EXISTS %1$I.head (
      one            boolean PRIMARY KEY DEFAULT true CHECK (one),
      last           bigint NOT NULL CHECK (last >= 0),
      schema_version bigint NOT NULL DEFAULT 0,
      timeline       int NOT NULL DEFAULT 1
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

    -- A queue: rows live for one commit of the lake, a fraction of a second. So vacuum goes by the count of dead rows
    -- (a fraction of a table that is nearly empty would come late), also in the payload's TOAST, and never for inserts alone.
    CREATE TABLE IF NOT EXISTS %1$I.entry (
      last           bigint PRIMARY KEY,
      first          bigint NOT NULL CHECK (first > 0 AND first <= last),
      kind           text NOT NULL CONSTRAINT entry_kinds
                     CHECK (kind IN ('rows', 'file', 'create_table', 'alter_table', 'drop_table')),
      table_name     text NOT NULL,
      schema_version bigint NOT NULL,
      row_count      int NOT NULL CHECK (row_count = last - first + 1),
      byte_count     int NOT NULL,                                 -- of the payload, or of the file it names (at most 2 GiB is told)
      payload        bytea STORAGE EXTERNAL NOT NULL,              -- Arrow: Postgres need not try to compress it
      accepted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_threshold = -1,
            toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000);

    -- Keys of records and keys of whole requests, each in generations that are dropped whole; the parent of both is what
    -- the release before knows. No index spans them: who looks up and writes holds the lock of the head.
    CREATE TABLE IF NOT EXISTS %1$I.idempotency (
      key            bytea NOT NULL,
      content        bytea NOT NULL,
      number         bigint NOT NULL,
      accepted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
      request        boolean NOT NULL DEFAULT false,
      generation     int NOT NULL DEFAULT 0,
      accepted       int,                                          -- of a request, its rows that were written and
      rejected       int                                           -- those that were not; NULL: by the release before
    ) PARTITION BY LIST (request);
    CREATE TABLE IF NOT EXISTS %1$I.record_key PARTITION OF %1$I.idempotency FOR VALUES IN (false) PARTITION BY LIST (generation);
    CREATE TABLE IF NOT EXISTS %1$I.request_key PARTITION OF %1$I.idempotency FOR VALUES IN (true) PARTITION BY LIST (generation);
    CREATE TABLE IF NOT EXISTS %1$I.key_generation (
      request        boolean NOT NULL,
      generation     int NOT NULL,
      opened_at      timestamptz NOT NULL DEFAULT clock_timestamp(), -- no key that it lacks was accepted later, unless in a newer one
      PRIMARY KEY (request, generation)
    );

    -- The tables as accepted: ahead of the lake by the entries that are not committed yet.
    CREATE TABLE IF NOT EXISTS %1$I.table_def (
      name           text PRIMARY KEY,
      definition     jsonb NOT NULL,
      version        bigint NOT NULL                               -- head.schema_version that created the table
    );

    -- Every definition that was accepted, but for those that the lake refused.
    CREATE TABLE IF NOT EXISTS %1$I.table_version (
      name           text NOT NULL,
      schema_version bigint NOT NULL,                              -- head.schema_version from which it holds
      definition     jsonb,                                        -- NULL: dropped
      version        bigint NOT NULL,                              -- as in table_def
      base           bigint,                                       -- schema_version of the row that it changes; a drop stands alone
      changed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
      PRIMARY KEY (name, schema_version)
    );

    -- Input that the lake refused, until a person has it replayed or dropped: single records, files, table changes.
    CREATE TABLE IF NOT EXISTS %1$I.dead_letter (
      last           bigint NOT NULL,
      first          bigint PRIMARY KEY,
      kind           text NOT NULL,
      table_name     text NOT NULL,
      schema_version bigint NOT NULL,
      row_count      int NOT NULL,
      payload        bytea STORAGE EXTERNAL NOT NULL,              -- of the numbers first..last alone
      error          text NOT NULL,
      accepted_at    timestamptz NOT NULL,
      at             timestamptz NOT NULL DEFAULT clock_timestamp()
    );
  $t$, bus);
  -- A bus made anew over a lake that holds data must not give a number the lake has passed: such rows would never be read.
  EXECUTE format('INSERT INTO %I.head (last) SELECT coalesce(max(token), 0) FROM duckmesh.lake_status WHERE lake = $1
                  ON CONFLICT DO NOTHING', bus) USING p_lake;
  EXECUTE format('INSERT INTO %1$I.table_version (name, schema_version, definition, version)
                  SELECT name, version, definition, version FROM %1$I.table_def ON CONFLICT DO NOTHING', bus);
  UPDATE duckmesh.lease SET protocol = 2 WHERE lake = p_lake AND role = 'w' AND fresh;
  PERFORM duckmesh.open_generation(bus, false, 0), duckmesh.open_generation(bus, true, 0);
  PERFORM duckmesh.install_append(bus);
  EXECUTE format($t$
    GRANT USAGE ON SCHEMA %1$I TO %2$I, %3$I, %4$I;
    GRANT SELECT, UPDATE ON %1$I.head TO %2$I;
    GRANT SELECT, INSERT, DELETE ON %1$I.entry TO %2$I;
    GRANT SELECT, INSERT ON %1$I.idempotency, %1$I.record_key, %1$I.request_key TO %2$I;
    GRANT SELECT ON %1$I.key_generation TO %2$I;
    GRANT SELECT, INSERT, UPDATE, DELETE ON %1$I.table_def TO %2$I;
    GRANT SELECT, INSERT ON %1$I.table_version TO %2$I;
    GRANT SELECT, DELETE ON %1$I.dead_letter TO %2$I;
    GRANT EXECUTE ON FUNCTION %1$I.known_keys(bytea[], bytea[]), %1$I.append_rows(
      bigint, bigint, bigint[], bigint[], text[], text[], int[], bytea[],
      bytea[], bytea[], bigint[], boolean[], int[], int[]) TO %2$I;
    GRANT EXECUTE ON FUNCTION duckmesh.set_aside(text, bigint, bigint, bigint, bytea, text),
      duckmesh.set_aside_change(text, bigint, bigint, bigint, text),
      duckmesh.expire_keys(text, double precision, double precision, bigint),
      duckmesh.report_tables(text, text, boolean, text), duckmesh.require_protocol(text, int) TO %2$I;
    GRANT SELECT ON %1$I.head, %1$I.entry TO %3$I;
    GRANT SELECT ON %1$I.head TO %4$I;
    GRANT SELECT (last, accepted_at) ON %1$I.entry TO %4$I;   -- the age of what a snapshot does not have yet
  $t$, bus, p_writer, p_maint, p_reader);
END $f$;

-- A bus of migration 3, in one transaction: what waits, its keys and its dead letters stay.
CREATE FUNCTION duckmesh.upgrade_bus(p_bus text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format($t$
    LOCK TABLE %1$I.head IN EXCLUSIVE MODE;                        -- appends end first and wait: they take head before the rest
    ALTER TABLE %1$I.entry DROP CONSTRAINT entry_kind_check,
      ADD CONSTRAINT entry_kinds CHECK (kind IN ('rows', 'file', 'create_table', 'alter_table', 'drop_table'));
    ALTER TABLE IF EXISTS %1$I.dead_letter DROP CONSTRAINT dead_letter_pkey, ADD PRIMARY KEY (first);
    ALTER TABLE %1$I.idempotency RENAME TO record_key_0;
    ALTER INDEX %1$I.idempotency_pkey RENAME TO record_key_0_pkey;
    ALTER TABLE %1$I.record_key_0 ADD COLUMN generation int NOT NULL DEFAULT 0, ADD COLUMN accepted int, ADD COLUMN rejected int;
    ALTER TABLE %1$I.record_key_0 RESET (autovacuum_vacuum_scale_factor), SET (autovacuum_vacuum_insert_threshold = -1);
    CREATE TABLE %1$I.request_key_0 (LIKE %1$I.record_key_0 INCLUDING DEFAULTS, PRIMARY KEY (key));
    WITH moved AS (DELETE FROM %1$I.record_key_0 WHERE request RETURNING *)
      INSERT INTO %1$I.request_key_0 SELECT * FROM moved;
    DROP INDEX %1$I.idempotency_age;
  $t$, p_bus);
END $f$;

-- ---------------------------------------------------------------- idempotency keys
-- Makes generation p_generation the one that keys are written to, unless it is there. Attaching does not hold up appends;
-- the lock of the head is taken last, so that none is under way that still writes to the generation before.
CREATE FUNCTION duckmesh.open_generation(p_bus text, p_request boolean, p_generation int) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  parent text := CASE WHEN p_request THEN 'request_key' ELSE 'record_key' END;
  made text := parent || '_' || p_generation;
  there boolean;
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT 1 FROM %I.key_generation WHERE request = $1 AND generation >= $2)', p_bus)
    INTO there USING p_request, p_generation;
  IF there THEN RETURN; END IF;
  EXECUTE format($t$
    CREATE TABLE IF NOT EXISTS %1$I.%3$I (LIKE %1$I.%2$I INCLUDING DEFAULTS, PRIMARY KEY (key))
      WITH (autovacuum_vacuum_insert_threshold = -1);              -- it goes as a whole
    ALTER TABLE %1$I.%2$I ATTACH PARTITION %1$I.%3$I FOR VALUES IN (%4$s);
  $t$, p_bus, parent, made, p_generation);
  EXECUTE format('SELECT 1 FROM %I.head FOR NO KEY UPDATE', p_bus);
  EXECUTE format('INSERT INTO %I.key_generation (request, generation) VALUES ($1, $2)', p_bus) USING p_request, p_generation;
END $f$;

-- One step of forgetting keys, by the writer of the lake: opens a generation when the newest is a sixth of the age old or
-- takes a sixth of p_max_bytes; otherwise drops at most one, which is past its age or, while all take more than p_max_bytes,
-- the oldest of the kind that takes the most. `more`: call again. The seconds say how far back every key is known.
-- Fails with lock_not_available where a lock is not to be had at once. Appends wait for it a few milliseconds: the files of a
-- million keys (139 MB) take 0.2 s to remove, after the locks are gone.
CREATE FUNCTION duckmesh.expire_keys(p_lake text, p_record_s double precision, p_request_s double precision, p_max_bytes bigint,
                                     OUT more boolean, OUT record_s double precision, OUT request_s double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $f$
DECLARE bus text := p_lake || '_bus'; locked boolean := true; parent text; g record; n int;
BEGIN
  IF NOT coalesce(has_table_privilege(session_user, to_regclass(format('%I.record_key', bus))::oid, 'INSERT'), false) THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  more := false;
  IF pg_try_advisory_xact_lock(hashtextextended('duckmesh.keys ' || p_lake, 0)) THEN
    FOR g IN EXECUTE format('SELECT request, max(generation) AS newest, max(opened_at) AS opened_at FROM %I.key_generation
                             GROUP BY request', bus) LOOP
      parent := CASE WHEN g.request THEN 'request_key' ELSE 'record_key' END;
      EXECUTE format('SELECT (SELECT count(*) FROM (SELECT 1 FROM %1$I.%2$I LIMIT 1) AS x)::int', bus, parent || '_' || g.newest) INTO n;
      CONTINUE WHEN n = 0;                                         -- an empty one does for as long as nothing comes
      IF g.opened_at <= clock_timestamp() - make_interval(secs => CASE WHEN g.request THEN p_request_s ELSE p_record_s END / 6)
         OR pg_total_relation_size(format('%I.%I', bus, parent || '_' || g.newest)::regclass) > p_max_bytes / 6 THEN
        PERFORM duckmesh.open_generation(bus, g.request, g.newest + 1);
        more := true;
        EXIT;                                                      -- one lock at a time
      END IF;
    END LOOP;
  ELSE
    locked := false;
  END IF;
  IF locked AND NOT more THEN
    EXECUTE format($q$
      WITH held AS (
        SELECT request, generation, lead(opened_at) OVER (PARTITION BY request ORDER BY generation) AS closed_at,
               pg_total_relation_size(format('%%I.%%I', $1, CASE WHEN request THEN 'request_key' ELSE 'record_key' END || '_' || generation)::regclass) AS bytes
          FROM %1$I.key_generation),
        sized AS (SELECT *, sum(bytes) OVER () AS every, sum(bytes) OVER (PARTITION BY request) AS kind FROM held)
      SELECT request, generation FROM sized
       WHERE closed_at <= clock_timestamp() - make_interval(secs => CASE WHEN request THEN $3 ELSE $2 END)
          OR (closed_at IS NOT NULL AND every > $4)
       ORDER BY closed_at <= clock_timestamp() - make_interval(secs => CASE WHEN request THEN $3 ELSE $2 END) DESC, kind DESC, generation
       LIMIT 1 $q$, bus) INTO g USING bus, p_record_s, p_request_s, p_max_bytes;
    IF g.generation IS NOT NULL THEN
      EXECUTE format('DROP TABLE %I.%I', bus, CASE WHEN g.request THEN 'request_key' ELSE 'record_key' END || '_' || g.generation);
      EXECUTE format('DELETE FROM %I.key_generation WHERE request = $1 AND generation = $2', bus) USING g.request, g.generation;
      more := true;
    END IF;
  END IF;
  EXECUTE format($q$
    WITH oldest AS (SELECT DISTINCT ON (request) request, generation, extract(epoch FROM clock_timestamp() - opened_at) AS age
                      FROM %1$I.key_generation ORDER BY request, generation)
    SELECT min(CASE WHEN generation = 0 THEN $1 ELSE least($1, age) END) FILTER (WHERE NOT request),
           min(CASE WHEN generation = 0 THEN $2 ELSE least($2, age) END) FILTER (WHERE request) FROM oldest $q$, bus)
    INTO record_s, request_s USING p_record_s, p_request_s;
END $f$;

-- ---------------------------------------------------------------- append
-- The bus's own functions, by which an append of rows is one round trip: under the caller's rights, with plans that stay.
CREATE FUNCTION duckmesh.install_append(p_bus text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  EXECUTE format($t$
    -- Which of these keys are known. Every generation is asked, which is why there are few: with 1, 7 and 25 of 40,000 keys
    -- or more, 10 keys take 0.2, 0.5 and 1.6 ms of CPU, 500 keys 2, 10 and 36 ms. A new generation looks small to the
    -- planner, and the plan stays while it grows: hence never a scan of it all, and never a plan for these very keys.
    CREATE OR REPLACE FUNCTION %1$I.known_keys(p_records bytea[], p_requests bytea[])
    RETURNS TABLE (request boolean, key bytea, content bytea, number bigint, accepted int, rejected int)
    LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET plan_cache_mode = force_generic_plan AS $b$
    #variable_conflict use_column
    BEGIN
      IF cardinality(p_records) > 0 THEN
        RETURN QUERY SELECT false, k.key, k.content, k.number, k.accepted, k.rejected
                       FROM %1$I.record_key AS k WHERE k.key = ANY(p_records);
      END IF;
      IF cardinality(p_requests) > 0 THEN
        RETURN QUERY SELECT true, k.key, k.content, k.number, k.accepted, k.rejected
                       FROM %1$I.request_key AS k WHERE k.key = ANY(p_requests);
      END IF;
    END $b$;

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
  $t$, p_bus);
END $f$;

-- ---------------------------------------------------------------- dead letters
-- Keeps the numbers p_prev+1..p_tok, which are of one entry of rows or of a file, as a dead letter and moves the token past
-- them, in one transaction: for the holder of role w. p_payload: of these numbers alone; NULL for the entry's own, when whole.
-- A part of a staged file is rows.
CREATE FUNCTION duckmesh.set_aside(p_lake text, p_epoch bigint, p_prev bigint, p_tok bigint, p_payload bytea, p_error text) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE n int;
BEGIN
  PERFORM duckmesh.advance(p_lake, p_epoch, p_prev, p_tok);
  EXECUTE format($q$
    INSERT INTO %1$I.dead_letter (first, last, kind, table_name, schema_version, row_count, payload, error, accepted_at)
    SELECT $1 + 1, $2, CASE WHEN e.kind = 'file' AND $3 <> e.payload THEN 'rows' ELSE e.kind END, e.table_name,
           e.schema_version, $2 - $1, coalesce($3, e.payload), $4, e.accepted_at
      FROM %1$I.entry AS e
     WHERE $2 BETWEEN e.first AND e.last AND $1 + 1 BETWEEN e.first AND $2 AND e.kind IN ('rows', 'file')
       AND ($3 IS NOT NULL OR ($1 + 1, $2) = (e.first, e.last))
       AND e.last = (SELECT min(o.last) FROM %1$I.entry AS o WHERE o.last >= $2)
    RETURNING row_count $q$, p_lake || '_bus') INTO n USING p_prev, p_tok, p_payload, p_error;
  IF n IS NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% % to % are not rows of one entry', p_lake, p_prev + 1, p_tok USING ERRCODE = 'DM002';
  END IF;
  RETURN n;
END $f$;

-- The lake refused the table change with the number p_tok = p_prev + 1: keeps it as a dead letter, moves the token past it and
-- takes its definition back, in one transaction: for the holder of role w. The schema version goes up, so that no append
-- that was validated against the refused definition is accepted from here on. Definitions that were accepted on top of it go
-- with it; their entries are still there and do not lead to the tables they name, so they are refused in their turn.
CREATE FUNCTION duckmesh.set_aside_change(p_lake text, p_epoch bigint, p_prev bigint, p_tok bigint, p_error text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bus text := p_lake || '_bus'; e record;
BEGIN
  PERFORM duckmesh.advance(p_lake, p_epoch, p_prev, p_tok);
  EXECUTE format('UPDATE %I.head SET schema_version = schema_version + 1', bus);
  EXECUTE format($q$
    INSERT INTO %1$I.dead_letter (first, last, kind, table_name, schema_version, row_count, payload, error, accepted_at)
    SELECT first, last, kind, table_name, schema_version, row_count, payload, $3, accepted_at FROM %1$I.entry
     WHERE last = $2 AND first = $1 + 1 AND first = last AND kind IN ('create_table', 'alter_table', 'drop_table')
    RETURNING table_name, schema_version $q$, bus) INTO e USING p_prev, p_tok, p_error;
  IF e.table_name IS NULL THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY lake=% % is no table change', p_lake, p_tok USING ERRCODE = 'DM002';
  END IF;
  EXECUTE format($q$
    WITH RECURSIVE gone AS (
      SELECT $2 AS schema_version
      UNION ALL
      SELECT v.schema_version FROM %1$I.table_version AS v JOIN gone ON v.name = $1 AND v.base = gone.schema_version)
    DELETE FROM %1$I.table_version WHERE name = $1 AND schema_version IN (SELECT schema_version FROM gone) $q$, bus)
    USING e.table_name, e.schema_version + 1;
  EXECUTE format($q$
    WITH kept AS (SELECT * FROM %1$I.table_version WHERE name = $1 ORDER BY schema_version DESC LIMIT 1),
      gone AS (DELETE FROM %1$I.table_def WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM kept WHERE definition IS NOT NULL))
    INSERT INTO %1$I.table_def (name, definition, version) SELECT name, definition, version FROM kept WHERE definition IS NOT NULL
    ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition, version = EXCLUDED.version $q$, bus)
    USING e.table_name;
END $f$;

-- ---------------------------------------------------------------- releases side by side
-- Processes of two releases work on a lake while it is rolled. What entries may hold has grown (rows that are upserts, files,
-- changes) and the token may stand inside an entry, where the release before would pass over the rest of it. So the first
-- process of this release raises the lake's protocol: the holder before is fenced, and only who speaks it may follow.
-- The release before goes on accepting input. A lake that is not rolled stays at its protocol, whatever the catalog's migration.
ALTER TABLE duckmesh.lease ADD COLUMN protocol int NOT NULL DEFAULT 1;

-- For the writer of the lake, before it accepts input. Waits for a running commit of the holder, and ends one that hangs as
-- take_over does; repeating it changes nothing.
CREATE FUNCTION duckmesh.require_protocol(p_lake text, p_protocol int) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE again boolean := false;
BEGIN
  PERFORM 1 FROM duckmesh.lease WHERE lake = p_lake AND role = 'w' AND login = session_user;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  PERFORM set_config('lock_timeout', '1000', true);
  LOOP
    BEGIN
      UPDATE duckmesh.lease SET protocol = p_protocol, epoch = epoch + 1, taken_at = clock_timestamp()
       WHERE lake = p_lake AND role = 'w' AND protocol < p_protocol;
      RETURN;
    EXCEPTION WHEN lock_not_available THEN
      IF again THEN RAISE; END IF;
      again := true;
      PERFORM pg_stat_clear_snapshot();
      PERFORM pg_terminate_backend(pid, 1000) FROM pg_stat_activity
        WHERE datname = current_database() AND starts_with(application_name, format('dm:%s:w:', p_lake))
          AND usename = session_user AND pid <> pg_backend_pid();
    END;
  END LOOP;
END $f$;

-- As before, for connections that speak the lake's protocol: they say so by the start-up option duckmesh.protocol.
CREATE OR REPLACE FUNCTION duckmesh.take_over(p_lake text, p_role text, p_wait_ms int DEFAULT 1000, p_epoch bigint DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE
  l duckmesh.lease; e bigint; again boolean := false; control boolean := pg_has_role(session_user, 'duckmesh_control', 'MEMBER');
  spoken int := coalesce(nullif(current_setting('duckmesh.protocol', true), '')::int, 1);
BEGIN
  SELECT * INTO l FROM duckmesh.lease WHERE lake = p_lake AND role = p_role;
  IF l.login IS DISTINCT FROM session_user AND NOT control THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% role=% is not for login %', p_lake, p_role, session_user USING ERRCODE = 'DM001';
  END IF;
  IF l.lake IS NULL THEN RAISE EXCEPTION 'DUCKMESH_POLICY no lake % with role %', p_lake, p_role USING ERRCODE = 'DM002'; END IF;
  IF spoken < l.protocol AND NOT control THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% role=% needs protocol %, not %', p_lake, p_role, l.protocol, spoken USING ERRCODE = 'DM001';
  END IF;
  PERFORM set_config('lock_timeout', p_wait_ms::text, true);
  LOOP
    BEGIN
      UPDATE duckmesh.lease SET epoch = epoch + 1, taken_at = clock_timestamp()
       WHERE lake = p_lake AND role = p_role AND (p_epoch IS NULL OR epoch = p_epoch)
         AND (control OR protocol <= spoken) RETURNING epoch INTO e;
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

-- ---------------------------------------------------------------- declared tables
-- What became of the tables that the Tenant declares, as its committer last said.
CREATE TABLE duckmesh.declared_tables (
  lake    text PRIMARY KEY,
  digest  text NOT NULL,                                           -- of the declaration
  ready   boolean NOT NULL,                                        -- they are as declared
  problem text NOT NULL,                                           -- why not; for the Tenant's owner
  at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE FUNCTION duckmesh.report_tables(p_lake text, p_digest text, p_ready boolean, p_problem text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
BEGIN
  IF NOT EXISTS (SELECT 1 FROM duckmesh.lease WHERE lake = p_lake AND role = 'w' AND login = session_user) THEN
    RAISE EXCEPTION 'DUCKMESH_FENCED lake=% is not for login %', p_lake, session_user USING ERRCODE = 'DM001';
  END IF;
  INSERT INTO duckmesh.declared_tables AS d (lake, digest, ready, problem)
  VALUES (p_lake, left(p_digest, 128), p_ready, left(coalesce(p_problem, ''), 2000))
  ON CONFLICT (lake) DO UPDATE SET digest = EXCLUDED.digest, ready = EXCLUDED.ready, problem = EXCLUDED.problem, at = EXCLUDED.at;
END $f$;

-- ---------------------------------------------------------------- sweep
-- As before; rows are counted past the watermark, which may stand inside an entry. New: dead_letters, tables_*.
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
  tables_digest text, tables_ready boolean, tables_problem text)   -- NULL: none were ever declared
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '500ms' AS $f$
#variable_conflict use_column
DECLARE l duckmesh.lake;
BEGIN
  FOR l IN SELECT * FROM duckmesh.lake AS r ORDER BY r.lake LOOP
    lake := l.lake; tenant := l.tenant; tenant_uid := l.tenant_uid; error := NULL;
    token := NULL; last := NULL; pending_rows := NULL; oldest_pending_at := NULL; committed_at := NULL; snapshot_id := NULL;
    snapshot_at := NULL; files := NULL; small_files := NULL; bytes := NULL; committer := NULL; committer_alive := false;
    dead_letters := NULL; tables_digest := NULL; tables_ready := NULL; tables_problem := NULL;
    BEGIN
      SELECT s.token, s.committed_at INTO token, committed_at FROM duckmesh.lake_status AS s WHERE s.lake = l.lake;
      SELECT h.holder, h.expires_at > clock_timestamp() AND h.epoch = e.epoch INTO committer, committer_alive
        FROM duckmesh.heartbeat AS h JOIN duckmesh.lease AS e ON e.lake = h.lake AND e.role = h.role
       WHERE h.lake = l.lake AND h.role = 'w';
      committer_alive := coalesce(committer_alive, false);
      SELECT d.digest, d.ready, d.problem INTO tables_digest, tables_ready, tables_problem
        FROM duckmesh.declared_tables AS d WHERE d.lake = l.lake;
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
