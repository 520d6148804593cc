"""Flows: a graph of executions in one partition, created, grown and cancelled as a whole."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.dependency import EdgeGroupSnapshot
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, FlowId, LaneId, Namespace, PartitionKey, TimestampMs

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
        ids.check_together(self.flow_id, self.execution_id)


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
    """Cancel a flow; the members follow in the background, or before the answer if it is to wait for them.

    Again, or on a cancelled flow: the first answer's policy and members. One that has ended otherwise is refused,
    `flow_already_terminal`.
    """

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW
    COMPOSED: ClassVar[bool] = True

    flow_id: FlowId
    reason: str
    cancellation_policy: CancelFlowPolicy
    now: TimestampMs = TimestampMs(0)
    wait: CancelFlowWait = NoWait()

    def __post_init__(self) -> None:
        ids.check_id(self.flow_id)
        checks.size(self.reason, "reason", limits.REASON_BYTES, code="invalid_input")
        if self.cancellation_policy not in list(CancelFlowPolicy):
            known = ", ".join(CancelFlowPolicy)
            raise InvalidArgument(f"cancellation_policy {self.cancellation_policy!r:.40}: use one of {known}")


class FlowCancelBegun(Outcome, tag="cancelled"):
    """The flow is cancelled, this call or an earlier one did it."""

    cancellation_policy: str
    member_execution_ids: list[ExecutionId]
    """The first 1,000."""
    member_count: int


class CancelFlowWireArgs(Args[FlowCancelBegun | FlowAlreadyTerminal]):
    """Mark a flow cancelled and begin with its members."""

    FUNCTION: ClassVar[str] = "ff_cancel_flow"
    WIRE: ClassVar[bool] = True

    flow_id: FlowId
    reason: str
    cancellation_policy: str


# ---- views -------------------------------------------------------------------------------------------


class FlowInfo(Outcome, tag="flow"):
    """A flow as its record and counters have it: exact at the moment of the call, at a cost without regard to size."""

    flow_id: FlowId
    flow_kind: str
    namespace: Namespace
    name: str
    state: str
    """staging, live, ended or purging."""
    public_flow_state: str
    """open, running, blocked, completed, failed or cancelled."""
    graph_revision: int
    node_count: int
    edge_count: int
    created_at: TimestampMs
    last_mutation_at: TimestampMs
    ended_at: TimestampMs | None
    cancelled_at: TimestampMs | None
    cancel_reason: str | None
    cancellation_policy: str | None
    resolving: int
    """Members that have ended and whose edges are not all resolved yet."""
    payload_bytes: int
    counts: dict[str, int]
    """Members by group of states: ready (reclaimable and revoked with it), delayed, blocked, active, suspended,
    completed, failed, cancelled, expired, skipped. A group without members may be missing."""
    tags: dict[str, str]

    @property
    def ended(self) -> bool:
        return self.state in ("ended", "purging")

    @property
    def unfinished(self) -> int:
        """Members that have not ended."""
        return sum(self.counts.get(word, 0) for word in ("ready", "delayed", "blocked", "active", "suspended"))


class ReadFlowArgs(Args[FlowInfo]):
    flow_id: FlowId


class AwaitFlowArgs(Args[FlowInfo]):
    """Read a flow and, while it has not ended, register a client to be told of its end, as `AwaitArgs` does: the
    notice is ``<uuid> <public state>`` with the flow's uuid."""

    flow_id: FlowId
    client: str


class MemberEdge(Row):
    upstream_execution_id: ExecutionId
    kind: str
    """s: success_only, a: always, f: on_failure, c: from a spawned child."""
    state: str
    """g: staged, not applied; u: unresolved; S: satisfied; s: satisfied, and the group was decided; I: impossible."""


class Member(Row):
    number: int
    """From 1, in the order the members came."""
    execution_id: ExecutionId
    task: str
    lane_id: LaneId
    state: str
    """A stored state."""
    reason: str
    """Why it is blocked or delayed; empty: it is neither."""
    next: str
    """How its next attempt begins."""
    started: bool
    label: str
    group: str
    """Its incoming edges as the store counts them (`ffcore.flows.Group.parse`); empty: it has none."""
    edges: list[MemberEdge]
    """In order; only where asked for."""


class MembersPage(Outcome, tag="members"):
    members: list[Member]
    next: int
    """Go on after this number; 0: that was all."""


class ReadMembersArgs(Args[MembersPage]):
    """Members behind a number, in order; a page may be short where there are many edges."""

    flow_id: FlowId
    after: int = 0
    limit: int = 100
    edges: bool = False

    def __post_init__(self) -> None:
        checks.whole(self.after, "after")
        checks.page(self.limit)


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


class DescribeFlowArgs(Args[FlowSnapshot]):
    """A flow with the groups of all its members: it reads them page by page, so a member may move in between."""

    COMPOSED: ClassVar[bool] = True

    flow_id: FlowId


class ListedFlow(Row):
    flow_id: FlowId
    created_at: TimestampMs
    public_flow_state: str
    node_count: int
    name: str


class FlowsPage(Outcome, tag="flows_page"):
    flows: list[ListedFlow]
    cursor: str
    """Empty at the end. A page may be short, even empty, and still have a cursor."""


class ListFlowsArgs(Args[FlowsPage]):
    """A page of a partition's flows, by id."""

    partition: PartitionKey
    cursor: str | None = None
    limit: int = 100
    status: str | None = None
    """A public state, or `active` for open, running and blocked; None: all."""

    def __post_init__(self) -> None:
        checks.page(self.limit)


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
