"""Every collector of the operator; other modules call the small functions below. Names are API. Leaf module.

Labels are bounded: kinds, results, HTTP methods and codes, phases, Tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Collector"]

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

LABELS: Final[Mapping[str, str]] = {
    "kind": "kind of a resource or child",
    "result": "`ok`, a class of the operator's failures, or `Crashed`; of a run `Succeeded`, `Partial` or `Failed`",
    "verb": "HTTP method",
    "code": "HTTP status, or `none` without an answer",
    "action": "what was done to it",
    "catalog": "name of a catalog in the configuration",
    "phase": "phase of a Tenant",
    "tenant": "`namespace/name` of a Tenant",
    "condition": "type of a condition in its status",
    "reason": "why it is so",
    "compactor": "`namespace/name` of a Compactor",
}
"""What each label may say: bounded by what is installed and configured."""

_reconciles = Counter(
    "duckmesh_operator_reconcile_total", "Reconciles by kind and result.", ["kind", "result"]
)
_reconcile_seconds = Histogram(
    "duckmesh_operator_reconcile_seconds", "Time of one reconcile.", ["kind"], buckets=_SECONDS
)
_api_requests = Counter(
    "duckmesh_operator_api_requests_total", "Requests to the API server.", ["verb", "code"]
)
_watch_age = Gauge(
    "duckmesh_operator_watch_last_event_age_seconds", "Time since the watch brought anything."
)
_loop_lag = Gauge("duckmesh_operator_loop_lag_seconds", "Delay of the event loop, last measured.")
_lease = Gauge("duckmesh_operator_lease_held", "1 while this process is the leader.")
_status_writes = Counter("duckmesh_operator_status_writes_total", "Statuses written.", ["kind"])
_child_writes = Counter(
    "duckmesh_operator_child_writes_total", "Children written.", ["kind", "action"]
)
_runs = Counter(
    "duckmesh_operator_compactor_runs_total", "Runs of Compactors that ended.", ["result"]
)
_sweep_failures = Counter(
    "duckmesh_operator_sweep_failures_total", "Sweeps that got no answer.", ["catalog"]
)
_sweep_seconds = Histogram(
    "duckmesh_operator_sweep_seconds", "Time of one sweep.", ["catalog"], buckets=_SECONDS
)


def reconciled(kind: str, result: str, seconds: float) -> None:
    """Count one reconcile; `result` is `ok` or a class of `errors`."""
    _reconciles.labels(kind, result).inc()
    _reconcile_seconds.labels(kind).observe(seconds)


def api_requested(verb: str, code: str) -> None:
    """Count one request; `code` is the HTTP status, or `none` without an answer."""
    _api_requests.labels(verb, code).inc()


def loop_lagged(seconds: float) -> None:
    """Show how late the event loop ran."""
    _loop_lag.set(seconds)


def leading(held: bool) -> None:
    """Show whether this process is the leader."""
    _lease.set(1 if held else 0)


def status_written(kind: str) -> None:
    """Count one written status."""
    _status_writes.labels(kind).inc()


def child_written(kind: str, action: str) -> None:
    """Count one written child."""
    _child_writes.labels(kind, action).inc()


def run_ended(result: str) -> None:
    """Count one run of a Compactor; `result` is `Succeeded`, `Partial` or `Failed`."""
    _runs.labels(result).inc()


def swept(catalog: str, seconds: float, *, ok: bool) -> None:
    """Record one sweep of a catalog."""
    _sweep_seconds.labels(catalog).observe(seconds)
    if not ok:
        _sweep_failures.labels(catalog).inc()


def show_watch_age(read: Callable[[], float]) -> None:
    """Read the age of the last watch event at scrape time."""
    _watch_age.set_function(read)


def expose() -> bytes:
    """All metrics as text."""
    return generate_latest(REGISTRY)


def add(*collectors: Collector) -> list[Collector]:
    """Show further collectors."""
    for collector in collectors:
        REGISTRY.register(collector)
    return list(collectors)


def remove(collectors: Iterable[Collector]) -> None:
    """Show them no longer."""
    for collector in collectors:
        REGISTRY.unregister(collector)


class QueueCollector(Collector):
    """Depth and age of the queue at scrape time."""

    def __init__(self, depth: Callable[[], int], age_s: Callable[[], float]) -> None:
        self._depth = depth
        self._age_s = age_s

    def collect(self) -> Iterable[Metric]:
        """Both gauges."""
        yield GaugeMetricFamily(
            "duckmesh_operator_queue_depth", "Keys that wait for a worker.", self._depth()
        )
        yield GaugeMetricFamily(
            "duckmesh_operator_queue_age_seconds",
            "How long the oldest of them is due.",
            self._age_s(),
        )


class TenantCollector(Collector):
    """Tenants by phase, and of each its lag, its target and its troubles, at scrape time.

    Args:
        phases: Number of Tenants by phase.
        lags_s: Lag by Tenant.
        targets_s: What the spec asks of it.
        troubles: Condition and reason of what asks for a person, by Tenant.
    """

    def __init__(
        self,
        phases: Callable[[], Mapping[str, int]],
        lags_s: Callable[[], Mapping[str, float]],
        targets_s: Callable[[], Mapping[str, float]] = dict,
        troubles: Callable[[], Mapping[str, Collection[tuple[str, str]]]] = dict,
    ) -> None:
        self._phases = phases
        self._lags_s = lags_s
        self._targets_s = targets_s
        self._troubles = troubles

    def collect(self) -> Iterable[Metric]:
        """All gauges."""
        phases = GaugeMetricFamily(
            "duckmesh_operator_tenants", "Tenants by phase.", labels=["phase"]
        )
        for phase, count in self._phases().items():
            phases.add_metric([phase], count)
        lags = GaugeMetricFamily(
            "duckmesh_operator_tenant_lag_seconds",
            "Age of the oldest row that no query can see.",
            labels=["tenant"],
        )
        for tenant, lag_s in self._lags_s().items():
            lags.add_metric([tenant], lag_s)
        targets = GaugeMetricFamily(
            "duckmesh_operator_tenant_lag_target_seconds",
            "The lag that the Tenant's freshness.target allows.",
            labels=["tenant"],
        )
        for tenant, target_s in self._targets_s().items():
            targets.add_metric([tenant], target_s)
        conditions = GaugeMetricFamily(
            "duckmesh_operator_tenant_condition",
            "1 for each condition of a Tenant that is not as it should be; "
            "of a suspended one Ready with reason Suspended.",
            labels=["tenant", "condition", "reason"],
        )
        for tenant, troubles in self._troubles().items():
            for condition, reason in sorted(troubles):
                conditions.add_metric([tenant, condition, reason], 1)
        yield from (phases, lags, targets, conditions)


class CompactorCollector(Collector):
    """Work that waits in each Tenant, and the troubles of Compactors, at scrape time.

    Args:
        debts: Files to merge or rewrite by Tenant.
        troubles: Condition and reason of what asks for a person, by Compactor.
    """

    def __init__(
        self,
        debts: Callable[[], Mapping[str, int]],
        troubles: Callable[[], Mapping[str, Collection[tuple[str, str]]]],
    ) -> None:
        self._debts = debts
        self._troubles = troubles

    def collect(self) -> Iterable[Metric]:
        """Both gauges."""
        debts = GaugeMetricFamily(
            "duckmesh_operator_tenant_debt_files",
            "Files that maintenance would merge or rewrite.",
            labels=["tenant"],
        )
        for tenant, files in self._debts().items():
            debts.add_metric([tenant], files)
        conditions = GaugeMetricFamily(
            "duckmesh_operator_compactor_condition",
            "1 for each condition of a Compactor that is not as it should be.",
            labels=["compactor", "condition", "reason"],
        )
        for compactor, troubles in self._troubles().items():
            for condition, reason in sorted(troubles):
                conditions.add_metric([compactor, condition, reason], 1)
        yield from (debts, conditions)
