"""Frames: how many one process emits, what one costs the server, and how long after its emit another process has it.

The rule: emitters await each frame, as a handler does; nothing is sent ahead. For the lag both sides read
time.monotonic_ns of the same machine, and the emitter rests between frames.
"""

from __future__ import annotations

import asyncio
import random
import time

import ffsdk as ff
from bench.harness import Row, Size, child, processes, quantile, ready, row, serve, server, start, while_running

LANE = "streams"
PRODUCERS = 16
FRAME_BYTES = 256


async def produce(url: str, frames: int, producers: int) -> float:
    """Frames a second of so many handlers of one worker, from the moment all of them run."""
    app = ff.App(url)
    value = "x" * (FRAME_BYTES - 2)  # with its quotes
    running_n, all_run, took = 0, asyncio.Event(), list[tuple[float, float]]()

    @app.task(name="talk", lane=LANE, timeout=300)
    async def talk(_: int, ctx: ff.Context) -> None:
        nonlocal running_n
        running_n += 1
        if running_n == producers:
            all_run.set()
        await all_run.wait()
        began = time.perf_counter()
        for _ in range(frames):
            await ctx.emit(value)
        took.append((began, time.perf_counter()))

    worker = app.worker(lanes=[LANE], concurrency=producers)
    running = asyncio.create_task(worker.run())
    await while_running(worker.started.wait(), running)
    async with app.client() as client:
        jobs = await client.submit_many(talk, range(producers))
        await asyncio.gather(*(job.result(timeout=300) for job in jobs))
    await worker.stop()
    await running
    return producers * frames / (max(end for _, end in took) - min(began for began, _ in took))


async def clock(url: str, frames: int) -> None:
    """A worker whose one handler emits the time, again and again."""
    app = ff.App(url)

    @app.task(name="clock", lane=LANE, timeout=300)
    async def tell(_: int, ctx: ff.Context) -> None:
        for _ in range(frames):
            await asyncio.sleep(random.uniform(0.005, 0.015))
            await ctx.emit(time.monotonic_ns())

    await serve(app.worker(lanes=[LANE], concurrency=2))


async def read(url: str, readers: int) -> dict[str, list[float]]:
    """Milliseconds from an emit to its frame in the hands of each of the readers, all of one client."""
    app, lags, ends = ff.App(url), list[float](), list[float]()

    async def one(job: ff.Job[None]) -> None:
        async for frame in job.stream():
            lags.append((time.monotonic_ns() - frame.value) / 1e6)
        ends.append(time.monotonic())

    async with app.client() as client:
        job = await client.submit("clock", 0, lane=LANE)
        waiting = asyncio.ensure_future(job.result())
        reading = [asyncio.create_task(one(job)) for _ in range(readers)]
        await waiting
        ended = time.monotonic()
        await asyncio.gather(*reading)
    return {"lag": lags[readers * 20 :], "end": [(at - ended) * 1000 for at in ends]}


def run(size: Size) -> list[Row]:
    rows: list[Row] = []
    frames = size(4_000, 500)
    with server() as own:
        rates, costs = list[float](), list[float]()
        for _ in range(size(5, 1)):
            own.db.config_resetstat()
            rates.append(child(produce, url=own.url, frames=frames, producers=PRODUCERS))
            stats = own.stats()
            costs.append(stats["fcall"]["usec"] / (frames * PRODUCERS))
        alone = [child(produce, url=own.url, frames=frames // 4, producers=1) for _ in range(size(3, 1))]
        rows.append(row("16 handlers of one process, frames of 256 B", rates, "frames/s", ">= 30,000", "each awaited"))
        rows.append(row("server time, with those of 16", costs, "us/frame"))
        rows.append(row("one handler alone", alone, "frames/s", note="a round trip each"))
    for readers in (1, 100):
        with server() as own, processes(start(clock, url=own.url, frames=size(1_000, 150))) as emitter:
            ready(emitter[0])
            found = child(read, url=own.url, readers=readers)
        many = f"{readers} readers" if readers > 1 else "one reader"
        target = "<= 1" if readers == 1 else ""
        lags = found["lag"]
        p5, p50, p95 = (quantile(lags, q) for q in (0.05, 0.5, 0.95))
        rows.append(Row(f"lag, {many}, p50", p50, "ms", p5, p95, target, "p5 to p95"))
        rows.append(Row(f"lag, {many}, p99", quantile(lags, 0.99), "ms"))
        rows.append(row(f"end of the stream, {many}, after the result", found["end"], "ms"))
    return rows
