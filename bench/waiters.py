"""A drain while another process waits for a thousand of its results, beside the same drain without it."""

from __future__ import annotations

import asyncio
import time

import ffsdk as ff
from bench.backlog import Order, fill
from bench.harness import (
    Row,
    Size,
    interleave,
    processes,
    ready,
    result_of,
    row,
    say_ready,
    server,
    start,
    while_running,
)
from ffcore.contracts.operator import LaneStatsArgs
from ffcore.ids import LaneId

WAITERS = 1000


def app_of(url: str, lane: str) -> tuple[ff.App, ff.Task[Order, None]]:
    app = ff.App(url)

    @app.task(name="noop", lane=lane)
    async def noop(payload: Order) -> None:
        return None

    return app, noop


async def waiting(url: str, lane: str, waiters: int) -> float:
    """Submit some jobs, wait for all; answers the seconds from the drain's begin that the last one took."""
    app, noop = app_of(url, lane)
    async with app.client() as client:
        jobs = await client.submit_many(noop, [Order(n, "", "x" * 4050) for n in range(waiters)])
        results = [asyncio.create_task(job.result()) for job in jobs]
        await asyncio.sleep(0.5)  # until all are registered
        say_ready()
        await asyncio.gather(*results)
    return time.monotonic()


async def drain(url: str, lane: str, jobs: int) -> list[float]:
    """Jobs a second of one worker until the lane is empty, and when the last one had ended."""
    app, _ = app_of(url, lane)
    backend = await app.backend()
    worker = app.worker(lanes=[lane], concurrency=64)
    running = asyncio.create_task(worker.run())
    await while_running(worker.started.wait(), running)
    partitions = backend.config.keys()
    began = time.perf_counter()
    asked = [LaneStatsArgs(partition=key, lane_id=LaneId(lane)) for key in partitions]
    while not running.done():
        await asyncio.sleep(0.01)
        counts = [answer for answer in await backend.call_all(asked) if not isinstance(answer, Exception)]
        if sum(answer.counts.get("completed", 0) for answer in counts) >= jobs:
            break
    took, ended = time.perf_counter() - began, time.monotonic()
    await worker.stop()
    await running
    await app.release()
    return [jobs / took, ended]


def run(size: Size) -> list[Row]:
    jobs = size(20_000, 4_000)
    late: list[float] = []
    spent: dict[bool, list[float]] = {False: [], True: []}
    with server() as own:

        def measure(waiters: int) -> float:
            lane = f"waiters-{time.time_ns()}"
            with processes() as running:
                if waiters:
                    running.append(start(waiting, url=own.url, lane=lane, waiters=waiters))
                    ready(running[0])
                asyncio.run(fill(own.url, [lane], jobs - waiters, 0, app_of(own.url, lane)[1].policy))
                own.db.config_resetstat()
                rate, ended = result_of(start(drain, url=own.url, lane=lane, jobs=jobs))
                usec = sum(stat["usec"] for name, stat in own.stats().items() if name.startswith("fcall"))
                spent[bool(waiters)].append(usec / jobs)
                if waiters:
                    late.append((result_of(running.pop()) - ended) * 1000)
                return float(rate)

        found = interleave(size(3, 1), {"nobody waits": lambda: measure(0), "1,000 waiters": lambda: measure(WAITERS)})
    rows = [row(f"drain, 64 in flight, {what}", rates, "jobs/s") for what, rates in found.items()]
    slower = [100 * (1 - w / n) for n, w in zip(found["nobody waits"], found["1,000 waiters"], strict=True)]
    rows.append(row("slower with 1,000 waiters", slower, "%", "<= 10", "round by round; three busy processes"))
    rows.append(row("server time, nobody waits", spent[False], "us/job"))
    rows.append(row("server time, 1,000 waiters", spent[True], "us/job"))
    rows.append(row("last waiter told, from the end of the drain", late, "ms", note="they were first in line"))
    return rows


