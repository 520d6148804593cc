"""Reads: one execution whole, outcomes of many, pages, leases, capability sets. None of them writes."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua import invariants
from tests.lua.engine import P0, P1, START_MS, TTL, Engine, cancel, missing, progress, revoke
from tests.lua.test_claim import needs


def refs(*ids: Any) -> list[c.ExecutionRef]:
    return [c.ExecutionRef(id) for id in ids]


async def page(engine: Engine, **options: Any) -> c.ExecutionsPage:
    return await engine.call(c.ListExecutionsArgs(partition=P0, **options))


async def walk(engine: Engine, **options: Any) -> list[str]:
    """All pages of a listing."""
    got: list[str] = []
    cursor: str | None = None
    for _ in range(100):
        answer = await page(engine, cursor=cursor, **options)
        got += [row.execution_id for row in answer.items]
        if not answer.cursor:
            return got
        cursor = answer.cursor
    raise AssertionError("the listing never ends")


# ---- one execution -----------------------------------------------------------------------------------


async def test_parts_are_read_only_when_asked_for(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id))
    (job,) = await engine.claim()
    await engine.complete(job, b"r" * 500)
    bare = await engine.read(job.execution_id)
    assert (bare.payload, bare.result, bare.attempts) == (b"", b"", [])
    whole = await engine.read(job.execution_id, "payload,result,attempts")
    assert (whole.payload, whole.result, len(whole.attempts)) == (b"hello", b"r" * 500, 1)
    assert (whole.now_ms, whole.worker_instance_id) == (START_MS, "w1")


async def test_reads_do_not_write(engine: Engine) -> None:
    job = await engine.running(policy=needs(), tags={"a.b": "c"})
    reads: list[Any] = [
        c.ReadExecutionArgs(execution_id=job.execution_id, parts="payload"), c.ListExecutionsArgs(partition=P0),
        c.ReadOutcomesArgs(partition=P0, items=refs(job.execution_id)), c.ListLeasesArgs(partition=P0),
        c.ExecutionHistoryArgs(execution_id=job.execution_id), c.ReadEventsArgs(partition=P0),
        c.ListCapabilitySetsArgs(partition=P0, lanes=["mail"]), c.ReadHeaderArgs(partition=P0),
        c.ListLanesArgs(partition=P0),
        c.LaneStatsArgs(partition=P0, lane_id="mail"), c.ListHoldsArgs(partition=P0),
        c.ScanEligibleArgs(lane_id="mail", partition=P0, limit=5),
    ]  # fmt: skip
    await engine.advance(10 * TTL)
    before = await invariants.read_store(engine.command)
    for args in reads:
        await engine.call(args)
    assert await invariants.read_store(engine.command) == before


# ---- outcomes ----------------------------------------------------------------------------------------


async def test_outcomes_tell_result_reason_and_category(engine: Engine) -> None:
    good, bad, late = [await engine.running() for _ in range(3)]
    await engine.complete(good, b"done")
    await engine.fail(bad, "boom", failure_detail="line 7")
    await engine.call(cancel(late.execution_id, "operator_override"))
    waiting = await engine.submit()
    ids = [
        good.execution_id,
        bad.execution_id,
        late.execution_id,
        waiting,
        missing(),
        "{fp:1}:00000000-0000-7000-8000-000000000000",
    ]
    items = (await engine.call(c.ReadOutcomesArgs(partition=P0, items=refs(*ids)))).items
    assert [(o.state, o.result, o.reason, o.category, o.traceback, o.attempts, o.has_result) for o in items] == [
        ("completed", b"done", "", "", "", 1, True), ("failed", b"", "it broke", "boom", "line 7", 1, False),
        ("cancelled", b"", "no longer wanted", "", "", 1, False), ("ready", b"", "", "", "", 0, False),
        ("unknown", b"", "", "", "", 0, False), ("unknown", b"", "", "", "", 0, False),
    ]  # fmt: skip


async def test_one_answer_carries_a_bounded_number_of_result_bytes(engine: Engine) -> None:
    ids = []
    for _ in range(4):
        job = await engine.running()
        await engine.complete(job, b"x" * limits.RESULT_BYTES)
        ids.append(job.execution_id)
    items = (await engine.call(c.ReadOutcomesArgs(partition=P0, items=refs(*ids)))).items
    assert [o.state for o in items] == ["completed", "completed", "completed", "later"]


# ---- listings ----------------------------------------------------------------------------------------


async def test_a_listing_shows_what_an_execution_is(engine: Engine) -> None:
    job = await engine.running(namespace="n", priority=4)
    await engine.submit(delay_until=START_MS + 9)
    (row,) = (await page(engine, states=["active"])).items
    assert (row.execution_id, row.lane_id, row.task, row.state, row.next, row.started) == (
        job.execution_id, "mail", "send", "active", "initial", True,
    )  # fmt: skip
    assert (row.priority, row.created_at, row.attempts, row.namespace, row.worker_instance_id) == (
        4,
        START_MS,
        1,
        "n",
        "w1",
    )
    (row,) = (await page(engine, states=["delayed"])).items
    assert (row.reason, row.started, row.ended_at) == ("waiting_for_delay", False, 0)
    await engine.complete(job)
    (row,) = (await page(engine, states=["completed"])).items
    assert row.ended_at == START_MS


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
async def test_a_listing_in_pages_shows_everything_once(engine: Engine, limit: int) -> None:
    made: list[Any] = []
    for lane in ("a", "b"):
        made += await engine.submit_many(6, lane_id=lane)
        made += [
            await engine.submit(lane_id=lane, policy=needs("gpu")),
            await engine.submit(lane_id=lane, delay_until=START_MS + 9),
        ]
    await engine.claim(3, lanes=["a"])
    for job in await engine.claim(2, lanes=["b"]):
        await engine.complete(job)
    assert sorted(await walk(engine, limit=limit)) == sorted(made)
    assert sorted(await walk(engine, limit=limit, lane_id="a")) == sorted(made[:8])
    assert len(await walk(engine, limit=limit, states=["active", "completed"])) == 5
    assert await walk(engine, limit=limit, lane_id="none") == await walk(engine, limit=limit, lane_id="#") == []


@pytest.mark.parametrize("limit", [1, 3])
async def test_a_filter_loses_nothing_between_pages(engine: Engine, limit: int) -> None:
    """What a filter drops must not make the rest of its index be passed over."""
    wanted = []
    for n in range(24):
        options: dict[str, Any] = {"tags": {"a.b": "yes"}, "namespace": "n"} if n % 6 == 0 else {}
        id = await engine.submit(**options)
        if options:
            wanted.append(id)
    assert sorted(await walk(engine, limit=limit, tag="a.b=yes")) == wanted
    assert sorted(await walk(engine, limit=limit, namespace="n")) == wanted
    assert await walk(engine, limit=limit, tag="a.b=no") == []


async def test_a_listing_loses_nothing_where_many_share_an_instant(engine: Engine) -> None:
    """A thousand jobs due at one moment are one submit; the page after them has to be found by member alone."""
    made = await engine.submit_many(limits.PAGE_MAX_N + 350, delay_until=START_MS + 9)
    first = await page(engine, states=["delayed"], limit=200)
    # The one the cursor names may move on before the next page is asked for.
    await engine.call(cancel(first.items[-1].execution_id))
    rest = await walk(engine, states=["delayed"], limit=200)
    assert sorted(rest) == sorted(id for id in made if id != first.items[-1].execution_id)
    second = await page(engine, states=["delayed"], limit=200, cursor=first.cursor)
    assert [row.execution_id for row in second.items] == rest[199:399]


async def test_a_listing_is_newest_first_within_a_state(engine: Engine) -> None:
    ids = []
    for _ in range(4):
        await engine.advance(1)
        job = await engine.running()
        await engine.complete(job)
        ids.append(job.execution_id)
    assert await walk(engine, limit=2, states=["completed"]) == ids[::-1]


async def test_one_call_looks_at_a_bounded_number_of_records(engine: Engine) -> None:
    ids = await engine.submit_many(limits.PAGE_MAX_N + 50)
    await engine.call(c.SetExecutionTagsArgs(execution_id=ids[0], tags={"a.b": "c"}))
    first = await page(engine, tag="a.b=c")
    assert (first.items, bool(first.cursor)) == ([], True)
    assert await walk(engine, tag="a.b=c") == [ids[0]]


@pytest.mark.parametrize(("field", "value"), [("limit", 0), ("limit", 1_001), ("states", 7)])
async def test_bad_input_to_a_listing_is_refused(engine: Engine, field: str, value: Any) -> None:
    assert await engine.refused("invalid_input", c.ListExecutionsArgs(partition=P0), **{field: value}) == field


async def test_a_cursor_that_is_none_is_refused(engine: Engine) -> None:
    assert await engine.refused("invalid_offset", c.ListExecutionsArgs(partition=P0), cursor="page 2") == "cursor"


# ---- leases ------------------------------------------------------------------------------------------


async def test_leases_are_listed_by_their_end(engine: Engine) -> None:
    one = await engine.running(policy={"lease_ms": 500})
    two = await engine.running(lane_id="other")
    await engine.call(progress(two, progress_pct=1))
    leases = await engine.call(c.ListLeasesArgs(partition=P0))
    assert [(row.execution_id, row.lane_id, row.heard, row.lease_expires_at) for row in leases.items] == [
        (one.execution_id, "mail", False, START_MS + 500), (two.execution_id, "other", True, START_MS + TTL),
    ]  # fmt: skip
    assert (leases.items[0].lease_id, leases.items[0].lease_epoch, leases.items[0].attempt_index) == (
        one.lease_id,
        START_MS,
        0,
    )

    async def listed(**options: Any) -> list[str]:
        return [row.execution_id for row in (await engine.call(c.ListLeasesArgs(partition=P0, **options))).items]

    assert await listed(expired_only=True) == []
    await engine.advance(500)
    assert await listed(expired_only=True) == [one.execution_id]
    assert await listed(lane_id="other") == [two.execution_id]
    assert await listed(lane_id="none") == []
    assert await listed(limit=1) == [one.execution_id]
    assert await engine.refused("invalid_input", c.ListLeasesArgs(partition=P0), limit=0) == "limit"


async def test_leases_of_one_lane_are_found_behind_any_number_of_others(engine: Engine) -> None:
    """The filter is exact, however many leases one call looks at; equal ends are told apart by their ids."""
    await engine.submit_many(limits.PAGE_MAX_N + 10)
    while await engine.claim(200):
        pass
    await engine.advance(1)
    rare = {(await engine.running(lane_id="rare")).execution_id for _ in range(3)}
    found: list[Any] = []
    cursor, pages = None, 0
    while cursor != "":
        page = await engine.call(c.ListLeasesArgs(partition=P0, lane_id="rare", limit=2, cursor=cursor))  # type: ignore[arg-type]
        found, cursor, pages = found + page.items, page.cursor, pages + 1
    assert {row.execution_id for row in found} == rare and len(found) == 3
    assert pages > 2, "a page without a row has a successor all the same"
    every, cursor = list[Any](), None
    while cursor != "":
        page = await engine.call(c.ListLeasesArgs(partition=P0, limit=300, cursor=cursor))
        every, cursor = every + [row.execution_id for row in page.items], page.cursor
    assert len(every) == len(set(every)) == limits.PAGE_MAX_N + 13
    assert "cursor" in await engine.refused("invalid_offset", c.ListLeasesArgs(partition=P0, cursor="x"))


# ---- capability sets ---------------------------------------------------------------------------------


async def test_capability_sets_are_listed_by_lane(engine: Engine) -> None:
    await engine.submit(policy=needs("b", "a"))
    await engine.submit(lane_id="other", policy=needs("c"))
    await engine.submit(id=engine.new_id(P1), policy=needs("d"))
    got = await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=["other", "mail", "none"]))
    assert [(row.lane_id, row.tokens) for row in got.sets] == [("other", "c"), ("mail", "a,b")]


@pytest.mark.parametrize("lanes", [7, [7], ["x"] * 65, ["a b"], [None]])
async def test_sets_of_lanes_that_cannot_be_are_refused(engine: Engine, lanes: Any) -> None:
    assert (
        await engine.refused("invalid_input", c.ListCapabilitySetsArgs(partition=P0, lanes=[]), lanes=lanes) == "lanes"
    )
