"""An engine for tests of users' code: an app on a store of its own, with a worker in the same loop, on virtual time.

    async with Engine(app) as eng:
        job = await eng.client.submit(remind, Reminder(...), delay=86_400)
        await eng.advance(days=1)
        assert await job.result() == "sent"

Time moves by itself whenever nothing else can happen (`auto=False`: only in `advance` and `run_until`), so a test
that waits a month takes no longer than what happens in it. Under pytest the fixture `ff_engine` is this class.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ffcore.errors import InvalidArgument
from ffsdk import times
from ffsdk.connect import VirtualStore

if TYPE_CHECKING:
    from ffsdk.app import App
    from ffsdk.client import Client
    from ffsdk.job import Job
    from ffsdk.outcomes import Outcome
    from ffsdk.virtual import VirtualTime
    from ffsdk.worker import Worker

R = TypeVar("R")


class Engine:
    """``async with Engine(app) as eng``. While it is open the app is bound to the engine's store, whatever its own URL.

    url           memory:// with a fresh name unless given; embedded://DIR runs in real time
    auto          let virtual time pass by itself when everything waits
    lanes, concurrency, capabilities   of the worker that is started with it, if the app has tasks
    """

    def __init__(
        self, app: App, *, url: str | None = None, auto: bool = True, lanes: Sequence[str] | None = None,
        concurrency: int = 16, capabilities: Iterable[str] = (),
    ) -> None:  # fmt: skip
        self.app = app
        self.url = url or f"memory://engine-{secrets.token_hex(6)}"
        self._auto, self._fresh = auto, url is None
        self._options: dict[str, Any] = {"lanes": lanes, "concurrency": concurrency, "capabilities": capabilities}
        self._running: list[tuple[Worker, asyncio.Task[None]]] = []
        self._client: Client | None = None

    # ---- open and close

    async def __aenter__(self) -> Self:
        if self._client is not None:
            raise InvalidArgument("this engine is open already: make another one")
        if self.app.in_use:
            raise InvalidArgument(
                "the app has a client, a worker or another engine open in this loop: close that first"
            )
        self._app_url, self.app.url = self.app.url, self.url
        try:
            await self.app.backend()
        except BaseException:
            self.app.url = self._app_url
            raise
        self._client = await self.app.client()
        if not self._auto:
            self._time.hold_at(self._time.now_ms)
        if self.app.tasks:
            worker = self.worker(**self._options)
            # A worker that cannot start must fail the test, not stop it.
            await asyncio.wait(
                [asyncio.ensure_future(worker.started.wait()), self._running[0][1]], return_when=asyncio.FIRST_COMPLETED
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.app.virtual_time is not None:
            self.app.virtual_time.hold_at(None)
        client, self._client = self._client, None
        running, self._running = self._running, []
        try:
            if client is not None:
                await client.close()
            for worker, _ in running:
                worker.request_stop()
            ended = await asyncio.gather(*(task for _, task in running), return_exceptions=True)
        finally:
            await self.app.release()
            self.app.url = self._app_url
            if self._fresh:
                VirtualStore(self.url).discard()
        broken = [end for end in ended if isinstance(end, BaseException)]
        if broken and error is None:
            raise broken[0]

    # ---- what a test uses

    @property
    def client(self) -> Client:
        """A client of the engine's store."""
        if self._client is None:
            raise InvalidArgument("the engine is not open: use `async with Engine(app) as eng`")
        return self._client

    @property
    def now(self) -> datetime:
        """The store's time, UTC."""
        time = self.app.virtual_time
        return datetime.fromtimestamp((times.wall_ms() if time is None else time.now_ms) / 1000, UTC)

    def worker(self, **options: Any) -> Worker:
        """Start another worker; options as `App.worker`. The engine drains it at its end, `worker.stop()` before."""
        worker = self.app.worker(**options)
        self._running.append((worker, asyncio.create_task(worker.run(), name=f"worker {worker.instance}")))
        return worker

    async def run_until(self, job: Job[R], timeout: times.Duration | None = None) -> Outcome[R]:
        """Run until a job has ended, however much time that takes on the store's clock; answers its outcome."""
        if self._auto or self.app.virtual_time is None:
            return await job.outcome(timeout)
        time = self._time
        time.hold_at(None)
        try:
            return await job.outcome(timeout)
        finally:
            time.hold_at(time.now_ms)

    async def advance(
        self, delta: timedelta | None = None, /, *, days: float = 0, hours: float = 0, minutes: float = 0,
        seconds: float = 0,
    ) -> datetime:  # fmt: skip
        """Let time pass, through every due instant in order, and return when all that was due then is done."""
        given = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        span_ms = times.span_ms(given if delta is None else delta + given, "advance")
        await self._time.reach(self._time.now_ms + span_ms)
        return self.now

    @property
    def _time(self) -> VirtualTime:
        time = self.app.virtual_time
        if time is None:
            raise InvalidArgument(f"{self.url} runs in real time: only memory:// has a clock that can be moved")
        return time


try:
    import pytest
except ImportError:  # users without pytest import Engine alone
    pass
else:

    @pytest.fixture
    def ff_engine() -> type[Engine]:
        """``async with ff_engine(app) as eng``: see `ffsdk.testing.Engine`."""
        return Engine
