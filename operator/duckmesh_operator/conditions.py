"""Every condition of a resource with every reason it can have, its status and its message: API, so none is renamed.

`status` takes conditions from here and from nowhere else, and `docs/reference/conditions.md` is made from it. A message says
what is so and what to do next, and holds nothing that changes by itself. Leaf module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TRUE: Final = "True"
FALSE: Final = "False"
UNKNOWN: Final = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition before it gets its times."""

    kind: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a reason of a condition says.

    Attributes:
        status: `True`, `False` or `Unknown`.
        message: With `{names}` of what is filled in; `{problem}` is a whole message of where the problem was found.
    """

    status: str
    message: str


def _cases(status: str, **messages: str) -> dict[str, Case]:
    return {reason: Case(status=status, message=text) for reason, text in messages.items()}


#: What can keep a Tenant from its goal: reason, and what it means. Where it is found, a message is made that names things.
PROBLEMS: Final[Mapping[str, str]] = {
    "Invalid": "A field of the spec cannot be; the message names it and what is allowed. Change the spec.",
    "PrefixInUse": (
        "Data of another Tenant or lake lies in spec.storage.prefix, in a folder above it or below it. Make the Tenant "
        "again with another prefix."
    ),
    "DataOwned": (
        "The catalog keeps data of an earlier Tenant of the same namespace and name. Choose another name, or let the "
        "platform team hand the data over or remove it."
    ),
    "DataKept": (
        "The Tenant was deleted with deletionPolicy Delete and its data could not be removed in time: what is left of it is "
        "kept as with Retain, without a login. The platform team should see why in the operator's log, then make the Tenant "
        "again, have the data handed over to it, and delete it once more."
    ),
    "NameConflict": (
        "An object with a name that the Tenant needs belongs to someone else. Delete or rename it, or give the Tenant "
        "another name."
    ),
    "Refused": "The API server refuses an object that the Tenant needs; the message says which and why.",
    "AccessDenied": (
        "The API server refuses the operator's rights. The platform team should compare the operator's roles with the "
        "chart's."
    ),
    "SecretMissing": (
        "The platform's Secret of the catalog or of the store lacks a value or is not mounted into the operator; the "
        "message names it. It is picked up by itself when it is there."
    ),
    "Waiting": (
        "An object of an earlier Tenant of this name is still being deleted. It passes by itself; if it stays, look at "
        "the object's finalizers."
    ),
}

_NO_LAKE: Final = "There is no lake yet; it is made before the workers start."
_NOT_REPORTED: Final = "It is not known yet, or the catalog does not answer; see CatalogReachable."
_UNREADABLE: Final = (
    "The catalog answers, but this lake's tables cannot be read. The platform team finds the error in the operator's log; "
    "if tables are gone, restore the catalog from a backup."
)
_PENDING: Final = "The operator has not come to it yet."
_BLIND: Final = _cases(
    UNKNOWN,
    Pending=_PENDING,
    NoLake=_NO_LAKE,
    NotReported=_NOT_REPORTED,
    LakeUnreadable=_UNREADABLE,
)
_MIGRATING: Final = "A Job in the operator's namespace makes or upgrades the lake."
_MIGRATION_FAILED: Final = (
    "The Job that makes the lake failed and is tried again each minute; the platform team finds its log in the operator's "
    "namespace."
)
_STUCK: Final = (
    "New {parts} pods did not become ready in five minutes{older}. Look at their events with kubectl "
    "describe{revert}."
)
_SUSPENDED: Final = (
    "spec.suspend is true: there are no pods, the data is kept. Set it to false to resume."
)

#: What each condition tells.
MEANINGS: Final[Mapping[str, str]] = {
    "Ready": "The Tenant serves: its spec holds, its catalog answers, all its pods are ready and one of them commits.",
    "SpecValid": "The spec can be carried out.",
    "CatalogReachable": "The catalog database answers the operator, and this Tenant's lake in it can be read.",
    "StorageReachable": (
        "The object store takes what the committing pod asks of it. While it does not, rows are acknowledged and kept in the "
        "catalog, but none becomes visible."
    ),
    "Fresh": "Accepted rows become visible within spec.freshness.target.",
    "SnapshotHealthy": (
        "The newest snapshot is not too old for the rows that wait, and the last check found its files whole."
    ),
    "CompactionCurrent": "In no table do more files wait for a merge than queries take easily.",
    "Progressing": "The operator or Kubernetes is bringing the Tenant to its spec.",
    "Suspended": "The spec asks for no pods.",
    "Paused": "The spec asks the operator to change nothing.",
    "EgressRestricted": "Workers can reach the catalog and the store only where these lie.",
    "DeadLetters": "Input that was accepted and that the lake refused is kept.",
    "DeletionProtected": "The API server refuses to delete the Tenant. There only where spec.deletionProtection asks for it.",
    "TablesReady": "The tables are as spec.tables declares them. There only where the spec declares tables.",
    "Reconciling": "The same as Progressing while that is True, for tools that read kstatus. There only while it is True.",
    "Stalled": "Nothing goes on before a person acts. There only while it is True.",
}

CONDITIONS: Final[Mapping[str, Mapping[str, Case]]] = {
    "Ready": {
        **_cases(TRUE, AllReady="All workers are ready; send rows to status.endpoints.ingest."),
        **_cases(
            FALSE,
            **dict.fromkeys(
                ("Invalid", "PrefixInUse", "DataOwned"),
                "{problem} Workers, if any, run on as they are.",
            ),
            **dict.fromkeys(
                ("NameConflict", "Refused", "AccessDenied", "SecretMissing", "Waiting"),
                "{problem}",
            ),
            **dict.fromkeys(("Unreachable", "CatalogError"), "{problem}"),
            Suspended=_SUSPENDED,
            Deleting="The Tenant is being deleted, and its data with it: spec.deletionPolicy is Delete.",
            LakeUnreadable=_UNREADABLE,
            Migrating=_MIGRATING,
            MigrationFailed=_MIGRATION_FAILED,
            WorkersNotReady="Ready are {counts}; look at the events of the others with kubectl describe.",
            RolloutStuck="Ready are {counts}; look at the events of the others with kubectl describe.",
            NoCommitter=(
                "All pods are ready, but none of them commits rows: they are accepted and wait. Look at the logs of the "
                "ingest pods."
            ),
        ),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "SpecValid": {
        **_cases(
            TRUE,
            Valid="The spec can be carried out.",
        ),
        **_cases(FALSE, **dict.fromkeys(("Invalid", "PrefixInUse", "DataOwned"), "{problem}")),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "CatalogReachable": {
        **_cases(TRUE, Reachable="The catalog database answers."),
        **_cases(
            FALSE,
            Unreachable=(
                "Catalog {catalog} does not answer; it is asked again by itself. If it stays, the platform team should look at "
                "the database and at the way to it."
            ),
            AccessDenied=(
                "Catalog {catalog} refuses the operator's login. The platform team should check control-dsn in the "
                "catalog's Secret and the rights of that login; a corrected Secret is picked up by itself."
            ),
            CatalogError=(
                "Catalog {catalog} answers with an error; it is asked again by itself. If it stays, the platform team finds "
                "the SQLSTATE in the operator's log."
            ),
            SecretMissing=(
                "The Secret of catalog {catalog} has no control-dsn, or is not mounted into the operator. The platform team "
                "should put it back; it is picked up by itself. Workers run on as they are."
            ),
            LakeUnreadable=_UNREADABLE,
        ),
        **_cases(UNKNOWN, Pending="The catalog was not asked yet."),
    },
    "StorageReachable": {
        **_cases(TRUE, Reachable="The object store takes what the committing pod asks of it."),
        **_cases(
            FALSE,
            Unreachable=(
                "Store {store} does not answer the committing pod since {since}; rows are accepted and wait. If it stays, the "
                "platform team should look at the store and at the way to it."
            ),
            AccessDenied=(
                "Store {store} refuses the key since {since}; rows are accepted and wait. The platform team should check the "
                "key in the store's Secret and its rights to read, write, list and delete; a corrected Secret is picked up by "
                "itself."
            ),
            BucketMissing=(
                "Store {store} has no such bucket since {since}; rows are accepted and wait. The platform team should make the "
                "bucket, or correct its name in the operator's configuration."
            ),
            SecretMissing=(
                "The Secret of store {store} lacks access-key-id or secret-access-key, or is not mounted into the operator. "
                "The platform team should put it back; it is picked up by itself. Workers run on with the key they have."
            ),
        ),
        **_cases(
            UNKNOWN,
            Pending=_PENDING,
            NoLake=_NO_LAKE,
            NotReported=(
                "No ingest pod reported the object store within the last minute; see Ready and CatalogReachable."
            ),
            Suspended="spec.suspend is true: there is no pod that could ask the object store.",
        ),
    },
    "Fresh": {
        **_cases(
            TRUE,
            WithinTarget="Lag is within spec.freshness.target.",
            AboveTarget="Lag is above spec.freshness.target, not yet for long.",
        ),
        **_cases(
            FALSE,
            LagBreach=(
                "Lag is above spec.freshness.target for longer than sustainedFor; look at CatalogReachable and "
                "StorageReachable, then at the committer's log, or raise ingest resources."
            ),
        ),
        **_BLIND,
    },
    "SnapshotHealthy": {
        **_cases(TRUE, Healthy="The newest snapshot is good."),
        **_cases(
            FALSE,
            Stale=(
                "Rows wait and the newest snapshot is older than spec.snapshots.maxAge; look at StorageReachable, then at the "
                "committer's log."
            ),
            Missing=_NO_LAKE,
            Corrupt=(
                "The last check found files of the lake missing or damaged: {damage}. Queries that need them fail, none "
                "answers with fewer rows. The platform team should bring the files back "
                "(docs/runbooks/restore-from-backup.md), then run the check again."
            ),
        ),
        **_BLIND,
    },
    "CompactionCurrent": {
        **_cases(TRUE, Current="At most {limit} files of a table wait for a merge."),
        **_cases(
            FALSE,
            Behind=(
                "More than {limit} files of a table wait for a merge; queries get slower with their number. See that a "
                "Compactor looks after the Tenant and that its runs end well, or send rows in larger batches."
            ),
        ),
        **_cases(
            UNKNOWN, Disabled="spec.compaction.enabled is false: small files are not watched."
        ),
        **_BLIND,
    },
    "Progressing": {
        **_cases(
            TRUE,
            **dict.fromkeys(("AccessDenied", "SecretMissing", "Waiting"), "{problem}"),
            Migrating=_MIGRATING,
            Stopping="Workers answer what they accepted and stop.",
            RemovingData="A Job in the operator's namespace removes the rows and files of the lake.",
            RemovalFailed=(
                "The data could not be removed yet: {problem}. It is tried again, ten minutes from the deletion at most; "
                "what is left then is kept."
            ),
            RollingOut="Workers are being started, replaced or scaled.",
            Retrying=(
                "The last attempt to carry out the spec did not get through: {problem}. It is repeated by itself."
            ),
        ),
        **_cases(
            FALSE,
            Settled="Nothing is under way.",
            MigrationFailed=_MIGRATION_FAILED,
            RolloutStuck=_STUCK,
        ),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "Suspended": {
        **_cases(TRUE, Suspended=_SUSPENDED),
        **_cases(FALSE, Active="spec.suspend is false."),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "Paused": {
        **_cases(TRUE, Paused="spec.paused is true: the operator reports and changes nothing."),
        **_cases(FALSE, Managed="spec.paused is false."),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "EgressRestricted": {
        **_cases(TRUE, Restricted="Workers reach catalog and store only where they lie."),
        **_cases(
            FALSE,
            PortsOpenAnywhere=(
                "The operator's configuration does not say where the catalog or the store lies, so workers may use their ports "
                "towards any address; the platform team can set egress.cidrs or egress.peers."
            ),
        ),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "DeadLetters": {
        **_cases(
            TRUE,
            LettersKept=(
                "The lake refused input that was accepted; it is kept. See why with `duckmesh dead-letters list` (GET "
                "/v1/dead-letters), remove the cause, then replay or drop it."
            ),
        ),
        **_cases(FALSE, NoLetters="Nothing that was accepted is set aside."),
        **_BLIND,
    },
    "DeletionProtected": {
        **_cases(
            TRUE,
            Protected="The API server refuses to delete the Tenant while spec.deletionProtection is true.",
        ),
        **_cases(
            FALSE,
            ProtectionUnavailable=(
                "deletionProtection is unavailable: the cluster lacks duckmesh's admission policy, so the Tenant can be "
                "deleted. Ask the platform team to install it (admissionPolicy of the chart)."
            ),
        ),
    },
    "TablesReady": {
        **_cases(TRUE, Applied="The tables are as spec.tables declares them."),
        **_cases(
            FALSE,
            Incompatible="{problem}. Change spec.tables; all other tables are as declared.",
            Paused="spec.paused is true: what spec.tables says now waits.",
            Suspended="spec.suspend is true: there is no pod that could make the tables.",
            Applying=(
                "The tables are being made or changed; a running pod sees a new spec.tables within two minutes. If it takes "
                "longer, look at the log of the ingest pods."
            ),
        ),
    },
    "Reconciling": _cases(
        TRUE,
        **dict.fromkeys(
            (
                *("AccessDenied", "SecretMissing", "Waiting"),
                *("Migrating", "Stopping", "RollingOut", "Retrying"),
                *("RemovingData", "RemovalFailed"),
            ),
            "{problem}",
        ),
    ),
    "Stalled": _cases(
        TRUE,
        **dict.fromkeys(
            (
                *("Invalid", "PrefixInUse", "DataOwned", "NameConflict", "Refused", "DataKept"),
                "RolloutStuck",
            ),
            "{problem}",
        ),
    ),
}


_NO_DEBT_KNOWN: Final = (
    "No Tenant of it reports: no ingest pod and no Job has said yet how much there is to do, or the "
    "catalog does not answer."
)

COMPACTOR_MEANINGS: Final[Mapping[str, str]] = {
    "Ready": "The spec holds, and runs are started as it says.",
    "CaughtUp": "No Tenant has more debt than the trigger allows, and no run is due or under way.",
    "LastRunSucceeded": "Of no Tenant the last run failed.",
    "Suspended": "The spec asks for no Jobs.",
    "Conflict": "An older Compactor looks after a Tenant that this one asks for as well.",
    "Stalled": "Nothing goes on before a person acts. There only while it is True.",
}
COMPACTOR_CONDITIONS: Final[Mapping[str, Mapping[str, Case]]] = {
    "Ready": {
        **_cases(
            TRUE,
            Active="Runs are started as the spec says.",
            SomeSkipped="Runs are started as the spec says, but not for these Tenants: {skipped}.",
        ),
        **_cases(
            FALSE,
            Invalid="{problem}",
            Suspended="spec.suspend is true: no run is started, running ones finish. Set it to false to resume.",
            NoTenants=(
                "The spec names no Tenant of this namespace. Correct tenantRef or tenantSelector, or the labels of the Tenants."
            ),
            Conflict=(
                "Older Compactors look after all its Tenants: {conflicts}. Delete one, or let them name different Tenants."
            ),
            AllSkipped="None of its Tenants can have a run: {skipped}.",
            AccessDenied=(
                "The API server refuses the operator's rights: {problem} The platform team should compare the operator's roles "
                "with the chart's."
            ),
            Refused=(
                "The API server refuses a Job: {problem} It is tried again. Where it names a quota, raise it or lower "
                "spec.resources; else ask the platform team."
            ),
        ),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "CaughtUp": {
        **_cases(
            TRUE, CaughtUp="No Tenant has more debt than the trigger allows, and no run is due."
        ),
        **_cases(
            FALSE,
            Behind="There is work to do in: {tenants}.{hindrance}",
        ),
        **_cases(
            UNKNOWN,
            NotReported=_NO_DEBT_KNOWN,
            NoTenants="It looks after no Tenant.",
            Pending=_PENDING,
        ),
    },
    "LastRunSucceeded": {
        **_cases(
            TRUE,
            Succeeded="The last run of each Tenant that had one ended well.",
            Partial="The last run {ended}. The next one goes on from there.",
        ),
        **_cases(
            FALSE,
            Failed=(
                "The last run of these Tenants failed: {tenants}. {problem}. It is tried again by itself, an hour apart at "
                "most. See StorageReachable and CatalogReachable of the Tenant and the log of the Job."
            ),
        ),
        **_cases(UNKNOWN, NoRun="No run has ended yet.", Pending=_PENDING),
    },
    "Suspended": {
        **_cases(TRUE, Suspended="spec.suspend is true: no run is started, running ones finish."),
        **_cases(FALSE, Active="spec.suspend is false."),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "Conflict": {
        **_cases(
            TRUE,
            OlderCompactor=(
                "Older Compactors look after Tenants that this one names too: {conflicts}. Delete one, or let them name "
                "different Tenants."
            ),
        ),
        **_cases(FALSE, NoConflict="No older Compactor names one of its Tenants."),
        **_cases(UNKNOWN, Pending=_PENDING),
    },
    "Stalled": _cases(TRUE, Invalid="{problem}"),
}

#: Every reason of a condition.
REASONS: Final = frozenset(
    reason
    for table in (CONDITIONS, COMPACTOR_CONDITIONS)
    for cases in table.values()
    for reason in cases
)


def say(kind: str, reason: str, **facts: object) -> Condition:
    """A condition of a Tenant with one of its reasons.

    Raises:
        KeyError: The condition has no such reason, or a fact of its message is missing: our own bug.
    """
    return _say(CONDITIONS, kind, reason, facts)


def say_of_compactor(kind: str, reason: str, **facts: object) -> Condition:
    """The same of a Compactor."""
    return _say(COMPACTOR_CONDITIONS, kind, reason, facts)


def _say(
    table: Mapping[str, Mapping[str, Case]], kind: str, reason: str, facts: Mapping[str, object]
) -> Condition:
    case = table[kind][reason]
    message = case.message.format_map(facts)
    return Condition(kind=kind, status=case.status, reason=reason, message=message)
