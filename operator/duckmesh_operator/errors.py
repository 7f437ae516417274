"""Every failure inside the operator: one root, one class per thing the reconcile can do about it.

    OperatorError
    +-- Invalid       the resource asks for something that cannot be: a condition, no retry before it changes
    +-- NotFound      the object is not there
    +-- Conflict      someone else changed or holds it: read again
    +-- Forbidden     the API server or the database refuses our rights: a person must act; retried slowly
    +-- Unavailable   no answer, or "later": retry with back-off
    |   +-- Failing        it answers, with an error
    |   +-- SecretMissing  the platform's Secret is not mounted or lacks a value
    +-- Deaf          the watch is dead: end the process
    SettingsError     the operator's own configuration is wrong; lists every bad value

`kube` and `catalog` turn what their libraries raise into these, by status code or SQLSTATE, never by message text.
Leaf module: imports nothing of the operator.
"""

from __future__ import annotations

from collections.abc import Sequence


class OperatorError(Exception):
    """Root of all failures the operator expects."""


class Invalid(OperatorError):
    """The resource asks for something that cannot be.

    Attributes:
        reason: CamelCase reason of the condition.
        problems: One sentence each, naming field, problem and what to do.
    """

    def __init__(self, problems: Sequence[str], *, reason: str = "Invalid") -> None:
        super().__init__("; ".join(problems))
        self.reason = reason
        self.problems = tuple(problems)


class NotFound(OperatorError):
    """The object is not there."""


class Conflict(OperatorError):
    """Someone else changed or holds the object."""


class Forbidden(OperatorError):
    """Our rights do not reach."""


class Unavailable(OperatorError):
    """No answer, or an answer that says later.

    Attributes:
        retry_after_s: Seconds the other side asked us to wait; None when it did not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Failing(Unavailable):
    """The other side answers, with an error."""


class SecretMissing(Unavailable):
    """A Secret of the platform is not mounted into the operator, or lacks a value."""


class Deaf(OperatorError):
    """The watch does not bring what was written."""


class SettingsError(Exception):
    """The operator's configuration is wrong; the text lists every bad value."""
