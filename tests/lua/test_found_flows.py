"""Faults of flows that were found by reading, each with what would have shown it."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.edges import grown, join, staging
from tests.lua.engine import P0, Engine, cancel
from tests.lua.graphs import chunks, graph, info, row, spawning, states, uuid, waiting
from tests.lua.members import claimed, end, replay, settle
from tests.lua.test_flow import cancelling

RETRIED = '{"retry_policy":{"max_retries":3,"backoff":{"type":"fixed","delay_ms":5000}}}'


async def test_what_is_skipped_after_it_has_begun_runs_its_compensations_first(engine: Engine) -> None:
    flow, (up, down) = await graph(
        engine, "", "1s", plans=[c.FlowPlan(execution_kind="send", lane_id="mail", policy=RETRIED)]
    )
    (first,) = await claimed(engine, up)
    await end(engine, first, "c")
    (job,) = await claimed(engine, down)
    await engine.command("HSET", f"ff:{P0}:x:{uuid(down)}", "sg", "1", "x", "1")  # it has done what it may have to undo
    await engine.fail(job)
    assert await engine.state(down) == "delayed"
    await replay(engine, up)
    assert await engine.state(down) == "blocked"
    (again,) = await claimed(engine, up)
    await end(engine, again, "f")
    assert await states(engine, [up, down]) == ["failed", "ready"]
    (owed,) = await claimed(engine, down)
    assert owed.attempt_type == "compensation"
    await engine.complete(owed)
    assert await states(engine, [up, down]) == ["failed", "skipped"]
    assert (await info(engine, flow)).public_flow_state == "failed"


async def test_a_child_makes_a_circle_like_any_edge_that_goes_back(engine: Engine) -> None:
    """The parent waits for its child, the child for what waits for the parent: nobody would ever go on."""
    flow, (parent, between) = await grown(engine, 2)
    jobs = {job.execution_id: job for job in await engine.claim(2)}
    child = engine.new_id()
    await engine.call(spawning(jobs[parent], child, flow))
    await join(engine, flow, between, child, 1)
    await engine.refused("cycle_detected", await staging(engine, flow, parent, between, 2))


async def test_edges_applied_after_an_upstream_has_succeeded_may_still_come_to_be_enough(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    jobs = {job.execution_id: job for job in await engine.claim(2)}
    policy = c.EdgeQuorum(2, c.OnSatisfied.LET_RUN)
    await engine.call(c.SetEdgeGroupPolicyArgs(flow_id=flow, downstream_execution_id=ids[2], policy=policy))
    await engine.complete(jobs[ids[0]])
    await join(engine, flow, ids[0], ids[2], 1)
    assert await engine.state(ids[2]) == "blocked"
    await join(engine, flow, ids[1], ids[2], 2)
    await engine.complete(jobs[ids[1]])
    assert await engine.state(ids[2]) == "ready"


@pytest.mark.parametrize("how", ["aborted", "late", "cancelled"])
async def test_who_awaits_a_graph_that_is_never_published_is_told(engine: Engine, how: str) -> None:
    flow, nodes = engine.new_id(), [row(engine.new_id()) for _ in range(4)]
    first = chunks(flow, nodes, 2)[0]
    await engine.call(first)
    await engine.advance(limits.STAGING_MS - 1000)
    ear = await engine.listen("ff:{fp:0}:c:c1")
    await engine.call(c.AwaitFlowArgs(flow_id=flow, client="c1"))
    if how == "aborted":
        await engine.call(c.AbortFlowArgs(flow_id=flow, digest=first.digest))
    elif how == "cancelled":
        await engine.call(cancelling(flow, "cancel_all"))
    else:
        await engine.advance(1001)
    await settle(engine)
    await engine.tick()
    assert [text for _, text in await ear.heard()] == [f"{uuid(flow)} cancelled"]


async def test_a_graph_that_was_never_published_leaves_no_tombstone_of_a_member_that_had_ended(engine: Engine) -> None:
    flow = engine.new_id()
    nodes = [row(engine.new_id(key="a")), row(engine.new_id(key="b"))]
    first = chunks(flow, nodes, 1)[0]
    await engine.call(first)
    await engine.call(cancel(nodes[0].execution_id))
    await engine.call(c.AbortFlowArgs(flow_id=flow, digest=first.digest))
    await engine.tick()
    store = await engine.command("KEYS", "ff:{fp:0}:tomb*")
    assert store == []


async def test_what_ends_in_the_same_millisecond_as_a_purge_by_hand_is_purged_later(engine: Engine) -> None:
    alone = [await engine.submit() for _ in range(2)]
    _, members = await graph(engine, "")
    jobs = {job.execution_id: job for job in await engine.claim(10)}
    await engine.complete(jobs[members[0]])
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now, limit=10))  # type: ignore[arg-type]
    for id in alone:
        await engine.complete(jobs[id])
    told = await engine.call(
        c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now + 5, limit=10)  # type: ignore[arg-type]
    )
    assert {*told.execution_ids} == {*alone}


async def test_upstreams_staged_while_a_wait_goes_on_have_places_of_their_own(engine: Engine) -> None:
    flow, (parent, *ups) = await grown(engine, 3)
    jobs = {job.execution_id: job for job in await engine.claim(3)}
    child = engine.new_id()
    await engine.call(spawning(jobs[parent], child, flow))
    await engine.call(waiting(jobs[parent]))
    await join(engine, flow, ups[0], parent, 1)
    (job,) = await engine.claim(1)
    await engine.complete(job)  # the child: nothing is waited for any more
    await join(engine, flow, ups[1], parent, 2)
    first = await engine.call(c.ReadUpstreamsArgs(execution_id=parent, limit=1))
    rest = await engine.call(c.ReadUpstreamsArgs(execution_id=parent, limit=1, after=first.next))
    assert [row.execution_id for row in (*first.upstreams, *rest.upstreams)] == ups


async def test_pages_of_edges_and_upstreams_are_as_large_as_a_few_milliseconds_allow(engine: Engine) -> None:
    """Whoever asks for more gets a page all the same, and where the next one begins."""
    n = 520
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    nodes = [*(row(id) for id in ids[:n]), row(ids[n], ",".join(f"{at}s" for at in range(1, n + 1)))]
    for call in chunks(flow, nodes, limits.FLOW_CHUNK_N):
        await engine.call(call)
    found, sizes, after = list[Any](), list[int](), 0
    while not found or after:
        page = await engine.call(c.ReadUpstreamsArgs(execution_id=ids[n], after=after, limit=limits.PAGE_MAX_N))
        found, after = [*found, *(one.execution_id for one in page.upstreams)], page.next
        sizes.append(len(page.upstreams))
    assert (found, sizes) == (ids[:n], [200, 200, 120])
    edges, cursor = list[Any](), None
    while not edges or cursor:
        args = c.ListEdgesArgs(flow_id=flow, execution_id=ids[n], direction="incoming", cursor=cursor, limit=1000)
        listed = await engine.call(args)
        assert len(listed.edges) in (500, 20)
        edges, cursor = [*edges, *(one.upstream_execution_id for one in listed.edges)], listed.cursor
    assert edges == ids[:n]


async def test_what_waits_for_its_parent_by_way_of_others_is_no_child(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "2s", "")
    jobs = {job.execution_id: job for job in await engine.claim(4)}
    detail = await engine.refused("idempotency_conflict", spawning(jobs[ids[0]], ids[2], flow))
    assert detail.endswith("waits for its parent already, by way of others")
    told = await engine.call(spawning(jobs[ids[3]], ids[2], flow))  # nothing leads from this one to it
    assert isinstance(told, c.Spawned) and not told.created


async def test_what_cannot_do_is_not_made_ready_before_it_is_skipped(engine: Engine) -> None:
    """Publishing a large graph goes on by tick; what was decided before is looked at in its turn."""
    flow, n = engine.new_id(), limits.EDGES_INLINE_N + 5
    ids = [engine.new_id() for _ in range(n)]
    nodes = [*(row(id) for id in ids[:-1]), row(ids[-1], "1s")]
    first, *rest = chunks(flow, nodes, limits.FLOW_CHUNK_N)
    await engine.call(first)
    await engine.call(cancel(ids[0]))
    for call in rest:
        await engine.call(call)
    assert await engine.state(ids[-1]) == "blocked"
    await engine.refused("deps_not_satisfied", c.PromoteBlockedToEligibleArgs(execution_id=ids[-1]))
    await engine.refused("deps_not_satisfied", c.UnblockExecutionArgs(execution_id=ids[-1]))
    await settle(engine)
    assert await engine.state(ids[-1]) == "skipped"
