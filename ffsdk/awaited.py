"""What a handler awaits of its children: all its waits together, and the ends it knows of.

The rule: a job is given up only when nothing of its handler is under way, and then for everything that is awaited, so
that a gather of many costs one more run of the handler and not one for each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from ffcore import flows, ids, limits
from ffcore.contracts.execution import Child as ChildRow
from ffcore.contracts.execution import MoveToWaitingChildrenArgs
from ffcore.contracts.reads import ExecutionOutcome, ExecutionRef, ReadOutcomesArgs
from ffcore.errors import EngineBug, NotFound
from ffcore.ids import ExecutionId
from ffsdk.slots import call_until_answered
from ffsdk.waiters import TERMINAL

if TYPE_CHECKING:
    from ffsdk.durable import Durable

WAITING: Final = "children"
"""What a wait for children is called while it looks."""
READS_N: Final = 4
"""Reads of ended children under way at a time."""


class _Wait:
    """One wait of a handler."""

    __slots__ = ("ids", "looked", "need")

    def __init__(self, wanted: Sequence[ExecutionId], need: int) -> None:
        self.ids, self.need, self.looked = list(dict.fromkeys(wanted)), need, -1

    def left(self, ended: Mapping[ExecutionId, ExecutionOutcome]) -> int:
        """How many must still end; 0 or less: none."""
        return self.need - sum(execution_id in ended for execution_id in self.ids)


class _NotNow(Exception):
    """There is something else to do first than to give the job up."""


class Awaited:
    """What one handler awaits of its children: all its waits, and the ends it knows of. One per run of it.

    flow_id   the flow of the job and its children; the job is not in it yet where it has neither
    ended     how children ended, as far as this run has looked
    spawned   the children of this run
    """

    def __init__(self, durable: Durable) -> None:
        self._durable = durable
        job = durable.held.job
        self.flow_id = job.flow_id or flows.implicit_flow(job.execution_id)
        self._waits: list[_Wait] = []
        self._round = 0
        """Rises when the store has said that enough have ended: every wait looks again."""
        self._asked: set[ExecutionId] = set()
        self._gone: set[ExecutionId] = set()
        self._reading: asyncio.Task[None] | None = None
        self.ended: dict[ExecutionId, ExecutionOutcome] = {}
        self.spawned: set[ExecutionId] = set()

    async def until(self, wanted: Sequence[ExecutionId], need: int) -> None:
        """Return when so many of these have ended; until then the job is given up. Raises NotFound for one that has no
        record any more."""
        durable, wait = self._durable, _Wait(wanted, need)
        self._waits.append(wait)
        try:
            while True:
                with durable.in_flight(WAITING):
                    await durable.ready()
                    if wait.looked < self._round:
                        await self._look(wait)
                for gone in self._gone.intersection(wait.ids):
                    raise NotFound(f"child {gone} has no record any more: it was purged", code="execution_not_found")
                if wait.left(self.ended) <= 0:
                    return
                try:
                    await durable.suspend(lambda: self._move(wait))
                except _NotNow:
                    continue
                self._round += 1
        finally:
            self._waits.remove(wait)

    def close(self) -> None:
        """The handler has ended."""
        if self._reading is not None:
            self._reading.cancel()

    async def _look(self, wait: _Wait) -> None:
        """Read those of a wait that are not known to have ended; what is asked in one turn goes together."""
        round_ = self._round
        self._asked.update(one for one in wait.ids if one not in self.ended)
        while any(one in self._asked for one in wait.ids):
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read())
                self._reading.add_done_callback(self._has_read)
            await asyncio.shield(self._reading)
        wait.looked = round_

    def _has_read(self, reading: asyncio.Task[None]) -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # seen, also if who looked was cancelled meanwhile

    async def _read(self) -> None:
        await asyncio.sleep(0)
        while self._asked:
            asked = list(self._asked)
            pages = [asked[at : at + limits.ROWS_N] for at in range(0, len(asked), limits.ROWS_N)][:READS_N]
            for found in await asyncio.gather(*map(self._page, pages)):
                for one in found:
                    if one.state == "unknown":
                        self._gone.add(one.execution_id)
                    if one.state in TERMINAL:
                        self.ended[one.execution_id] = one
                    if one.state != "later":
                        self._asked.discard(one.execution_id)

    async def _page(self, page: list[ExecutionId]) -> list[ExecutionOutcome]:
        args = ReadOutcomesArgs(partition=ids.partition_of(page[0]), items=[ExecutionRef(one) for one in page])
        return (await call_until_answered(self._durable.host.backend, args)).items

    def _move(self, wait: _Wait) -> MoveToWaitingChildrenArgs:
        """Give the job up for all that is awaited now, once nothing of the handler is under way.

        Whole waits end together, so that a gather of many costs one more run and not one for each; where one of the
        waits takes some of its children only, the handler goes on as soon as any wait could be over.
        """
        durable = self._durable
        if wait.looked < self._round:
            raise _NotNow  # the store has just said that some have ended
        if durable.alarms:
            raise _NotNow  # a sleep beside it ends by itself, and is slept first: the end of a child might never come
        some = [one for one in self._waits if one.need < len(one.ids)]
        whole = [one for one in self._waits if one.need >= len(one.ids)]
        wanted = list(dict.fromkeys(i for one in some + whole for i in one.ids if i not in self.ended))
        need = min(one.left(self.ended) for one in self._waits) if some else 0
        if len(wanted) > limits.ROWS_N:
            # So many at a time; or all there are, where it waits for all there are.
            everything = not some and durable.run == 0 and self.spawned - self.ended.keys() <= set(wanted)
            wanted = [] if everything else wanted[: limits.ROWS_N]
        if need < 0:
            raise EngineBug("a wait that is over would give the job up")
        job = durable.held.job
        return MoveToWaitingChildrenArgs(
            execution_id=job.execution_id, fence=durable.fence, attempt_index=job.attempt_index, need=need,
            children=[ChildRow(one) for one in wanted],
        )  # fmt: skip
