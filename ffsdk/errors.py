"""What users raise in handlers, what waiting for a job raises, and the engine's own errors under one roof.

`EngineError` and its families are those of `ffcore.errors`; the family tells what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ffcore import checks
from ffcore.errors import (
    AdmissionDenied,
    BudgetExceeded,
    CapabilityMismatch,
    ClaimGrantInvalid,
    Conflict,
    EngineBug,
    EngineError,
    FenceRequired,
    IdempotencyConflict,
    Incompatible,
    InvalidArgument,
    InvalidRequest,
    InvalidToken,
    NotFound,
    NotInitialised,
    Rejected,
    StaleLease,
    StoreFull,
    Suspended,
    Terminal,
    Unauthorized,
    Unavailable,
    WrongState,
)
from ffsdk.times import Duration, span_ms

# ---- raised by handlers --------------------------------------------------------------------------------


class Failure(Exception):
    """Fail this attempt with a reason and a category; whether a retry follows is the task's `retry`."""

    def __init__(self, reason: str, *, category: str = "error") -> None:
        checks.text(category, "category", 64)
        if any(c.isspace() for c in category):
            raise InvalidArgument(f"category {category!r:.60} holds a space: use one word")
        self.reason, self.category = reason, category
        super().__init__(reason)


class Fatal(Failure):
    """Fail the job for good: no retry, whatever the task says."""

    def __init__(self, reason: str, *, category: str = "fatal") -> None:
        super().__init__(reason, category=category)


class RetryAfter(Failure):
    """Fail this attempt and, if retries are left, run the next one after `delay` (seconds or timedelta)."""

    def __init__(self, delay: Duration, reason: str = "", *, category: str = "retry_after") -> None:
        self.delay_ms = span_ms(delay, "RetryAfter")
        super().__init__(reason or f"retry after {self.delay_ms / 1000:g} s", category=category)


# ---- raised by waiting for a job -----------------------------------------------------------------------


class JobEnded(Exception):
    """A job ended without a value. `execution_id` says which; `outcome` is what `job.outcome()` answers."""

    def __init__(self, message: str, *, execution_id: str, outcome: Any) -> None:
        self.execution_id, self.outcome = execution_id, outcome
        super().__init__(message)


class JobFailed(JobEnded):
    """The job failed for good: `reason`, `category`, `attempts`, and the handler's `traceback` as text."""

    reason: str
    category: str
    attempts: int
    traceback: str


class JobCancelled(JobEnded):
    """The job was cancelled; `reason` says why."""

    reason: str


class JobExpired(JobEnded):
    """The job ran out of time."""


class JobSkipped(JobEnded):
    """The job was skipped: what it depended on did not succeed."""


# ---- raised by submitting many -------------------------------------------------------------------------


class NotAccepted(EngineError):
    """One item of `submit_many` was not accepted; `index` is its place, `__cause__` the engine's answer."""

    code = "not_accepted"

    def __init__(self, index: int, cause: EngineError) -> None:
        self.index, self.cause, self.may_have_applied = index, cause, getattr(cause, "may_have_applied", False)
        super().__init__(f"item {index}: {cause}", code=cause.code, detail=cause.detail)
        self.__cause__ = cause

    def at(self, index: int) -> NotAccepted:
        """The same of an item that stands elsewhere in the whole list."""
        return NotAccepted(index, self.cause)


class SubmitErrors(ExceptionGroup[NotAccepted]):
    """Some items of `submit_many` were not accepted. `jobs` has, per item and in order, the job or None."""

    jobs: list[Any]

    @classmethod
    def of(cls, message: str, errors: Sequence[NotAccepted], jobs: Sequence[Any]) -> SubmitErrors:
        self = cls(message, errors)
        self.jobs = list(jobs)
        return self

    def derive(self, excs: Sequence[Any], /) -> Any:
        """What `except*` and `split` make of a part of it: the same jobs, fewer errors."""
        return SubmitErrors.of(self.message, excs, self.jobs)


# ---- not yet -------------------------------------------------------------------------------------------

NOT_YET = {
    "budget": "budget=",
    "quota": "quota=",
    "unique": "unique=",
}
"""Options of the API that this release takes by name only to refuse them: none is ignored silently."""


def refuse_not_yet(**given: object) -> None:
    """InvalidArgument, code `unsupported`, for the first option given that no part of the engine reads yet."""
    for name, value in given.items():
        if value is not None and name in NOT_YET:
            raise InvalidArgument(f"{NOT_YET[name]} is not part of this release yet: leave it out", code="unsupported")


__all__ = [
    "EngineError", "Rejected", "Unavailable", "EngineBug", "InvalidArgument", "InvalidRequest", "NotInitialised",
    "Incompatible", "NotFound", "StaleLease", "FenceRequired", "Terminal", "WrongState", "ClaimGrantInvalid",
    "CapabilityMismatch", "IdempotencyConflict", "InvalidToken", "BudgetExceeded", "AdmissionDenied", "Conflict",
    "Unauthorized", "StoreFull", "Suspended",
    "Failure", "Fatal", "RetryAfter",
    "JobEnded", "JobFailed", "JobCancelled", "JobExpired", "JobSkipped",
    "NotAccepted", "SubmitErrors", "refuse_not_yet",
]  # fmt: skip
