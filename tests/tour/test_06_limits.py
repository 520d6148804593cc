"""The tutorial, part 6: what jobs may spend, how many may start, and which of them there may be one of."""

from __future__ import annotations

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

app = ff.App()


@app.task(lane="llm", budget=ff.Budget("team", estimate={"tokens": 400}))
async def ask(question: str, ctx: ff.Context) -> str:
    await ctx.spend(tokens=300)
    return question.upper()


@app.task(lane="api", quota=ff.Quota("provider", key="payload.tenant"))
async def fetch(request: dict[str, str]) -> str:
    return request["tenant"]


@app.task(lane="mail", deadline=3600)
async def remind(to: str) -> str:
    return to


async def test_a_budget_bounds_what_jobs_spend() -> None:
    """Each reserves its estimate before it starts, and gives back what it has not spent."""
    async with Engine(app, auto=False) as eng:
        team = await eng.client.budget("team", hard={"tokens": 1_000}, reset=60)
        jobs = await eng.client.submit_many(ask, ["one", "two", "three", "four"])
        await eng.advance(seconds=30)
        assert (await team.status()).usage == {"tokens": 900}, "a fourth might have spent more than there is"
        await eng.advance(seconds=35)
        assert [await job.result() for job in jobs] == ["ONE", "TWO", "THREE", "FOUR"]


async def test_a_job_need_not_wait_for_its_budget() -> None:
    async with Engine(app) as eng:
        team = await eng.client.budget("team", hard={"tokens": 100})
        await team.report(tokens=100)
        job = await eng.client.submit(ask, "now", budget=ff.Budget("team", on_exceed="fail"))
        outcome = await job.outcome()
        assert isinstance(outcome, ff.Failed) and outcome.category == "budget_exceeded"


async def test_a_quota_bounds_how_many_start_for_each_tenant() -> None:
    async with Engine(app, auto=False) as eng:
        await eng.client.quota("provider", rate=(2, 60))
        jobs = await eng.client.submit_many(fetch, [{"tenant": "a"}] * 3 + [{"tenant": "b"}])
        await eng.advance(seconds=10)
        assert [(await job.status()).state for job in jobs].count("completed") == 3
        await eng.advance(seconds=60)
        assert [await job.result() for job in jobs] == ["a", "a", "a", "b"]


async def test_a_unique_key_is_held_by_one_job() -> None:
    async with Engine(app) as eng:
        first = await eng.client.submit(remind, "dana", delay=60, unique=ff.Unique("payload"))
        with pytest.raises(ff.Conflict):
            await eng.client.submit(remind, "dana", unique=ff.Unique("payload"))
        same = await eng.client.submit(remind, "dana", unique=ff.Unique("payload", action="existing"))
        other = await eng.client.submit(remind, "eli", unique=ff.Unique("payload"))
        assert same == first and await other.result() == "eli"


async def test_of_many_submits_in_a_row_the_last_one_runs() -> None:
    async with Engine(app) as eng:
        quiet = ff.Unique("reindex", window=5, action="debounce")
        jobs = [await eng.client.submit(remind, str(n), unique=quiet) for n in range(3)]
        assert [type(await job.outcome()) for job in jobs] == [ff.Cancelled, ff.Cancelled, ff.Completed]
