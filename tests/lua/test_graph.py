"""Edges and groups: what each kind of edge makes of each end, when a group is decided, and what follows from it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import ExecutionPolicy
from tests.lua.engine import P0, TTL, Engine, cancel, completion, failure, retries
from tests.lua.graphs import chunk, chunks, graph, incoming, info, row, states
from tests.lua.members import ENDS, claimed, end, settle, told

# ---- kinds and groups ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "edges", "ends", "kept", "down", "flow"),
    [
        ("A", "1s,2s", "cc", "A 0 - 2 2 0 0 0 0 s", "ready", None),
        ("A", "1s,2s", "cf", "A 0 - 2 1 1 1 0 0 i", "skipped", "failed"),
        ("A", "1s,2s", "fc", "A 0 - 2 1 1 1 0 0 i", "skipped", "failed"),
        ("A", "1s,2s", "ec", "A 0 - 2 1 1 1 0 0 i", "skipped", "failed"),
        ("A", "1s,2s", "xc", "A 0 - 2 1 1 0 0 1 i", "skipped", "cancelled"),
        ("A", "1a,2a", "fx", "A 0 - 2 2 0 1 0 1 s", "ready", None),
        ("A", "1f,2a", "fc", "A 0 - 2 2 0 1 0 0 s", "ready", None),
        ("A", "1f,2a", "ec", "A 0 - 2 2 0 1 0 0 s", "ready", None),
        ("A", "1f,2s", "cc", "A 0 - 2 1 1 0 0 0 i", "skipped", "completed"),
        ("A", "1f,2s", "xc", "A 0 - 2 1 1 0 0 1 i", "skipped", "cancelled"),
        ("O l", "1s,2s", "fc", "O 1 l 2 1 1 1 0 0 s", "ready", None),
        ("O l", "1s,2s", "cf", "O 1 l 2 1 1 1 0 0 s", "ready", None),
        ("O l", "1s,2s", "cc", "O 1 l 2 2 0 0 0 0 s", "ready", None),
        ("O l", "1s,2s", "fe", "O 1 l 2 0 2 2 0 0 i", "skipped", "failed"),
        ("O l", "1s,2s", "xx", "O 1 l 2 0 2 0 0 2 i", "skipped", "cancelled"),
        ("O l", "1s,2s", "xf", "O 1 l 2 0 2 1 0 1 i", "skipped", "failed"),
        ("Q 2 l", "1s,2s,3s", "cfc", "Q 2 l 3 2 1 1 0 0 s", "ready", None),
        ("Q 2 l", "1s,2s,3s", "ffc", "Q 2 l 3 1 2 2 0 0 i", "skipped", "failed"),
        ("Q 2 l", "1f,2f,3s", "fcc", "Q 2 l 3 2 1 1 0 0 s", "ready", None),
        ("Q 3 l", "1a,2s,3s", "xcc", "Q 3 l 3 3 0 0 0 1 s", "ready", None),
    ],
)  # fmt: skip
async def test_a_group_is_decided_by_how_its_upstreams_end(
    engine: Engine, group: str, edges: str, ends: str, kept: str, down: str, flow: str | None
) -> None:
    ids = [engine.new_id() for _ in range(len(ends) + 1)]
    whole = engine.new_id()
    *ups, last = ids
    await engine.call(chunk(whole, [*[row(id) for id in ups], row(last, edges, group=group)]))
    for job, how in zip(await claimed(engine, *ups), ends, strict=True):
        await end(engine, job, how)
    assert (await incoming(engine, last))["g"] == kept
    assert await states(engine, ids) == [*[ENDS[how] for how in ends], down]
    told_now = await info(engine, whole)
    assert (told_now.state, told_now.public_flow_state) == (("ended", flow) if flow else ("live", "running"))


@pytest.mark.parametrize(
    ("group", "failing", "outcome"),
    [("A", 1, "failed"), ("O l", 1, "completed"), ("Q 2 l", 1, "completed"), ("Q 2 l", 2, "failed")],
)
async def test_a_failure_that_a_group_tolerates_is_none_of_the_flow(
    engine: Engine, group: str, failing: int, outcome: str
) -> None:
    flow, last = engine.new_id(), engine.new_id()
    ups = [engine.new_id() for _ in range(3)]
    await engine.call(chunk(flow, [*[row(id) for id in ups], row(last, "1s,2s,3s", group=group)]))
    for n, job in enumerate(await claimed(engine, *ups)):
        await end(engine, job, "f" if n < failing else "c")
    for job in await engine.claim():
        await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == outcome


@pytest.mark.parametrize(
    ("edges", "outcome"),
    [(("", "1s", "1f"), "completed"), (("", "1s", "1a"), "failed"), (("", "1s"), "failed"), (("",), "failed")],
)
async def test_a_failure_is_handled_by_an_edge_for_failures_and_by_no_other(
    engine: Engine, edges: tuple[str, ...], outcome: str
) -> None:
    flow, ids = await graph(engine, *edges)
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, "f")
    for job in await engine.claim():
        await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == outcome
    assert await told(engine, flow) == ["- created -", f"running {outcome} ended"]


async def test_an_upstream_that_is_skipped_is_counted_apart(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "", "1s", "3s,2a", "3a,2s")
    first, second = await claimed(engine, *ids[:2])
    await end(engine, first, "f")
    assert (await incoming(engine, ids[3]))["g"] == "A 0 - 2 0 1 0 1 0 i"
    assert (await incoming(engine, ids[4]))["g"] == "A 0 - 2 1 0 0 1 0 p"
    await end(engine, second, "c")
    assert await states(engine, ids) == ["failed", "completed", "skipped", "skipped", "ready"]


async def test_an_end_that_comes_late_is_counted_and_marked(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(4)]
    await engine.call(chunk(flow, [*[row(id) for id in ids[:3]], row(ids[3], "1s,2s,3s", group="O l")]))
    jobs = await claimed(engine, *ids[:3])
    for job, how in zip(jobs, "ccf", strict=True):
        await end(engine, job, how)
    rows = await incoming(engine, ids[3])
    assert [rows[id.rpartition(":")[2]].split(" ")[2] for id in ids[:3]] == ["S", "s", "I"]
    assert await engine.state(ids[3]) == "ready"
    (last,) = await claimed(engine, ids[3])
    await engine.complete(last)
    assert (await info(engine, flow)).public_flow_state == "completed"


# ---- what waits ----------------------------------------------------------------------------------------


async def test_what_a_decided_group_lets_go_keeps_to_its_delay(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id(), engine.new_id()]
    later = c.FlowPlan(execution_kind="send", lane_id="mail", delay_until=engine.now + 5_000)
    await engine.call(
        chunk(
            flow,
            [row(ids[0]), row(ids[1], "1s", plan=2)],
            plans=[c.FlowPlan(execution_kind="send", lane_id="mail"), later],
        )
    )
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    second = await engine.read(ids[1])
    assert (second.fields["state"], second.fields["due"]) == ("delayed", str(engine.now + 5_000))
    assert (await info(engine, flow)).public_flow_state == "running"
    await engine.pass_time(5_000)
    assert await engine.state(ids[1]) == "ready"


@pytest.mark.parametrize("ahead", [0, 5_000])
async def test_what_is_paused_stays_paused_when_its_upstreams_have_ended(engine: Engine, ahead: int) -> None:
    flow, ids = engine.new_id(), [engine.new_id(), engine.new_id()]
    later = c.FlowPlan(execution_kind="send", lane_id="mail", delay_until=engine.now + ahead if ahead else None)
    await engine.call(
        chunk(
            flow,
            [row(ids[0]), row(ids[1], "1s", plan=2)],
            plans=[c.FlowPlan(execution_kind="send", lane_id="mail"), later],
        )
    )
    assert isinstance(await engine.call(c.PauseExecutionArgs(execution_id=ids[1], reason="wait")), c.Paused)
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    kept = (await engine.read(ids[1])).fields
    assert (kept["state"], kept["reason"]) == ("blocked", "paused_by_operator")
    assert await engine.claim() == []
    await engine.call(c.ResumeExecutionArgs(execution_id=ids[1], trigger_type="operator"))
    assert await engine.state(ids[1]) == ("delayed" if ahead else "ready")
    if ahead:
        await engine.pass_time(ahead)
    (job,) = await claimed(engine, ids[1])
    await engine.complete(job)


@pytest.mark.parametrize("how", ["cancel", "deadline", "expire"])
async def test_what_waits_may_end_by_itself_and_takes_along_what_needs_it(engine: Engine, how: str) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(3)]
    until = engine.now + 1_000 if how == "deadline" else None
    timed = c.FlowPlan(execution_kind="send", lane_id="mail", execution_deadline_at=until)
    await engine.call(
        chunk(
            flow,
            [row(ids[0]), row(ids[1], "1s", plan=2), row(ids[2], "2s")],
            plans=[c.FlowPlan(execution_kind="send", lane_id="mail"), timed],
        )
    )
    if how == "cancel":
        await engine.call(cancel(ids[1]))
    elif how == "expire":
        await engine.call(c.ExpireExecutionArgs(execution_id=ids[1], expire_reason="late"))
    else:
        await engine.pass_time(2_000)
    ended = "cancelled" if how == "cancel" else "expired"
    assert await states(engine, ids) == ["ready", ended, "skipped"]
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == ("cancelled" if how == "cancel" else "failed")


async def test_a_hold_keeps_what_upstreams_have_let_go(engine: Engine) -> None:
    _flow, ids = await graph(engine, "", "1s")
    (job,) = await claimed(engine, ids[0])
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason="broken"))
    await engine.complete(job)
    assert await engine.claim() == []
    assert (await engine.read(ids[1])).fields["reason"] == "paused_by_operator"
    await engine.call(c.ReleaseArgs(partition=P0, what="task:send"))
    await settle(engine)
    assert await engine.state(ids[1]) == "ready"


async def test_an_end_that_has_compensations_to_run_first_resolves_nothing_before(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1f")
    (job,) = await claimed(engine, ids[0])
    await engine.command("HSET", f"ff:{P0}:x:{ids[0].rpartition(':')[2]}", "sg", "1", "x", "1")
    await end(engine, job, "f")
    assert await states(engine, ids) == ["ready", "blocked"]
    (again,) = await claimed(engine, ids[0])
    assert again.attempt_type == "compensation"
    await engine.complete(again)
    assert await states(engine, ids) == ["failed", "ready"]
    assert (await info(engine, flow)).counts["failed"] == 1


async def test_a_retry_is_no_end(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id(), engine.new_id()]
    policy = ExecutionPolicy(**retries(1))
    plan = c.FlowPlan(execution_kind="send", lane_id="mail", policy=msgspec.json.encode(policy).decode())
    await engine.call(chunk(flow, [row(ids[0]), row(ids[1], "1s")], plans=[plan]))
    (job,) = await claimed(engine, ids[0])
    await engine.call(failure(job))
    await settle(engine)
    assert await states(engine, ids) == ["ready", "blocked"]
    (job,) = await claimed(engine, ids[0])
    await engine.call(failure(job))
    assert await states(engine, ids) == ["failed", "skipped"]


async def test_a_chain_is_claimed_in_the_calls_that_complete_it(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "2s", "3s", "4s", "5s")
    (job,) = await engine.claim()
    answer: Any = None
    for n, id in enumerate(ids):
        assert job.execution_id == id and job.flow_id == flow
        args = engine.claiming(5)
        answer = await engine.call(c.CompleteManyArgs(
            partition=P0, lanes=["mail"], capability_sets=[], limit=5, claim_id=args.claim_id, worker_id="w",
            worker_instance_id="w1", lease_ttl_ms=TTL,
            items=[c.Completion(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}", b"%d" % n)],
        ))  # fmt: skip
        assert [item.state for item in answer.items] == ["completed"]
        if id != ids[-1]:
            (job,) = answer.claimed.jobs
            assert job.inputs is not None and job.inputs.items == [c.Input("", b"%d" % n)]
    assert answer.claimed.jobs == []
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_who_is_claimed_by_the_call_that_made_it_ready_rings_nobody(engine: Engine) -> None:
    _flow, _ids = await graph(engine, "", "1s")
    (job,) = await engine.claim()
    park = "w2"
    await engine.claim(worker_instance_id="w2", park=park)
    ear = await engine.listen(f"ff:{P0}:w:{park}")
    args = engine.claiming(5)
    await engine.call(c.CompleteManyArgs(
        partition=P0, lanes=["mail"], capability_sets=[], limit=5, claim_id=args.claim_id, worker_id="w",
        worker_instance_id="w1", lease_ttl_ms=TTL,
        items=[c.Completion(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}", b"1")],
    ))  # fmt: skip
    assert await ear.heard() == []


# ---- wide and long -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["c", "f"])
async def test_a_wide_fan_out_is_resolved_a_piece_at_a_time(engine: Engine, how: str) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(601)]
    for part in chunks(flow, [row(ids[0]), *[row(id, "1s") for id in ids[1:]]], 200):
        await engine.call(part)
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, how)
    word = "ready" if how == "c" else "skipped"
    now = await info(engine, flow)
    assert (now.counts[word], now.counts["blocked"], now.resolving) == (
        limits.EDGES_INLINE_N,
        600 - limits.EDGES_INLINE_N,
        1,
    )
    assert (await engine.read(ids[0])).fields["resolving"] == f"{limits.EDGES_INLINE_N} 0"
    assert now.state == "live" and now.public_flow_state == "running"
    assert await engine.violations() == []
    assert await settle(engine) >= 2
    now = await info(engine, flow)
    assert (now.counts[word], now.resolving) == (600, 0)
    assert now.state == ("live" if how == "c" else "ended")
    if how == "f":
        assert (await told(engine, flow))[-1] == "running failed ended"


async def test_a_long_chain_is_skipped_to_its_end(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(400)]
    for part in chunks(flow, [row(id, f"{n}s" if n else "") for n, id in enumerate(ids)], 200):
        await engine.call(part)
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, "f")
    now = await info(engine, flow)
    assert now.counts["skipped"] == limits.EDGES_INLINE_N and now.state == "live" and now.resolving == 1
    await settle(engine)
    now = await info(engine, flow)
    assert (now.counts, now.public_flow_state, now.state) == ({"failed": 1, "skipped": 399}, "failed", "ended") or (
        now.counts["failed"], now.counts["skipped"], now.public_flow_state) == (1, 399, "failed")  # fmt: skip


async def test_a_diamond_is_joined_once(engine: Engine) -> None:
    middle = 150
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(middle + 2)]
    rows = [
        row(ids[0]),
        *[row(id, "1s") for id in ids[1:-1]],
        row(ids[-1], ",".join(f"{n}s" for n in range(2, middle + 2))),
    ]
    await engine.call(chunk(flow, rows))
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    jobs = await engine.claim(200)
    assert len(jobs) == middle
    args = engine.claiming(10)
    items = [
        c.Completion(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}", b"%d" % n)
        for n, job in enumerate(jobs)
    ]
    answer = await engine.call(c.CompleteManyArgs(
        partition=P0, lanes=["mail"], capability_sets=[], limit=10, claim_id=args.claim_id, worker_id="w",
        worker_instance_id="w1", lease_ttl_ms=TTL, items=items,
    ))  # fmt: skip
    (last,) = answer.claimed.jobs
    assert last.execution_id == ids[-1] and last.inputs is not None and not last.inputs.complete
    await engine.call(completion(last))
    now = await info(engine, flow)
    assert (now.counts["completed"], now.public_flow_state) == (middle + 2, "completed")


async def test_a_timer_of_an_end_that_is_settled_does_nothing(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s")
    uuid = ids[0].rpartition(":")[2]
    for kind in ("edges", "reopen", "siblings", "children"):
        await engine.command("ZADD", f"ff:{P0}:timers", engine.now, f"{kind}:{uuid}")
    await engine.command("ZADD", f"ff:{P0}:timers", engine.now, f"flow_cancel:{flow.rpartition(':')[2]}")
    await engine.command("ZADD", f"ff:{P0}:timers", engine.now, "edges:ffffffff-0000-7000-8000-000000000000")
    await settle(engine)
    assert await states(engine, ids) == ["ready", "blocked"]
    (job,) = await claimed(engine, ids[0])
    await engine.complete(job)
    await engine.command("ZADD", f"ff:{P0}:timers", engine.now, f"edges:{uuid}")
    await settle(engine)
    assert await states(engine, ids) == ["completed", "ready"]


async def test_the_end_of_a_flow_is_told_to_whoever_waits(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s")
    ears = {client: await engine.listen(f"ff:{P0}:c:{client}") for client in ("c1", "c2")}
    for client in ears:
        assert (await engine.call(c.AwaitFlowArgs(flow_id=flow, client=client))).state == "live"
    for id in ids:
        (job,) = await claimed(engine, id)
        await engine.complete(job)
    for client, ear in ears.items():
        assert await ear.heard() == [(client, f"{flow.rpartition(':')[2]} completed")]


async def test_a_member_says_in_the_feed_which_flow_it_ends_for(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s")
    (job,) = await claimed(engine, ids[0])
    await end(engine, job, "f")
    entries = await engine.command("XRANGE", f"ff:{P0}:ev", "-", "+")
    texts = [entry[1][i + 1].decode() for entry in entries for i in range(0, len(entry[1]), 2) if entry[1][i] == b"e"]
    ends = [text.split(" ", 7)[7] for text in texts if text.split(" ")[2] in ("failed", "skipped")]
    uuid: Any = flow.rpartition(":")[2]
    assert ends == [f"fatal flow={uuid}", f"upstream flow={uuid}"]
