"""`ctx.spend`: from handlers of every kind, within steps, with frames; what is recorded, what follows from too much."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffsdk import Spent
from ffsdk.forwarding import Forwarding
from tests.integration.test_admission import HELD, in_state, nothing_reserved
from tests.integration.worker_app import Order, spend_apart, spend_apart_async, working
from tests.integration.worker_app import app as shared


async def spent(client: ff.Client, amounts: dict[str, Any], name: str = "team") -> None:
    """Wait until a budget's usage is this."""
    budget = await client.budget(name)
    async with asyncio.timeout(10):
        while (await budget.status()).usage != amounts:
            await asyncio.sleep(0.01)


async def test_what_a_handler_spends_is_charged_to_every_budget_that_has_it(app: ff.App, lane: str) -> None:
    said: list[Spent] = []

    @app.task(lane=lane, budget=["team", "firm"])
    async def work(order: Order, ctx: ff.Context) -> None:
        said.append(await ctx.spend(tokens=120, usd=0.002))
        said.append(await ctx.spend(tokens=30))

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000}, soft={"tokens": 140})
        firm = await client.budget("firm", hard={"tokens": 5000, "usd": 3})
        job = await client.submit(work, Order(1))
        await job.result(timeout=10)
        await spent(client, {"tokens": 150})
        await spent(client, {"tokens": 150, "usd": 0.002}, "firm")
        (spender,) = await firm.spenders()
        assert (spender.execution_id, spender.amounts) == (job.execution_id, {"tokens": 150, "usd": 0.002})
    assert [one.soft for one in said] == [[], ["tokens"]]


async def test_a_job_without_budgets_spends_nothing(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def work(order: Order, ctx: ff.Context) -> bool:
        return await ctx.spend(tokens=1) == Spent(usage={}, soft=[])

    async with app.client() as client, working(app):
        assert await (await client.submit(work, Order(1))).result(timeout=10)


async def test_a_dimension_that_no_budget_has_is_refused_by_name(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget="team")
    async def work(order: Order, ctx: ff.Context) -> str:
        with pytest.raises(ff.InvalidArgument) as refused:
            await ctx.spend(tokens=1, seconds=2)
        with pytest.raises(ff.InvalidArgument):
            await ctx.spend(tokens=-1)
        await ctx.spend(tokens=2)
        return str(refused.value)

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000})
        said = await (await client.submit(work, Order(1))).result(timeout=10)
        assert "no budget of this job (team) has seconds" in said
        await spent(client, {"tokens": 2})


async def test_spending_takes_from_what_was_reserved(app: ff.App, lane: str) -> None:
    gate = asyncio.Event()

    @app.task(lane=lane, budget=ff.Budget("team", estimate={"tokens": 100}))
    async def work(order: Order, ctx: ff.Context) -> None:
        await ctx.spend(tokens=30)
        await gate.wait()

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        job = await client.submit(work, Order(1))
        await spent(client, {"tokens": 30})
        assert (await team.status()).reserved == {"tokens": 70}
        gate.set()
        await job.result(timeout=10)
        await nothing_reserved(team)


# ---- handlers that are not in the loop ----------------------------------------------------------------------


async def test_a_handler_in_a_thread_spends_by_a_plain_call(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget="team")
    def work(order: Order, ctx: ff.Context) -> str:
        ctx.spend(tokens=10)
        assert ctx.sync.spend(tokens=20).usage in ({}, {"tokens": 30})
        ctx.sync.emit("x", spend={"tokens": 5})

        def counted() -> None:
            ctx.spend(tokens=7)

        ctx.sync.step("one", counted)
        try:
            ctx.sync.spend(tokens=1000)
        except ff.BudgetExceeded as over:
            return over.dimension
        return ""

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        assert await (await client.submit(work, Order(1))).result(timeout=10) == "tokens"
        await spent(client, {"tokens": 1042})


@pytest.mark.parametrize("task", [spend_apart, spend_apart_async], ids=["def", "async"])
async def test_a_handler_in_a_child_process_spends(url: str, lane: str, task: ff.Task[int, str]) -> None:
    app = shared
    app.url = url
    async with app.client() as client:
        team = await client.budget(lane, hard={"tokens": 100}, soft={"tokens": 20})
        async with working(app, lanes=["processes"], concurrency=1):
            job = await client.submit(task, 30, budget=ff.Budget(lane, on_exceed="fail"))
            assert await job.result(timeout=30) == "soft tokens; none has seconds"
            assert (await team.status()).usage == {"tokens": 30}, "a mistake leaves nothing recorded"
            job = await client.submit(task, 300, budget=ff.Budget(lane, on_exceed="fail"))
            outcome = await job.outcome(timeout=30)
            assert isinstance(outcome, ff.Failed)
            assert (outcome.category, outcome.attempts) == ("budget_exceeded", 1)
            assert (await team.status()).usage == {"tokens": 330}


# ---- too much --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("caught", [True, False])
async def test_what_passes_a_limit_is_recorded_and_raised(app: ff.App, lane: str, caught: bool) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="fail"))
    async def work(order: Order, ctx: ff.Context) -> list[Any]:
        try:
            await ctx.spend(tokens=150)
        except ff.BudgetExceeded as over:
            if not caught:
                raise
            return [over.dimension, over.usage, over.limit, over.code]
        return []

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        outcome = await (await client.submit(work, Order(1))).outcome(timeout=10)
        if caught:
            assert outcome == ff.Completed(["tokens", 150, 100, "budget_exceeded"])
        else:
            assert isinstance(outcome, ff.Failed)
            assert (outcome.category, outcome.attempts) == ("budget_exceeded", 1)
            assert "budget team is used up: 150 of 100 tokens" in outcome.reason
        await spent(client, {"tokens": 150})


async def test_a_budget_that_refuses_does_not_record_what_goes_beyond(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="cancel"))
    async def work(order: Order, ctx: ff.Context) -> None:
        await ctx.spend(tokens=80)
        await ctx.spend(tokens=80)

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100}, on_breach="refuse")
        assert isinstance(await (await client.submit(work, Order(1))).outcome(timeout=10), ff.Cancelled)
        await spent(client, {"tokens": 80})


async def test_a_handler_that_has_spent_too_much_is_held_until_there_is_room(app: ff.App, lane: str) -> None:
    runs: list[int] = []

    @app.task(lane=lane, budget="team")
    async def work(order: Order, ctx: ff.Context) -> int:
        runs.append(ctx.attempt)
        if len(runs) == 1:
            await ctx.spend(tokens=150)
        return len(runs)

    async with app.client() as client, working(app):
        team = await client.budget("team", hard={"tokens": 100})
        job = await client.submit(work, Order(1))
        await in_state(job, *HELD)
        await asyncio.sleep(0.2)
        assert runs == [0]
        await team.raise_(tokens=100)
        assert await job.result(timeout=10) == 2
        assert runs == [0, 0], "the attempt was not used up"


async def test_other_failures_stay_what_they_are(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="cancel"), retry=ff.Retry(max_attempts=1))
    async def work(order: Order, ctx: ff.Context) -> None:
        raise ff.BudgetExceeded("somebody else's budget", code="budget_exceeded")

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        assert isinstance(await (await client.submit(work, Order(1))).outcome(timeout=10), ff.Failed)


# ---- within steps ----------------------------------------------------------------------------------------


async def test_what_a_step_spends_is_recorded_with_it_once(app: ff.App, lane: str) -> None:
    tries = 0

    @app.task(lane=lane, budget="team", retry=ff.Retry(max_attempts=3, backoff=0.01, jitter=False))
    async def work(order: Order, ctx: ff.Context) -> Any:
        nonlocal tries
        tries += 1

        async def ask() -> str:
            assert await ctx.spend(tokens=10) == Spent(usage={}, soft=[])
            await ctx.spend(tokens=5, usd=0.5)
            return "answer"

        answer = await ctx.step("ask", ask)
        if tries < 3:
            raise ValueError("later")
        return answer

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000, "usd": 10})
        assert await (await client.submit(work, Order(1))).result(timeout=10) == "answer"
        await asyncio.sleep(0.2)
        await spent(client, {"tokens": 15, "usd": 0.5})


async def test_what_a_failed_step_spent_is_spent(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget="team")
    async def work(order: Order, ctx: ff.Context) -> str:
        async def lose(how: Exception) -> None:
            await ctx.spend(tokens=10)
            raise how

        ways = (("a", ValueError("x"), False), ("b", ff.Fatal("y"), False), ("c", ValueError("z"), True))
        for name, how, once in ways:
            with pytest.raises(type(how)):
                await ctx.step(name, lose, how, at_most_once=once, digest=name)
        return "done"

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000})
        assert await (await client.submit(work, Order(1))).result(timeout=10) == "done"
        await spent(client, {"tokens": 30})


async def test_a_limit_that_a_step_passes_is_heard_of_at_a_later_call(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="fail"))
    async def work(order: Order, ctx: ff.Context) -> None:
        async def ask() -> None:
            await ctx.spend(tokens=200)

        await ctx.step("ask", ask)
        for n in range(100):
            await asyncio.sleep(0.01)
            await ctx.step("more", asyncio.sleep, 0, n)

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 100})
        outcome = await (await client.submit(work, Order(1))).outcome(timeout=10)
        assert isinstance(outcome, ff.Failed)
        assert outcome.category == "budget_exceeded"
        await spent(client, {"tokens": 200})


async def test_a_step_whose_worker_died_before_it_could_tell_the_budget_is_charged_by_others(
    app: ff.App, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(lane=lane, budget="team")
    async def work(order: Order, ctx: ff.Context) -> None:
        async def ask() -> None:
            await ctx.spend(tokens=200)

        await ctx.step("ask", ask)

    async def lost(self: Any, charges: Any, folds: bool) -> None:
        return None

    monkeypatch.setattr("ffsdk.durable.Durable._charge", lost)
    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000})
        await (await client.submit(work, Order(1))).result(timeout=10)
        await spent(client, {"tokens": 200})


# ---- frames ----------------------------------------------------------------------------------------------


async def test_frames_charge_together_and_their_handler_is_told_to_stop(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget=ff.Budget("team", on_exceed="fail"))
    async def work(order: Order, ctx: ff.Context) -> None:
        await asyncio.gather(*(ctx.emit(n, spend={"tokens": 1}) for n in range(50)))
        for n in range(100):
            await ctx.emit(n, spend={"tokens": 1}, mode="append" if order.number else "best_effort")
            await asyncio.sleep(0.002)

    counting = Counting(await app.backend())
    async with app.client() as client, working(app) as worker:
        worker._host.spending._backend = counting  # pyright: ignore[reportPrivateUsage]
        team = await client.budget("team", hard={"tokens": 100})
        for number in (0, 1):
            outcome = await (await client.submit(work, Order(number))).outcome(timeout=10)
            assert isinstance(outcome, ff.Failed)
            assert outcome.category == "budget_exceeded"
            used = (await team.status()).usage["tokens"]
            assert 101 <= used <= 150
            await team.reset()
    assert counting.calls_n < 130, "fifty at once leave in two calls or so"


class Counting(Forwarding):
    """Counts calls that charge."""

    calls_n = 0

    async def call(self, args: Any) -> Any:
        self.calls_n += isinstance(args, c.SpendManyArgs)
        return await super().call(args)
