"""Schedules: what a fire costs the server beside 100,000 of them, and how late a thousand are that are due at once.

The rule: the cost is `usec` of INFO commandstats over full calls. Lateness is what the store wrote: when a run was
made, less the instant it was for; one ticker fires, and nothing else runs.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.harness import Row, Server, Size, quantile, row, server
from ffbackend_valkey.stores import connect
from ffcore import limits
from ffcore.backend import Backend
from ffcore.contracts.schedule import FireSchedulesArgs, ListSchedulesArgs, PutScheduleArgs
from ffcore.contracts.upkeep import TickArgs
from ffcore.ids import PartitionKey, partition_of
from ffcore.schedules import Spec, acted_at, firings, schedule_id
from ffengine import Ticker

HOUR_MS = 3_600_000
POLICY = b'{"retry_policy":{"max_retries":3},"max_replay_count":10}'
"""As a declared task has one."""
AT_ONCE_N = 1_000
AHEAD_MS = 3_000


async def fill(backend: Backend, n: int, due_ms: int, prefix: str, catch_up: Any = "one") -> None:
    """So many schedules of one task, all due at one instant."""
    spec = Spec(every_ms=HOUR_MS, start_ms=due_ms, catch_up=catch_up)

    def put(k: int) -> PutScheduleArgs:
        id_ = schedule_id("bench", f"{prefix}{k}", backend.config.fp)
        return PutScheduleArgs(
            schedule_id=id_, name=f"{prefix}{k}", namespace="bench", spec=spec.pack(), digest="d" * 32,
            lane_id="bench", execution_kind="report", policy=POLICY, payload=b'{"day":1}', due_ms=due_ms,
            at_ms=acted_at(spec, id_, due_ms),
        )  # fmt: skip

    for at in range(0, n, 500):
        for answer in await backend.call_all([put(k) for k in range(at, min(at + 500, n))]):
            if isinstance(answer, Exception):
                raise answer


def used(own: Server) -> int:
    """Bytes the server holds."""
    return int(own.db.info("memory")["used_memory"])  # pyright: ignore[reportUnknownMemberType]


def forget_stats(own: Server) -> None:
    own.db.config_resetstat()  # pyright: ignore[reportUnknownMemberType]


async def cost(own: Server, n: int, calls: int) -> tuple[list[float], float, float]:
    """Microseconds of one fire in full calls, those of a tick's row, and bytes of one schedule; n in one partition."""
    backend = await connect(own.url)
    try:
        before = used(own)
        later = n - calls * limits.FIRES_N
        await fill(backend, later, int(time.time() * 1000) + 24 * HOUR_MS, "later")
        size = (used(own) - before) / later
        now_ms = int(time.time() * 1000)
        await fill(backend, calls * limits.FIRES_N, now_ms - 1_000, "due")
        per_fire, ticks_us, answered = list[float](), 0.0, 0
        for _ in range(calls):
            forget_stats(own)
            ticked = await backend.call(TickArgs(partitions=[PartitionKey("{fp:0}")], ticker="bench", force=True))
            [found] = ticked.partitions
            ticks_us, answered = ticks_us + own.stats()["fcall"]["usec"], answered + len(found.schedules)
            rows = [r for s in found.schedules for r in firings(s.schedule_id, s.spec, s.due_ms, found.now_ms, 1)]
            if not rows:
                break
            forget_stats(own)
            answer = await backend.call(FireSchedulesArgs(partition=partition_of(rows[0].schedule_id), items=rows))
            assert all(item.state == "fired" for item in answer.items)
            per_fire.append(own.stats()["fcall"]["usec"] / len(rows))
        return per_fire, ticks_us / max(1, answered), size
    finally:
        await backend.close()


async def late(own: Server, n: int) -> list[float]:
    """How many milliseconds after their instant runs were made, of n schedules due at one instant."""
    backend = await connect(own.url)
    ticker = Ticker(backend, "bench")
    try:
        due_ms = int(time.time() * 1000) + AHEAD_MS
        await fill(backend, n, due_ms, "once")
        running = asyncio.create_task(ticker.run())
        lates = list[float]()
        while len(lates) < n:
            await asyncio.sleep(0.5)
            lates = list[float]()
            for partition in backend.config.keys("fp"):
                cursor: str | None = None
                while True:
                    page = await backend.call(ListSchedulesArgs(partition=partition, cursor=cursor, limit=1_000))
                    lates += [s.last_at_ms - s.last_ms for s in page.schedules if s.last_ms == due_ms]
                    cursor = page.cursor
                    if not cursor:
                        break
        ticker.stop()
        await running
        return lates
    finally:
        await backend.close()


def run(size: Size) -> list[Row]:
    many = size(100_000, 5_000)
    with server(partitions=1) as own:
        per_fire, per_row, bytes_ = asyncio.run(cost(own, many, size(20, 5)))
    rows = [
        row(f"a fire, of {many:,} schedules", per_fire, "us", "<= 100", f"in calls of {limits.FIRES_N}"),
        Row("a schedule in a tick's answer", per_row, "us"),
        Row("a schedule, 9 bytes of payload", bytes_, "bytes"),
    ]
    with server(partitions=4) as own:
        found = asyncio.run(late(own, AT_ONCE_N))
    for word, q in (("p50", 0.5), ("p99", 0.99), ("last", 1.0)):
        target = "<= 1000" if word == "last" else ""
        rows.append(Row(f"{AT_ONCE_N:,} due at one instant, {word} late by", quantile(found, q), "ms", target=target))
    return rows
