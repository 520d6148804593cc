"""Retention by age, count and bytes, tombstones, and ff_purge."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua import invariants
from tests.lua.engine import P0, START_MS, Engine, cancel, lane_told

DAY = 24 * 3600 * 1000
MIN = limits.RETENTION_MIN_AGE_MS


def retention(**options: int) -> c.ApplySettingsArgs:
    """No bound but those given."""
    return lane_told(**({"age_ms": 0} | options))  # type: ignore[no-any-return]


async def finished(engine: Engine, n: int = 1, result: bytes = b"", **options: Any) -> list[Any]:
    out = []
    for _ in range(n):
        job = await engine.running(**options)
        await engine.complete(job, result)
        out.append(job.execution_id)
        await engine.advance(1)
    return out


async def left(engine: Engine) -> int:
    return len(await engine.command("KEYS", f"ff:{P0}:x:*"))


async def until_quiet(engine: Engine) -> int:
    """Tick as long as there is something due now; answers how often that was. A ticker that is told "now" for
    ever would spin."""
    for n in range(1, 30):
        if (await engine.tick()).next_due_ms > engine.now:
            return n
    raise AssertionError("the tick never comes to rest")


async def test_by_default_what_ended_is_kept_for_a_day(engine: Engine) -> None:
    await finished(engine)
    await engine.at(START_MS + DAY - 1)
    await until_quiet(engine)
    assert await left(engine) == 1
    await engine.at(START_MS + DAY + MIN + 1)
    await until_quiet(engine)
    assert await left(engine) == 0
    store = await invariants.read_store(engine.command)
    ours = {key for key in store.values if key.startswith(f"ff:{P0}")} - {
        f"ff:{P0}",
        f"ff:{P0}:lanes",
        f"ff:{P0}:ev",
        f"ff:{P0}:claims",
    }
    assert ours <= {f"ff:{P0}:reap"}


async def test_by_age(engine: Engine) -> None:
    await engine.call(retention(age_ms=2 * MIN))
    await finished(engine)
    await engine.pass_time(2 * MIN - 2)
    assert await left(engine) == 1
    await engine.pass_time(MIN)
    assert await left(engine) == 0


async def test_nothing_younger_than_a_minute_goes(engine: Engine) -> None:
    await engine.call(retention(age_ms=1, count=1, bytes=1))
    await finished(engine, 3)
    await engine.at(START_MS + MIN - 1)
    await until_quiet(engine)
    assert await left(engine) == 3
    await engine.at(START_MS + MIN + 10)
    await until_quiet(engine)
    assert await left(engine) == 0


async def test_by_count_the_oldest_go_first_over_all_outcomes(engine: Engine) -> None:
    await engine.call(retention(count=2))
    ids = await finished(engine)
    job = await engine.running()
    await engine.fail(job)
    await engine.advance(1)
    ids += [job.execution_id, *await finished(engine, 2)]
    await engine.advance(MIN)
    await until_quiet(engine)
    assert [await engine.command("EXISTS", f"ff:{P0}:x:{id[7:]}") for id in ids] == [0, 0, 1, 1]


async def test_by_bytes_and_what_leaves_is_counted_off(engine: Engine) -> None:
    await engine.call(retention(bytes=1_000))
    ids = await finished(engine, 4, b"r" * 300)
    assert (await header(engine))["y1"] == str(4 * 305)
    await engine.advance(MIN)
    await until_quiet(engine)
    assert [await engine.command("EXISTS", f"ff:{P0}:x:{id[7:]}") for id in ids] == [0, 1, 1, 1]
    assert (await header(engine))["y1"] == str(3 * 305)


async def header(engine: Engine) -> dict[str, str]:
    return (await engine.call(c.ReadHeaderArgs(partition=P0))).fields


async def test_a_replay_takes_its_bytes_off_the_count(engine: Engine) -> None:
    await engine.call(retention(bytes=10_000))
    (id,) = await finished(engine, 1, b"r" * 300)
    await engine.call(c.ReplayExecutionArgs(execution_id=id))
    assert (await header(engine))["y1"] == "0"
    (job,) = await engine.claim()
    await engine.complete(job, b"")
    assert (await header(engine))["y1"] == "5"


async def test_a_byte_limit_that_is_lifted_and_set_again_still_counts_right(engine: Engine) -> None:
    await engine.call(retention(bytes=10_000))
    await finished(engine, 1, b"r" * 300)
    await engine.call(retention())
    await finished(engine, 1, b"r" * 300)
    await engine.call(retention(bytes=10_000))
    assert (await header(engine))["y1"] == "610"
    await engine.call(purging(limit=1))
    assert (await header(engine))["y1"] == "305"


async def test_a_lane_within_its_limits_does_not_keep_the_ticker_busy(engine: Engine) -> None:
    """Old records that nothing makes purgeable must not be due now, for ever."""
    await engine.call(retention(count=10))
    await finished(engine, 3)
    await engine.advance(3 * MIN)
    assert await until_quiet(engine) <= 3
    assert await left(engine) == 3


async def test_lowering_a_limit_takes_effect_with_the_next_tick(engine: Engine) -> None:
    await finished(engine, 5)
    await engine.advance(MIN)
    await engine.call(retention(count=1))
    await until_quiet(engine)
    assert await left(engine) == 1


async def test_a_backlog_is_purged_in_bounded_pieces(engine: Engine) -> None:
    await engine.submit_many(300, execution_deadline_at=START_MS + 1)
    await engine.advance(1)
    for _ in range(3):
        await engine.tick()
    await engine.call(retention(count=1))
    await engine.advance(MIN)
    ticked = await engine.tick()
    assert (ticked.reaped, ticked.next_due_ms) == (limits.TICK_N, engine.now)
    assert await left(engine) == 300 - limits.TICK_N
    await until_quiet(engine)
    assert await left(engine) == 1


async def test_tombstones_are_swept_when_their_window_ends(engine: Engine) -> None:
    for n in range(3):
        id = engine.new_id(key=f"k{n}")
        await engine.submit(id=id)
        await engine.call(cancel(id))
    await engine.call(purging("cancelled"))
    assert len(await engine.command("KEYS", "*:tomb:*")) == 3
    await engine.advance(limits.DEDUP_WINDOW_MS + 1)
    await until_quiet(engine)
    await engine.advance(MIN + 1)
    await until_quiet(engine)
    assert await engine.command("KEYS", "*:tomb:*") == []
    due = await engine.command("ZRANGE", f"ff:{P0}:reap", 0, -1)
    assert [member for member in due if member.startswith(b"tomb")] == [], "nobody looks for what is gone"


async def test_a_tombstone_made_while_its_neighbours_are_swept_is_not_forgotten(engine: Engine) -> None:
    """Both the sweep and the purge touch the same entry of the reap set, in one call."""
    first = f"{P0}:00000000-0000-8000-8000-000000000abc"
    second = f"{P0}:11111111-0000-8000-8000-000000000abc"
    await engine.submit(id=first, policy={"dedup_window_ms": MIN})
    await engine.call(cancel(first))
    await engine.call(purging("cancelled"))
    await engine.call(retention(age_ms=1))
    await engine.at(START_MS + 1)
    await engine.submit(id=second, policy={"dedup_window_ms": DAY})
    await engine.call(cancel(second))
    await engine.at(START_MS + 3 * MIN)
    await until_quiet(engine)
    assert await left(engine) == 0
    assert isinstance(await engine.call(engine.creation(second)), c.Duplicate)
    await engine.at(START_MS + DAY + 5 * MIN)
    await until_quiet(engine)
    await engine.advance(2 * MIN)
    await until_quiet(engine)
    assert await engine.command("KEYS", "*:tomb:*") == []


async def test_a_window_that_is_over_leaves_no_tombstone(engine: Engine) -> None:
    id = engine.new_id(key="k")
    await engine.submit(id=id, policy={"dedup_window_ms": 5})
    await engine.call(cancel(id))
    await engine.advance(6)
    await engine.call(purging("cancelled"))
    assert await engine.command("KEYS", "*:tomb:*") == []


# ---- purge by hand -----------------------------------------------------------------------------------


def purging(outcome: str = "completed", **options: Any) -> c.PurgeArgs:
    given: dict[str, Any] = {"lane_id": "mail", "before_ms": START_MS + 10**12} | options
    return c.PurgeArgs(partition=P0, outcome=outcome, **given)


async def test_a_purge_takes_what_matches_and_says_what_is_left(engine: Engine) -> None:
    ids = await finished(engine, 3)
    job = await engine.running()
    await engine.fail(job)
    dry = purging(limit=2, dry_run=True)
    assert await engine.call(dry) == c.Purged(ids[:2], 3)
    assert await engine.call(dry, before_ms=START_MS + 1) == c.Purged(ids[:2], 2)
    assert await engine.call(purging(limit=2)) == c.Purged(ids[:2], 1)
    assert await engine.call(purging()) == c.Purged(ids[2:], 0)
    assert await left(engine) == 1
    assert await engine.call(purging(lane_id="none")) == c.Purged([], 0)


async def test_a_purge_of_what_is_no_lane_or_outcome_touches_nothing(engine: Engine) -> None:
    """The highest lane number stands under "#" in the table of names: it is no name."""
    await finished(engine)
    assert await engine.refused("invalid_input", purging("active")) == "outcome"
    for limit in (0, 1_001):
        assert await engine.refused("invalid_input", purging(), limit=limit) == "limit"
    assert await engine.call(purging(), lane_id="#") == c.Purged([], 0)
    assert await left(engine) == 1


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled", "expired", "skipped"])
async def test_every_outcome_can_be_purged(engine: Engine, outcome: str) -> None:
    id = await engine.submit(execution_deadline_at=START_MS + 10)
    match outcome:
        case "completed":
            await engine.complete((await engine.claim())[0])
        case "failed":
            await engine.fail((await engine.claim())[0])
        case "cancelled":
            await engine.call(cancel(id))
        case "expired":
            await engine.advance(10)
            await engine.tick()
    purged = await engine.call(purging(outcome))
    # Nothing skips an execution yet: flows will.
    assert purged.execution_ids == ([] if outcome == "skipped" else [id])
