"""An engine for tests of users' code: an app on a store of its own, with a worker in the same loop, on virtual time.

    async with Engine(app) as eng:
        job = await eng.client.submit(remind, Reminder(...), delay=86_400)
        await eng.advance(days=1)
        assert await job.result() == "sent"

Time moves by itself whenever nothing else can happen (`auto=False`: only in `advance` and `run_until`), so a test
that waits a month takes no longer than what happens in it. Under pytest the fixture `ff_engine` is this class.

`crash_after` lets a worker die at one engine call; `crash_everywhere` runs a test once for each place where it could.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from ffcore.errors import InvalidArgument
from ffsdk import times
from ffsdk.connect import VirtualStore
from ffsdk.crashes import (
    Crashes,
    CrashesFound,
    CrashPoint,
    CrashReport,
    Process,
    When,
    check_point,
    through_process,
)

if TYPE_CHECKING:
    from ffsdk.app import App
    from ffsdk.client import Client
    from ffsdk.flow import Flow
    from ffsdk.flows import FlowOutcome
    from ffsdk.job import Job
    from ffsdk.outcomes import Outcome
    from ffsdk.virtual import VirtualTime
    from ffsdk.worker import Worker

R = TypeVar("R")

CALLS_N: Final = 100
"""Engine calls of a test that `crash_everywhere` goes through unless told otherwise: twice as many runs."""
HUNG_S: Final = 30.0
"""Real time after which a run with a crash in it counts as hung. One takes some hundredths of a second."""


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
        self._running: list[tuple[Worker, asyncio.Task[None], Process]] = []
        self._client: Client | None = None
        self._crashes = Crashes()

    # ---- open and close

    async def __aenter__(self) -> Self:
        if self._client is not None:
            raise InvalidArgument("this engine is open already: make another one")
        await self._open()
        return self

    async def _open(self) -> None:
        if self.app.in_use:
            raise InvalidArgument(
                "the app has a client, a worker or another engine open in this loop: close that first"
            )
        self._app_url, self.app.url = self.app.url, self.url
        self.app.through = through_process
        try:
            await self.app.backend()
        except BaseException:
            self.app.url, self.app.through = self._app_url, None
            raise
        try:
            await self._begin()
        except BaseException:
            await self._close(quiet=True)
            raise

    async def _begin(self) -> None:
        self._client = await self.app.client()
        if not self._auto:
            self._time.hold_at(self._time.now_ms)
        if self.app.tasks:
            worker = self.worker(**self._options)
            # A worker that cannot start must fail the test, not stop it.
            started = asyncio.ensure_future(worker.started.wait())
            await asyncio.wait([started, self._running[0][1]], return_when=asyncio.FIRST_COMPLETED)
            started.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(quiet=error is not None)

    async def _close(self, *, quiet: bool) -> None:
        self._crashes.disarm()
        if self.app.virtual_time is not None:
            self.app.virtual_time.hold_at(None)
        client, self._client = self._client, None
        running, self._running = self._running, []
        try:
            if client is not None:
                await client.close()
            for worker, _, _ in running:
                worker.request_stop()
            ended = await asyncio.gather(*(task for _, task, _ in running), return_exceptions=True)
        finally:
            await self.app.release()
            self.app.url, self.app.through = self._app_url, None
            if self._fresh:
                VirtualStore(self.url).discard()
        # A worker that has crashed ends by being cancelled, which is what was asked for.
        broken = [
            end
            for end, (_, _, process) in zip(ended, running, strict=True)
            if isinstance(end, BaseException) and not (process.dead and isinstance(end, asyncio.CancelledError))
        ]
        if broken and not quiet:
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

        def replace(_: Process) -> None:
            if self._client is not None:
                self.worker(**options)

        process = Process(self._crashes, replace)
        self._running.append((worker, process.start(worker.run, f"worker {worker.instance}"), process))
        return worker

    @overload
    async def run_until(self, job: Job[R], timeout: times.Duration | None = None) -> Outcome[R]: ...
    @overload
    async def run_until(self, job: Flow, timeout: times.Duration | None = None) -> FlowOutcome: ...

    async def run_until(self, job: Job[Any] | Flow, timeout: times.Duration | None = None) -> Any:
        """Run until a job, or a flow, has ended, however much time that takes on the store's clock; answers its
        outcome."""
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

    # ---- crashes

    @property
    def engine_calls(self) -> tuple[str, ...]:
        """The functions that workers of this engine called so far, in order: what `crash_after` counts."""
        return tuple(self._crashes.functions)

    @property
    def crashed(self) -> CrashPoint | None:
        """The crash that has happened since the last `crash_after`; None: not yet."""
        return self._crashes.fired

    def crash_after(self, n: int, *, before: bool = False, function: str = "") -> None:
        """Let the worker that makes the n-th engine call from now on die there: its reply is lost, its handlers are
        cancelled without a report, its leases end by themselves. A fresh worker with the same options takes over.

        before    it dies before that call is sent
        function  count calls of this one alone, as "ff_renew_many"; `engine_calls` has the names

        One crash at a time: a later `crash_after` replaces one that has not happened. What counts as an engine call:
        docs/testing.md.
        """
        if self._client is None:
            raise InvalidArgument("the engine is not open: use `async with Engine(app) as eng`")
        self._virtual_only()
        self._crashes.arm(check_point(n, "n"), "before" if before else "after", function)

    async def crash_everywhere(
        self, test: Callable[..., Awaitable[Any]], *, limit: int = CALLS_N, hung: float = HUNG_S
    ) -> CrashReport:
        """Run a test once without a crash, then again with a crash before and after each engine call it makes, each
        time on a fresh store. `test(eng)`, or `test()` where it has the engine already.

        Answers what was tried. Raises CrashesFound, an AssertionError and ExceptionGroup, that names the calls at
        which the test did not hold; what the run without a crash raises, as it is; InvalidArgument for a test with
        more than `limit` engine calls, or none. hung: seconds of real time one run may take.

        Whatever the test keeps outside the store (a list of mails sent) it must begin anew in each run.
        """
        self._virtual_only()
        check_point(limit, "limit")
        run = (lambda: test(self)) if _takes_engine(test) else test
        was_open = self._client is not None
        if was_open:
            await self._close(quiet=False)
        try:
            functions = await self._run_once(run, None, hung)
            if not functions:
                raise InvalidArgument(
                    "no worker made an engine call while the test ran, so there is nowhere to crash: submit a job and "
                    "wait for it in the test"
                )
            if len(functions) > limit:
                raise InvalidArgument(
                    f"the test makes {len(functions)} engine calls and the limit is {limit}: make it shorter, or pass "
                    f"limit={len(functions)}"
                )
            points, broken = await self._try_all(run, limit, hung)
        finally:
            if was_open:
                self._renew()
                await self._open()
        report = CrashReport(functions, tuple(points))
        if broken:
            raise CrashesFound.of(report, broken)
        return report

    async def _try_all(
        self, run: Callable[[], Awaitable[Any]], limit: int, hung: float
    ) -> tuple[list[CrashPoint], list[tuple[CrashPoint, Exception]]]:
        """Until a run ends before it gets to its crash."""
        points: list[CrashPoint] = []
        broken: list[tuple[CrashPoint, Exception]] = []
        whens: tuple[When, When] = ("before", "after")
        for at in [CrashPoint(number, when) for number in range(1, limit + 1) for when in whens]:
            error: Exception | None = None
            try:
                await self._run_once(run, at, hung)
            except (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
                raise
            except Exception as failed:
                error = failed
            except BaseException as failed:  # pytest's own outcomes are no Exceptions
                error = AssertionError(str(failed))
                error.__cause__ = failed
            point = self._crashes.fired
            if point is None:
                if error is not None:
                    error.add_note(f"no worker had crashed: this run ended before call {at.number}")
                    raise error
                return points, broken
            points.append(point)
            if error is not None:
                error.add_note(f"a worker crashed {point}")
                broken.append((point, error))
        return points, broken

    async def _run_once(
        self, run: Callable[[], Awaitable[Any]], crash: CrashPoint | None, hung: float
    ) -> tuple[str, ...]:
        """One run on a fresh store; answers the functions called until the test returned."""
        self._renew()
        self._crashes = Crashes()
        if crash is not None:
            self._crashes.arm(crash.number, crash.when)
        await self._open()
        failed = True
        try:
            await _bounded(run, hung)
            failed = False
            return self.engine_calls
        finally:
            await self._close(quiet=failed)

    def _renew(self) -> None:
        """The next store is another one, or the same name with nothing in it."""
        if self._fresh:
            self.url = f"memory://engine-{secrets.token_hex(6)}"
        else:
            VirtualStore(self.url).discard()

    def _virtual_only(self) -> None:
        if not self.url.startswith("memory://"):
            raise InvalidArgument(f"{self.url} runs in real time: crashes are simulated on memory:// only")

    @property
    def _time(self) -> VirtualTime:
        time = self.app.virtual_time
        if time is None:
            raise InvalidArgument(f"{self.url} runs in real time: only memory:// has a clock that can be moved")
        return time


def _takes_engine(test: Callable[..., Any]) -> bool:
    """Whether to call it with the engine."""
    try:
        inspect.signature(test).bind()
    except TypeError:
        return True
    return False


async def _bounded(run: Callable[[], Awaitable[Any]], seconds: float) -> None:
    """Await it, for so much real time at most: the loop's own clock is virtual, and stands still if nothing is due."""
    loop, test = asyncio.get_running_loop(), run()
    if not inspect.isawaitable(test):
        raise InvalidArgument(f"the test answered {test!r:.60}: pass an async function, to be called once per crash")
    task = asyncio.ensure_future(test)
    hung = threading.Event()

    def end() -> None:
        hung.set()
        loop.call_soon_threadsafe(task.cancel)

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    watch.start()
    try:
        await task
    except asyncio.CancelledError:
        if not hung.is_set():
            raise
        raise TimeoutError(f"the test did not end within {seconds:g} s: it waits for what does not come") from None
    finally:
        watch.cancel()
        watch.join()


try:
    import pytest
except ImportError:  # users without pytest import Engine alone
    pass
else:

    @pytest.fixture
    def ff_engine() -> type[Engine]:
        """``async with ff_engine(app) as eng``: see `ffsdk.testing.Engine`."""
        return Engine
