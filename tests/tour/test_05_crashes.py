"""The tutorial, part 5: a worker dies, wherever you want it to, and what your handlers make of it."""

from __future__ import annotations

import pytest

import ffsdk as ff
from ffsdk.testing import Engine


def bakery() -> tuple[ff.App, ff.Task[str, None], ff.Task[str, None], list[str], dict[str, str]]:
    app, ovens, orders = ff.App(), list[str](), dict[str, str]()

    @app.task
    async def bake(cake: str) -> None:
        ovens.append(cake)

    @app.task
    async def order(cake: str, ctx: ff.Context) -> None:
        orders[ctx.execution_id] = cake

    return app, bake, order, ovens, orders


async def test_a_job_outlives_the_worker_that_ran_it() -> None:
    app, bake, _, ovens, _ = bakery()
    async with Engine(app) as eng:
        eng.crash_after(1, before=True, function="ff_complete_many")  # it has baked, and dies before it says so
        job = await eng.client.submit(bake, "sachertorte")
        assert isinstance(await eng.run_until(job), ff.Completed)
        assert ovens == ["sachertorte", "sachertorte"], "the handler ran again: it may, after a crash"
        assert str(eng.crashed) == "before call 1, ff_complete_many"


async def test_crash_everywhere_finds_the_effect_that_happens_twice() -> None:
    app, bake, order, ovens, orders = bakery()

    async def one_cake(eng: Engine) -> None:
        ovens.clear()
        await (await eng.client.submit(bake, "sachertorte")).result()
        assert len(ovens) == 1

    async def one_order(eng: Engine) -> None:
        orders.clear()
        await (await eng.client.submit(order, "sachertorte")).result()
        assert len(orders) == 1

    with pytest.raises(AssertionError, match="ff_complete_many"):
        await Engine(app).crash_everywhere(one_cake)
    report = await Engine(app).crash_everywhere(one_order)
    assert len(report.points) >= 4 and "crash points tried" in str(report)
