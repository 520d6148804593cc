"""The checker beside a system at work: jobs come, fail, are retried, delayed, cancelled and purged while it looks again
and again, and it finds nothing; what is damaged meanwhile it finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import pytest

import ffsdk as ff
from ffcore.backend import Backend
from ffcore.contracts.execution import CancelExecutionArgs, CancelSource
from ffcore.contracts.upkeep import PurgeArgs
from ffcore.ids import ExecutionId, partition_of, uuid_of
from ffengine.check import Memory, violations

PASSES = 12
"""With a memory and pages of different sizes: a few seconds."""


class Busy(NamedTuple):
    backend: Backend
    done: Callable[[], int]
    """How many jobs the worker has run so far."""


@pytest.fixture
async def busy(app: ff.App, lane: str) -> AsyncIterator[Busy]:
    """A worker and a client that go on until the test is over."""
    runs: dict[int, int] = {}

    @app.task(name="online.work", lane=lane, retry=ff.Retry(max_attempts=3, backoff=0.01))
    async def work(number: int) -> int:
        runs[number] = runs.get(number, 0) + 1
        if number % 7 == 0 and runs[number] < 2:
            raise RuntimeError("once")
        await asyncio.sleep(0)
        return number

    backend = await app.backend()

    async def feed() -> None:
        async with app.client() as client:
            for start in range(0, 1_000_000, 100):
                jobs = await client.submit_many(work, range(start, start + 100))
                jobs.append(await client.submit(work, start, delay=0.05))
                for job in jobs[-7:]:
                    await backend.call(
                        CancelExecutionArgs(
                            execution_id=ExecutionId(job.id), reason="", source=CancelSource("operator_override")
                        )
                    )
                for key in backend.config.keys("fp"):
                    await backend.call(PurgeArgs(partition=key, lane_id=lane, outcome="completed", before_ms=2**52))  # type: ignore[arg-type]
                while len(runs) < start - 200:
                    await asyncio.sleep(0.005)

    worker = app.worker(lanes=[lane], concurrency=20)
    tasks = [asyncio.ensure_future(worker.run()), asyncio.ensure_future(feed())]
    yield Busy(backend, lambda: len(runs))
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    await worker.stop()
    await tasks[0]


async def test_a_system_at_work_gives_no_false_alarm(busy: Busy) -> None:
    memory, before = Memory(), 0
    for n in range(PASSES):
        assert await violations(busy.backend, memory=memory, limit=(40, 200, 500)[n % 3]) == []
        while busy.done() < before + 100:
            await asyncio.sleep(0.01)
        before = busy.done()


async def test_damage_is_found_while_the_system_works(busy: Busy, app: ff.App, lane: str) -> None:
    async with app.client() as client:
        job = await client.submit("online.work", 1, lane=f"{lane}.aside", delay=3_600)
    memory = Memory()
    assert await violations(busy.backend, memory=memory) == []
    key = f"ff:{partition_of(job.id)}:timers"
    await busy.backend.command("ZREM", key, f"delay:{uuid_of(job.id)}")  # type: ignore[attr-defined]
    for _ in range(3):
        (found,) = await violations(busy.backend, memory=memory)
        assert (found.invariant, found.id) == ("I5", job.id)
