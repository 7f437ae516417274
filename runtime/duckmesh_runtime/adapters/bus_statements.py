"""The statements of the bus in Postgres, for `adapters/postgres_bus.py`; `{bus}` stands for the lake's schema of the bus."""

from __future__ import annotations

from typing import Final

APPEND: Final = """
SELECT last, timeline, accepted_at FROM {bus}.append_rows($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
"""

LOCK: Final = "SELECT last, schema_version, timeline FROM {bus}.head FOR NO KEY UPDATE"

RESTORE: Final = """
SELECT problem, nearest, known, number, timeline, accepted_at, oldest, newest FROM duckmesh.restore($1, $2, $3, $4)
"""

KNOWN: Final = "SELECT request, key, content, number FROM {bus}.known_keys($1, $2)"

KEPT_OF: Final = """
SELECT k.request, k.key, k.content, k.number, k.accepted, k.rejected, h.timeline
  FROM {bus}.head AS h CROSS JOIN {bus}.known_keys($1, $2) AS k
"""

LETTERS: Final = "SELECT first FROM {bus}.replayable($1) AS first"

# Under the head's lock, as replays are: one of them wins.
DROP_LETTER: Final = """
WITH h AS MATERIALIZED (SELECT 1 FROM {bus}.head FOR NO KEY UPDATE)
DELETE FROM {bus}.dead_letter WHERE first = $1 AND EXISTS (SELECT 1 FROM h)
"""

REPLAYED: Final = "SELECT {bus}.replay_letters($1, $2)"

WRITE: Final = """
WITH t AS MATERIALIZED (SELECT clock_timestamp() AS now),
  h AS (UPDATE {bus}.head SET last = $1, schema_version = $2),
  e AS (INSERT INTO {bus}.entry
          (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
        SELECT u.*, t.now FROM t, unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::int[],
                                         $9::int[], $10::bytea[]) AS u),
  i AS (INSERT INTO {bus}.idempotency (key, content, number, request, accepted, rejected, accepted_at, generation)
        SELECT u.*, t.now, g.newest
          FROM t, unnest($11::bytea[], $12::bytea[], $13::bigint[], $14::boolean[], $15::int[], $16::int[])
                    AS u (key, content, number, request, accepted, rejected)
          JOIN (SELECT request, max(generation) AS newest FROM {bus}.key_generation GROUP BY request) AS g USING (request))
SELECT now FROM t
"""

MORE: Final = """
INSERT INTO {bus}.entry
  (first, last, kind, table_name, schema_version, row_count, byte_count, payload, accepted_at)
SELECT u.*, $9 FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::int[], $7::int[],
                           $8::bytea[]) AS u
"""

CREATE: Final = """
WITH d AS (INSERT INTO {bus}.table_def (name, definition, version) VALUES ($1, $2::jsonb, $3)
           ON CONFLICT (name) DO UPDATE SET definition = EXCLUDED.definition, version = EXCLUDED.version)
INSERT INTO {bus}.table_version (name, schema_version, definition, version, base)
VALUES ($1, $3, $2::jsonb, $3, (SELECT max(schema_version) FROM {bus}.table_version WHERE name = $1))
"""

# A process of the release before creates tables without a version row: the next change brings it, lest nothing be left of the
# table when the lake refuses that change.
ALTER: Final = """
WITH o AS (SELECT * FROM {bus}.table_def WHERE name = $1),
  b AS (INSERT INTO {bus}.table_version (name, schema_version, definition, version)
        SELECT name, version, definition, version FROM o
         WHERE NOT EXISTS (SELECT 1 FROM {bus}.table_version AS v WHERE v.name = $1 AND v.schema_version >= o.version)),
  d AS (UPDATE {bus}.table_def SET definition = $2::jsonb -> 'table' WHERE name = $1 RETURNING *)
INSERT INTO {bus}.table_version (name, schema_version, definition, version, base)
SELECT $1, $3, definition, version,
       greatest(version, (SELECT max(schema_version) FROM {bus}.table_version WHERE name = $1)) FROM d
"""

DROP: Final = """
WITH o AS (SELECT * FROM {bus}.table_def WHERE name = $1),
  b AS (INSERT INTO {bus}.table_version (name, schema_version, definition, version)
        SELECT name, version, definition, version FROM o
         WHERE NOT EXISTS (SELECT 1 FROM {bus}.table_version AS v WHERE v.name = $1 AND v.schema_version >= o.version)),
  d AS (DELETE FROM {bus}.table_def WHERE name = $1 RETURNING *)
INSERT INTO {bus}.table_version (name, schema_version, version) SELECT $1, $2, version FROM d
"""

# Sizes are known without the payloads: those are fetched for a bounded piece only. `fitting`: what the bounds let in.
READ: Final = """
WITH ahead AS MATERIALIZED (
  SELECT last, n = 1 AS next, bytes, (n = 1 AND $5) OR (rows <= $2 AND bytes <= $3) AS fits
    FROM (SELECT last, sum(rows) OVER w AS rows, sum(size) OVER w AS bytes, row_number() OVER w AS n
            FROM (SELECT last, least(row_count, last - $1) AS rows, octet_length(payload) AS size FROM {bus}.entry
                   WHERE last > $1 ORDER BY last LIMIT $4) AS x
          WINDOW w AS (ORDER BY last)) AS y)
SELECT e.first, e.last, e.kind, e.table_name, e.schema_version, e.payload, e.accepted_at,
       (SELECT count(*) FROM ahead WHERE fits) AS fitting
  FROM ahead AS a JOIN {bus}.entry AS e USING (last)
 WHERE a.fits AND (a.next OR a.bytes <= $6) ORDER BY e.last
"""

TRIM: Final = """
WITH old AS MATERIALIZED (
  SELECT last, row_number() OVER w AS n, sum(size) OVER w AS bytes
    FROM (SELECT last, octet_length(payload) AS size FROM {bus}.entry WHERE last <= $1 ORDER BY last LIMIT $2) AS x
  WINDOW w AS (ORDER BY last)),
  gone AS (DELETE FROM {bus}.entry WHERE last IN (SELECT last FROM old WHERE n = 1 OR bytes <= $3) RETURNING last)
SELECT (SELECT count(*) FROM gone) AS gone, (SELECT count(*) FROM old) AS found
"""

EXPIRE: Final = "SELECT more, record_s, request_s FROM duckmesh.expire_keys($1, $2, $3, $4)"

HEAD: Final = "SELECT last, schema_version, timeline FROM {bus}.head"

BACKLOG: Final = """
WITH s AS MATERIALIZED (
  SELECT coalesce(max(token), 0) AS token, max(token_snapshot_id) AS snapshot_id, max(committed_at) AS committed_at,
         coalesce((SELECT inflight_to FROM duckmesh.heartbeat
                    WHERE lake = $1 AND role = 'w' AND expires_at > clock_timestamp()), 0) AS inflight_to
    FROM duckmesh.lake_status WHERE lake = $1)
SELECT h.last, h.schema_version, h.timeline, s.token, s.snapshot_id, s.committed_at, clock_timestamp() AS now, s.inflight_to,
       n.snapshot_id AS newest_id, n.snapshot_time AS newest_at,
       (SELECT count(*) FROM (SELECT 1 FROM {bus}.dead_letter LIMIT 100000) AS d) AS dead_letters,
       e.table_name, e.rows, e.bytes, e.claimed_rows, e.claimed_bytes, e.oldest
  FROM s CROSS JOIN {bus}.head AS h
  LEFT JOIN (SELECT snapshot_id, snapshot_time FROM {lake}.ducklake_snapshot ORDER BY snapshot_id DESC LIMIT 1) AS n ON true
  LEFT JOIN (SELECT p.table_name, sum(p.byte_count)::bigint AS bytes, min(p.accepted_at) AS oldest,
                    coalesce(sum(p.last - p.before) FILTER (WHERE p.has_rows), 0)::bigint AS rows,
                    coalesce(sum(least(p.last, p.upto) - p.before)
                             FILTER (WHERE p.has_rows AND p.before < p.upto), 0)::bigint AS claimed_rows,
                    coalesce(sum(p.byte_count) FILTER (WHERE p.before < p.upto), 0)::bigint AS claimed_bytes
               FROM (SELECT table_name, byte_count, accepted_at, last, kind IN ('rows', 'file') AS has_rows,
                            greatest(first - 1, (SELECT token FROM s)) AS before, (SELECT inflight_to FROM s) AS upto
                       FROM {bus}.entry WHERE last > (SELECT token FROM s)) AS p
              GROUP BY p.table_name) AS e ON true
 ORDER BY e.table_name COLLATE "C"
"""

TABLES: Final = """
SELECT h.schema_version, d.definition, d.version
  FROM {bus}.head AS h LEFT JOIN {bus}.table_def AS d ON true ORDER BY d.name COLLATE "C"
"""


VERSIONS: Final = """
SELECT schema_version, definition, version, changed_at FROM {bus}.table_version WHERE name = $1 ORDER BY schema_version
"""

KEPT: Final = """
SELECT first, last, kind, table_name, payload, error, accepted_at, at FROM {bus}.dead_letter
"""

KEPT_AFTER: Final = """
WITH ahead AS (
  SELECT first, row_number() OVER w AS n, sum(size) OVER w AS bytes
    FROM (SELECT first, octet_length(payload) AS size FROM {bus}.dead_letter
           WHERE first > $1 AND ($4::text IS NULL OR table_name = $4) ORDER BY first LIMIT $2) AS x
  WINDOW w AS (ORDER BY first))
SELECT d.first, d.last, d.kind, d.table_name, d.payload, d.error, d.accepted_at, d.at
  FROM ahead AS a JOIN {bus}.dead_letter AS d USING (first)
 WHERE a.n = 1 OR a.bytes <= $3 ORDER BY d.first
"""
