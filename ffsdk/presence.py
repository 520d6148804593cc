"""Being there: a worker in the roster, the tasks it knows, and the capability sets it can serve.

The rule: all of it lapses by itself when the worker dies, and is said again often enough that a store which was
away, or an older worker of the same lane, cannot hide it for long.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from ffcore import limits
from ffcore.backend import Backend
from ffcore.capabilities import Capabilities
from ffcore.contracts.reads import ListCapabilitySetsArgs
from ffcore.contracts.roster import AnnounceTasksArgs, PublishTasksArgs, RegisterWorkerArgs, TaskRow
from ffcore.errors import Unavailable
from ffcore.ids import PartitionKey, WorkerInstanceId, partition_key
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffsdk.app import App
    from ffsdk.slots import Part, Slots

log = logging.getLogger("flowfabric.worker")

REGISTER_S: Final = 10.0
REGISTER_TTL_MS: Final = 30_000
VIRTUAL_REGISTER_S: Final = 3600.0
"""On virtual time the clock jumps, so the roster keeps a worker for the longest time it knows."""
ANNOUNCE_S: Final = 20.0
"""A job that an older worker handed back as unknown waits for a minute; within it somebody must say he knows it."""
AGAIN_S: Final = 1.0
"""After an announcement that freed jobs: an older worker may have snatched and handed back some of them again."""


class Presence:
    """What one worker says about itself. All methods belong to the event loop's thread."""

    def __init__(
        self,
        app: App,
        backend: Backend,
        slots: Slots,
        *,
        instance: str,
        name: str,
        lanes: list[str],
        concurrency: int,
        capabilities: Capabilities,
        clock: Callable[[], float],
    ) -> None:
        self._app, self._backend, self._slots = app, backend, slots
        self._instance, self._lanes, self._capabilities, self._clock = instance, lanes, capabilities, clock
        self._virtual = app.pace.virtual
        self._sets: dict[PartitionKey, frozenset[str]] = {}
        self._freed = 0
        """Jobs the last announcement made ready again."""
        info = {
            "name": name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "lanes": lanes,
            "concurrency": concurrency,
            "capabilities": sorted(capabilities.tokens),
            "tasks": [f"{task.name}@{task.version}" for task in app.tasks.values()],
        }
        raw = msgspec.json.encode(info)
        # Of too many tasks it says none: half a list would read as if it did not know the others.
        self._info = (
            raw if len(raw) <= limits.WORKER_INFO_BYTES else msgspec.json.encode({**info, "tasks": None})
        )

    async def begin(self) -> None:
        """Before the first claim: be in the roster, publish and announce the tasks, know the capability sets."""
        await self.register()
        rows = [TaskRow(task.name, task.version, task.descriptor()) for task in self._app.tasks.values()]
        for at in range(0, len(rows), limits.ROWS_N):
            some = rows[at : at + limits.ROWS_N]
            await self._backend.call(PublishTasksArgs(partition=partition_key(0, "w"), items=some))
        self._freed = await self.announce()
        if self._capabilities:
            await self.learn(self._slots.parts)

    async def stay(self) -> None:
        """Say it again, for ever. On virtual time, look for work whenever time has moved: nothing polls there."""
        pace = self._app.pace
        registered = announced = self._clock()
        while True:
            await pace.pause(AGAIN_S if self._freed else REGISTER_S)
            try:
                if self._virtual:
                    self._slots.ask_everywhere()
                now = self._clock()
                if now - registered >= (VIRTUAL_REGISTER_S if self._virtual else REGISTER_S - 1):
                    await self.register()
                    registered = now
                    if self._capabilities:
                        await self.learn(self._slots.parts)
                if self._freed or now - announced >= ANNOUNCE_S - 1:
                    self._freed = await self.announce()
                    announced = now
            except Unavailable as away:
                log.warning("the store does not answer, trying again: %s", away)

    async def leave(self) -> None:
        """Out of the roster."""
        await self.register(ttl_ms=0)

    async def register(self, ttl_ms: int | None = None) -> None:
        if ttl_ms is None:
            ttl_ms = limits.LEASE_TTL_MAX_MS if self._virtual else REGISTER_TTL_MS
        await self._backend.call(
            RegisterWorkerArgs(
                partition=partition_key(0, "w"),
                worker_instance_id=WorkerInstanceId(self._instance),
                info=self._info,
                ttl_ms=ttl_ms,
            )
        )

    async def announce(self) -> int:
        """Tell every partition which tasks this worker knows: jobs that waited for one are ready again. How many."""
        known = [f"{task.name}@{task.version}" for task in self._app.tasks.values()][: limits.PAGE_MAX_N]
        total = 0
        for part in self._slots.parts:
            while True:
                count = (await self._backend.call(AnnounceTasksArgs(partition=part.key, tasks=known))).count
                total += count
                if count < limits.ROWS_N:
                    break
        return total

    async def learn(self, parts: Sequence[Part]) -> None:
        """Read which capability sets the jobs require, and serve those this worker meets."""
        for part in parts:
            asked = ListCapabilitySetsArgs(partition=part.key, lanes=self._lanes)
            table = await call_until_answered(self._backend, asked)
            met = (found.digest for found in table.sets if self._capabilities.serves(found.tokens.split(",")))
            self._sets[part.key] = frozenset(met)
        served = sorted(frozenset[str]().union(*self._sets.values()))
        if served != sorted(self._slots.capability_sets):
            self._slots.capability_sets = served
            self._slots.ask_everywhere()
