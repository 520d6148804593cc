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
    JournalFull,
    NotFound,
    NotInitialised,
    Rejected,
    SecretMissing,
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
        # An exception, as in Failure(error), is taken by its text.
        self.reason, self.category = reason if isinstance(reason, str) else str(reason), category
        super().__init__(self.reason)


class Fatal(Failure):
    """Fail the job for good: no retry, whatever the task says."""

    def __init__(self, reason: str, *, category: str = "fatal") -> None:
        super().__init__(reason, category=category)


class RetryAfter(Failure):
    """Fail this attempt and, if retries are left, run the next one after `delay` (seconds or timedelta)."""

    def __init__(self, delay: Duration, reason: str = "", *, category: str = "retry_after") -> None:
        self.delay_ms = span_ms(delay, "RetryAfter")
        super().__init__(reason or f"retry after {self.delay_ms / 1000:g} s", category=category)


class ContinueAs(BaseException):
    """``raise ff.ContinueAs(payload)``: finish this run and begin the next with another payload of the task's type and
    an empty journal, under the same id; who waits for the job goes on waiting. For loops that record without end.

    Not an Exception, so that a handler's ``except Exception`` cannot swallow it.
    """

    def __init__(self, payload: Any = None) -> None:
        self.payload = payload
        super().__init__("the handler begins a new run")


# ---- raised by steps --------------------------------------------------------------------------------------


class StepConflict(Fatal):
    """The handler's code and its journal disagree: an earlier run recorded something else at this place.

    Fails the job for good unless it is caught; with the code put right, `job.replay(mode="resume")` goes on from what
    is recorded, `mode="fresh"` begins anew. `name`: the step.
    """

    def __init__(self, reason: str, *, name: str) -> None:
        self.name = name
        super().__init__(reason, category="step_conflict")

    @classmethod
    def of(cls, name: str, key: str, recorded: Sequence[Any], *, kind: str = "") -> StepConflict:
        """recorded: the journal's entries of this name; kind: what is asked for, where that is what differs."""
        shown = "; ".join(
            f"{e.kind} {e.name!r} [{e.key}], {e.status}, attempt {e.attempt}, {e.value[:60].decode(errors='replace')}"
            for e in recorded[:3]
        )
        more = f" and {len(recorded) - 3} more" if len(recorded) > 3 else ""
        asked = f"{kind} {name!r}" if kind else f"{name!r} with other arguments"
        return cls(
            f"this run asks for {asked} [{key}], and an earlier run recorded: {shown}{more}. Ask in the same way in "
            "every run: no clock, no random number, no order that varies; for changed code raise the task's version=",
            name=name,
        )


class StepInterrupted(Fatal):
    """A step that must not begin twice (``at_most_once=True``) began in an earlier run, and nobody knows how it ended.

    Find out, and go on accordingly. Not caught, it fails the job for good. `name`: the step.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"step {name!r} began in an earlier run and nobody knows how it ended: find out whether it had its effect",
            category="step_interrupted",
        )


# ---- raised at gates --------------------------------------------------------------------------------------


class GateTimeout(Fatal):
    """Nothing came in time, and the handler had asked to be told: ``on_timeout="resume"``. The gates are still open.

    Not caught, it fails the job for good: the wait is recorded, so another attempt would run into it again.
    """

    def __init__(self, what: str, waited_ms: int, signals: Sequence[Any] = ()) -> None:
        self.waited = waited_ms / 1000
        """Seconds."""
        self.signals = list(signals)
        """Those that had come (`ffsdk.Signal`), too few or not the right ones."""
        super().__init__(f"nothing came to {what} within {self.waited:g} s", category="gate_timeout")


class InvalidSignal(Fatal):
    """A signal came whose value is not of the gate's type. `raw`: what was sent.

    Not caught, it fails the job for good: the signal is recorded, so another attempt would read it again.
    """

    def __init__(self, reason: str, *, gate: str, raw: bytes | None) -> None:
        self.gate, self.raw = gate, raw
        super().__init__(reason, category="invalid_signal")


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


__all__ = [
    "EngineError", "Rejected", "Unavailable", "EngineBug", "InvalidArgument", "InvalidRequest", "NotInitialised",
    "SecretMissing", "Incompatible", "NotFound", "StaleLease", "FenceRequired", "Terminal", "WrongState",
    "ClaimGrantInvalid",
    "CapabilityMismatch", "IdempotencyConflict", "InvalidToken", "BudgetExceeded", "AdmissionDenied", "Conflict",
    "Unauthorized", "StoreFull", "JournalFull", "Suspended",
    "Failure", "Fatal", "RetryAfter", "ContinueAs", "StepConflict", "StepInterrupted", "GateTimeout", "InvalidSignal",
    "JobEnded", "JobFailed", "JobCancelled", "JobExpired", "JobSkipped",
    "NotAccepted", "SubmitErrors",
]  # fmt: skip
