"""Streams from the handler to its readers, on a real server: order, attempts, cursors, ends, the summary."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

import ffsdk as ff
from ffcore import limits
from ffcore.errors import StaleLease, Unavailable
from ffsdk import tails
from ffsdk.testing import Engine
from tests.integration import test_client as base
from tests.integration.proxy import until

server_url, url = base.server_url, base.url


class Script(msgspec.Struct):
    """What a handler of these tests does."""

    emit: list[Any] = []
    attempts: int = 1
    """The one that gets to the end; those before fail."""
    wait: str = ""
    """The name of a gate in this process that it waits at, when it has emitted."""


gates: dict[str, asyncio.Event] = {}


@pytest.fixture
async def app(url: str) -> ff.App:
    app = ff.App(url)

    @app.task(retry=ff.Retry(max_attempts=5, backoff=0.01, jitter=False))
    async def talk(script: Script, ctx: ff.Context) -> int:
        for value in script.emit:
            await ctx.emit(value)
        if script.wait:
            await gates.setdefault(script.wait, asyncio.Event()).wait()
        if ctx.attempt + 1 < script.attempts:
            raise ValueError("again")
        return ctx.attempt

    return app


@pytest.fixture
async def client(app: ff.App) -> AsyncIterator[ff.Client]:
    gates.clear()
    async with app.client() as client:
        yield client


@pytest.fixture
async def working(app: ff.App) -> AsyncIterator[None]:
    worker = app.worker(concurrency=100)
    task = asyncio.create_task(worker.run())
    await worker.started.wait()
    yield
    for gate in gates.values():
        gate.set()
    await worker.stop()
    await task


async def collect(job: ff.Job[Any], after: str | None = None) -> list[ff.Frame]:
    async with asyncio.timeout(20):
        return [frame async for frame in job.stream(after)]


def open_gate(name: str) -> None:
    gates.setdefault(name, asyncio.Event()).set()


VALUES = [1, "two", None, {"three": [3.5, True]}, b"\x00\xff", "čtyři", 2**60, []]


async def test_what_is_emitted_is_read_back_in_order(client: ff.Client, app: ff.App, working: None) -> None:
    """Bytes are read back as bytes, everything else as its JSON value."""

    @app.task(name="values")
    async def values(_: None, ctx: ff.Context) -> None:
        for value in VALUES:
            await ctx.emit(value, type=type(value).__name__)

    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    frames = await collect(await client.submit(values))
    assert [frame.value for frame in frames] == VALUES
    assert [frame.type for frame in frames] == [type(value).__name__ for value in VALUES]
    assert {(frame.attempt, frame.mode) for frame in frames} == {(0, "append")}
    assert all(frame.at is not None and frame.at.tzinfo is not None for frame in frames)
    await worker.stop()
    await running


async def test_frames_come_while_the_job_runs_and_the_end_wakes_the_reader_at_once(
    client: ff.Client, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "POLL_S", 3600)
    monkeypatch.setattr("ffsdk.waiters.POLL_S", 3600)
    job = await client.submit("talk", Script(emit=[1, 2], wait="here"))
    reading = job.stream()
    async with asyncio.timeout(20):
        assert [(await anext(reading)).value for _ in range(2)] == [1, 2]
        last = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        open_gate("here")
        with pytest.raises(StopAsyncIteration):
            await last


async def test_a_job_that_emits_nothing_ends_its_stream_at_once(
    client: ff.Client, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing rings for a stream that there is not: the reader hears of the end as whoever waits for the job does."""
    monkeypatch.setattr(tails, "POLL_S", 3600)
    job = await client.submit("talk", Script(wait="silent"))
    reading = asyncio.create_task(collect(job))
    await until(lambda: "silent" in gates, "the handler")
    open_gate("silent")
    assert await reading == []


async def test_a_later_attempt_supersedes_and_the_stream_goes_on(client: ff.Client, working: None) -> None:
    job = await client.submit("talk", Script(emit=["a", "b"], attempts=3))
    live = await collect(job)
    assert [(frame.type, frame.attempt, frame.value) for frame in live] == [
        ("token", 0, "a"), ("token", 0, "b"), ("superseded", 1, 1),
        ("token", 1, "a"), ("token", 1, "b"), ("superseded", 2, 2),
        ("token", 2, "a"), ("token", 2, "b"),
    ]  # fmt: skip
    assert await collect(job) == live, "whoever comes later reads the same"


async def test_frames_that_are_gone_leave_a_gap_and_not_a_silence(client: ff.Client, working: None) -> None:
    job = await client.submit("talk", Script(emit=list(range(limits.STREAM_FRAMES_N + 400))))
    await job.result(timeout=60)
    gap, *rest = await collect(job)
    first = gap.value
    assert (gap.type, gap.attempt, gap.at) == ("gap", 0, None) and first > 0
    assert [frame.value for frame in rest] == list(range(first, limits.STREAM_FRAMES_N + 400))
    assert await collect(job, gap.cursor) == [gap, *rest], "whoever goes on from before it is told again"
    assert await collect(job, rest[0].cursor) == rest[1:]


async def test_any_cursor_goes_on_exactly_behind_its_frame(client: ff.Client, working: None) -> None:
    job = await client.submit("talk", Script(emit=list(range(5)), attempts=3))
    frames = await collect(job)
    assert len(frames) == 17
    for at, frame in enumerate(frames):
        assert await collect(job, frame.cursor) == frames[at + 1 :]
        if frame.type != "superseded":
            assert await collect(job, frame.cursor.partition(":")[2]) == frames[at + 1 :], (
                "an entry's id is a place too"
            )
    assert await collect(job, "start") == frames
    assert await collect(job, "end") == []


async def test_a_cursor_that_is_none_is_refused_at_once(client: ff.Client, app: ff.App) -> None:
    job = await client.submit("talk", Script())
    with pytest.raises(ff.InvalidArgument, match="cursor"):
        job.stream(after="yesterday")
    with pytest.raises(ff.NotFound):
        await collect(client.job("{fp:0}:00000000-0000-7000-8000-00000000dead"))


async def test_only_what_comes_from_now_on(client: ff.Client, working: None) -> None:
    job = await client.submit("talk", Script(emit=["old"], wait="both", attempts=2))
    assert (await anext(job.stream())).value == "old"
    reading = asyncio.create_task(collect(job, "end"))
    await until(lambda: len(client.tails._ears) == 1 and client.waiters._awaited, "the reader")
    open_gate("both")
    assert [(frame.type, frame.attempt) for frame in await reading] == [("superseded", 1), ("token", 1)]


async def test_many_readers_hear_of_everything_over_one_subscription(client: ff.Client, working: None) -> None:
    counting = base.Counting(client.backend)
    client._backend = counting  # type: ignore[assignment]
    job = await client.submit("talk", Script(emit=list(range(50)), wait="all"))
    readers = [asyncio.create_task(collect(job)) for _ in range(100)]
    await until(lambda: len(client.tails._ears.get(client.backend.stream_channel(job.id), ())) == 100, "the readers")
    open_gate("all")
    for frames in await asyncio.gather(*readers):
        assert [frame.value for frame in frames] == list(range(50))
    assert counting.calls["subscribe"] == 1
    assert counting.calls["ReadStreamArgs"] < 500, "those at one place share a read"
    assert client.tails._ears == {} and client.tails._poller is None


async def test_a_reader_that_hears_nothing_polls(
    client: ff.Client, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "POLL_S", 0.02)
    deaf = base.Counting(client.backend)
    deaf.deaf = True
    client._backend = deaf  # type: ignore[assignment]
    job = await client.submit("talk", Script(emit=[1]))
    assert [frame.value for frame in await collect(job)] == [1]


async def test_a_reader_outlasts_a_store_that_is_away(
    client: ff.Client, working: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "POLL_S", 0.02)

    class Away(base.Counting):
        failures = 3

        async def call(self, args: Any) -> Any:
            if type(args).__name__ == "ReadStreamArgs" and self.failures:
                self.failures -= 1
                raise Unavailable("away")
            return await super().call(args)

    client._backend = Away(client.backend)  # type: ignore[assignment]
    assert [f.value for f in await collect(await client.submit("talk", Script(emit=[1])))] == [1]


async def test_a_client_that_closes_ends_its_streams(client: ff.Client, working: None) -> None:
    job = await client.submit("talk", Script(emit=[1], wait="forever"))
    stream = job.stream()
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ff.Unavailable):
        await asyncio.wait_for(waiting, 10)


async def test_a_reader_that_is_left_open_says_nothing_when_its_client_has_closed(
    app: ff.App, client: ff.Client, working: None, caplog: pytest.LogCaptureFixture
) -> None:
    job = await client.submit("talk", Script(emit=[1, 2], wait="forever"))
    async with app.client() as other:
        frames = other.job(job.id).stream()
        async for _ in frames:
            break
    await frames.aclose()
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_frames_of_handlers_that_run_together_fold(app: ff.App, client: ff.Client, working: None) -> None:
    backend = await app.backend()
    seen: list[int] = []
    original = type(backend).call

    async def call(self: Any, args: Any) -> Any:
        if type(args).__name__ == "AppendFramesArgs":
            seen.append(len(args.items))
        return await original(self, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backend), "call", call)
        jobs = await client.submit_many("talk", [Script(emit=list(range(50))) for _ in range(40)])
        for job in jobs:
            assert [frame.value for frame in await collect(job)] == list(range(50))
    assert sum(seen) == 2_000 and len(seen) < 1_000
    await app.release()


async def test_what_cannot_be_emitted_is_refused_before_anything_is_sent(client: ff.Client, app: ff.App) -> None:
    refusals: list[str] = []

    @app.task
    async def refused(_: None, ctx: ff.Context) -> None:
        for arguments in (
            {"value": object()}, {"value": "x" * limits.FRAME_BYTES}, {"value": b"x" * (limits.FRAME_BYTES + 1)},
            {"value": 1, "type": ""}, {"value": 1, "type": "superseded"}, {"value": 1, "type": "gap"},
            {"value": 1, "mode": "summary"},
        ):  # fmt: skip
            with pytest.raises(ff.InvalidArgument) as caught:
                await ctx.emit(**arguments)  # type: ignore[arg-type]
            refusals.append(str(caught.value))
        with pytest.raises(ff.InvalidArgument):
            await ctx.summary([1])  # type: ignore[arg-type]
        await ctx.emit(b"x" * limits.FRAME_BYTES)

    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    (frame,) = await collect(await client.submit(refused))
    assert len(frame.value) == limits.FRAME_BYTES and len(refusals) == 7
    await worker.stop()
    await running


async def test_a_handler_that_lost_its_job_cannot_emit(client: ff.Client, app: ff.App) -> None:
    caught: list[type[BaseException]] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    @app.task
    async def stubborn(_: None, ctx: ff.Context) -> None:
        try:
            await ctx.emit("mine")
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)
            await ctx.emit("no longer mine")
        except StaleLease as lost:
            caught.append(type(lost))
        finally:
            ended.set()

    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    job = await client.submit(stubborn)
    await begun.wait()
    await job.cancel(force=True)
    assert [frame.value for frame in await collect(job)] == ["mine"]
    await asyncio.wait_for(ended.wait(), 20)
    assert caught
    await worker.stop()
    await running


# ---- the summary -------------------------------------------------------------------------------------------


async def test_a_summary_is_patched_and_read_by_anybody(client: ff.Client, app: ff.App) -> None:
    answers: list[dict[str, Any]] = []

    @app.task
    async def summing(_: None, ctx: ff.Context) -> None:
        answers.append(await ctx.summary({"phase": "fetch", "pages": {"done": 1, "left": 2}, "big": 2**60}))
        answers.append(await ctx.summary({"phase": "digest", "pages": {"left": None}, "list": []}))
        await asyncio.gather(*(ctx.summary({f"k{n}": n}) for n in range(8)))

    worker = app.worker(concurrency=1)
    running = asyncio.create_task(worker.run())
    job = await client.submit(summing)
    await job.result(timeout=20)
    assert answers[1] == {"phase": "digest", "pages": {"done": 1}, "big": 2**60, "list": []}
    assert await job.summary() == answers[1] | {f"k{n}": n for n in range(8)}
    assert await (await client.submit("talk", Script(), delay=60)).summary() == {}
    await worker.stop()
    await running


def test_the_blocking_client_reads_streams_too(server_url: str) -> None:
    from tests.integration.proxy import own_server

    with own_server() as server:
        app = ff.App(f"valkey://127.0.0.1:{server.port}")

        @app.task
        async def counting(n: int, ctx: ff.Context) -> None:
            for i in range(n):
                await ctx.emit(i)
            await ctx.summary({"n": n})

        async def prepare() -> None:
            from ffbackend_valkey.stores import connect
            from ffcore.backend import StoreConfig

            await (await connect(app.url or "", init=StoreConfig(fp=1))).close()
            async with app.client() as client:
                worker = app.worker(concurrency=1)
                running = asyncio.create_task(worker.run())
                await (await client.submit(counting, 5, key="k")).result(timeout=20)
                await worker.stop()
                await running

        asyncio.run(prepare())
        with ff.sync.Client(app.url) as client:
            job = client.submit("counting", 5, key="k", lane="default")
            assert [frame.value for frame in job.stream()] == list(range(5))
            some = job.stream()
            first = next(some)
            some.close()  # type: ignore[attr-defined]
            assert [frame.value for frame in job.stream(after=first.cursor)] == [1, 2, 3, 4]
            assert job.summary() == {"n": 5}
            with pytest.raises(ff.InvalidArgument):
                job.stream(after="x")


def test_a_blocking_client_that_is_closed_ends_what_other_threads_wait_for() -> None:
    app = ff.App("memory://closed-while-waiting")

    @app.task
    def nothing() -> None: ...

    client = ff.sync.Client(app=app)
    job = client.submit(nothing)
    ends: list[str] = []

    def run(wait: Callable[[], Any]) -> None:
        try:
            wait()
        except ff.Unavailable as end:
            ends.append(end.code)

    waits: list[Callable[[], Any]] = [
        job.result, job.outcome, lambda: list(job.stream()), lambda: list(client.subscribe("completion")),
    ]  # fmt: skip
    threads = [threading.Thread(target=run, args=(wait,), daemon=True) for wait in waits]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    client.close()
    for thread in threads:
        thread.join(10)
    assert ends == ["closed"] * 4
    client.close()


async def test_virtual_time_does_not_stall_a_reader() -> None:
    app = ff.App("memory://streams-virtual")

    @app.task(retry=ff.Retry(max_attempts=2, backoff=86_400, max_backoff=86_400, jitter=False))
    async def slowly(_: None, ctx: ff.Context) -> None:
        await ctx.emit("begun")
        await asyncio.sleep(60)
        await ctx.emit("done")
        if ctx.attempt == 0:
            raise ValueError("tomorrow again")

    async with Engine(app) as eng:
        job = await eng.client.submit(slowly)

        async def read() -> list[Any]:
            return [frame.value async for frame in job.stream()]

        reading = asyncio.create_task(read())
        await eng.run_until(job)
        values = await reading
    assert values == ["begun", "done", 1, "begun", "done"]
