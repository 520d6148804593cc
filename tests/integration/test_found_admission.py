"""Faults of admission that were found in use, each as a user meets it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore.contracts.unique import ReadUniqueArgs, TakeUniqueArgs
from ffcore.errors import StoreFull
from ffsdk.admit import unique_id
from tests.integration.flow_run import STORES, Run, name_of
from tests.integration.test_spend import spent
from tests.integration.test_unique import LATER, free, holder, soon
from tests.integration.worker_app import Order, working


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Run:
    return Run(None, name_of(request))


# ---- unique keys ---------------------------------------------------------------------------------------------


async def test_of_many_debounced_submits_at_once_one_runs(run: Run) -> None:
    """Whoever takes the key over finds no job to cancel where that is only being created."""
    ran: list[int] = []

    @run.task
    async def index(n: int) -> None:
        ran.append(n)

    async with run.engine() as eng:
        unique = ff.Unique("docs", window=0.4, action="debounce")
        jobs = await asyncio.gather(*(eng.client.submit(index, n, unique=unique) for n in range(20)))
        ended = [type(await job.outcome(20)) for job in jobs]
        assert ended.count(ff.Completed) == 1 and ended.count(ff.Cancelled) == 19 and len(ran) == 1


async def test_the_job_that_is_the_answer_is_there(run: Run) -> None:
    """Also if it is only being created by somebody else."""

    @run.task
    async def report() -> str:
        return "done"

    async with run.engine() as eng:
        unique = ff.Unique("r", action="existing", scope="active")
        jobs = await asyncio.gather(*(eng.client.submit(report, unique=unique) for _ in range(10)))
        assert [await job.result(20) for job in jobs] == ["done"] * 10


async def test_a_key_of_a_job_that_nobody_creates_is_no_answer(memory: Run) -> None:
    @memory.task
    async def report() -> None: ...

    async with memory.engine() as eng:
        client = eng.client
        job = await client.submit(report, delay=600)
        gone = type(job.id)(job.id[:-4] + "0000")
        key = unique_id(client.namespace, "r", client.backend.config)
        await client.backend.call(TakeUniqueArgs(unique_id=key, execution_id=gone, scope="active"))
        with pytest.raises(ff.Conflict) as held:
            await client.submit(report, unique=ff.Unique("r", action="existing", scope="active"))
        assert held.value.code == "unique_held"


@pytest.mark.parametrize("scope", ["queued", "active"])
async def test_a_key_is_not_given_back_to_a_job_that_has_let_go_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch, scope: Any
) -> None:
    @run.task
    async def work() -> None: ...

    async with run.engine() as eng:
        client = eng.client
        old = await client.submit(work, delay=LATER, unique=ff.Unique("w", scope=scope))
        fold = client.submitter._fold  # pyright: ignore[reportPrivateUsage]

        async def refuse(*_: object) -> Any:
            await old.cancel()
            await soon(lambda: _let_go(client, old))
            raise StoreFull("full", code="store_full", detail="1000")

        with monkeypatch.context() as broken:
            broken.setattr(fold, "submit", refuse)
            with pytest.raises(ff.StoreFull):
                await client.submit(work, unique=ff.Unique("w", scope=scope, action="replace"))
        await soon(lambda: free(client, "w"))


async def _let_go(client: ff.Client, job: ff.Job[Any]) -> bool:
    """Whether what a job owes to its key has been delivered."""
    from ffcore.contracts.upkeep import ReadOutboxArgs
    from ffcore.ids import partition_of

    return not (await client.backend.call(ReadOutboxArgs(partition=partition_of(job.id), limit=10))).rows


async def test_a_caller_that_is_cancelled_leaves_no_key_without_a_job(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun goes on to its end, as that of any other submit does: the holder is replaced, or it is not."""

    @run.task
    async def work() -> None: ...

    async with run.engine() as eng:
        client = eng.client
        old = await client.submit(work, delay=LATER, unique=ff.Unique("w", scope="active"))
        call, taken = client.backend.call, asyncio.Event()

        async def slow(args: Any) -> Any:
            answer = await call(args)
            if isinstance(args, TakeUniqueArgs) and await holder_is_not(old.id):
                taken.set()
                await asyncio.sleep(0.05)
            return answer

        async def holder_is_not(id: str) -> bool:
            answer = await call(ReadUniqueArgs(unique_id=unique_id(client.namespace, "w", client.backend.config)))
            return getattr(answer, "execution_id", None) != id

        with monkeypatch.context() as late:
            late.setattr(client.backend, "call", slow)
            unique = ff.Unique("w", scope="active", action="replace")
            asking = asyncio.ensure_future(client.submit(work, delay=LATER, unique=unique))
            await taken.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert isinstance(await old.outcome(10), ff.Cancelled)
        held = await holder(client, "w")
        assert held is not None and held != old.id
        assert (await client.job(held).status()).state == "delayed"


# ---- spending ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["spend", "step", "emit"])
async def test_a_dimension_that_no_budget_has_leaves_nothing_recorded(app: ff.App, lane: str, how: str) -> None:
    @app.task(lane=lane, budget=["team", "firm"])
    async def work(order: Order, ctx: ff.Context) -> str:
        async def inner() -> None:
            await ctx.spend(tokens=1, seconds=2)

        with pytest.raises(ff.InvalidArgument) as refused:
            if how == "spend":
                await inner()
            elif how == "step":
                await ctx.step("inner", inner)
            else:
                await ctx.emit("x", spend={"tokens": 1, "seconds": 2})
        await ctx.spend(tokens=5, usd=1)
        return str(refused.value)

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000})
        await client.budget("firm", hard={"usd": 1000})
        said = await (await client.submit(work, Order(1))).result(timeout=10)
        assert "(team, firm) has seconds" in said
        await spent(client, {"tokens": 5})
        await spent(client, {"usd": 1}, "firm")


async def test_a_dimension_that_a_budget_gets_later_can_be_spent(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, budget="team")
    async def work(order: Order, ctx: ff.Context) -> None:
        await ctx.spend(tokens=1)
        if order.number:
            await ctx.spend(usd=1)

    async with app.client() as client, working(app):
        await client.budget("team", hard={"tokens": 1000})
        await (await client.submit(work, Order(0))).result(timeout=10)
        await client.budget("team", hard={"tokens": 1000, "usd": 5})
        await (await client.submit(work, Order(1))).result(timeout=10)
        await spent(client, {"tokens": 2, "usd": 1})
