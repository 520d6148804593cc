"""Submits per second through the SDK's Client: one call each, 16 in flight, and submit_many; and what a job costs.

The rule: a fresh process per round; the ways take turns. Four partitions, no worker. Beside the rates, which depend on
who else uses the machine, stand the CPU time of the client and the time inside functions of the server, per job. The
same submits without folding, each in a create call of its own, are the comparison.
"""

from __future__ import annotations

import asyncio
import functools
import resource
import statistics
import time
from typing import Any

import msgspec

import ffsdk as ff
from bench.harness import Row, Size, child, interleave, row, server

IN_FLIGHT = 16
WAYS = ("submit", "unfolded submit", "submit_many")
TARGETS = {"submit": ">= 20,000", "submit_many": ">= 50,000"}


class Order(msgspec.Struct):
    order_id: int
    note: str


async def submit(url: str, way: str, jobs: int, payload_bytes: int) -> list[float]:
    """Jobs a second of a client that does nothing else, and its CPU microseconds for each, encoding included."""
    app = ff.App(url)

    @app.task(lane=f"bench-{time.time_ns()}")
    async def noop(payload: Order) -> None:
        raise NotImplementedError

    note = "x" * payload_bytes
    async with app.client() as client:
        await client.submit(noop, Order(0, note))
        alone = await _alone(client, noop)
        before, began = _cpu_s(), time.perf_counter()
        if way == "submit_many":
            made = await client.submit_many(noop, (Order(n, note) for n in range(jobs)))
            assert len(made) == jobs
        else:
            left = iter(range(jobs))

            async def one_after_another() -> None:
                for n in left:
                    if way == "submit":
                        await client.submit(noop, Order(n, note))
                    else:
                        await alone(Order(n, note))

            await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return [jobs / (time.perf_counter() - began), (_cpu_s() - before) / jobs * 1e6]


async def _alone(client: ff.Client, task: ff.Task[Order, None]) -> Any:
    """What a submit does, in a call of its own."""
    from ffcore import ids
    from ffcore.contracts.batch import CreateManyArgs, NewExecution
    from ffsdk.task import digest

    partitions = client.backend.config.fp

    async def submit(payload: Order) -> None:
        raw = task.encode_payload(payload)
        execution_id = ids.new_execution_id(partitions)
        answer = await client.backend.call(CreateManyArgs(
            partition=ids.partition_of(execution_id), namespace=client.namespace, lane_id=task.lane,
            execution_kind=task.name, policy=task.policy,
            items=[NewExecution(execution_id, digest(task.name, raw, task.lane), raw)],
        ))  # fmt: skip
        assert answer.items[0].state == "created"

    return submit


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def run(size: Size) -> list[Row]:
    few, many = size(16_000, 4_000), size(40_000, 8_000)
    ways = [(way, payload) for payload in (80, 4070) for way in WAYS]
    names = {way: f"{way[0]}, {'100 B' if way[1] == 80 else '4 KiB'} payload" for way in ways}
    cpu_us: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    server_us: dict[tuple[str, int], list[float]] = {way: [] for way in ways}
    with server() as own:

        def measure(way: tuple[str, int]) -> float:
            jobs = many if way[0] == "submit_many" else few
            own.db.config_resetstat()
            rate, cpu = child(submit, url=own.url, way=way[0], jobs=jobs, payload_bytes=way[1])
            cpu_us[way].append(cpu)
            spent = (stat["usec"] for name, stat in own.stats().items() if name.startswith("fcall"))
            server_us[way].append(sum(spent) / jobs)
            _forget(own.db)
            return float(rate)

        found = interleave(size(5, 1), {names[way]: functools.partial(measure, way) for way in ways})
    rows: list[Row] = []
    for way in ways:
        rows.append(row(names[way], found[names[way]], "jobs/s", TARGETS.get(way[0], "")))
        rows.append(row("  CPU of the client", cpu_us[way], "us/job"))
        rows.append(row("  time in the server's functions", server_us[way], "us/job"))
    ratio = [statistics.median(found[names["submit", n]]) / statistics.median(found[names["unfolded submit", n]])
             for n in (80, 4070)]  # fmt: skip
    rows.append(row("folded to unfolded submit", ratio, "x", note=f"{IN_FLIGHT} in flight"))
    return rows


def _forget(db: Any) -> None:
    """Drop what a round queued: 40,000 payloads would only fill the memory."""
    for kind in "xpq":
        batch = list(db.scan_iter(match=f"ff:{{fp:*}}:{kind}:*", count=5000))
        for at in range(0, len(batch), 5000):
            db.unlink(*batch[at : at + 5000])
