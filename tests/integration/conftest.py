"""Fixtures of integration tests; Postgres and S3 themselves are in tests/services.py."""
