"""Sleeping and being suspended: no slot and no lease meanwhile, the deadline kept, nothing told by what is unwound."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import ffsdk as ff
from ffsdk import handlers
from ffsdk.testing import Engine
from tests.integration.proxy import until
from tests.integration.worker_app import ONCE, SOON, working

DAY = 86_400


async def note(ran: Counter[str], what: str) -> str:
    ran[what] += 1
    return what


# ---- how long --------------------------------------------------------------------------------------------


async def test_a_sleeping_job_is_woken_when_its_time_has_come() -> None:
    app, ran = ff.App(), Counter[str]()

    @app.task
    async def work(_: None, ctx: ff.Context) -> str:
        await ctx.step("before", lambda: note(ran, "before"))
        ran["runs"] += 1
        await ctx.sleep(timedelta(days=30))
        return "awake"

    async with Engine(app, auto=False) as eng:
        began = eng.now
        job = await eng.client.submit(work, None)
        await eng.advance(days=29)
        assert (await job.status()).state == "suspended"
        assert (await job.status()).lease is None, "nobody holds it"
        await eng.advance(days=1, seconds=1)
        assert await job.result() == "awake"
        assert eng.now - began < timedelta(days=30, seconds=2)
    assert ran == {"before": 1, "runs": 2}


async def test_a_short_sleep_stays_in_the_process() -> None:
    app, ran = ff.App(), Counter[str]()

    @app.task
    async def work(_: None, ctx: ff.Context) -> None:
        ran["runs"] += 1
        await ctx.sleep(2)

    async with Engine(app) as eng:
        began = eng.now
        await (await eng.client.submit(work, None)).result()
        assert timedelta(seconds=2) <= eng.now - began < timedelta(seconds=5)
        assert "ff_wait" not in eng.engine_calls
    assert ran["runs"] == 1


@pytest.mark.parametrize("seconds", [3, 600])
async def test_a_sleep_counts_from_its_first_begin_over_crashes(seconds: int) -> None:
    """Wherever the worker dies: awake when it is time, and not a lease later than that."""
    app = ff.App()

    @app.task
    async def work(_: None, ctx: ff.Context) -> str:
        await ctx.sleep(seconds)
        return "awake"

    async def once(eng: Engine) -> None:
        began = eng.now
        job = await eng.client.submit(work, None)
        assert await job.result() == "awake"
        took = (eng.now - began).total_seconds()
        assert took >= seconds
        # What a crash costs is the lease that has to end (30 s), and that before the sleep's begin or after its end.
        assert took < seconds + 75, took

    await Engine(app).crash_everywhere(once)


async def test_sleeps_beside_each_other_each_end_in_their_own_time() -> None:
    app, woke = ff.App(), dict[int, datetime]()

    @app.task
    async def work(_: None, ctx: ff.Context) -> None:
        async def nap(hours: int) -> None:
            await ctx.sleep(hours * 3600)
            woke.setdefault(hours, eng.now)

        await asyncio.gather(nap(3), nap(1), nap(2))

    async with Engine(app) as eng:
        began = eng.now
        await (await eng.client.submit(work, None)).result(timeout=DAY)
    assert {hours: round((at - began) / timedelta(hours=1), 2) for hours, at in woke.items()} == {
        1: 1.0,
        2: 2.0,
        3: 3.0,
    }


async def test_an_operator_ends_a_sleep() -> None:
    app = ff.App()

    @app.task
    async def work(_: None, ctx: ff.Context) -> str:
        await ctx.sleep(30 * DAY)
        return "awake"

    async with Engine(app, auto=False) as eng:
        began = eng.now
        job = await eng.client.submit(work, None)
        await eng.advance(seconds=1)
        await job.resume()
        await eng.advance(seconds=1)
        assert await job.result() == "awake"
        assert eng.now - began < timedelta(days=1)


async def test_a_sleep_may_be_as_long_as_ten_years_and_no_less_than_nothing() -> None:
    app = ff.App()

    @app.task(retry=ONCE)
    async def work(seconds: float, ctx: ff.Context) -> None:
        await ctx.sleep(seconds)

    async with Engine(app) as eng:
        outcome = await (await eng.client.submit(work, -1)).outcome()
        assert isinstance(outcome, ff.Failed) and "sleep is -1" in outcome.reason


# ---- how a handler is let go -----------------------------------------------------------------------------


async def test_the_slot_of_a_suspended_job_is_free_for_the_next_one(app: ff.App, lane: str) -> None:
    """One slot, many jobs that sleep: all of them get to their sleep, and a plain one runs beside."""

    @app.task(lane=lane)
    async def sleeper(_: int, ctx: ff.Context) -> None:
        await ctx.sleep(DAY)

    @app.task(lane=lane)
    def sleeper_in_thread(_: int, ctx: ff.Context) -> None:
        ctx.sync.sleep(DAY)

    @app.task(lane=lane)
    async def plain(number: int) -> int:
        return number

    async with app.client() as client, working(app, concurrency=1):
        jobs = await client.submit_many(sleeper, list(range(20))) + await client.submit_many(
            sleeper_in_thread, list(range(5))
        )
        assert await (await client.submit(plain, 7)).result(timeout=10) == 7
        async with asyncio.timeout(10):
            while {(await job.status()).state for job in jobs} != {"suspended"}:
                await asyncio.sleep(0.01)
        assert {(await job.status()).attempts for job in jobs} == {1}
        for job in jobs:
            await job.cancel("test")


async def swallow(ctx: ff.Context) -> str:
    try:
        await ctx.sleep(DAY)
    except BaseException:  # what nobody should write, and somebody will
        return "swallowed"
    return "slept"


async def in_gather(ctx: ff.Context) -> str:
    await asyncio.gather(ctx.sleep(DAY), ctx.sleep(DAY))
    return "slept"


async def in_gather_that_keeps_errors(ctx: ff.Context) -> str:
    kept = await asyncio.gather(ctx.sleep(DAY), return_exceptions=True)
    return "swallowed" if kept[0] is not None else "slept"


async def in_group(ctx: ff.Context) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(ctx.sleep(DAY))
        group.create_task(asyncio.sleep(3600))
    return "slept"


async def as_failure(ctx: ff.Context) -> str:
    try:
        await ctx.sleep(DAY)
    except BaseException as gone:
        raise RuntimeError("it broke") from gone
    return "slept"


async def calls_on(ctx: ff.Context) -> str:
    for _ in range(3):
        try:
            await ctx.sleep(DAY)
        except ff.Suspended:
            pass
    await ctx.step("more", asyncio.sleep, 0)
    return "slept"


@pytest.mark.parametrize("body", [swallow, in_gather, in_gather_that_keeps_errors, in_group, as_failure, calls_on])
async def test_whatever_the_handler_makes_of_it_the_job_is_suspended_and_goes_on(body: Any) -> None:
    app = ff.App()

    @app.task(retry=ONCE)
    async def work(_: None, ctx: ff.Context) -> str:
        return await body(ctx)  # type: ignore[no-any-return]

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(work, None)
        await eng.advance(hours=1)
        assert (await job.status()).state == "suspended"
        outcome = await eng.run_until(job)
    assert outcome == ff.Completed(value="slept"), "and no result of the run before"


async def test_a_thread_that_keeps_suspended_back_reports_nothing(app: ff.App, lane: str) -> None:
    went_on, ended = threading.Event(), threading.Event()

    @app.task(lane=lane, retry=ONCE)
    def work(_: None, ctx: ff.Context) -> str:
        try:
            ctx.sync.sleep(DAY)
        except BaseException:
            assert ctx.cancelled
            went_on.wait(10)
        ended.set()
        return "swallowed"

    @app.task(lane=lane)
    def plain(number: int) -> int:
        return number

    async with app.client() as client, working(app, concurrency=1):
        job = await client.submit(work, None)
        assert await (await client.submit(plain, 7)).result(timeout=10) == 7, "a thread more for the one that lingers"
        went_on.set()
        await asyncio.to_thread(ended.wait, 10)
        assert await (await client.submit(plain, 8)).result(timeout=10) == 8
        assert (await job.status()).state == "suspended"
        await job.cancel("test")


async def test_what_is_unwound_may_close_what_it_opened_and_not_stay(
    app: ff.App, lane: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handlers, "UNWIND_S", 0.2)
    closed: list[str] = []

    @app.task(lane=lane)
    async def closes(_: None, ctx: ff.Context) -> None:
        try:
            await ctx.sleep(DAY)
        finally:
            await asyncio.sleep(0.01)
            closed.append("closes")

    @app.task(lane=lane)
    async def stays(_: None, ctx: ff.Context) -> None:
        try:
            await ctx.sleep(DAY)
        finally:
            try:
                await asyncio.sleep(3600)
            finally:
                closed.append("stays")

    with caplog.at_level(logging.WARNING, "flowfabric.worker"):
        async with app.client() as client, working(app, concurrency=1) as worker:
            jobs = [await client.submit(closes, None), await client.submit(stays, None)]
            await until(lambda: len(closed) == 2)
            await until(lambda: not worker._held)
            assert worker._runners.running_n == 0 and worker._runners._unwinding_n == 0
            assert [(await job.status()).state for job in jobs] == ["suspended", "suspended"]
            for job in jobs:
                await job.cancel("test")
    assert caplog.text.count("ff.Suspended") == 1


async def test_no_running_step_is_interrupted_by_a_suspension(app: ff.App, lane: str) -> None:
    """Beside a sleep: the steps of the other branch, one after the other, are done before the job is given up."""
    ran = Counter[str]()

    async def slow(what: str) -> str:
        await asyncio.sleep(0.05)
        return await note(ran, what)

    @app.task(lane=lane)
    async def work(_: None, ctx: ff.Context) -> None:
        async def chain() -> None:
            for what in "abc":
                await ctx.step("slow", slow, what)

        await asyncio.gather(ctx.sleep(DAY), chain())

    async with app.client() as client, working(app):
        job = await client.submit(work, None)
        async with asyncio.timeout(10):
            while (await job.status()).state != "suspended":
                await asyncio.sleep(0.01)
        assert ran == {"a": 1, "b": 1, "c": 1}
        await job.cancel("test")


async def test_a_cancel_that_was_asked_for_ends_a_job_that_would_sleep() -> None:
    app, at = ff.App(), asyncio.Event()

    @app.task(retry=SOON)
    async def work(_: None, ctx: ff.Context) -> None:
        at.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ctx.sleep(DAY)

    async with Engine(app) as eng:
        job = await eng.client.submit(work, None)
        await at.wait()
        await job.cancel("no longer wanted")
        outcome = await job.outcome(timeout=3600)
    assert isinstance(outcome, ff.Cancelled)


async def test_a_worker_that_stops_does_not_wait_for_what_sleeps(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def work(_: None, ctx: ff.Context) -> str:
        await ctx.sleep(6)
        return "awake"

    began = datetime.now(UTC)
    async with app.client() as client:
        job = await client.submit(work, None)
        async with working(app):
            async with asyncio.timeout(10):
                while (await job.status()).state != "suspended":
                    await asyncio.sleep(0.01)
        async with working(app):
            assert await job.result(timeout=20) == "awake", "another worker goes on with it"
    assert datetime.now(UTC) - began >= timedelta(seconds=6)
