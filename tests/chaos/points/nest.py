"""The workers of a run of points: processes forked from one that has everything imported, so that dying is cheap.

`python -m tests.chaos.points.nest '{"url": ..., "directory": ..., ...}'`. Who dies is replaced at once; SIGTERM ends
all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from ffbackend_valkey import stores
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import library
from ffengine import tick
from ffsdk import awaited, children, gates, signals, steps, streams, worker
from tests.chaos.points.book import Book
from tests.chaos.points.hook import Deadly, Points
from tests.chaos.points.plan import LANE
from tests.chaos.points.tasks import app, use

FORKED_WITH: Final = (stores, tick, awaited, children, gates, signals, steps, streams, worker)
"""Modules that are imported when they are first used: here before the forks."""
DEATHS: Final = "deaths"
"""Directory with a file for each death that has happened."""
PAUSE_S: Final = 0.2


class Orders(msgspec.Struct, kw_only=True):
    url: str
    directory: str
    workers: int
    concurrency: int
    lease_s: float


async def serve(orders: Orders, name: str) -> None:
    """One worker."""
    directory = Path(orders.directory)
    points = Points(Book(directory), directory / DEATHS)
    use(points)
    app.url = orders.url
    deadly = Deadly(await app.backend(), points)

    async def opened() -> Any:
        return deadly

    app.backend = opened  # type: ignore[method-assign]
    one = app.worker(
        lanes=[LANE], concurrency=orders.concurrency, lease=orders.lease_s, grace=1.0, name=name, prefetch=0
    )
    await one.run(signals=True)


class Nest:
    def __init__(self, orders: Orders) -> None:
        self._orders, self._book = orders, Book(Path(orders.directory))
        self._born: dict[int, tuple[str, float]] = {}
        """Name and time of birth, by process id."""
        self._stopping = False

    def run(self) -> None:
        bindings_of(library())  # put together once, not by each child
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for i in range(self._orders.workers):
            self._fork(f"nest{i}")
        while self._born:
            pid, status = os.waitpid(-1, 0)
            name, born = self._born.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            self._book.note("died", pid, code)
            if self._stopping:
                continue
            if code > 0 and time.monotonic() - born < PAUSE_S:
                time.sleep(PAUSE_S)  # one that cannot even start is not started in a tight loop
            self._fork(name)

    def _fork(self, name: str) -> None:
        # A signal between the fork and the child's own handlers would be this process's to handle, in the child.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        pid = os.fork()
        if pid == 0:
            self._live(name)
        self._born[pid] = name, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def _live(self, name: str) -> None:
        """The child; does not return."""
        code = 0
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
            asyncio.run(serve(self._orders, name))
        except BaseException as failed:
            self._book.note("fatal", f"{name}: {type(failed).__name__}: {failed}")
            logging.exception("%s ends", name)
            code = 1
        finally:
            os._exit(code)

    def _stop(self, *_: object) -> None:
        self._stopping = True
        for pid in tuple(self._born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s")
    Nest(msgspec.json.decode(sys.argv[1], type=Orders)).run()
