"""Attempts: one run of an execution by one worker; claiming starts one, resuming continues one.

A fresh claim and a reclaim open a new attempt index; a resumed claim keeps the index and raises the epoch.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Self

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.lease import LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    LaneId,
    LeaseEpoch,
    LeaseId,
    TimestampMs,
    WorkerId,
    WorkerInstanceId,
)


class AttemptLifecycle(StrEnum):
    """The state of one attempt's own record."""

    CREATED = "created"
    STARTED = "started"
    SUSPENDED = "suspended"
    ENDED_SUCCESS = "ended_success"
    ENDED_FAILURE = "ended_failure"
    ENDED_CANCELLED = "ended_cancelled"
    INTERRUPTED_RECLAIMED = "interrupted_reclaimed"


class AttemptType(StrEnum):
    INITIAL = "initial"
    RETRY = "retry"
    RECLAIM = "reclaim"
    REPLAY = "replay"
    FALLBACK = "fallback"
    COMPENSATION = "compensation"
    """Runs the undo steps of an open saga; the seed does not have it."""


# ---- handle ------------------------------------------------------------------------------------------


class BackendTag(StrEnum):
    VALKEY = "valkey"
    POSTGRES = "postgres"
    SQLITE = "sqlite"


class HandleKind(StrEnum):
    FRESH = "fresh"
    RESUMED = "resumed"
    SUSPENDED = "suspended"
    RECLAIMED = "reclaimed"


HandleOpaque = bytes


class Handle(Row):
    """What a worker holds on an attempt. `opaque` is the engine's; users pass it on and never read it."""

    backend: BackendTag
    kind: HandleKind
    opaque: HandleOpaque

    @classmethod
    def of(cls, kind: HandleKind, execution_id: ExecutionId, fence: LeaseFence) -> Self:
        return cls(BackendTag.VALKEY, kind, f"{execution_id} {fence.wire}".encode())

    def _parts(self) -> list[str]:
        parts = self.opaque.decode(errors="replace").split(" ")
        if self.backend is not BackendTag.VALKEY or len(parts) != 4:
            raise InvalidArgument("this handle was not made by this engine, or names no attempt")
        return parts

    @property
    def execution_id(self) -> ExecutionId:
        return ExecutionId(self._parts()[0])

    @property
    def fence(self) -> LeaseFence:
        return LeaseFence.parse(" ".join(self._parts()[1:]))


STUB_FRESH = Handle(BackendTag.VALKEY, HandleKind.FRESH, b"")
"""Stands where the store answers no handle; the caller builds one with `Handle.of`."""
STUB_RESUMED = Handle(BackendTag.VALKEY, HandleKind.RESUMED, b"")


# ---- claim -------------------------------------------------------------------------------------------


class ClaimedExecution(Row):
    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    attempt_type: AttemptType
    lease_expires_at: TimestampMs
    handle: Handle = STUB_FRESH

    @property
    def fence(self) -> LeaseFence:
        return LeaseFence(self.lease_id, self.lease_epoch, self.attempt_id)


class Claimed(Outcome, tag="claimed"):
    execution: ClaimedExecution


ClaimExecutionResult = Claimed


class ClaimExecutionArgs(Args[ClaimExecutionResult]):
    """Start the attempt that an outstanding claim grant promised this worker; the grant is found by execution."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    lease_id: LeaseId
    lease_ttl_ms: int
    attempt_id: AttemptId
    expected_attempt_index: AttemptIndex
    attempt_policy_json: str = ""
    attempt_timeout_ms: int | None = None
    execution_deadline_at: int | None = None
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)
        checks.whole(self.expected_attempt_index, "expected_attempt_index", 0, checks.U32_MAX)
        checks.span_ms(self.attempt_timeout_ms, "attempt_timeout_ms", 1)
        checks.whole(self.execution_deadline_at, "execution_deadline_at")
        LeaseFence(self.lease_id, LeaseEpoch(0), self.attempt_id)  # its rules for both ids


# ---- claim a resumed one -----------------------------------------------------------------------------


class ClaimedResumedExecution(Row):
    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    lease_expires_at: TimestampMs
    handle: Handle = STUB_RESUMED

    @property
    def fence(self) -> LeaseFence:
        return LeaseFence(self.lease_id, self.lease_epoch, self.attempt_id)


class ResumedClaimed(Outcome, tag="claimed"):
    execution: ClaimedResumedExecution


ClaimResumedExecutionResult = ResumedClaimed


class ClaimResumedExecutionArgs(Args[ClaimResumedExecutionResult]):
    """Continue the attempt of an execution that was resumed: same index, new epoch."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    lease_id: LeaseId
    lease_ttl_ms: int
    current_attempt_index: AttemptIndex
    remaining_attempt_timeout_ms: int | None = None
    """What was left when it was suspended; 0: no timeout."""
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)
        checks.whole(self.current_attempt_index, "current_attempt_index", 0, checks.U32_MAX)
        checks.span_ms(self.remaining_attempt_timeout_ms, "remaining_attempt_timeout_ms")


# ---- reclaim -----------------------------------------------------------------------------------------


class NotReclaimable(Outcome, tag="not_reclaimable"):
    """The execution's lease has neither expired nor been revoked."""

    execution_id: ExecutionId
    detail: str


class ReclaimCapExceeded(Outcome, tag="reclaim_cap_exceeded"):
    """Too many crashes: the execution has failed for good."""

    execution_id: ExecutionId
    reclaim_count: int


class GrantNotFound(Outcome, tag="grant_not_found"):
    """The grant was used, has run out, or never was."""

    execution_id: ExecutionId


class ReclaimClaimed(Outcome, tag="claimed"):
    handle: Handle


ReclaimExecutionOutcome = ReclaimClaimed | NotReclaimable | ReclaimCapExceeded | GrantNotFound


class Reclaimed(Outcome, tag="reclaimed"):
    new_attempt_index: AttemptIndex
    new_attempt_id: AttemptId
    new_lease_id: LeaseId
    new_lease_epoch: LeaseEpoch
    lease_expires_at: TimestampMs


class MaxReclaimsExceeded(Outcome, tag="max_reclaims_exceeded"):
    pass


ReclaimExecutionResult = Reclaimed | MaxReclaimsExceeded
"""The seed's wire-level twin of the outcome; callers get `ReclaimExecutionOutcome`."""


class ReclaimExecutionArgs(Args[ReclaimExecutionOutcome]):
    """Start the new attempt that an outstanding reclaim grant promised this worker."""

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    capability_hash: str | None = None
    lease_id: LeaseId
    lease_ttl_ms: int
    attempt_id: AttemptId
    attempt_policy_json: str = ""
    max_reclaim_count: int | None = None
    """May only lower the policy's cap; None: the policy's."""
    old_worker_instance_id: WorkerInstanceId
    current_attempt_index: AttemptIndex

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)
        checks.whole(self.max_reclaim_count, "max_reclaim_count", 0, checks.U32_MAX)
        checks.whole(self.current_attempt_index, "current_attempt_index", 0, checks.U32_MAX)
        LeaseFence(self.lease_id, LeaseEpoch(0), self.attempt_id)


# ---- progress ----------------------------------------------------------------------------------------


class Updated(Outcome, tag="updated"):
    pass


UpdateProgressResult = Updated


class UpdateProgressArgs(Args[UpdateProgressResult]):
    """Say how far the attempt has come; for people, never for decisions."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now"})

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    progress_pct: int | None = None
    progress_message: str | None = None
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.whole(self.progress_pct, "progress_pct", 0, 100)
        checks.size(self.progress_message, "progress_message", limits.REASON_BYTES, code="invalid_input")
