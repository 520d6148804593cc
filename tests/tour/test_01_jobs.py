"""The tutorial, part 1: declare a task, submit a job, get what it returned.

Everything here runs on `Engine`: a store in memory, a worker in the same loop, time that skips ahead.
"""

from __future__ import annotations

from datetime import timedelta

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

app = ff.App()


class Order(ff.Payload):
    order_id: str
    cents: int


@app.task
async def charge(order: Order) -> str:
    return f"charged {order.cents} for {order.order_id}"


@app.task
def total(orders: list[Order]) -> int:
    return sum(order.cents for order in orders)


@app.task
async def ping() -> str:
    return "pong"


@app.task(name="facts", lane="reports", priority=3)
async def tell_facts(what: str, ctx: ff.Context) -> dict[str, object]:
    return {"what": what, "id": ctx.execution_id, "attempt": ctx.attempt, "tags": dict(ctx.tags)}


async def test_a_job_runs_and_returns_a_value() -> None:
    """A submit answers at once with a handle; the result comes when a worker has run the task."""
    async with Engine(app) as eng:
        job = await eng.client.submit(charge, Order("81", 4_200))
        assert await job.result() == "charged 4200 for 81"


async def test_a_plain_function_is_a_task_too() -> None:
    """`def` handlers run in threads, so they may block."""
    async with Engine(app) as eng:
        job = await eng.client.submit(total, [Order("1", 5), Order("2", 7)])
        assert await job.result() == 12


async def test_a_task_may_take_nothing() -> None:
    async with Engine(app) as eng:
        assert await (await eng.client.submit(ping)).result() == "pong"


async def test_a_handler_that_asks_for_it_gets_the_facts_of_its_job() -> None:
    """The context is the second parameter."""
    async with Engine(app) as eng:
        job = await eng.client.submit(tell_facts, "all", tags={"shop.tenant": "t1"})
        facts = await job.result()
        assert facts == {"what": "all", "id": job.id, "attempt": 0, "tags": {"shop.tenant": "t1"}}


async def test_a_task_can_be_submitted_by_its_name() -> None:
    """Workers publish their tasks, so a program that cannot import one can still submit it."""
    async with Engine(app), ff.Client(app=app) as client:
        job = await client.submit("charge", {"order_id": "81", "cents": 1})
        assert await job.result() == "charged 1 for 81"


async def test_the_same_key_is_the_same_job() -> None:
    """A key makes a submit repeatable: whoever is not sure whether it arrived sends it again."""
    async with Engine(app) as eng:
        first = await eng.client.submit(charge, Order("81", 1), key="order-81")
        again = await eng.client.submit(charge, Order("81", 1), key="order-81")
        assert first == again and first.created and not again.created


async def test_the_same_key_for_something_else_is_refused() -> None:
    async with Engine(app) as eng:
        await eng.client.submit(charge, Order("81", 1), key="order-81")
        with pytest.raises(ff.IdempotencyConflict):
            await eng.client.submit(charge, Order("81", 2), key="order-81")


async def test_many_jobs_are_submitted_in_few_calls() -> None:
    async with Engine(app) as eng:
        jobs = await eng.client.submit_many(charge, [Order(str(n), n) for n in range(50)])
        assert [await job.result() for job in jobs] == [f"charged {n} for {n}" for n in range(50)]


async def test_a_payload_that_does_not_fit_is_refused_at_once() -> None:
    """Before anything is sent, so nothing fails later in a worker."""
    async with Engine(app) as eng:
        with pytest.raises(ff.InvalidArgument, match="order_id"):
            await eng.client.submit("charge", {"cents": 1})


async def test_a_job_can_be_found_again_by_its_id() -> None:
    """An id is text: keep it in your own database."""
    async with Engine(app) as eng:
        execution_id = (await eng.client.submit(charge, Order("81", 1))).id
        assert await eng.client.job(execution_id, charge).result() == "charged 1 for 81"


async def test_a_job_can_wait_for_its_time() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(ping, delay=timedelta(days=30))
        await eng.advance(days=29)
        assert (await job.status()).state == "delayed"
        await eng.advance(days=1)
        assert (await job.status()).state == "completed"


async def test_a_job_can_be_given_an_instant() -> None:
    async with Engine(app) as eng:
        at = eng.now + timedelta(hours=2)
        job = await eng.client.submit(ping, at=at)
        await job.result()
        status = await job.status()
        assert status.started_at is not None and status.started_at >= at
