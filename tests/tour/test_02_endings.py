"""The tutorial, part 2: how jobs end. Retries, failures for good, cancels, deadlines, running again."""

from __future__ import annotations

import asyncio

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

app = ff.App()
seen: list[int] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    seen.clear()


@app.task(retry=ff.Retry(max_attempts=3, backoff=10, jitter=False))
async def flaky(good_from: int, ctx: ff.Context) -> str:
    seen.append(ctx.attempt)
    if ctx.attempt < good_from:
        raise ConnectionError("the line is down")
    return f"attempt {ctx.attempt}"


@app.task
async def refuse(reason: str) -> None:
    seen.append(1)
    raise ff.Fatal(reason)


@app.task(retry=ff.Retry(on=("upstream",)))
async def picky(category: str, ctx: ff.Context) -> int:
    if ctx.attempt == 0:
        raise ff.Failure("no luck", category=category)
    return ctx.attempt


@app.task
async def later(seconds: int, ctx: ff.Context) -> int:
    if ctx.attempt == 0:
        raise ff.RetryAfter(seconds, "asked to wait")
    return ctx.attempt


@app.task
async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@app.task(timeout=60, retry=ff.Retry(max_attempts=1))
async def impatient(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def test_a_failed_attempt_is_tried_again() -> None:
    """The pauses double: 10 s, then 20 s. Nobody waits for them here: time skips ahead."""
    async with Engine(app) as eng:
        began = eng.now
        job = await eng.client.submit(flaky, 2)
        assert await job.result() == "attempt 2"
        assert seen == [0, 1, 2]
        assert 30 <= (eng.now - began).total_seconds() < 35


async def test_when_no_attempt_is_left_the_job_has_failed() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(flaky, 99)
        match await job.outcome():
            case ff.Failed(reason=reason, category=category, attempts=attempts, traceback=traceback):
                assert "the line is down" in reason and (category, attempts) == ("error", 3)
                assert "ConnectionError" in traceback
            case other:
                pytest.fail(f"ended as {other}")


async def test_a_result_that_never_came_is_an_exception() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(flaky, 99)
        with pytest.raises(ff.JobFailed) as failed:
            await job.result()
        assert failed.value.execution_id == job.id and failed.value.attempts == 3


async def test_fatal_means_no_retry() -> None:
    async with Engine(app) as eng:
        outcome = await (await eng.client.submit(refuse, "card stolen")).outcome()
        assert isinstance(outcome, ff.Failed) and (outcome.reason, outcome.category) == ("card stolen", "fatal")
        assert len(seen) == 1


async def test_a_task_can_name_the_failures_that_are_worth_a_retry() -> None:
    async with Engine(app) as eng:
        assert await (await eng.client.submit(picky, "upstream")).result() == 1
        assert isinstance(await (await eng.client.submit(picky, "customer")).outcome(), ff.Failed)


async def test_a_handler_can_say_when_to_try_again() -> None:
    async with Engine(app) as eng:
        began = eng.now
        assert await (await eng.client.submit(later, 3_600)).result() == 1
        assert 3_600 <= (eng.now - began).total_seconds() < 3_605


async def test_an_attempt_may_have_a_timeout() -> None:
    async with Engine(app) as eng:
        outcome = await (await eng.client.submit(impatient, 3_600)).outcome()
        assert isinstance(outcome, ff.Failed) and outcome.category == "timeout"


async def test_a_job_may_have_a_deadline() -> None:
    """Over all attempts, waiting included."""
    async with Engine(app) as eng:
        job = await eng.client.submit(sleep, 1, delay=3_600, deadline=600)
        assert isinstance(await job.outcome(), ff.Expired)
        with pytest.raises(ff.JobExpired):
            await job.result()


async def test_a_job_that_waits_is_cancelled_at_once() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(sleep, 1, delay=3_600)
        assert await job.cancel("changed my mind") == "cancelled"
        assert await job.outcome() == ff.Cancelled(reason="changed my mind")
        assert await job.cancel() == "cancelled", "cancelling twice changes nothing"


async def test_a_job_that_runs_is_asked_to_stop() -> None:
    """Its handler is cancelled; until it has ended a completion still wins."""
    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(sleep, 3_600)
        await eng.advance(seconds=1)
        assert await job.cancel("enough") == "requested"
        assert await eng.run_until(job) == ff.Cancelled(reason="enough")


async def test_waiting_has_a_timeout_of_its_own() -> None:
    """The job goes on."""
    async with Engine(app) as eng:
        job = await eng.client.submit(sleep, 100)
        with pytest.raises(TimeoutError):
            await job.result(timeout=5)
        assert await job.result() == "rested"


async def test_a_failed_job_can_be_run_again() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(picky, "customer")
        assert isinstance(await job.outcome(), ff.Failed)
        await job.replay()
        assert await job.result() == 1
        assert (await job.status()).run == 1
