"""Failures: how an attempt says that it went wrong, and what follows."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome
from ffcore.contracts.lease import CancelSource, LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.ids import AttemptIndex, ExecutionId, TimestampMs


class FailureClass(StrEnum):
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    INFRA_CRASH = "infra_crash"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class FailureReason(msgspec.Struct, frozen=True, kw_only=True):
    message: str
    detail: bytes | None = None


class RetryScheduled(Outcome, tag="retry_scheduled"):
    delay_until: TimestampMs
    next_attempt_index: AttemptIndex
    replayed: bool = False


class TerminalFailed(Outcome, tag="terminal_failed"):
    """No retries left, the failure is not one that is retried, or a cancel was requested."""

    replayed: bool = False


FailExecutionResult = RetryScheduled | TerminalFailed


class FailExecutionArgs(Args[FailExecutionResult]):
    """End the attempt with a failure; the policy decides whether another one follows."""

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    failure_reason: str
    failure_category: str
    retry_policy_json: str = ""
    """Empty: the stored policy's."""
    next_attempt_policy_json: str = ""
    source: CancelSource = CancelSource.LEASE_HOLDER
    retry_after_ms: int | None = None
    """The failure's own wish for the delay; None: the policy's backoff."""
    failure_detail: str = ""
    """Free text for people, such as a traceback."""

    def __post_init__(self) -> None:
        checks.size(self.failure_reason, "failure_reason", limits.REASON_BYTES, code="invalid_input")
        checks.size(self.failure_detail, "failure_detail", limits.REASON_BYTES, code="invalid_input")
        checks.text(self.failure_category, "failure_category", 64)
        if any(c.isspace() for c in self.failure_category):
            raise InvalidArgument(f"failure_category {self.failure_category!r} holds a space: use one word")
        checks.span_ms(self.retry_after_ms, "retry_after_ms")


FailOutcome = FailExecutionResult
"""The seed's name of the same answer where a handle is failed."""
