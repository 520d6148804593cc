"""Edges one by one: staged, applied, resolved by themselves or on demand; groups set; edges listed and described."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import flows, limits
from tests.lua.edges import applying, edge_name, grown, join, resolving, revision, staging, status
from tests.lua.engine import P0, P1, Engine, cancel, delay, missing
from tests.lua.graphs import chunks, graph, incoming, info, row, states
from tests.lua.members import ENDS, claimed, end, replay, settle

FLOW_ONLY = c.CancelFlowPolicy("flow_only")


# ---- stage ---------------------------------------------------------------------------------------------


async def test_a_staged_edge_is_part_of_the_graph_and_holds_nobody_back(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    args = await staging(engine, flow, *ids, data_passing_ref="result")
    before = await revision(engine, flow)
    first = await engine.call(args)
    assert (first.edge_id, first.new_graph_revision) == (edge_name(1), before + 1)
    assert await engine.call(args) == first  # a lost answer
    assert await states(engine, ids) == ["ready", "ready"]
    assert (await info(engine, flow)).edge_count == 1
    (edge,) = (await engine.call(c.ListEdgesArgs(flow_id=flow, execution_id=ids[1], direction="incoming"))).edges
    assert (edge.edge_id, edge.upstream_execution_id, edge.downstream_execution_id) == (edge_name(1), *ids)
    assert (edge.edge_state, edge.dependency_kind, edge.data_passing_ref) == ("staged", "success_only", "result")
    for job in await claimed(engine, *ids):
        await engine.complete(job)


async def test_what_no_edge_can_be_is_refused(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    args = await staging(engine, flow, ids[0], ids[1])
    await engine.refused("self_referencing_edge", args, upstream_execution_id=ids[1])
    await engine.refused("invalid_dependency", args, dependency_kind="child")
    await engine.refused("invalid_dependency", args, dependency_kind="when_it_rains")
    await engine.refused("invalid_input", args, edge_id="e1")
    await engine.refused("invalid_input", args, data_passing_ref="x" * (limits.EDGE_REF_BYTES + 1))
    await engine.refused("flow_not_found", args, flow_id=missing())
    assert await engine.refused("stale_graph_revision", args, expected_graph_revision=1) == "3"
    await engine.refused("execution_not_in_flow", args, upstream_execution_id=await engine.submit(lane_id="other"))
    await engine.refused("execution_not_in_flow", args, downstream_execution_id=missing())
    await engine.call(args)
    again = await staging(engine, flow, ids[0], ids[1], 2)
    await engine.refused("dependency_already_exists", again)
    await engine.refused("dependency_already_exists", args, downstream_execution_id=ids[2])
    await engine.refused("dependency_already_exists", args, dependency_kind="on_failure")
    await engine.call(c.CancelFlowArgs(flow_id=flow, reason="enough", cancellation_policy=FLOW_ONLY))
    await engine.refused("flow_already_terminal", again)


async def test_a_circle_is_refused_wherever_it_closes(engine: Engine) -> None:
    flow, ids = await grown(engine, 4)
    for n, (up, down) in enumerate([(0, 1), (1, 2), (3, 0)], 1):
        await engine.call(await staging(engine, flow, ids[up], ids[down], n))
    await engine.refused("cycle_detected", await staging(engine, flow, ids[2], ids[0], 9))
    # Uphill all the way, once one edge goes down.
    await engine.refused("cycle_detected", await staging(engine, flow, ids[2], ids[3], 9))
    await engine.call(await staging(engine, flow, ids[3], ids[2], 9))


async def test_a_circle_too_large_to_look_for_is_said_to_be(engine: Engine) -> None:
    n = limits.CYCLE_SEARCH_N + 2
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(flow, [*[row(id, f"{k}s" if k else "") for k, id in enumerate(ids[:n])], row(ids[n])], 200):
        await engine.call(part)
    await engine.refused("flow_too_large", await staging(engine, flow, ids[n], ids[0]))
    await engine.call(await staging(engine, flow, ids[n], ids[n - 1]))


async def test_a_fan_out_too_wide_to_look_through_is_said_to_be(engine: Engine) -> None:
    n = limits.CYCLE_SEARCH_N + 2
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:n]], row(ids[n])], 200):
        await engine.call(part)
    await engine.refused("flow_too_large", await staging(engine, flow, ids[n], ids[0]))


async def test_an_execution_takes_so_many_upstreams(engine: Engine) -> None:
    n = limits.FLOW_CHUNK_EDGES_N
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 2)]
    for part in chunks(flow, [row(id) for id in ids], 200):
        await engine.call(part)
    down = ids[-1].rpartition(":")[2]
    key = f"ff:{P0}:in:{down}"
    await engine.command("HSET", key, *[word for id in ids[:n] for word in (id.rpartition(":")[2], "1 s g 1")])
    await engine.refused("flow_too_large", await staging(engine, flow, ids[n], ids[-1]))
    await engine.command("DEL", key)


async def test_a_flow_takes_so_many_edges(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    key = f"ff:{P0}:flow:{flow.rpartition(':')[2]}"
    await engine.command("HSET", key, "e", limits.FLOW_EDGES_N)
    await engine.refused("flow_too_large", await staging(engine, flow, *ids))
    await engine.command("HSET", key, "e", 0)


async def test_a_full_store_grows_no_graph(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    args = await staging(engine, flow, *ids)
    await engine.command("HSET", f"ff:{P0}", "v", "1 x", "gate_until", engine.now + 5_000)
    await engine.refused("store_full", args)
    await engine.command("HDEL", f"ff:{P0}", "gate_until")
    await engine.call(args)


async def test_a_parent_does_not_wait_for_its_child_by_an_edge(engine: Engine) -> None:
    from tests.lua.graphs import spawning

    flow, ids = await graph(engine, "")
    (job,) = await claimed(engine, ids[0])
    child = engine.new_id()
    await engine.call(spawning(job, child, flow))
    await engine.refused("cycle_detected", await staging(engine, flow, ids[0], child))
    await engine.refused("dependency_already_exists", await staging(engine, flow, child, ids[0]))


# ---- apply ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["ready", "delayed", "granted", "paused", "paused_delayed"])
async def test_what_has_not_begun_waits_from_now_on(engine: Engine, start: str) -> None:
    late = engine.now + 50_000 if "delayed" in start else None
    flow, ids = await grown(engine, 1, lane_id="up")
    down = await engine.submit(delay_until=late)
    await engine.call(c.AddExecutionToFlowArgs(flow_id=flow, execution_id=down))
    if start == "granted":
        from tests.lua.test_grant import issue

        await engine.call(issue(down))
    elif "paused" in start:
        await engine.call(c.PauseExecutionArgs(execution_id=down, reason="wait"))
    applied = await join(engine, flow, ids[0], down)
    assert isinstance(applied, c.Applied) and applied.unsatisfied_count == 1
    kept = (await engine.read(down)).fields
    assert (kept["state"], kept["reason"]) == ("blocked", "waiting_for_children")
    assert kept.get("due") == (str(late) if late else None)
    assert await status(engine, down) == "blocked_by_dependencies"
    assert await engine.violations() == []
    again = await engine.call(await applying(engine, flow, ids[0], down))
    assert isinstance(again, c.AlreadyApplied)
    (job,) = await engine.claim(lanes=["up"])
    await engine.complete(job)
    kept = (await engine.read(down)).fields
    if "paused" in start:
        assert (kept["state"], kept["reason"]) == ("blocked", "paused_by_operator")
        await engine.call(c.ResumeExecutionArgs(execution_id=down, trigger_type="operator"))
        kept = (await engine.read(down)).fields
    assert kept["state"] == ("delayed" if late else "ready")
    assert not late or kept["due"] == str(late)


async def test_what_has_begun_goes_on_and_counts(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    jobs = await claimed(engine, *ids)
    applied = await join(engine, flow, *ids)
    assert applied.unsatisfied_count == 1
    await end(engine, jobs[0], "f")
    assert await states(engine, ids) == ["failed", "active"]
    await engine.complete(jobs[1])
    assert (await info(engine, flow)).public_flow_state == "failed"


@pytest.mark.parametrize(
    ("how", "kind", "down", "outcome"),
    [
        ("c", "success_only", "ready", "completed"), ("f", "success_only", "skipped", "failed"),
        ("f", "on_failure", "ready", "completed"), ("e", "always", "ready", "failed"),
        ("x", "success_only", "skipped", "cancelled"), ("c", "on_failure", "skipped", "completed"),
    ],
)  # fmt: skip
async def test_an_upstream_that_has_ended_resolves_its_edge_at_once(
    engine: Engine, how: str, kind: str, down: str, outcome: str
) -> None:
    flow, ids = await grown(engine, 1)
    (job,) = await claimed(engine, ids[0])
    last = await engine.submit()
    other = await engine.submit(lane_id="other")
    for id in (last, other):
        await engine.call(c.AddExecutionToFlowArgs(flow_id=flow, execution_id=id))
    await end(engine, job, how)
    await join(engine, flow, ids[0], last, dependency_kind=kind)
    assert await states(engine, [ids[0], last]) == [ENDS[how], down]
    for job in await engine.claim(10, lanes=["mail", "other"]):
        await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == outcome


async def test_an_edge_is_applied_as_it_was_staged(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    await engine.call(await staging(engine, flow, *ids[:2], data_passing_ref="r"))
    args = await applying(engine, flow, *ids[:2], data_passing_ref="r")
    await engine.refused("flow_not_found", args, flow_id=missing())
    await engine.refused("invalid_dependency", args, edge_id=edge_name(7))
    await engine.refused("invalid_dependency", args, upstream_execution_id=ids[2])
    await engine.refused("invalid_dependency", args, dependency_kind="always")
    await engine.refused("invalid_dependency", args, data_passing_ref=None)
    seen = await revision(engine, flow)
    for stale in (seen + 1, seen - 1):
        assert await engine.refused("stale_graph_revision", args, graph_revision=stale) == str(seen)
    await engine.call(await staging(engine, flow, ids[1], ids[2], 2))
    assert isinstance(await engine.call(args), c.Applied)  # the graph has grown since, this edge is the same
    await engine.call(
        c.CancelFlowArgs(flow_id=flow, reason="enough", cancellation_policy=c.CancelFlowPolicy("cancel_pending"))
    )
    await engine.refused("flow_already_terminal", args)


async def test_an_end_of_an_edge_that_is_gone_is_no_member(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    await engine.call(await staging(engine, flow, *ids))
    args = await applying(engine, flow, *ids)
    kept: list[tuple[str, Any]] = []
    for id in reversed(ids):
        key = f"ff:{P0}:x:{id.rpartition(':')[2]}"
        kept.append((key, await engine.command("HGET", key, "fl")))
        await engine.command("HDEL", key, "fl")
        await engine.refused("execution_not_in_flow", args)
        if id == ids[1]:
            await engine.command("HSET", key, "fl", kept.pop()[1])
    for key, value in kept:
        await engine.command("HSET", key, "fl", value)


async def test_another_edge_counts_again_for_what_its_first_ones_have_let_go(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    jobs = {job.execution_id: job for job in await engine.claim(2)}
    assert set(jobs) == set(ids[:2])
    await join(engine, flow, ids[0], ids[2], 1)
    await engine.complete(jobs[ids[0]])
    assert await engine.state(ids[2]) == "ready"
    await join(engine, flow, ids[1], ids[2], 2)
    assert await engine.state(ids[2]) == "blocked"
    await engine.complete(jobs[ids[1]])
    assert await engine.state(ids[2]) == "ready"


async def test_an_edge_to_what_has_ended_only_counts(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    up, down = await claimed(engine, *ids)
    await engine.complete(down)
    assert (await join(engine, flow, *ids)).unsatisfied_count == 1
    await engine.complete(up)
    assert await states(engine, ids) == ["completed", "completed"]
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_an_edge_of_an_upstream_that_runs_again_waits_with_the_others(engine: Engine) -> None:
    """It ended, was replayed, and ended again before its replay had opened all it has to open."""
    width = limits.EDGES_INLINE_N + 10
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(width + 2)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:-1]], row(ids[-1])], 200):
        await engine.call(part)
    up, last = await claimed(engine, ids[0], ids[-1])
    await end(engine, up, "f")
    await settle(engine)
    await replay(engine, ids[0])
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    assert (await engine.read(ids[0])).fields["reopening"]
    await join(engine, flow, ids[0], ids[-1])
    assert isinstance(await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=edge_name(1))), c.EdgeDescribed)
    await engine.refused("deps_not_satisfied", resolving(ids[-1], 1, "success"))
    assert await engine.violations() == []
    await settle(engine)
    assert (await info(engine, flow)).counts["ready"] == width
    edge = await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=edge_name(1)))
    assert isinstance(edge, c.EdgeDescribed) and edge.edge.edge_state == "satisfied"
    await engine.complete(last)


# ---- resolve and promote -------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "word", "answer"), [("c", "success", c.Satisfied), ("f", "failed", c.Impossible)])
async def test_an_edge_may_be_resolved_before_its_turn(engine: Engine, how: str, word: str, answer: type) -> None:
    width = limits.EDGES_INLINE_N + 5
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(width + 2)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:-1]], row(ids[-1])], 200):
        await engine.call(part)
    up, other = await claimed(engine, ids[0], ids[-1])
    await join(engine, flow, ids[0], ids[-1])
    args = resolving(ids[-1], 1, word)
    await engine.refused("deps_not_satisfied", args)
    await end(engine, up, how)
    await engine.refused("invalid_dependency", args, upstream_outcome="cancelled")
    assert isinstance(await engine.call(args), answer)
    assert isinstance(await engine.call(args), c.AlreadyResolved)
    derived = flows.edge_id(flow, 1, width + 1)
    answered = await engine.call(c.ResolveDependencyArgs(edge_id=derived, upstream_outcome=word, at=ids[-2]))
    assert isinstance(answered, answer)
    assert await engine.state(ids[-2]) == ("ready" if how == "c" else "skipped")
    await settle(engine)
    await engine.complete(other)
    assert (await info(engine, flow)).resolving == 0


async def test_what_is_no_edge_cannot_be_resolved(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    await engine.call(await staging(engine, flow, *ids[:2]))
    await engine.refused("invalid_dependency", resolving(ids[1], 1, "success"))  # not applied
    await engine.refused("invalid_dependency", resolving(ids[2], 1, "success"))
    await engine.refused("invalid_dependency", resolving(ids[1], 8, "success"))
    await engine.refused("execution_not_in_flow", resolving(missing(), 1, "success"))
    await engine.refused("execution_not_in_flow", resolving(await engine.submit(lane_id="other"), 1, "success"))
    await engine.refused("invalid_input", resolving(ids[1], 1, "success"), upstream_outcome="completed")


async def test_only_what_waits_for_nothing_more_is_promoted(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "1s", "")
    promote = c.PromoteBlockedToEligibleArgs(execution_id=ids[1])
    assert "0 of 1" in await engine.refused("deps_not_satisfied", promote)
    unblock = c.UnblockExecutionArgs(execution_id=ids[1])
    assert "0 of 1" in await engine.refused("deps_not_satisfied", unblock)
    await engine.refused("not_blocked_by_deps", promote, execution_id=ids[0])
    await engine.refused("execution_not_found", promote, execution_id=missing())
    await engine.call(c.BlockExecutionArgs(execution_id=ids[2], blocking_reason="waiting_for_children"))
    assert await status(engine, ids[2]) == "eligible"
    assert isinstance(await engine.call(promote, execution_id=ids[2]), c.Promoted)
    assert await engine.state(ids[2]) == "ready"
    await engine.call(c.BlockExecutionArgs(execution_id=ids[2], blocking_reason="waiting_for_children"))
    await engine.call(c.UnblockExecutionArgs(execution_id=ids[2]))
    jobs = await claimed(engine, ids[0], ids[2])
    await engine.complete(jobs[1])
    await engine.refused("terminal", promote, execution_id=ids[2])
    await engine.call(delay(jobs[0], engine.now + 1_000))
    await engine.refused("not_blocked_by_deps", promote, execution_id=ids[0])


async def test_nothing_of_a_graph_that_is_still_being_sent_is_let_go_or_joined(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    first, second = chunks(flow, [row(id) for id in ids], 2)
    await engine.call(first)
    promote = c.PromoteBlockedToEligibleArgs(execution_id=ids[0])
    assert await engine.refused("deps_not_satisfied", promote) == "its graph is not published"
    await engine.refused("deps_not_satisfied", c.UnblockExecutionArgs(execution_id=ids[0]))
    assert await status(engine, ids[0]) == "blocked_by_dependencies"
    await engine.refused("flow_not_found", await staging(engine, flow, *ids[:2]))
    await engine.call(second)
    assert await status(engine, ids[0]) == "eligible"


async def test_what_has_begun_and_waits_by_hand_goes_back_as_what_it_was(engine: Engine) -> None:
    _flow, ids = await graph(engine, "")
    (job,) = await claimed(engine, ids[0])
    await engine.call(delay(job, engine.now + 10))
    await engine.pass_time(10)
    await engine.call(c.BlockExecutionArgs(execution_id=ids[0], blocking_reason="waiting_for_children"))
    await engine.call(c.PromoteBlockedToEligibleArgs(execution_id=ids[0]))
    (job,) = await claimed(engine, ids[0])
    assert job.attempt_type == "resumed" and job.attempt_index == 0


async def test_eligibility_is_said_in_the_words_of_the_contract(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "1s", "1s", "", "", "")
    assert [await status(engine, id) for id in ids[:2]] == ["eligible", "blocked_by_dependencies"]
    assert await status(engine, missing()) == "not_found"
    jobs = await claimed(engine, ids[0], *ids[3:])
    assert await status(engine, ids[0]) == "owned"
    await end(engine, jobs[0], "f")
    assert [await status(engine, id) for id in ids[:2]] == ["terminal", "impossible"]
    await engine.call(delay(jobs[1], engine.now + 1_000))
    assert await status(engine, ids[3]) == "not_runnable"
    await engine.complete(jobs[2])
    assert await status(engine, ids[4]) == "terminal"
    other, more = await graph(engine, "", "")
    await engine.call(c.BlockExecutionArgs(execution_id=more[1], blocking_reason="paused_by_policy"))
    assert await status(engine, more[1]) == "not_runnable"
    await engine.call(c.CancelFlowArgs(flow_id=other, reason="enough", cancellation_policy=FLOW_ONLY))
    assert await status(engine, more[0]) == "not_runnable"


# ---- groups --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (c.EdgeAllOf(), "A 0 - 0 0 0 0 0 0 p"),
        (c.EdgeAnyOf(on_satisfied=c.OnSatisfied.LET_RUN), "O 1 l 0 0 0 0 0 0 p"),
        (c.EdgeQuorum(k=2), "Q 2 c 0 0 0 0 0 0 p"),
    ],
)
async def test_a_policy_is_set_before_the_first_edge_is_applied(engine: Engine, policy: Any, kept: str) -> None:
    flow, ids = await grown(engine, 2)
    args = c.SetEdgeGroupPolicyArgs(flow_id=flow, downstream_execution_id=ids[1], policy=policy)
    assert isinstance(await engine.call(args), c.Set)
    assert isinstance(await engine.call(args), c.AlreadySet)
    assert (await incoming(engine, ids[1]))["g"] == kept
    other = c.EdgeQuorum(k=7)
    assert isinstance(await engine.call(args, policy=other), c.Set)
    assert isinstance(await engine.call(args), c.Set)
    await join(engine, flow, *ids)
    assert isinstance(await engine.call(args), c.AlreadySet)
    await engine.refused("invalid_dependency", args, policy=other)


async def test_a_policy_that_cannot_be_is_refused(engine: Engine) -> None:
    flow, ids = await grown(engine, 1)
    args = c.SetEdgeGroupPolicyArgs(flow_id=flow, downstream_execution_id=ids[0], policy=c.EdgeAllOf())
    policies: list[Any] = [
        {"kind": "most_of"},
        {"kind": "quorum", "k": 0},
        {"kind": "quorum", "k": 1.5},
        {"kind": "any_of", "on_satisfied": "dance"},
        [],
    ]
    for wrong in policies:
        await engine.refused("invalid_input", args, policy=wrong)
    await engine.refused("flow_not_found", args, flow_id=missing())
    await engine.refused("execution_not_in_flow", args, downstream_execution_id=missing())
    await engine.call(cancel(ids[0]))
    await engine.refused("flow_already_terminal", args)


async def test_a_quorum_that_cannot_be_reached_is_found_when_an_edge_resolves(engine: Engine) -> None:
    flow, ids = await grown(engine, 2)
    await engine.call(c.SetEdgeGroupPolicyArgs(flow_id=flow, downstream_execution_id=ids[1], policy=c.EdgeQuorum(k=2)))
    await join(engine, flow, *ids)
    assert await engine.state(ids[1]) == "blocked"
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, "f")
    assert await states(engine, ids) == ["failed", "skipped"]
    assert (await info(engine, flow)).public_flow_state == "failed"


# ---- looking -------------------------------------------------------------------------------------------


async def test_edges_are_described_by_their_ids(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "1a,2f")
    for up, down, kind in ((1, 2, "success_only"), (1, 3, "always"), (2, 3, "on_failure")):
        told = await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=flows.edge_id(flow, up, down)))
        assert isinstance(told, c.EdgeDescribed)
        edge = told.edge
        assert (edge.upstream_execution_id, edge.downstream_execution_id, edge.dependency_kind) == (
            ids[up - 1],
            ids[down - 1],
            kind,
        )
        assert (edge.edge_state, edge.created_at, edge.flow_id) == ("pending", engine.now, flow)
    for none in (flows.edge_id(flow, 2, 1), flows.edge_id(flow, 7, 8), edge_name(1)):
        assert isinstance(await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=none)), c.NoEdge)
    await engine.refused("flow_not_found", c.DescribeEdgeArgs(flow_id=missing(), edge_id=edge_name(1)))
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, "f")
    found = [await engine.call(c.DescribeEdgeArgs(flow_id=flow, edge_id=flows.edge_id(flow, 1, n))) for n in (2, 3)]
    assert [edge.edge.edge_state for edge in found if isinstance(edge, c.EdgeDescribed)] == ["impossible", "satisfied"]


async def test_edges_are_listed_in_pages_in_either_direction(engine: Engine) -> None:
    flow, ids = await graph(engine, *[""] * 5, ",".join(f"{n}s" for n in range(1, 6)), *["1a"] * 4)

    async def pages(id: Any, direction: Any) -> list[list[c.EdgeSnapshot]]:
        out, cursor = list[list[c.EdgeSnapshot]](), None
        while cursor != "":
            page = await engine.call(
                c.ListEdgesArgs(flow_id=flow, execution_id=id, direction=direction, cursor=cursor, limit=2)
            )
            out.append(page.edges)
            cursor = page.cursor
        return out

    into = await pages(ids[5], "incoming")
    assert [[edge.upstream_execution_id for edge in page] for page in into] == [ids[0:2], ids[2:4], ids[4:5]]
    out = await pages(ids[0], "outgoing")
    assert [[edge.downstream_execution_id for edge in page] for page in out] == [ids[5:7], ids[7:9], ids[9:10]]
    assert await pages(ids[9], "outgoing") == [[]]
    args = c.ListEdgesArgs(flow_id=flow, execution_id=ids[0], direction="outgoing")
    await engine.refused("invalid_input", args, limit=0)
    await engine.refused("invalid_input", args, direction="up")
    await engine.refused("invalid_offset", args, cursor="x")
    await engine.refused("flow_not_found", args, flow_id=missing())
    await engine.refused("execution_not_in_flow", args, execution_id=missing())


async def test_an_edge_stays_within_its_partition(engine: Engine) -> None:
    flow, ids = await grown(engine, 1)
    args = await staging(engine, flow, ids[0], engine.new_id())
    assert "not readable" in await engine.bug(
        *_command(args, ids[0], await engine.submit(execution_id=engine.new_id(P1)))
    )


def _command(args: c.StageDependencyEdgeArgs, up: Any, down: Any) -> list[Any]:
    return ["FCALL", "ff_stage_dependency_edge", 2, f"ff:{P0}", f"ff:{P0}:absent", args.flow_id, args.edge_id, up, down,
            args.dependency_kind, "", args.expected_graph_revision]  # fmt: skip
