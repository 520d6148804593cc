"""From an idle submit to the first line of its handler, in another process.

The rule: both sides read time.monotonic_ns of the same machine; the handler sends its reading over a unix socket, and
the next job is submitted only when the worker has been idle for a while.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import tempfile
import time

import ffsdk as ff
from bench.harness import Row, Size, child, processes, quantile, ready, row, serve, server, start
from ffcore.contracts.upkeep import NoopArgs
from ffcore.ids import partition_key

LANE = "latency"


def app_of(url: str, back: str) -> tuple[ff.App, ff.Task[int, None]]:
    app = ff.App(url)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @app.task(name="stamp", lane=LANE)
    async def stamp(number: int) -> None:
        to.sendto(struct.pack("<qq", number, time.monotonic_ns()), back)

    return app, stamp


async def worker(url: str, back: str) -> None:
    app, _ = app_of(url, back)
    await serve(app.worker(lanes=[LANE]))


async def client(url: str, back: str, samples: int) -> dict[str, list[float]]:
    """Milliseconds from before the submit to the handler, to the answered submit, and to the result."""
    app, stamp = app_of(url, back)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(back)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    found: dict[str, list[float]] = {"handler": [], "submitted": [], "result": [], "no-op": []}
    async with app.client() as opened:
        for number in range(-20, samples):  # the first ones warm up both sides
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            job = await opened.submit(stamp, number)
            submitted = time.monotonic_ns()
            told, at = struct.unpack("<qq", await loop.sock_recv(here, 16))
            assert told == number
            if number >= 0:
                found["handler"].append((at - began) / 1e6)
                found["submitted"].append((submitted - began) / 1e6)
            if number % 5 == 0:
                # Apart from the others: a waiter's registration would be on the way of the next submit.
                began = time.monotonic_ns()
                job = await opened.submit(stamp, number)
                await job.result()
                if number >= 0:
                    found["result"].append((time.monotonic_ns() - began) / 1e6)
                await loop.sock_recv(here, 16)
        for _ in range(samples):
            await asyncio.sleep(random.uniform(0.005, 0.015))
            began = time.monotonic_ns()
            await opened.backend.call(NoopArgs(partition=partition_key(0, "fp"), data=b""))
            found["no-op"].append((time.monotonic_ns() - began) / 1e6)
    here.close()
    return found


def run(size: Size) -> list[Row]:
    with server() as own, tempfile.TemporaryDirectory(prefix="ffbench") as directory:
        back = os.path.join(directory, "back")
        with processes(start(worker, url=own.url, back=back)) as running:
            ready(running[0])
            found = child(client, url=own.url, back=back, samples=size(500, 100))
    n = len(found["handler"])
    rows = [
        Row("idle submit to handler start, p50", quantile(found["handler"], 0.5), "ms", target="<= 0.5"),
        Row("idle submit to handler start, p99", quantile(found["handler"], 0.99), "ms", target="<= 1"),
        Row("  of it: submit until answered, p50", quantile(found["submitted"], 0.5), "ms", note=f"{n} jobs"),
        Row("idle submit to result, p50", quantile(found["result"], 0.5), "ms"),
        Row("idle submit to result, p99", quantile(found["result"], 0.99), "ms"),
    ]
    note = "a handler waits for two calls"
    return [*rows, row("for comparison: an idle no-op call", found["no-op"], "ms", note=note)]
