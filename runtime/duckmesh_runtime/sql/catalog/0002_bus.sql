-- The bus: the durable input of each lake, in token order, in the schema "<lake>_bus" next to the lake's own.
--
-- Applied after the fence; the loader opens the transaction. `duckmesh.install_bus` makes one lake's tables and is idempotent.
--
-- Numbers are given in commit order: who appends first locks `head` and holds that lock to COMMIT, so no lower number can
-- appear after a higher one was readable. Nothing else orders the tables, and nothing may write `entry` without that lock.

SET LOCAL ROLE duckmesh_admin;

CREATE OR REPLACE FUNCTION duckmesh.install_bus(p_lake text, p_writer name, p_maint name, p_reader name) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $f$
DECLARE bus text := p_lake || '_bus';
BEGIN
  IF p_lake !~ '^[a-z][a-z0-9_]{0,39}$' OR p_lake ~ '^(pg_|duckmesh$|public$|information_schema$)' THEN
    RAISE EXCEPTION 'DUCKMESH_POLICY bad lake name %', p_lake USING ERRCODE = 'DM002';
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
      kind           text NOT NULL CHECK (kind IN ('rows', 'create_table', 'drop_table')),
      table_name     text NOT NULL,
      schema_version bigint NOT NULL,
      row_count      int NOT NULL CHECK (row_count = last - first + 1),
      byte_count     int NOT NULL,
      payload        bytea STORAGE EXTERNAL NOT NULL,              -- Arrow: Postgres need not try to compress it
      accepted_at    timestamptz NOT NULL DEFAULT clock_timestamp()
    ) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_insert_threshold = -1,
            toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 10000);

    -- Grows to the horizon and is then deleted from its old end: a small fraction keeps the freed space in use.
    CREATE TABLE IF NOT EXISTS %1$I.idempotency (
      key            bytea PRIMARY KEY,
      content        bytea NOT NULL,
      number         bigint NOT NULL,
      accepted_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
      request        boolean NOT NULL DEFAULT false                -- of a whole request: kept longer than a record's
    ) WITH (autovacuum_vacuum_scale_factor = 0.02);
    CREATE INDEX IF NOT EXISTS idempotency_age ON %1$I.idempotency (request, accepted_at);

    -- The tables as accepted: ahead of the lake by the entries that are not committed yet.
    CREATE TABLE IF NOT EXISTS %1$I.table_def (
      name           text PRIMARY KEY,
      definition     jsonb NOT NULL,
      version        bigint NOT NULL                               -- head.schema_version that brought this definition
    );
  $t$, bus);
  -- A bus made anew over a lake that holds data must not give a number the lake has passed: such rows would never be read.
  EXECUTE format('INSERT INTO %I.head (last) SELECT coalesce(max(token), 0) FROM duckmesh.lake_status WHERE lake = $1
                  ON CONFLICT DO NOTHING', bus) USING p_lake;
  EXECUTE format($t$
    GRANT USAGE ON SCHEMA %1$I TO %2$I, %3$I, %4$I;
    GRANT SELECT, UPDATE ON %1$I.head TO %2$I;
    GRANT SELECT, INSERT, DELETE ON %1$I.entry, %1$I.idempotency TO %2$I;
    GRANT SELECT, INSERT, UPDATE, DELETE ON %1$I.table_def TO %2$I;
    GRANT SELECT ON %1$I.head, %1$I.entry TO %3$I;
    GRANT SELECT, DELETE ON %1$I.idempotency TO %3$I;
    GRANT SELECT ON %1$I.head TO %4$I;
    GRANT SELECT (last, accepted_at) ON %1$I.entry TO %4$I;   -- the age of what a snapshot does not have yet
  $t$, bus, p_writer, p_maint, p_reader);
END $f$;

REVOKE ALL ON FUNCTION duckmesh.install_bus(text, name, name, name) FROM PUBLIC;

RESET ROLE;
