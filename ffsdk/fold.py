"""Creates on their way: submits that are ready together leave in one call, and each keeps its own answer.

A create alone costs the store three times what it costs among others. So of each kind at most `FLYING` calls that are
not full are under way; what is submitted meanwhile leaves together with the next answer. Whoever comes when nothing is
under way is sent at once. A kind is what the rows of one call share: lane, task, options and, for keyed jobs, the
partition; jobs without a key go where their call goes, and the calls take turns over the partitions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ffcore import ids, limits
from ffcore.errors import EngineBug, EngineError, Unavailable, alike, rejection
from ffcore.ids import ExecutionId, PartitionKey

if TYPE_CHECKING:
    from ffcore.contracts.batch import CreatedMany, CreateManyArgs, ItemCreated

FLYING: Final = 2
"""The store works on one call while the client prepares the other; more would only be smaller."""


class Shared(NamedTuple):
    """What all rows of a call have in common."""

    task: str
    version: int
    lane: str
    priority: int
    policy: bytes
    delay_until: int | None
    deadline_at: int | None


class New(NamedTuple):
    """One job before it has a place: without a key its id is minted for the call it leaves with."""

    keyed_id: ExecutionId | None
    digest: bytes
    payload: bytes
    fairness: str | None
    tags: bytes | None
    admission: str | None = None
    """What it must be admitted by, as text."""

    @property
    def size(self) -> int:
        """Bytes it adds to a call."""
        return len(self.payload) + len(self.tags or b"") + len(self.admission or "")


class _Ready(NamedTuple):
    new: New
    caller: asyncio.Future[tuple[ExecutionId, bool]]


class _Group:
    """Submits of one kind."""

    __slots__ = ("flying_n", "kind", "partition", "ready", "rows_n")

    def __init__(self, kind: tuple[Shared, PartitionKey | None]) -> None:
        self.kind, self.partition = kind, kind[1]
        self.ready: list[_Ready] = []
        self.flying_n = self.rows_n = 0
        """Calls under way, and their rows."""


class Fold:
    """The creates of one client. Belongs to one event loop."""

    def __init__(
        self,
        call: Callable[[CreateManyArgs], Coroutine[Any, Any, CreatedMany]],
        namespace: str,
        partitions: Sequence[PartitionKey],
    ) -> None:
        # Here, because importing the SDK must not wait for the contracts.
        from ffcore.contracts.batch import CreateManyArgs, NewExecution

        self._args, self._row = CreateManyArgs, NewExecution
        self._call, self._namespace, self._partitions = call, namespace, partitions
        self._turn = random.randrange(len(partitions))
        self._groups: dict[tuple[Shared, PartitionKey | None], _Group] = {}
        self._booked = False
        self._tasks: set[asyncio.Task[None]] = set()

    def next_partition(self) -> PartitionKey:
        """Where the next call of jobs without a key goes: all partitions in turn."""
        self._turn = (self._turn + 1) % len(self._partitions)
        return self._partitions[self._turn]

    def ids_of(self, news: Sequence[New], partition: PartitionKey) -> list[ExecutionId]:
        """The ids of jobs that leave together: the keyed ones have theirs."""
        if news[0].keyed_id is not None:
            return [new.keyed_id for new in news if new.keyed_id is not None]
        return ids.new_execution_ids(len(news), ids.partition_index(partition), len(self._partitions))

    async def send(
        self, shared: Shared, partition: PartitionKey, found: Sequence[ExecutionId], news: Sequence[New]
    ) -> list[ItemCreated]:
        """One call, now: the jobs under their ids."""
        row = self._row
        rows = [row(i, n.digest, n.payload, n.fairness, n.tags, n.admission) for i, n in zip(found, news, strict=True)]
        answer = await self._call(self._args(
            partition=partition, namespace=self._namespace, lane_id=shared.lane, execution_kind=shared.task,
            version=shared.version, priority=shared.priority, policy=shared.policy, delay_until=shared.delay_until,
            execution_deadline_at=shared.deadline_at, items=rows,
        ))  # fmt: skip
        return answer.items

    async def submit(self, shared: Shared, new: New) -> tuple[ExecutionId, bool]:
        """The job's id, and whether it is new. Raises what the store refused this job.

        Cancelling it disturbs no other; the job may have been created.
        """
        kind = (shared, None if new.keyed_id is None else ids.partition_of(new.keyed_id))
        group = self._groups.get(kind)
        if group is None:
            return await self._alone(self._groups.setdefault(kind, _Group(kind)), new)
        caller: asyncio.Future[tuple[ExecutionId, bool]] = asyncio.get_running_loop().create_future()
        group.ready.append(_Ready(new, caller))
        self._book()
        return await caller

    async def _alone(self, group: _Group, new: New) -> tuple[ExecutionId, bool]:
        """Nothing of this kind is under way: no turn of the loop, no task."""
        partition = group.partition or self.next_partition()
        found = self.ids_of((new,), partition)
        self._took_off(group, 1)
        try:
            [item] = await self.send(group.kind[0], partition, found, (new,))
        finally:
            self._landed(group, 1)
        refused = refusal(group.kind[0], found[0], new, item)
        if refused is not None:
            raise refused
        return found[0], item.state == "created"

    # ---- together

    def _book(self) -> None:
        if not self._booked:
            self._booked = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """The end of a turn of the loop: send what the calls under way leave room for."""
        self._booked = False
        for group in list(self._groups.values()):
            if group.ready:
                self._release(group)

    def _release(self, group: _Group) -> None:
        ready = [one for one in group.ready if not one.caller.done()]  # who was cancelled before it left, never leaves
        while ready:
            # Two calls of about the same size, rather than one of a single job and one of all the others.
            share = -(-(group.rows_n + len(ready)) // FLYING)
            n, full = fill((one.new.size for one in ready), min(share, limits.BULK_N))
            if group.flying_n >= FLYING and not full:
                break
            some, ready = ready[:n], ready[n:]
            partition = group.partition or self.next_partition()
            self._took_off(group, n)
            task = asyncio.get_running_loop().create_task(self._carry(group, partition, some))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        group.ready = ready
        self._forget(group)

    async def _carry(self, group: _Group, partition: PartitionKey, some: list[_Ready]) -> None:
        shared, news = group.kind[0], [one.new for one in some]
        found = self.ids_of(news, partition)
        try:
            items = await self.send(shared, partition, found, news)
            for one, execution_id, item in list(zip(some, found, items, strict=True)):  # all of them, or none
                if one.caller.done():
                    continue
                refused = refusal(shared, execution_id, one.new, item)
                if refused is None:
                    one.caller.set_result((execution_id, item.state == "created"))
                else:
                    one.caller.set_exception(refused)
        except EngineError as failed:
            _fail(some, failed)
        except asyncio.CancelledError:
            # The loop is being torn down, and every task in it.
            _fail(some, Unavailable("the submit was interrupted while under way", may_have_applied=True))
            raise
        except Exception as broken:
            _fail(some, EngineBug(f"submitting broke: {type(broken).__name__}: {broken}"))
        finally:
            self._landed(group, len(some))

    def _took_off(self, group: _Group, rows_n: int) -> None:
        group.flying_n += 1
        group.rows_n += rows_n

    def _landed(self, group: _Group, rows_n: int) -> None:
        group.flying_n -= 1
        group.rows_n -= rows_n
        if group.ready:
            self._book()  # behind those who were just answered: what they submit next leaves with it
        self._forget(group)

    def _forget(self, group: _Group) -> None:
        """Kinds come and go: each deadline is another."""
        if not group.flying_n and not group.ready:
            self._groups.pop(group.kind, None)


def fill(sizes: Iterable[int], most: int = limits.BULK_N) -> tuple[int, bool]:
    """How many of the first jobs one call takes, by their sizes, and whether it is full with them."""
    n = bytes_n = 0
    for size in sizes:
        bytes_n += size
        if n and bytes_n > limits.BATCH_BYTES:
            return n, True
        if n == most:
            break
        n += 1
    return n, n >= limits.BULK_N


def refusal(shared: Shared, execution_id: ExecutionId, new: New, item: ItemCreated) -> EngineError | None:
    """Why the store did not create a job; None if it did, or had before."""
    if item.state != "error":
        return None
    said = {
        "idempotency_conflict": f"the key of {execution_id} was used before with another task, payload or lane",
        "lane_closed": f"lane {shared.lane} is draining or disabled",
        "store_full": str(limits.FULL_RETRY_MS),
        "payload_too_large": f"{len(new.payload)} bytes, the limit is {limits.PAYLOAD_BYTES}",
    }
    detail = said.get(item.detail, f"task {shared.task}, lane {shared.lane}")
    return rejection(item.detail, detail, asked="submit", about=execution_id)


def _fail(some: Sequence[_Ready], failed: EngineError) -> None:
    """Everybody gets an error of his own."""
    for one in some:
        if not one.caller.done():
            one.caller.set_exception(alike(failed))
