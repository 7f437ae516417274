"""The outside systems, one module each: Postgres, DuckDB, the object store, the sandbox socket."""
