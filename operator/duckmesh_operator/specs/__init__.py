"""Builders of manifests: values in, fresh plain dicts out. Called by `reconcile`; no I/O, no clock, no randomness."""
