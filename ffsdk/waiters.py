"""Waiting for jobs and flows to end: one object per client, one message and one read for many of them.

Whoever waits registers with the store (one call per partition and turn of the loop) and is told on the client's
own channel; results are then fetched together, by one read of a partition at a time. Messages are hints: every POLL_S,
or more seldom in a large crowd, all awaited jobs are asked for in few calls, which renew their registrations too, so a
lost message, or a channel that cannot be heard at all, costs a moment and nothing else.

Flows are few, so each is asked for on its own: the answer that registers the client is the one that says how it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ffcore import ids, limits
from ffcore.errors import EngineBug, EngineError, NotFound, Rejected, Unavailable, alike
from ffcore.ids import ExecutionId, FlowId, PartitionKey
from ffcore.states import STATES, LifecyclePhase
from ffsdk.pace import Pace

if TYPE_CHECKING:
    from ffcore.args import Args
    from ffcore.backend import Backend, Subscription
    from ffcore.contracts.flow import FlowInfo
    from ffcore.contracts.reads import ExecutionOutcome

R = TypeVar("R")

POLL_S: Final = 1.5
"""Far below the 60 s a registration lasts; seldom enough that a thousand waiters cost a few calls a second."""
POLL_SHARE: Final = 10
"""A look at everything may take a tenth of the time, no more: fifty thousand waiters must not slow down the work they
wait for."""
POLL_MAX_S: Final = 10.0
"""A registration is renewed when half of its 60 s are over, so it survives a look or two that failed."""
TERMINAL: Final = frozenset(word for word, row in STATES.items() if row.phase is LifecyclePhase.TERMINAL)


class Waiters:
    """Futures of awaited executions. Belongs to one event loop."""

    def __init__(self, backend: Backend, name: str, pace: Pace) -> None:
        self._backend, self._name, self._pace = backend, name, pace
        self._awaited: dict[ExecutionId, list[asyncio.Future[ExecutionOutcome]]] = {}
        """Who waits, by execution: never an empty list."""
        self._flows: dict[FlowId, list[asyncio.Future[FlowInfo]]] = {}
        """Who waits, by flow: never an empty list."""
        self._new: set[ExecutionId] = set()
        self._ended: dict[PartitionKey, set[ExecutionId]] = {}
        """To be fetched, with the partition's next read."""
        self._fetching: set[PartitionKey] = set()
        self._subscriptions: dict[PartitionKey, asyncio.Task[Subscription]] = {}
        self._work: set[asyncio.Task[object]] = set()
        self._turn_booked = False
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    async def wait(self, execution_id: ExecutionId) -> ExecutionOutcome:
        """How it ended, as stored; waits for as long as it takes. Cancel it to stop waiting.

        Raises NotFound for an id without a record, Unavailable when the client closes meanwhile.
        """
        self._still_open()
        future: asyncio.Future[ExecutionOutcome] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.get(execution_id)
        if waiting is None:
            self._awaited[execution_id] = [future]
            self._new.add(execution_id)
            self._book_turn()
        else:
            waiting.append(future)
        try:
            return await future
        finally:
            _leave(self._awaited, execution_id, future)

    async def wait_flow(self, flow_id: FlowId) -> FlowInfo:
        """The flow once it has ended; as `wait`."""
        self._still_open()
        future: asyncio.Future[FlowInfo] = asyncio.get_running_loop().create_future()
        waiting = self._flows.get(flow_id)
        if waiting is None:
            self._flows[flow_id] = [future]
            self._spawn(self._register_flow(flow_id))
            self._poll_from_now_on()
        else:
            waiting.append(future)
        try:
            return await future
        finally:
            _leave(self._flows, flow_id, future)

    def _still_open(self) -> None:
        if self._closed:
            raise Unavailable("the client is closed: wait inside its `async with` block", code="closed")

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
        closed = Unavailable("the client was closed while waiting", code="closed")
        self._fail(list(self._awaited), closed)
        for flow_id in list(self._flows):
            self._fail_flow(flow_id, closed)
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
        for partition, chunk in _chunks(id for id in new if id in self._awaited):
            self._spawn(self._register(partition, chunk))
        for partition in list(self._ended):
            if partition not in self._fetching:
                self._fetching.add(partition)
                self._spawn(self._fetch_all(partition))
        self._poll_from_now_on()

    def _poll_from_now_on(self) -> None:
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _register(self, partition: PartitionKey, chunk: list[ExecutionId]) -> None:
        """Subscribe before registering: a notice sent between the two would be lost."""
        try:
            await asyncio.shield(self._listening(partition))
        except EngineError as deaf:
            if not isinstance(deaf, Unavailable) or deaf.code == "closed":
                self._fail(chunk, deaf)
                return
        await self._ask(partition, chunk)

    def _listening(self, partition: PartitionKey) -> asyncio.Task[Subscription]:
        """The subscription of a partition, or the attempt at one; begun anew if the last one failed."""
        task = self._subscriptions.get(partition)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            channel = self._backend.client_channel(partition, self._name)
            opening = self._backend.subscribe([channel], self._heard_in(partition), self._pace.nudge)
            task = self._subscriptions[partition] = asyncio.ensure_future(opening)
        return task

    def _heard_in(self, partition: PartitionKey) -> Callable[[str, bytes], None]:
        def heard(_channel: str, data: bytes) -> None:
            for line in data.decode().splitlines():
                execution_id = ExecutionId(f"{partition}:{line[:36]}")
                if execution_id in self._awaited:
                    self._has_ended(partition, execution_id)
                elif (flow_id := FlowId(execution_id)) in self._flows:
                    self._spawn(self._ask_flow(flow_id))

        return heard

    async def _ask(self, partition: PartitionKey, chunk: list[ExecutionId]) -> bool:
        """Register, and see what has ended already. False: no answer, and the next poll asks again, so that a wait
        outlasts a store that restarts."""
        from ffcore.contracts.reads import AwaitArgs, ExecutionRef

        args = AwaitArgs(partition=partition, client=self._name, items=[ExecutionRef(i) for i in chunk])
        answer = await self._answer(args, chunk)
        if answer is None:
            return False
        for execution_id, state in zip(chunk, answer.states, strict=True):
            if state == "unknown":
                self._fail([execution_id], _unknown(execution_id))
            elif state in TERMINAL and execution_id in self._awaited:
                self._has_ended(partition, execution_id)
        return True

    def _has_ended(self, partition: PartitionKey, execution_id: ExecutionId) -> None:
        self._ended.setdefault(partition, set()).add(execution_id)
        self._book_turn()

    async def _fetch_all(self, partition: PartitionKey) -> None:
        """One read of a partition at a time: what ends meanwhile comes with the next, in one call instead of many."""
        try:
            while ended := self._ended.pop(partition, None):
                for _, chunk in _chunks(id for id in ended if id in self._awaited):
                    await self._fetch(partition, chunk)
        finally:
            self._fetching.discard(partition)

    async def _fetch(self, partition: PartitionKey, chunk: list[ExecutionId]) -> None:
        from ffcore.contracts.reads import ExecutionRef, ReadOutcomesArgs

        args = ReadOutcomesArgs(partition=partition, items=[ExecutionRef(i) for i in chunk])
        answer = await self._answer(args, chunk)
        if answer is None:
            return  # the next poll finds them ended and fetches again
        for execution_id, found in zip(chunk, answer.items, strict=True):
            waiting = self._awaited.get(execution_id)
            if waiting is None:
                continue
            if found.state == "unknown":
                self._fail([execution_id], _unknown(execution_id))
            elif found.state == "later":
                self._has_ended(partition, execution_id)
            elif found.state in TERMINAL:
                del self._awaited[execution_id]
                for future in waiting:
                    if not future.done():
                        future.set_result(found)
            else:
                self._new.add(execution_id)  # replayed since the notice: wait for its next end
                self._book_turn()

    async def _answer(self, args: Args[R], chunk: list[ExecutionId]) -> R | None:
        """None while the store is away. Whatever repeating does not mend ends the waits of the chunk: nobody else
        would ever hear of it."""
        try:
            return await self._backend.call(args)
        except Unavailable as away:
            if away.code == "closed":
                self._fail(chunk, away)
        except EngineError as refused:
            self._fail(chunk, refused)
        except Exception as broken:
            self._fail(chunk, EngineBug(f"waiting for jobs broke: {type(broken).__name__}: {broken}"))
        return None

    def _fail(self, chunk: list[ExecutionId], error: EngineError) -> None:
        for execution_id in chunk:
            for future in self._awaited.pop(execution_id, ()):
                if not future.done():
                    future.set_exception(alike(error))

    # ---- flows

    async def _register_flow(self, flow_id: FlowId) -> None:
        """Subscribe before registering, as `_register`."""
        try:
            await asyncio.shield(self._listening(ids.partition_of(flow_id)))
        except EngineError as deaf:
            if not isinstance(deaf, Unavailable) or deaf.code == "closed":
                self._fail_flow(flow_id, deaf)
                return
        await self._ask_flow(flow_id)

    async def _ask_flow(self, flow_id: FlowId) -> bool:
        """Register, and see whether it has ended. False: no answer, and the next poll asks again."""
        from ffcore.contracts.flow import AwaitFlowArgs

        try:
            info = await self._backend.call(AwaitFlowArgs(flow_id=flow_id, client=self._name))
        except Unavailable as away:
            if away.code == "closed":
                self._fail_flow(flow_id, away)
            return False
        except EngineError as refused:
            self._fail_flow(flow_id, refused)
        except Exception as broken:
            self._fail_flow(flow_id, EngineBug(f"waiting for a flow broke: {type(broken).__name__}: {broken}"))
        else:
            if info.ended:
                for future in self._flows.pop(flow_id, ()):
                    if not future.done():
                        future.set_result(info)
        return True

    def _fail_flow(self, flow_id: FlowId, error: EngineError) -> None:
        for future in self._flows.pop(flow_id, ()):
            if not future.done():
                future.set_exception(alike(error))

    # ---- the slow second way

    async def _poll(self) -> None:
        clock, pause_s = asyncio.get_running_loop().time, POLL_S
        while True:
            await self._pace.pause(pause_s)
            began = clock()
            chunks, flows = _chunks(self._awaited), list(self._flows)
            for partition in dict.fromkeys([*(partition for partition, _ in chunks), *map(ids.partition_of, flows)]):
                # Not waited for: as long as nothing can be heard, asking is all there is.
                self._listening(partition).add_done_callback(_seen)
            answered = await asyncio.gather(*(self._ask(*chunk) for chunk in chunks), *map(self._ask_flow, flows))
            # The time a store was away says nothing about the size of the crowd.
            took_s = clock() - began if all(answered) else 0.0
            pause_s = min(max(POLL_S, POLL_SHARE * took_s), POLL_MAX_S)


Id = TypeVar("Id", ExecutionId, FlowId)


def _leave(awaited: dict[Id, list[asyncio.Future[R]]], awaited_id: Id, future: asyncio.Future[R]) -> None:
    """Whoever waited has been answered, or waits no longer."""
    left = awaited.get(awaited_id)
    if left is not None and future in left:
        left.remove(future)
        if not left:
            del awaited[awaited_id]
    if future.done() and not future.cancelled():
        future.exception()  # seen, even if who waited was cancelled in the same turn


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


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
