"""Whole flows are purged as one thing: by age, when their lane is over its bounds, by pieces; and lanes pass over
members meanwhile."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua import invariants
from tests.lua.engine import P0, Engine, cancel, lane_told, renewal
from tests.lua.graphs import chunk, chunks, graph, info, row, states, uuid
from tests.lua.test_flow import adding, cancelling, creating, run, staging
from tests.lua.test_retention import finished, left, retention, until_quiet

DAY, MIN, HOUR = limits.RETENTION_AGE_MS, limits.RETENTION_MIN_AGE_MS, 3_600_000


async def keys(engine: Engine, *kinds: str) -> list[str]:
    """Keys that are about flows, or those of the kinds given."""
    store = await invariants.read_store(engine.command)
    wanted = kinds or ("flow", "flowtext", "members", "edges", "in", "out", "flows")
    return sorted(key for key in store.values if key.startswith(f"ff:{P0}:") and key.split(":")[3] in wanted)


async def ended(engine: Engine, *edges: str, **options: Any) -> tuple[Any, list[Any]]:
    """A flow whose members have all ended."""
    flow, ids = await graph(engine, *edges, **options)
    await run(engine)
    assert (await info(engine, flow)).ended
    return flow, ids


async def wide(engine: Engine, n: int, **options: Any) -> tuple[Any, list[Any]]:
    """A flow of n members beside each other, that have ended."""
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n)]
    for call in chunks(flow, [row(id) for id in ids], limits.FLOW_CHUNK_N, **options):
        await engine.call(call)
    while (await engine.tick()).done:
        pass
    await run(engine)
    assert (await info(engine, flow)).ended
    return flow, ids


async def rest(engine: Engine, ms: int) -> None:
    """Let time pass, in steps in which tickers look, and let what is due come to rest."""
    await engine.advance(ms)
    await until_quiet(engine)


# ---- by age ------------------------------------------------------------------------------------------------


async def test_a_flow_is_kept_for_a_day_from_its_end_and_leaves_nothing(engine: Engine) -> None:
    flow, ids = await ended(engine, "", "1s", "1s", "2s,3a")
    await rest(engine, DAY - MIN)
    assert await states(engine, ids) == ["completed"] * 4
    await rest(engine, 2 * MIN)
    assert await left(engine) == 0
    assert await keys(engine) == []
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    await rest(engine, 2 * MIN)
    reap = await engine.command("ZRANGE", f"ff:{P0}:reap", 0, -1)
    assert not [m for m in reap if m.startswith((b"flow", b"lane"))]


async def test_members_that_ended_long_before_stay_until_the_flow_has_gone(engine: Engine) -> None:
    _, ids = await graph(engine, "", "1s")
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.call(c.PauseExecutionArgs(execution_id=ids[1], reason=""))
    alone = await finished(engine)
    await rest(engine, 2 * DAY)
    assert await states(engine, ids) == ["completed", "blocked"]
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=alone[0]))
    await engine.call(cancel(ids[1]))
    await rest(engine, DAY - MIN)
    assert await states(engine, ids) == ["completed", "cancelled"]
    await rest(engine, 2 * MIN)
    assert await left(engine) == 0


async def test_the_age_is_that_of_the_first_members_lane(engine: Engine) -> None:
    await engine.call(lane_told(age_ms=2 * HOUR))
    await ended(engine, "")
    await rest(engine, 2 * HOUR - MIN)
    assert await left(engine) == 1
    await rest(engine, 2 * MIN)
    assert await left(engine) == 0


async def test_an_age_below_the_least_is_the_least(engine: Engine) -> None:
    await engine.call(lane_told(age_ms=1))
    await ended(engine, "")
    await rest(engine, MIN - 1)
    assert await left(engine) == 1
    await rest(engine, 1)
    assert await left(engine) == 0


async def test_a_setting_that_comes_later_is_heeded(engine: Engine) -> None:
    await ended(engine, "")
    await engine.pass_time(2 * MIN)
    await engine.call(lane_told(age_ms=HOUR))
    await rest(engine, HOUR + MIN)
    assert await left(engine) == 0


async def test_without_an_age_a_flow_is_kept(engine: Engine) -> None:
    await engine.call(retention())
    await ended(engine, "", "1s")
    await rest(engine, 30 * DAY)
    assert await left(engine) == 2
    await engine.call(lane_told(age_ms=HOUR))
    await rest(engine, 2 * HOUR)
    assert await left(engine) == 0


async def test_a_flow_that_never_got_a_member_goes_after_a_day(engine: Engine) -> None:
    unused, used = engine.new_id(), engine.new_id()
    for flow in (unused, used):
        await engine.call(creating(flow))
    await engine.call(adding(used, await engine.submit()))
    await rest(engine, DAY)
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=unused))
    assert (await info(engine, used)).state == "live"
    assert type(await engine.call(creating(unused))) is c.FlowCreated


# ---- in pieces, and what is left behind --------------------------------------------------------------------


async def test_a_large_flow_goes_in_pieces_its_record_last(engine: Engine) -> None:
    flow, ids = await wide(engine, 450, name="nightly")
    await engine.advance(DAY)
    sizes = [450]
    while sizes[-1]:
        await engine.tick(limit=100)
        sizes.append(await left(engine))
        if 0 < sizes[-1] < 450:
            got = await info(engine, flow)
            assert (got.state, got.node_count) == ("purging", 450)
            assert type(await engine.call(cancelling(flow))) is c.FlowAlreadyTerminal
            assert await engine.command("EXISTS", f"ff:{P0}:flowtext:{uuid(flow)}") == 1
    assert len(set(sizes)) >= 6 and all(a - b <= 100 for a, b in pairwise(sizes)), sizes
    assert ids
    assert await keys(engine) == []


async def test_while_it_is_purged_nobody_gets_its_id(engine: Engine) -> None:
    flow, ids = await wide(engine, 250)
    await engine.advance(DAY)
    while (got := await info(engine, flow)).state != "purging":
        await engine.tick(limit=10)
    assert got.public_flow_state == "completed"
    await engine.refused("purging", creating(flow))
    await engine.refused("purging", chunk(flow, [row(id) for id in ids[:200]], node_total=250))
    await engine.refused("flow_already_terminal", adding(flow, await engine.submit()))


async def test_a_keyed_flow_leaves_a_tombstone_for_a_day(engine: Engine) -> None:
    flow, node = engine.new_id(key="nightly"), engine.new_id()
    call = chunk(flow, [row(node)])
    await engine.call(call)
    await run(engine)
    await rest(engine, MIN)
    await engine.call(lane_told(age_ms=HOUR))
    await rest(engine, HOUR + MIN)
    assert await keys(engine) == [] and await left(engine) == 0
    assert "purged" in await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    assert type(await engine.call(creating(flow))) is c.FlowAlreadySatisfied
    assert await engine.call(call) == c.FlowDuplicate(flow, "purged")
    await engine.refused("idempotency_conflict", call, digest=b"o" * 16)
    await rest(engine, DAY)
    assert type(await engine.call(creating(flow))) is c.FlowCreated


async def test_keyed_members_leave_tombstones_and_others_none(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id(key="k"), engine.new_id()]
    await engine.call(chunk(flow, [row(id) for id in ids]))
    await run(engine)
    await engine.call(lane_told(age_ms=HOUR))
    await rest(engine, 2 * HOUR)
    assert await keys(engine, "tomb") == [f"ff:{P0}:tomb:{ids[0][-3:]}"]
    assert type(await engine.call(engine.creation(ids[0]))) is c.Duplicate


async def test_bytes_of_members_are_given_back(engine: Engine) -> None:
    await engine.call(lane_told(age_ms=HOUR, bytes=10_000))
    await ended(engine, "", "1s")
    assert int(await engine.command("HGET", f"ff:{P0}", "y1")) > 0
    await rest(engine, 2 * HOUR)
    assert int(await engine.command("HGET", f"ff:{P0}", "y1")) == 0


# ---- flow_only ---------------------------------------------------------------------------------------------


async def test_what_a_cancel_of_the_flow_kept_from_starting_is_cancelled_and_purged(engine: Engine) -> None:
    flow, ids = await graph(engine, "", "1s", "")
    (job,) = await engine.claim()
    await engine.call(cancelling(flow, "flow_only"))
    assert await engine.claim(5) == []
    await engine.pass_time(MIN // 3)
    await engine.complete(job)
    assert await engine.claim(5) == []
    got = await info(engine, flow)
    assert (got.state, got.counts) == ("ended", {"completed": 1, "blocked": 2})
    await rest(engine, DAY - MIN)
    assert await states(engine, ids) == ["completed", "blocked", "blocked"]
    await rest(engine, MIN)
    assert (await states(engine, ids))[1:] == ["cancelled", "cancelled"]
    await rest(engine, 2 * MIN)
    assert await left(engine) == 0 and await keys(engine) == []


async def test_members_nobody_would_ever_claim_are_cancelled_too_and_what_runs_is_not(engine: Engine) -> None:
    """Nobody serves their lane, so nobody has put them aside."""
    flow, ids = await graph(engine, "", "", "")
    (job,) = await engine.claim()
    await engine.call(cancelling(flow, "flow_only"))
    for _ in range(24):
        await engine.call(renewal(job, ttl_ms=2 * HOUR))
        await rest(engine, HOUR)
    assert await states(engine, ids) == ["active", "cancelled", "cancelled"]
    await engine.complete(job)
    assert (await info(engine, flow)).ended
    await rest(engine, 2 * MIN)
    assert await left(engine) == 0


async def test_a_large_flow_that_was_only_cancelled_is_gone_through_in_pieces(engine: Engine) -> None:
    flow, n = engine.new_id(), 450
    for call in chunks(flow, [row(engine.new_id()) for _ in range(n)], limits.FLOW_CHUNK_N):
        await engine.call(call)
    await engine.tick()
    await engine.call(cancelling(flow, "flow_only"))
    while await engine.claim(50) or (await info(engine, flow)).counts.get("ready"):
        pass
    assert (await info(engine, flow)).ended
    await engine.advance(DAY + 1)
    seen: set[int] = set()
    for _ in range(60):
        await engine.tick(limit=100)
        if not await left(engine):
            break
        seen.add((await info(engine, flow)).counts.get("blocked", 0))
        await engine.advance(MIN if 0 in seen else 1_000)
    assert await left(engine) == 0 and len(seen) > 3, seen


# ---- lanes pass over members -------------------------------------------------------------------------------


async def test_members_of_a_live_flow_keep_nobody_behind_them(engine: Engine) -> None:
    """More of them stand first in the lane than one look covers."""
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(limits.TICK_N * 2)]
    held = engine.new_id()
    nodes = [row(id) for id in ids]
    for call in chunks(flow, [*nodes, row(held)], limits.FLOW_CHUNK_N):
        await engine.call(call)
    while (await engine.tick()).done:
        pass
    await engine.call(c.PauseExecutionArgs(execution_id=held, reason=""))
    await run(engine)
    assert (await info(engine, flow)).state == "live"
    await engine.advance(1)
    alone = await finished(engine, 3)
    await engine.advance(DAY + MIN)
    for _ in range(20):
        await engine.tick()
        await engine.advance(1_000)
    for id in alone:
        await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=id))
    assert await left(engine) == len(ids) + 1
    # They were passed once and for all: what ends later is found at once.
    late = await finished(engine)
    await rest(engine, DAY + MIN)
    await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=late[0]))


async def test_a_lane_over_its_count_lets_ended_flows_go_that_stand_first(engine: Engine) -> None:
    await engine.call(retention(count=3))
    flow, _ = await ended(engine, "", "1s", "1s")
    await engine.advance(1)
    alone = await finished(engine, 3)
    await engine.advance(MIN - 2_000)
    await until_quiet(engine)
    assert await left(engine) == 6, "nothing goes before its least age"
    for _ in range(5):
        await rest(engine, MIN)
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    assert await states(engine, alone) == ["completed"] * 3, "the flow was older, and made room enough"


async def test_a_lane_over_its_bytes_lets_ended_flows_go(engine: Engine) -> None:
    await engine.call(retention(bytes=40))
    flow, _ = await ended(engine, "", "")
    await engine.advance(1)
    alone = await finished(engine, 2, b"r" * 10)
    for _ in range(5):
        await rest(engine, MIN)
    await engine.refused("flow_not_found", c.ReadFlowArgs(flow_id=flow))
    assert await states(engine, alone) == ["completed"] * 2


async def test_a_live_flow_that_stands_first_in_a_full_lane_is_passed_over_until_it_has_ended(engine: Engine) -> None:
    await engine.call(retention(count=1))
    _, ids = await graph(engine, "", "1s")
    (job,) = await engine.claim()
    await engine.complete(job)
    await engine.call(c.PauseExecutionArgs(execution_id=ids[1], reason=""))
    alone = await finished(engine, 2)
    for _ in range(3):
        await rest(engine, MIN)
    assert await states(engine, ids) == ["completed", "blocked"]
    for id in alone:
        await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=id))
    await engine.call(cancel(ids[1]))
    for _ in range(4):
        await rest(engine, MIN)
    assert await left(engine) == 0


async def test_a_purge_by_hand_passes_over_members(engine: Engine) -> None:
    def purging(**options: Any) -> c.PurgeArgs:
        given: dict[str, Any] = {"before_ms": engine.now} | options
        return c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", **given)

    first = await finished(engine)
    flow, ids = await ended(engine, "", "1s", "2s")
    await engine.advance(1)
    last = await finished(engine, 2)
    assert await engine.call(purging(dry_run=True)) == c.Purged([*first, *last], 3)
    assert await engine.call(purging(dry_run=True, limit=2)) == c.Purged([*first, last[0]], 3)
    assert await engine.call(purging(limit=2)) == c.Purged([*first, last[0]], 1)
    assert await engine.call(purging()) == c.Purged([last[1]], 0)
    assert await engine.call(purging()) == c.Purged([], 0)
    assert await states(engine, ids) == ["completed"] * 3 and (await info(engine, flow)).ended
    again = await finished(engine)
    assert await engine.call(purging()) == c.Purged(again, 0)
    await rest(engine, DAY + MIN)
    assert await left(engine) == 0


# ---- graphs that were never published ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["abort", "cancel", "time"])
async def test_a_graph_that_is_not_published_leaves_nothing(engine: Engine, way: str) -> None:
    before = {key for key in (await invariants.read_store(engine.command)).values if key.startswith(f"ff:{P0}:")}
    flow, ids = engine.new_id(key="nightly"), [engine.new_id(key=f"n{n}") for n in range(4)]
    nodes = [row(id, f"{n}s" if n else "") for n, id in enumerate(ids)]
    later = c.FlowPlan(
        execution_kind="send",
        lane_id="mail",
        execution_deadline_at=engine.now + 9 * HOUR,
        delay_until=engine.now + HOUR,
    )
    calls = chunks(flow, nodes, 3, plans=[later])
    await engine.call(calls[0])
    await engine.call(cancel(ids[1]))
    await engine.call(c.PauseExecutionArgs(execution_id=ids[2], reason=""))
    match way:
        case "abort":
            assert type(await engine.call(c.AbortFlowArgs(flow_id=flow, digest=calls[0].digest))) is c.FlowAborted
        case "cancel":
            await engine.call(cancelling(flow))
        case _:
            await engine.advance(limits.STAGING_MS)
    await until_quiet(engine)
    assert await left(engine) == 0 and await keys(engine) == []
    after = {key for key in (await invariants.read_store(engine.command)).values if key.startswith(f"ff:{P0}:")}
    permanent = {f"ff:{P0}:{name}" for name in ("ev", "lanes", "reap", f"tomb:{ids[1][-3:]}")}
    assert after - before <= permanent, "but the tombstone of one that was cancelled, which had ended"
    answer = await engine.call(chunk(flow, nodes[:1], digest=b"o" * 16))
    assert type(answer) is c.FlowSubmitted, "its ids are free"


async def test_a_chunk_in_time_keeps_a_graph_from_being_removed(engine: Engine) -> None:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(3)]
    first, second, third = chunks(flow, [row(id) for id in ids], 1)
    await engine.call(first)
    await engine.advance(limits.STAGING_MS - 1)
    await engine.call(second)
    await engine.advance(limits.STAGING_MS - 1)
    await engine.tick()
    await engine.call(third)
    assert await states(engine, ids) == ["ready"] * 3


async def test_a_large_graph_that_is_not_published_goes_in_pieces(engine: Engine) -> None:
    flow, ids = await staging(engine, 180)
    await engine.call(c.AbortFlowArgs(flow_id=flow, digest=b"g" * 16))
    counts: list[int] = []
    while await left(engine):
        counts.append(await left(engine))
        await engine.tick(limit=50)
    assert counts == [180, 130, 80, 30] and ids
    assert await keys(engine) == []
