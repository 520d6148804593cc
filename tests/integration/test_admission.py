"""Workers that admit jobs by budgets and quotas, on a real server: what starts, what waits, what is given back."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffcore.ids import partition_of
from ffsdk.budgets import BudgetHandle
from ffsdk.job import Job
from tests.integration.proxy import until
from tests.integration.worker_app import ONCE, Order, working

HELD = ("rate_limited",)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FF_SECRET_FILE", raising=False)
    monkeypatch.delenv("FF_SECRETS", raising=False)
    monkeypatch.setenv("FF_SECRET", f"k1:{secrets.token_hex(32)}")


async def in_state(job: Job[Any], *states: str, within: float = 10.0) -> None:
    """Wait until a job is in one of these states."""
    async with asyncio.timeout(within):
        while (await job.status()).state not in states:
            await asyncio.sleep(0.01)


async def nothing_reserved(budget: BudgetHandle, within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while (await budget.status()).reservations:
            await asyncio.sleep(0.01)


# ---- budgets ---------------------------------------------------------------------------------------------


async def test_jobs_start_as_far_as_the_budget_goes_and_the_rest_when_it_is_raised(app: ff.App, lane: str) -> None:
    ran: list[int] = []

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 40}))
    async def work(order: Order, ctx: ff.Context) -> int:
        await ctx.spend(tokens=40)
        ran.append(order.number)
        return order.number

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        jobs = [await client.submit(work, Order(n)) for n in range(4)]
        await until(lambda: len(ran) == 2)
        waiting = [job for n, job in enumerate(jobs) if n not in ran]
        await in_state(waiting[0], *HELD)
        status = await waiting[0].status()
        assert status.blocking_reason == "waiting_for_budget"
        await nothing_reserved(team)
        assert (await team.status()).usage == {"tokens": 80}
        await team.raise_(tokens=60)
        assert sorted([await job.result(timeout=10) for job in jobs]) == [0, 1, 2, 3]
        await nothing_reserved(team)
        assert (await team.status()).usage == {"tokens": 160}


async def test_what_is_not_spent_of_an_estimate_is_room_for_the_next_at_once(app: ff.App, lane: str) -> None:
    at_once, most = 0, 0

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 50}))
    async def work(order: Order) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.02)
        at_once -= 1

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        jobs = [await client.submit(work, Order(n)) for n in range(10)]
        for job in jobs:
            await job.result(timeout=20)
    assert most == 2


@pytest.mark.parametrize(
    ("on_exceed", "expected"), [("fail", ff.Failed), ("cancel", ff.Cancelled)], ids=["fail", "cancel"]
)
async def test_a_job_that_may_not_wait_ends_and_says_why(
    app: ff.App, lane: str, on_exceed: Any, expected: type[Any]
) -> None:
    @app.task(lane=lane)
    async def work(order: Order) -> None: ...

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        await team.report(tokens=90)
        limited = ff.Budget("team", estimate={"tokens": 20}, on_exceed=on_exceed)
        outcome = await (await client.submit(work, Order(1), budget=limited)).outcome(timeout=10)
        assert isinstance(outcome, expected)
        assert "20 wanted, 10 of 100 left" in outcome.reason  # type: ignore[union-attr]
        if isinstance(outcome, ff.Failed):
            assert (outcome.category, outcome.attempts) == ("budget_exceeded", 1)
        await nothing_reserved(team)


async def test_an_estimate_that_can_never_be_met_fails_the_job(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 500}))
    async def work(order: Order) -> None: ...

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        outcome = await (await client.submit(work, Order(1))).outcome(timeout=10)
        assert isinstance(outcome, ff.Failed)
        assert "500 wanted, the limit is 100" in outcome.reason


async def test_a_job_waits_for_a_word_that_raises_its_budget(app: ff.App, lane: str) -> None:
    ran = 0

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 40}, on_exceed="suspend"))
    async def work(order: Order, ctx: ff.Context) -> str:
        nonlocal ran
        ran += 1
        await ctx.step("one", asyncio.sleep, 0)
        return "done"

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        await team.report(tokens=90)
        job = await client.submit(work, Order(1))
        await in_state(job, "suspended")
        assert (await job.status()).blocking_reason == "waiting_for_budget"
        await answer(client, job, {"tokens": 10})
        # Not enough: it asks, and waits for another word.
        await until_waits(job, "budget#2")
        assert (await team.status()).hard_limits == {"tokens": 110}
        assert ran == 0
        await answer(client, job, {"tokens": 1000})
        assert await job.result(timeout=10) == "done"
        assert (await team.status()).hard_limits == {"tokens": 1110}
        await nothing_reserved(team)
        assert await unclaimed(client, job) == []


async def test_a_word_that_is_no_raise_raises_nothing(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="suspend"))
    async def work(order: Order) -> str:
        return "done"

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        await team.report(tokens=100)
        job = await client.submit(work, Order(1))
        await in_state(job, "suspended")
        await answer(client, job, "as much as you like")
        await until_waits(job, "budget#2")
        assert (await team.status()).hard_limits == {"tokens": 100}
        await answer(client, job, {"tokens": 5})
        assert await job.result(timeout=10) == "done"


async def test_a_job_waits_at_a_gate_for_its_quota(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, quota=ff.Quota("calls", on_exceed="suspend"))
    async def work(order: Order) -> int:
        return order.number

    async with app.client() as client, working(app):
        await client.quota("calls", rate=(1, 1))
        first, second = [await client.submit(work, Order(n)) for n in range(2)]
        async with asyncio.timeout(10):
            while "suspended" not in {(await job.status()).state for job in (first, second)}:
                await asyncio.sleep(0.01)
        waits = first if (await first.status()).state == "suspended" else second
        await asyncio.sleep(1.1)
        await answer(client, waits, None, "quota")
        assert {await first.result(timeout=10), await second.result(timeout=10)} == {0, 1}


async def answer(client: ff.Client, job: Job[Any], value: Any, gate: str = "budget") -> None:
    from ffsdk.signals import approve

    async with asyncio.timeout(10):
        while not [one for one in (await job.status()).waitpoints if one.gate.startswith(gate)]:
            await asyncio.sleep(0.01)
    await approve(client.backend, job.execution_id, None, value, name=None, key=None, who="dana")


async def until_waits(job: Job[Any], gate: str) -> None:
    async with asyncio.timeout(10):
        while gate not in [one.gate for one in (await job.status()).waitpoints if one.state == "active"]:
            await asyncio.sleep(0.01)


async def unclaimed(client: ff.Client, job: Job[Any]) -> list[str]:
    """What the feed says of recorded steps that the handler has not asked for."""
    page = await client.backend.call(c.ReadEventsArgs(partition=partition_of(job.execution_id)))
    return [str(entry) for entry in page.entries if "steps_unclaimed" in str(entry)]


async def test_a_budget_that_is_not_there_holds_the_job_until_it_is(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def work(order: Order) -> int:
        return order.number

    async with app.client() as client:
        team = await client.budget("team", hard={"tokens": 100})
        job = await client.submit(work, Order(7), budget="team")
        await team.delete()
        async with working(app):
            await in_state(job, *HELD)
            await client.budget("team", hard={"tokens": 100})
            assert await job.result(timeout=20) == 7


# ---- quotas ----------------------------------------------------------------------------------------------


async def test_a_quota_bounds_what_runs_at_once_over_all_workers_and_per_key(app: ff.App, lane: str) -> None:
    now: dict[str, int] = {}
    most: dict[str, int] = {}

    @app.task(lane=lane, quota=ff.Quota("api", key="payload.note"), retry=ONCE)
    async def work(order: Order) -> None:
        now[order.note] = now.get(order.note, 0) + 1
        most[order.note] = max(most.get(order.note, 0), now[order.note])
        await asyncio.sleep(0.01)
        now[order.note] -= 1

    async with app.client() as client, working(app), working(app):
        await client.quota("api", concurrency=2)
        jobs = [await client.submit(work, Order(n, f"t{n % 3}")) for n in range(30)]
        for job in jobs:
            await job.result(timeout=30)
        assert (await (await client.quota("api", concurrency=2)).status("t0")).active == 0
    assert most == {"t0": 2, "t1": 2, "t2": 2}


async def test_a_rate_is_kept_to_the_request(app: ff.App, lane: str) -> None:
    started: list[float] = []

    @app.task(lane=lane, quota="slow")
    async def work(order: Order) -> None:
        started.append(asyncio.get_running_loop().time())

    async with app.client() as client, working(app):
        await client.quota("slow", rate=(3, 1))
        jobs = [await client.submit(work, Order(n)) for n in range(7)]
        for job in jobs:
            await job.result(timeout=20)
    # Any four in a row take a window; the worker's clock sees each start a round trip after the store did.
    assert all(b - a > 0.9 for a, b in zip(started, started[3:], strict=False))


async def test_what_one_resource_refuses_holds_nothing_of_the_others(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 10}), quota="api")
    async def work(order: Order) -> None: ...

    async with app.client() as client:
        quota = await client.quota("api", concurrency=4)
        team = await client.budget("team", hard={"tokens": 100})
        await team.report(tokens=95)
        jobs = [await client.submit(work, Order(n)) for n in range(4)]
        async with working(app):
            for job in jobs:
                await in_state(job, *HELD)
            async with asyncio.timeout(10):
                while (await quota.status()).active:
                    await asyncio.sleep(0.01)
            await team.raise_(tokens=100)
            for job in jobs:
                await job.result(timeout=20)
            await nothing_reserved(team)
            async with asyncio.timeout(10):
                while (await quota.status()).active:
                    await asyncio.sleep(0.01)


# ---- workers that stop, jobs that are stopped -----------------------------------------------------------------


async def test_jobs_taken_in_advance_hold_nothing(app: ff.App, lane: str) -> None:
    gate = asyncio.Event()

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 10}))
    async def work(order: Order) -> None:
        await gate.wait()

    async with app.client() as client, working(app, concurrency=2, prefetch=6):
        team = await client.budget("team", hard={"tokens": 1000})
        jobs = [await client.submit(work, Order(n)) for n in range(8)]
        async with asyncio.timeout(10):
            while (await team.status()).reserved != {"tokens": 20}:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert (await team.status()).reservations == 2
        gate.set()
        for job in jobs:
            await job.result(timeout=20)


async def test_a_worker_that_stops_leaves_no_reservation(app: ff.App, lane: str) -> None:
    started = asyncio.Event()

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 10}))
    async def work(order: Order, ctx: ff.Context) -> None:
        started.set()
        await asyncio.Event().wait()

    async with app.client() as client:
        team = await client.budget("team", hard={"tokens": 1000})
        for n in range(6):
            await client.submit(work, Order(n))
        async with working(app, concurrency=3, prefetch=3, grace=0.05):
            await started.wait()
        assert (await team.status()).reserved in ({}, {"tokens": 0})


async def test_a_cancelled_job_that_waits_for_its_budget_ends_at_once(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 10}))
    async def work(order: Order) -> None: ...

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        await team.report(tokens=95)
        job = await client.submit(work, Order(1))
        await in_state(job, *HELD)
        await job.cancel("not needed")
        assert isinstance(await job.outcome(timeout=5), ff.Cancelled)


async def test_virtual_time_passes_through_resets_and_halts(lane: str) -> None:
    from ffsdk.testing import Engine

    app = ff.App(namespace=lane)

    @app.task(lane=lane, budget=ff.Budget("hourly", estimate={"tokens": 60}))
    async def work(order: Order, ctx: ff.Context) -> int:
        await ctx.spend(tokens=60)
        return order.number

    async with Engine(app) as eng:
        await eng.client.budget("hourly", hard={"tokens": 100}, reset=3600)
        jobs = [await eng.client.submit(work, Order(n)) for n in range(3)]
        began = eng.now
        for job in jobs:
            await eng.run_until(job)
        assert [(await job.status()).state for job in jobs] == ["completed"] * 3
        assert (eng.now - began).total_seconds() == pytest.approx(7200, abs=5)


async def test_a_crash_at_any_call_leaves_nothing_reserved_and_charges_each_step_once(lane: str) -> None:
    from ffsdk.testing import Engine

    app = ff.App(namespace=lane)

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 60}), quota="one")
    async def work(order: Order, ctx: ff.Context) -> int:
        async def ask() -> int:
            await ctx.spend(tokens=40)
            return order.number

        return await ctx.step("ask", ask)

    async def both(eng: Engine) -> None:
        team = await eng.client.budget("team", hard={"tokens": 100}, reset=600)
        quota = await eng.client.quota("one", concurrency=1)
        jobs = [await eng.client.submit(work, Order(n)) for n in range(2)]
        for job in jobs:
            await eng.run_until(job)
        await eng.advance(seconds=590)
        status = await team.status()
        assert (status.reservations, (await quota.status()).active) == (0, 0)
        # A step that was run and not recorded is run again, and what it spent is spent; nothing is counted twice.
        assert status.usage["tokens"] % 40 == 0
        assert [(await job.status()).state for job in jobs] == ["completed"] * 2

    report = await Engine(app).crash_everywhere(both)
    assert {"ff_reserve_many", "ff_admit_many", "ff_spend_many", "ff_deliver"} <= set(report.functions)
