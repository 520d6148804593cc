"""Bells: every job that becomes claimable rings one parked worker that can serve it, and no more than that."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, TTL, Engine, delay, revoke, unclaim
from tests.lua.test_claim import needs, sets_of


async def parked_workers(engine: Engine, *names: str, **options: Any) -> None:
    for name in names:
        answer = await engine.call(engine.claiming(1, worker_instance_id=name, park=name, **options))
        assert answer.parked and answer.jobs == []
        await engine.advance(1)


def channels(engine: Engine, *names: str) -> list[str]:
    return [engine.backend.worker_channel(P0, name) for name in names]


async def test_a_batch_rings_as_many_workers_as_there_are_jobs_and_no_more(engine: Engine) -> None:
    await parked_workers(engine, "a", "b", "c")
    ear = await engine.listen(*channels(engine, "a", "b", "c"))
    await engine.submit_many(2)
    assert sorted(await ear.heard()) == [("b", "work"), ("c", "work")]
    await engine.submit_many(5)
    assert await ear.heard() == [("a", "work")]
    await engine.submit_many(5)
    assert await ear.heard() == [], "nobody is parked any more"


async def test_a_bell_that_nobody_hears_goes_on_to_the_next(engine: Engine) -> None:
    """A worker that was killed stays parked for a while, and those who parked last are rung first."""
    await parked_workers(engine, "alive", "dead")
    ear = await engine.listen(*channels(engine, "alive"))
    await engine.submit()
    assert await ear.heard() == [("alive", "work")]


async def test_a_bell_looks_past_a_bounded_number_of_dead(engine: Engine) -> None:
    await parked_workers(engine, "alive", *(f"dead{n}" for n in range(limits.HEADS_N + 2)))
    ear = await engine.listen(*channels(engine, "alive"))
    await engine.submit()
    assert await ear.heard() == []
    await engine.submit()
    assert await ear.heard() == [("alive", "work")]


async def test_every_way_of_becoming_claimable_rings(engine: Engine) -> None:
    ear = await engine.listen(*channels(engine, "a"))

    async def rings(step: Any) -> None:
        await parked_workers(engine, "a")
        await step
        assert await ear.heard() == [("a", "work")]

    await rings(engine.submit())
    (job,) = await engine.claim()
    await rings(engine.call(unclaim(job)))
    (job,) = await engine.claim()
    await rings(engine.call(revoke(job.execution_id)))
    (job,) = await engine.claim()
    await engine.call(delay(job, engine.now + 50))
    await parked_workers(engine, "a")
    await engine.advance(50)
    await engine.tick()
    assert await ear.heard() == [("a", "work")]
    (job,) = await engine.claim()
    await parked_workers(engine, "a")
    await engine.pass_time(TTL + 1_000)
    assert await engine.state(job.execution_id) == "reclaimable"


async def test_a_worker_that_leases_leaves_the_parking(engine: Engine) -> None:
    await parked_workers(engine, "a")
    await engine.submit()
    await parked_workers(engine, "a", lanes=["other"])
    await engine.claim(worker_instance_id="a", park="a", lanes=["mail", "other"])
    assert await engine.command("KEYS", "*:park:*") == []


async def test_a_park_that_has_lapsed_rings_nobody(engine: Engine) -> None:
    await parked_workers(engine, "a")
    ear = await engine.listen(*channels(engine, "a"))
    await engine.advance(limits.PARK_MS + 1_001)
    await engine.submit()
    assert await ear.heard() == []


async def test_workers_that_died_parked_are_swept_by_those_who_park(engine: Engine) -> None:
    await parked_workers(engine, "dead")
    await engine.advance(limits.PARK_MS + 2_000)
    await parked_workers(engine, "alive")
    assert await engine.command("ZRANGE", f"ff:{P0}:park:1:-", 0, -1) == [b"alive"]


async def test_a_job_rings_only_workers_that_can_serve_it(engine: Engine) -> None:
    await engine.submit(policy=needs("gpu"))
    gpu = (await sets_of(engine))["gpu"]
    await engine.claim(capability_sets=[gpu])
    await parked_workers(engine, "plain")
    await parked_workers(engine, "gpu", capability_sets=[gpu])
    ear = await engine.listen(*channels(engine, "plain", "gpu"))
    await engine.submit(policy=needs("gpu"))
    assert await ear.heard() == [("gpu", "work")]


async def test_a_worker_of_many_sets_is_rung_for_the_last_of_them(engine: Engine) -> None:
    await engine.submit(policy=needs("gpu"))
    gpu = (await sets_of(engine))["gpu"]
    many = [*(f"{n:012x}" for n in range(2 * limits.HEADS_N)), gpu]
    await engine.claim(capability_sets=[gpu])
    await parked_workers(engine, "a", capability_sets=many)
    ear = await engine.listen(*channels(engine, "a"))
    await engine.submit(policy=needs("gpu"))
    assert await ear.heard() == [("a", "work")]
    passing = c.PassBellArgs(partition=P0, lanes=["mail"], capability_sets=many)
    await engine.command("ZADD", f"ff:{P0}:park:1:{gpu}", START_MS + 5_000, "a")
    await engine.call(passing)
    assert await ear.heard() == [("a", "work")]


async def test_a_set_nobody_knew_wakes_idle_workers_to_read_the_table(engine: Engine) -> None:
    await parked_workers(engine, "a", "b")
    ear = await engine.listen(*channels(engine, "a", "b"))
    await engine.submit(policy=needs("gpu"))
    assert sorted(await ear.heard()) == [("a", "work"), ("b", "work")]


async def test_the_first_job_of_a_lane_rings_who_waited_for_it(engine: Engine) -> None:
    await parked_workers(engine, "a", lanes=["new"])
    ear = await engine.listen(*channels(engine, "a"))
    await engine.submit(lane_id="new")
    assert await ear.heard() == [("a", "work")]


async def test_a_bell_is_passed_on_while_there_is_work(engine: Engine) -> None:
    await engine.submit_many(1)
    await engine.call(engine.claiming(1, worker_instance_id="x", lanes=["other"], park="x"))
    await engine.submit(lane_id="other")
    passing = c.PassBellArgs(partition=P0, lanes=["mail", "other", "none"], capability_sets=["0" * 12])
    await engine.command("ZADD", f"ff:{P0}:park:1:-", START_MS + 5_000, "b")
    ear = await engine.listen(*channels(engine, "b"))
    assert isinstance(await engine.call(passing), c.BellPassed)
    assert await ear.heard() == [("b", "work")]
    await engine.claim()
    await engine.command("ZADD", f"ff:{P0}:park:1:-", START_MS + 5_000, "b")
    await engine.call(passing)
    assert await ear.heard() == []


@pytest.mark.parametrize("field", ["lanes", "capability_sets"])
async def test_a_bell_for_queues_that_cannot_be_is_refused(engine: Engine, field: str) -> None:
    passing = c.PassBellArgs(partition=P0, lanes=["mail"], capability_sets=[])
    assert await engine.refused("invalid_input", passing, **{field: ["a b"]}) == field
