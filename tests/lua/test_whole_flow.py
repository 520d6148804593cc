"""Whole flows through the backend, on servers: a graph of several chunks, its description, a cancel that is waited for.

The parts are `test_submit_flow.py`'s and others'; here it is what callers see.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import flows, limits
from ffcore.errors import Rejected
from tests.lua.engine import Engine
from tests.lua.graphs import info, states


def node(flow: Any, place: int, *upstreams: int, **options: Any) -> c.FlowNode:
    given: dict[str, Any] = {
        "execution_id": flows.unkeyed_member_id(flow, place), "digest": b"d" * 16, "payload": b"in",
        "label": f"n{place}", "upstreams": [(up, "success_only") for up in upstreams],
    } | options  # fmt: skip
    return c.FlowNode(**given)


def submission(flow: Any, nodes: list[c.FlowNode]) -> c.SubmitFlowArgs:
    plan = c.FlowPlan(execution_kind="send", lane_id="mail")
    return c.SubmitFlowArgs(flow_id=flow, namespace="default", name="nightly", plans=[plan], nodes=nodes)  # type: ignore[arg-type]


def fan(flow: Any, n: int) -> list[c.FlowNode]:
    """One before, n beside each other, one behind; given from behind."""
    beside = [node(flow, place, n + 1) for place in range(1, n + 1)]
    return [node(flow, 0, *range(1, n + 1), payload=None), *beside, node(flow, n + 1)]


async def test_a_graph_of_several_chunks_runs_from_its_first_node_to_its_last(engine: Engine) -> None:
    flow, n = engine.new_id(), 450
    nodes = fan(flow, n)
    assert await engine.call(submission(flow, nodes)) == c.FlowSubmitted(flow, "open", n + 2)
    assert await engine.call(submission(flow, nodes)) == c.FlowDuplicate(flow, "open")
    (first,) = await engine.claim(limit=10)
    assert first.execution_id == nodes[-1].execution_id and first.flow_id == flow
    await engine.complete(first)
    while (await info(engine, flow)).resolving:
        await engine.tick()
    done = 0
    while jobs := await engine.claim(limit=50):
        for job in jobs:
            assert (job.execution_id == nodes[0].execution_id) == (done == n)
            await engine.complete(job)
            done += 1
    assert done == n + 1
    found = await info(engine, flow)
    assert (found.public_flow_state, found.counts, found.edge_count) == ("completed", {"completed": n + 2}, 2 * n)


async def test_a_description_has_every_group_as_it_stands(engine: Engine) -> None:
    flow = engine.new_id()
    nodes = [
        node(flow, 0), node(flow, 1), node(flow, 2, 0, 1, policy=c.EdgeQuorum(2, c.OnSatisfied.LET_RUN)),
        node(flow, 3, 0, 2),
    ]  # fmt: skip
    await engine.call(submission(flow, nodes))
    for job in await engine.claim():
        await engine.complete(job)
    found = await engine.call(c.DescribeFlowArgs(flow_id=flow))
    assert (found.node_count, found.edge_count, found.status) == (4, 4, c.FlowStatus.ACTIVE)
    ids = [one.execution_id for one in nodes]
    assert found.edge_groups == [
        c.EdgeGroupSnapshot(ids[2], c.EdgeQuorum(2, c.OnSatisfied.LET_RUN), 2, 1, 0, 0, 1, c.EdgeGroupState.PENDING),
        c.EdgeGroupSnapshot(ids[3], c.EdgeAllOf(), 2, 1, 0, 0, 1, c.EdgeGroupState.PENDING),
    ]
    for up, down, state in ((1, 3, "satisfied"), (2, 3, "pending"), (3, 4, "pending")):
        edge = await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=flows.edge_id(flow, up, down)))
        assert isinstance(edge, c.EdgeDescribed)
        ends = edge.edge.upstream_execution_id, edge.edge.downstream_execution_id, edge.edge.edge_state
        assert ends == (ids[up - 1], ids[down - 1], state)
        assert edge.edge.edge_id == flows.edge_id(flow, up, down)


async def test_a_graph_the_store_refuses_midway_leaves_nothing(engine: Engine) -> None:
    """The id of one node is taken by an execution of another's; that shows with the second chunk."""
    flow = engine.new_id()
    nodes = [node(flow, place) for place in range(limits.FLOW_CHUNK_N + 1)]
    await engine.submit(execution_id=nodes[-1].execution_id)
    with pytest.raises(Rejected) as caught:
        await engine.call(submission(flow, nodes))
    assert caught.value.code == "idempotency_conflict" and nodes[-1].execution_id in str(caught.value)
    for _ in range(5):
        await engine.tick()
    with pytest.raises(Rejected, match="flow_not_found"):
        await info(engine, flow)
    (job,) = await engine.claim(limit=10)
    assert job.execution_id == nodes[-1].execution_id and job.flow_id is None
    assert await engine.call(submission(flow, nodes[:-1])) == c.FlowSubmitted(flow, "open", len(nodes) - 1)


async def test_a_cancel_that_waits_answers_when_every_member_has_ended(engine: Engine) -> None:
    flow, n = engine.new_id(), 3 * limits.EDGES_INLINE_N
    nodes = [node(flow, 0), *(node(flow, place, 0) for place in range(1, n))]
    await engine.call(submission(flow, nodes))
    cancel = c.CancelFlowArgs(flow_id=flow, reason="why", cancellation_policy=c.CancelFlowPolicy.CANCEL_ALL)
    scheduled = await engine.call(cancel)
    assert isinstance(scheduled, c.CancellationScheduled) and scheduled.member_count == n
    waiting = asyncio.ensure_future(engine.call(cancel, wait=c.WaitTimeout(30_000)))
    while not waiting.done():
        await engine.tick()
        await asyncio.sleep(0)
    assert isinstance(await waiting, c.FlowCancelled)
    found = await info(engine, flow)
    assert (found.public_flow_state, found.counts) == ("cancelled", {"cancelled": n})
    assert (found.cancel_reason, found.cancellation_policy) == ("why", "cancel_all")


async def test_a_cancel_tells_who_did_not_end_in_time(engine: Engine) -> None:
    flow = engine.new_id()
    nodes = [node(flow, 0), node(flow, 1, 0)]
    await engine.call(submission(flow, nodes))
    (job,) = await engine.claim()
    ids = [one.execution_id for one in nodes]
    cancel = c.CancelFlowArgs(flow_id=flow, reason="why", cancellation_policy=c.CancelFlowPolicy.CANCEL_PENDING)
    assert await engine.call(cancel) == c.FlowCancelled("cancel_pending", ids)
    assert await states(engine, ids) == ["active", "cancelled"]
    await engine.complete(job)
    flow = engine.new_id()
    nodes = [node(flow, 0)]
    await engine.call(submission(flow, nodes))
    (job,) = await engine.claim()
    everybody = c.CancelFlowArgs(
        flow_id=flow, reason="why", cancellation_policy=c.CancelFlowPolicy.CANCEL_ALL, wait=c.WaitTimeout(0)
    )
    late = c.PartiallyCancelled("cancel_all", [job.execution_id], [job.execution_id])
    assert await engine.call(everybody) == late
    await engine.complete(job)
    assert await engine.call(everybody) == c.FlowCancelled("cancel_all", [job.execution_id])
