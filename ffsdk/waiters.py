"""Waiting for jobs to end: one object per client, one message and one read for many of them.

Whoever waits registers with the store (one call per partition and turn of the loop) and is told on the client's
own channel; results are then fetched together. Messages are hints: every POLL_S all awaited jobs are asked for in
one batch per partition, which renews their registrations too, so a lost message costs a moment and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final

from ffcore import ids, limits
from ffcore.errors import EngineError, NotFound, Rejected, Unavailable
from ffcore.ids import ExecutionId, PartitionKey
from ffcore.states import STATES, LifecyclePhase
from ffsdk.pace import Pace

if TYPE_CHECKING:
    from ffcore.backend import Backend, Subscription
    from ffcore.contracts.reads import ExecutionOutcome

POLL_S: Final = 1.5
"""Far below the 60 s a registration lasts; seldom enough that a thousand waiters cost a few calls a second."""
TERMINAL: Final = frozenset(word for word, row in STATES.items() if row.phase is LifecyclePhase.TERMINAL)


class Waiters:
    """Futures of awaited executions. Belongs to one event loop."""

    def __init__(self, backend: Backend, name: str, pace: Pace) -> None:
        self._backend, self._name, self._pace = backend, name, pace
        self._awaited: dict[ExecutionId, asyncio.Future[ExecutionOutcome]] = {}
        self._users: dict[ExecutionId, int] = {}
        self._new: set[ExecutionId] = set()
        self._ended: set[ExecutionId] = set()
        self._subscriptions: dict[PartitionKey, asyncio.Task[Subscription]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._turn_booked = False
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, execution_id: ExecutionId) -> ExecutionOutcome:
        """How it ended, as stored; waits for as long as it takes. Cancel it to stop waiting.

        Raises NotFound for an id without a record, Unavailable when the client closes meanwhile.
        """
        if self._closed:
            raise Unavailable("the client is closed: wait inside its `async with` block", code="closed")
        future = self._awaited.get(execution_id)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            self._awaited[execution_id] = future
            self._new.add(execution_id)
            self._book_turn()
        self._users[execution_id] = self._users.get(execution_id, 0) + 1
        try:
            # Shielded: one waiter that gives up must not take the answer from the others.
            return await asyncio.shield(future)
        finally:
            self._users[execution_id] -= 1
            if self._users[execution_id] == 0:
                del self._users[execution_id]
                if self._awaited.get(execution_id) is future:
                    del self._awaited[execution_id]
                if future.done() and not future.cancelled():
                    future.exception()  # seen, even if every waiter has gone
                else:
                    future.cancel()

    async def close(self) -> None:
        """End every wait with Unavailable and unsubscribe."""
        self._closed = True
        tasks: list[asyncio.Task[Any]] = [*self._work, *self._subscriptions.values()]
        if self._poller is not None:
            tasks.append(self._poller)
        done = [task for task in self._subscriptions.values() if task.done() and not task.cancelled()]
        opened = [task.result() for task in done if task.exception() is None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._awaited.values():
            if not future.done():
                future.set_exception(Unavailable("the client was closed while waiting", code="closed"))
        await asyncio.gather(*(subscription.close() for subscription in opened), return_exceptions=True)

    # ---- one turn of the loop: register what is new, fetch what has ended

    def _book_turn(self) -> None:
        if not self._turn_booked and not self._closed:
            self._turn_booked = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_booked = False
        if self._closed:
            return
        new, self._new = self._new, set()
        ended, self._ended = self._ended, set()
        for partition, chunk in _chunks(id for id in new if id in self._awaited):
            self._spawn(self._register(partition, chunk))
        for partition, chunk in _chunks(id for id in ended if id in self._awaited):
            self._spawn(self._fetch(partition, chunk))
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _register(self, partition: PartitionKey, chunk: list[ExecutionId]) -> None:
        try:
            await self._listen(partition)
            await self._ask(partition, chunk)
        except Unavailable as away:
            if away.code == "closed":
                self._fail(chunk, away)
            # Otherwise the next poll asks again: a wait outlasts a store that restarts.
        except EngineError as refused:
            self._fail(chunk, refused)

    async def _listen(self, partition: PartitionKey) -> None:
        """Subscribe before registering: a notice sent between the two would be lost."""
        task = self._subscriptions.get(partition)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            channel = self._backend.client_channel(partition, self._name)
            opening = self._backend.subscribe([channel], self._heard_in(partition), self._pace.nudge)
            task = self._subscriptions[partition] = asyncio.ensure_future(opening)
        await asyncio.shield(task)

    def _heard_in(self, partition: PartitionKey) -> Callable[[str, bytes], None]:
        def heard(_channel: str, data: bytes) -> None:
            for line in data.decode().splitlines():
                execution_id = ExecutionId(f"{partition}:{line[:36]}")
                if execution_id in self._awaited:
                    self._ended.add(execution_id)
            if self._ended:
                self._book_turn()

        return heard

    async def _ask(self, partition: PartitionKey, chunk: list[ExecutionId]) -> None:
        from ffcore.contracts.reads import AwaitArgs, ExecutionRef

        rows = [ExecutionRef(execution_id) for execution_id in chunk]
        answer = await self._backend.call(AwaitArgs(partition=partition, client=self._name, items=rows))
        for execution_id, state in zip(chunk, answer.states, strict=True):
            if state == "unknown":
                self._fail([execution_id], _unknown(execution_id))
            elif state in TERMINAL and execution_id in self._awaited:
                self._ended.add(execution_id)
        if self._ended:
            self._book_turn()

    async def _fetch(self, partition: PartitionKey, chunk: list[ExecutionId]) -> None:
        from ffcore.contracts.reads import ExecutionRef, ReadOutcomesArgs

        try:
            rows = [ExecutionRef(execution_id) for execution_id in chunk]
            answer = await self._backend.call(ReadOutcomesArgs(partition=partition, items=rows))
        except Unavailable as away:
            if away.code == "closed":
                self._fail(chunk, away)
            return  # the next poll finds them ended and fetches again
        except EngineError as refused:
            self._fail(chunk, refused)
            return
        for execution_id, found in zip(chunk, answer.items, strict=True):
            future = self._awaited.get(execution_id)
            if future is None or future.done():
                continue
            if found.state == "unknown":
                self._fail([execution_id], _unknown(execution_id))
            elif found.state == "later":
                self._ended.add(execution_id)
            elif found.state in TERMINAL:
                del self._awaited[execution_id]
                future.set_result(found)
            else:
                self._new.add(execution_id)  # replayed since the notice: wait for its next end
        if self._ended or self._new:
            self._book_turn()

    def _fail(self, chunk: list[ExecutionId], error: EngineError) -> None:
        for execution_id in chunk:
            future = self._awaited.pop(execution_id, None)
            if future is not None and not future.done():
                future.set_exception(error)

    # ---- the slow second way

    async def _poll(self) -> None:
        while True:
            await self._pace.pause(POLL_S)
            await asyncio.gather(*(self._register(*chunk) for chunk in _chunks(self._awaited)))


def _unknown(execution_id: ExecutionId) -> Rejected:
    text = f"{execution_id} has no record: it was never submitted here, or retention removed it"
    return NotFound(text, code="execution_not_found", detail=execution_id)


def _chunks(execution_ids: Iterable[ExecutionId]) -> list[tuple[PartitionKey, list[ExecutionId]]]:
    """By partition, at most one call's rows each."""
    by_partition: dict[PartitionKey, list[ExecutionId]] = {}
    for execution_id in execution_ids:
        by_partition.setdefault(ids.partition_of(execution_id), []).append(execution_id)
    return [
        (partition, found[i : i + limits.ROWS_N])
        for partition, found in by_partition.items()
        for i in range(0, len(found), limits.ROWS_N)
    ]  # fmt: skip
