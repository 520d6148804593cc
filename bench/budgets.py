"""One budget and two hundred racing jobs in four worker processes, half of which are killed.

The rule: the budget is read as often as one process can, all the time; reserved and used together may never be above
the limit. After the kills everything is worked off by those that live, and nothing may stay reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import ffsdk as ff
from bench.harness import Row, Size, child, processes, ready, result_of, row, say_ready, serve, server, start

LANE = "budget"
NAME = "race"
LIMIT, ESTIMATE, COSTS = 10_000, 100, 30
"""What a killed handler has spent counts, and is spent again by the next attempt: so that all fit, a job costs less."""
PROCESSES, KILLED = 4, 2
LEASE_S = 1.0
SETTLED_S = 90.0


def app_of(url: str) -> tuple[ff.App, ff.Task[int, int]]:
    app = ff.App(url)

    @app.task(name="spend", lane=LANE, lease=LEASE_S, budget=ff.Budget(NAME, estimate={"units": ESTIMATE}))
    async def spend(number: int, ctx: ff.Context) -> int:
        await asyncio.sleep(random.uniform(0.05, 0.15))
        await ctx.spend(units=COSTS)
        await asyncio.sleep(random.uniform(0, 0.05))
        return number

    return app, spend


async def worker(url: str) -> None:
    app, _ = app_of(url)
    await serve(app.worker(lanes=[LANE], concurrency=50, lease=LEASE_S))


async def watch(url: str, until: str) -> dict[str, Any]:
    """Read the budget all the time until a job of the lane `until` exists; the highest sum seen, and how often it was
    read."""
    app, _ = app_of(url)
    most = 0.0
    reads = 0
    async with app.client() as client:
        budget = await client.budget(NAME)
        say_ready()
        while True:
            status = await budget.status()
            reads += 1
            most = max(most, status.usage.get("units", 0) + status.reserved.get("units", 0))
            if reads % 50 == 0:
                with contextlib.suppress(ff.NotFound):  # the lane has no job yet
                    await client.lane(until).stats()
                    return {"most": most, "reads": reads}


async def prepare(url: str) -> None:
    app, _ = app_of(url)
    async with app.client() as client:
        await client.budget(NAME, hard={"units": LIMIT})


async def race(url: str, jobs: int, until: str) -> dict[str, Any]:
    """Submit them, wait for all, and for the budget to be settled."""
    app, spend = app_of(url)
    async with app.client() as client:
        budget = await client.budget(NAME)
        began = time.monotonic()
        submitted = await client.submit_many(spend, range(jobs))
        say_ready()
        await asyncio.gather(*(job.result(timeout=SETTLED_S) for job in submitted))
        ended = time.monotonic()
        status = await budget.status()
        while status.reservations and time.monotonic() - ended < SETTLED_S:
            await asyncio.sleep(0.02)
            status = await budget.status()
        settled = time.monotonic()
        attempts = [(await job.status()).attempts for job in submitted]
        await client.submit(spend, 0, lane=until)
    return {
        "took": ended - began, "settled": settled - ended, "leaked": status.reservations,
        "left": status.reserved.get("units", 0), "used": status.usage.get("units", 0), "attempts": sum(attempts),
    }  # fmt: skip


def one_race(jobs: int) -> dict[str, Any]:
    with server() as own, processes() as running:
        child(prepare, url=own.url)
        workers = [start(worker, url=own.url) for _ in range(PROCESSES)]
        running += workers
        for process in workers:
            ready(process)
        watching = start(watch, url=own.url, until="over")
        running.append(watching)
        ready(watching)
        racing = start(race, url=own.url, jobs=jobs, until="over")
        running.append(racing)
        ready(racing)
        for process in workers[:KILLED]:
            time.sleep(random.uniform(0.05, 0.15))
            process.kill()
        found: dict[str, Any] = result_of(racing)
        return found | result_of(watching)


def run(size: Size) -> list[Row]:
    jobs = 200
    races = [one_race(jobs) for _ in range(size(5, 1))]
    what = f"{jobs} jobs, {PROCESSES} processes, {KILLED} of them killed"
    reads = sum(one["reads"] for one in races)
    runs = [one["attempts"] - jobs for one in races]
    return [
        Row(f"{what}: most reserved and used", max(one["most"] for one in races), "units", target=f"<= {LIMIT:,}",
            note=f"read {reads:,} times in {len(races)} races"),
        Row("  reservations left at the end", sum(one["leaked"] for one in races), "", target="0"),
        row("  until all were done", [one["took"] for one in races], "s", note=f"lease {LEASE_S:g} s"),
        row("  and settled after the last", [one["settled"] for one in races], "s"),
        row("  attempts that a kill ended", runs, ""),
        row("  used", [one["used"] for one in races], "units", note=f"{jobs * COSTS:,} by the attempts that counted"),
    ]  # fmt: skip
