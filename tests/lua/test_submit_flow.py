"""ff_submit_flow and ff_abort_flow: a graph stands as a whole or not at all, and nothing of it runs before it does."""

from __future__ import annotations

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import Namespace
from ffcore.policy import ExecutionPolicy
from ffcore.wire import pack_pairs
from tests.lua.engine import P0, START_MS, Engine, cancel, lane_told
from tests.lua.graphs import (
    DIGEST,
    MAIL,
    chunk,
    chunks,
    graph,
    incoming,
    info,
    outgoing,
    refused,
    row,
    spawning,
    states,
    uuid,
    waiting,
)

# ---- one call ----------------------------------------------------------------------------------------


async def test_a_graph_of_one_call_is_alive_when_it_is_answered(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "1a,2f", "")
    assert await states(engine, ids) == ["ready", "blocked", "blocked", "ready"]
    records = [await engine.read(id, "payload") for id in ids]
    assert [x.fields["node"] for x in records] == ["1", "2", "3", "4"]
    assert {x.fields["flow"] for x in records} == {uuid(flow)}
    assert [x.fields.get("reason") for x in records] == [None, "waiting_for_children", "waiting_for_children", None]
    assert [x.fields.get("deps") for x in records] == [None, "1", "1", None]
    assert [x.fields.get("outs") for x in records] == ["1", "1", None, None]
    assert [x.fields.get("inputs") for x in records] == [None, "1", "*", None]
    assert [x.payload for x in records] == [b"root", b"", b"", b"root"]
    assert "turn" not in records[1].fields, "what waits has no place in a queue"
    assert await incoming(engine, ids[2]) == {
        "g": "A 0 - 2 0 0 0 0 0 p", uuid(ids[0]): f"1 a u {START_MS}", uuid(ids[1]): f"2 f u {START_MS}",
    }  # fmt: skip
    assert await outgoing(engine, ids[0]) == [uuid(ids[1]), uuid(ids[2])]
    told = await info(engine, flow)
    assert (told.state, told.public_flow_state, told.node_count, told.edge_count) == ("live", "open", 4, 3)
    assert (told.counts, told.payload_bytes, told.graph_revision) == ({"ready": 2, "blocked": 2}, 8, 1)
    assert [job.execution_id for job in await engine.claim(limit=9)] == [ids[0], ids[3]]


@pytest.mark.parametrize(
    ("group", "kept"),
    [("A", "A 0 - 2 0 0 0 0 0 p"), ("O c", "O 1 c 2 0 0 0 0 0 p"), ("O l", "O 1 l 2 0 0 0 0 0 p"),
     ("Q 2 c", "Q 2 c 2 0 0 0 0 0 p"), ("Q 1 l", "Q 1 l 2 0 0 0 0 0 p")],
)  # fmt: skip
async def test_each_group_is_kept_as_it_was_given(engine: Engine, group: str, kept: str) -> None:
    one, two, join = (engine.new_id() for _ in range(3))
    await engine.call(chunk(engine.new_id(), [row(one), row(two), row(join, "1s,2s", group=group)]))
    assert (await incoming(engine, join))["g"] == kept


async def test_what_a_flow_is_told_is_kept_with_it(engine: Engine) -> None:
    flow, _ = await graph(
        engine, "", flow_kind="etl", name="nightly", namespace="shop", tags={"shop.run": "7"}, creator_identity="dana"
    )
    told = await info(engine, flow)
    assert (told.flow_kind, told.name, told.namespace, told.tags) == ("etl", "nightly", "shop", {"shop.run": "7"})


async def test_a_node_keeps_what_it_was_given(engine: Engine) -> None:
    policy = msgspec.json.encode(ExecutionPolicy(lease_ms=5_000)).decode()
    plans = [
        c.FlowPlan(execution_kind="pack", lane_id="post", version=3, priority=7, policy=policy, payload_encoding="j"),
        c.FlowPlan(execution_kind="send", lane_id="post", policy=policy, execution_deadline_at=START_MS + 9_000),
    ]
    id, other = engine.new_id(), engine.new_id()
    nodes = [
        row(id, payload=b"\x00\xff", fairness_key="t1", tags=pack_pairs({"shop.tenant": "t1"}), label="pack it"),
        row(other, "1s", payload=b"given", plan=2),
    ]
    await engine.call(chunk(engine.new_id(), nodes, plans=plans, namespace="shop", creator_identity="dana"))
    x, y = await engine.read(id, "payload"), await engine.read(other, "payload")
    assert (x.lane_id, x.payload, x.tags) == ("post", b"\x00\xff", {"shop.tenant": "t1"})
    assert x.texts == {"creator": "dana", "label": "pack it"}
    assert {n: x.fields[n] for n in ("task", "version", "priority", "payload_encoding", "namespace")} == {
        "task": "pack", "version": "3", "priority": "7", "payload_encoding": "j", "namespace": "shop",
    }  # fmt: skip
    assert len(x.fields["fair"]) == 12
    assert x.policy == y.policy == policy.encode()
    assert (y.payload, y.fields["deadline_at"], "inputs" in y.fields) == (b"given", str(START_MS + 9_000), False)
    assert await engine.command("HLEN", f"ff:{P0}:policies") == 3, "one policy, interned once"
    assert (await engine.timers())[f"deadline:{uuid(other)}"] == START_MS + 9_000


async def test_a_delay_holds_a_root_at_once_and_the_others_once_they_wait_for_nothing_else(engine: Engine) -> None:
    _, (root, next) = await graph(engine, "", "1s", plans=[msgspec.structs.replace(MAIL, delay_until=START_MS + 500)])
    assert await states(engine, [root, next]) == ["delayed", "blocked"]
    assert (await engine.read(next)).fields["due"] == str(START_MS + 500)
    await engine.advance(500)
    await engine.tick()
    (job,) = await engine.claim()
    await engine.complete(job)
    assert await engine.state(next) == "ready", "it was due meanwhile"


async def test_a_delay_that_is_ahead_is_waited_for_after_the_upstreams(engine: Engine) -> None:
    late = msgspec.structs.replace(MAIL, delay_until=START_MS + 500)
    root, next = engine.new_id(), engine.new_id()
    await engine.call(chunk(engine.new_id(), [row(root), row(next, "1s", plan=2)], plans=[MAIL, late]))
    (job,) = await engine.claim()
    await engine.complete(job)
    assert await engine.state(next) == "delayed"
    await engine.advance(500)
    await engine.tick()
    assert [job.execution_id for job in await engine.claim()] == [next]


async def test_a_chain_runs_from_end_to_end(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "2s", "3s")
    for id in ids:
        (job,) = await engine.claim(limit=9)
        assert job.execution_id == id
        await engine.complete(job)
    told = await info(engine, flow)
    assert (told.state, told.public_flow_state, told.counts) == ("ended", "completed", {"completed": 4})


async def test_priority_and_fairness_hold_for_what_waited(engine: Engine) -> None:
    high = msgspec.structs.replace(MAIL, priority=9)
    ids = [engine.new_id() for _ in range(3)]
    nodes = [row(ids[0]), row(ids[1], "1s", fairness_key="t1"), row(ids[2], "1s", plan=2)]
    await engine.call(chunk(engine.new_id(), nodes, plans=[MAIL, high]))
    (job,) = await engine.claim()
    await engine.complete(job)
    assert [job.execution_id for job in await engine.claim(limit=9)] == [ids[2], ids[1]]


async def test_a_node_of_as_many_upstreams_as_a_call_may_bring(engine: Engine) -> None:
    flow, ups = engine.new_id(), [engine.new_id() for _ in range(limits.FLOW_CHUNK_EDGES_N)]
    edges = ",".join(f"{n}s" for n in range(1, len(ups) + 1))
    last = engine.new_id()
    calls = chunks(flow, [row(up) for up in ups] + [row(last, edges)], limits.FLOW_CHUNK_N)
    answers = [await engine.call(call) for call in calls]
    assert answers[-1] == c.FlowSubmitted(flow, "open", len(ups) + 1)
    rows = await incoming(engine, last)
    assert len(rows) == len(ups) + 1 and rows["g"].startswith(f"A 0 - {len(ups)} ")
    assert rows[uuid(ups[700])] == f"701 s u {START_MS}"
    assert await outgoing(engine, ups[700]) == [uuid(last)]
    while (await engine.tick()).next_due_ms <= engine.now:
        pass
    assert (await info(engine, flow)).counts == {"ready": len(ups), "blocked": 1}


# ---- chunks ------------------------------------------------------------------------------------------


async def test_nothing_of_a_graph_runs_before_all_of_it_stands(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(5)]
    nodes = [row(ids[0]), row(ids[1], "1s"), row(ids[2]), row(ids[3], "1s,2s,3s"), row(ids[4], "4s")]
    one, two, three = chunks(flow, nodes, 2)
    assert await engine.call(one) == c.FlowStaged(2)
    assert await engine.call(two) == c.FlowStaged(3)
    assert await states(engine, ids[:4]) == ["blocked"] * 4
    assert await engine.claim(limit=9) == []
    told = await info(engine, flow)
    assert (told.state, told.public_flow_state, told.node_count, told.edge_count) == ("staging", "open", 4, 4)
    assert [name for name in await engine.timers() if name.startswith("staging")] == [f"staging:{uuid(flow)}"]
    assert await engine.call(three) == c.FlowSubmitted(flow, "open", 5)
    assert await states(engine, ids) == ["ready", "blocked", "ready", "blocked", "blocked"]
    assert (await incoming(engine, ids[3]))[uuid(ids[2])] == f"3 s u {START_MS}"
    assert await outgoing(engine, ids[0]) == [uuid(ids[1]), uuid(ids[3])]
    assert (await engine.read(ids[3])).fields["outs"] == "1", "named by a later chunk"
    assert not [name for name in await engine.timers() if name.startswith("staging")]
    for _ in ids:
        jobs = await engine.claim(limit=9)
        for job in jobs:
            await engine.complete(job)
    assert (await info(engine, flow)).counts == {"completed": 5}


async def test_a_chunk_may_be_sent_again_and_not_ahead_of_its_turn(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(6)]
    one, two, three = chunks(flow, [row(id) for id in ids], 2)
    assert await refused(engine, "stale_graph_revision", two) == "1"
    assert await engine.call(one) == c.FlowStaged(2)
    assert await engine.call(one) == c.FlowStaged(2)
    assert await refused(engine, "stale_graph_revision", three) == "2"
    assert await engine.call(two) == c.FlowStaged(3)
    assert await engine.call(one) == c.FlowStaged(3)
    await refused(engine, "idempotency_conflict", three, digest=b"other")
    assert await engine.call(three) == c.FlowSubmitted(flow, "open", 6)
    for call in (one, three):
        assert await engine.call(call) == c.FlowDuplicate(flow, "open")
    assert await refused(engine, "idempotency_conflict", three, digest=b"other") == flow
    assert (await info(engine, flow)).node_count == 6
    assert (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["replays"] == "4"


async def test_a_graph_sent_again_is_told_how_it_stands(engine: Engine) -> None:
    flow, ids = await graph(engine, "")
    again = chunk(flow, [row(ids[0])])
    assert await engine.call(again) == c.FlowDuplicate(flow, "open")
    (job,) = await engine.claim()
    assert await engine.call(again) == c.FlowDuplicate(flow, "running")
    await engine.complete(job)
    assert await engine.call(again) == c.FlowDuplicate(flow, "completed")


async def test_an_id_that_a_flow_of_another_making_has_is_a_conflict(engine: Engine) -> None:
    flow = engine.new_id()
    await engine.call(c.CreateFlowArgs(flow_id=flow, flow_kind="etl", namespace=Namespace("default")))
    await refused(engine, "idempotency_conflict", chunk(flow, [row(engine.new_id())]))


async def test_roots_of_a_large_graph_become_ready_some_at_a_time(engine: Engine) -> None:
    flow, n = engine.new_id(), 2 * limits.EDGES_INLINE_N + 50
    ids = [engine.new_id() for _ in range(n)]
    for call in chunks(flow, [row(id) for id in ids], limits.FLOW_CHUNK_N):
        await engine.call(call)
    assert (await info(engine, flow)).counts == {"ready": limits.EDGES_INLINE_N, "blocked": n - limits.EDGES_INLINE_N}
    assert [name for name in await engine.timers() if name.startswith("publish")] == [
        f"publish:{uuid(flow)} {limits.EDGES_INLINE_N + 1}"
    ]
    await engine.tick()
    assert (await info(engine, flow)).counts == {"ready": 2 * limits.EDGES_INLINE_N, "blocked": 50}
    await engine.tick()
    assert (await info(engine, flow)).counts == {"ready": n}
    assert not [name for name in await engine.timers() if name.startswith("publish")]


async def test_roots_behind_many_others_are_found(engine: Engine) -> None:
    """One call looks at a bounded number of members."""
    flow, n = engine.new_id(), 1_100
    ids = [engine.new_id() for _ in range(n)]
    nodes = [row(ids[0])] + [row(id, "1s") for id in ids[1:-1]] + [row(ids[-1])]
    for call in chunks(flow, nodes, limits.FLOW_CHUNK_N):
        await engine.call(call)
    assert await states(engine, [ids[0], ids[1], ids[-1]]) == ["ready", "blocked", "blocked"]
    await engine.tick()
    assert await states(engine, [ids[0], ids[1], ids[-1]]) == ["ready", "blocked", "ready"]


async def test_who_waits_for_children_meanwhile_is_no_root(engine: Engine) -> None:
    """A member that a root has spawned may have run before the publishing comes to its number."""
    flow, n = engine.new_id(), 2 * limits.EDGES_INLINE_N + 50
    for call in chunks(flow, [row(engine.new_id()) for _ in range(n)], limits.FLOW_CHUNK_N):
        await engine.call(call)
    (root,) = await engine.claim()
    child, grandchild = engine.new_id(), engine.new_id()
    await engine.call(spawning(root, child, flow, priority=9))
    (job,) = await engine.claim()
    assert job.execution_id == child
    await engine.call(spawning(job, grandchild, flow))
    await engine.call(waiting(job, grandchild))
    await engine.tick()
    await engine.tick()
    assert (await info(engine, flow)).counts == {"active": 1, "blocked": 1, "ready": n}
    assert await engine.state(child) == "blocked"


async def test_a_timer_of_a_graph_that_is_gone_does_nothing(engine: Engine) -> None:
    await engine.command("ZADD", f"ff:{P0}:timers", START_MS, f"publish:{uuid(engine.new_id())} 1")
    await engine.tick()
    assert await engine.timers() == {}


# ---- ends before the graph is published --------------------------------------------------------------


async def test_a_member_that_is_cancelled_before_all_stands_is_an_upstream_that_has_ended(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(7)]
    nodes = [
        row(ids[0]), row(ids[1], "1a"), row(ids[2], "1s"),            # told when it ends
        row(ids[3]), row(ids[4], "1a"), row(ids[5], "1s"), row(ids[6], "1a,4a"),   # told when they come
    ]  # fmt: skip
    one, two, three = chunks(flow, nodes, 3)
    await engine.call(one)
    await engine.call(cancel(ids[0]))
    assert await states(engine, ids[:3]) == ["cancelled", "blocked", "blocked"], "nothing is let go before all stands"
    await engine.call(two)
    assert await states(engine, ids[3:6]) == ["blocked"] * 3
    await engine.call(three)
    assert await states(engine, ids) == ["cancelled", "ready", "skipped", "ready", "ready", "skipped", "blocked"]
    for job in await engine.claim(limit=9):
        await engine.complete(job)
    assert await engine.state(ids[6]) == "ready"


async def test_a_deadline_that_passes_before_all_stands_is_an_end(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(2)]
    plans = [MAIL, msgspec.structs.replace(MAIL, execution_deadline_at=START_MS + 100)]
    one, two = chunks(flow, [row(ids[0], plan=2), row(ids[1], "1f")], 1, plans=plans)
    await engine.call(one)
    await engine.advance(100)
    await engine.tick()
    assert await engine.state(ids[0]) == "expired"
    await engine.call(two)
    assert await engine.state(ids[1]) == "ready"


async def test_a_graph_of_which_nothing_is_left_ends_when_it_is_published(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(2)]
    one, two = chunks(flow, [row(ids[0]), row(ids[1], "1s")], 1)
    await engine.call(one)
    await engine.call(cancel(ids[0]))
    await engine.call(two)
    assert await states(engine, ids) == ["cancelled", "skipped"]
    told = await info(engine, flow)
    assert (told.state, told.public_flow_state) == ("ended", "cancelled")


# ---- the key stays taken -----------------------------------------------------------------------------


async def test_a_flow_that_was_purged_is_a_duplicate_as_long_as_its_tombstone_stands(engine: Engine) -> None:
    flow, id = engine.new_id(key="nightly"), engine.new_id()
    await engine.call(lane_told(age_ms=limits.RETENTION_MIN_AGE_MS))
    await engine.call(chunk(flow, [row(id)]))
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.advance(limits.RETENTION_MIN_AGE_MS)
    await engine.tick()
    await engine.tick()
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    again = chunk(flow, [row(id)])
    assert await engine.call(again) == c.FlowDuplicate(flow, "purged")
    assert await refused(engine, "idempotency_conflict", again, digest=b"other") == flow


async def test_a_flow_that_is_being_removed_is_not_submitted_again_yet(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(2)]
    one, two = chunks(flow, [row(id) for id in ids], 1)
    await engine.call(one)
    assert isinstance(await engine.call(c.AbortFlowArgs(flow_id=flow, digest=DIGEST)), c.FlowAborted)
    assert await refused(engine, "purging", one) == flow
    await engine.tick()
    assert await engine.call(one) == c.FlowStaged(2), "its ids are free again"
    await engine.call(two)


# ---- abort -------------------------------------------------------------------------------------------


async def test_only_what_is_staged_under_that_digest_is_aborted(engine: Engine) -> None:
    flow = engine.new_id()

    async def aborted(digest: bytes = DIGEST) -> bool:
        return isinstance(await engine.call(c.AbortFlowArgs(flow_id=flow, digest=digest)), c.FlowAborted)

    assert not await aborted()
    one, two = chunks(flow, [row(engine.new_id(key="a")), row(engine.new_id(key="b"))], 1)
    await engine.call(one)
    assert not await aborted(b"other")
    assert await aborted()
    assert not await aborted()
    await engine.tick()
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=one.nodes[0].execution_id, parts=""))
    await engine.call(one)
    await engine.call(two)
    assert not await aborted(), "it is alive"
