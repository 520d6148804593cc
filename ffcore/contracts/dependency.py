"""Dependencies: edges between executions of a flow, and the policy of an execution's incoming edges."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, Literal

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row
from ffcore.errors import InvalidArgument
from ffcore.ids import EdgeId, ExecutionId, FlowId, TimestampMs

_NOW: frozenset[str] = frozenset({"now"})

SUCCESS_ONLY = "success_only"


# ---- edges -------------------------------------------------------------------------------------------


class EdgeSnapshot(Row):

    edge_id: EdgeId
    flow_id: FlowId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: str
    satisfaction_condition: str
    data_passing_ref: str | None
    edge_state: str
    """staged, pending, satisfied or impossible."""
    created_at: TimestampMs
    created_by: str


class Outgoing(msgspec.Struct, frozen=True, tag_field="type", tag="outgoing"):
    from_node: ExecutionId

    @property
    def subject(self) -> ExecutionId:
        return self.from_node


class Incoming(msgspec.Struct, frozen=True, tag_field="type", tag="incoming"):
    to_node: ExecutionId

    @property
    def subject(self) -> ExecutionId:
        return self.to_node


EdgeDirection = Outgoing | Incoming


class EdgeDescribed(Outcome, tag="edge"):
    edge: EdgeSnapshot


class NoEdge(Outcome, tag="no_edge"):
    pass


class DescribeEdgeArgs(Args[EdgeDescribed | NoEdge]):
    flow_id: FlowId
    edge_id: EdgeId

    def __post_init__(self) -> None:
        ids.check_id(self.flow_id)
        ids.check_name(self.edge_id, "edge_id")


class EdgesPage(Outcome, tag="edges_page"):
    edges: list[EdgeSnapshot]
    cursor: str
    """Empty at the end."""


class ListEdgesArgs(Args[EdgesPage]):
    """The edges of one member, in order."""

    flow_id: FlowId
    execution_id: ExecutionId
    direction: Literal["incoming", "outgoing"]
    cursor: str | None = None
    limit: int = 100

    def __post_init__(self) -> None:
        if self.direction not in ("incoming", "outgoing"):
            raise InvalidArgument(f"direction {checks.shown(self.direction)}: use incoming or outgoing")
        ids.check_together(self.flow_id, self.execution_id)
        checks.page(self.limit)


# ---- results of upstreams ------------------------------------------------------------------------------


class Upstream(Row):
    order: int
    execution_id: ExecutionId
    task: str
    label: str
    kind: str
    """s, a, f or c, as in `MemberEdge`."""
    state: str
    """The upstream's stored state."""
    edge_state: str
    """g, u, S, s or I, as in `MemberEdge`."""
    has_result: bool
    encoding: str
    result: bytes


class Upstreams(Outcome, tag="upstreams"):
    upstreams: list[Upstream]
    next: int
    """Go on after this order; 0: that was all."""


class ReadUpstreamsArgs(Args[Upstreams]):
    """What the upstreams of an execution came to, in the order of its inputs."""

    execution_id: ExecutionId
    after: int = 0
    limit: int = 100

    def __post_init__(self) -> None:
        checks.whole(self.after, "after")
        checks.page(self.limit)


# ---- groups ------------------------------------------------------------------------------------------


class OnSatisfied(StrEnum):
    """What becomes of the other upstreams once enough have succeeded."""

    CANCEL_REMAINING = "cancel_remaining"
    LET_RUN = "let_run"

    def variant_str(self) -> str:
        return self.value


class EdgeGroupState(StrEnum):
    PENDING = "pending"
    SATISFIED = "satisfied"
    IMPOSSIBLE = "impossible"
    CANCELLED = "cancelled"

    @classmethod
    def from_literal(cls, text: str) -> EdgeGroupState:
        """A word this version does not know reads as pending: nobody may start on a guess."""
        return cls(text) if text in ("satisfied", "impossible", "cancelled") else cls.PENDING

    def as_str(self) -> str:
        return self.value


class EdgeAllOf(msgspec.Struct, frozen=True, tag_field="kind", tag="all_of"):
    def variant_str(self) -> str:
        return "all_of"


class EdgeAnyOf(msgspec.Struct, frozen=True, tag_field="kind", tag="any_of"):
    on_satisfied: OnSatisfied = OnSatisfied.CANCEL_REMAINING

    def variant_str(self) -> str:
        return "any_of"


class EdgeQuorum(msgspec.Struct, frozen=True, tag_field="kind", tag="quorum"):
    k: int
    on_satisfied: OnSatisfied = OnSatisfied.CANCEL_REMAINING

    def __post_init__(self) -> None:
        checks.whole(self.k, "k", 1, checks.U32_MAX)

    def variant_str(self) -> str:
        return "quorum"


EdgeDependencyPolicy = EdgeAllOf | EdgeAnyOf | EdgeQuorum


class EdgeGroupSnapshot(Row):
    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy
    total_deps: int
    satisfied_count: int
    failed_count: int
    skipped_count: int
    running_count: int
    """Upstreams whose end the group has not heard of."""
    group_state: EdgeGroupState
    cancelled_count: int = 0


class Set(Outcome, tag="set"):
    pass


class AlreadySet(Outcome, tag="already_set"):
    pass


SetEdgeGroupPolicyResult = Set | AlreadySet


class SetEdgeGroupPolicyArgs(Args[SetEdgeGroupPolicyResult]):
    """Say how many of an execution's upstreams must succeed. The same policy again is harmless."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    downstream_execution_id: ExecutionId
    policy: EdgeDependencyPolicy
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        ids.check_together(self.flow_id, self.downstream_execution_id)


# ---- stage, apply, resolve ---------------------------------------------------------------------------


def _check_edge(
    flow: FlowId, edge: EdgeId, upstream: ExecutionId, downstream: ExecutionId, kind: str, ref: str | None,
    revision: int, what: str,
) -> None:  # fmt: skip
    ids.check_together(flow, upstream, downstream)
    ids.check_name(edge, "edge_id")
    checks.text(ref, "data_passing_ref", limits.EDGE_REF_BYTES)
    if upstream == downstream:
        raise InvalidArgument(f"{upstream} cannot depend on itself", code="self_referencing_edge")
    checks.text(kind, "dependency_kind", limits.NAME_BYTES)
    checks.whole(revision, what)


class Staged(Outcome, tag="staged"):
    edge_id: EdgeId
    new_graph_revision: int


StageDependencyEdgeResult = Staged


class StageDependencyEdgeArgs(Args[StageDependencyEdgeResult]):
    """Add an edge to the graph, provided that it is still the one the caller saw."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    edge_id: EdgeId
    upstream_execution_id: ExecutionId
    downstream_execution_id: ExecutionId
    dependency_kind: str = SUCCESS_ONLY
    data_passing_ref: str | None = None
    expected_graph_revision: int
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        _check_edge(
            self.flow_id, self.edge_id, self.upstream_execution_id, self.downstream_execution_id, self.dependency_kind,
            self.data_passing_ref, self.expected_graph_revision, "expected_graph_revision",
        )  # fmt: skip


class Applied(Outcome, tag="applied"):
    unsatisfied_count: int


class AlreadyApplied(Outcome, tag="already_applied"):
    pass


ApplyDependencyToChildResult = Applied | AlreadyApplied


class ApplyDependencyToChildArgs(Args[ApplyDependencyToChildResult]):
    """Make a staged edge hold its downstream execution back."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    flow_id: FlowId
    edge_id: EdgeId
    downstream_execution_id: ExecutionId
    upstream_execution_id: ExecutionId
    graph_revision: int
    dependency_kind: str = SUCCESS_ONLY
    data_passing_ref: str | None = None
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        _check_edge(
            self.flow_id, self.edge_id, self.upstream_execution_id, self.downstream_execution_id, self.dependency_kind,
            self.data_passing_ref, self.graph_revision, "graph_revision",
        )  # fmt: skip


class Satisfied(Outcome, tag="satisfied"):
    pass


class Impossible(Outcome, tag="impossible"):
    """The downstream execution is skipped."""


class AlreadyResolved(Outcome, tag="already_resolved"):
    pass


ResolveDependencyResult = Satisfied | Impossible | AlreadyResolved
UPSTREAM_OUTCOMES = ("success", "failed", "cancelled", "expired", "skipped")


class ResolveDependencyArgs(Args[ResolveDependencyResult]):
    """Tell an edge how its upstream ended."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    edge_id: EdgeId
    upstream_outcome: str
    now: TimestampMs = TimestampMs(0)
    at: ExecutionId
    """The downstream execution."""

    def __post_init__(self) -> None:
        ids.check_id(self.at)
        ids.check_name(self.edge_id, "edge_id")
        if self.upstream_outcome not in UPSTREAM_OUTCOMES:
            raise InvalidArgument(f"upstream_outcome {self.upstream_outcome!r:.40}: use {', '.join(UPSTREAM_OUTCOMES)}")


class Promoted(Outcome, tag="promoted"):
    pass


PromoteBlockedToEligibleResult = Promoted


class PromoteBlockedToEligibleArgs(Args[PromoteBlockedToEligibleResult]):
    """Make an execution ready whose edges are all satisfied."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    now: TimestampMs = TimestampMs(0)


class Status(Outcome, tag="status"):
    status: str


EvaluateFlowEligibilityResult = Status


class EvaluateFlowEligibilityArgs(Args[EvaluateFlowEligibilityResult]):
    """Ask whether an execution's flow lets it run; changes nothing."""

    execution_id: ExecutionId
