"""Ticking: ask each partition to do what is due, and come back when the next thing is.

Any number of tickers may run. One at a time looks after a partition, by a promise in its header that lasts a second;
the others look again when the promise lapses, each a little later at random, so that one takes over and not all.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from ffcore.backend import Backend, Subscription
from ffcore.contracts.settings import ListSettingsArgs
from ffcore.contracts.upkeep import TickArgs, Ticked, TickedPartition
from ffcore.errors import EngineError, Rejected, Unavailable
from ffcore.ids import PartitionKey
from ffcore.settings import REGISTRY, catching_up
from ffengine.post import Post
from ffengine.schedules import fire

log = logging.getLogger("flowfabric.ticker")

FAMILIES: Final = ("fp", "b", "q", "w")
ROUND_S: Final = 0.9
"""Between two looks at a partition of our own; below the second its promise lasts."""
JITTER_S: Final = 0.8
"""Between the end of another's promise and our look, at most: ten idle workers look about six times a second."""
TOGETHER_S: Final = 0.3
"""Looks that may as well come earlier do, by this much, so that one call serves them all."""
LIMIT: Final = 100
"""Timers and purges of one call, over all its partitions: some 3 ms of a held server."""
SETTINGS_N: Final = 50
"""Records of settings brought to a partition in one round."""
BACKOFF_S: Final = (0.05, 2.0)


class _Watch:
    """One partition: when to look, by this process's clock."""

    __slots__ = ("at", "heard_at", "key", "mine", "offset_s", "routine", "settings", "stuck_at")

    def __init__(self, key: PartitionKey) -> None:
        self.key, self.at, self.mine, self.offset_s = key, 0.0, False, 0.0
        self.routine = True
        """Nothing is known to be due at that time: the look may as well come earlier, along with others."""
        self.heard_at: float | None = None
        """What a message said while a call was under way, whose answer may be older."""
        self.settings = 0
        """Revision up to which it has heard what operators set; of the registry, what there is."""
        self.stuck_at = -1
        """The revision of the store at which it refused a record: nothing to try before the next change."""


class Ticker:
    """Ticks every partition of a store until stopped. `name`: at most 40 bytes without spaces, one per ticker."""

    def __init__(
        self,
        backend: Backend,
        name: str,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._backend, self._name, self._limit, self._clock = backend, name, limit, clock
        self._post = Post(backend)
        self._rng = rng or random.Random()
        config = backend.config
        self._watches = {key: _Watch(key) for family in FAMILIES for key in config.keys(family)}
        self._by_channel = {backend.ticker_channel(key): watch for key, watch in self._watches.items()}
        self._nudged = asyncio.Event()
        self._stopping = False
        self.rounds_n = 0
        """Calls made, for tests and status."""
        self.fired_n = 0
        """Schedules fired, or passed over."""
        self.done_n = 0
        """Timers and purges done."""

    async def run(self) -> None:
        """Tick until `stop`. Survives a store that is away; raises what waiting does not mend."""
        subscription: Subscription | None = None
        failures = 0
        try:
            while not self._stopping:
                try:
                    if subscription is None:
                        subscription = await self._backend.subscribe(tuple(self._by_channel), self._heard, self._gap)
                    await self._round()
                    failures = 0
                except Unavailable as away:
                    if away.code == "closed" or self._stopping:
                        raise
                    log.warning("the store does not answer the ticker, trying again: %s", away)
                    first, most = BACKOFF_S
                    await self._pause(min(most, first * 2**failures) * (0.5 + self._rng.random() / 2))
                    failures += 1
                    continue
                soonest = min(watch.at for watch in self._watches.values())
                await self._pause(soonest - self._clock())
        finally:
            if subscription is not None:
                await _quietly(subscription)

    def stop(self) -> None:
        """Let `run` return after the call under way. Other tickers take over within about two seconds."""
        self._stopping = True
        self._nudged.set()

    async def _round(self) -> None:
        now = self._clock()
        watches = self._watches.values()
        if not any(watch.at <= now + 0.005 for watch in watches):
            return
        # What is due soon comes along: one call now is better than several.
        due = [watch.key for watch in watches if watch.at <= now + (TOGETHER_S if watch.routine else 0.005)]
        for key in due:
            self._watches[key].heard_at = None
        groups = [due] if self._backend.grouped else [[key] for key in due]
        calls = [TickArgs(partitions=group, ticker=self._name, limit=self._limit) for group in groups]
        later = self._rng.uniform(0.05, JITTER_S)
        sent = self._clock()
        answers = await self._backend.call_all(calls)
        took = self._clock() - sent
        failed: EngineError | None = None
        owed: list[Coroutine[Any, Any, int]] = []
        for answer in answers:
            if not isinstance(answer, Ticked):
                failed = answer  # of one node of a cluster: the partitions of the others are looked after all the same
                continue
            for row in answer.partitions:
                self._take(row, later, took)
                if row.owed:
                    owed.append(self._post.deliver(row.partition, row.owed))
                if row.schedules:
                    owed.append(self._fire(row))
        await asyncio.gather(*owed)
        if failed is not None:
            raise failed
        self.rounds_n += len(calls)
        await self._bring_settings()

    async def _bring_settings(self) -> None:
        """Tell partitions of ours what operators have set since they last heard: a fan-out did not reach them."""
        latest = self._watches[REGISTRY].settings
        for watch in self._watches.values():
            if not watch.mine or not watch.key.startswith("{fp:") or not watch.settings < latest != watch.stuck_at:
                continue
            page = await self._backend.call(
                ListSettingsArgs(partition=REGISTRY, after_revision=watch.settings, limit=SETTINGS_N)
            )
            for call in catching_up(page.records, watch.key, watch.settings):
                try:
                    watch.settings = (await self._backend.call(call)).reached
                except Rejected as refused:
                    log.warning("settings of %s stay as they were in %s: %s", call.name, watch.key, refused)
                    watch.stuck_at = latest
                    break

    async def _fire(self, row: TickedPartition) -> int:
        """Fire what is due, and come back when the next schedule is."""
        watch = self._watches[row.partition]
        done, next_at_ms = await fire(self._backend, row)
        self.fired_n += done
        if next_at_ms is not None:
            # One that stays due although nothing moved is not asked for in a tight loop.
            at = max(next_at_ms / 1000 - watch.offset_s, self._clock() + (0.0 if done else 0.01))
            if at < watch.at:
                watch.at, watch.routine = at, False
        return done

    def _take(self, row: TickedPartition, later: float, took: float) -> None:
        watch, now = self._watches[row.partition], self._clock()
        watch.mine, watch.settings = row.mine, row.settings
        watch.offset_s = row.now_ms / 1000 - now
        self.done_n += row.done + row.reaped
        wait = max(0.0, (row.next_due_ms - row.now_ms) / 1000)
        watch.routine = not row.mine or wait > ROUND_S
        if not row.mine:
            watch.at = now + wait + later
        elif row.done >= self._limit:
            watch.at = now
        elif row.reaped and not row.done:
            # Forgetting is not urgent: a backlog of it may have two thirds of the server, never all.
            watch.at = now + min(max(wait, took / 2), ROUND_S)
        elif row.done or row.reaped:
            watch.at = now + min(wait, ROUND_S)
        else:
            # Something that is due and was not done is not asked for in a tight loop.
            watch.at = now + min(max(wait, 0.01), ROUND_S)
        if watch.heard_at is not None and watch.heard_at < watch.at:
            watch.at, watch.routine = watch.heard_at, False

    def _heard(self, channel: str, data: bytes) -> None:
        """Something is due before we would look. Only whose promise holds has to act."""
        watch = self._by_channel.get(channel)
        if watch is None or not watch.mine or not data.isdigit():
            return
        at = int(data) / 1000 - watch.offset_s
        watch.heard_at = at if watch.heard_at is None else min(at, watch.heard_at)
        if at < watch.at:
            watch.at, watch.routine = at, False
            self._nudged.set()

    def _gap(self) -> None:
        for watch in self._watches.values():
            watch.at = 0.0
        self._nudged.set()

    async def _pause(self, seconds: float) -> None:
        if self._stopping:
            return
        self._nudged.clear()
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._nudged.wait()
        except TimeoutError:
            pass


async def _quietly(subscription: Subscription) -> None:
    try:
        await subscription.close()
    except Unavailable:
        pass
