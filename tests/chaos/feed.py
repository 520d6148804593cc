"""The store's own account: the feeds of all partitions, followed from the first event to the last.

A feed keeps some thousand entries, so it is read while the run goes on. What the store says here is what happened;
what the processes say must agree with it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from ffcore.backend import Backend
from ffcore.contracts.reads import ReadEventsArgs
from ffcore.errors import Rejected, Unavailable
from ffcore.ids import PartitionKey
from ffsdk.waiters import TERMINAL


class Move(NamedTuple):
    """One transition. `lease_id` only where a lease begins."""

    at_ms: int
    was: str
    now: str
    epoch: int
    attempt: str
    lease_id: str
    why: str
    place: int = 0
    """In the feed of its partition."""

    def __str__(self) -> str:
        held = f" by {self.lease_id}" if self.lease_id != "-" else ""
        return f"{self.at_ms} {self.was} -> {self.now} epoch {self.epoch} attempt {self.attempt}{held} {self.why}"


class Turn(NamedTuple):
    """What a feed says of a flow."""

    was: str
    now: str
    why: str
    place: int


class Feed:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._after: dict[PartitionKey, str] = dict.fromkeys(backend.config.keys("fp"), "-")
        self.moves: dict[str, list[Move]] = defaultdict(list)
        """By execution, oldest first."""
        self.flows: dict[str, list[Turn]] = defaultdict(list)
        """By flow, oldest first."""
        self._live: set[str] = set()
        self._blocked: set[str] = set()
        self._places: Counter[PartitionKey] = Counter()
        self.wrong: list[str] = []
        self._last_ms: dict[PartitionKey, int] = {}

    async def follow(self, every_s: float = 0.3) -> None:
        """Until cancelled. A store that is away is asked again."""
        while True:
            try:
                await self.catch_up()
            except Unavailable:
                pass
            await asyncio.sleep(every_s)

    async def catch_up(self) -> None:
        for partition in tuple(self._after):
            while await self._page(partition):
                pass

    async def _page(self, partition: PartitionKey) -> bool:
        try:
            page: Any = await self._backend.call(
                ReadEventsArgs(partition=partition, after=self._after[partition], limit=1000)
            )
        except Rejected as refused:
            self.wrong.append(f"the feed of {partition} was trimmed before it could be read: {refused}")
            self._after[partition] = refused.detail
            return True
        for entry in page.entries:
            self._after[partition] = entry.event_id
            at_ms = int(entry.event_id.partition("-")[0])
            if at_ms < self._last_ms.get(partition, 0):
                self.wrong.append(f"I17 the feed of {partition} runs back at {entry.event_id}")
            self._last_ms[partition] = at_ms
            for sort, text in zip(entry.fields[::2], entry.fields[1::2], strict=True):
                self._places[partition] += 1
                place = self._places[partition]
                if sort == "e":
                    uuid, was, now, epoch, attempt, _, lease_id, why = text.split(" ", 7)
                    self._take(f"{partition}:{uuid}", Move(at_ms, was, now, int(epoch), attempt, lease_id, why, place))
                elif sort == "f":
                    uuid, was, now, why = text.split(" ", 3)
                    self.flows[f"{partition}:{uuid}"].append(Turn(was, now, why, place))
        return len(page.entries) == 1000

    def _take(self, execution_id: str, move: Move) -> None:
        self.moves[execution_id].append(move)
        (self._blocked.add if move.now == "blocked" else self._blocked.discard)(execution_id)
        if move.now in TERMINAL:
            self._live.discard(execution_id)
        else:
            self._live.add(execution_id)

    def ends(self, execution_id: str) -> list[Move]:
        return [move for move in self.moves.get(execution_id, ()) if move.now in TERMINAL]

    @property
    def live_n(self) -> int:
        """Executions that have not ended."""
        return len(self._live)

    @property
    def busy_n(self) -> int:
        """Of these, the ones that want a worker, or will by themselves."""
        return len(self._live - self._blocked)
