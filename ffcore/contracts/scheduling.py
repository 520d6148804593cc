"""Scheduling: grants, the eligible scan, blocking, priority of what waits.

A grant reserves one execution for one worker for a while; it never blocks other executions.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.attempt import NotReclaimable, ReclaimCapExceeded
from ffcore.contracts.partition import Partition
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    ExecutionId,
    LaneId,
    PartitionKey,
    TimestampMs,
    WorkerId,
    WorkerInstanceId,
)
from ffcore.states import REASONS

_NOW: frozenset[str] = frozenset({"now"})


def check_blocking_reason(value: str | None, what: str = "blocking_reason") -> None:
    """Only a reason that a blocked execution can show (`ffcore.states`)."""
    if value is not None and value not in REASONS["blocked"]:
        known = ", ".join(sorted(REASONS["blocked"]))
        raise InvalidArgument(f"{what} {value!r:.60}: use one of {known}", code="invalid_blocking_reason")


# ---- grants ------------------------------------------------------------------------------------------


class ClaimGrant(Row):
    """Leave to claim a fresh attempt. The lane is not in it: whoever asked for the grant named the lane."""

    execution_id: ExecutionId
    partition_key: PartitionKey
    grant_key: str
    expires_at_ms: int

    @property
    def partition(self) -> Partition:
        return Partition.parse(self.partition_key)


class ResumeGrant(Row):
    """Leave to continue an interrupted attempt: same attempt, new epoch."""

    execution_id: ExecutionId
    partition_key: PartitionKey
    grant_key: str
    expires_at_ms: int
    lane_id: LaneId

    @property
    def partition(self) -> Partition:
        return Partition.parse(self.partition_key)


class ReclaimGrant(Row):
    """Leave to start a new attempt after a lease expired or was revoked."""

    execution_id: ExecutionId
    partition_key: PartitionKey
    grant_key: str
    expires_at_ms: int
    lane_id: LaneId

    @property
    def partition(self) -> Partition:
        return Partition.parse(self.partition_key)


class ResumeToken(msgspec.Struct, frozen=True, kw_only=True):
    """A resume grant and the worker that will use it."""

    grant: ResumeGrant
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lease_ttl_ms: int

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)


class Granted(Outcome, tag="granted"):
    execution_id: ExecutionId


IssueClaimGrantOutcome = Granted
IssueClaimGrantResult = Granted
"""The seed's older name of the outcome."""


class IssueClaimGrantArgs(Args[IssueClaimGrantOutcome]):
    """Reserve a ready execution for one worker."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    lane_id: LaneId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    partition: PartitionKey
    capability_hash: str | None = None
    route_snapshot_json: str | None = None
    admission_summary: str | None = None
    worker_capabilities: frozenset[str] = frozenset()
    """Empty serves only executions that require nothing."""
    grant_ttl_ms: int
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.capabilities(self.worker_capabilities)
        checks.grant_ttl_ms(self.grant_ttl_ms)


class ReclaimGranted(Outcome, tag="granted"):
    grant: ReclaimGrant


class ReclaimGrantIssued(Outcome, tag="granted"):
    expires_at_ms: TimestampMs


IssueReclaimGrantOutcome = ReclaimGranted | NotReclaimable | ReclaimCapExceeded
IssueReclaimGrantResult = ReclaimGrantIssued
"""The seed's wire-level twin; callers get `IssueReclaimGrantOutcome`."""


class IssueReclaimGrantArgs(Args[IssueReclaimGrantOutcome]):
    """Reserve an execution whose lease expired or was revoked for one worker."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lane_id: LaneId
    capability_hash: str | None = None
    grant_ttl_ms: int
    route_snapshot_json: str | None = None
    admission_summary: str | None = None
    worker_capabilities: frozenset[str] = frozenset()
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.capabilities(self.worker_capabilities)
        checks.grant_ttl_ms(self.grant_ttl_ms)


# ---- eligible scan -----------------------------------------------------------------------------------


class Eligible(Outcome, tag="eligible"):
    """Highest priority first."""

    execution_ids: list[ExecutionId]


class ScanEligibleArgs(Args[Eligible]):
    """The executions of a lane that could be claimed now, highest priority first."""

    lane_id: LaneId
    partition: PartitionKey
    limit: int

    def __post_init__(self) -> None:
        checks.page(self.limit)


# ---- block and unblock -------------------------------------------------------------------------------


class RouteBlocked(Outcome, tag="blocked"):
    execution_id: ExecutionId


class LuaRejected(Outcome, tag="lua_rejected"):
    """It went another way between pick and block; nothing was changed, go on with the next."""

    message: str


BlockRouteOutcome = RouteBlocked | LuaRejected


class BlockRouteArgs(Args[BlockRouteOutcome]):
    """Hold one ready execution because no worker can serve it."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    lane_id: LaneId
    partition: PartitionKey
    reason_code: str
    reason_detail: str
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        check_blocking_reason(self.reason_code, "reason_code")
        checks.size(self.reason_detail, "reason_detail", limits.REASON_BYTES, code="invalid_input")


class Blocked(Outcome, tag="blocked"):
    pass


BlockExecutionResult = Blocked


class BlockExecutionArgs(Args[BlockExecutionResult]):
    """Hold one execution for a budget, a quota, a route, a lane or an operator."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    blocking_reason: str
    blocking_detail: str | None = None
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        check_blocking_reason(self.blocking_reason)
        checks.size(self.blocking_detail, "blocking_detail", limits.REASON_BYTES, code="invalid_input")


class Unblocked(Outcome, tag="unblocked"):
    pass


UnblockExecutionResult = Unblocked


class UnblockExecutionArgs(Args[UnblockExecutionResult]):
    """Release a held execution to its place in the queue."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    now: TimestampMs = TimestampMs(0)
    expected_blocking_reason: str | None = None
    """Release only if this is still the reason: an old release must not undo a new hold."""

    def __post_init__(self) -> None:
        check_blocking_reason(self.expected_blocking_reason, "expected_blocking_reason")
