"""The tutorial, part 4: what an app opens for its handlers, and tests of your own code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

import ffsdk as ff
from ffsdk.testing import Engine


def shop() -> tuple[ff.App, ff.Task[str, str], list[str]]:
    app, log = ff.App(), list[str]()

    @app.lifespan
    async def resources() -> AsyncIterator[dict[str, str]]:
        log.append("opened")
        yield {"db": "a pool"}
        log.append("closed")

    @app.task
    async def query(what: str, ctx: ff.Context) -> str:
        return f"{what} from {ctx.state['db']}"

    return app, query, log


async def test_a_lifespan_opens_what_handlers_share() -> None:
    app, query, log = shop()
    async with Engine(app) as eng:
        assert await (await eng.client.submit(query, "rows")).result() == "rows from a pool"
        assert log == ["opened"]
    assert log == ["opened", "closed"]


async def test_an_engine_gives_the_app_its_own_store_and_takes_it_away_again() -> None:
    app, query, _ = shop()
    app.url = "valkey://production:6379"
    async with Engine(app) as eng:
        await (await eng.client.submit(query, "rows", key="k")).result()
    assert app.url == "valkey://production:6379"
    async with Engine(app) as eng:
        assert (await eng.client.submit(query, "rows", key="k")).created, "a fresh store for every engine"


async def test_time_stands_still_between_two_steps_if_you_want_it_to() -> None:
    app, query, _ = shop()
    async with Engine(app, auto=False) as eng:
        began = eng.now
        job = await eng.client.submit(query, "rows", delay=3_600)
        with pytest.raises(ff.InvalidArgument, match="advance"):
            await eng.advance(seconds=-1)
        assert await eng.advance(timedelta(minutes=30)) == began + timedelta(minutes=30)
        assert (await job.status()).state == "delayed"
        assert await eng.run_until(job) == ff.Completed("rows from a pool")
        assert began + timedelta(hours=1) <= eng.now < began + timedelta(hours=2)


async def test_the_pytest_plugin_brings_the_engine_as_a_fixture(ff_engine: type[Engine]) -> None:
    app, query, _ = shop()
    async with ff_engine(app) as eng:
        assert await (await eng.client.submit(query, "rows")).result() == "rows from a pool"


async def test_a_handler_can_be_tested_without_an_engine() -> None:
    app = ff.App()

    @app.task
    async def double(n: int) -> int:
        return 2 * n

    assert await double.fn(4) == 8
