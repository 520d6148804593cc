"""How a job ended: one class per way to end, made for ``match``.

`job.outcome()` answers one of them; `job.result()` turns all but `Completed` into an exception.
"""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

import msgspec

from ffsdk.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobSkipped

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Completed(msgspec.Struct, Generic[R_co], frozen=True):
    """The handler returned; `value` is what it returned."""

    value: R_co


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """No attempt succeeded and none will follow."""

    reason: str
    category: str
    attempts: int
    """How many were started."""
    traceback: str = ""
    """Of the last one, as text."""


class Cancelled(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody cancelled it."""

    reason: str = ""


class Expired(msgspec.Struct, frozen=True, kw_only=True):
    """Its deadline passed."""

    reason: str = ""


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """What it depended on did not succeed."""

    reason: str = ""


Outcome: TypeAlias = Completed[R] | Failed | Cancelled | Expired | Skipped


def error_of(execution_id: str, outcome: Failed | Cancelled | Expired | Skipped) -> JobEnded:
    """The exception that stands for an end without a value."""
    made: JobEnded
    match outcome:
        case Failed():
            times = "1 attempt" if outcome.attempts == 1 else f"{outcome.attempts} attempts"
            text = f"{execution_id} failed after {times}, category {outcome.category}: {outcome.reason}"
            made = JobFailed(text, execution_id=execution_id, outcome=outcome)
            made.reason, made.category = outcome.reason, outcome.category
            made.attempts, made.traceback = outcome.attempts, outcome.traceback
        case Cancelled():
            why = f": {outcome.reason}" if outcome.reason else ""
            made = JobCancelled(f"{execution_id} was cancelled{why}", execution_id=execution_id, outcome=outcome)
            made.reason = outcome.reason
        case Expired():
            made = JobExpired(f"{execution_id} ran out of time", execution_id=execution_id, outcome=outcome)
        case Skipped():
            made = JobSkipped(f"{execution_id} was skipped", execution_id=execution_id, outcome=outcome)
    return made
