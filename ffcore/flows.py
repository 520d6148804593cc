"""Graphs without a database: ids of members and edges, what a graph must be to be sent, the order it is sent in.

Edges that come with their nodes have ids made of both ends' numbers, so that no index of them is kept; the twin of
`edge_id` and `edge_of` stands in `lua/shared/graph.lua`. A graph is checked as a whole before any of it leaves.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple, NoReturn, Self

from ffcore import checks, ids, limits
from ffcore.contracts.dependency import (
    EdgeAllOf,
    EdgeAnyOf,
    EdgeDependencyPolicy,
    EdgeGroupState,
    EdgeQuorum,
    OnSatisfied,
)
from ffcore.contracts.graph import FlowNode, FlowPlan, NodeRow
from ffcore.errors import EngineBug, InvalidArgument
from ffcore.ids import EdgeId, ExecutionId, FlowId

KINDS: Final = {"success_only": "s", "always": "a", "on_failure": "f"}
"""Kind of an edge and its letter; `c` is the edge of a child, which no graph is sent with."""
KIND_OF: Final = {letter: kind for kind, letter in KINDS.items()} | {"c": "child"}
_EDGE: Final = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-8([0-9a-f]{3})-8([0-9a-f]{3}-[0-9a-f]{12})")
_EXECUTION: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
STEP_N: Final = 1_000
"""Nodes checked, or put into rows, in one go: a few milliseconds."""
PATH_N: Final = 12
"""Nodes of a cycle that its error names."""


# ---- ids -----------------------------------------------------------------------------------------------


def edge_id(flow_id: FlowId, upstream: int, downstream: int) -> EdgeId:
    """The id of the edge between two members, given by their numbers."""
    tail = ids.uuid_of(flow_id)[20:]
    return EdgeId(f"{upstream:08x}-{downstream >> 12:04x}-8{downstream & 0xFFF:03x}-8{tail}")


def edge_of(flow_id: FlowId, edge: str) -> tuple[int, int] | None:
    """The numbers an edge's id stands for; None where it was given by somebody, or belongs to another flow."""
    match = _EDGE.fullmatch(edge)
    if match is None or match[4] != ids.uuid_of(flow_id)[20:]:
        return None
    return int(match[1], 16), int(match[2] + match[3], 16)


def implicit_flow(parent: ExecutionId) -> FlowId:
    """The flow an execution that was in none gets with its first child."""
    return FlowId(f"{ids.partition_of(parent)}:{ids.derived_uuid(_seed('implicit', parent), '5')}")


def member_id(flow_id: FlowId, key: str) -> ExecutionId:
    """The id of the member a key names within its flow."""
    return ExecutionId(f"{ids.partition_of(flow_id)}:{ids.uuid8(_seed('key', flow_id, key))}")


def unkeyed_member_id(flow_id: FlowId, place: int) -> ExecutionId:
    """The id of a member without a key: of its place in the graph, so that a graph may be sent again. Nobody can ask
    for it by a key later, so it leaves no tombstone."""
    return ExecutionId(f"{ids.partition_of(flow_id)}:{ids.derived_uuid(_seed('place', flow_id, str(place)), '5')}")


def _seed(*parts: str) -> bytes:
    return "\0".join(("flow", *parts)).encode()


def flow_digest(rows: Sequence[NodeRow]) -> bytes:
    """16 bytes that are the same for the same graph, nodes in the same order: ids, digests, edges, groups."""
    whole = hashlib.sha256("\n".join(f"{row.execution_id} {row.group} {row.edges}" for row in rows).encode())
    whole.update(b"".join(row.digest for row in rows))
    return whole.digest()[:16]


# ---- groups --------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """An execution's incoming edges as the store counts them."""

    policy: EdgeDependencyPolicy
    edges: int
    ok: int
    impossible: int
    failed: int
    """Upstreams that failed or expired."""
    skipped: int
    cancelled: int
    state: EdgeGroupState

    @property
    def unresolved(self) -> int:
        return self.edges - self.ok - self.impossible

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the text of a `Member`."""
        try:
            word, k, mode, *numbers, state = text.split(" ")
            edges, ok, impossible, failed, skipped, cancelled = map(int, numbers)
            return cls(_policy(word, int(k), mode), edges, ok, impossible, failed, skipped, cancelled, _STATES[state])
        except (ValueError, KeyError, InvalidArgument) as wrong:
            raise EngineBug(f"{text!r:.100} is no group of edges") from wrong


_STATES: Final = {
    "p": EdgeGroupState.PENDING, "s": EdgeGroupState.SATISFIED, "i": EdgeGroupState.IMPOSSIBLE,
    "c": EdgeGroupState.CANCELLED,
}  # fmt: skip
_MODES: Final = {"c": OnSatisfied.CANCEL_REMAINING, "l": OnSatisfied.LET_RUN}


def _policy(word: str, k: int, mode: str) -> EdgeDependencyPolicy:
    if word == "A":
        return EdgeAllOf()
    return EdgeAnyOf(_MODES[mode]) if word == "O" else EdgeQuorum(k, _MODES[mode])


def group_text(policy: EdgeDependencyPolicy) -> str:
    """A policy as a submit sends it."""
    if isinstance(policy, EdgeAllOf):
        return "A"
    mode = "c" if policy.on_satisfied == OnSatisfied.CANCEL_REMAINING else "l"
    return f"O {mode}" if isinstance(policy, EdgeAnyOf) else f"Q {policy.k} {mode}"


# ---- a graph -------------------------------------------------------------------------------------------


class Graph(NamedTuple):
    """A graph as it is sent: upstreams before downstreams."""

    rows: list[NodeRow]
    edges: list[int]
    """How many edges each row has."""
    edge_total: int


def compiling(
    flow_id: FlowId, plans: Sequence[FlowPlan], nodes: Sequence[FlowNode]
) -> Generator[None, None, Graph]:  # fmt: skip
    """Check a graph and sort it, or refuse it with what is wrong and where. A row's plan is its place in `plans`. In
    short steps, for an event loop that has others to serve: 100,000 nodes are seconds."""
    _check_size(plans, nodes)
    edge_total = yield from _check_nodes(flow_id, plans, nodes)
    order = topological(nodes)
    number = [0] * len(nodes)
    for n, place in enumerate(order, 1):
        number[place] = n
    rows: list[NodeRow] = []
    counts: list[int] = []
    for n, place in enumerate(order, 1):
        if not n % STEP_N:
            yield
        node = nodes[place]
        edges = ",".join([f"{number[up]}{KINDS[kind]}" for up, kind in node.upstreams])
        rows.append(NodeRow(node.execution_id, node.plan, node.digest, node.payload, node.fairness_key, node.tags,
                            node.label, group_text(node.policy), edges, node.admission))  # fmt: skip
        counts.append(len(node.upstreams))
    return Graph(rows, counts, edge_total)


def topological(nodes: Sequence[FlowNode]) -> list[int]:
    """Places such that every upstream comes before its downstreams. A graph that is in such an order keeps it;
    otherwise a node comes when its place says, right behind those of its upstreams that had not come."""
    if all(up < place for place, node in enumerate(nodes) for up, _ in node.upstreams):
        return list(range(len(nodes)))
    order: list[int] = []
    done, entered = bytearray(len(nodes)), bytearray(len(nodes))
    for start in range(len(nodes)):
        if done[start]:
            continue
        path, ahead = [start], [iter(nodes[start].upstreams)]
        entered[start] = 1
        while path:
            for up, _ in ahead[-1]:
                if done[up]:
                    continue
                if entered[up]:
                    _refuse_cycle(nodes, [*path[path.index(up) :], up])
                entered[up] = 1
                path.append(up)
                ahead.append(iter(nodes[up].upstreams))
                break
            else:
                ahead.pop()
                last = path.pop()
                done[last] = 1
                order.append(last)
    return order


def _refuse_cycle(nodes: Sequence[FlowNode], path: list[int]) -> NoReturn:
    path.reverse()  # the walk went upstream
    shown = [called(nodes[place]) for place in path]
    if len(shown) > PATH_N:
        shown = [*shown[: PATH_N - 2], f"... {len(shown) - PATH_N} more ...", *shown[-2:]]
    raise InvalidArgument(
        f"the graph goes in a circle: {' -> '.join(shown)}; take one of these edges out", code="cycle_detected"
    )


# ---- checks --------------------------------------------------------------------------------------------


def called(node: FlowNode) -> str:
    """A node for people."""
    return checks.shown(node.label or node.execution_id, 60)


def _check_size(plans: Sequence[FlowPlan], nodes: Sequence[FlowNode]) -> None:
    if not nodes:
        raise InvalidArgument("the flow has no nodes: add at least one")
    if not plans:
        raise InvalidArgument("the flow has no plans: each node needs a task")
    if len(nodes) > limits.FLOW_NODES_N:
        raise InvalidArgument(
            f"{len(nodes)} nodes; a flow has {limits.FLOW_NODES_N} at most: make several", code="flow_too_large"
        )
    for plan in plans:
        checks.size(plan.policy, "policy", limits.PAYLOAD_BYTES, code="invalid_policy_json")


def _check_nodes(
    flow_id: FlowId, plans: Sequence[FlowPlan], nodes: Sequence[FlowNode]
) -> Generator[None, None, int]:  # fmt: skip
    """The nodes one by one and against each other; how many edges there are."""
    home = ids.partition_of(flow_id) + ":"
    seen: set[str] = set()
    edge_total = payloads = 0
    for place, node in enumerate(nodes):
        if not (place + 1) % STEP_N:
            yield
        execution_id = node.execution_id
        if not execution_id.startswith(home) or not _EXECUTION.fullmatch(execution_id, len(home)):
            raise InvalidArgument(f"{checks.shown(execution_id, 80)} is no id of the flow's partition {home[:-1]}")
        if execution_id in seen:
            raise InvalidArgument(f"two nodes have the id {execution_id} ({called(node)}): keys must differ")
        seen.add(execution_id)
        if not 0 <= node.plan < len(plans):
            raise InvalidArgument(f"{called(node)} has plan {checks.shown(node.plan)} of {len(plans)}")
        if len(node.digest) != 16:
            raise InvalidArgument(f"the digest of {called(node)} has {len(node.digest)} bytes, not 16")
        if node.fairness_key is not None:
            checks.text(node.fairness_key, "fairness_key")
        if node.label is not None:
            checks.text(node.label, "label")
        if node.payload is None:
            if not node.upstreams:
                raise InvalidArgument(f"{called(node)} has neither a payload nor upstreams whose results it would get")
        else:
            checks.size(node.payload, f"the payload of {called(node)}", limits.PAYLOAD_BYTES)
            payloads += len(node.payload)
        edge_total += _check_edges(place, node, len(nodes))
    if edge_total > limits.FLOW_EDGES_N:
        raise InvalidArgument(
            f"{edge_total} edges; a flow has {limits.FLOW_EDGES_N} at most: put nodes that join between",
            code="flow_too_large",
        )
    if payloads > limits.FLOW_BYTES:
        raise InvalidArgument(
            f"payloads of {payloads} bytes; those of a flow have {limits.FLOW_BYTES} at most together: keep large data "
            "elsewhere", code="flow_too_large",
        )  # fmt: skip
    return edge_total


def _check_edges(place: int, node: FlowNode, nodes_n: int) -> int:
    ups = node.upstreams
    if not ups:
        if not isinstance(node.policy, EdgeAllOf):
            raise InvalidArgument(f"{called(node)} waits for some of no upstreams", code="invalid_dependency")
        return 0
    if len(ups) > limits.FLOW_CHUNK_EDGES_N:
        raise InvalidArgument(
            f"{called(node)} has {len(ups)} upstreams, and {limits.FLOW_CHUNK_EDGES_N} is the limit: put nodes between "
            "that join some of them", code="flow_too_large",
        )  # fmt: skip
    for up, kind in ups:
        if not 0 <= up < nodes_n:
            raise InvalidArgument(
                f"{called(node)} comes after node {checks.shown(up)}, and there are {nodes_n}: name nodes of this flow",
                code="invalid_dependency",
            )
        if up == place:
            raise InvalidArgument(f"{called(node)} cannot depend on itself", code="self_referencing_edge")
        if kind not in KINDS:
            raise InvalidArgument(
                f"an edge to {called(node)} is {checks.shown(kind)}: use {', '.join(KINDS)}", code="invalid_dependency"
            )
    if len(ups) > 1 and len({up for up, _ in ups}) < len(ups):
        raise InvalidArgument(f"{called(node)} names an upstream twice", code="dependency_already_exists")
    if isinstance(node.policy, EdgeQuorum) and node.policy.k > len(ups):
        raise InvalidArgument(
            f"{called(node)} waits for {checks.shown(node.policy.k)} of {len(ups)} upstreams", code="invalid_dependency"
        )
    return len(ups)
