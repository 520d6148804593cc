"""Views: what reading an execution answers; snapshots, summaries and pages.

A page's `next_cursor` is passed back as it is; None ends the listing.
"""

from __future__ import annotations

from ffcore.args import Outcome, Row
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    FlowId,
    LaneId,
    LeaseEpoch,
    LeaseId,
    Namespace,
    TimestampMs,
    WaitpointId,
    WorkerInstanceId,
)
from ffcore.states import PublicState, StateVector


class AttemptSummary(Row):
    attempt_id: AttemptId
    attempt_index: AttemptIndex


class LeaseSummary(Row):
    lease_epoch: LeaseEpoch
    worker_instance_id: WorkerInstanceId
    expires_at: TimestampMs
    lease_id: LeaseId
    attempt_index: AttemptIndex
    last_heartbeat_at: TimestampMs | None = None


class ExecutionSnapshot(Outcome, tag="execution"):
    execution_id: ExecutionId
    flow_id: FlowId | None
    lane_id: LaneId
    namespace: Namespace
    public_state: PublicState
    blocking_reason: str | None
    blocking_detail: str | None
    current_attempt: AttemptSummary | None
    """None before the first claim."""
    current_lease: LeaseSummary | None
    """None while no worker holds it."""
    current_waitpoint: WaitpointId | None
    created_at: TimestampMs
    last_mutation_at: TimestampMs
    total_attempt_count: int
    tags: dict[str, str]


class ExecutionContext(Outcome, tag="context"):
    """What a handler needs of an execution; the same for each of its attempts."""

    input_payload: bytes
    execution_kind: str
    tags: dict[str, str]


class ExecutionInfo(Outcome, tag="info"):
    """The full read, with instants as decimal milliseconds in text, as the seed has them."""

    execution_id: ExecutionId
    namespace: str
    lane_id: str
    priority: int
    execution_kind: str
    state_vector: StateVector
    public_state: PublicState
    created_at: str
    started_at: str | None
    completed_at: str | None
    current_attempt_index: int
    flow_id: str | None
    blocking_detail: str


class StateSummary(Row):
    state_vector: StateVector
    current_attempt_index: AttemptIndex


class ExecutionSummary(Row):
    execution_id: ExecutionId
    namespace: str
    lane_id: str
    execution_kind: str
    public_state: str
    priority: int
    created_at: str


class ListExecutionsResult(Outcome, tag="summaries"):
    executions: list[ExecutionSummary]
    total_returned: int


class ListExecutionsPage(Outcome, tag="executions"):
    """Ids in ascending order."""

    executions: list[ExecutionId]
    next_cursor: ExecutionId | None = None


class SuspendedExecutionEntry(Row):
    execution_id: ExecutionId
    suspended_at_ms: int
    """When its timeout is due; `NO_TIMEOUT_MS` if it has none."""
    reason: str


NO_TIMEOUT_MS = 9_999_999_999_999


class ListSuspendedPage(Outcome, tag="suspended_executions"):
    """By timeout, then id."""

    entries: list[SuspendedExecutionEntry]
    next_cursor: ExecutionId | None = None
