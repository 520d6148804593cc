"""The submitter: submits numbered jobs at an even pace, repeats what it is not sure of, cancels and awaits some.

Killed and started again, it goes on from its own evidence: what was tried and never acknowledged is submitted again,
under the same key. A job counts from the moment its acknowledgement stands in the file.

`python -m tests.chaos.submitter '{"url": ..., "jobs": ..., ...}'`
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

import ffsdk as ff
from tests.chaos import ledger as evidence
from tests.chaos import tasks
from tests.chaos.ledger import Ledger
from tests.chaos.worker import backend_of

REPEATED: Final = 0.04
"""Of the submits that were acknowledged, made once more with the same key."""
CANCELLED: Final = 0.02
AWAITED: Final = 0.05
MANY: Final = 8
"""Jobs of one submit_many, which one submit in MANY_SHARE is."""
MANY_SHARE: Final = 0.05
IN_FLIGHT: Final = 64
HOLD: Final = "hold"
"""While a file of this name is in the directory, no new job is submitted: the workers have enough to do."""
HOLD_S: Final = 0.05


class Orders(msgspec.Struct, kw_only=True):
    url: str
    jobs: int
    per_s: float
    seed: int
    poison_each: int
    """Of so many jobs the first is one that kills its worker."""
    lease_s: float


class Job(msgspec.Struct, frozen=True):
    """What job number n is; follows from seed and number, whichever process submits it."""

    n: int
    kind: str
    ms: int
    delay_s: float
    priority: int
    repeated: bool
    cancelled: bool
    awaited: bool
    lane: str


def draw(n: int, orders: Orders) -> Job:
    rng = random.Random(f"{orders.seed} job {n}")
    if n % orders.poison_each == 0:
        return Job(n, "poison", 0, rng.uniform(0, 5), 0, False, False, False, tasks.RISKY)
    kind = rng.choices(("work", "steady", "flaky", "apart"), (74, 18, 6, 2))[0]
    # One in twenty outlives its first lease, and needs renewals to end.
    long = rng.random() < 0.05
    ms = int(orders.lease_s * 1000 * rng.uniform(1.1, 2.0)) if long else int(rng.triangular(20, 1200, 150))
    return Job(
        n, kind, ms, rng.uniform(0.05, 1.5) if rng.random() < 0.05 else 0.0, rng.choice((0, 0, 0, 10)),
        rng.random() < REPEATED, kind == "work" and rng.random() < CANCELLED, rng.random() < AWAITED,
        tasks.RISKY if rng.random() < 0.02 else tasks.LANE,
    )  # fmt: skip


class Submitter:
    def __init__(self, orders: Orders, facts: Ledger, client: ff.Client, acked: set[int]) -> None:
        self._orders, self._facts, self._client, self._acked = orders, facts, client, acked
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        self._hold = Path(os.environ[tasks.DIRECTORY]) / HOLD
        self._aside: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Everything that is not acknowledged yet, at the pace the harness asked for."""
        rng = random.Random()
        todo = [n for n in range(self._orders.jobs) if n not in self._acked]
        started, sent, held_s = time.monotonic(), 0, 0.0
        while sent < len(todo):
            share = MANY if rng.random() < MANY_SHARE / MANY else 1
            jobs = [draw(n, self._orders) for n in todo[sent : sent + share]]
            sent += len(jobs)
            await self._gate.acquire()
            self._spawn(self._several(jobs) if len(jobs) > 1 else self._one(jobs[0]))
            while self._hold.exists():
                await asyncio.sleep(HOLD_S)
                held_s += HOLD_S
            ahead = sent / self._orders.per_s - (time.monotonic() - started - held_s)
            if ahead > 0:
                await asyncio.sleep(ahead)
        while self._aside:
            await asyncio.wait(tuple(self._aside))

    def _spawn(self, coro: Any, gated: bool = True) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coro)
        self._aside.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._aside.discard(task)
            if gated:
                self._gate.release()
            if not task.cancelled() and (broken := task.exception()) is not None:
                self._facts.note("fatal", f"{type(broken).__name__}: {broken}")

        task.add_done_callback(ended)

    async def _submit(self, job: Job) -> ff.Job[Any]:
        """Until it is acknowledged. What is not certain is repeated, which the key makes harmless."""
        while True:
            self._facts.note("try", job.n, job.kind)
            try:
                return await self._client.submit(
                    tasks.app.tasks[job.kind], tasks.Work(job.n, job.ms), key=f"job-{job.n}",
                    delay=job.delay_s or None, priority=job.priority, lane=job.lane,
                )  # fmt: skip
            except ff.StoreFull:
                self._facts.note("full", job.n)
                await asyncio.sleep(0.3)
            except ff.Unavailable:
                await asyncio.sleep(0.05)

    async def _one(self, job: Job) -> None:
        made = await self._submit(job)
        self._facts.note("ack", job.n, made.id, "new" if made.created else "known")
        await self._after(job, made)

    async def _several(self, jobs: list[Job]) -> None:
        """In one submit_many, of one task and lane; what it did not take is submitted one by one."""
        alike = [job for job in jobs if job.kind == jobs[0].kind and job.lane == jobs[0].lane and not job.delay_s]
        for job in alike:
            self._facts.note("try", job.n, job.kind)
        made: list[ff.Job[Any] | None] = []
        if alike:
            try:
                made = list(await self._client.submit_many(
                    tasks.app.tasks[jobs[0].kind], [tasks.Work(job.n, job.ms) for job in alike],
                    keys=[f"job-{job.n}" for job in alike], lane=jobs[0].lane,
                ))  # fmt: skip
            except ff.SubmitErrors as some:
                made = list(some.jobs)
            except ff.Unavailable:
                made = [None] * len(alike)
        for job, one in zip(alike, made, strict=True):
            if one is not None:
                self._facts.note("ack", job.n, one.id, "new" if one.created else "known")
                await self._after(job, one)
        taken = {job.n for job, one in zip(alike, made, strict=True) if one is not None}
        for job in jobs:
            if job.n not in taken:
                await self._one(job)

    async def _after(self, job: Job, made: ff.Job[Any]) -> None:
        if job.repeated:
            again = await self._submit(job)
            self._facts.note("ack", job.n, again.id, "new" if again.created else "known")
        if job.cancelled:
            self._spawn(self._cancel(job, made), gated=False)
        if job.awaited:
            self._spawn(self._await(job, made), gated=False)

    async def _cancel(self, job: Job, made: ff.Job[Any]) -> None:
        await asyncio.sleep(random.uniform(0, 0.8))
        self._facts.note("cancel", job.n, made.id)
        while True:
            try:
                await made.cancel("chaos", grace=1.0)
                return
            except ff.Unavailable:
                await asyncio.sleep(0.05)

    async def _await(self, job: Job, made: ff.Job[Any]) -> None:
        while True:
            try:
                outcome = await made.outcome()
            except ff.Unavailable:
                continue
            value = msgspec.json.encode(outcome.value).decode() if isinstance(outcome, ff.Completed) else "-"
            self._facts.note("got", job.n, type(outcome).__name__.lower(), value)
            return


async def main(orders: Orders) -> None:
    directory = Path(os.environ[tasks.DIRECTORY])
    acked = set(evidence.read(directory).acked.values())
    facts = Ledger(directory, "submitter")
    tasks.app.url = orders.url
    await backend_of(tasks.app, facts)
    async with tasks.app.client() as client:
        await Submitter(orders, facts, client, acked).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
