"""Virtual time: the store's clock of a memory:// app, moved on whenever its loop has nothing left to do.

The rule: before the clock jumps, everything due by now has been done and everybody who polls has looked again, so
a jump never goes past something that would have happened. What it skips to is due in the store or a timer of the loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from ffcore.errors import EngineBug, InvalidArgument, Unavailable
from ffengine.post import Post
from ffengine.schedules import fire
from ffsdk.connect import VirtualStore
from ffsdk.pace import VirtualPace

if TYPE_CHECKING:
    from ffcore.backend import Backend

TICKER = "virtual-time"
ROUNDS_N = 10_000
"""Ticks of one instant before something is found to be due for ever."""
FAMILIES = ("fp", "b", "q", "w")


class Skipper(Protocol):
    ceiling_ms: int | None

    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None: ...
    async def reach(self, at_ms: int) -> None: ...


class VirtualTime:
    """Time of one memory store, driven by the running loop."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._store, self._post = backend, VirtualStore(backend.url), Post(backend)
        self._partitions = [key for family in FAMILIES for key in backend.config.keys(family)]
        self.pace = VirtualPace()
        """Polls of this loop wait on it: nudged at each standstill."""
        self._skipper: Skipper | None = None

    async def start(self) -> bool:
        """Begin to skip idle time. False if another loop does it already: then this one lives in real time."""
        skipper = self._store.skipper(self._standstill, ceiling_ms=None)
        try:
            await skipper.__aenter__()
        except InvalidArgument:
            return False
        self._skipper = skipper
        return True

    async def stop(self) -> None:
        """Back to real time. Raises what went wrong while skipping."""
        skipper, self._skipper = self._skipper, None
        if skipper is not None:
            await skipper.__aexit__(None, None, None)

    @property
    def now_ms(self) -> int:
        return self._store.clock.now_ms

    def hold_at(self, at_ms: int | None) -> None:
        """Let time pass no further than this by itself; None: let it pass."""
        self._running().ceiling_ms = at_ms

    async def reach(self, at_ms: int) -> None:
        """Let time pass up to an instant, through everything due on the way."""
        await self._running().reach(at_ms)
        await self._tick()  # retention too, which is nothing to stop for

    def _running(self) -> Skipper:
        if self._skipper is None:
            raise Unavailable("virtual time does not run here: another loop moves this store's clock", code="closed")
        return self._skipper

    # ---- what the skipper asks when the loop is idle

    async def _standstill(self) -> int | None:
        """Do what is due, let everybody look, and say what is due next."""
        for _ in range(ROUNDS_N):
            soonest = await self._store.soonest(self._backend)
            if soonest is not None and soonest <= self.now_ms and await self._tick():
                self.pace.nudge()
                await settle()
                continue
            self.pace.nudge()
            await settle()
            again = await self._store.soonest(self._backend)
            if again is None or again > self.now_ms:
                return again
            if again == soonest:
                # A lease in its grace: due, but not yet to be ended. The store says when to look again.
                return await self._next_look()
        raise EngineBug(f"something in {self._backend.url} stays due at {self.now_ms}")

    async def _tick(self) -> int:
        from ffcore.contracts.upkeep import TickArgs

        answer = await self._backend.call(TickArgs(partitions=self._partitions, ticker=TICKER, limit=1000, force=True))
        await asyncio.gather(*(self._post.deliver(row.partition, row.owed) for row in answer.partitions if row.owed))
        fired = await asyncio.gather(*(fire(self._backend, row) for row in answer.partitions if row.schedules))
        return sum(row.done + row.reaped for row in answer.partitions) + sum(one.done for one in fired)

    async def _next_look(self) -> int:
        from ffcore.contracts.upkeep import TickArgs

        answer = await self._backend.call(TickArgs(partitions=self._partitions, ticker=TICKER, force=True))
        return max(self.now_ms + 1, min(row.next_due_ms for row in answer.partitions))


async def settle() -> None:
    """Let the loop run until nothing is left that could run without waiting."""
    ready: Any = getattr(asyncio.get_running_loop(), "_ready")  # noqa: B009  asyncio has no public name for it
    while True:
        await asyncio.sleep(0)
        if not ready:
            return
