"""Budgets: declared, reported to, raised, reset; jobs wait for them, end by them, and never start beyond them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore.contracts.budget import HardBreach, SoftBreach, UsageOk
from ffcore.contracts.dependency import AlreadyApplied
from tests.integration.flow_run import ONCE, STORES, Run, name_of


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Run:
    return Run(None, name_of(request))


# ---- the budget itself -----------------------------------------------------------------------------------------


async def test_a_budget_is_declared_and_brought_to_what_is_given(run: Run) -> None:
    async with run.engine() as eng:
        client = eng.client
        with pytest.raises(ff.NotFound, match="team"):
            await client.budget("team")
        made = await client.budget("team", hard={"tokens": 100, "usd": 0.5}, soft={"tokens": 80}, reset=3600)
        status = await made.status()
        assert status.hard_limits == {"tokens": 100, "usd": 0.5} and status.soft_limits == {"tokens": 80}
        assert (status.name, status.namespace, status.enforcement_mode) == ("team", client.namespace, "record")
        assert (status.scope_type, status.scope_id) == ("namespace", client.namespace)
        assert status.usage == {"tokens": 0, "usd": 0} and status.next_reset_at is not None
        assert await client.budget("team") == made, "with nothing to change"
        await client.budget("team", hard={"tokens": 200}, on_breach="refuse")
        status = await made.status()
        assert status.hard_limits == {"tokens": 200} and status.soft_limits == {"tokens": 80}
        assert status.enforcement_mode == "refuse" and status.reset_interval_ms == 3_600_000
        await client.budget("mine", hard={"n": 1}, scope=("tenant", "t1"))
        found = {budget.name: budget.info async for budget in client.budgets()}
        assert sorted(found) == ["mine", "team"] and found["mine"] and found["mine"].scope_id == "t1"
        await made.delete()
        for call in (made.status, made.reset, made.delete, lambda: made.report(n=1)):
            with pytest.raises(ff.NotFound, match="team"):
                await call()


async def test_reports_count_once_per_key_and_say_what_they_pass(run: Run) -> None:
    async with run.engine() as eng:
        budget = await eng.client.budget("b", hard={"tokens": 100}, soft={"tokens": 50})
        assert await budget.report(tokens=40, key="a") == UsageOk()
        assert await budget.report(tokens=40, key="a") == AlreadyApplied()
        assert await budget.report({"tokens": 20.5}) == SoftBreach("tokens", 60.5, 50)
        assert await budget.report({"tokens": 60, "calls": 1}) == HardBreach("tokens", 120.5, 100, True)
        status = await budget.status()
        assert status.usage == {"tokens": 120.5, "calls": 1}
        assert (status.breach_count, status.soft_breach_count, status.last_breach_dim) == (1, 1, "tokens")
        assert await budget.raise_(tokens=100, key="r") == {"tokens": 200}
        assert await budget.raise_(tokens=100, key="r") == {"tokens": 200}, "one raise"
        assert await budget.raise_(tokens=1) == {"tokens": 201}
        assert await budget.reset() is None
        assert (await budget.status()).usage == {"tokens": 0, "calls": 0}


async def test_a_budget_may_refuse_what_would_breach_it(run: Run) -> None:
    async with run.engine() as eng:
        budget = await eng.client.budget("b", hard={"n": 10}, on_breach="refuse")
        refused = await budget.report(n=11)
        assert isinstance(refused, HardBreach) and not refused.applied and refused.dimension == "n"
        assert (await budget.status()).usage == {"n": 0}


async def test_resets_stay_in_step(memory: Run) -> None:
    async with memory.engine(auto=False) as eng:
        budget = await eng.client.budget("b", hard={"n": 10}, reset=100)
        await eng.advance(seconds=130)
        await budget.report(n=10)
        assert (await budget.status()).usage == {"n": 10}
        await eng.advance(seconds=69)
        assert (await budget.status()).usage == {"n": 10}
        await eng.advance(seconds=2)
        status = await budget.status()
        assert status.usage == {"n": 0} and status.period == 3


@pytest.mark.parametrize(
    "given",
    [
        {"hard": {"n": -1}}, {"hard": {"two words": 1}}, {"hard": ["n"]}, {"soft": 7}, {"reset": -1},
        {"on_breach": "warn"}, {"scope": "tenant"}, {"scope": ("two words", "t1")}, {"scope": ("tenant", "")},
    ],
)  # fmt: skip
async def test_what_no_budget_can_be_is_refused(memory: Run, given: dict[str, Any]) -> None:
    async with memory.engine() as eng:
        with pytest.raises(ff.InvalidArgument):
            await eng.client.budget("b", **given)
        with pytest.raises(ff.InvalidArgument):
            await eng.client.budget("two words")
        budget = await eng.client.budget("b", hard={"n": 1})
        for call in (budget.report, budget.raise_):
            with pytest.raises(ff.InvalidArgument, match="what"):
                await call()


def test_the_blocking_client_has_budgets_and_quotas(url: str) -> None:
    with ff.sync.Client(url, namespace="sync-budgets") as client:
        budget = client.budget("b", hard={"n": 10})
        budget.report(n=3)
        assert budget.status().usage == {"n": 3} and budget.name == "b" and budget.info is None
        assert [found.id for found in client.budgets()] == [budget.id]
        quota = client.quota("q", rate=(5, 60), concurrency=2)
        assert quota.status().max_concurrent == 2 and quota.name == "q"
        assert [found.info.max_requests_per_window for found in client.quotas() if found.info] == [5]
        quota.delete()
        budget.delete()
        assert [*client.budgets()] == [] and [*client.quotas()] == []


# ---- jobs ------------------------------------------------------------------------------------------------------


async def test_a_job_names_a_budget_that_is_there(run: Run) -> None:
    @run.task(budget="team")
    async def work() -> str:
        return "done"

    async with run.engine() as eng:
        client = eng.client
        with pytest.raises(ff.NotFound, match="team") as missing:
            await client.submit(work)
        assert missing.value.code == "budget_not_found"
        with pytest.raises(ff.NotFound, match="other"):
            await client.submit(work, budget=["other"])
        assert await (await client.submit(work, budget=[])).result(10) == "done"
        await client.budget("team", hard={"tokens": 10})
        assert await (await client.submit(work)).result(10) == "done"
        assert await (await client.submit(work.name)).result(10) == "done"


async def test_who_submits_by_name_is_held_by_the_same_limits(run: Run) -> None:
    """A program that cannot import the task reads from the registry what its jobs are admitted by."""

    @run.task(budget=ff.Budget("team", estimate={"n": 3}), quota=ff.Quota("api", key="payload.tenant"), retry=ONCE)
    async def work(payload: dict[str, str]) -> str:
        return payload["tenant"]

    async with run.engine() as eng:
        await eng.client.budget("team", hard={"n": 2})
        await eng.client.quota("api", concurrency=1)
        async with ff.App(eng.url, namespace=run.app.namespace).client() as other:
            outcome = await (await other.submit("work", {"tenant": "t1"})).outcome(20)
            assert isinstance(outcome, ff.Failed) and outcome.category == "budget_exceeded"
            assert "3" in outcome.reason and "2" in outcome.reason, "more than there will ever be"
            job = await other.submit("work", {"tenant": "t1"}, budget=[])
            assert await job.result(20) == "t1"


async def test_jobs_wait_for_room_and_go_on_when_there_is(run: Run) -> None:
    ran: list[int] = []

    @run.task(budget=ff.Budget("team", estimate={"tokens": 40}))
    async def ask(n: int, ctx: ff.Context) -> int:
        ran.append(n)
        await ctx.spend(tokens=40)
        return n

    async with run.engine() as eng:
        client = eng.client
        budget = await client.budget("team", hard={"tokens": 100})
        jobs = await client.submit_many(ask, range(4))
        async with asyncio.timeout(20):
            while len(ran) < 2:
                await asyncio.sleep(0.02)
            while (await budget.status()).usage["tokens"] < 80:
                await asyncio.sleep(0.02)
        assert len(ran) == 2, "80 of 100 are used: there is no room for 40"
        await budget.raise_(tokens=60)
        assert sorted(await asyncio.gather(*(job.result(20) for job in jobs))) == [0, 1, 2, 3]
        status = await budget.status()
        assert status.usage == {"tokens": 160} and not any(status.reserved.values())
        spenders = await budget.spenders()
        assert sorted(one.execution_id for one in spenders) == sorted(job.id for job in jobs)
        assert all(one.amounts == {"tokens": 40} for one in spenders)


async def test_a_reset_lets_held_jobs_go_on(memory: Run) -> None:
    @memory.task(budget="team")
    async def ask(n: int, ctx: ff.Context) -> int:
        await ctx.spend(tokens=100)
        return n

    async with memory.engine(auto=False) as eng:
        budget = await eng.client.budget("team", hard={"tokens": 150}, reset=60)
        jobs = [await eng.client.submit(ask, n) for n in range(3)]
        ended: list[int] = []
        for _ in range(3):
            await eng.advance(seconds=58)
            ended.append([(await job.status()).state.value for job in jobs].count("completed"))
            await eng.advance(seconds=2)
        assert ended == [1, 2, 3], "one for each minute"
        assert (await budget.status()).breach_count >= 2


@pytest.mark.parametrize(("on_exceed", "end"), [("fail", ff.Failed), ("cancel", ff.Cancelled)])
async def test_a_job_may_end_instead_of_waiting(run: Run, on_exceed: Any, end: type[Any]) -> None:
    began: list[str] = []

    @run.task(retry=ONCE)
    async def work() -> None:
        began.append("x")

    async with run.engine() as eng:
        budget = await eng.client.budget("team", hard={"n": 1})
        await budget.report(n=1)
        job = await eng.client.submit(work, budget=ff.Budget("team", on_exceed=on_exceed))
        outcome = await job.outcome(20)
        assert isinstance(outcome, end) and not began
        if isinstance(outcome, ff.Failed):
            assert outcome.category == "budget_exceeded"


async def test_a_node_and_a_child_are_admitted_too(run: Run) -> None:
    @run.task
    async def child(ctx_: None, ctx: ff.Context) -> None:
        await ctx.spend(n=2)

    @run.task
    async def parent(ctx_: None, ctx: ff.Context) -> None:
        await (await ctx.spawn(child, budget="team")).result()

    async with run.engine() as eng:
        budget = await eng.client.budget("team", hard={"n": 100})
        await (await eng.client.submit(parent)).result(20)
        async with eng.client.flow("f") as flow:
            flow.add(child, None, budget="team")
        assert (await flow.outcome(20)).state == "completed"
        assert (await budget.status()).usage == {"n": 4}
