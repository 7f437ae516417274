# The only entry points; `make help` prints them. Each target installs what it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat requirements.lock client/pyproject.toml operator/pyproject.toml runtime/pyproject.toml | sha256sum | cut -c1-16)

.PHONY: help
help: ## Print these targets
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): requirements.lock client/pyproject.toml operator/pyproject.toml runtime/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "duckmesh needs Python 3.11 or newer; set PYTHON=")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the locked packages into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e client -e operator -e runtime
	@rm -f $(VENV)/.installed-*; touch $@

.PHONY: setup
setup: $(STAMP) ## Make the virtualenv from the lock

.PHONY: fmt
fmt: setup ## Format and fix what can be fixed
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: lint
lint: setup ## Format, rules, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# One process a core, each with services of its own. Tests of a file share what it started, so they run in one, in order.
PYTEST := $(BIN)/pytest -n auto --dist loadfile
.PHONY: unit contract integration
unit: setup ## Tests without network
	$(PYTEST) tests/unit
contract: setup ## Tests that both sides of each seam agree
	$(PYTEST) tests/contract
integration: setup ## Tests with real Postgres, DuckLake and S3 on loopback
	$(PYTEST) tests/integration

.PHONY: test
test: setup ## Everything that needs no cluster
	$(PYTEST) tests/integration tests/contract tests/unit

.PHONY: fresh
fresh: ## From nothing: the committed tree, empty virtualenv and caches in a temporary folder
	tests/fresh.sh

.PHONY: e2e
e2e: setup cluster ## User stories on a real cluster (left running; `make cluster-down` ends it)
	$(BIN)/pytest tests/e2e

.PHONY: demo demo-down
demo: setup ## From nothing to a Tenant with 336,776 real rows, queried and checked
	$(BIN)/python -m tests.e2e.demo up
demo-down: setup ## Remove everything the demo made, the cluster included
	$(BIN)/python -m tests.e2e.demo down

.PHONY: bench bench-cluster
bench: setup ## Measure the figures of docs/benchmarks.md on this machine (ARGS=--short: half a minute each)
	$(BIN)/python -m tests.bench $(ARGS)
bench-cluster: setup ## Measure those that need Kubernetes (starts the demo's cluster)
	$(BIN)/python -m tests.bench cluster

.PHONY: fleet
fleet: setup ## A thousand Tenants on a real API server: memory, processor, reaction (ARGS='--tenants 100')
	$(BIN)/python -m tests.fleet $(ARGS)

FUZZ ?= 50
.PHONY: nightly
nightly: setup ## Long runs: an hour of load, a loop of kills, operator under faults, deletion, compaction, property tests FUZZ times as long
	$(BIN)/python -m tests.nightly $(ARGS)
	DUCKMESH_FUZZ=$(FUZZ) $(BIN)/pytest -m "hypothesis or long" tests/unit tests/contract tests/integration --timeout=14400

.PHONY: ci
ci: ## What CI runs
	bash .ci/run

.PHONY: clean
clean: ## Remove the virtualenv and tool caches (not ~/.cache/duckmesh)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build

.PHONY: lock
lock: setup ## Renew the hash-pinned locks (root, and the part of it each image needs)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev \
	  client/pyproject.toml operator/pyproject.toml runtime/pyproject.toml --extra dev -o requirements.lock
	for f in operator runtime; do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    -c requirements.lock $$f/pyproject.toml -o $$f/requirements.lock; done
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  -c requirements.lock runtime/pyproject.toml --extra dev -o runtime/requirements-dev.lock

.PHONY: manifests
manifests: setup ## Write what is made from crds/ and code: the chart's copy, the references
	@mkdir -p charts/duckmesh/templates/crds
	for kind in tenant compactor; do { \
	  echo '{{- if .Values.crds.install }}'; \
	  sed -e '1s/.*/# Generated from crds\/ by `make manifests`./' \
	    -e '0,/^  labels:/s//  annotations:\n    helm.sh\/resource-policy: keep\n  labels:/' crds/$$kind.yaml; \
	  echo '{{- end }}'; \
	} > charts/duckmesh/templates/crds/$$kind.yaml; done
	$(BIN)/python docs/reference/generate.py
	$(BIN)/python docs/reference/commands.py

# ---------------------------------------------------------------- a cluster of one's own (tests/e2e/cluster/README.md)
# Standard library only: works before `make setup`. `eval "$(make -s cluster)"` leads this shell to it.
.PHONY: cluster cluster-down cluster-status
cluster: ## Have a real Kubernetes: kind where Docker answers, otherwise a node of our own
	@$(PYTHON) -m tests.e2e.cluster up
cluster-down: ## Remove the cluster and every trace of it (not ~/.cache/duckmesh)
	@$(PYTHON) -m tests.e2e.cluster down
cluster-status: ## Say how the cluster is
	@$(PYTHON) -m tests.e2e.cluster status
