"""Taking work and giving back results: the fold of completions and claims into few calls.

One call per partition is under way at most; completions that become ready meanwhile leave together in the next one,
which also claims as much as the worker can take. Each call under way owns a slot: repeated after a lost reply
it carries the same claim id and the same items, so that nothing is leased to nobody and nothing is done twice.

A partition that had nothing parks the worker there; a bell, or the end of the park, makes it worth asking again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from ffcore import limits
from ffcore.args import Args
from ffcore.backend import Backend
from ffcore.contracts.batch import (
    ClaimBatchArgs,
    ClaimedBatch,
    ClaimedJob,
    CompleteManyArgs,
    Completion,
    PassBellArgs,
)
from ffcore.errors import EngineError, Rejected, Unavailable
from ffcore.ids import PartitionKey, partition_index
from ffsdk.held import ENDED, Held

log = logging.getLogger("flowfabric.worker")
R = TypeVar("R")

PARK_S: Final = limits.PARK_MS / 1000 - 0.2
"""How long a park is trusted; the store keeps it a little longer, so that there is no gap between two."""
IN_PLAY: Final = 4
"""Partitions a busy worker wants calls under way to: while the store works on one, the worker runs what the other
answered. Its room is divided by this, or it would take everything from the first; more calls would be smaller ones,
which cost the store more per job (measured: 2 drains 7 % faster than 4)."""
FOLD_N: Final = 16
"""Jobs one call claims at most: fuller calls are cheaper in the store, but it and the worker then wait for each other
(64 in flight: 1.75 x the baseline with 16, 1.6 x with 32, in runs side by side)."""
ELSEWHERE: Final = 8
"""A partition not asked for this many calls per partition is asked next, so that a busy one hides no other."""
RETRY_S: Final = 0.2


class Part:
    """What the worker knows of one partition."""

    __slots__ = ("asked", "flying", "index", "items", "jobs", "key", "n", "parked_until", "rung", "slot")

    def __init__(self, key: PartitionKey) -> None:
        self.key, self.index = key, partition_index(key)
        self.items: list[Completion] = []
        self.jobs: list[Held] = []
        """The jobs of `items`, in the same order."""
        self.flying = False
        self.slot, self.n = f"p{self.index}", 0
        self.parked_until = 0.0
        """Nothing was there; until then a bell tells if that changes. 0.0: worth asking."""
        self.rung = False
        """A bell came while a call was under way, whose answer may be older than the bell."""
        self.asked = 0
        """Number of the last call that claimed here."""


class Slots:
    """The claims and completions of one worker. All methods belong to the event loop's thread."""

    def __init__(
        self,
        backend: Backend,
        *,
        instance: str,
        worker_id: str,
        lanes: list[str],
        lease_ms: int,
        clock: Callable[[], float],
        capacity: Callable[[], int],
        load: Callable[[], int],
        arrived: Callable[[Sequence[ClaimedJob], Callable[[ClaimedJob], Part], float, int], None],
        settled: Callable[[Held, str], None],
        revised: Callable[[Sequence[Part]], None],
        broken: Callable[[BaseException], None],
        polls: bool = True,
    ) -> None:
        """capacity: how many jobs the worker may hold unfinished; load: how many it does.
        arrived(jobs, part_of, sent, now_ms): take them. settled(held, code): a completion was answered; code is empty,
        or the refusal. revised(parts): the table of capability sets changed. broken: no repeating mends this error."""
        self._backend, self._clock = backend, clock
        self._instance, self._lanes, self._lease_ms = instance, lanes, lease_ms
        self._common: dict[str, Any] = {
            "lanes": lanes,
            "worker_id": worker_id,
            "worker_instance_id": instance,
            "lease_ttl_ms": lease_ms,
        }
        self._capacity, self._load = capacity, load
        self._arrived, self._settled, self._revised = arrived, settled, revised
        self._broken = broken
        self._polls = polls
        self._loop = asyncio.get_running_loop()
        self.parts = [Part(key) for key in backend.config.keys("fp")]
        self._by_key = {part.key: part for part in self.parts}
        self.capability_sets: list[str] = []
        self._coming = 0
        """What the claims under way may bring at most."""
        self.unsettled = 0
        """Completions that have not been answered."""
        self.claiming = True
        """False once the worker stops."""
        self._revisions: dict[PartitionKey, int] = {}
        self._claim_flying = False
        self._claims_n = 0
        self._calls_n = 0
        self._scheduled = False
        self._poll: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ---- what the worker says

    def part_of(self, job: ClaimedJob) -> Part:
        execution_id = job.execution_id
        return self._by_key[PartitionKey(execution_id[: execution_id.index("}") + 1])]

    def complete(self, held: Held, result: bytes | None) -> None:
        """Report a result with the next call of its partition."""
        held.stage = ENDED
        part, job = held.part, held.job
        part.items.append(Completion(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}", result))
        part.jobs.append(held)
        if job.flow != "-":
            part.parked_until = 0.0  # others may start with its end: ask for them in the same call, not after a bell
        self.unsettled += 1
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def wake(self) -> None:
        """Look again at the end of this turn: there is room, or news."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def rung(self, key: PartitionKey) -> None:
        """Somebody put work into a partition. With room, claim at once; without, another parked worker may have it."""
        part = self._by_key.get(key)
        if part is None or not self.claiming:
            return
        part.parked_until = 0.0
        part.rung = True
        if self._capacity() > self._load() + self._coming:
            self._pump()
        else:
            self._spawn(self._pass_on(part))

    def ask_everywhere(self) -> None:
        """Forget the parks: messages may have been missed, or the worker's capabilities changed."""
        for part in self.parts:
            part.parked_until, part.rung = 0.0, True
        self.wake()

    async def close(self) -> None:
        """Abandon what is under way. Leases that a lost answer carries end by themselves."""
        self.claiming = False
        if self._poll is not None:
            self._poll.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until no call is under way and every completion has been answered."""
        while self._tasks or self.unsettled:
            self._pump()
            await asyncio.wait(
                tuple(self._tasks), return_when=asyncio.FIRST_COMPLETED
            ) if self._tasks else await asyncio.sleep(0)

    # ---- sending

    def _pump(self) -> None:
        """Send what is ready: completions first, each with a claim, then a claim for the room that is left."""
        self._scheduled = False
        room = share = 0
        if self.claiming:
            capacity = self._capacity()
            room = capacity - self._load() - self._coming
            share = min(FOLD_N, -(-capacity // min(len(self.parts), IN_PLAY)))
        for part in self.parts:
            if part.items and not part.flying:
                limit = 0
                if room > 0 and part.parked_until == 0.0 and not self._neglected(part):
                    limit = min(room, share, limits.ROWS_N)
                room -= limit
                self._send(part, limit)
        if room > 0:
            self._claim(room, share)

    def _neglected(self, part: Part) -> bool:
        """Whether the room should go to another partition, which has not been asked for long."""
        parts = self.parts
        if len(parts) == 1 or self._claim_flying:
            return False
        oldest = self._calls_n - ELSEWHERE * len(parts)
        return any(p.asked < oldest and p.parked_until == 0.0 and not p.flying and p is not part for p in parts)

    def _send(self, part: Part, limit: int) -> None:
        items, jobs = part.items, part.jobs
        if len(items) > limits.ROWS_N or len(items) > 4:
            items, jobs = _bounded(part)
        else:
            part.items, part.jobs = [], []
        part.flying = True
        part.rung = False
        part.n += 1
        self._calls_n += 1
        if limit:
            part.asked = self._calls_n
            self._coming += limit
        args = CompleteManyArgs(
            partition=part.key,
            limit=limit,
            claim_id=f"{self._instance}.{part.slot}.{part.n}",
            items=items,
            capability_sets=self.capability_sets,
            park=self._instance if limit else None,
            **self._common,
        )
        self._spawn(self._completed(part, args, jobs, limit))

    def _claim(self, room: int, share: int) -> None:
        if self._claim_flying:
            return
        now = self._clock()
        parts = [p for p in self.parts if not p.flying and p.parked_until <= now]
        if not parts:
            return
        parts.sort(key=lambda p: p.asked)
        if self._backend.grouped:
            self._claim_flying = True
            self._claim_from(parts, min(room, share), "c")
            return
        # A call for each, with a slot of its own: a partition that does not answer holds up no other.
        for part in parts:
            if room <= 0:
                return
            part.flying = True
            self._claim_from([part], min(room, share), f"c{part.index}")
            room -= share

    def _claim_from(self, parts: list[Part], limit: int, slot: str) -> None:
        limit = min(limit, limits.ROWS_N)
        self._claims_n += 1
        self._calls_n += 1
        self._coming += limit
        for part in parts:
            part.rung = False
        args = ClaimBatchArgs(
            partitions=[p.key for p in parts],
            limit=limit,
            claim_id=f"{self._instance}.{slot}.{self._claims_n}",
            capability_sets=self.capability_sets,
            park=self._instance,
            **self._common,
        )
        self._spawn(self._claimed(parts, args, limit))

    def _expect(self, at: float) -> None:
        """Look again when the first park ends: a bell may have been lost."""
        if self._polls and self._poll is None:
            self._poll = self._loop.call_later(max(0.0, at - self._clock()), self._poll_now)

    def _poll_now(self) -> None:
        self._poll = None
        # Parks made together are renewed together, in one call.
        soon = self._clock() + 1.0
        for part in self.parts:
            if part.parked_until <= soon:
                part.parked_until = 0.0
        later = [part.parked_until for part in self.parts if part.parked_until]
        if later:
            self._expect(min(later))
        self._pump()

    # ---- answers

    async def _completed(self, part: Part, args: CompleteManyArgs, jobs: list[Held], limit: int) -> None:
        sent = self._clock()
        try:
            answer = await call_until_answered(self._backend, args)
        except BaseException:
            for held in jobs:
                self._settled(held, "unavailable")
            raise
        finally:
            part.flying = False
            self._coming -= limit
            self.unsettled -= len(jobs)
        settled = self._settled
        for held, item in zip(jobs, answer.items, strict=True):
            settled(held, "" if item.state != "error" else item.detail)
        if limit:
            self._take((part,), answer.claimed, sent, lambda _: part)
        self._pump()

    async def _claimed(self, parts: list[Part], args: ClaimBatchArgs, limit: int) -> None:
        sent = self._clock()
        try:
            claimed = await call_until_answered(self._backend, args)
        finally:
            if self._backend.grouped:
                self._claim_flying = False
            else:
                parts[0].flying = False
            self._coming -= limit
        for part in parts:
            part.asked = self._calls_n
            part.parked_until = 0.0  # a claim that leases something takes the worker out of every park it names
            if (
                claimed.jobs
                and not claimed.again
                and part.key in claimed.jobs[-1].execution_id
                and len(claimed.jobs) == limit
            ):
                break  # those behind it were not reached
        self._take(parts, claimed, sent, self.part_of)
        self._pump()

    def _take(
        self, parts: Sequence[Part], claimed: ClaimedBatch, sent: float, part_of: Callable[[ClaimedJob], Part]
    ) -> None:
        if claimed.parked:
            for part in parts:
                if not part.rung:
                    part.parked_until = sent + PARK_S
            self._expect(sent + PARK_S)
        if claimed.sets_revision > max(self._revisions.get(part.key, 0) for part in parts):
            for part in parts:
                self._revisions[part.key] = claimed.sets_revision
            self._revised(parts)
        if claimed.jobs:
            self._arrived(claimed.jobs, part_of, sent, claimed.now_ms)

    async def _pass_on(self, part: Part) -> None:
        """The bell took this worker out of the park, and it has no room: ring another in its stead."""
        await call_until_answered(
            self._backend, PassBellArgs(partition=part.key, lanes=self._lanes, capability_sets=self.capability_sets)
        )

    def _spawn(self, coro: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        failed = task.exception()
        if failed is None:
            return
        if isinstance(failed, Rejected):
            failed.add_note("the store refused a worker's claim; the worker cannot go on")
        if not isinstance(failed, EngineError) or failed.code != "closed":
            self._broken(failed)


async def call_until_answered(backend: Backend, args: Args[R]) -> R:
    """Call until there is an answer. The backend repeats for some seconds by itself; the store may be away longer."""
    while True:
        try:
            return await backend.call(args)
        except Unavailable as away:
            if away.code == "closed":
                raise
            log.warning("the store does not answer, trying again: %s", away)
            await asyncio.sleep(RETRY_S)


def _bounded(part: Part) -> tuple[list[Completion], list[Held]]:
    """As many completions as one call may carry, by rows and by bytes; the rest stays for the next call."""
    items, size, n = part.items, 0, 0
    for item in items:
        size += len(item.result or b"")
        if n == limits.ROWS_N or (size > limits.BATCH_BYTES and n):
            break
        n += 1
    out = items[:n], part.jobs[:n]
    part.items, part.jobs = items[n:], part.jobs[n:]
    return out
