"""Crash points for tests of users' code: a worker that dies at a chosen engine call, and what is told of it.

A worker's process is simulated by what it can reach: its calls go through a `Process`, and once that is dead
nothing of it reaches the store again. Its handlers are cancelled and report nothing; its leases end by themselves.
What counts as an engine call is said in docs/testing.md and decided in `counts`.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from ffcore.args import Args
from ffcore.contracts.reads import ListCapabilitySetsArgs
from ffcore.contracts.roster import AnnounceTasksArgs, PublishTasksArgs, RegisterWorkerArgs
from ffcore.errors import EngineError, InvalidArgument, Unavailable
from ffsdk.forwarding import Forwarding

if TYPE_CHECKING:
    from ffcore.backend import Backend, BlockingCalls, Subscription

R = TypeVar("R")
When = Literal["before", "after"]
ABOUT_ITSELF: Final = (RegisterWorkerArgs, PublishTasksArgs, AnnounceTasksArgs, ListCapabilitySetsArgs)
"""What a worker says and learns about itself. Time paces it, not the jobs, and it is repeated anyway."""


def counts(args: Args[Any]) -> bool:
    """Whether a call is one of those that are numbered."""
    return not isinstance(args, ABOUT_ITSELF)


@dataclasses.dataclass(frozen=True)
class CrashPoint:
    """A place at which a worker dies."""

    number: int
    """Of the engine call, counted from 1."""
    when: When
    """before: the call is never sent. after: it has taken effect, its reply is lost."""
    function: str = ""
    """Of the call; empty until a worker got there."""

    def __str__(self) -> str:
        return f"{self.when} call {self.number}" + (f", {self.function}" if self.function else "")


class Crashes:
    """The engine calls of all workers of one engine, in order, and at most one crash that waits for its call."""

    def __init__(self) -> None:
        self.functions: list[str] = []
        """Names of the functions called so far."""
        self._at: CrashPoint | None = None
        self._only = ""
        self._left = 0
        self.fired: CrashPoint | None = None
        """The crash that has happened."""

    def arm(self, number: int, when: When, function: str = "") -> None:
        """Crash at the `number`-th call from now on, of that function alone if one is named."""
        self._at, self._only, self._left, self.fired = CrashPoint(number, when), function, number, None

    def disarm(self) -> None:
        self._at = None

    def next(self, function: str) -> When | None:
        """Number one more call; says whether its process is to die before or after it."""
        self.functions.append(function)
        at = self._at
        if at is None or self._only not in ("", function):
            return None
        self._left -= 1
        if self._left:
            return None
        self._at, self.fired = None, dataclasses.replace(at, function=function)
        return at.when


class Process:
    """One simulated process: a worker, its handlers, and the clients those open."""

    def __init__(self, crashes: Crashes, on_death: Callable[[Process], None]) -> None:
        self.crashes, self._on_death = crashes, on_death
        self.dead = False
        self._buried = False
        self._stuck: set[asyncio.Future[None]] = set()
        self._main: asyncio.Task[None] | None = None

    def start(self, run: Callable[[], Any], name: str) -> asyncio.Task[None]:
        """Run the worker's coroutine as this process: every store it opens from now on is reached through it."""
        context = contextvars.copy_context()
        context.run(_process.set, self)
        self._main = asyncio.get_running_loop().create_task(run(), name=name, context=context)
        self._main.add_done_callback(self._bury)
        return self._main

    def die(self) -> None:
        """From here on nothing this process does reaches the store, and nothing is told to it."""
        if self.dead:
            return
        self.dead = True
        assert self._main is not None
        self._main.cancel()
        self._on_death(self)

    def _bury(self, _: asyncio.Task[None]) -> None:
        # What handlers left running waits for a reply that never comes: it must not outlive the loop.
        self._buried = True
        for stuck in tuple(self._stuck):
            stuck.cancel()

    async def silence(self) -> None:
        """What a call of a dead process gets: no reply, until its task is ended."""
        # The worker's own task is the one that ends the others, so it does not wait.
        if self._buried or asyncio.current_task() is self._main:
            raise asyncio.CancelledError("the process of this worker has crashed")
        stuck: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stuck.add(stuck)
        try:
            await stuck
        finally:
            self._stuck.discard(stuck)


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("ff_process", default=None)


def through_process(backend: Backend) -> Backend:
    """The store as the running process sees it; as it is for everybody who is none, such as the test itself."""
    process = _process.get()
    return backend if process is None else _Seen(backend, process)


class _Seen(Forwarding):
    """A Backend that counts its calls, and falls silent when its process dies."""

    def __init__(self, backend: Backend, process: Process) -> None:
        super().__init__(backend)
        self._process = process

    async def call(self, args: Args[R]) -> R:
        process = self._process
        if process.dead:
            await process.silence()
        when = process.crashes.next(args.function()) if counts(args) else None
        if when == "before":
            process.die()
            await process.silence()
        answer: R | EngineError
        try:
            answer = await self._backend.call(args)
        except EngineError as refused:
            answer = refused
        finally:
            if when == "after":
                process.die()
        # A crash elsewhere in the process while this call was under way loses its reply too, also a refusal.
        if process.dead:
            await process.silence()
        if isinstance(answer, EngineError):
            raise answer
        return answer

    async def subscribe(
        self, channels: Sequence[str], on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None] | None = None,
    ) -> Subscription:  # fmt: skip
        def heard(channel: str, data: bytes) -> None:
            if not self._process.dead:
                on_message(channel, data)

        return await self._backend.subscribe(channels, heard, on_gap)

    def blocking(self) -> BlockingCalls:
        return _SeenByThread(self._backend.blocking(), self._process)

    async def close(self) -> None:
        """The engine closes what is below."""


class _SeenByThread:
    """A thread's calls (lease renewals, on a real server): not crash points, and over when the process is dead."""

    def __init__(self, calls: BlockingCalls, process: Process) -> None:
        self._calls, self._process = calls, process

    def call(self, args: Args[R]) -> R:
        if self._process.dead:
            raise Unavailable("the process of this thread has crashed", code="closed")
        return self._calls.call(args)

    def close(self) -> None:
        self._calls.close()


# ---- what crash_everywhere tells


@dataclasses.dataclass(frozen=True)
class CrashReport:
    """What `Engine.crash_everywhere` did. Text: one line for a log."""

    functions: tuple[str, ...]
    """The engine calls of the run without a crash, in order."""
    points: tuple[CrashPoint, ...]
    """The crashes tried, one per run."""

    def __str__(self) -> str:
        calls = len({point.number for point in self.points})
        return f"{len(self.points)} crash points tried: before and after each of {calls} engine calls"


class CrashesFound(ExceptionGroup[Exception], AssertionError):
    """The test did not hold at some crash points: one error for each, with a note that says where.

    report   everything that was tried
    points   the crash points that broke the test, in the order of `exceptions`
    """

    report: CrashReport
    points: tuple[CrashPoint, ...]

    @classmethod
    def of(cls, report: CrashReport, broken: Sequence[tuple[CrashPoint, Exception]]) -> CrashesFound:
        where = "; ".join(str(point) for point, _ in broken[:8]) + ("; ..." if len(broken) > 8 else "")
        said = f"{len(broken)} of {len(report.points)} crash points break the test: {where}"
        found = cls(said, [error for _, error in broken])
        found.report, found.points = report, tuple(point for point, _ in broken)
        return found

    def derive(self, excs: Sequence[Any], /) -> Any:
        """What `except*` and `split` make of a part of it: the same report, fewer errors."""
        part = CrashesFound(self.message, excs)
        part.report, part.points = self.report, self.points
        return part


def check_point(number: int, name: str) -> int:
    """A whole number from 1, or InvalidArgument."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise InvalidArgument(f"{name} is {number!r:.40}: engine calls are counted from 1")
    return number
