"""Many callers, one connection: calls made in one turn of the event loop leave in one write
(the first at once, where nothing is in flight); none is sent twice.

A call is first `queued` (this turn), perhaps `held` (no room or no connection), then in flight. A held call was
never sent, so it survives a reconnect; a call in flight does not: it fails with `may_have_applied=True`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import deque
from typing import Final, NamedTuple

from ffbackend_valkey.connection import CONNECT_TIMEOUT_S, Link, Reply, Word, backoff, open_link, pack
from ffbackend_valkey.url import Target
from ffcore.errors import EngineBug, EngineError, Unavailable

_TICKS: Final = 8
"""The oldest call may wait this many ticks of the sweep. Ticks are counted, not seconds, so that a process that
was stopped for a minute does not take its own pause for the server's."""
_CHUNK_BYTES: Final = 256 * 1024
"""Held calls leave in pieces of this size, so that a slow server fills the queue rather than the socket buffer."""
_KNOWN_NAMES: Final = 512

_UNFIT: Final = frozenset({
    # These hold up everybody behind them.
    "BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF", "MONITOR",
    # These turn the connection into something else.
    "SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "SYNC", "PSYNC",
    # These change what other callers' commands mean.
    "MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", "SELECT", "AUTH", "HELLO", "RESET", "QUIT", "READONLY", "READWRITE",
    "ASKING",
})
_DEPENDS: Final = {"XREAD": "BLOCK", "XREADGROUP": "BLOCK", "CLIENT": "REPLY"}
"""Unfit only with this word among the options."""

_harmless: set[Word] = set()
"""Names as callers spell them that were looked at and found fit: one set lookup per call instead of an upper()."""


class _Held(NamedTuple):
    packed: bytes
    caller: asyncio.Future[Reply]
    since: float


class Multiplexer:
    """One server, one event loop. Use `open`; every method belongs to the loop's thread."""

    def __init__(
        self, target: Target, *, role: str = "calls", timeout: float = 30.0, connect_timeout: float = CONNECT_TIMEOUT_S,
        max_in_flight: int = 10_000, max_queued: int = 100_000,
    ) -> None:
        self.target = target
        self._role = role
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._closed = False
        self._queued: list[bytes] = []
        self._callers: list[asyncio.Future[Reply]] = []
        self._held: deque[_Held] = deque()
        self._room = max_queued
        """How many calls this turn may still queue; 0 once closed."""
        self._crowd: deque[asyncio.Future[None]] = deque()
        self._down_since = self._loop.time()
        self._attempts = 0
        self._why: EngineError | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._marks: deque[int] = deque(maxlen=_TICKS)
        self._sweeping: asyncio.TimerHandle | None = None
        self._expiring: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls, target: Target, *, role: str = "calls", timeout: float = 30.0, connect_timeout: float = CONNECT_TIMEOUT_S,
        max_in_flight: int = 10_000, max_queued: int = 100_000,
    ) -> Multiplexer:
        """Connect, or raise why not: the first connection is not retried, so that a wrong URL is told at once.

        timeout: seconds the oldest call may wait for its reply before the connection counts as broken.
        connect_timeout: seconds a call may wait for a connection.
        """
        self = cls(
            target, role=role, timeout=timeout, connect_timeout=connect_timeout, max_in_flight=max_in_flight,
            max_queued=max_queued,
        )
        self._adopt(await open_link(target, role=role, connect_timeout=connect_timeout))
        return self

    def start(self) -> None:
        """Connect in the background, instead of `open`: for a node that others named, which may well be away."""
        self._reconnecting = self._loop.create_task(self._reconnect(), name=f"ff connect {self.target.display}")

    @property
    def connected(self) -> bool:
        return self._link is not None

    @property
    def in_flight(self) -> int:
        return len(self._link.waiting) if self._link is not None else 0

    @property
    def away(self) -> bool:
        """Not connected, and the last attempt to connect failed."""
        return self._link is None and self._why is not None

    @property
    def answered(self) -> int:
        """Replies of the present connection: stands still while the server does."""
        return self._link.sent - len(self._link.waiting) if self._link is not None else 0

    @property
    def queued(self) -> int:
        """Calls that have not left yet."""
        return len(self._queued) + len(self._held)

    def call(self, *command: Word) -> asyncio.Future[Reply]:
        """Send one command; the future gets its raw reply or an EngineError. Cancelling it disturbs nobody else.

        An unfit command (blocking, or changing the connection) raises EngineBug here.
        """
        if command[0] not in _harmless:
            _examine(command)
        packed = pack(command)
        caller = self._loop.create_future()
        queued = self._queued
        if len(queued) >= self._room:
            caller.set_exception(self._no_room())
            return caller
        if not queued:
            link = self._link
            if link is not None and not link.waiting and link.writable and not self._held:
                # An idle connection: nothing to fold with yet, and a turn of the loop would be a good part of the wait.
                link.send(packed, (caller,))
                return caller
            self._loop.call_soon(self._flush)
        queued.append(packed)
        self._callers.append(caller)
        return caller

    async def acall(self, *command: Word) -> Reply:
        """Like `call`, but wait until there is room in flight: for producers that could outrun the server."""
        while not self._closed and self.in_flight + self.queued >= self._max_in_flight:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._crowd.append(waiter)
            if self._link is not None:
                self._link.starved = True
            try:
                await waiter
            except asyncio.CancelledError:
                self._pump()  # the room that was offered here goes to the next in line
                raise
        return await self.call(*command)

    def call_asking(self, *command: Word) -> asyncio.Future[Reply]:
        """Send one command to a node that is taking over its slot, with the ASKING it wants before it in the same
        write, so that nobody else's command comes between. It leaves now or fails (it has not left)."""
        caller: asyncio.Future[Reply] = self._loop.create_future()
        link = self._link
        if link is None or not link.writable:
            caller.set_exception(Unavailable(f"not connected to {self.target.display}", may_have_applied=False))
            return caller
        leave: asyncio.Future[Reply] = self._loop.create_future()
        leave.add_done_callback(_seen)
        link.send(pack(("ASKING",)) + pack(command), (leave, caller))
        return caller

    def turn_away(self, why: EngineError) -> None:
        """Fail what has not left: this server is no longer the one for it."""
        unsent = [*(held.caller for held in self._held), *self._callers]
        self._held.clear()
        self._queued, self._callers = [], []
        for caller in unsent:
            if not caller.done():
                caller.set_exception(copy.copy(why))
        self._pump()

    def hang_up(self, why: str) -> None:
        """Drop the connection: what is in flight fails, and may have applied. A new one is opened."""
        if self._link is not None:
            self._link.kill(why)

    async def close(self) -> None:
        """Fail what is in flight (it may have applied) and what has not left (it has not), then hang up."""
        self._closed = True
        self._room = 0
        for timer in (self._sweeping, self._expiring):
            if timer is not None:
                timer.cancel()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting
        self.turn_away(_closed())
        self._wake(len(self._crowd))
        link, self._link = self._link, None
        if link is not None:
            link.kill("the connection was closed by this process")
            await link.gone

    # ------------------------------------------------------------------------------------------------ sending

    def _flush(self) -> None:
        packed, callers = self._queued, self._callers
        self._queued, self._callers = [], []
        link = self._link
        if (
            link is not None and link.writable and not self._held
            and len(link.waiting) + len(callers) <= self._max_in_flight
        ):
            link.send(b"".join(packed), callers)
            return
        now = self._loop.time()
        self._held.extend(_Held(words, caller, now) for words, caller in zip(packed, callers, strict=True))
        self._pump()

    def _pump(self) -> None:
        """Send what is held as far as there is room, then let waiting producers in."""
        held, link = self._held, self._link
        if link is None:
            self._expect_expiry()
        while link is not None and held and link.writable:
            room = self._max_in_flight - len(link.waiting)
            size, chunk, callers = 0, list[bytes](), list[asyncio.Future[Reply]]()
            while held and len(chunk) < room and size < _CHUNK_BYTES:
                packed, caller, _ = held.popleft()
                if caller.done():  # cancelled before it left: never sent
                    continue
                size += len(packed)
                chunk.append(packed)
                callers.append(caller)
            if not chunk:
                break
            link.send(b"".join(chunk), callers)
        if not self._closed:
            self._room = self._max_queued - len(held)
        self._wake(self._max_in_flight - self.in_flight - self.queued)
        if link is not None:
            link.starved = bool(held or self._crowd)

    def _wake(self, places: int) -> None:
        while places > 0 and self._crowd:
            waiter = self._crowd.popleft()
            if not waiter.done():
                waiter.set_result(None)
                places -= 1

    def _no_room(self) -> EngineError:
        if self._closed:
            return _closed()
        return Unavailable(
            f"{self._max_queued} calls are queued already; slow down, or use acall, which waits for room",
            code="overloaded", may_have_applied=False,
        )

    # --------------------------------------------------------------------------------------------- connecting

    def _adopt(self, link: Link) -> None:
        link.on_lost = self._lost
        link.on_room = self._pump
        self._link, self._why = link, None
        self._marks.clear()
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(self._timeout / _TICKS, self._sweep)
        if link.dead:  # it died between the greeting and now
            self._lost(link)
        else:
            self._pump()

    def _lost(self, link: Link) -> None:
        if self._link is not link:
            return
        self._link = None
        self._down_since = self._loop.time()
        if link.answered_any:  # else the server accepts and hangs up: keep backing off
            self._attempts = 0
        if not self._closed:
            self._expect_expiry()
            self._reconnecting = self._loop.create_task(self._reconnect(), name=f"ff reconnect {self.target.display}")

    async def _reconnect(self) -> None:
        while True:
            if self._attempts:
                await asyncio.sleep(backoff(self._attempts - 1))
            self._attempts += 1
            try:
                link = await open_link(self.target, role=self._role, connect_timeout=self._connect_timeout)
            except EngineError as why:
                self._why = why
                if not isinstance(why, Unavailable):  # a changed password, say: waiting longer does not help
                    self._give_up(len(self._held))
                continue
            self._adopt(link)
            return

    def _expect_expiry(self) -> None:
        if self._held and self._expiring is None and not self._closed:
            self._expiring = self._loop.call_at(self._deadline(self._held[0]), self._expire)

    def _deadline(self, held: _Held) -> float:
        return max(held.since, self._down_since) + self._connect_timeout

    def _expire(self) -> None:
        self._expiring = None
        if self._link is not None:
            return
        now, overdue = self._loop.time(), 0
        for held in self._held:
            if self._deadline(held) > now:
                break
            overdue += 1
        self._give_up(overdue)
        self._expect_expiry()

    def _give_up(self, count: int) -> None:
        """Fail the oldest held calls: they never left."""
        why = self._why or Unavailable(f"no connection to {self.target.display} in {self._connect_timeout:g} s")
        for _ in range(count):
            caller = self._held.popleft().caller
            if not caller.done():
                caller.set_exception(copy.copy(why))
        self._pump()

    def _sweep(self) -> None:
        """Find a server that stopped answering: what was sent a full timeout ago must have been answered."""
        link, marks = self._link, self._marks
        if link is not None:
            if len(marks) == _TICKS and link.sent - len(link.waiting) < marks[0]:
                link.kill(f"no answer from {self.target.display} within {self._timeout:g} s")
            else:
                marks.append(link.sent)
        self._sweeping = None if self._closed else self._loop.call_later(self._timeout / _TICKS, self._sweep)


def _seen(reply: asyncio.Future[Reply]) -> None:
    """Nobody waits for it: its failure is the next command's too."""
    if not reply.cancelled():
        reply.exception()


def _closed() -> Unavailable:
    return Unavailable("the connection is closed", code="closed", may_have_applied=False)


def _examine(command: tuple[Word, ...]) -> None:
    name = _upper(command[0])
    if name in _UNFIT:
        raise EngineBug(f"{name} may not run on a shared connection: it would hold up or change every other call")
    word = _DEPENDS.get(name)
    if word is not None:
        # The option comes before the keys, but a key may be spelled like it; such a call is refused as well.
        if any(_upper(option) == word for option in command[1:]):
            raise EngineBug(f"{name} with {word} may not run on a shared connection")
    elif len(_harmless) < _KNOWN_NAMES:
        _harmless.add(command[0])


def _upper(word: Word) -> str:
    return (word.decode("ascii", "replace") if isinstance(word, bytes) else str(word)).upper()
