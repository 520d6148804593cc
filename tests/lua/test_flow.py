"""Flows as a whole: created, grown, cancelled, tagged, looked at."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.wire import pack_pairs
from tests.lua.engine import P0, P1, W0, Engine, cancel, missing, retries, unclaim
from tests.lua.graphs import chunks, graph, info, row, states, uuid
from tests.lua.test_gate import CAN, gate, look

FLOW = f"ff:{P0}:flow:"
POLICIES = list(c.CancelFlowPolicy)


def creating(flow: Any, **options: Any) -> c.CreateFlowArgs:
    given: dict[str, Any] = {"flow_kind": "nightly", "namespace": "default"} | options
    return c.CreateFlowArgs(flow_id=flow, **given)


def adding(flow: Any, id: Any) -> c.AddExecutionToFlowArgs:
    return c.AddExecutionToFlowArgs(flow_id=flow, execution_id=id)


def cancelling(flow: Any, policy: str = "cancel_all", reason: str = "no longer wanted") -> c.CancelFlowWireArgs:
    return c.CancelFlowWireArgs(flow_id=flow, reason=reason, cancellation_policy=policy)


def tagging(flow: Any, **tags: str) -> c.SetFlowTagsArgs:
    return c.SetFlowTagsArgs(flow_id=flow, tags={name.replace("_", "."): value for name, value in tags.items()})


async def empty(engine: Engine, **options: Any) -> Any:
    flow = engine.new_id()
    await engine.call(creating(flow, **options))
    return flow


async def grown(engine: Engine, n: int = 2, **options: Any) -> tuple[Any, list[Any]]:
    """A flow that was grown one by one, of executions that may run."""
    flow, ids = await empty(engine), [await engine.submit(**options) for _ in range(n)]
    for id in ids:
        await engine.call(adding(flow, id))
    return flow, ids


async def staging(engine: Engine, n: int = 3) -> tuple[Any, list[Any]]:
    """A graph of which the last chunk has not come."""
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n + 1)]
    nodes = [row(id, f"{i}s" if i else "") for i, id in enumerate(ids)]
    for call in chunks(flow, nodes, n)[:-1]:
        await engine.call(call)
    return flow, ids[:n]


async def run(engine: Engine, n: int = 50) -> None:
    """Whatever may run, runs and succeeds."""
    for _ in range(n):
        jobs = await engine.claim(50)
        if not jobs:
            return
        for job in jobs:
            await engine.complete(job)


# ---- create ------------------------------------------------------------------------------------------------


async def test_a_flow_is_created_once(engine: Engine) -> None:
    flow = await empty(engine, namespace="shop")
    assert type(await engine.call(creating(flow))) is c.FlowAlreadySatisfied
    got = await info(engine, flow)
    assert (got.flow_kind, got.namespace, got.state, got.public_flow_state) == ("nightly", "shop", "live", "open")
    assert (got.node_count, got.edge_count, got.graph_revision, got.counts) == (0, 0, 0, {})
    assert (got.created_at, got.last_mutation_at, got.ended_at) == (engine.now, engine.now, None)


async def test_a_flow_that_cannot_be_is_refused(engine: Engine) -> None:
    good = creating(engine.new_id())
    assert await engine.refused("invalid_input", good, flow_kind="x" * (limits.NAME_BYTES + 1)) == "flow_kind"
    assert await engine.refused("invalid_input", good, flow_kind="a\nb") == "flow_kind"
    assert await engine.refused("invalid_input", good, namespace="") == "namespace"
    assert await engine.refused("invalid_input", good, flow_id=engine.new_id(W0)) == "partition"


@CAN
async def test_above_the_mark_no_flow_begins_and_one_that_exists_is_answered(engine: Engine) -> None:
    flow = await empty(engine)
    await engine.call(gate(gate_bytes=1))
    await look(engine)
    await engine.refused("store_full", creating(engine.new_id()))
    assert type(await engine.call(creating(flow))) is c.FlowAlreadySatisfied


# ---- grow --------------------------------------------------------------------------------------------------


async def test_executions_become_members_by_number(engine: Engine) -> None:
    flow, ids = await grown(engine, 3)
    answer = await engine.call(adding(flow, ids[1]))
    assert answer == c.AlreadyMember(ids[1], 3)
    got = await info(engine, flow)
    assert (got.node_count, got.graph_revision, got.counts, got.payload_bytes) == (3, 3, {"ready": 3}, 15)
    await run(engine)
    assert (await info(engine, flow)).public_flow_state == "completed"


@pytest.mark.parametrize("word", ["active", "delayed", "blocked", "completed", "failed"])
async def test_a_member_may_come_in_any_state(engine: Engine, word: str) -> None:
    """What has ended when it comes is as good as what ends later: the flow has ended with it."""
    flow = await empty(engine)
    if word in ("delayed", "blocked"):
        id = await engine.submit(delay_until=engine.now + 5_000 if word == "delayed" else None)
        if word == "blocked":
            await engine.call(c.PauseExecutionArgs(execution_id=id, reason=""))
    else:
        job = await engine.running()
        id = job.execution_id
        if word == "completed":
            await engine.complete(job)
        elif word == "failed":
            await engine.fail(job)
    await engine.call(adding(flow, id))
    got = await info(engine, flow)
    public = {"active": "running", "delayed": "open", "blocked": "open", "completed": "completed", "failed": "failed"}
    assert (got.counts, got.public_flow_state) == ({word: 1}, public[word])
    assert got.ended is (word in ("completed", "failed"))


async def test_who_may_not_become_a_member(engine: Engine) -> None:
    flow, (id, _) = await grown(engine)
    other = await empty(engine)
    assert await engine.refused("execution_already_in_flow", adding(other, id)) == flow
    await engine.refused("execution_not_found", adding(flow, missing()))
    await engine.refused("flow_not_found", adding(missing(), id))
    unborn, (member, *_) = await staging(engine)
    assert "being sent" in await engine.refused("flow_not_found", adding(unborn, await engine.submit()))
    assert type(await engine.call(adding(unborn, member))) is c.AlreadyMember


async def test_a_flow_that_has_ended_takes_nobody(engine: Engine) -> None:
    flow, ids = await grown(engine)
    late = await engine.submit(lane_id="other")
    await run(engine)
    assert await engine.refused("flow_already_terminal", adding(flow, late)) == "completed"
    assert type(await engine.call(adding(flow, ids[0]))) is c.AlreadyMember
    cancelled = await empty(engine)
    await engine.call(cancelling(cancelled))
    assert await engine.refused("flow_already_terminal", adding(cancelled, late)) == "cancelled"


@pytest.mark.parametrize(("field", "most"), [("n", limits.FLOW_NODES_N), ("z", limits.FLOW_BYTES)])
async def test_a_flow_has_bounds(engine: Engine, field: str, most: int) -> None:
    flow, _ = await grown(engine, 1)
    key, last = FLOW + uuid(flow), await engine.submit()
    before = await engine.command("HGET", key, field)
    await engine.command("HSET", key, field, most)
    assert str(most) in await engine.refused("flow_too_large", adding(flow, last))
    await engine.command("HSET", key, field, before)
    await engine.call(adding(flow, last))


# ---- cancel ------------------------------------------------------------------------------------------------


async def mixed(engine: Engine) -> tuple[Any, dict[str, Any]]:
    """A flow with a member that runs, one that is to be retried, one that waits for its turn, one for its time."""
    flow = await empty(engine)
    policy = retries(3)
    running = await engine.running(policy=policy)
    job = await engine.running(policy=policy)
    ids = {"running": running.execution_id, "begun": job.execution_id}
    await engine.call(unclaim(job))
    ids["ready"] = await engine.submit()
    ids["delayed"] = await engine.submit(delay_until=engine.now + 5_000)
    for id in ids.values():
        await engine.call(adding(flow, id))
    return flow, ids | {"job": running}


async def test_cancel_all_cancels_what_does_not_run_and_asks_what_does(engine: Engine) -> None:
    flow, ids = await mixed(engine)
    answer = await engine.call(cancelling(flow, reason="too late"))
    members = [ids[name] for name in ("running", "begun", "ready", "delayed")]
    assert answer == c.FlowCancelBegun("cancel_all", members, 4)
    assert await states(engine, members) == ["active", "cancelled", "cancelled", "cancelled"]
    got = await info(engine, flow)
    assert (got.state, got.public_flow_state) == ("live", "cancelled")
    assert (got.cancelled_at, got.cancel_reason) == (engine.now, "too late")
    assert (got.cancellation_policy, got.unfinished) == ("cancel_all", 1)
    await engine.pass_time(limits.CANCEL_GRACE_MS)
    assert await engine.state(ids["running"]) == "cancelled"
    assert (await info(engine, flow)).ended


async def test_cancel_pending_lets_what_has_begun_finish(engine: Engine) -> None:
    flow, ids = await mixed(engine)
    await engine.call(cancelling(flow, "cancel_pending"))
    assert await states(engine, [ids[name] for name in ("running", "begun", "ready", "delayed")]) == [
        "active", "ready", "cancelled", "cancelled",
    ]  # fmt: skip
    await engine.fail(ids["job"])
    await run(engine)
    got = await info(engine, flow)
    assert (got.ended, got.public_flow_state, got.counts) == (True, "cancelled", {"completed": 2, "cancelled": 2})


async def test_flow_only_starts_nobody_and_cancels_nobody(engine: Engine) -> None:
    flow, ids = await mixed(engine)
    await engine.call(cancelling(flow, "flow_only"))
    assert (await info(engine, flow)).counts == {"active": 1, "ready": 2, "delayed": 1}
    await engine.complete(ids["job"])
    await engine.advance(5_000)
    await engine.tick()
    await run(engine)
    for name in ("ready", "delayed"):
        fields = (await engine.read(ids[name])).fields
        assert (fields["state"], fields["reason"]) == ("blocked", "paused_by_flow_cancel"), name
    got = await info(engine, flow)
    assert (got.ended, got.counts) == (True, {"completed": 2, "blocked": 2})
    await engine.call(cancel(ids["ready"]))
    assert (await info(engine, flow)).counts == {"completed": 2, "blocked": 1, "cancelled": 1}


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_cancel_again_is_told_what_stands(engine: Engine, policy: str) -> None:
    flow, ids = await grown(engine)
    await engine.call(cancelling(flow, policy, "first"))
    before = await info(engine, flow)
    for again in POLICIES:
        assert await engine.call(cancelling(flow, again, "second")) == c.FlowAlreadyTerminal(policy, "first", ids)
    assert await info(engine, flow) == before


async def test_a_flow_that_has_ended_by_itself_is_not_cancelled(engine: Engine) -> None:
    flow, ids = await grown(engine)
    await run(engine)
    assert await engine.call(cancelling(flow)) == c.FlowAlreadyTerminal(None, None, ids)
    assert (await info(engine, flow)).public_flow_state == "completed"


async def test_a_cancel_of_what_is_not_there_or_not_known(engine: Engine) -> None:
    await engine.refused("flow_not_found", cancelling(missing()))
    flow = await empty(engine)
    assert await engine.refused("invalid_input", cancelling(flow, "cancel_some")) == "cancellation_policy"


@pytest.mark.parametrize("policy", POLICIES)
async def test_an_empty_flow_has_ended_with_its_cancel(engine: Engine, policy: str) -> None:
    flow = await empty(engine)
    assert await engine.call(cancelling(flow, policy)) == c.FlowCancelBegun(policy, [], 0)
    got = await info(engine, flow)
    assert (got.ended, got.public_flow_state, got.ended_at) == (True, "cancelled", engine.now)


async def test_the_cancel_of_a_graph_that_is_not_published_removes_it(engine: Engine) -> None:
    flow, ids = await staging(engine)
    await engine.call(c.AwaitArgs(partition=P0, client="c1", items=[c.ExecutionRef(ids[0])]))
    ear = await engine.listen(engine.backend.client_channel(P0, "c1"))
    assert await engine.call(cancelling(flow)) == c.FlowCancelBegun("cancel_all", [], 0)
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=ids[0]))
    assert await ear.heard() == [("c1", f"{uuid(ids[0])} cancelled")]
    assert await engine.command("KEYS", f"ff:{P0}:*{uuid(ids[0])}*") == []


async def test_a_cancel_of_many_goes_on_by_tick(engine: Engine) -> None:
    n = limits.EDGES_INLINE_N + 44
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n)]
    for call in chunks(flow, [row(id) for id in ids], limits.FLOW_CHUNK_N):
        await engine.call(call)
    await engine.tick()
    answer = await engine.call(cancelling(flow))
    assert answer == c.FlowCancelBegun("cancel_all", ids, n)
    assert (await info(engine, flow)).counts == {"cancelled": limits.EDGES_INLINE_N, "ready": 44}
    assert await engine.claim(50) == [], "nobody of a cancelled flow begins"
    await engine.tick()
    got = await info(engine, flow)
    assert (got.ended, got.counts) == (True, {"cancelled": n})


async def test_clients_that_await_a_flow_are_told_when_it_has_ended(engine: Engine) -> None:
    flow, _ = await grown(engine)
    ear = await engine.listen(*[engine.backend.client_channel(P0, name) for name in ("c1", "c2")])
    for name in ("c1", "c2", "c1"):
        got = await engine.call(c.AwaitFlowArgs(flow_id=flow, client=name))
        assert got.public_flow_state == "open"
    await engine.call(cancelling(flow, "cancel_pending"))
    assert sorted(await ear.heard()) == [("c1", f"{uuid(flow)} cancelled"), ("c2", f"{uuid(flow)} cancelled")]
    assert (await engine.call(c.AwaitFlowArgs(flow_id=flow, client="c1"))).ended
    await engine.refused("flow_not_found", c.AwaitFlowArgs(flow_id=missing(), client="c1"))
    assert await engine.refused("invalid_input", c.AwaitFlowArgs(flow_id=flow, client="a b")) == "client"


async def test_a_registration_with_a_flow_lapses(engine: Engine) -> None:
    flow, _ = await grown(engine, 1)
    ear = await engine.listen(*[engine.backend.client_channel(P0, name) for name in ("c1", "c2")])
    await engine.call(c.AwaitFlowArgs(flow_id=flow, client="c1"))
    await engine.pass_time(limits.WAITER_MS + 1_000)
    await engine.call(c.AwaitFlowArgs(flow_id=flow, client="c2"))
    before = (await info(engine, flow)).last_mutation_at
    assert before < engine.now, "who awaits it changes nothing"
    await run(engine)
    assert await ear.heard() == [("c2", f"{uuid(flow)} completed")]


# ---- tags --------------------------------------------------------------------------------------------------


async def test_tags_are_set_and_taken_away(engine: Engine) -> None:
    flow = await empty(engine)
    assert await engine.call(tagging(flow, shop_a="1", shop_b="2")) == c.TagsOk(2)
    assert await engine.call(tagging(flow, shop_a="", shop_b="3")) == c.TagsOk(1)
    assert (await info(engine, flow)).tags == {"shop.b": "3"}
    await engine.refused("flow_not_found", tagging(missing(), shop_a="1"))


async def test_tags_that_cannot_be_are_refused(engine: Engine) -> None:
    flow = await empty(engine)
    good = tagging(flow, shop_a="1")
    assert await engine.refused("invalid_tag_key", good, tags={"Shop": "1"}) == "Shop"
    many = {f"shop.t{n}": "1" for n in range(limits.TAGS_N)}
    await engine.call(good, tags=many)
    assert "tags" in await engine.refused("invalid_input", tagging(flow, shop_more="1"))
    raw = ["ff_set_flow_tags", 2, f"ff:{P0}", f"ff:{P0}:absent", flow]
    assert await engine.command("FCALL", *raw, b"3:a") == [b"error", b"invalid_input", b"tags"]
    assert await engine.command("FCALL", *raw, pack_pairs({"shop.a": ""})) == [b"ok", limits.TAGS_N]


# ---- looking -----------------------------------------------------------------------------------------------


async def test_members_are_read_by_number_with_their_edges(engine: Engine) -> None:
    flow = engine.new_id()
    ids = [engine.new_id() for _ in range(4)]
    nodes = [row(ids[0], label="root"), row(ids[1], "1s"), row(ids[2], "1f"), row(ids[3], "2s,3a", group="Q 2 l")]
    (call,) = chunks(flow, nodes, 4)
    await engine.call(call)
    await run(engine, 1)
    page = await engine.call(c.ReadMembersArgs(flow_id=flow, edges=True))
    assert page.next == 0
    assert {(m.task, m.lane_id, m.next) for m in page.members} == {("send", "mail", "initial")}
    assert [(m.number, m.execution_id, m.state, m.reason, m.started, m.label) for m in page.members] == [
        (1, ids[0], "completed", "", True, "root"),
        (2, ids[1], "ready", "", False, ""),
        (3, ids[2], "skipped", "", False, ""),
        (4, ids[3], "blocked", "waiting_for_children", False, ""),
    ]  # fmt: skip
    assert [[(e.upstream_execution_id, e.kind, e.state) for e in m.edges] for m in page.members] == [
        [], [(ids[0], "s", "S")], [(ids[0], "f", "I")], [(ids[1], "s", "u"), (ids[2], "a", "S")],
    ]  # fmt: skip
    assert page.members[0].group == "" and page.members[3].group.startswith("Q 2 l ")
    first = await engine.call(c.ReadMembersArgs(flow_id=flow, limit=3))
    assert (first.next, [m.edges for m in first.members]) == (3, [[], [], []])
    rest = await engine.call(c.ReadMembersArgs(flow_id=flow, limit=3, after=first.next))
    assert (rest.next, [m.number for m in rest.members]) == (0, [4])


async def test_a_page_of_members_is_bounded_by_their_edges(engine: Engine) -> None:
    """Of a member that has more than a page takes the group tells how many."""
    flow, n = engine.new_id(), 60
    ids = [engine.new_id() for _ in range(n + 50)]
    nodes = [row(id) for id in ids[:n]]
    nodes += [row(id, ",".join(f"{up}s" for up in range(1, n + 1))) for id in ids[n:]]
    for call in chunks(flow, nodes, 15):
        await engine.call(call)
    after, pages = 0, 0
    seen: list[tuple[int, int]] = []
    while True:
        page = await engine.call(c.ReadMembersArgs(flow_id=flow, limit=1_000, edges=True, after=after))
        assert sum(len(m.edges) for m in page.members) <= 2_000
        seen += [(m.number, len(m.edges)) for m in page.members]
        pages += 1
        if not page.next:
            break
        after = page.next
    assert pages == 2
    assert seen == [(number, 0 if number <= n else n) for number in range(1, n + 51)]


async def test_bad_pages_of_members_are_refused(engine: Engine) -> None:
    good = c.ReadMembersArgs(flow_id=await empty(engine))
    assert (await engine.call(good)).members == []
    await engine.refused("flow_not_found", good, flow_id=missing())
    assert await engine.refused("invalid_input", good, limit=0) == "limit"
    assert await engine.refused("invalid_input", good, limit=1_001) == "limit"
    assert await engine.refused("invalid_input", good, after=-1) == "after"


async def test_flows_are_listed_in_the_order_of_their_ids(engine: Engine) -> None:
    flows = [await empty(engine) for _ in range(5)]
    await engine.call(cancelling(flows[1]))
    await engine.call(cancelling(flows[4]))
    named, _ = await graph(engine, "", name="nightly")
    all_ = [*flows, named]
    page = await engine.call(c.ListFlowsArgs(partition=P0))
    assert ([f.flow_id for f in page.flows], page.cursor) == (all_, "")
    assert [f.public_flow_state for f in page.flows] == ["open", "cancelled", "open", "open", "cancelled", "open"]
    assert (page.flows[5].name, page.flows[5].node_count, page.flows[5].created_at) == ("nightly", 1, engine.now)
    seen: list[Any] = []
    cursor: str | None = None
    for _ in range(3):
        page = await engine.call(c.ListFlowsArgs(partition=P0, limit=2, cursor=cursor))
        seen += [f.flow_id for f in page.flows]
        cursor = page.cursor
    assert (seen, cursor) == (all_, "")
    page = await engine.call(c.ListFlowsArgs(partition=P0, status="cancelled", limit=1))
    assert [f.flow_id for f in page.flows] == [flows[1]] and page.cursor
    page = await engine.call(c.ListFlowsArgs(partition=P0, status="cancelled", cursor=page.cursor))
    assert ([f.flow_id for f in page.flows], page.cursor) == ([flows[4]], "")
    page = await engine.call(c.ListFlowsArgs(partition=P0, status="active"))
    assert [f.flow_id for f in page.flows] == [flows[0], flows[2], flows[3], named]
    assert (await engine.call(c.ListFlowsArgs(partition=P1))).flows == []


async def test_bad_pages_of_flows_are_refused(engine: Engine) -> None:
    good = c.ListFlowsArgs(partition=P0)
    assert await engine.refused("invalid_input", good, limit=0) == "limit"
    assert await engine.refused("invalid_input", good, status="asleep") == "status"
    await engine.refused("invalid_offset", good, cursor="x")


async def test_a_flow_nobody_created_is_not_found(engine: Engine) -> None:
    assert "no such flow" in await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=missing()))
