"""Graphs as they travel: rows of a submit, its chunks, children of what runs."""

from __future__ import annotations

from typing import Any

import ffcore.contracts as c
from ffcore.args import Args
from ffcore.steps import step_key
from tests.lua import invariants
from tests.lua.engine import P0, Engine, fence, wire

MAIL = c.FlowPlan(execution_kind="send", lane_id="mail")
DIGEST = b"g" * 16


def row(id: Any, edges: str = "", **options: Any) -> c.NodeRow:
    """One node; without edges it has a payload, with some it takes what its upstreams return."""
    given: dict[str, Any] = {
        "plan": 1, "digest": b"d" * 16, "payload": None if edges else b"root", "fairness_key": None, "tags": None,
        "label": None, "group": "A",
    } | options  # fmt: skip
    return c.NodeRow(execution_id=id, edges=edges, **given)


def chunk(flow: Any, nodes: list[c.NodeRow], **options: Any) -> c.SubmitFlowWireArgs:
    """A whole graph in one call, or with `chunk`, `last`, `node_total` and `edge_total` a part of one."""
    edges, tags = sum(len(n.edges.split(",")) if n.edges else 0 for n in nodes), dict[str, str]()
    given: dict[str, Any] = {
        "namespace": "default", "flow_kind": "", "name": "", "digest": DIGEST, "chunk": 1, "last": True,
        "node_total": len(nodes), "edge_total": edges, "tags": tags, "creator_identity": "", "plans": [MAIL],
    } | options  # fmt: skip
    return c.SubmitFlowWireArgs(flow_id=flow, nodes=nodes, **given)


def chunks(flow: Any, nodes: list[c.NodeRow], size: int, **options: Any) -> list[c.SubmitFlowWireArgs]:
    """The same graph in pieces of `size` nodes."""
    whole = chunk(flow, nodes, **options)
    totals = {"node_total": whole.node_total, "edge_total": whole.edge_total}
    pieces = [nodes[at : at + size] for at in range(0, len(nodes), size)]
    return [
        chunk(flow, piece, chunk=n, last=n == len(pieces), **totals, **options) for n, piece in enumerate(pieces, 1)
    ]


async def graph(engine: Engine, *edges: str, **options: Any) -> tuple[Any, list[Any]]:
    """A graph with these edges, one text for each node: the flow's id, and the nodes'."""
    flow = engine.new_id()
    ids = [engine.new_id() for _ in edges]
    answer = await engine.call(chunk(flow, [row(id, text) for id, text in zip(ids, edges, strict=True)], **options))
    assert isinstance(answer, c.FlowSubmitted), answer
    return flow, ids


async def refused(engine: Engine, code: str, args: Args[Any], **fields: Any) -> str:
    """The call is refused with this code, and nothing is written; answers the detail."""
    before = await invariants.read_store(engine.command)
    detail = await engine.refused(code, args, **fields)
    assert await invariants.read_store(engine.command) == before
    return detail


async def states(engine: Engine, ids: list[Any]) -> list[str]:
    return [await engine.state(id) for id in ids]


async def info(engine: Engine, flow: Any) -> c.FlowInfo:
    return await engine.call(c.ReadFlowArgs(flow_id=flow))


def uuid(id: str) -> str:
    return id.rpartition(":")[2]


async def incoming(engine: Engine, id: Any) -> dict[str, str]:
    """An execution's edges from others, and its group, as they are stored."""
    flat = await engine.command("HGETALL", f"ff:{P0}:in:{uuid(id)}")
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


async def outgoing(engine: Engine, id: Any) -> list[str]:
    return [down.decode() for down in await engine.command("LRANGE", f"ff:{P0}:out:{uuid(id)}", 0, -1)]


def spawning(job: c.ClaimedJob, child: Any, flow: Any, *, n: int = 1, **options: Any) -> c.SpawnArgs:
    given: dict[str, Any] = {
        "fence": wire(job), "step": step_key("child", f"{n:08x}", 0), "step_name": "child", "task_version": 1,
        "namespace": "default", "lane_id": "mail", "execution_kind": "send", "input_payload": b"in",
        "digest": b"d" * 16,
    } | options  # fmt: skip
    return c.SpawnArgs(execution_id=job.execution_id, child_id=child, flow_id=flow, **given)


def waiting(job: c.ClaimedJob, *children: Any, **options: Any) -> c.MoveToWaitingChildrenArgs:
    given: dict[str, Any] = {"fence": fence(job), "children": [c.Child(child) for child in children]} | options
    return c.MoveToWaitingChildrenArgs(execution_id=job.execution_id, attempt_index=job.attempt_index, **given)
