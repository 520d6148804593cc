"""A member runs again: what depended on it waits again, where it has not gone on; what was skipped is open again."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, Engine, cancel, completion, delay, revoke
from tests.lua.graphs import chunk, chunks, graph, incoming, info, row, spawning, states, waiting
from tests.lua.members import ENDS, claimed, end, replay, settle, told
from tests.lua.test_grant import issue


async def ended(engine: Engine, id: Any, how: str, result: bytes = b"done") -> None:
    (job,) = [job for job in await engine.claim(100) if job.execution_id == id]
    await end(engine, job, how, result)


async def test_a_failure_that_is_repaired_opens_what_it_had_skipped(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "2s", "3s,2a")
    await ended(engine, ids[0], "f")
    assert await states(engine, ids) == ["failed", "skipped", "skipped", "skipped"]
    assert (await info(engine, flow)).public_flow_state == "failed"
    assert (await replay(engine, ids[0])).public_state == "waiting"
    assert await states(engine, ids) == ["ready", "blocked", "blocked", "blocked"]
    now = await info(engine, flow)
    assert (now.state, now.public_flow_state, now.ended_at) == ("live", "running", None)
    for id in ids:
        await ended(engine, id, "c")
    assert (await info(engine, flow)).public_flow_state == "completed"
    assert await told(engine, flow) == [
        "- created -",
        "running failed ended",
        f"failed reopened {ids[0].rpartition(':')[2]}",
        "running completed ended",
    ]


async def test_what_another_upstream_keeps_from_running_stays_skipped(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "", "1s,2s")
    for job, how in zip(await claimed(engine, *ids[:2]), "ff", strict=True):
        await end(engine, job, how)
    await replay(engine, ids[0])
    assert await states(engine, ids) == ["ready", "failed", "skipped"]
    assert (await incoming(engine, ids[2]))["g"] == "A 0 - 2 0 1 1 0 0 i"
    await replay(engine, ids[1])
    assert await states(engine, ids) == ["ready", "ready", "blocked"]
    for job in await claimed(engine, *ids[:2]):
        await engine.complete(job)
    await ended(engine, ids[2], "c")
    assert (await info(engine, flow)).public_flow_state == "completed"


@pytest.mark.parametrize("down", ["ready", "delayed", "granted", "reclaimable", "revoked", "hand", "paused"])
async def test_what_does_not_run_waits_again(engine: Engine, down: str) -> None:
    flow, ids = await graph(engine, "", "1s")
    late = engine.now + 500_000
    await ended(engine, ids[0], "c", b"first")
    if down == "granted":
        await engine.call(issue(ids[1]))
    elif down == "hand":
        await engine.call(c.BlockExecutionArgs(execution_id=ids[1], blocking_reason="waiting_for_budget"))
    elif down == "paused":
        await engine.call(c.PauseExecutionArgs(execution_id=ids[1], reason="wait"))
    elif down != "ready":
        (job,) = await claimed(engine, ids[1])
        if down == "delayed":
            await engine.call(delay(job, late))
        elif down == "revoked":
            await engine.call(revoke(ids[1]))
        else:
            await engine.pass_time(job.lease_expires_at - engine.now + 1)
    await replay(engine, ids[0])
    kept = (await engine.read(ids[1])).fields
    assert (kept["state"], kept["reason"]) == ("blocked", "waiting_for_children")
    assert (await incoming(engine, ids[1]))["g"] == "A 0 - 1 0 0 0 0 0 p"
    assert await engine.violations() == []
    await ended(engine, ids[0], "c", b"second")
    kept = (await engine.read(ids[1])).fields
    if down == "paused":
        assert kept["reason"] == "paused_by_operator"
        await engine.call(c.ResumeExecutionArgs(execution_id=ids[1], trigger_type="operator"))
    elif down == "delayed":
        assert (kept["state"], kept["due"], kept["reason"]) == ("delayed", str(late), "waiting_for_resume_delay")
        return
    elif down in ("reclaimable", "revoked"):
        assert (kept["state"], kept["next"]) == ("reclaimable", "reclaim")
    (job,) = await claimed(engine, ids[1])
    assert job.inputs is not None and job.inputs.items == [c.Input("", b"second")]
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"


@pytest.mark.parametrize("down", ["active", "suspended", "completed", "failed"])
async def test_what_has_gone_on_stays_as_it_is(engine: Engine, down: str) -> None:
    flow, ids = await graph(engine, "", "1s")
    await ended(engine, ids[0], "c", b"first")
    (job,) = await claimed(engine, ids[1])
    if down == "suspended":
        from tests.lua.waits import gates, single, suspending

        await engine.call(suspending(job, single("a"), pending=await gates(engine, job, "a")))
    elif down != "active":
        await end(engine, job, down[0])
    before = await engine.read(ids[1])
    await replay(engine, ids[0])
    assert (await engine.read(ids[1])).fields == before.fields
    await ended(engine, ids[0], "f")
    assert await engine.state(ids[1]) == down
    assert (await incoming(engine, ids[1]))["g"] == "A 0 - 1 1 0 0 0 0 s"
    await engine.call(cancel(ids[1], "operator_override"))
    assert (await info(engine, flow)).public_flow_state == "failed"


async def test_what_still_has_enough_upstreams_goes_on(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    await engine.call(chunk(flow, [*[row(id) for id in ids[:3]], row(ids[3], "1s,2s,3s", group="Q 2 l")]))
    for job in await claimed(engine, *ids[:3]):
        await engine.complete(job)
    await replay(engine, ids[0])
    assert await engine.state(ids[3]) == "ready"
    assert (await incoming(engine, ids[3]))["g"] == "Q 2 l 3 2 0 0 0 0 s"
    await replay(engine, ids[1])
    assert await engine.state(ids[3]) == "blocked"
    for job in await claimed(engine, *ids[:2]):
        await end(engine, job, "f")
    assert await engine.state(ids[3]) == "skipped"
    assert (await info(engine, flow)).public_flow_state == "failed"
    await replay(engine, ids[0])
    assert (await info(engine, flow)).counts["blocked"] == 1
    await ended(engine, ids[0], "c")
    await ended(engine, ids[3], "c")
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_result_stands_until_there_is_another(engine: Engine) -> None:
    """Whoever began with it has it still; the next end replaces it, whatever it is."""
    _flow, ids = await graph(engine, "", "1s")
    await ended(engine, ids[0], "c", b"r" * 200)
    (down,) = await claimed(engine, ids[1])
    for result, how in ((b"short", "c"), (b"q" * 300, "c"), (b"", "f")):
        await replay(engine, ids[0])
        assert (await engine.read(ids[0], "result")).result != b""
        assert await engine.violations() == []
        ups = await engine.call(c.ReadUpstreamsArgs(execution_id=ids[1]))
        assert ups.upstreams[0].has_result and ups.upstreams[0].state == "ready"
        await ended(engine, ids[0], how, result)
        assert (await engine.read(ids[0], "result")).result == (result if how == "c" else b"")
    await engine.complete(down)


async def test_a_null_replaces_what_was_there_before(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "1a")
    (job,) = await claimed(engine, ids[0])
    await engine.call(completion(job, result_payload=b"5", result_encoding="json"))
    await replay(engine, ids[0])
    (job,) = await claimed(engine, ids[0])
    await engine.call(completion(job, result_payload=None))
    read = await engine.read(ids[0], "result")
    assert read.result == b"" and "result_encoding" not in read.fields


async def test_what_was_skipped_runs_again_only_when_its_upstreams_let_it(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s")
    await ended(engine, ids[0], "f")
    args = c.ReplayExecutionArgs(execution_id=ids[1])
    assert await engine.refused("deps_not_satisfied", args) == ids[0]
    await replay(engine, ids[0])
    await engine.refused("execution_not_terminal", args)
    await ended(engine, ids[0], "c")
    await ended(engine, ids[1], "c")
    assert (await info(engine, flow)).public_flow_state == "completed"


@pytest.mark.parametrize("now", ["running", "completed"])
async def test_what_its_replayed_upstream_has_not_come_to_yet_may_be_replayed(engine: Engine, now: str) -> None:
    n = limits.EDGES_INLINE_N + 3
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:]]], 200):
        await engine.call(part)
    await ended(engine, ids[0], "f")
    await settle(engine)
    await replay(engine, ids[0])
    assert await states(engine, [ids[1], ids[-1]]) == ["blocked", "skipped"]
    if now == "completed":
        await ended(engine, ids[0], "c")
        assert (await info(engine, flow)).resolving == 1
    assert (await replay(engine, ids[-1])).public_state == "waiting_children"
    assert await engine.state(ids[-1]) == "blocked"
    assert await engine.violations() == []
    await settle(engine)
    if now == "running":
        await ended(engine, ids[0], "c")
        await settle(engine)
    assert (await info(engine, flow)).counts["ready"] == n
    assert await engine.violations() == []


@pytest.mark.parametrize("how", ["c", "f"])
async def test_a_wide_fan_out_is_opened_again_a_piece_at_a_time(engine: Engine, how: str) -> None:
    n = 600
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:]]], 200):
        await engine.call(part)
    await ended(engine, ids[0], "f")
    await settle(engine)
    await replay(engine, ids[0])
    now = await info(engine, flow)
    assert (now.counts["blocked"], now.counts["skipped"]) == (limits.EDGES_INLINE_N, n - limits.EDGES_INLINE_N)
    assert (await engine.read(ids[0])).fields["reopening"] == str(limits.EDGES_INLINE_N)
    assert await engine.violations() == []
    # It ends, is replayed and ends again before all is open.
    await ended(engine, ids[0], "x")
    assert (await info(engine, flow)).resolving == 1
    await replay(engine, ids[0])
    assert (await info(engine, flow)).resolving == 0
    await ended(engine, ids[0], how)
    assert await engine.violations() == []
    await settle(engine)
    now = await info(engine, flow)
    assert (now.counts["ready" if how == "c" else "skipped"], now.resolving) == (n, 0)


async def test_a_replay_stops_the_resolving_of_the_end_before_it(engine: Engine) -> None:
    n = 600
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:]]], 200):
        await engine.call(part)
    await ended(engine, ids[0], "f")
    assert (await info(engine, flow)).resolving == 1
    await replay(engine, ids[0])
    now = await info(engine, flow)
    assert (now.resolving, now.counts["blocked"]) == (0, n)
    assert f"edges:{ids[0].rpartition(':')[2]}" not in await engine.timers()
    await settle(engine)
    await ended(engine, ids[0], "c")
    await settle(engine)
    assert (await info(engine, flow)).counts["ready"] == n


@pytest.mark.parametrize("how", ["cancel", "expire"])
async def test_what_was_called_off_before_it_began_waits_for_its_upstreams_again(engine: Engine, how: str) -> None:
    flow, ids = await graph(engine, "", "1s")
    if how == "cancel":
        await engine.call(cancel(ids[1]))
    else:
        await engine.call(c.ExpireExecutionArgs(execution_id=ids[1], expire_reason="late"))
    assert (await replay(engine, ids[1])).public_state == "waiting_children"
    await engine.call(cancel(ids[1]))
    await ended(engine, ids[0], "f")
    assert await engine.refused("deps_not_satisfied", c.ReplayExecutionArgs(execution_id=ids[1])) == ids[0]
    await replay(engine, ids[0])
    assert await states(engine, ids) == ["ready", "cancelled"]
    assert (await replay(engine, ids[1])).public_state == "waiting_children"
    await ended(engine, ids[0], "c")
    await engine.call(cancel(ids[1]))
    assert (await replay(engine, ids[1])).public_state == "waiting"
    await ended(engine, ids[1], "c")
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_member_of_a_cancelled_flow_is_not_replayed(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "")
    await ended(engine, ids[0], "f")
    await engine.call(
        c.CancelFlowArgs(flow_id=flow, reason="enough", cancellation_policy=c.CancelFlowPolicy("flow_only"))
    )
    assert await engine.refused("flow_already_terminal", c.ReplayExecutionArgs(execution_id=ids[0])) == "cancelled"


@pytest.mark.parametrize(
    ("first", "second", "flow_is"),
    [("f", "c", "completed"), ("x", "c", "completed"), ("c", "f", "failed"), ("f", "x", "cancelled")],
)
async def test_what_a_replay_undoes_is_no_outcome_of_the_flow(
    engine: Engine, first: str, second: str, flow_is: str
) -> None:
    flow, ids = await graph(engine, "", "1a")
    for how in (first, second):
        if how != first:
            await replay(engine, ids[0])
        (job,) = await claimed(engine, ids[0])
        await end(engine, job, how)
    assert await engine.state(ids[0]) == ENDS[second]
    await ended(engine, ids[1], "c")
    assert (await info(engine, flow)).public_flow_state == flow_is


async def test_a_child_that_runs_again_is_waited_for_again(engine: Engine) -> None:
    flow, (parent,) = await graph(engine, "")
    (job,) = await claimed(engine, parent)
    children = [engine.new_id() for _ in range(2)]
    for n, child in enumerate(children):
        await engine.call(spawning(job, child, flow, n=n))
    first, second = await claimed(engine, *children)
    await engine.call(waiting(job, *children, need=2))
    await end(engine, first, "f")
    assert (await incoming(engine, parent))["w"].split()[0] == "1"
    await replay(engine, children[0])
    assert (await incoming(engine, parent))["w"].split()[0] == "2"
    assert await engine.violations() == []
    await engine.complete(second)
    assert await engine.state(parent) == "blocked"
    await ended(engine, children[0], "c")
    (job,) = await claimed(engine, parent)
    await replay(engine, children[0])
    await engine.call(waiting(job))
    await ended(engine, children[0], "c")
    (job,) = await claimed(engine, parent)
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_deadline_begins_anew_for_what_is_open_again(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id(), engine.new_id()]
    timed = c.FlowPlan(execution_kind="send", lane_id="mail", execution_deadline_at=engine.now + 10_000)
    await engine.call(
        chunk(
            flow,
            [row(ids[0]), row(ids[1], "1s", plan=2)],
            plans=[c.FlowPlan(execution_kind="send", lane_id="mail"), timed],
        )
    )
    await ended(engine, ids[0], "f")
    await engine.pass_time(5_000)
    await replay(engine, ids[0])
    assert (await engine.read(ids[1])).fields["deadline_at"] == str(engine.now + 10_000)
    assert (await engine.timers())[f"deadline:{ids[1].rpartition(':')[2]}"] == engine.now + 10_000


async def test_bytes_of_what_is_open_again_are_kept_no_longer(engine: Engine) -> None:
    from tests.lua.engine import lane_told

    await engine.call(lane_told(count=100, bytes=1_000_000))
    flow, ids = await graph(engine, "", "1s")
    await ended(engine, ids[0], "f")
    await replay(engine, ids[0])
    assert await engine.command("HGET", f"ff:{P0}", "y1") == b"0"
    for id in ids:
        await ended(engine, id, "c")
    assert (await info(engine, flow)).public_flow_state == "completed"
