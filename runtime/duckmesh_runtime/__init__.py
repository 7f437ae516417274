"""The duckmesh runtime: ingest, commit, query, sandbox, and the duckmesh command line."""
