"""Leadership: one operator works, others stand by. Called by `__main__`.

The election itself is `kubernetes.aio.leaderelection`. It is wrapped where it would not let go in time: a request that
hangs is cut short, network errors count as "not renewed" instead of ending the election, and a watchdog of our own
tells of the loss when no renewal went through for `RENEW_S`, whatever the library is waiting for, and as soon as another's
name is read. Another process takes over `LEASE_S` after it last saw a change, so the loss is known before.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.baselock import BaseLock

from duckmesh_operator.errors import Conflict, NotFound, OperatorError
from duckmesh_operator.kube import Api
from duckmesh_operator.manifest import Manifest, number_at, object_at, text_at
from duckmesh_operator.names import LEASE

logger = logging.getLogger(__name__)

NAME: Final = "duckmesh-operator"
LEASE_S: Final = 15
RENEW_S: Final = 10
RETRY_S: Final = 2
_REQUEST_S: Final = 3.0


class Lease:
    """This process's share in the Lease.

    Args:
        api: The API server.
        namespace: The operator's own.
        identity: Unique name of this process.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, api: Api, *, namespace: str, identity: str, clock: Callable[[], float]
    ) -> None:
        self._lock = _Lock(api, namespace, identity, clock)
        self._clock = clock

    async def acquire(self) -> None:
        """Wait until this process is the leader."""
        await self._election().acquire()
        logger.info("lease acquired", extra={"identity": self._lock.identity})

    async def hold(self) -> None:
        """Renew until the lease is lost; returns then. The caller must end at once."""
        renewing = asyncio.create_task(self._election().renew_loop())
        try:
            while not renewing.done() and self.held:
                await asyncio.wait({renewing}, timeout=min(RETRY_S, self._left_s()))
        finally:
            renewing.cancel()

    @property
    def held(self) -> bool:
        """Whether a renewal went through lately."""
        return self._left_s() > 0

    async def release(self) -> None:
        """Give the lease up, so that a standby need not wait for its end. Failing to is no failure."""
        try:
            async with asyncio.timeout(_REQUEST_S):
                await self._lock.release()
        except (OperatorError, TimeoutError) as error:
            logger.info("lease not released", extra={"error": str(error)})

    def _left_s(self) -> float:
        return self._lock.renewed_at + RENEW_S - self._clock()

    def _election(self) -> LeaderElection:
        async def nothing() -> None:
            """The callbacks of the library's own `run` are not used."""

        return LeaderElection(
            Config(
                lock=self._lock,
                lease_duration=LEASE_S,
                renew_deadline=RENEW_S,
                retry_period=RETRY_S,
                onstarted_leading=nothing,
                onstopped_leading=nothing,
            )
        )


class _Lock(BaseLock):
    """A Lease object as the library wants it: every failure is an answer, and every answer comes in time."""

    def __init__(self, api: Api, namespace: str, identity: str, clock: Callable[[], float]) -> None:
        super().__init__(NAME, namespace, identity)
        self._api = api
        self._clock = clock
        self._live: Manifest = {}
        self.renewed_at = float("-inf")

    async def get(
        self, name: str, namespace: str
    ) -> tuple[bool, LeaderElectionRecord] | tuple[bool, Exception] | tuple[bool, None]:
        """The record as it is; an absent Lease is an ApiException with code 404."""
        try:
            async with asyncio.timeout(_REQUEST_S):
                self._live = await self._api.get(LEASE, namespace, name)
        except NotFound:
            return False, _absent()
        except (OperatorError, TimeoutError) as error:
            return False, ApiException(status=0, reason=type(error).__name__)
        spec = object_at(self._live, "spec")
        if spec.get("holderIdentity") not in (None, "", self.identity):
            self.renewed_at = float("-inf")  # another's, whatever we wrote before
        return True, LeaderElectionRecord(
            text_at(spec, "holderIdentity") or None,
            str(number_at(spec, "leaseDurationSeconds")) or None,
            text_at(spec, "acquireTime") or None,
            text_at(spec, "renewTime") or None,
        )

    async def create(
        self, name: str, namespace: str, election_record: LeaderElectionRecord
    ) -> bool:
        """Make the Lease with us in it."""
        manifest: Manifest = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": self._spec(election_record),
        }
        return await self._write(self._api.create, manifest)

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """Put our record in; refused when the Lease changed since `get`."""
        manifest = dict(self._live)
        manifest["spec"] = self._spec(updated_record)
        return await self._write(self._api.replace, manifest)

    async def release(self) -> None:
        """Take our name out, when it is in."""
        live = await self._api.get(LEASE, str(self.namespace), str(self.name))
        spec = object_at(live, "spec")
        if spec.get("holderIdentity") == self.identity:
            live["spec"] = spec | {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._api.replace(live)

    async def _write(
        self, write: Callable[[Manifest], Awaitable[Manifest]], manifest: Manifest
    ) -> bool:
        started = self._clock()
        try:
            async with asyncio.timeout(_REQUEST_S):
                await write(manifest)
        except Conflict:
            return False
        except (OperatorError, TimeoutError) as error:
            logger.warning("lease not renewed", extra={"error": str(error)})
            return False
        # From before the request: the others may count from the moment it took effect.
        self.renewed_at = started
        return True

    def _spec(self, record: LeaderElectionRecord) -> Manifest:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = object_at(self._live, "spec")
        kept = old.get("acquireTime") if old.get("holderIdentity") == self.identity else now
        return {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": int(float(record.lease_duration or LEASE_S)),
            "acquireTime": kept or now,
            "renewTime": now,
        }


def _absent() -> ApiException:
    error = ApiException(status=404, reason="NotFound")
    error.body = json.dumps({"code": 404})
    return error
