"""Quotas: so many starts in a span of time, so many at once; for all jobs or for each key."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

import ffsdk as ff
from tests.integration.flow_run import STORES, Run, name_of


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Run:
    return Run(None, name_of(request))


class Most:
    """How many are within at once, by key."""

    def __init__(self) -> None:
        self.now, self.most = Counter[str](), Counter[str]()

    async def __call__(self, key: str, seconds: float = 0.05) -> None:
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        await asyncio.sleep(seconds)
        self.now[key] -= 1


# ---- the quota itself ------------------------------------------------------------------------------------------


async def test_a_quota_is_declared_and_brought_to_what_is_given(run: Run) -> None:
    async with run.engine() as eng:
        client = eng.client
        with pytest.raises(ff.NotFound, match="api"):
            await client.quota("api")
        made = await client.quota("api", rate=(100, timedelta(minutes=1)), concurrency=10)
        status = await made.status()
        assert (status.max_requests_per_window, status.window_seconds, status.max_concurrent) == (100, 60, 10)
        assert (status.name, status.namespace, status.in_window, status.active) == ("api", client.namespace, 0, 0)
        assert await client.quota("api") == made, "with nothing to change"
        await client.quota("api", concurrency=3)
        await client.quota("other", rate=(1, 1))
        status = await made.status("some tenant")
        assert (status.max_requests_per_window, status.window_seconds, status.max_concurrent) == (100, 60, 3)
        await client.quota("api", rate=(0, 60))
        found = {quota.name: quota.info async for quota in client.quotas()}
        assert sorted(found) == ["api", "other"] and found["api"] and found["api"].max_requests_per_window == 0
        await made.delete()
        for call in (made.status, made.delete):
            with pytest.raises(ff.NotFound, match="api"):
                await call()


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 5}, {"rate": (5,)}, {"rate": (5, 0)}, {"rate": (5, 1.5)}, {"rate": (-1, 60)}, {"rate": ("5", 60)},
        {"rate": (5, 10**9)}, {"concurrency": -1}, {"concurrency": 1.5},
    ],
)  # fmt: skip
async def test_what_no_quota_can_be_is_refused(memory: Run, given: dict[str, Any]) -> None:
    async with memory.engine() as eng:
        with pytest.raises(ff.InvalidArgument):
            await eng.client.quota("q", **given)
        with pytest.raises(ff.InvalidArgument):
            await eng.client.quota("two words")


# ---- jobs ------------------------------------------------------------------------------------------------------


async def test_a_job_names_a_quota_that_is_there(run: Run) -> None:
    @run.task(quota="api")
    async def work() -> str:
        return "done"

    async with run.engine() as eng:
        with pytest.raises(ff.NotFound, match="api") as missing:
            await eng.client.submit(work)
        assert missing.value.code == "quota_policy_not_found"
        await eng.client.quota("api", concurrency=1)
        assert await (await eng.client.submit(work)).result(10) == "done"
        assert await (await eng.client.submit("work")).result(10) == "done"


async def test_no_more_run_at_once_than_the_quota_has_places(run: Run) -> None:
    within = Most()

    @run.task(quota="api")
    async def work(n: int) -> int:
        await within("all")
        return n

    async with run.engine() as eng:
        quota = await eng.client.quota("api", concurrency=2)
        jobs = await eng.client.submit_many(work, range(8))
        assert sorted(await asyncio.gather(*(job.result(30) for job in jobs))) == [*range(8)]
        assert within.most["all"] == 2
        async with asyncio.timeout(10):
            while (await quota.status()).active:
                await asyncio.sleep(0.02)


async def test_each_key_has_the_quota_for_itself(run: Run) -> None:
    within = Most()

    @run.task(quota=ff.Quota("api", key="payload.tenant"))
    async def work(payload: dict[str, str]) -> None:
        await within(payload.get("tenant", "-"))
        await within("all", 0)

    async with run.engine() as eng:
        quota = await eng.client.quota("api", concurrency=1)
        jobs = await eng.client.submit_many(work, [{"tenant": t} for t in ("a", "b c", "a", "b c", "ü")] + [{}, {}])
        await asyncio.gather(*(job.result(30) for job in jobs))
        assert {key: within.most[key] for key in ("a", "b c", "ü", "-")} == {"a": 1, "b c": 1, "ü": 1, "-": 1}
        assert (await quota.status("b c")).active <= 1


async def test_no_more_start_in_a_window_than_the_rate_says(memory: Run) -> None:
    started: list[float] = []

    async with memory.engine(auto=False) as eng:

        @memory.task(quota="api")
        async def work(n: int) -> None:
            started.append(eng.now.timestamp())

        eng.worker(lanes=[memory.lane])
        await eng.client.quota("api", rate=(3, 10))
        await eng.client.submit_many(work, range(9))
        await eng.advance(seconds=60)
        assert len(started) == 9
        started.sort()
        gaps = [later - earlier for earlier, later in zip(started, started[3:], strict=False)]
        assert min(gaps) >= 10, "any window of ten seconds"
        assert started[-1] - started[0] < 30, "and no longer than it takes"


async def test_a_rate_may_end_a_job_instead(run: Run) -> None:
    @run.task(quota=ff.Quota("api", on_exceed="fail"))
    async def work() -> str:
        return "done"

    async with run.engine() as eng:
        await eng.client.quota("api", rate=(1, 3600))
        assert await (await eng.client.submit(work)).result(10) == "done"
        outcome = await (await eng.client.submit(work)).outcome(20)
        assert isinstance(outcome, ff.Failed) and outcome.category == "quota_exceeded"
