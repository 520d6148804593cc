"""`job.explain()`: the reason, its numbers, and when it would run; on a store with workers."""

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


async def reasons(job: ff.Job[Any]) -> dict[str, ff.Reason]:
    found = await job.explain()
    return {reason.code: reason for reason in found.reasons}


async def spent(amount: int, ctx: ff.Context) -> int:
    await ctx.spend(tokens=amount)
    return amount


async def halted(job: ff.Job[Any]) -> ff.JobStatus:
    """Its status once its queue is halted."""
    status = await job.status()
    for _ in range(500):
        if status.state == "rate_limited":
            return status
        await asyncio.sleep(0.02)
        status = await job.status()
    raise AssertionError(f"it is {status.state}")


async def test_a_used_up_budget_is_told_with_its_numbers_and_its_reset(run: Run) -> None:
    task = run.app.task(name="spent")(spent)
    async with run.engine() as eng:
        budget = await eng.client.budget("team-a", hard={"tokens": 10_000}, reset=3600)
        await budget.report(tokens=9_800)
        one = ff.Budget("team-a", estimate={"tokens": 500})
        job = await eng.client.submit(task, 500, budget=one)
        status = await halted(job)
        assert status.blocking_reason == "waiting_for_budget" and status.blocking_detail
        told = (await reasons(job))["waiting_for_budget"]
        assert told.detail.startswith("budget team-a: tokens 9,800 used of 10,000, this job asks 500; resets 20")
        assert told.until is not None
        stats = await eng.client.lane(status.lane).stats()
        assert (stats.held, stats.depth["waiting"]) == (1, 1)
        assert [(halt.kind, halt.jobs) for halt in stats.halts] == [("budget", 1)]
        await budget.raise_(tokens=1_000)
        assert await job.result(timeout=20) == 500


async def test_a_budget_that_refuses_is_told_before_anybody_has_asked(run: Run) -> None:
    """Without a worker nothing has been refused yet; the answer is that of a dry run all the same."""
    run.app.task(name="spent")(spent)
    async with run.engine(lanes=["another"]) as eng:
        budget = await eng.client.budget("team-b", hard={"usd": 1.5})
        await budget.report(usd=1.5)
        job = await eng.client.submit("spent", 1, lane="spare", budget="team-b")
        told = await reasons(job)
        assert told["waiting_for_budget"].detail == "budget team-b: usd 1.5 used of 1.5"
        assert told["waiting_for_budget"].until is None
        never = await eng.client.submit("spent", 1, lane="spare", budget=ff.Budget("team-b", estimate={"usd": 2}))
        assert "more than there will ever be" in (await reasons(never))["never_within_budget"].detail


async def test_a_full_quota_tells_its_numbers_and_when_the_next_place_is_free(run: Run) -> None:
    go_on = asyncio.Event()

    async def waits(_: int) -> None:
        await go_on.wait()

    task = run.app.task(name="waits")(waits)
    async with run.engine() as eng:
        await eng.client.quota("api", rate=(1, 60), concurrency=1)
        quota = ff.Quota("api", key="t1")
        first = await eng.client.submit(task, 1, quota=quota)
        for _ in range(500):
            if (await first.status()).state == "active":
                break
            await asyncio.sleep(0.02)
        second = await eng.client.submit(task, 2, quota=quota)
        assert (await halted(second)).blocking_reason == "waiting_for_quota"
        told = (await reasons(second))["waiting_for_quota"]
        assert told.detail.startswith("quota api (key t1): 1 of 1 in 60 s; next place in ")
        assert told.detail.endswith(", 1 of 1 run")
        go_on.set()
        await first.result(timeout=20)


async def test_a_missing_capability_tells_how_many_workers_have_it(run: Run) -> None:
    run.app.task(name="train", lane="heavy", requires={"gpu", "torch>=2.3"})(spent)
    async with run.engine(lanes=["another"]) as eng:
        for n, has in enumerate((["gpu"], ["gpu", "torch==2.2"], [], ["cpu"])):
            info = f'{{"lanes": ["heavy"], "capabilities": {str(has).replace(chr(39), chr(34))}}}'
            await eng.client.backend.call(RegisterWorkerArgs(
                partition=partition_key(0, "w"), worker_instance_id=f"w{n}", info=info.encode(), ttl_ms=60_000,  # type: ignore[arg-type]
            ))  # fmt: skip
        job = await eng.client.submit("train", 1)
        told = await reasons(job)
        assert told["no_capable_worker"].detail == "requires torch>=2.3: 0 of 4 workers have it"
