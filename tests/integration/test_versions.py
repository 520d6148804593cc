"""Versions of a task: work goes on with the code that began it; what no code has begun goes to whichever is there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffsdk.testing import Engine
from tests.integration.worker_app import SOON, working


def release(url: str, lane: str, version: int) -> tuple[ff.App, Any, asyncio.Event]:
    """The same program, at one version: a task that records a step, may fail once, and says who did what; and when it
    has failed."""
    app, failed = ff.App(url, namespace=lane), asyncio.Event()

    async def said() -> str:
        return f"v{version}"

    @app.task(name="work", lane=lane, version=version, retry=ff.Retry(max_attempts=2, backoff=0.3, jitter=False))
    async def work(fails: bool, ctx: ff.Context) -> list[str]:
        first = await ctx.step("first", said)
        if fails and ctx.attempt == 0:
            failed.set()
            raise ConnectionError("a deploy came between")
        return [first, f"v{version}"]

    return app, work, failed


async def test_a_worker_of_another_version_takes_what_no_code_has_begun(url: str, lane: str) -> None:
    old, work, _ = release(url, lane, 1)
    new, _, _ = release(url, lane, 2)
    async with old.client() as client:
        job = await client.submit(work, False)
        async with working(new):
            assert await job.result(timeout=10) == ["v2", "v2"]


async def test_what_one_version_has_begun_waits_for_that_version(url: str, lane: str) -> None:
    old, work, failed = release(url, lane, 1)
    new, newer, _ = release(url, lane, 2)
    async with old.client() as client, new.client() as other:
        job = await client.submit(work, True)
        async with working(old):
            await failed.wait()
        async with working(new):
            assert await (await other.submit(newer, False)).result(timeout=10) == ["v2", "v2"], "the new one works"
            while (await job.status()).blocking_reason != "waiting_for_capable_worker":
                await asyncio.sleep(0.005)
            async with working(old):
                assert await job.result(timeout=20) == ["v1", "v1"]


async def test_code_that_asks_for_nothing_any_more_is_told_of(url: str, lane: str) -> None:
    """The same version, and no context at all any more; of a journal that no claim's answer holds."""
    old, new, failed = ff.App(url, namespace=lane), ff.App(url, namespace=lane), asyncio.Event()

    async def page(n: int) -> str:
        return "x" * 40_000

    @old.task(name="work", lane=lane, retry=ff.Retry(max_attempts=2, backoff=0.3, jitter=False))
    async def was(_: None, ctx: ff.Context) -> str:
        for n in range(3):
            await ctx.step("page", page, n)
        failed.set()
        raise ConnectionError("a deploy came between")

    @new.task(name="work", lane=lane)
    async def work(_: None) -> str:
        return "done"

    async with old.client() as client, client.subscribe("operator", lanes=[lane]) as events:
        job = await client.submit(was, None)
        async with working(old):
            await failed.wait()
        async with working(new):
            assert (await anext(events)).detail == "steps_unclaimed 3 step 'page', step 'page', step 'page'"
            assert await job.result(timeout=10) == "done"


async def test_a_suspended_job_goes_on_with_its_version(url: str, lane: str) -> None:
    def app_of(version: int) -> tuple[ff.App, Any]:
        app = ff.App(url, namespace=lane)

        @app.task(name="work", lane=lane, version=version)
        async def work(_: None, ctx: ff.Context) -> str:
            await ctx.sleep(5.2)
            return f"v{version}"

        return app, work

    old, work = app_of(1)
    new, _ = app_of(2)
    async with old.client() as client:
        job = await client.submit(work, None)
        async with working(old):
            async with asyncio.timeout(10):
                while (await job.status()).state != "suspended":
                    await asyncio.sleep(0.01)
        async with working(new), working(old):
            assert await job.result(timeout=30) == "v1"


async def test_a_fresh_replay_is_free_for_any_version_and_one_that_goes_on_is_not(url: str, lane: str) -> None:
    def app_of(version: int) -> tuple[ff.App, Any]:
        app = ff.App(url, namespace=lane)

        async def said() -> str:
            return f"v{version}"

        @app.task(name="work", lane=lane, version=version, retry=ff.Retry(max_attempts=1))
        async def work(_: None, ctx: ff.Context) -> str:
            first = await ctx.step("first", said)
            if version == 1:
                raise ConnectionError("a bug of the first release")
            return first

        return app, work

    old, work = app_of(1)
    new, _ = app_of(2)
    async with old.client() as client:
        async with working(old):
            job = await client.submit(work, None)
            assert isinstance(await job.outcome(timeout=10), ff.Failed)
        async with working(new):
            await job.replay(mode="fresh")
            assert await job.result(timeout=10) == "v2"


@pytest.mark.parametrize("function", ["ff_pin_version", "ff_record_step", "ff_complete_many"])
async def test_a_job_that_was_pinned_to_another_version_stays_with_that(function: str) -> None:
    """Between the pin and the first step too: the next worker of this version finds it as its own."""
    submitter, app = ff.App(), ff.App()

    @submitter.task(name="work", version=1)
    async def work(_: None) -> str:
        return "v1"

    @app.task(name="work", version=2, retry=SOON)
    async def newer(_: None, ctx: ff.Context) -> str:
        return await ctx.step("first", asyncio.sleep, 0, "v2")

    async with Engine(app) as eng:
        eng.crash_after(1, function=function)
        job = await eng.client.submit(work, None)
        assert await job.result() == "v2"
        assert eng.crashed is not None
        assert eng.engine_calls.count("ff_pin_version") == 1


async def test_a_worker_lost_before_it_pinned_costs_a_rolling_deploy_nothing() -> None:
    """Its claim was answered, its pin never sent: no code has begun the job, so the next worker may, of any version."""
    submitter, app = ff.App(), ff.App()

    @submitter.task(name="work", version=1)
    async def work(_: None) -> str:
        return "v1"

    @app.task(name="work", version=2)
    async def newer(_: None, ctx: ff.Context) -> str:
        return f"v2 in attempt {ctx.attempt}"

    async with Engine(app) as eng:
        eng.crash_after(1, before=True, function="ff_pin_version")
        job = await eng.client.submit(work, None)
        assert await job.result() == "v2 in attempt 1"
        assert eng.crashed is not None


async def test_plain_handlers_of_the_same_version_are_not_pinned() -> None:
    app = ff.App()

    @app.task(version=3)
    async def work(_: None) -> str:
        return "done"

    async with Engine(app) as eng:
        assert await (await eng.client.submit(work, None)).result() == "done"
        assert "ff_pin_version" not in eng.engine_calls
