"""What admission costs a job: calls and round trips with a budget and a quota, and without.

The rule: one process has worker and client, and every call of its store is noted with when it was sent and answered. A
round trip is counted for each call that was waited for before the handler, besides the submit and the claim; calls that
go side by side are one. Jobs come one by one to an engine at rest, then many at once. What jobs without admission cost
the server is measured by `functions`, beside an earlier release.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from typing import Any, TypeVar

import ffsdk as ff
from bench.harness import Row, Size, child, row, server, while_running
from ffcore.args import Args
from ffcore.backend import Backend
from ffsdk.forwarding import Forwarding

R = TypeVar("R")
LANE = "admitted"
CLAIMS = ("ff_claim_batch", "ff_complete_many")
SUBMITS = ("ff_create_many", "ff_create_execution", "ff_await", "ff_read_outcomes")
MAIL = ("ff_read_outbox", "ff_deliver", "ff_ack_outbox")
"""Of the job before."""
ABOUT_ITSELF = ("ff_tick", "ff_register_worker", "ff_publish_tasks", "ff_announce_tasks", "ff_list_capability_sets")
"""What time paces, not the jobs."""


class Noting(Forwarding):
    """Notes each call: function, when it was sent, when it was answered."""

    def __init__(self, backend: Backend, calls: list[tuple[str, float, float]]) -> None:
        super().__init__(backend)
        self.calls = calls

    async def call(self, args: Args[R]) -> R:
        sent = time.perf_counter()
        try:
            return await super().call(args)
        finally:
            self.calls.append((type(args).function(), sent, time.perf_counter()))


def round_trips(calls: list[tuple[str, float, float]], started: float) -> int:
    """Calls for a job that went one after the other before its handler, besides its submit and its claim."""
    now, waves = 0.0, 0
    for name, sent, answered in sorted(calls, key=lambda call: call[1]):
        if name not in (*CLAIMS, *ABOUT_ITSELF, *SUBMITS, *MAIL) and answered <= started:
            waves += sent >= now
            now = max(now, answered)
    return waves


async def measure(url: str, admitted: bool, idle: int, load: int) -> dict[str, Any]:
    app = ff.App(url)
    calls: list[tuple[str, float, float]] = []
    app.through = lambda backend: Noting(backend, calls)  # type: ignore[assignment]
    starts: list[float] = []
    options: dict[str, Any] = {}
    if admitted:
        options = {"budget": ff.Budget("plenty", estimate={"units": 1}), "quota": "plenty"}

    @app.task(name="one", lane=LANE, **options)
    async def one(number: int) -> None:
        starts.append(time.perf_counter())

    trips: list[int] = []
    waits: list[float] = []
    async with app.client() as client:
        if admitted:
            await client.budget("plenty", hard={"units": 1_000_000_000})
            await client.quota("plenty", rate=(1_000_000, 60), concurrency=100_000)
        worker = app.worker(lanes=[LANE], concurrency=64)
        running = asyncio.create_task(worker.run())
        await while_running(worker.started.wait(), running)
        for n in range(-20, idle):
            await asyncio.sleep(0.02)
            calls.clear()
            starts.clear()
            began = time.perf_counter()
            job = await client.submit(one, n)
            while not starts:
                await asyncio.sleep(0.001)
            if n >= 0:
                waits.append((starts[0] - began) * 1000)
                trips.append(round_trips(calls, starts[0]))
            await job.result()
        await asyncio.sleep(0.5)
        calls.clear()
        jobs = await client.submit_many(one, range(load))
        await while_running(asyncio.gather(*(job.result() for job in jobs)), running)
        await asyncio.sleep(1.5)  # what is settled afterwards belongs to it
        counted = Counter(name for name, _, _ in calls if name not in ABOUT_ITSELF)
        await worker.stop()
        await running
    return {"trips": trips, "waits": waits, "calls": {name: n / load for name, n in sorted(counted.items())}}


def run(size: Size) -> list[Row]:
    found: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for _ in range(size(3, 1)):
        for admitted, samples in found.items():
            with server() as own:
                samples.append(
                    child(measure, url=own.url, admitted=admitted, idle=size(200, 40), load=size(4_000, 500))
                )
    rows: list[Row] = []
    for admitted, samples in found.items():
        what = "with a budget and a quota" if admitted else "without"
        trips = [n for one in samples for n in one["trips"]]
        waits = [statistics.median(one["waits"]) for one in samples]
        per_job = [sum(one["calls"].values()) for one in samples]
        by_name = " ".join(f"{name.removeprefix('ff_')} {n:.2f}" for name, n in samples[-1]["calls"].items())
        rows += [
            row(f"{what}: round trips from claim to handler", trips, "", "<= 1" if admitted else "0"),
            row(f"{what}: idle submit to handler, p50", waits, "ms"),
            row(f"{what}: calls per job, many at once", per_job, "", note=by_name),
        ]
    return rows
