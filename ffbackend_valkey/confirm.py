"""Writes that count once a replica has them: calls of one turn leave together, with one WAIT behind them.

WAIT holds up its connection and looks at nothing but what that connection wrote last. So these calls have a connection
of their own, one group is under way at a time, and what comes meanwhile is the next group. A repeated call must write
something, or WAIT would vouch for what an earlier connection wrote: the library counts every replay it answers
(`fence.replayed`), which is such a write.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from ffbackend_valkey.connection import CONNECT_TIMEOUT_S, Link, Reply, Word, backoff, open_link, pack
from ffbackend_valkey.url import Target
from ffcore.errors import EngineError, Unavailable

REPLICAS: Final = 1
"""Copies that must have a write before it counts."""
WAIT_MS: Final = 1_000
"""How long a group waits for its copies; far above the lag of a healthy replica."""
GROUP_N: Final = 256
GROUP_BYTES: Final = 1024 * 1024
ANSWER_S: Final = 30.0
"""A server that has not answered a group by then counts as broken."""

UNCONFIRMED: Final = frozenset("""
    ff_claim_batch ff_tick ff_renew_lease ff_renew_many ff_pass_bell ff_await ff_await_flow
    ff_register_worker ff_announce_tasks ff_ack_outbox
""".split())
"""Writes that promise nothing which a failover could break: leases are fenced and end by themselves, what is due is
due again, registrations are said again, and an outbox row that is owed again is delivered once."""


class _Call(NamedTuple):
    packed: bytes
    caller: asyncio.Future[Reply]


class Confirming:
    """One server, one event loop. Connects with the first call, and again after a loss."""

    def __init__(
        self, target: Target, *, replicas: int = REPLICAS, wait_ms: int = WAIT_MS,
        connect_timeout: float = CONNECT_TIMEOUT_S,
    ) -> None:  # fmt: skip
        self.target = target
        self._replicas, self._wait_ms, self._connect_timeout = replicas, wait_ms, connect_timeout
        self._wait = pack(("WAIT", replicas, wait_ms))
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Call] = deque()
        self._link: Link | None = None
        self._serving: asyncio.Task[None] | None = None
        self._closed = False
        self.in_flight = 0

    def call(self, *command: Word) -> asyncio.Future[Reply]:
        """Send one write; the future gets its raw reply once the copies are made. Unavailable `not_replicated` (it
        has applied here) if too few replicas had it in time."""
        caller: asyncio.Future[Reply] = self._loop.create_future()
        if self._closed:
            caller.set_exception(_closed())
            return caller
        self._queue.append(_Call(pack(command), caller))
        if self._serving is None or self._serving.done():
            self._serving = self._loop.create_task(self._serve(), name=f"ff confirm {self.target.display}")
        return caller

    def turn_away(self, why: EngineError) -> None:
        """Fail what has not left."""
        while self._queue:
            _fail((self._queue.popleft().caller,), why)

    async def close(self) -> None:
        """Fail what has not left, and what is in flight (it may have applied), then hang up."""
        self._closed = True
        self.turn_away(_closed())
        link, self._link = self._link, None
        if link is not None:
            link.kill("the connection was closed by this process")
            await link.gone
        if self._serving is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving

    async def _serve(self) -> None:
        """Send groups until nothing is left."""
        failures, give_up = 0, self._loop.time() + self._connect_timeout
        while self._queue:
            if self._link is None:
                try:
                    link = await open_link(self.target, role="confirm", connect_timeout=self._connect_timeout)
                except EngineError as why:
                    if not isinstance(why, Unavailable) or self._loop.time() > give_up:
                        self.turn_away(why)
                        return
                    await asyncio.sleep(backoff(failures))
                    failures += 1
                    continue
                if self._closed:
                    link.kill("the connection was closed by this process")
                    return
                link.on_lost = self._lost
                self._link = link
            await self._send(self._link, self._take())
            failures, give_up = 0, self._loop.time() + self._connect_timeout

    def _take(self) -> list[_Call]:
        group, size = list[_Call](), 0
        while self._queue and len(group) < GROUP_N and size < GROUP_BYTES:
            call = self._queue.popleft()
            if not call.caller.done():  # cancelled before it left
                group.append(call)
                size += len(call.packed)
        return group

    async def _send(self, link: Link, group: list[_Call]) -> None:
        if not group:
            return
        replies: list[asyncio.Future[Reply]] = [self._loop.create_future() for _ in group]
        copies: asyncio.Future[Reply] = self._loop.create_future()
        if link.dead:
            _fail([call.caller for call in group], Unavailable("the connection was lost", may_have_applied=False))
            return
        self.in_flight = len(group)
        link.send(b"".join(call.packed for call in group) + self._wait, (*replies, copies))
        done, _ = await asyncio.wait((copies,), timeout=ANSWER_S)
        if not done:
            link.kill(f"no answer from {self.target.display} within {ANSWER_S:g} s")
        self.in_flight = 0
        self._settle(group, replies, copies)

    def _settle(
        self, group: list[_Call], replies: Sequence[asyncio.Future[Reply]], copies: asyncio.Future[Reply]
    ) -> None:
        lost = copies.exception()
        short = lost is None and copies.result() < self._replicas
        for call, reply in zip(group, replies, strict=True):
            refused = reply.exception()
            caller = call.caller
            if caller.done():
                continue
            if refused is not None:
                caller.set_exception(refused)
            elif lost is None and (not short or _wrote_nothing(reply.result())):
                caller.set_result(reply.result())
            else:
                caller.set_exception(self._doubt(copies))

    def _doubt(self, copies: asyncio.Future[Reply]) -> Unavailable:
        lost = copies.exception()
        if lost is not None:
            return Unavailable(f"whether a replica has it is not known: {lost}", may_have_applied=True)
        return Unavailable(
            f"{copies.result()} of {self._replicas} replicas of {self.target.display} had it in {self._wait_ms} ms; "
            "it stands on the primary alone",
            code="not_replicated", may_have_applied=True,
        )  # fmt: skip

    def _lost(self, link: Link) -> None:
        if self._link is link:
            self._link = None


def _wrote_nothing(reply: Reply) -> bool:
    """A refusal is data, and true whatever the replicas have."""
    return isinstance(reply, list) and cast("list[object]", reply)[:1] == [b"error"]


def _fail(callers: Sequence[asyncio.Future[Reply]], why: EngineError) -> None:
    for caller in callers:
        if not caller.done():
            caller.set_exception(copy.copy(why))


def _closed() -> Unavailable:
    return Unavailable("the connection is closed", code="closed", may_have_applied=False)
