"""How fast the past is forgotten, beside how fast new past is made, and what a purge costs a drain.

The rule: purgeable records are copies of one that a worker finished, two days old; the ticker of a process of its own
removes them.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import ffsdk as ff
from bench.backlog import Order, drain
from bench.harness import (
    Row,
    Server,
    Size,
    child,
    interleave,
    multiply,
    processes,
    ready,
    row,
    say_ready,
    server,
    start,
    while_running,
)
from ffbackend_valkey.stores import connect
from ffengine.tick import Ticker

LANE = "old"
TWO_DAYS_MS = 2 * 24 * 3600 * 1000


async def ticking(url: str) -> None:
    """A ticker and nothing else."""
    backend = await connect(url)
    ticker = Ticker(backend, "bench-ticker")
    running = asyncio.create_task(ticker.run())
    say_ready()
    await running


async def all_results(jobs: list[ff.Job[None]]) -> None:
    await asyncio.gather(*(job.result() for job in jobs))


async def finish_one_each(url: str) -> None:
    """One finished job of LANE in every partition."""
    app = ff.App(url)

    @app.task(name="old", lane=LANE)
    async def old(payload: Order) -> None:
        return None

    async with app.client() as client:
        worker = app.worker(lanes=[LANE], tick=False)
        running = asyncio.create_task(worker.run())
        jobs = await client.submit_many(old, [Order(n, "", "x" * 80) for n in range(40)])
        await while_running(all_results(jobs), running)
        await worker.stop()
        await running


def indexes(own: Server) -> dict[str, str]:
    """Of the finished jobs of LANE, by partition header."""
    found: dict[str, str] = {}
    for n in range(4):
        header = f"ff:{{fp:{n}}}"
        number: Any = own.db.hget(f"{header}:lanes", LANE)
        found[header] = f"{header}:i:{number.decode()}:completed"
    return found


def age(own: Server, records: int) -> int:
    """That many purgeable records, due now. Answers how many there are."""
    asyncio.run(finish_one_each(own.url))
    then = int(time.time() * 1000) - TWO_DAYS_MS
    for header, index in indexes(own).items():
        member: Any = own.db.zrange(index, -1, -1)[0]
        multiply(own, header, index, member.decode(), records // 4, then)
        number = index.split(":")[-2]
        own.db.zadd(f"{header}:reap", {f"lane:{number}": then})
    return left(own)


def left(own: Server) -> int:
    yesterday = int(time.time() * 1000) - TWO_DAYS_MS // 2
    return sum(int(own.db.zcount(index, "-inf", yesterday)) for index in indexes(own).values())


def run(size: Size) -> list[Row]:
    records, jobs = size(200_000, 20_000), size(10_000, 2_000)
    alone: list[float] = []
    beside: list[float] = []
    with server() as own:
        for _ in range(size(3, 1)):
            before = age(own, records)
            with processes(start(ticking, url=own.url)) as running:
                ready(running[0])
                began = time.monotonic()
                while left(own):
                    time.sleep(0.02)
                alone.append(before / (time.monotonic() - began))

        def rate(purging: bool) -> float:
            if not purging:
                return float(child(drain, url=own.url, jobs=jobs, flight=64, lanes=[f"new-{time.time_ns()}"]))
            before = age(own, 2 * records)
            with processes() as running:
                began = time.monotonic()
                running.append(start(ticking, url=own.url))
                ready(running[0])
                found = child(drain, url=own.url, jobs=jobs, flight=64, lanes=[f"new-{time.time_ns()}"])
                beside.append((before - left(own)) / (time.monotonic() - began))
            for index in indexes(own).values():
                own.db.delete(index)
            return float(found)

        found = interleave(size(3, 1), {"no purge": lambda: rate(False), "a purge under way": lambda: rate(True)})
    rows = [row("purged, nothing else to do", alone, "records/s"), row("purged beside a drain", beside, "records/s")]
    return rows + [row(f"drain, 64 in flight, {what}", rates, "jobs/s") for what, rates in found.items()]
