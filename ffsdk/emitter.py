"""Frames on their way from the handlers of a process to the store.

Frames that are ready in one turn of the loop leave in one call per partition, one call at a time, so that they are
stored in the order they were emitted; each is numbered, so a call may be repeated after a lost reply.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from weakref import WeakKeyDictionary, ref

from ffcore import ids, limits
from ffcore.contracts.stream import AppendedMany, AppendFramesArgs, NewFrame
from ffcore.errors import EngineBug, EngineError, Unavailable, alike, rejection

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.ids import ExecutionId, PartitionKey

Mode = Literal["append", "best_effort"]
AWAY_S: Final = 0.2
"""Pause before a call is repeated while the store does not answer."""
LATE_S: Final = 0.25
"""A best-effort frame that has not left by then never does."""


_ops = itertools.count(1)
"""Numbers rise within every lease, because a lease is held by one process."""


class _Waiting(NamedTuple):
    frame: NewFrame
    caller: asyncio.Future[None]


class Emitter:
    """Frames on their way to one store. Belongs to one event loop."""

    def __init__(self, call: Callable[[AppendFramesArgs], Coroutine[Any, Any, AppendedMany]]) -> None:
        self._call = call
        self._ready: dict[PartitionKey, deque[_Waiting]] = {}
        self._busy: set[PartitionKey] = set()
        """Partitions with a call booked or under way."""
        self._tasks: set[asyncio.Task[None]] = set()

    def put(
        self, execution_id: ExecutionId, fence: str, type: str, mode: Mode, raw: bytes, encoding: str | None
    ) -> asyncio.Future[None]:
        """Queue a frame. The future ends when it is stored; for a best-effort frame, when it was sent or given up."""
        loop = asyncio.get_running_loop()
        caller: asyncio.Future[None] = loop.create_future()
        partition = ids.partition_of(execution_id)
        ready = self._ready.get(partition)
        if ready is None:
            ready = self._ready[partition] = deque()
        ready.append(_Waiting(NewFrame(execution_id, fence, next(_ops), type, mode, raw, encoding), caller))
        if partition not in self._busy:
            self._busy.add(partition)
            loop.call_soon(self._depart, partition)
        elif mode == "best_effort":
            late = loop.call_later(LATE_S, _give_up, caller)
            caller.add_done_callback(lambda _: late.cancel())
        return caller

    def _depart(self, partition: PartitionKey) -> None:
        """The end of a turn of the loop: send what is ready, up to one call's worth."""
        ready, some, bytes_n = self._ready[partition], list[_Waiting](), 0
        while ready and len(some) < limits.ROWS_N:
            if ready[0].caller.done():  # who was cancelled before it left, never leaves
                ready.popleft()
                continue
            bytes_n += len(ready[0].frame.payload)
            if some and bytes_n > limits.BATCH_BYTES:
                break
            some.append(ready.popleft())
        if not some:
            self._busy.discard(partition)
            del self._ready[partition]
            return
        task = asyncio.get_running_loop().create_task(self._carry(partition, some))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, partition: PartitionKey, some: list[_Waiting]) -> None:
        for one in some:
            if one.frame.mode == "best_effort" and not one.caller.done():
                one.caller.set_result(None)  # the call leaves in this turn, before what the handler does next
        try:
            answer = await self._send(AppendFramesArgs(partition=partition, items=[one.frame for one in some]))
            for one, item in zip(some, answer.items, strict=True):
                if one.caller.done():
                    continue
                if item.state == "error":
                    refused = rejection(item.detail, item.text, asked="emit", about=one.frame.execution_id)
                    one.caller.set_exception(refused)
                else:
                    one.caller.set_result(None)
        except EngineError as failed:
            _fail(some, failed)
        except asyncio.CancelledError:
            # The loop is being torn down, and every task in it.
            _fail(some, Unavailable("the frame was under way when the loop ended", may_have_applied=True))
            raise
        except Exception as broken:
            _fail(some, EngineBug(f"emitting broke: {type(broken).__name__}: {broken}"))
        finally:
            # Behind those who were just answered: what they emit next leaves with it.
            asyncio.get_running_loop().call_soon(self._depart, partition)

    async def _send(self, args: AppendFramesArgs) -> AppendedMany:
        """The answer, however long the store is away: operation numbers make it safe to ask again."""
        while True:
            try:
                return await self._call(args)
            except Unavailable as away:
                if away.code == "closed":
                    raise
                await asyncio.sleep(AWAY_S)


def _give_up(caller: asyncio.Future[None]) -> None:
    if not caller.done():
        caller.set_result(None)


def _fail(some: list[_Waiting], failed: EngineError) -> None:
    """Everybody gets an error of his own."""
    for one in some:
        if not one.caller.done():
            one.caller.set_exception(alike(failed))


_emitters: WeakKeyDictionary[Backend, Emitter] = WeakKeyDictionary()


def emitter_of(backend: Backend) -> Emitter:
    """The one emitter of a backend, so that the frames of all its handlers fold."""
    found = _emitters.get(backend)
    if found is None:
        # Not the backend's own method: that would keep it alive for ever.
        weak = ref(backend)

        async def call(args: AppendFramesArgs) -> AppendedMany:
            alive = weak()
            if alive is None:
                raise Unavailable("the store was closed", code="closed")
            return await alive.call(args)

        found = _emitters[backend] = Emitter(call)
    return found
