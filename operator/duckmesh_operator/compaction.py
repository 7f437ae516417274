"""What a Compactor has to do: which Tenants are its own, which of them need a run now, how their runs went. Pure.

The Jobs themselves are the memory: the newest one of a Tenant tells what was tried last, so that whoever decides again
from the same objects decides the same. Of a time that passed while nobody looked one run is made, however many passed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from duckmesh_operator.lag import LagReport
from duckmesh_operator.manifest import Json, dig, list_at, number_at, object_at, text_at
from duckmesh_operator.model import Compactor, Meta
from duckmesh_operator.names import (
    ANNOTATION_ATTEMPT,
    ANNOTATION_GENERATION,
    ANNOTATION_INTEGRITY,
    COMPACTOR,
    LABEL_TENANT,
    LABEL_TENANT_UID,
    compact_job,
)

#: A failed run is tried again after this time, twice as long each time, up to the second.
RETRY_AFTER: Final = timedelta(minutes=1)
RETRY_AT_MOST: Final = timedelta(hours=1)
#: A run that ended well and left the debt above the trigger could not do more: it is not repeated at once.
REST: Final = timedelta(minutes=10)
#: How long the catalog may take to show what a Job that ended said of its run.
SETTLE: Final = timedelta(seconds=20)
#: A Job without a running pod for this long waits for something that it does not get by itself.
HELD_AFTER: Final = timedelta(minutes=3)
#: So many Jobs that wait for their pods take no room from others: they may all come up at once.
HELD_AT_MOST: Final = 10

_RESULTS: Final = ("Succeeded", "Partial", "Failed")
_LONGEST_ERROR: Final = 500
_LONGEST_TABLE: Final = 128
_MOST_TABLES: Final = 5
_TOO_LONG: Final = "DeadlineExceeded"
_LARGEST: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A run as the API server has it.

    Attributes:
        name: Of the Job, and the run's id.
        uid: Of the Job.
        owner: Uid of its Compactor.
        tenant: Name of its Tenant.
        tenant_uid: Uid of its Tenant.
        created: When it was made.
        ended: When it ended; None while it runs.
        why: Reason of its failure; empty when it did not fail.
        attempt: How many in a row, with the failed ones before it.
        generation: Of the Compactor's spec it was made by.
        deep: It checks all files.
        up: A pod of it runs or ran.
    """

    name: str
    uid: str
    owner: str
    tenant: str
    tenant_uid: str
    created: datetime
    ended: datetime | None = None
    why: str = ""
    attempt: int = 1
    generation: int = 0
    deep: bool = False
    up: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a run went.

    Attributes:
        name: Its id, the name of its Job.
        tenant: Name of its Tenant.
        finished: When it ended.
        result: `Succeeded`, `Partial` or `Failed`.
        started: When it started.
        files_in: Files read.
        files_out: Files written.
        bytes_rewritten: Bytes written.
        error: Why it failed.
        why: What ended one that is `Partial`: `bytes`, `stopped` or `stuck`; empty when it does not say.
        tables: Those it was stuck at, or some of them.
    """

    name: str
    tenant: str
    finished: datetime
    result: str
    started: datetime | None = None
    files_in: int = 0
    files_out: int = 0
    bytes_rewritten: int = 0
    error: str = ""
    why: str = ""
    tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A Tenant that a Compactor looks after.

    Attributes:
        name: Its name.
        uid: Its uid.
        created: When it was made.
        skipped: Why it can have no run now; empty when it can.
        report: What its lake says; None while it says nothing.
        busy: A Job of another Compactor works on it.
    """

    name: str
    uid: str
    created: datetime
    skipped: str = ""
    report: LagReport | None = None
    busy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a Tenant needs.

    Attributes:
        subject: The Tenant.
        due: A run, as soon as there is room for one.
        behind: There is work for it: a run is due or under way, or the debt is above the trigger.
        at: When that may change by itself; None when it does not.
        deep: The run checks all files.
        attempt: Its number in a row of failures.
        after: Name of the run before it.
        weight: How urgent it is: the debt in units of the trigger.
        last: How the last run went of which that is known; None when it had none.
        settling: The newest has just ended, and how it went is not known yet.
        unchecked: The newest ended Job that was to check all files, while no lake tells of such a check since.
        held: Name of the Job that runs, while no pod of it comes up.
    """

    subject: Subject
    due: bool = False
    behind: bool = False
    at: datetime | None = None
    deep: bool = False
    attempt: int = 1
    after: str = ""
    weight: float = 0.0
    last: Run | None = None
    settling: bool = False
    unchecked: Job | None = None
    held: str = ""


# -------------------------------------------------------------------- whose


def names_tenant(compactor: Compactor, tenant: str, labels: Mapping[str, object]) -> bool:
    """Whether a Compactor's spec names a Tenant of its namespace."""
    if compactor.match_labels is None:
        return compactor.tenant == tenant
    wanted = compactor.match_labels.items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _holds(one, labels) for one in compactor.match_expressions
    )


def older_one(
    compactor: Compactor, others: Iterable[Compactor], tenant: str, labels: Mapping[str, object]
) -> str:
    """The Compactor that a Tenant belongs to instead; empty when it is this one's."""
    rivals = [
        one
        for one in others
        if one.meta.uid != compactor.meta.uid
        and _rank(one.meta) < _rank(compactor.meta)
        and names_tenant(one, tenant, labels)
    ]
    return min(rivals, key=lambda one: _rank(one.meta)).meta.name if rivals else ""


def _rank(meta: Meta) -> tuple[str, str]:
    return meta.created, meta.name


def _holds(expression: Mapping[str, object], labels: Mapping[str, object]) -> bool:
    value, values = labels.get(text_at(expression, "key")), list_at(expression, "values")
    match text_at(expression, "operator"):
        case "In":
            return value is not None and value in values
        case "NotIn":
            return value is None or value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    return False  # a newer schema's: choosing nobody does no harm


# -------------------------------------------------------------------- what was


def parse_job(manifest: Json) -> Job | None:
    """Read a Job; None when it is not one of a Compactor."""
    owners = list_at(manifest, "metadata", "ownerReferences")
    owner = next((one for one in owners if text_at(one, "kind") == COMPACTOR.kind), None)
    created = _time(dig(manifest, "metadata", "creationTimestamp"))
    labels = object_at(manifest, "metadata", "labels")
    if owner is None or created is None:
        return None
    notes = object_at(manifest, "metadata", "annotations")
    ended, why = _end(manifest)
    return Job(
        name=text_at(manifest, "metadata", "name"),
        uid=text_at(manifest, "metadata", "uid"),
        owner=text_at(owner, "uid"),
        tenant=text_at(labels, LABEL_TENANT),
        tenant_uid=text_at(labels, LABEL_TENANT_UID),
        created=created,
        ended=ended,
        why=why,
        attempt=_number(notes.get(ANNOTATION_ATTEMPT), 1),
        generation=_number(notes.get(ANNOTATION_GENERATION), 0),
        deep=notes.get(ANNOTATION_INTEGRITY) == "Deep",
        up=any(number_at(manifest, "status", one) for one in ("ready", "succeeded", "failed")),
    )


def read_run(subject: Subject) -> Run | None:
    """The run that the lake of a Tenant told of last; None when it told of none, or nothing that can be read.

    The Tenant's own login writes it, so it is taken for no more than it says.
    """
    told = (subject.report.run if subject.report is not None else None) or {}
    finished, result = _time(told.get("finishedAt")), text_at(told, "result")
    if finished is None or result not in _RESULTS:
        return None
    return Run(
        name=text_at(told, "id"),
        tenant=subject.name,
        finished=finished,
        result=result,
        started=_time(told.get("startedAt")),
        files_in=bounded(number_at(told, "filesIn")),
        files_out=bounded(number_at(told, "filesOut")),
        bytes_rewritten=bounded(number_at(told, "bytesRewritten")),
        error=text_at(told, "error")[:_LONGEST_ERROR],
        why=text_at(told, "why"),
        tables=tuple(
            one[:_LONGEST_TABLE]
            for one in list_at(told, "tables")[:_MOST_TABLES]
            if isinstance(one, str)
        ),
    )


def bounded(count: int) -> int:
    """A count as a status takes it; one that cannot be would lose the whole status."""
    return min(max(0, count), _LARGEST)


def is_run_of(compactor: Meta, run: Run) -> bool:
    """Whether a run is a Compactor's, by its name."""
    return re.fullmatch(re.escape(compactor.name) + "-[0-9a-f]{12}", run.name) is not None


def conclude(job: Job, run: Run | None, now: datetime) -> Run | None:
    """How a Job went: as the lake says, else as the Job does; None while it runs or that is not known yet."""
    if job.ended is None:
        return None
    if run is not None and tells_of(run, job):
        # Whatever it said before, it did not come to its end.
        late = job.why == _TOO_LONG
        return replace(run, result="Failed", error=_explain(job)) if late else run
    if now - job.ended < SETTLE:
        return None
    return Run(
        name=job.name,
        tenant=job.tenant,
        started=job.created,
        finished=job.ended,
        result="Failed" if job.why else "Succeeded",
        error=_explain(job),
    )


def tells_of(run: Run, job: Job) -> bool:
    """Whether a run is a Job's: a name comes again when a Job is removed before anybody told of it."""
    return run.name == job.name and run.finished >= job.created


def is_held(job: Job, now: datetime) -> bool:
    """Whether a Job waits for its pod for so long that somebody should look."""
    return job.ended is None and not job.up and now - job.created >= HELD_AFTER


def _explain(job: Job) -> str:
    if not job.why:
        return ""
    if job.why == _TOO_LONG:
        return f"Job {job.name} took too long and was ended"
    return f"Job {job.name} ended without saying why ({job.why}); look at its pod with kubectl describe"


def _end(manifest: Json) -> tuple[datetime | None, str]:
    for condition in list_at(manifest, "status", "conditions"):
        kind = text_at(condition, "type")
        # What is bound to fail has failed: its pod may take long to go.
        failed = kind in ("Failed", "FailureTarget")
        if (failed or kind == "Complete") and text_at(condition, "status") == "True":
            why = (text_at(condition, "reason") or kind) if failed else ""
            return _time(dig(condition, "lastTransitionTime")), why
    return None, ""


# -------------------------------------------------------------------- what is to be done


def find_need(compactor: Compactor, subject: Subject, jobs: Sequence[Job], now: datetime) -> Need:
    """What a Tenant needs.

    Args:
        compactor: Whose Tenant it is.
        subject: The Tenant.
        jobs: Its Jobs by this Compactor, in any order.
        now: Time of day.
    """
    told = read_run(subject)
    newest = max(jobs, key=_age, default=None)
    ended = sorted((one for one in jobs if one.ended is not None), key=_age, reverse=True)
    outcomes = [conclude(one, told, now) for one in ended]
    settling = bool(outcomes) and outcomes[0] is None
    last = next((one for one in outcomes if one is not None), None if ended else told)
    if ended and _is_later(told, ended[0]):
        last, settling = told, False
    weight = _weight(compactor, subject)
    need = Need(
        subject=subject,
        behind=weight >= 1,
        after=_before(told, newest),
        weight=weight,
        last=last,
        settling=settling,
        unchecked=_unchecked(compactor, subject, ended),
    )
    if newest is not None and newest.ended is None:
        # Its pod may be gone already, and the Job not know it yet.
        waits = is_held(newest, now) and not (told is not None and tells_of(told, newest))
        return replace(need, behind=True, held=newest.name if waits else "")
    if newest is not None and settling:
        return replace(need, behind=True, at=(newest.ended or now) + SETTLE)
    return _when(compactor, need, newest, now)


def _before(run: Run | None, job: Job | None) -> str:
    """Name of the last run that is known: that of a Job, or of one that was removed and that only the lake tells of."""
    if job is None or (run is not None and run.finished > (job.ended or job.created)):
        return run.name if run is not None else ""
    return job.name


def _unchecked(compactor: Compactor, subject: Subject, ended: Sequence[Job]) -> Job | None:
    """The newest ended Job that checked all files and of whose check nothing is told."""
    newest = next((one for one in ended if one.deep), None)
    if compactor.integrity is None or newest is None:
        return None
    return None if any(at >= newest.created for at in _checked(subject)) else newest


def _is_later(run: Run | None, job: Job) -> bool:
    """Whether a run, another Compactor's, came after a Job."""
    if run is None or run.name == job.name or job.ended is None:
        return False
    return run.finished > job.ended


def _when(compactor: Compactor, base: Need, job: Job | None, now: datetime) -> Need:
    """The same of a Tenant on which no run is under way."""
    subject, last = base.subject, base.last
    made = max(_created(compactor.meta), subject.created)
    began = max(
        [made, *([job.created] if job else []), *([last.started] if last and last.started else [])]
    )
    moments: list[datetime] = []
    deep = False
    if compactor.schedule is not None:
        moments.append(compactor.schedule.following(began))
    attempt = 1
    failed = last is not None and last.result == "Failed"
    if compactor.integrity is not None:
        check = compactor.integrity.following(max([made, *_checked(subject)]))
        void = base.unchecked
        if void is not None and not failed and void.generation == compactor.meta.generation:
            # It ended without a word of the files, as one does that is told to stop.
            check = max(check, (void.ended or now) + _back_off(void.attempt))
            attempt = void.attempt + 1 if check <= now else 1
        deep = check <= now
        moments.append(check)
    if last is not None and failed:
        tried = job.attempt if job is not None and job.name == last.name else 1
        changed = job is not None and job.generation != compactor.meta.generation
        attempt = 1 if changed else tried + 1
        # What failed is not begun anew by a schedule or by debt before its time.
        moments = [last.finished if changed else last.finished + _back_off(tried)]
    else:
        moments += _by_debt(compactor, base, made)
    at = min(moments, default=None)
    due = at is not None and at <= now
    behind = base.behind or (due and not subject.skipped)
    return replace(base, due=due, behind=behind, at=at, deep=deep, attempt=attempt)


def _by_debt(compactor: Compactor, base: Need, made: datetime) -> list[datetime]:
    """When its debt asks for a run."""
    report, last = base.subject.report, base.last
    if compactor.trigger_small_files is None or report is None or report.debt_at is None:
        return []
    if last is not None and report.debt_at <= last.finished:
        return []  # what that run left is not known yet
    moments: list[datetime] = []
    if base.weight >= 1:
        moments.append(report.debt_at if last is None or _goes_on(last) else last.finished + REST)
    if report.debt_files and compactor.trigger_max_interval_ms is not None:
        interval = timedelta(milliseconds=compactor.trigger_max_interval_ms)
        moments.append((made if last is None else last.finished) + interval)
    return moments


def _goes_on(run: Run) -> bool:
    """Whether it stopped only since it had done its share, and another one can do as much."""
    return run.result == "Partial" and run.why == "bytes" and run.files_in > 0


def _weight(compactor: Compactor, subject: Subject) -> float:
    """The debt in units of the trigger; without one it asks for nothing."""
    report = subject.report
    if report is None or compactor.trigger_small_files is None:
        return 0.0
    files = (report.small_of_a_table or 0) / compactor.trigger_small_files
    deleted = (report.deleted_ratio or 0.0) / (compactor.trigger_deleted_ratio or 1.0)
    return deleted if deleted > files else files  # what is no number is above nothing


def _checked(subject: Subject) -> list[datetime]:
    """When all files were checked last; a catalog that does not tell it by itself may tell it of the last check."""
    report = subject.report
    if report is None:
        return []
    last = report.integrity if text_at(report.integrity, "mode").lower() == "deep" else None
    told = (_time(dig(one, "checkedAt")) for one in (report.deep, last))
    return [at for at in told if at is not None]


def _back_off(attempt: int) -> timedelta:
    doubled: int = 1 << min(max(attempt, 1) - 1, 10)
    return min(RETRY_AFTER * doubled, RETRY_AT_MOST)


def mark_of(compactor: Compactor, need: Need) -> object:
    """What of a Tenant's report decides: while it is the same, nothing new is needed before its time."""
    report = need.subject.report
    if report is None:
        return None
    told = report.run or {}
    left = (
        need.last is not None
        and report.debt_at is not None
        and report.debt_at <= need.last.finished
    )
    return (
        *(told.get("id"), told.get("finishedAt"), *_checked(need.subject), report.lake),
        *(report.debt_at is None, left, bool(report.debt_files)),
        _weight(compactor, need.subject) >= 1,
    )


def choose(needs: Iterable[Need]) -> list[Need]:
    """Which of them can have a run now, the most useful first."""
    due = [one for one in needs if one.due and not one.subject.skipped and not one.subject.busy]
    return sorted(due, key=lambda one: (-one.weight, one.subject.name))


def find_room(compactor: Compactor, running: Sequence[Job], now: datetime) -> int:
    """How many more Jobs may run; one whose pod does not come up takes no other Tenant's place."""
    held = sum(is_held(one, now) for one in running)
    return max(0, compactor.concurrency - len(running) + min(held, HELD_AT_MOST))


def find_spent(needs: Sequence[Need], jobs: Sequence[Job], limit: int, now: datetime) -> list[Job]:
    """Ended Jobs to remove: those beyond the limit of each Tenant.

    The newest stays, whatever the limit, while it is all that tells how the last run went; so does one that was to check
    all files and did not, by which the next such check waits.
    """
    by_tenant = {one.subject.uid: one for one in needs}
    spent: list[Job] = []
    for uid in sorted({one.tenant_uid for one in jobs}):
        ended = [one for one in jobs if one.tenant_uid == uid and one.ended is not None]
        ended.sort(key=_age, reverse=True)
        need = by_tenant.get(uid)
        kept = limit if limit or need is None or _is_told(need, ended) else 1
        spared = need.unchecked if need is not None else None
        spent += [
            one for one in ended[kept:] if one != spared and now - (one.ended or now) >= SETTLE
        ]
    return spent


def _is_told(need: Need, ended: Sequence[Job]) -> bool:
    """Whether the lake itself tells all that the newest ended Job does."""
    told = read_run(need.subject)
    if not ended or told is None or not tells_of(told, ended[0]):
        return False
    return told.result != "Failed" and ended[0].why != _TOO_LONG


def next_job(compactor: Compactor, need: Need) -> str:
    """The name of the run that follows: the same for whoever decides from the same objects."""
    meta = compactor.meta
    return compact_job(meta.name, meta.uid, need.subject.uid, need.after)


def _age(job: Job) -> tuple[datetime, str]:
    return job.created, job.name


def _created(meta: Meta) -> datetime:
    return datetime.fromisoformat(meta.created)


def _time(value: object) -> datetime | None:
    """A moment with a zone, as a status can have it; None for anything else."""
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found if found and found.tzinfo and 2000 <= found.year < 9000 else None


def _number(value: object, default: int) -> int:
    return (
        int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else default
    )
