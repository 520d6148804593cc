"""Fairness: one tenant floods a lane with 100,000 jobs; how long jobs of 99 small tenants wait beside it.

The rule: waits are counted in rounds, one job of every waiting tenant each, not in seconds: the jobs that started
between a submit and the start of its job, through the number of tenants. A small tenant has one job waiting at a time
and submits the next when it has started.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec

import ffsdk as ff
from bench.harness import Row, Size, child, quantile, row, server, while_running

LANE = "tenants"
SMALL = 99
FLOOD = "flood"


class Work(msgspec.Struct):
    tenant: str
    number: int


def app_of(url: str, lane: str, started: Any) -> tuple[ff.App, ff.Task[Work, None]]:
    app = ff.App(url)

    @app.task(name="work", lane=lane, fairness="payload.tenant")
    async def work(payload: Work) -> None:
        started(payload)

    return app, work


async def small_tenants(url: str, lane: str, flood: int, jobs: int) -> dict[str, Any]:
    """Rounds each small job waited, of `jobs` of every small tenant; and who was served meanwhile."""
    ran = 0
    served: Counter[str] = Counter()
    waiting: dict[str, asyncio.Future[int]] = {}

    def started(payload: Work) -> None:
        nonlocal ran
        ran += 1
        served[payload.tenant] += 1
        if payload.tenant != FLOOD:
            waiting.pop(payload.tenant).set_result(ran)

    app, work = app_of(url, lane, started)
    loop = asyncio.get_running_loop()
    rounds: list[float] = []

    async def tenant(name: str) -> None:
        for n in range(jobs):
            before = ran
            here = waiting[name] = loop.create_future()
            await client.submit(work, Work(name, n))
            rounds.append((await here - before) / (SMALL + 1))

    async with app.client() as client:
        for at in range(0, flood, 10_000):
            await client.submit_many(work, [Work(FLOOD, n) for n in range(at, min(at + 10_000, flood))])
        worker = app.worker(lanes=[lane], concurrency=16)
        running = asyncio.create_task(worker.run())
        await while_running(worker.started.wait(), running)
        while ran < 200:  # the flood alone at first
            await asyncio.sleep(0.01)
        served.clear()
        began = time.perf_counter()
        await while_running(asyncio.gather(*(tenant(f"t{n}") for n in range(SMALL))), running)
        took = time.perf_counter() - began
        await worker.stop()
        await running
    return {"rounds": rounds, "flood": served[FLOOD], "small": served.total() - served[FLOOD], "took": took}


def run(size: Size) -> list[Row]:
    flood, jobs = size(100_000, 10_000), size(40, 10)
    p50: list[float] = []
    p99: list[float] = []
    worst: list[float] = []
    rate: list[float] = []
    share: list[float] = []
    for turn in range(size(3, 1)):
        with server() as own:
            found = child(small_tenants, url=own.url, lane=f"{LANE}{turn}", flood=flood, jobs=jobs)
        p50.append(quantile(found["rounds"], 0.5))
        p99.append(quantile(found["rounds"], 0.99))
        worst.append(max(found["rounds"]))
        rate.append((found["flood"] + found["small"]) / found["took"])
        share.append(100 * found["flood"] / (found["flood"] + found["small"]))
    what = f"{SMALL} small tenants beside one with {flood:,} jobs"
    return [
        row(f"{what}: wait, p50", p50, "rounds", note="a round: a job of every waiting tenant"),
        row(f"{what}: wait, p99", p99, "rounds", "<= 3"),
        row("  the longest", worst, "rounds"),
        row("  what the flood got meanwhile", share, "% of the jobs", note="1 % were its turn, if nobody paused"),
        row("  started meanwhile", rate, "jobs/s"),
    ]
