"""A worker on a real server: what it does with results, failures and jobs it cannot run."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

import ffsdk as ff
from tests.integration.proxy import until
from tests.integration.worker_app import ONCE, SOON, Order, working

# ---- results and facts -----------------------------------------------------------------------------------


async def test_a_job_is_run_and_its_result_comes_back(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def double(order: Order) -> int:
        return order.number * 2

    async with app.client() as client, working(app):
        assert await (await client.submit(double, Order(21))).result(timeout=10) == 42


async def test_a_worker_takes_jobs_that_were_there_before_it(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def double(order: Order) -> int:
        return order.number * 2

    async with app.client() as client:
        jobs = await client.submit_many(double, [Order(n) for n in range(500)])
        async with working(app, concurrency=8):
            assert [await job.result(timeout=20) for job in jobs] == [n * 2 for n in range(500)]


async def test_a_handler_learns_the_facts_of_its_job(app: ff.App, lane: str) -> None:
    seen: list[ff.Context] = []

    @app.lifespan
    async def resources() -> AsyncIterator[dict[str, str]]:
        yield {"db": "open"}

    @app.task(lane=lane, timeout=60)
    async def look(order: Order, ctx: ff.Context) -> None:
        await ctx.progress(40, "on its way")
        seen.append(ctx)

    before = datetime.now(UTC)
    async with app.client() as client, working(app):
        job = await client.submit(look, Order(1), tags={"shop.tenant": "t1"})
        await job.result(timeout=10)
        status = await job.status()
    (ctx,) = seen
    assert (ctx.execution_id, ctx.attempt, ctx.tags, ctx.state, ctx.cancelled) == (
        job.id,
        0,
        {"shop.tenant": "t1"},
        {"db": "open"},
        False,
    )
    assert ctx.task is look
    assert ctx.fence.lease_epoch > 0
    assert ctx.deadline is not None
    assert 0 < (ctx.deadline - before).total_seconds() < 61
    assert status.progress is not None


async def test_a_def_handler_runs_in_a_thread_and_reports_progress_by_a_plain_call(app: ff.App, lane: str) -> None:
    threads: list[int] = []

    @app.task(lane=lane)
    def work(order: Order, ctx: ff.Context) -> str:
        ctx.progress(10)
        threads.append(threading.get_ident())
        return f"order {order.number}"

    async with app.client() as client, working(app):
        assert await (await client.submit(work, Order(7))).result(timeout=10) == "order 7"
    assert threads[0] != threading.get_ident()


async def test_what_a_handler_leaves_in_context_variables_does_not_reach_the_next(app: ff.App, lane: str) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    found: list[str] = []

    @app.task(lane=lane)
    async def leak(order: Order) -> None:
        found.append(tenant.get())
        tenant.set(f"t{order.number}")
        if order.number % 2:
            await asyncio.sleep(0)

    async with app.client() as client:
        jobs = await client.submit_many(leak, [Order(n) for n in range(40)])
        async with working(app, concurrency=4):
            for job in jobs:
                await job.result(timeout=10)
    assert found == ["nobody"] * 40


async def test_handlers_that_never_wait_leave_the_loop_to_others_now_and_then(app: ff.App, lane: str) -> None:
    turns, turns_at = 0, list[int]()

    @app.task(lane=lane)
    async def busy(order: Order) -> None:
        sum(range(200_000))  # longer than one slice on any machine
        turns_at.append(turns)

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with app.client() as client:
        jobs = await client.submit_many(busy, [Order(n) for n in range(64)])
        counting = asyncio.create_task(count())
        async with working(app, concurrency=32, prefetch=32):
            for job in jobs:
                await job.result(timeout=20)
        counting.cancel()
    assert len(set(turns_at)) > 32


async def test_concurrency_bounds_the_handlers_that_run_at_a_time(app: ff.App, lane: str) -> None:
    running, most, gate = 0, 0, asyncio.Event()

    @app.task(lane=lane)
    async def wait(order: Order) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1

    async with app.client() as client:
        jobs = await client.submit_many(wait, [Order(n) for n in range(12)])
        async with working(app, concurrency=3, prefetch=5):
            await until(lambda: running == 3)
            gate.set()
            for job in jobs:
                await job.result(timeout=10)
    assert most == 3


async def test_two_workers_share_the_work_and_no_job_runs_twice(app: ff.App, lane: str) -> None:
    ran: list[tuple[int, int]] = []

    @app.task(lane=lane)
    async def note(order: Order, ctx: ff.Context) -> None:
        await asyncio.sleep(0.001)
        ran.append((order.number, ctx.fence.lease_epoch))

    async with app.client() as client:
        jobs = await client.submit_many(note, [Order(n) for n in range(300)])
        async with working(app, concurrency=4) as one, working(app, concurrency=4) as two:
            for job in jobs:
                await job.result(timeout=20)
            assert one.instance != two.instance
    assert sorted(number for number, _ in ran) == list(range(300))


async def test_a_worker_that_is_saturated_by_one_partition_visits_the_others(app: ff.App, lane: str) -> None:
    """A chained claim stays where it is; without a rule a full partition would hide the rest for ever."""
    order_of_parts: list[str] = []

    @app.task(lane=lane)
    async def note(order: Order, ctx: ff.Context) -> None:
        order_of_parts.append(ctx.execution_id[:6])

    async with app.client() as client:
        jobs = await client.submit_many(note, [Order(n) for n in range(600)])
        async with working(app, concurrency=1, prefetch=0):
            await until(lambda: len(order_of_parts) >= 300, within=20)
            seen_half_way = set(order_of_parts[:300])
            for job in jobs:
                await job.result(timeout=20)
    assert len(seen_half_way) == 4


# ---- failures --------------------------------------------------------------------------------------------


async def test_a_failed_attempt_is_retried_and_the_next_one_may_succeed(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=SOON)
    async def flaky(order: Order, ctx: ff.Context) -> int:
        if ctx.attempt < 2:
            raise RuntimeError("not yet")
        return ctx.attempt

    async with app.client() as client, working(app):
        assert await (await client.submit(flaky, Order(1))).result(timeout=10) == 2


async def test_a_job_that_has_used_up_its_attempts_fails_with_its_traceback(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=SOON)
    async def broken(order: Order) -> None:
        raise LookupError("no such thing")

    async with app.client() as client, working(app):
        with pytest.raises(ff.JobFailed) as failed:
            await (await client.submit(broken, Order(1))).result(timeout=10)
    assert failed.value.reason == "LookupError: no such thing"
    assert (failed.value.category, failed.value.attempts) == ("error", 3)
    assert "in broken" in failed.value.traceback
    assert "runner.py" not in failed.value.traceback


@pytest.mark.parametrize("category", ["fatal", "upstream"])
async def test_fatal_ends_the_job_at_once_whatever_its_category(app: ff.App, lane: str, category: str) -> None:
    attempts: list[int] = []

    @app.task(lane=lane, retry=SOON)
    async def hopeless(order: Order, ctx: ff.Context) -> None:
        attempts.append(ctx.attempt)
        raise ff.Fatal("never", category=category)

    async with app.client() as client, working(app):
        outcome = await (await client.submit(hopeless, Order(1))).outcome(timeout=10)
    assert isinstance(outcome, ff.Failed)
    assert (outcome.reason, outcome.category, attempts) == ("never", category, [0])


async def test_retry_after_decides_when_the_next_attempt_runs(app: ff.App, lane: str) -> None:
    attempts: list[int] = []

    @app.task(lane=lane, retry=ff.Retry(max_attempts=2, backoff=3600, max_backoff=3600))
    async def busy(order: Order, ctx: ff.Context) -> None:
        attempts.append(ctx.attempt)
        if ctx.attempt == 0:
            raise ff.RetryAfter(0.001)

    async with app.client() as client, working(app):
        await (await client.submit(busy, Order(1))).result(timeout=10)
    assert attempts == [0, 1]


async def test_a_category_that_is_not_in_on_is_not_retried(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=ff.Retry(max_attempts=3, backoff=0.001, on=("upstream",)))
    async def picky(order: Order) -> None:
        raise ff.Failure("no", category="downstream")

    async with app.client() as client, working(app):
        outcome = await (await client.submit(picky, Order(1))).outcome(timeout=10)
    assert isinstance(outcome, ff.Failed)
    assert (outcome.category, outcome.attempts) == ("downstream", 1)


async def test_sys_exit_in_a_handler_fails_the_job_and_not_the_worker(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=ONCE)
    async def leave(order: Order) -> None:
        raise SystemExit(3)

    async with app.client() as client, working(app):
        for _ in range(2):
            outcome = await (await client.submit(leave, Order(1))).outcome(timeout=10)
            assert isinstance(outcome, ff.Failed)
            assert outcome.reason == "SystemExit: 3"


async def test_a_handler_that_raises_cancelled_by_itself_has_failed(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=ONCE)
    async def give_up(order: Order) -> None:
        raise asyncio.CancelledError

    async with app.client() as client, working(app):
        outcome = await (await client.submit(give_up, Order(1))).outcome(timeout=10)
    assert isinstance(outcome, ff.Failed)
    assert outcome.category == "error"


# ---- what cannot run -------------------------------------------------------------------------------------


async def test_a_payload_that_does_not_fit_fails_at_once_and_is_not_retried(app: ff.App, lane: str, url: str) -> None:
    other = ff.App(url, namespace=app.namespace)

    @other.task(lane=lane, name="shape")
    async def sends(payload: dict[str, str]) -> None: ...

    @app.task(lane=lane, name="shape", retry=SOON)
    async def takes(order: Order) -> None: ...

    async with other.client() as client, working(app):
        outcome = await (await client.submit(sends, {"number": "not one"})).outcome(timeout=10)
    assert isinstance(outcome, ff.Failed)
    assert (outcome.category, outcome.attempts) == ("invalid_payload", 1)


async def test_a_result_that_is_not_json_or_too_large_fails_and_is_not_retried(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, name=f"odd.{lane}"[:100], retry=SOON)
    async def odd(order: Order) -> object:
        return object() if order.number else "x" * (2 << 20)

    async with app.client() as client, working(app):
        large = await (await client.submit(odd, Order(0))).outcome(timeout=10)
        strange = await (await client.submit(odd, Order(1))).outcome(timeout=10)
    assert isinstance(large, ff.Failed)
    assert (large.category, large.attempts) == ("result_too_large", 1)
    assert isinstance(strange, ff.Failed)
    assert (strange.category, strange.attempts) == ("invalid_result", 1)


async def test_an_unknown_task_waits_for_a_worker_that_knows_it_and_counts_nothing(
    app: ff.App, lane: str, url: str
) -> None:
    newer = ff.App(url, namespace=app.namespace)

    @app.task(lane=lane, name="old")
    async def old(order: Order) -> None: ...

    @newer.task(lane=lane, name="new")
    async def new(order: Order, ctx: ff.Context) -> int:
        return ctx.attempt

    async with newer.client() as client:
        job = await client.submit(new, Order(1))
        async with working(app):
            while (await job.status()).blocking_reason != "waiting_for_capable_worker":
                await asyncio.sleep(0.005)
        async with working(newer):
            assert await job.result(timeout=10) == 0


async def test_a_job_that_another_version_has_begun_is_unknown_too(app: ff.App, lane: str, url: str) -> None:
    newer, began = ff.App(url, namespace=app.namespace), asyncio.Event()

    @app.task(lane=lane, name="versioned")
    async def one(order: Order) -> str:
        return "one"

    @newer.task(lane=lane, name="versioned", version=2, retry=ff.Retry(max_attempts=2, backoff=0.2, jitter=False))
    async def two(order: Order, ctx: ff.Context) -> str:
        if ctx.attempt == 0:
            began.set()
            raise ConnectionError
        return "two"

    async with newer.client() as client:
        job = await client.submit(two, Order(1))
        async with working(newer):
            await began.wait()
        async with working(app):
            while (await job.status()).blocking_reason != "waiting_for_capable_worker":
                await asyncio.sleep(0.005)
        async with working(newer):
            assert await job.result(timeout=10) == "two"


async def test_a_payload_that_only_the_newer_version_reads_is_left_to_that(app: ff.App, lane: str, url: str) -> None:
    newer = ff.App(url, namespace=app.namespace)

    @app.task(lane=lane, name="versioned")
    async def one(order: Order) -> str:
        return "one"

    @newer.task(lane=lane, name="versioned", version=2)
    async def two(numbers: list[int]) -> str:
        return "two"

    async with newer.client() as client:
        job = await client.submit(two, [1])
        async with working(app):
            while (await job.status()).blocking_reason != "waiting_for_capable_worker":
                await asyncio.sleep(0.005)
        async with working(newer):
            assert await job.result(timeout=10) == "two"


async def test_jobs_that_require_something_go_to_a_worker_that_has_it(app: ff.App, lane: str) -> None:
    ran_by: list[str] = []

    @app.task(lane=lane, requires={"gpu", "torch>=2.3"})
    async def train(order: Order) -> None:
        ran_by.append("gpu")

    async with app.client() as client, working(app, capabilities={"torch==2.4"}):
        async with working(app, capabilities={"gpu", "torch==2.4"}) as able:
            await (await client.submit(train, Order(1))).result(timeout=10)
            assert able.capabilities.serves({"gpu", "torch>=2.3"})
        job = await client.submit(train, Order(2))
        # The worker without a gpu has looked, and has found other work done, before we say that it left this alone.
        assert (await job.status()).state == "waiting"
    assert ran_by == ["gpu"]
