"""Durable handlers in trouble and in numbers: crashes, lost leases, full journals, threads, processes, new runs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any, Literal

import pytest

import ffsdk as ff
from ffcore.contracts.lease import RevokeLeaseArgs
from ffcore.ids import ExecutionId, WorkerInstanceId
from ffsdk.testing import Engine
from tests.integration import worker_app
from tests.integration.desk import Desk, journal_of, outcome_of, task_of
from tests.integration.worker_app import ONCE, SOON, working


@pytest.fixture
def desk() -> Desk:
    return Desk()


# ---- crashes ---------------------------------------------------------------------------------------------


async def test_wherever_the_worker_dies_no_recorded_step_runs_again(desk: Desk) -> None:
    """The heart of it: a crash before and after each engine call of three steps, one of them in a thread."""
    app, got = ff.App(), set[str]()

    @app.task
    async def work(_: None, ctx: ff.Context) -> list[str]:
        for name, do in (("first", desk.do), ("second", desk.in_thread), ("third", desk.do)):
            before = desk.ran[name]
            await ctx.step("a", do, name)
            assert name not in got or desk.ran[name] == before, "what this handler has been given is recorded"
            got.add(name)
        return sorted(got)

    async def once(eng: Engine) -> None:
        desk.ran.clear()
        got.clear()
        job = await eng.client.submit(work, None)
        assert await job.result() == ["first", "second", "third"]
        crash = eng.crashed
        if crash is not None and crash.function == "ff_record_step":
            # A step whose record was never sent is not recorded, so it alone runs again.
            assert desk.ran.total() == (4 if crash.when == "before" else 3), desk.ran
        assert desk.ran.total() <= 4, "one crash interrupts one step at most"

    report = await Engine(app).crash_everywhere(once)
    assert report.functions.count("ff_record_step") == 3
    assert len(report.points) >= 10


async def test_a_thread_that_is_cancelled_is_waited_for_and_what_it_did_is_recorded(app: ff.App, lane: str) -> None:
    """A worker that stops: what cannot be stopped ends, and is not done again by the next one."""
    began, go_on, ran = threading.Event(), threading.Event(), Counter[str]()

    def slow() -> str:
        ran["slow"] += 1
        began.set()
        go_on.wait(10)
        return "done"

    @app.task(lane=lane)
    async def work(_: None, ctx: ff.Context) -> str:
        return await ctx.step("slow", slow)

    async with app.client() as client:
        job = await client.submit(work, None)
        async with working(app, grace=0) as worker:
            await asyncio.to_thread(began.wait, 10)
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0.1)
            go_on.set()
            await stopping
        async with working(app):
            assert await job.result(timeout=10) == "done"
    assert ran == {"slow": 1}


async def test_a_lease_that_is_lost_stops_the_handler_at_its_next_step(app: ff.App, lane: str) -> None:
    desk, at, went_on = Desk(), asyncio.Event(), asyncio.Event()
    refused: list[BaseException] = []

    @app.task(lane=lane)
    async def work(_: None, ctx: ff.Context) -> int:
        if ctx.attempt == 0:
            at.set()
            await went_on.wait()
            try:
                await ctx.step("late", desk.do, "late")
            except BaseException as error:
                refused.append(error)
                raise
        return ctx.attempt

    async with app.client() as client, working(app):
        job = await client.submit(work, None)
        await at.wait()
        backend = await app.backend()
        status = await job.status()
        assert status.lease is not None
        await backend.call(
            RevokeLeaseArgs(
                execution_id=ExecutionId(job.id),
                worker_instance_id=WorkerInstanceId(status.lease.worker),
                reason="test",
            )
        )
        await app.release()
        went_on.set()
        assert await job.result(timeout=10) == 1
    assert len(refused) == 1 and isinstance(refused[0], ff.StaleLease | asyncio.CancelledError)


# ---- many ------------------------------------------------------------------------------------------------


async def test_a_journal_of_many_pages_is_read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: Counter[int] = Counter()

    async def page(number: int) -> str:
        ran[number] += 1
        return "x" * 2_000

    async def work(_: Any, ctx: ff.Context) -> int:
        done = 0
        for number in range(100):
            done += len(await ctx.step("page", page, number))
        if ctx.attempt == 0:
            raise ConnectionError
        return done

    assert await outcome_of(work) == ff.Completed(value=200_000)
    assert set(ran.values()) == {1} and len(ran) == 100


async def test_a_full_journal_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: Counter[int] = Counter()

    async def big(number: int) -> str:
        ran[number] += 1
        return "x" * 1_000_000

    async def work(_: Any, ctx: ff.Context) -> int:
        for number in range(20):
            try:
                await ctx.step("big", big, number)
            except ff.JournalFull as full:
                assert full.code == "journal_full"
                return number
        return -1

    outcome = await outcome_of(work)
    assert outcome == ff.Completed(value=16)


async def test_steps_of_one_handler_keep_its_lease_without_the_renewal_thread() -> None:
    """Each record renews: on virtual time, a second per step for longer than a lease, and no other renewal."""

    async def wait() -> None:
        await asyncio.sleep(1)

    async def work(_: Any, ctx: ff.Context) -> None:
        for number in range(40):
            await ctx.step("wait", wait, digest=str(number))

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        await (await eng.client.submit(task, None)).result(timeout=3600)
        assert "ff_renew_many" not in eng.engine_calls


# ---- def handlers and other processes --------------------------------------------------------------------


async def test_a_def_handler_has_the_same_calls_blocking(desk: Desk) -> None:
    threads: set[int] = set()

    def here(what: str) -> str:
        threads.add(threading.get_ident())
        return desk.in_thread(what)

    app = ff.App()

    @app.task(retry=SOON)
    def work(_: None, ctx: ff.Context) -> list[str]:
        threads.add(threading.get_ident())
        first: str = ctx.sync.step("a", here, "first")
        done = [first, ctx.sync.step("a", desk.do, "second")]
        if ctx.attempt == 0:
            raise ConnectionError
        return done

    @app.task(retry=ONCE)
    def wrong(_: None, ctx: ff.Context) -> None:
        assert ctx.step("a", here, "first") is None

    async with Engine(app) as eng:
        assert await (await eng.client.submit(work, None)).result() == ["first by ff", "second done"]
        refused = await (await eng.client.submit(wrong, None)).outcome()
    assert desk.ran == {"first": 1, "second": 1}
    assert isinstance(refused, ff.Failed) and "ctx.sync.step" in refused.reason


async def test_in_a_loop_the_blocking_calls_are_refused(desk: Desk) -> None:
    async def work(_: Any, ctx: ff.Context) -> None:
        ctx.sync.step("a", desk.do, "first")

    outcome = await outcome_of(work, retry=ONCE)
    assert isinstance(outcome, ff.Failed) and "await" in outcome.reason


async def test_a_handler_in_a_child_process_is_told_what_it_cannot_do(url: str) -> None:
    worker_app.app.url = url
    async with worker_app.app.client() as client, working(worker_app.app, lanes=["processes"]):
        outcome = await (await client.submit(worker_app.step_apart, 1)).outcome(timeout=20)
        assert isinstance(outcome, ff.Failed)
        assert "isolation='process'" in outcome.reason and outcome.category == "unsupported"
        counted = await client.submit(worker_app.count_down, 2)
        assert await counted.result(timeout=20) == 0, "a new run needs no journal"


# ---- a new run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
async def test_a_handler_may_begin_anew_with_an_empty_journal(desk: Desk, wrapped: bool) -> None:
    async def work(left: int, ctx: ff.Context) -> str:
        await ctx.step("count", desk.do, "count")
        if left:
            if wrapped:
                async with asyncio.TaskGroup() as group:
                    group.create_task(again(left - 1))
            await again(left - 1)
        return f"{desk.ran['count']} runs"

    async def again(left: int) -> None:
        raise ff.ContinueAs(left)

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, 3)
        assert await job.result() == "4 runs", "who waits goes on waiting"
        assert len(await journal_of(eng, job)) == 1
    assert len(set(desk.keys["count"])) == 4, "another run, another effect"


async def test_a_new_run_takes_a_payload_of_the_tasks_type() -> None:
    async def work(left: int, ctx: ff.Context) -> None:
        raise ff.ContinueAs("many")

    outcome = await outcome_of(work, 1)
    assert isinstance(outcome, ff.Failed) and outcome.category == "invalid_payload"


async def test_what_is_called_after_the_handler_has_ended_is_refused(desk: Desk) -> None:
    late: list[asyncio.Task[Any]] = []
    ended = asyncio.Event()

    async def work(_: Any, ctx: ff.Context) -> None:
        async def linger() -> None:
            await ended.wait()
            await ctx.step("late", desk.do, "late")

        assert not ctx.durable.gone
        late.append(asyncio.create_task(linger()))

    assert isinstance(await outcome_of(work), ff.Completed)
    ended.set()
    with pytest.raises(ff.StaleLease):
        await late[0]
    assert not desk.ran


# ---- replays ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["resume", "fresh"])
async def test_a_replay_keeps_what_is_recorded_or_begins_anew(desk: Desk, mode: Literal["resume", "fresh"]) -> None:
    broken = True

    async def work(_: Any, ctx: ff.Context) -> list[str]:
        first = await ctx.step("first", desk.do, "first")
        if broken:
            raise ConnectionError("the next step has a bug")
        return [first, await ctx.step("second", desk.do, "second")]

    app = ff.App()
    task = task_of(app, work, retry=ONCE)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        assert isinstance(await job.outcome(), ff.Failed)
        broken = False
        await job.replay(mode=mode)
        assert await job.result() == ["first done", "second done"]
    assert desk.ran == {"first": 1 if mode == "resume" else 2, "second": 1}
    assert len(set(desk.keys["first"])) == desk.ran["first"], "a fresh run has effects of its own"


async def test_a_replay_tries_the_step_again_that_failed_for_good(desk: Desk) -> None:
    async def charge() -> str:
        desk.ran["charge"] += 1
        if desk.ran["charge"] == 1:
            raise ff.Fatal("the account is closed")
        return "charged"

    async def work(_: Any, ctx: ff.Context) -> str:
        await ctx.step("first", desk.do, "first")
        return await ctx.step("charge", charge)

    app = ff.App()
    task = task_of(app, work)
    async with Engine(app) as eng:
        job = await eng.client.submit(task, None)
        assert isinstance(await job.outcome(), ff.Failed)
        await job.replay(mode="resume")
        assert await job.result() == "charged"
    assert desk.ran == {"first": 1, "charge": 2}
