"""Virtual time: a clock for memory stores, and the skipping of a loop's idle time.

The rule kept here: time moves only when nothing can happen without it. A loop is idle when its next step
would be to sleep; then, and only then, the clock jumps to the earliest thing that is due, so a test that
waits thirty days takes no longer than its callbacks do, and passes every due instant in order.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

from ffcore.errors import Incompatible, InvalidArgument

IO_GRACE_S: Final = 0.02
"""Real time granted to sockets of the program itself before an idle loop is believed."""

PARKED_S: Final = 0.25
"""How often, in real time, a loop with nothing due asks again: another thread may have made something due."""


class VirtualClock:
    """The time of one memory server, in milliseconds since 1970.

    It follows the wall clock, plus whatever was skipped, until `freeze`; frozen, it moves only by `advance`.
    It never runs back. Safe to use from any thread.
    """

    def __init__(self, start_ms: int | None = None) -> None:
        """`start_ms` freezes the clock at that instant from the beginning."""
        self._lock = threading.Lock()
        self._frozen = start_ms is not None
        self._now_ms = start_ms if start_ms is not None else _wall_ms()
        self._ahead_ms = 0
        self._held_n = 0
        self._wake: Callable[[], None] | None = None

    @property
    def now_ms(self) -> int:
        with self._lock:
            return self._read()

    @property
    def frozen(self) -> bool:
        return self._frozen

    @property
    def held(self) -> bool:
        """Whether work is going on that the event loop cannot see."""
        return self._held_n > 0

    def freeze(self) -> None:
        """Stop following the wall clock."""
        with self._lock:
            self._read()
            self._frozen = True

    def follow(self) -> None:
        """Follow the wall clock again, from the time it is now."""
        with self._lock:
            self._ahead_ms = self._read() - _wall_ms()
            self._frozen = False

    def advance(self, ms: int) -> int:
        """Skip `ms` milliseconds ahead and return the new time."""
        if ms < 0:
            raise InvalidArgument(f"time does not run back: advance({ms}) must not be negative")
        with self._lock:
            self._read()
            self._ahead_ms += ms
            self._now_ms += ms
            return self._now_ms

    @contextmanager
    def hold(self) -> Generator[None, None, None]:
        """Skip nothing meanwhile: time passes at its real pace. For work in threads and other processes."""
        with self._lock:
            self._held_n += 1
        try:
            yield
        finally:
            with self._lock:
                self._held_n -= 1
                wake = self._wake if self._held_n == 0 else None
            if wake is not None:
                wake()

    def attach(self, wake: Callable[[], None]) -> None:
        """For the one loop that skips this clock's idle time: `wake` is called when the last hold ends."""
        with self._lock:
            if self._wake is not None:
                raise InvalidArgument("another event loop already skips this clock's idle time; stop that one first")
            self._wake = wake

    def detach(self) -> None:
        with self._lock:
            self._wake = None

    def _read(self) -> int:
        if not self._frozen:
            self._now_ms = max(self._now_ms, _wall_ms() + self._ahead_ms)
        return self._now_ms


class IdleSkipper:
    """Skips the idle time of the loop it is entered in (`async with`), and with it a clock's.

    While entered, `loop.time()` is the clock, so timers, `asyncio.sleep` and timeouts are virtual too.
    When the loop is idle the clock jumps to the earliest of its timers and `next_due()` (milliseconds, None
    for nothing; it must not sleep), but never past `ceiling_ms`. Work in threads started by the loop
    (`asyncio.to_thread`) holds the clock, and time passes at its real pace until it ends; other work the
    loop cannot see must be wrapped in `clock.hold()`.

    Deterministic as long as nothing but the loop's own callbacks is involved. Needs asyncio's own selector
    loop: it watches that loop's selector, the one place that knows when a loop is about to sleep.
    """

    def __init__(
        self,
        clock: VirtualClock,
        next_due: Callable[[], Awaitable[int | None]] | None = None,
        *,
        ceiling_ms: int | None = None,
    ) -> None:
        self.clock = clock
        self.ceiling_ms = ceiling_ms
        """Skip no further than this; None: no limit. `reach` raises it."""
        self._next_due = next_due
        self._idle: asyncio.Future[None] | None = None
        self._reached: list[tuple[int, asyncio.Future[None]]] = []
        self._parked = False
        self._flowed_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> IdleSkipper:
        loop: Any = asyncio.get_running_loop()
        if not hasattr(loop, "_selector") or not hasattr(loop, "_scheduled"):
            raise Incompatible(
                f"virtual time needs asyncio's selector event loop, and {type(loop).__name__} runs: "
                f"use asyncio.run without another loop policy, or a store in real time"
            )
        self.clock.attach(lambda: _poke(loop))
        self._was_frozen = self.clock.frozen
        self.clock.freeze()
        self._loop = loop
        self._selector = loop._selector
        self._own_fds = len(self._selector.get_map())
        start_s, start_ms = loop.time(), self.clock.now_ms
        loop._selector = _WatchedSelector(self._selector, self._about_to_sleep)
        loop.time = lambda: start_s + (self.clock.now_ms - start_ms) / 1000
        self._run_in_executor = loop.run_in_executor
        loop.run_in_executor = self._hold_while_in_executor
        self._task = asyncio.create_task(self._skip(), name="skip idle time")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        loop = self._loop
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        loop._selector = self._selector
        # Continue from the time reached: timers already set must neither fire at once nor a month late.
        ahead_s = loop.time() - time.monotonic()
        loop.time = lambda: time.monotonic() + ahead_s
        del loop.run_in_executor
        if not self._was_frozen:
            self.clock.follow()
        self.clock.detach()
        if self._task is not None and not self._task.cancelled() and (broken := self._task.exception()):
            raise broken

    async def reach(self, at_ms: int) -> None:
        """Let time pass up to `at_ms`, in order, and return when everything due by then has been done."""
        reached: asyncio.Future[None] = self._loop.create_future()
        self._reached.append((at_ms, reached))
        if self.ceiling_ms is not None:
            self.ceiling_ms = max(self.ceiling_ms, at_ms)
        self._parked = False
        await reached

    async def _skip(self) -> None:
        try:
            while True:
                idle: asyncio.Future[None] = self._loop.create_future()
                self._idle = idle
                await idle
                self._idle = None
                self._jump(None if self._next_due is None else await self._next_due())
        except Exception as broken:
            # Whoever waits for a time would wait for ever.
            for _, reached in self._reached:
                if not reached.done():
                    reached.set_exception(broken)
            raise

    def _jump(self, due_ms: int | None) -> None:
        now_ms = self.clock.now_ms
        ends = [at_ms for at_ms, reached in self._reached if at_ms <= now_ms and not reached.done()]
        if ends:
            for at_ms, reached in self._reached:
                if at_ms <= now_ms and not reached.done():
                    reached.set_result(None)
            self._reached = [(at_ms, reached) for at_ms, reached in self._reached if not reached.done()]
            return
        # Something due by now that nobody acted on is not waited for: skipping to it would stand still.
        targets = [due_ms] if due_ms is not None and due_ms > now_ms else []
        timers = self._loop._scheduled
        if timers:
            # The tolerance is far below 1 ms and far above the rounding of loop.time().
            targets.append(now_ms + max(1, math.ceil((timers[0].when() - self._loop.time()) * 1000 - 1e-3)))
        targets += [at_ms for at_ms, _ in self._reached]
        target_ms = min(targets, default=now_ms)
        if self.ceiling_ms is not None:
            target_ms = min(target_ms, self.ceiling_ms)
        if target_ms > now_ms:
            self.clock.advance(target_ms - now_ms)
        else:
            self._parked = True

    def _about_to_sleep(self, timeout: float | None) -> list[Any]:
        """Stands for the selector's `select(timeout)` in a turn without ready callbacks."""
        select = self._selector.select
        if self.clock.held:
            return self._sleep_for_real(timeout)
        if len(self._selector.get_map()) > self._own_fds and (events := select(IO_GRACE_S)):
            return list(events)
        if self._parked:
            events = select(PARKED_S)
            self._parked = False
            return list(events)
        if self._idle is None:  # next_due() waits for something outside the loop
            return list(select(IO_GRACE_S))
        if not self._idle.done():
            self._idle.set_result(None)
        return []

    def _sleep_for_real(self, timeout: float | None) -> list[Any]:
        # The thread may itself wait for a timer of this loop, so time must not stand still.
        began_s = time.monotonic()
        events = self._selector.select(timeout)
        self._flowed_s += time.monotonic() - began_s
        whole_ms = int(self._flowed_s * 1000)
        self._flowed_s -= whole_ms / 1000
        self.clock.advance(whole_ms)
        return list(events)

    def _hold_while_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        hold = self.clock.hold()
        hold.__enter__()
        try:
            future: asyncio.Future[Any] = self._run_in_executor(executor, func, *args)
        except BaseException:
            hold.__exit__(None, None, None)
            raise
        future.add_done_callback(lambda _: hold.__exit__(None, None, None))
        return future


async def autoadvance(
    clock: VirtualClock, next_due: Callable[[], Awaitable[int | None]] | None = None, *, ceiling_ms: int | None = None
) -> None:
    """Skip the running loop's idle time until cancelled; see `IdleSkipper`."""
    async with IdleSkipper(clock, next_due, ceiling_ms=ceiling_ms) as skipper:
        assert skipper._task is not None
        await asyncio.shield(skipper._task)


class _WatchedSelector:
    """A loop's selector that tells when the loop is about to sleep."""

    def __init__(self, selector: Any, about_to_sleep: Callable[[float | None], list[Any]]) -> None:
        self._selector = selector
        self._about_to_sleep = about_to_sleep

    def select(self, timeout: float | None = None) -> list[Any]:
        events: list[Any] = self._selector.select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self._about_to_sleep(timeout)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._selector, name)


def _poke(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(lambda: None)
    except RuntimeError:  # the loop has ended while a thread of its was still at work
        pass


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
