"""Flows: a graph of executions in one partition, created, grown and cancelled as a whole."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.dependency import EdgeGroupSnapshot
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, FlowId, Namespace, TimestampMs

_NOW: frozenset[str] = frozenset({"now"})


class FlowStatus(StrEnum):
    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @classmethod
    def from_public_flow_state(cls, raw: str) -> FlowStatus:
        """open, running and blocked are all active; a word from a newer version is UNKNOWN, not an error."""
        if raw in ("open", "running", "blocked"):
            return cls.ACTIVE
        return cls(raw) if raw in ("completed", "failed", "cancelled") else cls.UNKNOWN


class CancelFlowPolicy(StrEnum):
    FLOW_ONLY = "flow_only"
    """No new claims; members not yet claimed stay blocked."""
    CANCEL_ALL = "cancel_all"
    CANCEL_PENDING = "cancel_pending"
    """Members that never started; the others finish."""


class NoWait(msgspec.Struct, frozen=True, tag_field="type", tag="no_wait"):
    pass


class WaitTimeout(msgspec.Struct, frozen=True, tag_field="type", tag="wait_timeout"):
    timeout_ms: int

    def __post_init__(self) -> None:
        checks.span_ms(self.timeout_ms, "timeout_ms")


class WaitIndefinite(msgspec.Struct, frozen=True, tag_field="type", tag="wait_indefinite"):
    pass


CancelFlowWait = NoWait | WaitTimeout | WaitIndefinite


# ---- create and grow ---------------------------------------------------------------------------------


class FlowCreated(Outcome, tag="created"):
    flow_id: FlowId


class FlowAlreadySatisfied(Outcome, tag="already_satisfied"):
    flow_id: FlowId


CreateFlowResult = FlowCreated | FlowAlreadySatisfied


class CreateFlowArgs(Args[CreateFlowResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    flow_kind: str
    """The caller's word for it; the engine does not read it."""
    namespace: Namespace
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        ids.check_id(self.flow_id)
        checks.text(self.flow_kind, "flow_kind", limits.NAME_BYTES)
        ids.check_name(self.namespace, "namespace")


class Added(Outcome, tag="added"):
    execution_id: ExecutionId
    new_node_count: int


class AlreadyMember(Outcome, tag="already_member"):
    execution_id: ExecutionId
    node_count: int


AddExecutionToFlowResult = Added | AlreadyMember


class AddExecutionToFlowArgs(Args[AddExecutionToFlowResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    execution_id: ExecutionId
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        ids.check_id(self.flow_id)
        ids.check_id(self.execution_id)
        if ids.partition_of(self.flow_id) != ids.partition_of(self.execution_id):
            raise InvalidArgument(f"{self.execution_id} lives in another partition than {self.flow_id}: "
                                  "create members with an id of the flow's partition")


# ---- cancel ------------------------------------------------------------------------------------------


class FlowCancelled(Outcome, tag="cancelled"):
    """On a repeated call `member_execution_ids` may be cut to a page."""

    cancellation_policy: str
    member_execution_ids: list[ExecutionId]


class CancellationScheduled(Outcome, tag="cancellation_scheduled"):
    """The flow is cancelled; its members follow in the background."""

    cancellation_policy: str
    member_count: int
    member_execution_ids: list[ExecutionId]


class PartiallyCancelled(Outcome, tag="partially_cancelled"):
    """The flow is cancelled; the failed members are retried in the background."""

    cancellation_policy: str
    member_execution_ids: list[ExecutionId]
    failed_member_execution_ids: list[ExecutionId]


class FlowAlreadyTerminal(Outcome, tag="already_terminal"):
    stored_cancellation_policy: str | None
    stored_cancel_reason: str | None
    member_execution_ids: list[ExecutionId]


CancelFlowResult = FlowCancelled | CancellationScheduled | PartiallyCancelled
CancelFlowHeader = FlowCancelled | FlowAlreadyTerminal
"""What the atomic part answers, before members are cancelled one by one."""


class CancelFlowArgs(Args[CancelFlowResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    reason: str
    cancellation_policy: CancelFlowPolicy
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.size(self.reason, "reason", limits.REASON_BYTES, code="invalid_input")
        if self.cancellation_policy not in list(CancelFlowPolicy):
            known = ", ".join(CancelFlowPolicy)
            raise InvalidArgument(f"cancellation_policy {self.cancellation_policy!r:.40}: use one of {known}")


# ---- views -------------------------------------------------------------------------------------------


class FlowSnapshot(Outcome, tag="flow"):
    flow_id: FlowId
    flow_kind: str
    namespace: Namespace
    public_flow_state: str
    """open, running, blocked, cancelled, completed or failed."""
    graph_revision: int
    """Rises with every change of the graph; writers name the one they saw."""
    node_count: int
    edge_count: int
    created_at: TimestampMs
    last_mutation_at: TimestampMs
    cancelled_at: TimestampMs | None
    cancel_reason: str | None
    cancellation_policy: str | None
    tags: dict[str, str]
    edge_groups: list[EdgeGroupSnapshot]
    """One per execution that has an incoming edge."""

    @property
    def status(self) -> FlowStatus:
        return FlowStatus.from_public_flow_state(self.public_flow_state)


class FlowSummary(Row):
    flow_id: FlowId
    created_at: TimestampMs
    status: FlowStatus


class ListFlowsPage(Outcome, tag="flows"):
    flows: list[FlowSummary]
    next_cursor: FlowId | None = None


class CompletionPayload(msgspec.Struct, frozen=True, kw_only=True):
    """What a subscriber to completions receives."""

    execution_id: ExecutionId
    outcome: str
    payload_bytes: bytes | None = None
    produced_at_ms: TimestampMs
    flow_id: FlowId | None = None
