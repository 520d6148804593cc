"""Lanes as gates: how many of a lane run, how many it takes, who comes first; and who is there to run them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore.contracts.roster import RegisterWorkerArgs
from ffcore.ids import partition_key
from tests.integration.flow_run import STORES, Run


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


class Counted:
    """A handler that knows how many of it run, and who was first."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.now = self.most = 0
        self.order: list[str] = []
        self._seconds = seconds

    async def __call__(self, who: str) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        self.order.append(who)
        await asyncio.sleep(self._seconds)
        self.now -= 1
        return who


def task_of(run: Run, counted: Counted, **options: Any) -> Any:
    async def work(who: str) -> str:
        return await counted(who)

    return run.task(work, name="work", **options)


async def test_of_a_limited_lane_so_many_run_at_once_whoever_runs_them(run: Run) -> None:
    counted = Counted()
    task = task_of(run, counted)
    async with run.engine() as eng:
        lane = eng.client.lane(run.lane)
        assert (await lane.limit(concurrency=2)).complete
        eng.worker(lanes=[run.lane])
        jobs = await eng.client.submit_many(task, [str(n) for n in range(12)])
        assert [await job.result(timeout=60) for job in jobs] == [str(n) for n in range(12)]
        assert counted.most == 2
        told = await lane.settings()
        assert (told.concurrency, told.rate) == (2, None)
        await lane.limit()
        jobs = await eng.client.submit_many(task, [str(n) for n in range(12)])
        for job in jobs:
            await job.result(timeout=60)
        assert counted.most > 2
        assert (await lane.settings()).concurrency == 0


async def test_a_job_of_a_limited_lane_takes_a_place_of_its_own_quota_too(run: Run) -> None:
    counted = Counted()
    task = task_of(run, counted)
    async with run.engine() as eng:
        await eng.client.lane(run.lane).limit(concurrency=3)
        quota = await eng.client.quota("one", concurrency=1)
        jobs = await eng.client.submit_many(task, [str(n) for n in range(6)], quota="one")
        for job in jobs:
            await job.result(timeout=60)
        assert counted.most == 1
        # What is released arrives a moment after the job has ended.
        for _ in range(500):
            if (await quota.status()).active == 0:
                break
            await asyncio.sleep(0.02)
        assert (await quota.status()).active == 0


async def test_a_lane_with_a_full_backlog_takes_no_more_and_patience_waits(run: Run) -> None:
    counted = Counted(0.0)
    task = task_of(run, counted)
    async with run.engine(lanes=["another"]) as eng:
        lane = eng.client.lane(run.lane)
        await lane.backlog(count=8)
        accepted = 0
        with pytest.raises(ff.StoreFull) as full:
            for _ in range(50):
                await eng.client.submit(task, "x")
                accepted += 1
        assert full.value.code == "lane_full" and full.value.retry_after > 0
        assert accepted <= 8
        with pytest.raises(ff.SubmitErrors) as some:
            await eng.client.submit_many(task, ["x"] * 50)
        assert len([job for job in some.value.jobs if job is not None]) + accepted == 8, "exactly its shares"
        told = await lane.settings()
        assert (told.max_count, told.max_bytes) == (8, 0)
        eng.worker(lanes=[run.lane])
        job = await eng.client.submit(task, "last", patience=30)
        assert await job.result(timeout=30) == "last"


async def test_heavier_keys_get_more_turns(run: Run) -> None:
    counted = Counted(0.001)
    task = task_of(run, counted, fairness="payload")
    async with run.engine(lanes=["another"]) as eng:
        lane = eng.client.lane(run.lane)
        await eng.client.submit(task, "light")  # the lane exists from here on
        assert (await eng.client.weight(run.lane, {"heavy": 4})).complete
        assert await lane.weights() == {"heavy": 4.0}
        # With keys, so that every partition has some of each: a bulk of jobs without keys goes to few.
        whom = ["light"] * 80 + ["heavy"] * 160
        await eng.client.submit_many(task, whom, keys=[str(n) for n in range(len(whom))])
        eng.worker(lanes=[run.lane], concurrency=1, prefetch=0)
        for _ in range(3_000):
            if len(counted.order) >= 20:
                break
            await asyncio.sleep(0.01)
        # Turns are given in each partition apart, and a worker stays in one while there is work: both have their share.
        heavy = counted.order[:20].count("heavy")
        assert 13 <= heavy <= 18, f"{heavy} of 20: four of five are its own, about"
        with pytest.raises(ff.InvalidArgument, match=r"0\.01 to 100"):
            await eng.client.weight(run.lane, {"heavy": 101})
        with pytest.raises(ff.InvalidArgument, match="at least one"):
            await eng.client.weight(run.lane, {})


async def test_workers_are_listed_alive_and_dead(run: Run) -> None:
    async with run.engine() as eng:
        client = eng.client
        await client.backend.call(RegisterWorkerArgs(
            partition=partition_key(0, "w"), worker_instance_id=f"dead-{run.lane[-20:]}",  # type: ignore[arg-type]
            info=b'{"host": "h1", "pid": 7, "lanes": ["mail"]}', ttl_ms=1,
        ))  # fmt: skip
        await asyncio.sleep(0.05)
        [dead] = [one for one in await client.workers(dead=True) if one.worker == f"dead-{run.lane[-20:]}"]
        assert (dead.host, dead.pid, dead.lanes, dead.dead) == ("h1", 7, ["mail"], True)
        assert dead.seen_at is not None and dead.alive_until is not None and dead.seen_at < dead.alive_until
        assert dead.worker not in {one.worker for one in await client.workers()}


async def test_limits_that_cannot_be_are_refused(run: Run) -> None:
    async with run.engine() as eng:
        lane = eng.client.lane(run.lane)
        for wrong in ({"concurrency": 0}, {"rate": (5, 0.5)}, {"rate": 5}):
            with pytest.raises(ff.InvalidArgument):
                await lane.limit(**wrong)  # type: ignore[arg-type]
        with pytest.raises(ff.InvalidArgument, match="count= or bytes="):
            await lane.backlog()
