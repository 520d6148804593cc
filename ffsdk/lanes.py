"""A lane seen by its operator: pause, resume, drain, its order, its limits, what it keeps, and what is in it.

A lane's settings are a record with a revision and a copy in every partition; see `ffsdk.settings`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from ffcore import checks, ids, limits
from ffcore.admission import Amount, amount_text
from ffcore.errors import InvalidArgument, NotFound
from ffcore.ids import LaneId, PartitionKey, QuotaPolicyId
from ffcore.settings import lane_name, weights_name
from ffsdk.fanout import ask_all
from ffsdk.settings import LaneSettings, change, lane_settings, lane_weights
from ffsdk.times import Duration, from_ms, span_ms
from ffsdk.views import FanOut, LaneHalt, LaneStats

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ffcore.backend import Backend
    from ffcore.contracts.operator import LaneCounts
    from ffsdk.client import Client

RATE_WINDOW_MS = 10_000
RATE_ENTRIES_N = 1_000
"""At most so much of a feed is read for a rate: one call per partition."""
_TERMINAL = ("completed", "failed", "cancelled", "expired", "skipped")


class Lane:
    """One lane, by name; it exists from its first job or its first setting."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = LaneId(ids.check_name(name, "lane"))
        self._client = client

    def __repr__(self) -> str:
        return f"<Lane {self.name}>"

    async def pause(self, *, revision: int | None = None) -> FanOut:
        """Take new work, start none. What runs goes on.

        Here and below, `revision`: only if the settings are still those of that revision; else Conflict.
        """
        return await self._set(revision, state="paused")

    async def resume(self, *, revision: int | None = None) -> FanOut:
        """Back to normal, from paused, draining or disabled."""
        return await self._set(revision, state="active")

    async def drain(self, *, revision: int | None = None) -> FanOut:
        """Start what is there, take no new work: submits are refused, `lane_closed`."""
        return await self._set(revision, state="draining")

    async def disable(self, *, revision: int | None = None) -> FanOut:
        """Neither take new work nor start any."""
        return await self._set(revision, state="disabled")

    async def aged(self, seconds: int, *, revision: int | None = None) -> FanOut:
        """Order jobs by how long they have waited, a point of priority being worth so many seconds of it: nothing waits
        for ever. Fairness keys come first, then that. Jobs in line are moved over by whoever ticks, within seconds."""
        checks.whole(seconds, "seconds", 1, limits.AGED_MAX_S)
        return await self._set(revision, aged_s=seconds)

    async def strict(self, *, revision: int | None = None) -> FanOut:
        """Higher priorities always go first, whatever has waited; the way lanes begin."""
        return await self._set(revision, aged_s=0)

    async def keep(
        self, *, age: Duration | None = None, count: int | None = None, bytes: int | None = None,
        revision: int | None = None,
    ) -> FanOut:  # fmt: skip
        """Bound what is kept of ended jobs, in the whole store; 0 is no bound of that kind, None leaves it as it is."""
        checks.whole(count, "count", 0)
        checks.whole(bytes, "bytes", 0)
        given = {"age_ms": None if age is None else span_ms(age, "age"), "count": count, "bytes": bytes}
        if all(value is None for value in given.values()):
            raise InvalidArgument("keep what? Give age=, count= or bytes=")
        return await self._set(revision, **{name: value for name, value in given.items() if value is not None})

    async def limit(
        self, *, concurrency: int | None = None, rate: tuple[int, Duration] | None = None, revision: int | None = None
    ) -> FanOut:
        """Run at most so many of its jobs at once, and start at most `n` of them in any window: ``rate=(n, seconds)``.
        Neither: no limit any more. It is a quota, ``lane:<name>``; whoever is over it waits in line, whatever else the
        job needs. Holds in the whole store, to the job."""
        if concurrency is None and rate is None:
            return await self._set(revision, quota="")
        from ffsdk.quotas import rate_of

        starts, window_s = rate_of(rate)
        checks.whole(concurrency, "concurrency", 1, limits.QUOTA_N)
        own = await _put_quota(self._client.backend, self.name, window_s or 0, starts or 0, concurrency or 0)
        return await self._set(revision, quota=own)

    async def backlog(
        self, *, count: int | None = None, bytes: int | None = None, revision: int | None = None
    ) -> FanOut:  # fmt: skip
        """Refuse submits (StoreFull, code `lane_full`) while so many jobs stand in line (ready, delayed or blocked), or
        so many bytes of payload of jobs that have not ended; 0: no bound of that kind, None: as it is. Each partition
        has its share, so a lane may be full a little before its line is as long as that."""
        checks.whole(count, "count", 0)
        checks.whole(bytes, "bytes", 0)
        given = {"max_count": count, "max_bytes": bytes}
        if all(value is None for value in given.values()):
            raise InvalidArgument("how much of a backlog? Give count= or bytes=")
        return await self._set(revision, **{name: value for name, value in given.items() if value is not None})

    async def weigh(self, weights: Mapping[str, Amount], *, revision: int | None = None) -> FanOut:
        """Give fairness keys more turns, or fewer: one of weight 2 gets two where others get one. From 0.01 to 100;
        what is not named stays, 1 is as good as none. Jobs in line keep the turns they have."""
        packed: dict[str, object] = {}
        for key, weight in weights.items():
            checks.text(key, "fairness key", limits.KEY_BYTES)
            text = amount_text(weight, f"weight of {key}")
            if not 1 / limits.WEIGHT_MAX <= float(text) <= limits.WEIGHT_MAX:
                raise InvalidArgument(f"weight of {key!r:.80} is {text}: use one from 0.01 to {limits.WEIGHT_MAX}")
            packed[key] = text
        if not packed:
            raise InvalidArgument("which weights? Give at least one fairness key")
        return await change(self._client.backend, weights_name(self.name), packed, revision)

    async def weights(self) -> dict[str, float]:
        """The fairness keys that do not weigh 1."""
        return await lane_weights(self._client.backend, self.name)

    async def settings(self) -> LaneSettings:
        """What it was told, at which revision, and who has not heard of it yet."""
        return await lane_settings(self._client.backend, self.name)

    async def _set(self, revision: int | None, **changes: object) -> FanOut:
        return await change(self._client.backend, lane_name(self.name), changes, revision)

    async def stats(self) -> LaneStats:
        """Its numbers, summed over the partitions that answered. NotFound if none knows the lane."""
        from ffcore.contracts.operator import LaneStatsArgs

        backend = self._client.backend
        reached, failed = await ask_all(backend, lambda p: LaneStatsArgs(partition=p, lane_id=self.name))
        unknown = [partition for partition, error in failed.items() if isinstance(error, NotFound)]
        if not reached and unknown:
            raise NotFound(f"lane {self.name} has no jobs and no settings", code="lane_not_found", detail=self.name)
        lost: dict[str, str] = {
            partition: str(error) for partition, error in failed.items() if not isinstance(error, NotFound)
        }
        counts: dict[str, int] = {}
        for found in reached.values():
            for word, n in found.counts.items():
                counts[word] = counts.get(word, 0) + n
        states = {found.state for found in reached.values()}
        ages = [found.now_ms - found.oldest_created_at for found in reached.values() if found.oldest_created_at]
        rate_in, rate_out = await self._rates(reached)
        depth = {word: counts.get(word, 0) for word in ("delayed", "active", "suspended", *_TERMINAL)}
        held = counts.get("blocked", 0) + sum(found.held for found in reached.values())
        waiting = counts.get("ready", 0) + counts.get("granted", 0) + counts.get("blocked", 0)
        return LaneStats(
            state=states.pop() if len(states) == 1 else "mixed", held=held,
            depth={"waiting": waiting, **depth}, halts=_halts(reached),
            oldest_age=max(ages, default=0) / 1000, rate_in=rate_in, rate_out=rate_out,
            idle_workers=max((found.parked for found in reached.values()), default=0), not_reached=lost,
        )  # fmt: skip

    async def _rates(self, reached: dict[PartitionKey, LaneCounts]) -> tuple[float, float]:
        """Jobs created and ended per second, from the newest part of the feeds."""
        created = ended = 0.0
        for partition, counts in reached.items():
            n_in, n_out, window_s = await self._moves(partition, counts.now_ms)
            created, ended = created + n_in / window_s, ended + n_out / window_s
        return round(created, 3), round(ended, 3)

    async def _moves(self, partition: PartitionKey, now_ms: int) -> tuple[int, int, float]:
        from ffcore.contracts.reads import ReadEventsArgs
        from ffcore.errors import Rejected

        backend, since_ms = self._client.backend, max(0, now_ms - RATE_WINDOW_MS)
        try:
            feed = await backend.call(ReadEventsArgs(partition=partition, after=f"{since_ms}-0", limit=RATE_ENTRIES_N))
        except Rejected as refused:
            if refused.code != "cursor_expired":
                raise
            # Busier than the feed is long: what it still holds is the window.
            feed = await backend.call(ReadEventsArgs(partition=partition, after="-", limit=RATE_ENTRIES_N))
            first = re.match(r"\d+", feed.entries[0].event_id) if feed.entries else None
            since_ms = int(first[0]) if first else since_ms
        until_ms = now_ms
        if len(feed.entries) == RATE_ENTRIES_N:
            until_ms = int(feed.entries[-1].event_id.partition("-")[0])
        created = ended = 0
        for entry in feed.entries:
            for kind, text in zip(entry.fields[::2], entry.fields[1::2], strict=True):
                if kind != "e":
                    continue
                execution, was, now, _, _, lane = text.split(" ")[:6]
                if (was == "-" or now in _TERMINAL) and was != now:
                    name = await self._client.lane_names.of(partition, lane, execution)
                    if name == self.name:
                        created, ended = created + (was == "-"), ended + (now in _TERMINAL)
        return created, ended, max(until_ms - since_ms, 1_000) / 1000


def _halts(reached: dict[PartitionKey, LaneCounts]) -> list[LaneHalt]:
    """What is halted, over all partitions: those of one reason that wait for the same are one."""
    found: dict[tuple[str, str], LaneHalt] = {}
    for one in (halt for counts in reached.values() for halt in counts.halts):
        kind: Literal["budget", "quota"] = "budget" if one.kind == "b" else "quota"
        known = found.get((kind, one.detail))
        until = max(filter(None, (from_ms(one.until), known.until if known else None)), default=None)
        found[kind, one.detail] = LaneHalt(
            kind=kind, detail=one.detail, jobs=one.jobs + (known.jobs if known else 0), until=until
        )
    return sorted(found.values(), key=lambda halt: (-halt.jobs, halt.detail))


async def _put_quota(backend: Backend, lane: LaneId, window_s: int, starts: int, concurrency: int) -> QuotaPolicyId:
    """The lane's own quota, with these limits. One for the store, whatever namespace its jobs are of."""
    from ffcore.contracts.quota import ChangeQuotaArgs, CreateQuotaPolicyArgs, QuotaPolicyAlreadySatisfied
    from ffsdk.admit import quota_id

    name = f"lane:{lane}"
    own = quota_id("default", name, backend.config)
    made = await backend.call(CreateQuotaPolicyArgs(
        quota_policy_id=own, name=name, window_seconds=window_s, max_requests_per_window=starts,
        max_concurrent=concurrency,
    ))  # fmt: skip
    if isinstance(made, QuotaPolicyAlreadySatisfied):
        await backend.call(ChangeQuotaArgs(
            quota_policy_id=own, window_seconds=window_s, max_requests_per_window=starts,
            max_concurrent=concurrency,
        ))  # fmt: skip
    return own


class LaneNames:
    """Names of the numbers that stand for lanes in a partition's feed; learnt from a record or the partition's list,
    kept for good (a number is never given to another lane, also when its own is forgotten)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[tuple[PartitionKey, str], LaneId] = {}

    async def of(self, partition: PartitionKey, number: str, uuid: str) -> LaneId | None:
        """The lane of an execution's feed entry; None if its record is gone and the lane is forgotten."""
        known = self._known.get((partition, number))
        if known is not None:
            return known
        from ffcore.contracts.reads import ReadExecutionArgs
        from ffcore.ids import ExecutionId

        try:
            stored = await self._client.backend.call(ReadExecutionArgs(execution_id=ExecutionId(f"{partition}:{uuid}")))
        except NotFound:  # purged: the partition still knows the lane, unless that is forgotten too
            await self._learn(partition)
        else:
            self._known[partition, stored.fields["lane"]] = stored.lane_id
        return self._known.get((partition, number))

    async def _learn(self, partition: PartitionKey) -> None:
        from ffcore.contracts.operator import ListLanesArgs

        after: str | None = None
        while after != "":
            asked = ListLanesArgs(partition=partition, after=after, limit=limits.PAGE_MAX_N)
            page = await self._client.backend.call(asked)
            self._known.update({(partition, lane.number): lane.lane_id for lane in page.lanes})
            after = page.cursor
