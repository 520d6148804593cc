"""Flows on a store: what went wrong once, or nobody had tried."""

from __future__ import annotations

import asyncio

import pytest

import ffsdk as ff
from examples import research
from ffsdk import waiters
from ffsdk.testing import Engine
from tests.integration.flow_run import Run, name_of


async def test_a_held_clock_runs_until_a_flow_has_ended() -> None:
    app = ff.App()

    @app.task
    async def nap(seconds: int, ctx: ff.Context) -> int:
        await ctx.sleep(seconds)
        return seconds

    @app.task
    async def add_up(naps: list[int]) -> int:
        return sum(naps)

    async with Engine(app, auto=False) as eng:
        began = eng.now
        async with eng.client.flow("naps") as flow:
            total = flow.add(add_up, after=[flow.add(nap, 3_600), flow.add(nap, 60, delay=7_200)])
        await eng.advance(hours=1)
        assert (await total.status()).state == "waiting_children"
        assert (await eng.run_until(flow)).state == "completed"
        assert await total.result() == 3_660 and (eng.now - began).total_seconds() >= 7_260


async def test_clients_that_wait_for_one_flow_are_all_told(
    url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its end, not by the next look: that is put off for longer than the test lasts."""
    monkeypatch.setattr(waiters, "POLL_S", 1_000)
    monkeypatch.setattr(waiters, "POLL_MAX_S", 1_000)
    run, go = Run(url, name_of(request)), asyncio.Event()

    @run.task
    async def work() -> None:
        await go.wait()

    async with run.engine() as eng, run.app.client() as second, run.app.client() as third:
        async with eng.client.flow("awaited") as flow:
            flow.add(work)
        waits = [
            asyncio.create_task(client.flow_by_id(flow.id).outcome(timeout=20))
            for client in (eng.client, second, third, third)
        ]
        gives_up = asyncio.create_task(third.flow_by_id(flow.id).outcome())
        for client in (eng.client, second, third):
            await client.flow_by_id(flow.id).status()  # whoever registers before it on this connection has
        await asyncio.sleep(0.05)
        gives_up.cancel()
        go.set()
        assert {(await wait).state for wait in waits} == {"completed"}


async def test_an_agent_may_come_to_the_same_question_twice() -> None:
    """A key is the whole flow's: a name that two agents could give would be a conflict."""
    async with Engine(research.app) as eng:
        job = await eng.client.submit(research.investigate, research.Question("a and a and b"))
        assert (await job.result()).text == "<a> <a> <b>"
