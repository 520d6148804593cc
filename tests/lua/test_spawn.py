"""ff_spawn: a running execution makes another one, as a step of its journal and a member of its flow."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import ExecutionPolicy
from ffcore.steps import JournalEntry
from tests.lua.engine import OPERATOR, P0, START_MS, TTL, Engine, cancel, lane_told, missing, retries, revoke, timeouts
from tests.lua.graphs import chunks, graph, incoming, info, outgoing, refused, row, spawning, states, uuid


async def journal(engine: Engine, id: Any) -> list[JournalEntry]:
    page = await engine.call(c.ReadJournalArgs(execution_id=id, from_seq=1, limit=100))
    return [JournalEntry.parse(entry, n) for n, entry in enumerate(page.entries, 1)]


# ---- one child ---------------------------------------------------------------------------------------


async def test_a_child_its_edge_and_the_step_come_in_one_call(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    given: dict[str, Any] = {"tags": {"a.b": "1"}, "label": "page 7", "creator_identity": "dana", "fairness_key": "t1"}
    answer = await engine.call(spawning(job, child, flow, **given))
    assert answer == c.Spawned(child, True, job.lease_expires_at, 0)
    (entry,) = await journal(engine, job.execution_id)
    assert (entry.kind, entry.status, entry.name, entry.value) == ("spawn", "ok", "child", child.encode())
    parent, x = await engine.read(job.execution_id), await engine.read(child, "payload")
    assert {n: parent.fields[n] for n in ("flow", "node", "children")} == {
        "flow": uuid(flow), "node": "1", "children": "1",
    }  # fmt: skip
    assert {n: x.fields[n] for n in ("flow", "node", "outs", "state")} == {
        "flow": uuid(flow), "node": "2", "outs": "1", "state": "ready",
    }  # fmt: skip
    assert (x.payload, x.tags, x.texts) == (b"in", {"a.b": "1"}, {"creator": "dana", "label": "page 7"})
    assert await incoming(engine, job.execution_id) == {"c": "1 1", uuid(child): f"1 c u {START_MS}"}
    assert await outgoing(engine, child) == [uuid(job.execution_id)]
    told = await info(engine, flow)
    assert (told.state, told.node_count, told.edge_count, told.counts) == ("live", 2, 1, {"active": 1, "ready": 1})
    assert told.payload_bytes == 2
    assert [one.execution_id for one in await engine.claim(limit=9)] == [child]


async def test_a_member_spawns_into_its_own_flow(engine: Engine) -> None:
    flow, (root, _) = await graph(engine, "", "1s")
    (job,) = await engine.claim()
    child = engine.new_id()
    await engine.call(spawning(job, child, flow))
    assert (await engine.read(child)).fields["node"] == "3"
    assert (await info(engine, flow)).node_count == 3
    await engine.complete(job)
    assert (await info(engine, flow)).counts == {"completed": 1, "ready": 2}
    assert root == job.execution_id


async def test_a_flow_lasts_as_long_as_any_child(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow, namespace="shop"))
    await engine.complete(job)
    told = await info(engine, flow)
    assert (told.state, told.namespace) == ("live", "shop")
    (grown,) = await engine.claim()
    grandchild = engine.new_id()
    await engine.call(spawning(grown, grandchild, flow))
    await engine.complete(grown)
    (last,) = await engine.claim()
    await engine.complete(last)
    told = await info(engine, flow)
    assert (told.state, told.public_flow_state, told.counts) == ("ended", "completed", {"completed": 3})


async def test_a_child_that_fails_skips_nobody_and_fails_no_flow(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow))
    (born,) = await engine.claim()
    await engine.fail(born)
    assert await states(engine, [job.execution_id, child]) == ["active", "failed"]
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_child_may_be_delayed_and_need_capabilities(engine: Engine) -> None:
    job = await engine.running()
    flow, late, gpu = engine.new_id(), engine.new_id(), engine.new_id()
    await engine.call(spawning(job, late, flow, delay_until=START_MS + 50))
    needs = b'{"routing_requirements":{"required_capabilities":["gpu"]}}'
    await engine.call(spawning(job, gpu, flow, n=2, policy=needs))
    assert await states(engine, [late, gpu]) == ["delayed", "ready"]
    assert await engine.claim(limit=9) == []


async def test_a_cancelled_parent_cancels_its_children_unless_they_were_let_go(engine: Engine) -> None:
    job = await engine.running()
    flow, kept, gone = engine.new_id(), engine.new_id(), engine.new_id()
    await engine.call(spawning(job, kept, flow, abandon=True))
    await engine.call(spawning(job, gone, flow, n=2))
    assert (await incoming(engine, job.execution_id))[uuid(kept)] == f"1 c u {START_MS} - x"
    await engine.call(cancel(job.execution_id, OPERATOR))
    assert await states(engine, [kept, gone]) == ["ready", "cancelled"]


# ---- again -------------------------------------------------------------------------------------------


async def test_a_step_that_stands_answers_its_child(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow))
    for other in (child, engine.new_id()):
        again = await engine.call(spawning(job, other, flow))
        assert isinstance(again, c.SpawnReplayed)
        assert JournalEntry.parse(again.entry).value == child.encode()
    await engine.fail(job)
    (born,) = await engine.claim(limit=1)
    (retried,) = await engine.claim(limit=1)
    assert {born.execution_id, retried.execution_id} == {child, job.execution_id}
    retried = born if born.execution_id == job.execution_id else retried
    assert isinstance(await engine.call(spawning(retried, engine.new_id(), flow)), c.SpawnReplayed)
    assert (await info(engine, flow)).node_count == 2
    assert (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["replays"] == "3"


async def test_a_step_that_was_recorded_as_failed_before_is_replaced(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    args = spawning(job, child, flow)
    await engine.call(c.RecordStepArgs(
        execution_id=job.execution_id, fence=args.fence, step=args.step, name="child", kind="spawn", status="error",
        value=b"1 busy",
    ))  # fmt: skip
    assert await engine.call(args) == c.Spawned(child, True, job.lease_expires_at, 0)
    assert [(e.seq, e.status) for e in await journal(engine, job.execution_id)] == [(1, "ok")]


async def test_a_member_with_the_id_and_the_digest_becomes_a_child(engine: Engine) -> None:
    """Of two steps with one key there is one child, and a node of the graph may be awaited as one."""
    flow, (root, node) = await graph(engine, "", "")
    (job,) = await engine.claim()
    assert job.execution_id == root
    child = engine.new_id()
    await engine.call(spawning(job, child, flow))
    assert await engine.call(spawning(job, child, flow, n=2)) == c.Spawned(child, False, job.lease_expires_at, 0)
    assert (await incoming(engine, root))["c"] == "1 1"
    assert await outgoing(engine, child) == [uuid(root)]
    assert await engine.call(spawning(job, node, flow, n=3)) == c.Spawned(node, False, job.lease_expires_at, 0)
    assert (await incoming(engine, root))["c"] == "2 2"
    assert await outgoing(engine, node) == [uuid(root)]
    told = await info(engine, flow)
    assert (told.node_count, told.edge_count) == (3, 2)
    assert len(await journal(engine, root)) == 3


async def test_a_member_that_has_ended_becomes_a_child_that_has(engine: Engine) -> None:
    flow, (root, node) = await graph(engine, "", "")
    job, other = await engine.claim(limit=2)
    await engine.fail(other)
    await engine.call(spawning(job, node, flow))
    assert (await incoming(engine, root)) == {"c": "1 0", uuid(node): f"1 c S {START_MS}"}
    await engine.complete(job)
    assert (await info(engine, flow)).public_flow_state == "completed", "its failure is its parent's to mind"


# ---- the lease ---------------------------------------------------------------------------------------


async def test_a_spawn_renews_the_lease(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(attempt_timeout_ms=2 * TTL))
    flow = engine.new_id()
    await engine.advance(1_000)
    for n, ttl, end in ((1, 0, START_MS + TTL), (2, TTL, START_MS + 1_000 + TTL), (3, 100, START_MS + 1_000 + TTL),
                        (3, 5 * TTL, START_MS + 2 * TTL)):  # fmt: skip
        answer = await engine.call(spawning(job, engine.new_id(), flow, n=n, lease_ttl_ms=ttl))
        assert answer.lease_expires_at == end
        assert (await engine.timers())[f"lease:{uuid(job.execution_id)}"] == end
    assert (await engine.read(job.execution_id)).fields["heard"] == str(job.lease_epoch)


async def test_a_policy_says_how_long_the_lease_is(engine: Engine) -> None:
    job = await engine.running(policy={"lease_ms": 5_000})
    await engine.advance(1_000)
    answer = await engine.call(spawning(job, engine.new_id(), engine.new_id(), lease_ttl_ms=TTL))
    assert answer.lease_expires_at == START_MS + 6_000


async def test_only_who_holds_the_lease_spawns(engine: Engine) -> None:
    job = await engine.running()
    args = spawning(job, engine.new_id(), engine.new_id())
    await refused(engine, "execution_not_found", args, execution_id=missing())
    await refused(engine, "stale_lease", args, fence="w1.s0.0.0 1 w1.s0.0.0")
    await engine.advance(TTL)
    await engine.refused("lease_expired", args)
    await engine.at(START_MS + 1)
    await engine.call(revoke(job.execution_id))
    await refused(engine, "lease_revoked", args)
    (job,) = await engine.claim()
    await engine.complete(job)
    await refused(engine, "terminal", spawning(job, engine.new_id(), engine.new_id()))


async def test_whoever_is_being_cancelled_spawns_no_more_and_ends(engine: Engine) -> None:
    """As where it would suspend: what it was about to wait for or to leave behind is not made."""
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow))
    asked = await engine.call(cancel(job.execution_id))
    assert isinstance(asked, c.CancelRequested)
    replayed = await engine.call(spawning(job, child, flow))
    assert isinstance(replayed, c.SpawnReplayed) and replayed.cancel_until == START_MS + limits.CANCEL_GRACE_MS
    second = engine.new_id()
    assert await engine.refused("terminal", spawning(job, second, flow, n=2)) == "cancelled"
    assert await states(engine, [job.execution_id, child]) == ["cancelled", "cancelled"]
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=second, parts=""))


# ---- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "detail", "given"),
    [
        ("invalid_input", "step", {"step": "no hex"}), ("invalid_input", "name", {"step_name": ""}),
        ("invalid_input", "task_version", {"task_version": 0}),
        ("invalid_input", "lease_ttl_ms", {"lease_ttl_ms": 99}),
        ("invalid_input", "lease_ttl_ms", {"lease_ttl_ms": limits.LEASE_TTL_MAX_MS + 1}),
        ("invalid_input", "digest", {"digest": b""}), ("invalid_input", "digest", {"digest": b"x" * 33}),
        ("payload_too_large", str(limits.PAYLOAD_BYTES + 1), {"input_payload": b"x" * (limits.PAYLOAD_BYTES + 1)}),
        ("invalid_input", "label", {"label": ""}), ("invalid_input", "label", {"label": "x" * 513}),
        ("invalid_input", "tags", {"tags": {f"a.b{n}": "1" for n in range(65)}}),
        ("invalid_tag_key", "bad", {"tags": {"bad": "1"}}),
        ("invalid_input", "lane_id", {"lane_id": "#1"}), ("invalid_input", "execution_kind", {"execution_kind": ""}),
        ("invalid_input", "namespace", {"namespace": "two words"}), ("invalid_input", "version", {"version": 0}),
        ("invalid_input", "priority", {"priority": 10_001}), ("invalid_input", "delay_until", {"delay_until": -1}),
        ("invalid_input", "creator_identity", {"creator_identity": "x" * 513}),
        ("invalid_input", "payload_encoding", {"payload_encoding": "x" * 129}),
        ("invalid_input", "execution_deadline_at", {"execution_deadline_at": -1}),
        ("invalid_policy_json", "an object with the fields of ExecutionPolicy, each within its bounds",
         {"policy": b"no"}),
        ("invalid_capabilities", "token 1", {"policy": b'{"routing_requirements":{"required_capabilities":["a b"]}}'}),
    ],
)  # fmt: skip
async def test_a_child_that_cannot_be_is_refused_by_name(
    engine: Engine, code: str, detail: str, given: dict[str, Any]
) -> None:
    job = await engine.running()
    args = spawning(job, engine.new_id(), engine.new_id(), lease_ttl_ms=2 * TTL)
    assert await refused(engine, code, args, **given) == detail


async def test_nobody_is_its_own_child(engine: Engine) -> None:
    job = await engine.running()
    await refused(engine, "invalid_input", spawning(job, job.execution_id, engine.new_id()))


async def test_a_lane_that_is_full_takes_no_child(engine: Engine) -> None:
    job = await engine.running()
    args = spawning(job, engine.new_id(), engine.new_id())
    await engine.submit()
    await engine.call(lane_told(max_count=2))   # one in each of two partitions
    assert await refused(engine, "lane_full", args) == str(limits.FULL_RETRY_MS)
    await engine.call(lane_told(max_count=0))


async def test_a_lane_that_is_closed_and_names_beyond_the_bound_are_refused(engine: Engine) -> None:
    job = await engine.running()
    args = spawning(job, engine.new_id(), engine.new_id())
    await engine.call(lane_told("post", state="draining"))
    assert await refused(engine, "lane_closed", args, lane_id="post") == "draining"
    known = int(await engine.command("HLEN", f"ff:{P0}:lanes")) // 2
    table = [word for n in range(known + 1, limits.LANES_N + 1) for word in (f"lane-{n}", str(n), f"#{n}", f"lane-{n}")]
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    await refused(engine, "too_many_names", args, lane_id="one-more")
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[0::4], *table[2::4])


async def test_a_journal_that_is_full_takes_no_child(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow))
    key = f"ff:{P0}:j:{uuid(job.execution_id)}"
    kept = await engine.command("HGET", key, "n")
    await engine.command("HSET", key, "n", f"{limits.STEPS_N} {kept.split()[1].decode()}")
    assert await refused(engine, "journal_full", spawning(job, engine.new_id(), flow, n=2)) == f"{limits.STEPS_N} steps"
    await engine.command("HSET", key, "n", kept)


async def test_above_the_high_water_mark_a_spawn_leaves_nothing(engine: Engine) -> None:
    job = await engine.running()
    args = spawning(job, engine.new_id(), engine.new_id())
    await engine.command("HSET", f"ff:{P0}", "gate_until", START_MS + 1_000, "v", "1 x")
    await refused(engine, "store_full", args)
    await engine.advance(1_001)
    assert isinstance(await engine.call(args), c.Spawned)


async def test_an_id_that_somebody_else_has_is_a_conflict(engine: Engine) -> None:
    flow, (root, node) = await graph(engine, "", "")
    job = next(job for job in await engine.claim(limit=2) if job.execution_id == root)
    alone = await engine.submit()
    assert await refused(engine, "idempotency_conflict", spawning(job, node, flow, digest=b"o" * 16)) == node
    said = f"{alone} is no member of the flow"
    assert await refused(engine, "idempotency_conflict", spawning(job, alone, flow)) == said
    other, (member,) = await graph(engine, "")
    assert await refused(engine, "execution_already_in_flow", spawning(job, member, flow)) == other
    assert await refused(engine, "execution_already_in_flow", spawning(job, engine.new_id(), other)) == flow


async def test_whoever_depends_on_the_other_is_no_parent_of_it(engine: Engine) -> None:
    """Each would wait for the other's end."""
    flow, (up, down) = await graph(engine, "", "1a")
    (job,) = await engine.claim()
    said = f"{down} and its parent depend on each other already"
    assert await refused(engine, "idempotency_conflict", spawning(job, down, flow)) == said
    await engine.complete(job)
    (job,) = await engine.claim()
    assert job.execution_id == down
    said = f"{up} and its parent depend on each other already"
    assert await refused(engine, "idempotency_conflict", spawning(job, up, flow)) == said


async def test_the_id_of_one_that_was_purged_stays_taken(engine: Engine) -> None:
    child = engine.new_id(key="once")
    await engine.command("HSET", f"ff:{P0}:tomb:{child[-3:]}", uuid(child), f"{START_MS + 60_000} " + "d" * 16)
    await engine.command("ZADD", f"ff:{P0}:reap", START_MS + 60_000, f"tomb:{child[-3:]}")
    job = await engine.running()
    await engine.refused("idempotency_conflict", spawning(job, child, engine.new_id()))
    await engine.at(START_MS + 60_001)
    job = await engine.running(lane_id="post")
    assert isinstance(await engine.call(spawning(job, child, engine.new_id())), c.Spawned)


async def test_a_flow_that_was_cancelled_has_no_new_members(engine: Engine) -> None:
    flow, (root,) = await graph(engine, "")
    (job,) = await engine.claim()
    await engine.call(
        c.CancelFlowArgs(flow_id=flow, reason="enough", cancellation_policy=c.CancelFlowPolicy.CANCEL_PENDING)
    )
    assert await refused(engine, "flow_already_terminal", spawning(job, engine.new_id(), flow)) == "cancelled"
    alone = await engine.running()
    await refused(engine, "flow_already_terminal", spawning(alone, engine.new_id(), flow))
    assert root == job.execution_id


async def test_a_flow_that_is_not_published_takes_nobody_in(engine: Engine) -> None:
    flow = engine.new_id()
    one, two = chunks(flow, [row(engine.new_id()), row(engine.new_id())], 1)
    await engine.call(one)
    job = await engine.running()
    await refused(engine, "flow_already_terminal", spawning(job, engine.new_id(), flow))
    await engine.call(two)
    assert isinstance(await engine.call(spawning(job, engine.new_id(), flow)), c.Spawned)


@pytest.mark.parametrize(
    ("field", "most", "what"),
    [("n", limits.FLOW_NODES_N, "nodes"), ("e", limits.FLOW_EDGES_N, "edges"),
     ("z", limits.FLOW_BYTES, "bytes of payloads")],
)  # fmt: skip
async def test_a_flow_that_is_as_large_as_it_may_be_takes_no_child(
    engine: Engine, field: str, most: int, what: str
) -> None:
    flow, _ = await graph(engine, "")
    (job,) = await engine.claim()
    key = f"ff:{P0}:flow:{uuid(flow)}"
    kept = await engine.command("HGET", key, field)
    await engine.command("HSET", key, field, most)
    assert await refused(engine, "flow_too_large", spawning(job, engine.new_id(), flow)) == f"{most} {what}"
    await (engine.command("HSET", key, field, kept) if kept else engine.command("HDEL", key, field))


async def test_a_replay_of_the_parent_goes_on_with_its_children(engine: Engine) -> None:
    job = await engine.running()
    flow, child = engine.new_id(), engine.new_id()
    await engine.call(spawning(job, child, flow))
    await engine.fail(job)
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="resume"))
    jobs = {one.execution_id: one for one in await engine.claim(limit=9)}
    again = jobs[job.execution_id]
    assert isinstance(await engine.call(spawning(again, child, flow)), c.SpawnReplayed)
    policy = msgspec.json.encode(ExecutionPolicy())
    assert isinstance(await engine.call(spawning(again, engine.new_id(), flow, n=2, policy=policy)), c.Spawned)
