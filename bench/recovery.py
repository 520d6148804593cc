"""How long work is lost: from the end of a lease to claimable again, and from a kill -9 to running again.

The rule: the end of a lease is the instant the claim was answered; that a job is claimable is seen in its queue, not by
a claim, because a claim does what is due by itself.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import struct
import subprocess
import tempfile
import time
from typing import Any

import ffsdk as ff
from bench.harness import (
    Row,
    Server,
    Size,
    end,
    processes,
    quantile,
    ready,
    row,
    serve,
    server,
    start,
)
from bench.purge import age, left, ticking
from ffbackend_valkey.stores import connect
from ffcore import ids
from ffcore.contracts.batch import ClaimBatchArgs, CreateManyArgs, NewExecution
from ffcore.ids import partition_of

LANE = "recovery"
LEASE_S = 2.0
HELD = 16


async def expiries(own: Server, samples: int) -> list[float]:
    """Milliseconds from the end of a lease until its job stands in the queue again."""
    backend = await connect(own.url)
    late: list[float] = []
    for n in range(samples):
        new = NewExecution(ids.new_execution_id(backend.config.fp), os.urandom(16), b"null")
        key = partition_of(new.execution_id)
        lane = f"{LANE}-{random.randbytes(4).hex()}"
        create = CreateManyArgs(partition=key, namespace="default", lane_id=lane, execution_kind="t", items=[new])
        await backend.call(create)
        claimed = await backend.call(ClaimBatchArgs(
            partitions=[key], lanes=[lane], capability_sets=[], limit=1, claim_id=f"bench.c.{time.time_ns() + n}",
            worker_id="w", worker_instance_id="bench", lease_ttl_ms=random.randint(100, 400),
        ))  # fmt: skip
        ends = claimed.jobs[0].lease_expires_at
        number: Any = own.db.hget(f"ff:{key}:lanes", lane)
        queue = f"ff:{key}:q:{number.decode()}:-"
        while not own.db.exists(queue):
            await asyncio.sleep(0.001 if time.time() * 1000 > ends else 0.01)
        late.append(time.time() * 1000 - ends)
    await backend.close()
    return late


def app_of(url: str, back: str) -> tuple[ff.App, ff.Task[int, None]]:
    app = ff.App(url)
    to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @app.task(name="hold", lane=LANE, lease=LEASE_S)
    async def hold(number: int, ctx: ff.Context) -> None:
        to.sendto(struct.pack("<qqq", number, ctx.attempt, time.monotonic_ns()), back)
        await asyncio.sleep(60 if ctx.attempt == 0 else 0)

    return app, hold


async def worker(url: str, back: str) -> None:
    app, _ = app_of(url, back)
    await serve(app.worker(lanes=[LANE], concurrency=HELD, lease=LEASE_S, grace=0.1))


Process = subprocess.Popen[str]


async def kill_once(url: str, back: str, victim: Process, rescuer: Process) -> dict[str, float]:
    """Let the victim take HELD jobs, kill it, and see when the other worker has restarted them; ms from the kill."""
    app, hold = app_of(url, back)
    here = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    here.bind(back)
    here.setblocking(False)
    loop = asyncio.get_running_loop()
    async with app.client() as client:
        jobs = await client.submit_many(hold, range(HELD))
        for _ in range(HELD):
            await loop.sock_recv(here, 24)  # all of them run, with the victim: the rescuer is still stopped
        os.kill(rescuer.pid, signal.SIGCONT)
        await asyncio.sleep(random.uniform(1.0, 1.7))  # somewhere between two renewals
        killed = time.monotonic_ns()
        victim.kill()
        again: list[float] = []
        for _ in range(HELD):
            _, _, at = struct.unpack("<qqq", await loop.sock_recv(here, 24))
            again.append((at - killed) / 1e6)
        await asyncio.gather(*(job.result() for job in jobs))
    here.close()
    os.unlink(back)
    return {"first": min(again), "last": max(again)}


def kills(own: Server, rounds: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="ffbench") as directory, processes() as running:
            back = os.path.join(directory, "back")
            rescuer = start(worker, url=own.url, back=back)
            running.append(rescuer)
            ready(rescuer)
            victim = start(worker, url=own.url, back=back)
            running.append(victim)
            ready(victim)
            # The victim must get all jobs: the other one is stopped until it has them.
            os.kill(rescuer.pid, signal.SIGSTOP)
            try:
                found.append(asyncio.run(kill_once(own.url, back, victim, rescuer)))
            finally:
                os.kill(rescuer.pid, signal.SIGCONT)
            end(victim)
    return found


def run(size: Size) -> list[Row]:
    samples, records = size(60, 15), size(1_000_000, 100_000)
    with server() as own:
        with processes(start(ticking, url=own.url)) as running:
            ready(running[0])
            quiet = asyncio.run(expiries(own, samples))
        deaths = kills(own, size(5, 1))
    with server() as own:
        before = age(own, records)
        with processes(start(ticking, url=own.url)) as running:
            ready(running[0])
            busy = asyncio.run(expiries(own, samples))
            purged = before - left(own)
    rows: list[Row] = []
    for what, late, note in (
        ("lease end to claimable", quiet, f"{samples} samples, live ticker"),
        (f"  with {records:,} purgeable records", busy, f"{purged:,} of them went meanwhile"),
    ):
        rows.append(Row(f"{what}, p50", quantile(late, 0.5), "ms", min(late), max(late), "<= 50", note))
        rows.append(Row(f"{what}, p99", quantile(late, 0.99), "ms"))
    first, last = [d["first"] for d in deaths], [d["last"] for d in deaths]
    rows.append(row("kill -9 to the first of 16 jobs running again", first, "ms", note="lease 2 s"))
    return [*rows, row("kill -9 to all 16 running again", last, "ms", "<= 2,050")]
