"""Aged lanes: fairness keys first, then how long a job has waited, less what its priority is worth; held against a
naive model. And what happens to jobs in line when a lane's order changes.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, Engine, EngineError, delay, lane_told, unclaim
from tests.lua.test_claim import needs, sets_of
from tests.lua.test_control import reprioritise


def aged(seconds: int = 10, **options: Any) -> Any:
    return lane_told(aged_s=seconds, **options)


async def order(engine: Engine, n: int = 100, **options: Any) -> list[Any]:
    return [job.execution_id for job in await engine.claim(n, **options)]


async def moved(engine: Engine, rounds: int = 20) -> None:
    """Tick until the lane is in its new order."""
    for _ in range(rounds):
        await engine.tick()
    assert not any(key.startswith(b"order") for key in await engine.command("ZRANGE", f"ff:{P0}:timers", 0, -1))


async def test_a_point_of_priority_is_worth_so_many_seconds_of_waiting(engine: Engine) -> None:
    await engine.call(aged(10))
    old = await engine.submit(priority=0)
    await engine.advance(9_999)
    urgent = await engine.submit(priority=1)
    await engine.advance(2)
    late = await engine.submit(priority=1)
    assert await order(engine) == [urgent, old, late]


async def test_low_priority_is_not_starved(engine: Engine) -> None:
    """In a strict lane a stream of urgent jobs would keep it waiting for ever."""
    await engine.call(aged(1))
    low = await engine.submit(priority=-5)
    served = []
    for _ in range(20):
        await engine.advance(1_000)
        await engine.submit(priority=5)
        served += await order(engine, 1)
    assert low in served and served.index(low) == 9


async def test_what_was_delayed_has_waited_since_it_was_due_and_what_comes_back_keeps_its_age(engine: Engine) -> None:
    await engine.call(aged(10))
    delayed = await engine.submit(delay_until=engine.now + 5_000)
    first = await engine.submit()
    await engine.advance(1_000)
    second = await engine.submit()
    await engine.advance(5_000)
    await engine.tick()
    (job,) = await engine.claim()
    assert job.execution_id == first
    await engine.call(unclaim(job))
    assert await order(engine, 2) == [first, second]
    assert await order(engine) == [delayed]
    await engine.advance(1)
    job = await engine.running()
    await engine.call(delay(job, engine.now + 10))
    await engine.advance(11)
    third = await engine.submit(priority=-1)
    await engine.tick()
    assert await order(engine) == [job.execution_id, third]


async def test_fairness_keys_take_turns_and_each_sends_its_most_aged(engine: Engine) -> None:
    """A key's urgent job goes before the key's others, never before another key's turn."""
    await engine.call(aged(10))
    flood = []
    for n in range(6):
        flood.append(await engine.submit(fairness_key="flood", priority=5 if n == 4 else 0))
        await engine.advance(1)
    small = await engine.submit(fairness_key="small", priority=-5)
    got = await order(engine)
    assert got[0] == flood[4] or got[1] == flood[4]
    assert got.index(small) <= 1
    assert [id for id in got if id in flood] == [flood[4], *flood[:4], flood[5]]


async def test_who_has_given_its_turn_away_may_take_the_next_one_of_the_same_claim(engine: Engine) -> None:
    await engine.call(aged(10))
    await engine.submit(fairness_key="k", lane_id="mail")
    await order(engine)
    one, two = [await engine.submit(fairness_key="k") for _ in range(2)]
    await engine.advance(1)
    best = await engine.submit(fairness_key="k", priority=1)
    assert await order(engine, 2) == [best, one]
    assert not await engine.violations()
    assert await order(engine) == [two]


async def test_a_claim_that_gives_jobs_back_leaves_each_in_its_place(engine: Engine) -> None:
    await engine.call(aged(10))
    for key in ("a", "b", None):
        for priority in (0, 3, 1):
            await engine.submit(priority=priority, **({"fairness_key": key} if key else {}))
            await engine.advance(1)
    big = b"x" * (limits.CLAIM_BYTES // 2)
    for _ in range(4):
        await engine.submit(input_payload=big, fairness_key="a", priority=9)
    claimed = await engine.call(engine.claiming(13))
    assert claimed.again and len(claimed.jobs) < 13
    rest = []
    while len(rest) < 13 - len(claimed.jobs):
        rest += await order(engine)
    assert len({*rest, *(job.execution_id for job in claimed.jobs)}) == 13


async def test_a_new_priority_counts_at_once(engine: Engine) -> None:
    for key in (None, "k"):
        options: Any = {"fairness_key": key, "lane_id": f"lane-{key}"}
        await engine.call(lane_told(f"lane-{key}", aged_s=10))
        one, two = await engine.submit(**options), await engine.submit(**options)
        await engine.call(reprioritise(two, 5, ""))
        assert await order(engine, lanes=[f"lane-{key}"]) == [two, one]


async def test_jobs_that_require_something_stand_in_the_same_order(engine: Engine) -> None:
    await engine.call(aged(10))
    ids = []
    for n in range(6):
        options: Any = {"policy": needs("gpu")} if n % 2 else {}
        ids.append(await engine.submit(priority=-n, fairness_key="k" if n > 2 else None, **options))
        await engine.advance(1)
    await moved(engine)
    sets = list((await sets_of(engine)).values())
    assert sorted(await order(engine, capability_sets=sets)) == sorted(ids)


# ---- the order changes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [[None], ["a", "b"]])
async def test_jobs_in_line_are_moved_by_the_ticker_and_their_order_is_exact_then(engine: Engine, keys: Any) -> None:
    """Some at a time, so that no tick holds the server; to aged, to another age, and back to strict."""
    ids = []
    for n in range(limits.ROWS_N + 50):
        key = keys[n % len(keys)]
        ids.append((n % 3, await engine.submit(priority=n % 3, **({"fairness_key": key} if key else {}))))
        await engine.advance(1)
    await engine.call(aged(10))
    assert (await engine.tick()).next_due_ms <= engine.now, "more is left to move"
    await moved(engine)
    first = await order(engine, 30)
    assert {priority for priority, id in ids if id in first} == {2}, "ten seconds are more than any of them has waited"
    await engine.call(aged(0))
    await moved(engine)
    rest = await order(engine, 200) + await order(engine, 200)
    priority = {id: p for p, id in ids}
    assert sorted(rest + first) == sorted(priority)
    assert [priority[id] for id in rest] == sorted((priority[id] for id in rest), reverse=True)
    if keys == [None]:
        for p in range(3):
            of_band = [id for id in rest if priority[id] == p]
            assert of_band == [id for q, id in ids if q == p and id in rest], "first in, first out, as before"


async def test_nobody_waits_for_the_move(engine: Engine) -> None:
    """What has not moved is claimed behind what has, listed, counted, and cancelled like any other."""
    await engine.tick()  # while a ticker keeps its promise, claims move nothing themselves
    old = await engine.submit_many(4)
    await engine.call(aged(10))
    new = await engine.submit()
    stats = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))  # type: ignore[arg-type]
    assert stats.counts["ready"] == 5
    page = await engine.call(c.ListExecutionsArgs(partition=P0, states=["ready"], limit=3))
    after = await engine.call(c.ListExecutionsArgs(partition=P0, states=["ready"], cursor=page.cursor))
    assert {row.execution_id for row in page.items + after.items} == {new, *old}
    eligible = await engine.call(c.ScanEligibleArgs(partition=P0, lane_id="mail", limit=9))  # type: ignore[arg-type]
    assert set(eligible.execution_ids) == {new, *old}
    await engine.call(c.CancelExecutionArgs(
        execution_id=old[1], reason="", source=c.CancelSource("operator_override"),
    ))  # fmt: skip
    await engine.call(reprioritise(old[2], 1, ""))
    assert await order(engine) == [old[2], new, old[0], old[3]]
    await moved(engine)


async def test_a_new_priority_while_an_aged_order_with_keys_is_left(engine: Engine) -> None:
    """It moves the job over; nothing of the old order may keep it."""
    await engine.call(aged(10))
    one, two = [await engine.submit(fairness_key="k") for _ in range(2)]
    await engine.call(aged(0))
    await engine.call(reprioritise(two, 5, ""))
    await moved(engine)
    assert await engine.command("KEYS", f"ff:{P0}:k:*") == []
    assert await order(engine) == [two, one]


async def test_what_ends_in_the_tick_that_moves_it_is_not_brought_back(engine: Engine) -> None:
    await engine.tick()
    id = await engine.submit(execution_deadline_at=engine.now + 1_000)
    await engine.advance(1_000)
    await engine.call(aged(10))
    await engine.tick()
    assert await engine.state(id) == "expired"
    assert (await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))).counts["ready"] == 0  # type: ignore[arg-type]


async def test_what_has_not_moved_is_scanned_behind(engine: Engine) -> None:
    """Ages are smaller numbers than turns."""
    await engine.tick()
    await engine.call(aged(10))
    old = await engine.submit_many(2)
    await engine.submit(fairness_key="k", lane_id="other")
    new = await engine.submit(fairness_key="k")
    eligible = await engine.call(c.ScanEligibleArgs(partition=P0, lane_id="mail", limit=9))  # type: ignore[arg-type]
    assert eligible.execution_ids == [new, *old]


async def test_one_call_moves_a_bounded_number_however_many_lanes_change(engine: Engine) -> None:
    await engine.tick()
    for n in range(12):
        await engine.submit_many(20, lane_id=f"lane-{n}")
    for n in range(12):
        await engine.call(lane_told(f"lane-{n}", aged_s=10))
    left = []
    for _ in range(7):
        await engine.tick()
        keys = await engine.command("KEYS", f"ff:{P0}:o:*")
        left.append(sum([await engine.command("ZCARD", key) for key in keys]))
    assert left == [190, 140, 90, 40, 0, 0, 0]


async def test_a_call_that_breaks_off_leaves_what_was_put_aside_in_sight(engine: Engine) -> None:
    """Lua rolls nothing back: what the call would have written at its end is not there."""
    ids = await engine.submit_many(3)
    counts = await engine.command("HGET", f"ff:{P0}", "counts")
    await engine.command("HSET", f"ff:{P0}", "counts", "no json")
    with pytest.raises(EngineError):
        await engine.call(aged(10, bytes=5))
    await engine.command("HSET", f"ff:{P0}", "counts", counts)
    assert len(await order(engine, 1)) == 1
    await moved(engine)
    assert len(await order(engine)) == len(ids) - 1


async def test_the_last_of_several_changes_holds(engine: Engine) -> None:
    """A change that comes while another is under way follows it; so does a first fairness key."""
    await engine.submit_many(5)
    await engine.call(aged(10))
    await engine.call(aged(20))
    await engine.submit(fairness_key="k")
    await moved(engine)
    header = (await engine.call(c.ReadHeaderArgs(partition=P0))).fields
    assert header["k1"] == "1 20 0"
    await engine.call(aged(5))
    await engine.call(aged(0))
    await moved(engine)
    assert (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["k1"] == "1 0 0"
    assert len(await order(engine)) == 6


async def test_a_page_of_a_listing_survives_the_end_of_the_move(engine: Engine) -> None:
    await engine.submit_many(4)
    delayed = await engine.submit(delay_until=engine.now + 10_000)
    await engine.call(aged(10))
    page = await engine.call(c.ListExecutionsArgs(partition=P0, limit=2))
    await moved(engine)
    rows, cursor = list(page.items), page.cursor
    while cursor:
        page = await engine.call(c.ListExecutionsArgs(partition=P0, limit=2, cursor=cursor))
        rows, cursor = rows + page.items, page.cursor
    assert delayed in {row.execution_id for row in rows} and len({row.execution_id for row in rows}) == 5


# ---- a naive model ---------------------------------------------------------------------------------------

UNIT = 16


class Naive:
    """The order of an aged lane, the slow way: turns belong to keys, a key's turn goes to its most aged job."""

    def __init__(self, seconds: int, keyed: bool) -> None:
        self.seconds, self.keyed = seconds, keyed
        self.turns: list[tuple[int, int]] = []
        self.jobs: dict[int, list[tuple[int, str]]] = {}
        self.virtual, self.finish, self.plain = 0, dict[int, int](), 0

    def submit(self, id: str, now: int, priority: int, key: int) -> None:
        self.jobs.setdefault(key if self.keyed else 0, []).append((now - priority * self.seconds * 1000, id))
        if not self.keyed:
            return
        turn = max(self.virtual, self.finish.get(key, -1))
        self.finish[key] = turn + UNIT
        self.turns.append((turn, key))

    def claim(self, n: int) -> list[list[str]]:
        """Per turn the jobs that may come: keys of the same turn in any order."""
        out: list[list[str]] = []
        if not self.keyed:
            jobs = self.jobs.setdefault(0, [])
            jobs.sort()
            self.jobs[0] = jobs[n:]
            return [[id] for _, id in jobs[:n]]
        self.turns.sort()
        got, self.turns = self.turns[:n], self.turns[n:]
        for turn, key in got:
            jobs = self.jobs[key]
            jobs.sort()
            out.append([jobs.pop(0)[1]])
            self.virtual = max(self.virtual, turn)
        return out


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(-2, 2), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.integers(0, 3_000), st.just(0)),
        st.tuples(st.just("claim"), st.integers(1, 4), st.just(0)),
    ),
    max_size=30,
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=STEPS)
async def test_an_aged_lane_without_keys_is_that_of_a_naive_model(engine: Engine, steps: Any) -> None:
    await engine.fresh()
    await engine.call(aged(1))
    model = Naive(1, keyed=False)
    for what, a, b in [*steps, ("claim", 100, 0)]:
        if what == "submit":
            model.submit(await engine.submit(priority=a), engine.now, a, b)
        elif what == "wait":
            await engine.advance(a)
        else:
            assert [[id] for id in await order(engine, a)] == model.claim(a)


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=STEPS)
async def test_each_key_of_an_aged_lane_sends_its_jobs_by_age(engine: Engine, steps: Any) -> None:
    """Within a key always the most aged; and no key has more turns than another between two of the other's, but one."""
    await engine.fresh()
    await engine.call(aged(1))
    waiting: dict[int, list[tuple[int, str]]] = {}
    for what, a, b in [*steps, ("claim", 100, 0)]:
        if what == "submit":
            id = await engine.submit(priority=a, fairness_key=f"tenant {b}")
            waiting.setdefault(b, []).append((engine.now - a * 1_000, id))
        elif what == "wait":
            await engine.advance(a)
        else:
            got = await order(engine, a)
            assert len(got) == min(a, sum(map(len, waiting.values())))
            for id in got:
                (key,) = [k for k, jobs in waiting.items() if id in [i for _, i in jobs]]
                best = min(waiting[key])
                assert best[1] == id
                waiting[key].remove(best)
