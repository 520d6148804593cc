"""Lanes seen by people: state, retention settings, listing, counts."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, Engine
from tests.lua.test_bells import channels, parked_workers
from tests.lua.test_claim import needs


def state_of(state: str, lane: str = "mail") -> c.SetLaneStateArgs:
    return c.SetLaneStateArgs(partition=P0, lane_id=lane, state=state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "takes", "starts"),
    [("active", True, True), ("paused", True, False), ("draining", False, True), ("disabled", False, False)],
)
async def test_a_lane_takes_and_starts_work_by_its_state(engine: Engine, state: str, takes: bool, starts: bool) -> None:
    await engine.submit()
    assert await engine.call(state_of(state)) == c.LaneStateSet("active", state)
    assert await engine.call(state_of(state)) == c.LaneStateSet(state, state)
    if takes:
        await engine.submit()
    else:
        await engine.refused("lane_closed", engine.creation())
    assert len(await engine.claim(9)) == (int(starts) + int(takes and starts))
    (listed,) = (await engine.call(c.ListLanesArgs(partition=P0))).lanes
    assert listed == c.ListedLane("mail", state)  # type: ignore[arg-type]


async def test_a_lane_that_starts_again_rings_its_idle_workers(engine: Engine) -> None:
    await engine.submit()
    await engine.call(state_of("paused"))
    await parked_workers(engine, "a", "b")
    ear = await engine.listen(*channels(engine, "a", "b"))
    await engine.call(state_of("disabled"))
    assert await ear.heard() == []
    await engine.call(state_of("active"))
    assert sorted(await ear.heard()) == [("a", "work"), ("b", "work")]


async def test_a_change_of_state_is_an_event(engine: Engine) -> None:
    await engine.call(state_of("paused"))
    await engine.call(state_of("paused"))
    (entry,) = (await engine.call(c.ReadEventsArgs(partition=P0))).entries
    assert entry.fields == ["o", "lane mail active paused"]


@pytest.mark.parametrize("name", ["", "a b", "{x}", "#1", "x" * 129])
async def test_a_lane_name_that_cannot_be_is_refused(engine: Engine, name: str) -> None:
    assert await engine.refused("invalid_input", state_of("paused"), lane_id=name) == "lane_id"
    assert (
        await engine.refused("invalid_input", c.SetLaneRetentionArgs(partition=P0, lane_id="mail"), lane_id=name)
        == "lane_id"
    )


async def test_a_state_nobody_knows_is_refused(engine: Engine) -> None:
    assert await engine.refused("invalid_input", state_of("asleep")) == "state"


async def test_settings_of_a_new_lane_count_against_the_bound(engine: Engine) -> None:
    await engine.submit()
    await engine.command("HSET", f"ff:{P0}:lanes", "#", limits.LANES_N)
    await engine.refused("too_many_names", state_of("paused", "new"))
    await engine.refused("too_many_names", c.SetLaneRetentionArgs(partition=P0, lane_id="new"))  # type: ignore[arg-type]
    await engine.command("HSET", f"ff:{P0}:lanes", "#", 1)


@pytest.mark.parametrize(
    ("field", "value"), [("age_ms", -1), ("count", -1), ("bytes", -1), ("age_ms", limits.SPAN_MAX_MS + 1)]
)
async def test_a_retention_that_cannot_be_is_refused(engine: Engine, field: str, value: int) -> None:
    setting = c.SetLaneRetentionArgs(partition=P0, lane_id="mail")  # type: ignore[arg-type]
    assert await engine.refused("invalid_input", setting, **{field: value}) == "retention"


async def test_lanes_are_listed_by_name_in_pages(engine: Engine) -> None:
    for name in ("c", "a", "b"):
        await engine.submit(lane_id=name)
    page = await engine.call(c.ListLanesArgs(partition=P0, limit=2))
    assert ([lane.lane_id for lane in page.lanes], page.cursor) == (["a", "b"], "b")
    page = await engine.call(c.ListLanesArgs(partition=P0, limit=2, after=page.cursor))
    assert ([lane.lane_id for lane in page.lanes], page.cursor) == (["c"], "")
    assert await engine.refused("invalid_input", c.ListLanesArgs(partition=P0), limit=0) == "limit"


async def test_stats_count_every_state_and_the_oldest_in_line(engine: Engine) -> None:
    await engine.submit_many(2)
    await engine.advance(10)
    await engine.submit(delay_until=engine.now + 50)
    await engine.submit(policy=needs("gpu"))
    (job,) = await engine.claim()
    await engine.call(engine.claiming(1, lanes=["idle"], park="w1"))
    stats = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))  # type: ignore[arg-type]
    counts = {state: n for state, n in stats.counts.items() if n}
    assert (counts, stats.state, stats.oldest_created_at, stats.parked) == (
        {"ready": 2, "delayed": 1, "active": 1}, "active", START_MS, 0,
    )  # fmt: skip
    await engine.complete(job)
    stats = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))  # type: ignore[arg-type]
    assert (stats.counts["completed"], stats.counts["active"]) == (1, 0)
    idle: Any = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="idle"))  # type: ignore[arg-type]
    assert (idle.parked, idle.oldest_created_at) == (1, 0)


@pytest.mark.parametrize("name", ["none", "#", "#1"])
async def test_stats_of_a_lane_that_is_not_there_are_refused(engine: Engine, name: str) -> None:
    """The table of names has rows of its own; none of them is a lane."""
    await engine.submit()
    assert await engine.refused("lane_not_found", c.LaneStatsArgs(partition=P0, lane_id="x"), lane_id=name) == name  # type: ignore[arg-type]
