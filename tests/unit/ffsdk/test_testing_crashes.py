"""The crash kit: what dies, what is counted, what is found and said, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import ffsdk as ff
from ffsdk.crashes import CrashesFound, CrashReport
from ffsdk.testing import Engine


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task, no thread and no warning outlives a test."""
    threads = set(threading.enumerate())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left
    assert not [t for t in set(threading.enumerate()) - threads if not t.name.startswith("ff-handler")]
    assert not told, [str(one.message) for one in told]


class Post:
    """An app whose handler has an effect outside, which remembers what it did."""

    def __init__(self) -> None:
        self.app = ff.App()
        self.sent: list[str] = []
        self.by_id: dict[str, str] = {}

        @self.app.task
        async def mail(to: str) -> str:
            self.sent.append(to)
            return to

        @self.app.task
        async def keyed(to: str, ctx: ff.Context) -> str:
            self.by_id[ctx.execution_id] = to
            return to

        @self.app.task
        async def long(to: str, ctx: ff.Context) -> str:
            await ctx.progress(50, "half")
            await asyncio.sleep(40)  # longer than a renewal
            self.sent.append(to)
            return to

        self.mail, self.keyed, self.long = mail, keyed, long

    async def mails_once(self, eng: Engine) -> None:
        self.sent.clear()
        assert await (await eng.client.submit(self.mail, "ann")).result() == "ann"
        assert self.sent == ["ann"]

    async def keys_once(self, eng: Engine) -> None:
        self.by_id.clear()
        assert await (await eng.client.submit(self.keyed, "ann")).result() == "ann"
        assert list(self.by_id.values()) == ["ann"]


async def test_an_effect_that_is_not_idempotent_is_caught_and_the_call_is_named() -> None:
    post = Post()
    with pytest.raises(CrashesFound) as found:
        await Engine(post.app).crash_everywhere(post.mails_once)
    error = found.value
    assert isinstance(error, AssertionError), "so that it reads as a failed test"
    assert any((p.when, p.function) == ("before", "ff_complete_many") for p in error.points)
    assert all((p.when, p.function) != ("after", "ff_complete_many") for p in error.points), "then it is done"
    assert len(error.points) == len(error.exceptions)
    for point, one in zip(error.points, error.exceptions, strict=True):
        assert isinstance(one, AssertionError)
        assert one.__notes__ == [f"a worker crashed {point}"]
        assert f"{point.number}, {point.function}" in str(point) and str(point) in str(error)
    matching, rest = error.split(AssertionError)
    assert rest is None and matching is not None and matching.report is error.report


async def test_an_effect_keyed_by_the_execution_passes_and_the_points_are_counted() -> None:
    post = Post()
    report = await Engine(post.app).crash_everywhere(post.keys_once)
    assert isinstance(report, CrashReport)
    assert "ff_claim_batch" in report.functions and "ff_complete_many" in report.functions
    numbers = [(point.number, point.when) for point in report.points]
    assert numbers == [(n, when) for n in range(1, len(numbers) // 2 + 1) for when in ("before", "after")]
    assert str(report) == (
        f"{len(numbers)} crash points tried: before and after each of {len(numbers) // 2} engine calls"
    )
    assert not post.app.in_use and post.app.through is None


async def test_an_open_engine_goes_on_with_a_fresh_store() -> None:
    """As in the text of the API: the test knows the engine from outside."""
    post = Post()
    async with Engine(post.app) as eng:
        await (await eng.client.submit(post.keyed, "bob", key="k")).result()

        async def test() -> None:
            post.by_id.clear()
            job = await eng.client.submit(post.keyed, "ann", key="k")
            assert job.created, "each run begins with an empty store"
            await eng.run_until(job)
            assert list(post.by_id.values()) == ["ann"]

        await eng.crash_everywhere(test)
        assert (await eng.client.submit(post.keyed, "bob", key="k")).created
    assert not post.app.in_use


async def test_a_named_memory_store_is_emptied_between_runs() -> None:
    post = Post()
    engine = Engine(post.app, url="memory://crash-kit")

    async def test(eng: Engine) -> None:
        job = await eng.client.submit(post.keyed, "ann", key="k")
        assert job.created
        await job.result()

    await engine.crash_everywhere(test)


@pytest.mark.parametrize("before", [True, False])
async def test_a_worker_dies_at_the_call_and_another_takes_over_when_the_lease_ends(before: bool) -> None:
    post = Post()
    async with Engine(post.app) as eng:
        began = eng.now
        first = eng._running[0][0]
        job = await eng.client.submit(post.long, "ann")
        while "ff_update_progress" not in eng.engine_calls:
            await asyncio.sleep(0)
        eng.crash_after(2, before=before, function="ff_renew_many")  # in the middle of the handler
        assert await eng.run_until(job) == ff.Completed("ann")
        point = eng.crashed
        assert point is not None and (point.number, point.function) == (2, "ff_renew_many")
        assert post.sent == ["ann"], "the first handler was cancelled"
        status = await job.status()
        assert status.attempt == 1 and (eng.now - began).total_seconds() > 30, "by the lease and nothing sooner"
        await first.stop()  # a dead worker has ended: nobody waits for it
        assert len(eng._running) == 2


async def test_a_dead_worker_reports_nothing_and_its_reply_is_lost() -> None:
    """After the claim took effect: the job is leased to the dead, and its handler never starts."""
    post = Post()
    async with Engine(post.app, auto=False) as eng:
        eng.crash_after(1)
        job = await eng.client.submit(post.mail, "ann")
        for _ in range(200):
            await asyncio.sleep(0)
            if eng.crashed:
                break
        assert eng.crashed is not None and eng.crashed.when == "after"
        assert await eng.run_until(job) == ff.Completed("ann")
        assert post.sent == ["ann"]
        assert (await job.status()).state == "completed"


async def test_what_a_handler_submits_counts_and_its_reply_is_lost_with_it() -> None:
    app = ff.App()
    children: list[str] = []

    @app.task
    async def child(n: int) -> int:
        return n

    @app.task
    async def parent(key: str | None) -> str:
        async with app.client() as client:
            job = await client.submit(child, 1, key=key)
        children.append(job.id)
        return job.id

    async def scenario(eng: Engine, key: str | None) -> None:
        await (await eng.client.submit(parent, key)).result()
        found = [job async for job in eng.client.jobs() if job.info is not None and job.info.task == "child"]
        assert len(found) == 1

    report = await Engine(app).crash_everywhere(lambda eng: scenario(eng, "only"))
    assert "ff_create_many" in report.functions, "a handler's own calls are the worker's"
    with pytest.raises(CrashesFound, match=r"after call .*, ff_create_many"):
        await Engine(app).crash_everywhere(lambda eng: scenario(eng, None))


async def test_what_the_test_itself_calls_is_not_counted() -> None:
    post = Post()
    async with Engine(post.app) as eng:
        for _ in range(50):
            await asyncio.sleep(0)
        before = eng.engine_calls
        await eng.client.job((await eng.client.submit(post.mail, "ann", delay=3600)).id).status()
        assert "ff_create_many" not in eng.engine_calls[len(before) :]
        assert not {"ff_register_worker", "ff_publish_tasks", "ff_announce_tasks"} & set(eng.engine_calls)


async def test_a_handler_that_swallows_its_cancellation_still_reaches_nothing() -> None:
    app, saw = ff.App(), list[str]()

    @app.task
    async def stubborn(_: None, ctx: ff.Context) -> str:
        try:
            await ctx.progress(1)
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            try:
                await ctx.progress(2)
            except BaseException as ended:
                saw.append(type(ended).__name__)
        return "done"

    async with Engine(app) as eng:
        job = await eng.client.submit(stubborn)
        while "ff_update_progress" not in eng.engine_calls:
            await asyncio.sleep(0)
        eng.crash_after(1, before=True)
        assert await eng.run_until(job) == ff.Completed("done")
        assert (await job.status()).attempt == 1, "the outcome is the second worker's"
    assert saw == ["CancelledError"]


async def test_a_background_task_of_a_dead_handler_does_not_outlive_it() -> None:
    app = ff.App()
    strays: list[asyncio.Task[Any]] = []

    @app.task
    async def spawning(_: None, ctx: ff.Context) -> str:
        async def beat() -> None:
            while True:
                await asyncio.sleep(1)
                await ctx.progress(1)

        if not strays:
            strays.append(asyncio.create_task(beat()))
            await asyncio.sleep(50)
        return "done"

    async with Engine(app) as eng:
        job = await eng.client.submit(spawning)
        while not strays:
            await asyncio.sleep(0)
        eng.crash_after(1)
        assert await eng.run_until(job) == ff.Completed("done")
        assert strays[0].cancelled()


async def test_a_handler_in_a_thread_runs_to_its_end_and_reports_nothing() -> None:
    app = ff.App()
    go, runs = threading.Event(), list[int]()

    @app.task
    def blocking(_: None) -> str:
        runs.append(len(runs))
        if len(runs) == 1:
            go.wait(20)
        return "done"

    async with Engine(app) as eng:
        job = await eng.client.submit(blocking)
        while not runs:
            await asyncio.sleep(0.001)
        eng._running[0][2].die()
        go.set()
        assert await eng.run_until(job) == ff.Completed("done")
        assert len(runs) == 2


async def test_a_test_that_fails_without_a_crash_fails_as_it_is() -> None:
    post = Post()

    async def broken(eng: Engine) -> None:
        await (await eng.client.submit(post.mail, "ann")).result()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await Engine(post.app).crash_everywhere(broken)
    assert not post.app.in_use


async def test_an_outcome_of_pytest_is_a_failure_at_its_point() -> None:
    post = Post()

    async def test(eng: Engine) -> None:
        post.sent.clear()
        await (await eng.client.submit(post.mail, "ann")).result()
        if len(post.sent) != 1:
            pytest.fail("sent twice")

    with pytest.raises(CrashesFound) as found:
        await Engine(post.app).crash_everywhere(test)
    assert "sent twice" in str(found.value.exceptions[0])


async def test_a_test_that_hangs_after_a_crash_is_one_that_fails() -> None:
    post = Post()

    async def test(eng: Engine) -> None:
        post.sent.clear()
        job = await eng.client.submit(post.mail, "ann")
        await job.result()
        if len(post.sent) > 1:
            await asyncio.Event().wait()

    with pytest.raises(CrashesFound) as found:
        await Engine(post.app).crash_everywhere(test, hung=2.0)
    assert all(isinstance(one, TimeoutError) for one in found.value.exceptions)


def refusals() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    async def nothing(eng: Engine) -> None:
        await asyncio.sleep(0)

    async def many(eng: Engine) -> None:
        task = eng.app.tasks["mail"]
        for _ in range(3):
            await (await eng.client.submit(task, "ann")).result()

    yield "pass an async function", lambda eng: None, {}
    yield "limit=", many, {"limit": 2}
    yield "counted from 1", many, {"limit": 0}


@pytest.mark.parametrize(("said", "test", "options"), list(refusals()))
async def test_what_could_not_show_anything_is_refused(said: str, test: Any, options: dict[str, Any]) -> None:
    post = Post()
    with pytest.raises(ff.InvalidArgument, match=said):
        await Engine(post.app).crash_everywhere(test, **options)
    assert not post.app.in_use


async def test_an_app_without_workers_has_nowhere_to_crash() -> None:
    async def test(eng: Engine) -> None:
        await eng.client.submit("mail", None, lane="x")

    with pytest.raises(ff.InvalidArgument, match="nowhere to crash"):
        await Engine(ff.App()).crash_everywhere(test)


async def test_crashes_need_virtual_time_and_an_open_engine() -> None:
    post = Post()
    with pytest.raises(ff.InvalidArgument, match="not open"):
        Engine(post.app).crash_after(1)
    with pytest.raises(ff.InvalidArgument, match="memory://"):
        await Engine(post.app, url="valkey://127.0.0.1:1").crash_everywhere(post.mails_once)
    async with Engine(post.app) as eng:
        with pytest.raises(ff.InvalidArgument, match="counted from 1"):
            eng.crash_after(0)
