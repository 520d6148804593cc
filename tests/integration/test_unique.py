"""Unique keys: one job at a time holds a key, for as long as its scope says, and what a submit does meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import ffsdk as ff
from ffcore.errors import StoreFull, Unavailable
from ffsdk.admit import unique_id
from tests.integration.flow_run import STORES, Run, name_of

LATER = 3600
"""Seconds: such a job stays in line for the length of a test."""


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Run:
    return Run(None, name_of(request))


async def soon(found: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """What `found` answers, once that is something: effects between partitions take a moment."""
    async with asyncio.timeout(20):
        while not (answer := await found()):
            await asyncio.sleep(0.02)
    return answer


async def holder(client: ff.Client, key: str) -> str | None:
    """Who holds a key."""
    from ffcore.contracts.unique import ReadUniqueArgs, UniqueHeld

    answer = await client.backend.call(
        ReadUniqueArgs(unique_id=unique_id(client.namespace, key, client.backend.config))
    )
    return answer.execution_id if isinstance(answer, UniqueHeld) else None


async def free(client: ff.Client, key: str) -> bool:
    return await holder(client, key) is None


# ---- what a submit does while another job holds the key -------------------------------------------------------


async def test_a_second_submit_is_refused_and_names_the_first(run: Run) -> None:
    @run.task
    async def report(day: str) -> None: ...

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("payload")
        first = await client.submit(report, "monday", delay=LATER, unique=unique)
        with pytest.raises(ff.Conflict) as held:
            await client.submit(report, "monday", unique=unique)
        assert held.value.code == "unique_held" and held.value.detail == first.id
        other = await client.submit(report, "tuesday", delay=LATER, unique=unique)
        assert other.created and first.created
        assert len([job async for job in client.jobs(state="delayed")]) == 2


async def test_the_job_that_is_there_can_be_the_answer(run: Run) -> None:
    @run.task
    async def report() -> str:
        return "done"

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("r", action="existing")
        first = await client.submit(report, delay=1, unique=unique)
        again = await client.submit(report, unique=unique)
        assert again == first and (first.created, again.created) == (True, False)
        assert await again.result(20) == "done"


async def test_replace_cancels_a_holder_that_has_not_begun(run: Run) -> None:
    @run.task
    async def report(version: int) -> int:
        return version

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("r", action="replace")
        old = await client.submit(report, 1, delay=LATER, unique=unique)
        new = await client.submit(report, 2, unique=unique)
        assert isinstance(await old.outcome(10), ff.Cancelled)
        assert await new.result(10) == 2


async def test_replace_asks_a_running_holder_to_stop(run: Run) -> None:
    began = asyncio.Event()

    @run.task
    async def report(version: int) -> int:
        if version == 1:
            began.set()
            await asyncio.sleep(60)
        return version

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("r", scope="active", action="replace")
        old = await client.submit(report, 1, unique=unique)
        await began.wait()
        new = await client.submit(report, 2, unique=unique)
        assert isinstance(await old.outcome(30), ff.Cancelled)
        assert await new.result(10) == 2


async def test_of_many_debounced_submits_the_last_one_runs(run: Run) -> None:
    ran: list[int] = []

    @run.task
    async def index(n: int) -> None:
        ran.append(n)

    async with run.engine() as eng:
        unique = ff.Unique("docs", window=0.4, action="debounce")
        jobs = [await eng.client.submit(index, n, unique=unique) for n in range(5)]
        assert [type(await job.outcome(20)) for job in jobs] == [ff.Cancelled] * 4 + [ff.Completed]
        assert ran == [4]
        with pytest.raises(ff.InvalidArgument, match="debounce"):
            await eng.client.submit(index, 9, delay=1, unique=unique)


# ---- how long it is held ---------------------------------------------------------------------------------------


async def test_a_queued_key_is_free_once_its_job_has_begun(run: Run) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    @run.task
    async def work() -> None:
        began.set()
        await go.wait()

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("w")
        first = await client.submit(work, unique=unique)
        await began.wait()
        await soon(lambda: free(client, "w"))
        second = await client.submit(work, delay=LATER, unique=unique)
        go.set()
        await first.result(10)
        with pytest.raises(ff.Conflict):
            await client.submit(work, unique=unique)
        await second.cancel()
        await soon(lambda: free(client, "w"))


async def test_an_active_key_is_held_until_its_job_has_ended(run: Run) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    @run.task
    async def work() -> None:
        began.set()
        await go.wait()

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("w", scope="active")
        first = await client.submit(work, unique=unique)
        await began.wait()
        with pytest.raises(ff.Conflict):
            await client.submit(work, unique=unique)
        go.set()
        await first.result(10)
        await soon(lambda: free(client, "w"))
        await (await client.submit(work, unique=unique)).result(10)


async def test_a_window_outlives_the_job(memory: Run) -> None:
    @memory.task
    async def work() -> None: ...

    async with memory.engine(auto=False) as eng:
        unique = ff.Unique("w", scope="window", window=60)
        first = await eng.client.submit(work, unique=unique)
        await eng.advance(seconds=30)
        assert await first.result(1) is None
        with pytest.raises(ff.Conflict):
            await eng.client.submit(work, unique=unique)
        await eng.advance(seconds=31)
        assert (await eng.client.submit(work, unique=unique)).created


async def test_forever_is_for_ever(memory: Run) -> None:
    @memory.task
    async def work() -> None: ...

    async with memory.engine(auto=False) as eng:
        unique = ff.Unique("w", scope="forever", action="existing")
        first = await eng.client.submit(work, unique=unique)
        await eng.advance(days=3)
        assert await eng.client.submit(work, unique=unique) == first


# ---- with keys, many at once, refused --------------------------------------------------------------------------


async def test_a_keyed_submit_again_is_the_job_it_was(run: Run) -> None:
    """The key of the request and the key that is held are two things: a repeat neither loses its own job nor keeps a
    key for a job that has given it up."""

    @run.task
    async def work(n: int) -> int:
        return n

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("w")
        first = await client.submit(work, 1, key="k", delay=0.5, unique=unique)
        again = await client.submit(work, 1, key="k", delay=0.5, unique=unique)
        assert again == first and not again.created and await holder(client, "w") == first.id
        await first.result(10)
        await soon(lambda: free(client, "w"))
        assert (await client.submit(work, 1, key="k", unique=unique)).created is False
        assert await free(client, "w"), "the job has begun, and needs it no more"
        other = await client.submit(work, 2, delay=LATER, unique=unique)
        assert await client.submit(work, 1, key="k", unique=unique) == first, "whoever holds the key now"
        assert await holder(client, "w") == other.id
        existing = ff.Unique("w", action="existing")
        assert await client.submit(work, 1, key="k", unique=existing) == first, "it is asked for by its own key"
        assert await client.submit(work, 1, key="l", unique=existing) == other


async def test_a_job_that_was_there_does_not_replace_anybody(run: Run) -> None:
    @run.task
    async def work(n: int) -> int:
        return n

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("w", action="replace")
        first = await client.submit(work, 1, key="k")
        await first.result(10)
        holding = await client.submit(work, 2, delay=LATER, unique=unique)
        assert await client.submit(work, 1, key="k", unique=unique) == first
        assert await holder(client, "w") == holding.id
        assert (await holding.status()).state.value == "delayed"


async def test_each_of_many_has_a_key_of_its_own(run: Run) -> None:
    @run.task
    async def ship(order: dict[str, int]) -> None: ...

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("payload.id")
        orders = [{"id": n} for n in range(30)]
        jobs = await client.submit_many(ship, orders[:20], delay=LATER, unique=unique)
        assert all(job.created for job in jobs)
        with pytest.raises(ff.SubmitErrors) as some:
            await client.submit_many(ship, orders[10:], delay=LATER, unique=unique)
        errors = [error for error in some.value.exceptions if isinstance(error, ff.NotAccepted)]
        assert [error.index for error in errors] == list(range(10))
        assert {error.code for error in errors} == {"unique_held"}
        assert len({job.id for job in [*jobs, *filter(None, some.value.jobs)]}) == 30
        there = await client.submit_many(ship, orders[:20], unique=ff.Unique("payload.id", action="existing"))
        assert there == jobs and not any(job.created for job in there)
        new = await client.submit_many(
            ship, [*orders[:5], {"id": 99}, {"id": 99}], keys=[*"abcdefg"], delay=LATER,
            unique=ff.Unique("payload.id", action="replace"),
        )  # fmt: skip
        assert [type(await job.outcome(10)) for job in [*jobs[:5], new[5]]] == [ff.Cancelled] * 6
        assert [await holder(client, str(n)) for n in (0, 99)] == [new[0].id, new[6].id]
        with pytest.raises(ff.InvalidArgument, match=r"item 1: the payload has no payload\.id"):
            await client.submit_many(ship, [{"id": 1}, {}], unique=unique)


async def test_what_is_not_created_gives_the_key_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """To whoever had it: a submit that fails has changed nothing."""

    @run.task
    async def work() -> None: ...

    async with run.engine() as eng:
        client = eng.client
        old = await client.submit(work, delay=LATER, unique=ff.Unique("w"))
        fold, failed = client.submitter._fold, list[Exception]()  # pyright: ignore[reportPrivateUsage]

        async def refuse(*_: object) -> Any:
            raise failed[-1]

        with monkeypatch.context() as broken:
            broken.setattr(fold, "submit", refuse)
            broken.setattr(fold, "send", refuse)
            failed.append(StoreFull("full", code="store_full", detail="1000"))
            with pytest.raises(ff.StoreFull):
                await client.submit(work, unique=ff.Unique("w", action="replace"))
            assert await holder(client, "w") == old.id and (await old.status()).state.value == "delayed"
            with pytest.raises(ff.SubmitErrors) as some:
                await client.submit_many(work, [None, None], unique=ff.Unique("v", action="existing"))
            assert some.value.jobs == [None, None] and await free(client, "v"), "the second has none to answer"
            failed.append(Unavailable("lost", may_have_applied=True))
            with pytest.raises(ff.Unavailable):
                await client.submit(work, unique=ff.Unique("v"))
            assert not await free(client, "v"), "nobody knows whether the job is there"


async def test_a_key_of_a_client_that_died_before_its_create_is_free_in_a_minute(memory: Run) -> None:
    from ffsdk.unique import Wanted, take

    @memory.task
    async def work() -> None: ...

    async with memory.engine(auto=False) as eng:
        client, unique = eng.client, ff.Unique("w", scope="active")
        job = await client.submit(work, delay=600, unique=ff.Unique("kept"))
        gone = type(job.id)(job.id[:-4] + "0000")
        await take(client.backend, Wanted(unique, unique_id(client.namespace, "w", client.backend.config), gone))
        await eng.advance(seconds=50)
        assert await holder(client, "w") == gone
        await eng.advance(seconds=80)
        assert await free(client, "w") and await holder(client, "kept") == job.id


# ---- members of flows ------------------------------------------------------------------------------------------


async def test_nodes_of_a_flow_hold_keys_all_of_them_or_none(run: Run) -> None:
    @run.task
    async def part(name: str) -> str:
        return name

    async with run.engine() as eng:
        client, unique = eng.client, ff.Unique("payload")
        held = await client.submit(part, "b", delay=LATER, unique=unique)
        with pytest.raises(ff.Conflict):
            async with client.flow("f") as flow:
                flow.add(part, "a", unique=unique, delay=LATER)
                flow.add(part, "b", unique=unique)
        assert await free(client, "a") and await holder(client, "b") == held.id
        async with client.flow("f", "again") as flow:
            one = flow.add(part, "a", unique=unique, delay=LATER)
            two = flow.add(part, "b", unique=ff.Unique("payload", action="replace"))
        assert await holder(client, "a") == one.id
        assert isinstance(await held.outcome(10), ff.Cancelled) and await two.result(10) == "b"
        async with client.flow("f", "again") as same:
            same.add(part, "a", unique=unique, delay=LATER)
            same.add(part, "b", unique=ff.Unique("payload", action="replace"))
        assert not same.created and await holder(client, "a") == one.id


async def test_a_child_holds_a_key(run: Run) -> None:
    @run.task
    async def child(n: int) -> int:
        return n

    @run.task
    async def parent(ctx_: None, ctx: ff.Context) -> tuple[int, str]:
        one = await ctx.spawn(child, 1, unique=ff.Unique("c"), delay=0.3)
        try:
            await ctx.spawn(child, 2, unique=ff.Unique("c"))
        except ff.Conflict as held:
            return await one.result(), held.code
        return 0, ""

    async with run.engine() as eng:
        job = await eng.client.submit(parent)
        assert list(await job.result(30)) == [1, "unique_held"]
        await soon(lambda: free(eng.client, "c"))
