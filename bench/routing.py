"""Routing: ten capability sets, a hundred workers in four processes, one of them able to serve each set.

The rule: both sides read time.monotonic_ns of the same machine. First jobs come one by one to an engine at rest, then a
thousand at once; a job is routed if it ran, on the one worker that has what it requires.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import random
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any

import ffsdk as ff
from bench.harness import Row, Size, child, processes, quantile, ready, row, say_ready, server, start

LANE = "routing"
SETS, WORKERS, PROCESSES = 10, 100, 4
STAMP = struct.Struct("<qqq")
PATIENCE_S = 30.0
number: contextvars.ContextVar[int] = contextvars.ContextVar("number")
"""Of the worker in whose task this runs."""


def app_of(url: str, back: str) -> tuple[ff.App, ff.Task[int, None]]:
    app = ff.App(url)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @app.lifespan
    async def who() -> AsyncIterator[dict[str, int]]:
        yield {"worker": number.get()}

    @app.task(name="stamp", lane=LANE)
    async def stamp(job: int, ctx: ff.Context) -> None:
        to.sendto(STAMP.pack(job, ctx.state["worker"], time.monotonic_ns()), back)

    return app, stamp


async def workers(url: str, back: str, first: int) -> None:
    """Every fourth of the hundred. Worker n stands in rack n; jobs require the racks below ten."""
    app, _ = app_of(url, back)
    own: list[Any] = []
    for n in range(first, WORKERS, PROCESSES):
        number.set(n)
        one = app.worker(lanes=[LANE], concurrency=4, capabilities=[f"rack=={n}"])
        own.append((one, asyncio.create_task(one.run())))
    for one, _ in own:
        await one.started.wait()
    say_ready()
    await asyncio.gather(*(running for _, running in own))


async def client(url: str, back: str, samples: int, burst: int) -> dict[str, Any]:
    """Milliseconds from before the submit to the handler, and how many jobs ran where they should."""
    app, stamp = app_of(url, back)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    here.bind(back)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    idle: list[float] = []
    at_once: list[float] = []
    routed = 0
    async with app.client() as opened:
        for n in range(-2 * SETS, samples):  # the first ones warm up every set
            wanted = n % SETS
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            await opened.submit(stamp, n, requires={f"rack=={wanted}"})
            job, worker, at = STAMP.unpack(await asyncio.wait_for(loop.sock_recv(here, STAMP.size), PATIENCE_S))
            assert job == n
            if n >= 0:
                idle.append((at - began) / 1e6)
                routed += worker == wanted
        began = time.monotonic_ns()
        submits = [opened.submit(stamp, n, requires={f"rack=={n % SETS}"}) for n in range(burst)]
        gathered = asyncio.gather(*submits)
        for _ in range(burst):
            job, worker, at = STAMP.unpack(await asyncio.wait_for(loop.sock_recv(here, STAMP.size), PATIENCE_S))
            at_once.append((at - began) / 1e6)
            routed += worker == job % SETS
        await gathered
    here.close()
    return {"idle": idle, "burst": at_once, "routed": routed}


def run(size: Size) -> list[Row]:
    samples, burst, rounds = size(500, 100), size(1000, 200), size(3, 1)
    p50: list[float] = []
    p99: list[float] = []
    last: list[float] = []
    routed = 0
    for _ in range(rounds):
        with server() as own, tempfile.TemporaryDirectory(prefix="ffbench") as directory:
            back = os.path.join(directory, "back")
            with processes() as running:
                running += [start(workers, url=own.url, back=back, first=n) for n in range(PROCESSES)]
                for process in running:
                    ready(process)
                time.sleep(2)  # all of them parked
                found = child(client, url=own.url, back=back, samples=samples, burst=burst)
        p50.append(quantile(found["idle"], 0.5))
        p99.append(quantile(found["idle"], 0.99))
        last.append(max(found["burst"]))
        routed += found["routed"]
    what = f"{SETS} sets, {WORKERS} workers in {PROCESSES} processes: submit to start"
    share = 100 * routed / (rounds * (samples + burst))
    return [
        row(f"{what}, p50", p50, "ms", "<= 5", f"{samples} jobs one by one in each of {rounds} rounds"),
        row(f"{what}, p99", p99, "ms"),
        row(f"{burst} jobs at once: until the last has started", last, "ms"),
        Row("routed to the worker that has what they require", share, "%", target="100"),
    ]
