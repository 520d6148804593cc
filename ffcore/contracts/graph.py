"""A whole graph in one submit: its tasks, its nodes, what each waits for. This engine's own; the seeds have none.

Callers build `SubmitFlowArgs`; the backend checks the graph (`ffcore.flows`), sorts it and sends it by chunks.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.dependency import EdgeAllOf, EdgeDependencyPolicy
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, FlowId, Namespace

# ---- answers -------------------------------------------------------------------------------------------


class FlowSubmitted(Outcome, tag="submitted"):
    """The graph stands, all of it."""

    flow_id: FlowId
    public_flow_state: str
    node_count: int


class FlowDuplicate(Outcome, tag="duplicate"):
    """The same graph was submitted before under this id."""

    flow_id: FlowId
    public_flow_state: str


class FlowStaged(Outcome, tag="staged"):
    next_chunk: int


# ---- submit --------------------------------------------------------------------------------------------


class FlowPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A task with options that several nodes share; in its place among a call's `plans` on the wire too."""

    execution_kind: str
    lane_id: str
    version: int = 1
    priority: int = 0
    policy: str | None = None
    """JSON of an ExecutionPolicy."""
    payload_encoding: str | None = None
    delay_until: int | None = None
    execution_deadline_at: int | None = None

    def __post_init__(self) -> None:
        ids.check_name(self.execution_kind, "task")
        ids.check_name(self.lane_id, "lane")
        checks.whole(self.version, "version", 1, limits.VERSION_MAX)
        checks.priority(self.priority)
        checks.text(self.payload_encoding, "payload_encoding", limits.NAME_BYTES)
        checks.whole(self.delay_until, "delay_until")
        checks.whole(self.execution_deadline_at, "execution_deadline_at")


class FlowNode(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of a graph. Checked with the whole graph (`ffcore.flows`), since there may be 100,000."""

    execution_id: ExecutionId
    plan: int = 0
    """Place in `plans`."""
    digest: bytes
    """16 bytes, as in `NewExecution`."""
    payload: bytes | None = None
    """None: it gets what its upstreams returned."""
    fairness_key: str | None = None
    tags: bytes | None = None
    """As in `NewExecution`."""
    label: str | None = None
    """What people call it: its key or its name."""
    admission: str | None = None
    """As in `NewExecution`."""
    upstreams: list[tuple[int, str]] = []
    """Place in `nodes` and kind (success_only, always, on_failure) of each edge, in the order of the inputs."""
    policy: EdgeDependencyPolicy = EdgeAllOf()


class SubmitFlowArgs(Args[FlowSubmitted | FlowDuplicate]):
    """Create a flow with all its nodes and edges. Nothing of it runs before all of it stands; sending it again is
    harmless. Nodes may stand in any order."""

    COMPOSED: ClassVar[bool] = True

    flow_id: FlowId
    namespace: Namespace
    flow_kind: str = ""
    name: str = ""
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    creator_identity: str = ""
    digest: bytes = b""
    """16 bytes that tell a repeat from a conflict; empty: made of the whole graph (`ffcore.flows.flow_digest`)."""
    plans: list[FlowPlan]
    nodes: list[FlowNode]

    def __post_init__(self) -> None:
        ids.check_id(self.flow_id)
        ids.check_name(self.namespace, "namespace")
        checks.size(self.flow_kind, "flow_kind", limits.NAME_BYTES, code="invalid_input")
        checks.size(self.name, "name", limits.KEY_BYTES, code="invalid_input")
        checks.size(self.creator_identity, "creator_identity", limits.KEY_BYTES, code="invalid_input")
        checks.tags(self.tags)
        if len(self.digest) not in (0, 16):
            raise InvalidArgument(f"digest has {len(self.digest)} bytes, not 16")


class NodeRow(Row):
    """One node on its way. Its number is its place in the whole graph, from 1."""

    execution_id: ExecutionId
    plan: int
    """Place in the call's `plans`, from 1."""
    digest: bytes
    payload: bytes | None
    fairness_key: str | None
    tags: bytes | None
    label: str | None
    group: str
    """``A``, ``O c`` or ``Q 2 l``: all of, any of, quorum of 2; c: the others are cancelled, l: they run on."""
    edges: str
    """``12s,13a``: numbers of upstreams, all lower than the node's own, each with the letter of the edge's kind."""
    admission: str | None = None


class SubmitFlowWireArgs(Args[FlowSubmitted | FlowStaged | FlowDuplicate]):
    """One chunk of a graph; they go one after another, and the last one makes the flow live."""

    FUNCTION: ClassVar[str] = "ff_submit_flow"
    WIRE: ClassVar[bool] = True

    flow_id: FlowId
    namespace: Namespace
    flow_kind: str
    name: str
    digest: bytes
    chunk: int
    """From 1."""
    last: bool
    node_total: int
    edge_total: int
    tags: dict[str, str]
    creator_identity: str
    plans: list[FlowPlan]
    nodes: list[NodeRow]


class FlowAborted(Outcome, tag="aborted"):
    """What was staged is being removed."""


class FlowNotStaging(Outcome, tag="not_staging"):
    """Nothing is staged under this id and digest."""


class AbortFlowArgs(Args[FlowAborted | FlowNotStaging]):
    """Give up a graph of which some chunks have been sent."""

    flow_id: FlowId
    digest: bytes
