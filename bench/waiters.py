"""A drain while another process waits for a thousand of its results, beside the same drain without it.

The rule: both drains are filled by a process that then waits for results or for none, and the awaited jobs stand
everywhere in the queue, so that the waiting lasts as long as the drain. A process more on a machine of few cores costs
time by its existence; its own CPU time, and the server's, say what the waiting itself costs.
"""

from __future__ import annotations

import asyncio
import resource
import time

import ffsdk as ff
from bench.backlog import Order
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


async def waiting(url: str, lane: str, jobs: int, waiters: int) -> list[float]:
    """Submit the jobs, wait for some; answers when the last of these had its result (time.monotonic) and the CPU
    seconds of the waiting."""
    app, noop = app_of(url, lane)
    async with app.client() as client:
        made = await client.submit_many(noop, [Order(n, "", "x" * 4050) for n in range(jobs)])
        every = jobs // max(1, waiters)
        results = [asyncio.create_task(job.result()) for job in made[every - 1 :: every][:waiters]]
        await asyncio.sleep(0.5)  # until all are registered
        say_ready()
        before = _cpu_s()
        await asyncio.gather(*results)
        return [time.monotonic(), _cpu_s() - before]


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


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
    own_us: list[float] = []
    spent: dict[bool, list[float]] = {False: [], True: []}
    with server() as own:

        def measure(waiters: int) -> float:
            lane = f"waiters-{time.time_ns()}"
            with processes(start(waiting, url=own.url, lane=lane, jobs=jobs, waiters=waiters)) as running:
                ready(running[0])
                if not waiters:
                    running[0].wait(60)  # it has filled the queue, and goes
                own.db.config_resetstat()
                rate, ended = result_of(start(drain, url=own.url, lane=lane, jobs=jobs))
                usec = sum(stat["usec"] for name, stat in own.stats().items() if name.startswith("fcall"))
                spent[bool(waiters)].append(usec / jobs)
                if waiters:
                    told, cpu_s = result_of(running.pop())
                    late.append((told - ended) * 1000)
                    own_us.append(cpu_s / waiters * 1e6)
                return float(rate)

        found = interleave(size(5, 1), {"nobody waits": lambda: measure(0), "1,000 waiters": lambda: measure(WAITERS)})
    rows = [row(f"drain, 64 in flight, {what}", rates, "jobs/s") for what, rates in found.items()]
    slower = [100 * (1 - w / n) for n, w in zip(found["nobody waits"], found["1,000 waiters"], strict=True)]
    rows.append(row("slower with 1,000 waiters", slower, "%", "<= 10", "round by round; three busy processes"))
    rows.append(row("server time, nobody waits", spent[False], "us/job"))
    rows.append(row("server time, 1,000 waiters", spent[True], "us/job"))
    rows.append(row("CPU of the waiting process", own_us, "us/result"))
    rows.append(row("last waiter told, from the end of the drain", late, "ms"))
    return rows
