"""The submitter: submits numbered jobs, and flows of them, at an even pace, repeats what it is not sure of, cancels
and awaits some.

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
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

import ffsdk as ff
from tests.chaos import ledger as evidence
from tests.chaos import tasks
from tests.chaos.graphs import Graph, Node, graphs, name_of
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
        """acked: numbers of jobs, and first numbers of flows."""
        self._orders, self._facts, self._client, self._acked = orders, facts, client, acked
        self._gate = asyncio.Semaphore(IN_FLIGHT)
        self._hold = Path(os.environ[tasks.DIRECTORY]) / HOLD
        self._aside: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Everything that is not acknowledged yet, at the pace the harness asked for."""
        rng = random.Random()
        every = (one if isinstance(one, Graph) else draw(one, self._orders) for one in graphs(self._orders))
        todo = deque(one for one in every if one.n not in self._acked)
        started, sent, held_s = time.monotonic(), 0, 0.0
        while todo:
            if isinstance(todo[0], Graph):
                graph = todo.popleft()
                assert isinstance(graph, Graph)
                sent += len(graph.numbers)
                coro = self._flow(graph)
            else:
                share = MANY if rng.random() < MANY_SHARE / MANY else 1
                jobs: list[Job] = []
                while todo and len(jobs) < share and isinstance(job := todo[0], Job):
                    jobs.append(job)
                    todo.popleft()
                sent += len(jobs)
                coro = self._several(jobs) if len(jobs) > 1 else self._one(jobs[0])
            await self._gate.acquire()
            self._spawn(coro)
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

    # ---- flows

    async def _flow(self, graph: Graph) -> None:
        await self._submit_flow(graph)
        if graph.repeated:
            await self._submit_flow(graph)
        flow = self._client.flow_by_id(graph.flow_id(self._client.backend.config.fp))
        if graph.cancel:
            self._spawn(self._halt(graph, flow), gated=False)
        if graph.awaited:
            self._spawn(self._until_ended(graph, flow), gated=False)

    async def _submit_flow(self, graph: Graph) -> None:
        """Until it is acknowledged, as a whole."""
        while True:
            self._facts.note("graph", graph.n)
            try:
                async with self._client.flow(graph.shape, graph.key) as flow:
                    made: list[ff.Node[Any]] = []
                    for node in graph.nodes:
                        made.append(self._add(flow, node, made))
            except ff.StoreFull:
                self._facts.note("full", graph.n)
                await asyncio.sleep(0.3)
            except ff.Unavailable:
                await asyncio.sleep(0.05)
            else:
                self._facts.note("whole", graph.n, flow.id, "new" if flow.created else "known")
                return

    def _add(self, flow: ff.Flow, node: Node, made: list[ff.Node[Any]]) -> ff.Node[Any]:
        upstreams = [made[place] for place in node.after]
        after: Any = upstreams[0] if len(upstreams) == 1 and not node.need else upstreams
        if node.need:
            after = ff.quorum(node.need, upstreams, on_satisfied="cancel_remaining" if node.cancels else "let_run")
        task: ff.Task[Any, Any] = tasks.app.tasks[node.task]
        on: Any = node.on
        options: Any = {"delay": node.delay_s or None, "deadline": node.deadline_s or None}
        if node.task == "merge":
            return flow.add(task, after=after, on=on, key=name_of(node.n), **options)
        payload: Any = tasks.Work(node.n, node.ms)
        if node.task == "parent":
            each = [(child, n, node.ms) for child, n in zip(node.children, node.numbers, strict=True)]
            payload = tasks.Family(node.n, node.ms, each, node.first)
        return flow.add(task, payload, after=after, on=on, key=name_of(node.n), **options)

    async def _halt(self, graph: Graph, flow: ff.Flow) -> None:
        await asyncio.sleep(random.uniform(0, 2.0))
        self._facts.note("halt", graph.n, graph.cancel)
        policy: Any = graph.cancel
        while True:
            try:
                self._facts.note("halted", graph.n, await flow.cancel("chaos", policy=policy))
                return
            except ff.Unavailable:
                await asyncio.sleep(0.05)

    async def _until_ended(self, graph: Graph, flow: ff.Flow) -> None:
        while True:
            try:
                outcome = await flow.outcome()
            except ff.Unavailable:
                continue
            self._facts.note("ended", graph.n, outcome.state, msgspec.json.encode(outcome.counts).decode())
            return

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
    known = evidence.read(directory)
    acked = {*known.acked.values(), *(n for n, flow_id in known.graphs.items() if flow_id)}
    facts = Ledger(directory, "submitter")
    tasks.app.url = orders.url
    await backend_of(tasks.app, facts)
    async with tasks.app.client() as client:
        await Submitter(orders, facts, client, acked).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
