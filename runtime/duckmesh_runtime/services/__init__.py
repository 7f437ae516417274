"""The work of the runtime: ingest, commit, query; uses ports, holds transactions and retries."""
