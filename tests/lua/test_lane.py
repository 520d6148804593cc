"""Lanes seen by people: states, listing, counts; and how a lane nobody uses is forgotten."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, Engine, lane_told, told
from tests.lua.test_bells import channels, parked_workers
from tests.lua.test_claim import needs


def state_of(state: str, lane: str = "mail") -> c.ApplySettingsArgs:
    return lane_told(lane, state=state)  # type: ignore[no-any-return]


def numbers_of(lanes: int, first: int = 1000) -> list[Any]:
    """Rows of the lane table as `lanes` lanes in use would have them."""
    return [word for n in range(first, first + lanes) for word in (f"lane-{n}", n, f"#{n}", f"lane-{n}")]


@pytest.mark.parametrize(
    ("state", "takes", "starts"),
    [("active", True, True), ("paused", True, False), ("draining", False, True), ("disabled", False, False)],
)
async def test_a_lane_takes_and_starts_work_by_its_state(engine: Engine, state: str, takes: bool, starts: bool) -> None:
    await engine.submit()
    await engine.call(state_of(state))
    await engine.call(state_of(state))
    if takes:
        await engine.submit()
    else:
        await engine.refused("lane_closed", engine.creation())
    assert len(await engine.claim(9)) == (int(starts) + int(takes and starts))
    (listed,) = (await engine.call(c.ListLanesArgs(partition=P0))).lanes
    assert (listed.lane_id, listed.state) == ("mail", state)


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


async def test_settings_of_a_new_lane_count_against_the_bound(engine: Engine) -> None:
    await engine.submit()
    table = numbers_of(limits.LANES_N - 1)
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    assert await engine.refused("too_many_names", state_of("paused", "new")) == "4096 lanes are in use"
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[::2])


async def test_a_lane_that_is_full_takes_no_more_and_says_when_to_ask_again(engine: Engine) -> None:
    """Jobs in line are what is ready, delayed or blocked; what runs has left the line."""
    await engine.submit()
    await engine.call(lane_told(max_count=6))   # three in this partition, as there are two
    await engine.submit(delay_until=START_MS + 10_000)
    await engine.submit()
    said = await engine.refused("lane_full", engine.creation())
    assert said == str(limits.FULL_RETRY_MS)
    assert isinstance(await engine.call(engine.creation(lane_id="other")), c.Created)
    (job,) = await engine.claim()
    await engine.submit()
    await engine.refused("lane_full", engine.creation())
    await engine.complete(job)
    await engine.refused("lane_full", engine.creation())
    await engine.call(lane_told(max_count=0))
    await engine.submit()


async def test_what_exists_is_answered_also_by_a_full_lane(engine: Engine) -> None:
    known = engine.creation()
    await engine.call(known)
    await engine.call(lane_told(max_count=2))
    assert isinstance(await engine.call(known), c.Duplicate)


async def test_jobs_that_require_something_stand_in_line_too(engine: Engine) -> None:
    await engine.submit(policy=needs("gpu"))
    await engine.call(lane_told(max_count=2))
    await engine.refused("lane_full", engine.creation())
    await engine.call(lane_told(max_count=2, aged_s=60))
    await engine.refused("lane_full", engine.creation(policy=needs("gpu")))


async def test_a_lane_holds_so_many_bytes_of_jobs_that_have_not_ended(engine: Engine) -> None:
    await engine.submit(input_payload=b"x" * 500)   # before there was a limit: it is not counted
    await engine.call(lane_told(max_bytes=200))     # told times two, as there are two partitions
    first = await engine.submit(input_payload=b"x" * 150)
    await engine.refused("lane_full", engine.creation(input_payload=b"x" * 51))
    await engine.submit(input_payload=b"x" * 50)
    await engine.refused("lane_full", engine.creation(input_payload=b"x"))
    await engine.submit(input_payload=b"")
    assert (await engine.read(first)).fields["held_bytes"] == "150"
    jobs = await engine.claim(2)
    await engine.refused("lane_full", engine.creation(input_payload=b"x"))
    for job in jobs:
        await engine.complete(job)
    assert "held_bytes" not in (await engine.read(first)).fields
    await engine.submit(input_payload=b"x" * 150)
    await engine.refused("lane_full", engine.creation(input_payload=b"x"))


async def test_a_count_of_held_bytes_that_is_wrong_is_found_and_put_right(engine: Engine) -> None:
    await engine.submit()
    await engine.call(lane_told(max_bytes=1_000))
    await engine.submit(input_payload=b"x" * 40)
    await engine.submit(input_payload=b"x" * 30, delay_until=START_MS + 10_000)
    await engine.running(input_payload=b"x" * 20, priority=9)
    assert await engine.violations() == []
    await engine.command("HSET", f"ff:{P0}", "z1", 7)
    (said,) = await engine.violations()
    assert "lane 1 counts 7 bytes held, there are 90" in said
    await engine.call(c.RepairArgs(partition=P0, object=" held 1", invariant="I6"))
    assert await engine.violations() == []


async def test_a_lane_that_holds_nothing_takes_one_job_however_large(engine: Engine) -> None:
    await engine.submit(lane_id="mail")
    await engine.complete((await engine.claim())[0])
    await engine.call(lane_told(max_bytes=10))
    await engine.submit(input_payload=b"x" * 100)
    await engine.refused("lane_full", engine.creation(input_payload=b"x"))


async def test_a_lane_with_limits_or_weights_is_not_forgotten(engine: Engine) -> None:
    await engine.call(lane_told("small", max_count=1))
    await engine.submit(lane_id="plain")
    await engine.call(told("weights:plain", {"t1": 2}))
    await engine.complete((await engine.claim(lanes=["plain"]))[0])
    await engine.pass_time(limits.RETENTION_AGE_MS // 100)
    lanes = (await engine.call(c.ListLanesArgs(partition=P0))).lanes
    assert [lane.lane_id for lane in lanes] == ["plain", "small"]


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


# ---- a lane nobody uses is forgotten ---------------------------------------------------------------------


async def names(engine: Engine) -> list[Any]:
    return [lane.lane_id for lane in (await engine.call(c.ListLanesArgs(partition=P0, limit=1000))).lanes]


async def keys_of(engine: Engine, number: int) -> list[Any]:
    return [key for key in await engine.command("KEYS", f"ff:{P0}:*:{number}*") if b":x:" not in key]


async def words_of(engine: Engine, number: int) -> set[str]:
    """The header's words for a lane."""
    fields = (await engine.call(c.ReadHeaderArgs(partition=P0))).fields
    return {name for name in fields if name[1:] == str(number)}


async def test_an_idle_lane_is_forgotten_and_its_number_is_not_given_again(engine: Engine) -> None:
    """Else 4,096 names would be a limit for the life of a store. The feed still names lanes by their numbers, so a
    number that came back would make it lie."""
    await engine.submit(fairness_key="k", policy=needs("gpu"))
    await engine.call(engine.claiming(1, capability_sets=["0" * 12], park="w1"))
    await engine.call(c.CancelExecutionArgs(
        execution_id=(await engine.call(c.ListExecutionsArgs(partition=P0))).items[0].execution_id, reason="",
        source=c.CancelSource("operator_override"),
    ))  # fmt: skip
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="cancelled", before_ms=engine.now))  # type: ignore[arg-type]
    assert await names(engine) == ["mail"]
    await engine.pass_time(2 * limits.LANE_IDLE_MS)
    assert await names(engine) == []
    assert await words_of(engine, 1) == set()
    assert await keys_of(engine, 1) == []
    await engine.submit()
    assert await words_of(engine, 1) == set() and await words_of(engine, 2) != set()
    entries = (await engine.call(c.ReadEventsArgs(partition=P0))).entries
    numbers = [entry.fields[1].split(" ")[5] for entry in entries]
    assert numbers == ["1", "1", "2"]
    assert len(await engine.claim()) == 1


@pytest.mark.parametrize("why", ["ready", "active", "delayed", "completed", "parked", "paused", "aged", "retention"])
async def test_a_lane_that_says_anything_is_kept(engine: Engine, why: str) -> None:
    match why:
        case "ready":
            await engine.submit()
        case "active":
            await engine.running(claim={"lease_ttl_ms": limits.LEASE_TTL_MAX_MS})
        case "delayed":
            await engine.submit(delay_until=engine.now + 10 * limits.LANE_IDLE_MS)
        case "completed":
            await engine.complete(await engine.running())
        case "parked":
            for _ in range(3 * limits.LANE_IDLE_MS // limits.PARK_MS):
                await engine.call(engine.claiming(1, park="w1"))
                await engine.advance(limits.PARK_MS)
                await engine.tick()
            assert await names(engine) == ["mail"]
            return
        case "paused":
            await engine.call(state_of("paused"))
        case "aged":
            await engine.call(lane_told(aged_s=60))
        case _:
            await engine.call(lane_told(count=5))
    await engine.pass_time(3 * limits.LANE_IDLE_MS)
    assert await names(engine) == ["mail"]
    if why == "paused":
        await engine.call(state_of("active"))
        await engine.pass_time(2 * limits.LANE_IDLE_MS)
        assert await names(engine) == []


async def test_names_come_and_go_for_ever(engine: Engine) -> None:
    """More names than the table has room for, each used once, while one lane stays."""
    kept = await engine.submit(lane_id="kept")
    table = numbers_of(limits.LANES_N - 3)
    await engine.command("HSET", f"ff:{P0}:lanes", *table)
    for n in range(6):
        await engine.submit(id=engine.new_id(), lane_id=f"short-{n}")
        (job,) = await engine.claim(lanes=[f"short-{n}"])
        await engine.complete(job)
        await engine.call(c.PurgeArgs(partition=P0, lane_id=f"short-{n}", outcome="completed", before_ms=engine.now))  # type: ignore[arg-type]
        if n % 2:
            await engine.refused("too_many_names", engine.creation(lane_id="one-more"))
            await engine.pass_time(limits.LANE_IDLE_MS + 1_000)
    await engine.command("HDEL", f"ff:{P0}:lanes", *table[::2])
    assert await names(engine) == ["kept"]
    assert (await engine.claim(lanes=["kept"]))[0].execution_id == kept


async def test_workers_that_died_parked_leave_nothing(engine: Engine) -> None:
    """Under sets no job has required as well, which stand in no table."""
    await engine.submit(lane_id="mail", delay_until=engine.now + 10 * limits.LANE_IDLE_MS)
    await engine.call(engine.claiming(1, capability_sets=["a" * 12, "b" * 12], park="w1"))
    assert await engine.command("EXISTS", f"ff:{P0}:park:1:{'a' * 12}", f"ff:{P0}:park:1:{'b' * 12}") == 2
    await engine.pass_time(limits.LANE_IDLE_MS + 1_000)
    assert await engine.command("KEYS", f"ff:{P0}:park:1:*a*") + await engine.command("KEYS", f"ff:{P0}:strays:*") == []


async def test_one_tick_forgets_a_bounded_number_of_keys(engine: Engine) -> None:
    """A lane with fairness keys may have a set per priority: a hundred such lanes are twenty thousand names of keys."""
    for n in range(12):
        await engine.submit(lane_id=f"lane-{n}", fairness_key="k")
        (job,) = await engine.claim(lanes=[f"lane-{n}"])
        await engine.complete(job)
        await engine.call(c.PurgeArgs(partition=P0, lane_id=f"lane-{n}", outcome="completed", before_ms=engine.now))  # type: ignore[arg-type]
    await engine.tick()
    await engine.advance(limits.LANE_IDLE_MS + limits.RETENTION_MIN_AGE_MS)
    left = 12
    while left:
        await engine.tick(limit=40)
        before, left = left, len(await names(engine))
        assert 0 < before - left <= 3


async def test_sets_of_dead_workers_are_swept_in_pieces(engine: Engine) -> None:
    """Until few are left the lane is not forgotten: one call would have to go through them all."""
    for n in range(2 * limits.ROWS_N // limits.HEADS_N + 2):
        sets = [f"{n * limits.HEADS_N + i:012x}" for i in range(limits.HEADS_N)]
        await engine.call(engine.claiming(1, capability_sets=sets, park=f"w{n}", worker_instance_id=f"w{n}"))
    await engine.tick()
    await engine.advance(limits.LANE_IDLE_MS + 1_000)
    await engine.tick(limit=1)
    assert await names(engine) == ["mail"]
    assert limits.ROWS_N < await engine.command("ZCARD", f"ff:{P0}:strays:1") < 2 * limits.ROWS_N
    await engine.tick(limit=1)
    assert await names(engine) == []
    assert await keys_of(engine, 1) == []
