"""Submits per second through the SDK's Client: one call each, 16 in flight, and submit_many.

The rule: a fresh process per round; the ways take turns. Four partitions, no worker.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec

import ffsdk as ff
from bench.harness import Row, Size, child, interleave, row, server

IN_FLIGHT = 16


class Order(msgspec.Struct):
    order_id: int
    note: str


async def submit(url: str, jobs: int, payload_bytes: int, many: bool) -> float:
    """Jobs a second of a client that does nothing else; encoding the payloads is part of it."""
    app = ff.App(url)

    @app.task(lane=f"bench-{time.time_ns()}")
    async def noop(payload: Order) -> None:
        raise NotImplementedError

    note = "x" * payload_bytes
    async with app.client() as client:
        await client.submit(noop, Order(0, note))
        began = time.perf_counter()
        if many:
            made = await client.submit_many(noop, (Order(n, note) for n in range(jobs)))
            assert len(made) == jobs
        else:
            left = iter(range(jobs))

            async def one_after_another() -> None:
                for n in left:
                    await client.submit(noop, Order(n, note))

            await asyncio.gather(*(one_after_another() for _ in range(IN_FLIGHT)))
        return jobs / (time.perf_counter() - began)


def run(size: Size) -> list[Row]:
    few, many = size(16_000, 4_000), size(40_000, 8_000)
    ways: dict[str, dict[str, Any]] = {
        "submit, 16 in flight, 100 B payload": {"jobs": few, "payload_bytes": 80, "many": False},
        "submit, 16 in flight, 4 KiB payload": {"jobs": few, "payload_bytes": 4070, "many": False},
        "submit_many, 100 B payload": {"jobs": many, "payload_bytes": 80, "many": True},
        "submit_many, 4 KiB payload": {"jobs": many, "payload_bytes": 4070, "many": True},
    }
    with server() as own:

        def measure(arguments: dict[str, Any]) -> float:
            rate: float = child(submit, url=own.url, **arguments)
            _forget(own.db)
            return rate

        found = interleave(size(3, 1), {what: lambda a=arguments: measure(a) for what, arguments in ways.items()})
    targets = {"submit": ">= 20,000", "submit_many": ">= 50,000"}
    return [row(what, rates, "jobs/s", targets[what.partition(",")[0].split()[0]]) for what, rates in found.items()]


def _forget(db: Any) -> None:
    """Drop what a round queued: 40,000 payloads would only fill the memory."""
    for kind in "xpq":
        batch = list(db.scan_iter(match=f"ff:{{fp:*}}:{kind}:*", count=5000))
        for at in range(0, len(batch), 5000):
            db.unlink(*batch[at : at + 5000])
