"""The drain under other circumstances: a million jobs queued, three lanes, a thousand fairness keys, writes on disk.

The rule: the plain drain takes turns with them, in fresh processes and with the same 4 KiB payload, so that the ratio
means something. What is queued behind the measured jobs are copies of one small job.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

import ffsdk as ff
from bench.harness import Row, Server, Size, child, multiply, row, run_async, server, while_running
from ffbackend_valkey.stores import connect
from ffcore import ids
from ffcore.backend import Backend
from ffcore.contracts.batch import CreateManyArgs, NewExecution
from ffcore.contracts.operator import LaneCounts, LaneStatsArgs
from ffcore.ids import LaneId, PartitionKey
from ffsdk.task import digest

PAYLOAD_BYTES = 4096
BACKLOG = "backlog"


class Order(msgspec.Struct):
    """About 4 KiB as JSON."""

    order_id: int
    tenant: str
    note: str


def order(n: int, tenants: int) -> bytes:
    tenant = f"t{n % tenants}" if tenants else ""
    bare = msgspec.json.encode(Order(n, tenant, ""))
    return msgspec.json.encode(Order(n, tenant, "x" * (PAYLOAD_BYTES - len(bare))))


async def fill(
    url: str, lanes: Sequence[str], jobs: int, tenants: int, policy: bytes | None, priority: int = 0
) -> None:
    """Create the jobs as submit_many does, dealt out over the lanes."""
    backend = await connect(url)
    rows: dict[tuple[str, PartitionKey], list[NewExecution]] = {}
    for n in range(jobs):
        lane, raw, execution_id = lanes[n % len(lanes)], order(n, tenants), ids.new_execution_id(backend.config.fp)
        tenant = f"t{n % tenants}" if tenants else None
        new = NewExecution(execution_id, digest("noop", raw, lane), raw, tenant)
        rows.setdefault((lane, ids.partition_of(execution_id)), []).append(new)
    calls = [
        CreateManyArgs(
            partition=key, namespace="default", lane_id=lane, execution_kind="noop", policy=policy, priority=priority,
            items=part[at : at + 200],
        )
        for (lane, key), part in rows.items() for at in range(0, len(part), 200)
    ]  # fmt: skip
    for at in range(0, len(calls), 8):
        for answer in await backend.call_all(calls[at : at + 8]):
            if isinstance(answer, Exception):
                raise answer
    await backend.close()


async def completed(backend: Backend, lanes: Sequence[str]) -> int:
    keys = backend.config.keys()
    asked = [LaneStatsArgs(partition=key, lane_id=LaneId(lane)) for key in keys for lane in lanes]
    answers = await backend.call_all(asked)
    return sum(answer.counts.get("completed", 0) for answer in answers if isinstance(answer, LaneCounts))


async def drain(url: str, jobs: int, flight: int, lanes: Sequence[str], tenants: int = 0, priority: int = 0) -> float:
    """Jobs a second of one worker of these lanes; the clock stops when the store has every result."""
    app = ff.App(url)
    ran, all_ran = 0, asyncio.Event()

    @app.task(name="noop", lane=lanes[0], fairness="payload.tenant" if tenants else None)
    async def noop(payload: Order) -> None:
        nonlocal ran
        ran += 1
        if ran == jobs:
            all_ran.set()

    await fill(url, lanes, jobs, tenants, noop.policy, priority)
    backend = await app.backend()
    before = await completed(backend, lanes)
    worker = app.worker(lanes=list(lanes), concurrency=flight)
    running = asyncio.create_task(worker.run())
    await while_running(worker.started.wait(), running)
    began = time.perf_counter()
    await while_running(all_ran.wait(), running)
    while await completed(backend, lanes) - before < jobs:
        if running.done():
            await running
    took = time.perf_counter() - began
    await worker.stop()
    await running
    await app.release()
    return jobs / took


async def _one_small(url: str) -> None:
    backend = await connect(url)
    partitions = backend.config.keys()
    for key in partitions:
        execution_id = ids.ExecutionId(f"{key}:{ids.new_execution_id(1).rpartition(':')[2]}")
        raw = msgspec.json.encode(Order(0, "", ""))
        await backend.call(CreateManyArgs(
            partition=key, namespace="default", lane_id=BACKLOG, execution_kind="noop",
            items=[NewExecution(execution_id, digest("noop", raw, BACKLOG), raw)],
        ))  # fmt: skip
    await backend.close()


def queue_up(own: Server, jobs: int) -> None:
    """That many jobs ready in the lane `backlog`."""
    run_async(_one_small(own.url))
    partitions = [f"ff:{{fp:{n}}}" for n in range(4)]
    for header in partitions:
        number = own.db.hget(f"{header}:lanes", BACKLOG)
        assert isinstance(number, bytes)
        queue = f"{header}:q:{number.decode()}:-"
        [(member, score)] = own.db.zrange(queue, 0, 0, withscores=True)
        multiply(own, header, queue, member.decode(), jobs // len(partitions), score + 1)


@contextlib.contextmanager
def prepared(queued: int) -> Iterator[dict[str, Server]]:
    with server() as memory, server(appendfsync="always") as disk:
        queue_up(memory, queued)
        yield {"memory": memory, "disk": disk}


def run(size: Size) -> list[Row]:
    jobs, rounds, queued = size(10_000, 2_000), size(3, 1), size(1_000_000, 50_000)
    rates: dict[str, list[float]] = {}
    with prepared(queued) as own:
        for turn in range(rounds):
            ways: dict[str, tuple[str, dict[str, Any]]] = {
                "plain": ("memory", {"lanes": [f"plain{turn}"]}),
                f"{queued:,} jobs queued behind": ("memory", {"lanes": [BACKLOG], "priority": 10}),
                "3 lanes": ("memory", {"lanes": [f"{word}{turn}" for word in ("one", "two", "three")]}),
                "1,000 fairness keys": ("memory", {"lanes": [f"fair{turn}"], "tenants": 1000}),
                "appendfsync always": ("disk", {"lanes": [f"plain{turn}"]}),
            }
            for what, (where, arguments) in ways.items():
                rates.setdefault(what, []).append(child(drain, url=own[where].url, jobs=jobs, flight=64, **arguments))
    base = sorted(rates["plain"])[len(rates["plain"]) // 2]
    rows: list[Row] = []
    for what, found in rates.items():
        one = row(f"drain, 64 in flight, {what}", found, "jobs/s")
        rows.append(Row(one.what, one.value, one.unit, one.low, one.high, note=f"{one.value / base:.2f} x plain"))
    return rows
