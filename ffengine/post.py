"""The post office: brings what a partition owes to others to them, and then says that it was brought.

The rule: a row is acknowledged only once its receiver has answered for it, and a receiver applies it once however often
it comes. So whoever has rows at hand may deliver them: the worker that caused them, at once, and the ticker, again and
again, whatever is left. Wakes, which receivers answer, are brought on in the same way and kept by nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from ffcore import limits
from ffcore.args import Args
from ffcore.backend import Backend
from ffcore.contracts.mail import DeliverArgs, Delivered, Letter, Wake
from ffcore.contracts.upkeep import Acknowledged, AckOutboxArgs, OutboxRef, OwedRow, ReadOutboxArgs
from ffcore.errors import EngineError
from ffcore.ids import PartitionKey

log = logging.getLogger("flowfabric.post")

ROUNDS_N: Final = 4
"""A row, the wake it answers, and what that one answers: more would be two partitions that wake each other."""


class _Bag(NamedTuple):
    """Letters of one partition for another."""

    source: PartitionKey
    target: PartitionKey
    letters: list[Letter]


class Post:
    """Delivers the mail of one store. Nothing here is remembered, so any number of them may be at it."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def empty(self, partition: PartitionKey, limit: int = limits.PAGE_N) -> int:
        """Deliver what a partition owes, page by page for as long as that helps; answers how many rows went."""
        went = 0
        while True:
            rows = (await self._backend.call(ReadOutboxArgs(partition=partition, limit=limit))).rows
            paid = await self.deliver(partition, rows)
            went += paid
            if not paid or len(rows) < limit:
                return went

    async def deliver(self, source: PartitionKey, rows: Sequence[OwedRow]) -> int:
        """Bring rows of a partition to whom they are for, bring on the wakes that are answered, and acknowledge what
        was taken; answers how many rows that were. Rows whose receiver does not answer stay owed."""
        bags = _sorted(source, ((row.target, Letter(row.row, row.kind, row.body)) for row in rows))
        paid: list[OutboxRef] = []
        for at in range(ROUNDS_N):
            if not bags:
                break
            answers = await self._bring(bags)
            if at == 0:
                paid = [OutboxRef(row) for bag, answer in answers for row in _taken(bag, answer)]
            bags = [again for bag, answer in answers for again in _woken(bag.target, answer.wakes)]
        await self._acknowledge(source, paid)
        return len(paid)

    async def _bring(self, bags: list[_Bag]) -> list[tuple[_Bag, Delivered]]:
        """All at once; those that were not answered are left out."""
        calls: list[Args[Delivered]] = [
            DeliverArgs(partition=bag.target, source=bag.source, items=bag.letters) for bag in bags
        ]
        answered: list[tuple[_Bag, Delivered]] = []
        for bag, answer in zip(bags, await self._backend.call_all(calls), strict=True):
            if isinstance(answer, EngineError):
                log.warning("%s owes %d rows to %s still: %s", bag.source, len(bag.letters), bag.target, answer)
            else:
                answered.append((bag, answer))
        return answered

    async def _acknowledge(self, source: PartitionKey, paid: list[OutboxRef]) -> None:
        calls: list[Args[Acknowledged]] = [
            AckOutboxArgs(partition=source, items=paid[at : at + limits.ROWS_N])
            for at in range(0, len(paid), limits.ROWS_N)
        ]
        for answer in await self._backend.call_all(calls) if calls else ():
            if isinstance(answer, EngineError):
                log.warning("rows of %s were delivered and are owed still: %s", source, answer)


def _sorted(source: PartitionKey, letters: Iterable[tuple[PartitionKey, Letter]]) -> list[_Bag]:
    """By receiver, in the order given, as many to a bag as one call takes."""
    found: dict[PartitionKey, list[Letter]] = {}
    for target, letter in letters:
        found.setdefault(target, []).append(letter)
    return [
        _Bag(source, target, some[at : at + limits.ROWS_N])
        for target, some in found.items()
        for at in range(0, len(some), limits.ROWS_N)
    ]


def _woken(source: PartitionKey, wakes: list[Wake]) -> list[_Bag]:
    return _sorted(source, ((wake.target, Letter("", wake.kind, wake.body)) for wake in wakes))


def _taken(bag: _Bag, answer: Delivered) -> list[str]:
    """Rows that need not be delivered again. Those without a name are not owed by anybody."""
    left = {ref.row for ref in answer.left}
    return [letter.row for letter in bag.letters if letter.row and letter.row not in left]


class Mail:
    """Delivers at once what calls of this process have left owed: after all that were answered in one turn of the loop,
    one round for each partition, and one round at a time. What fails is left to the ticker."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._due: set[PartitionKey] = set()
        self._flying: set[PartitionKey] = set()
        self._booked = False
        self._tasks: set[asyncio.Task[None]] = set()

    def poke(self, partition: PartitionKey) -> None:
        """A call that may have left something owed has been answered."""
        self._due.add(partition)
        if not self._booked:
            self._booked = True
            self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._booked = False
        for partition in sorted(self._due - self._flying):
            self._due.discard(partition)
            self._flying.add(partition)
            task = self._loop.create_task(self._carry(partition))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, partition: PartitionKey) -> None:
        try:
            await self._post.empty(partition)
        except EngineError as away:
            log.info("what %s owes is left to the ticker: %s", partition, away)
        finally:
            self._flying.discard(partition)
            if partition in self._due:  # more was left owed meanwhile, perhaps behind what was read
                self.poke(partition)

    async def settle(self) -> None:
        """Wait until everything has been tried."""
        while self._tasks or self._due:
            self._leave()
            await asyncio.wait(tuple(self._tasks))

    async def close(self) -> None:
        self._due.clear()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
