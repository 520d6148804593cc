"""Durable handlers on a cluster: gates, signals, steps, streams and secrets follow their partition to whichever node
serves it. What was recorded and acknowledged is neither done again nor lost, and readers see every frame once."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.cluster_backend import ClusterBackend
from ffcore import ids
from ffcore.errors import EngineError
from ffengine.check import Memory, violations
from tests.cluster.cluster import Cluster, Node
from tests.cluster.test_migration import elsewhere
from tests.integration.proxy import until
from tests.integration.worker_app import working

JOBS_N, WORDS_N = 24, 40
OLD, NEW = secrets.token_hex(32), secrets.token_hex(32)


@pytest.fixture(autouse=True)
def ring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of secrets that all programs share; the store has fingerprints alone."""
    for name in ("FF_SECRET", "FF_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "secrets"
    file.touch(0o600)
    file.write_text(f"old {OLD}\n")
    monkeypatch.setenv("FF_SECRET_FILE", str(file))
    return file


class Desk:
    """A task that writes, asks, waits and goes on writing; what its handlers did, and the tokens they gave out."""

    def __init__(self, app: ff.App) -> None:
        self.ran: Counter[str] = Counter()
        self.tokens: dict[str, str] = {}
        self.pause = 0.005

        @app.task(lane="durable", lease=30)
        async def draft(_: None, ctx: ff.Context) -> str:
            async def write(part: str) -> None:
                self.ran[f"{part} {ctx.execution_id}"] += 1
                for word in range(WORDS_N):
                    await ctx.emit([part, word])
                    await asyncio.sleep(self.pause)

            gate = await ctx.gate("approval", str)
            await ctx.step("first", write, "first")
            self.tokens[ctx.execution_id] = gate.token
            verdict = await gate.wait(timeout=300)
            await ctx.step("second", write, "second")
            await ctx.summary({"verdict": verdict})
            return verdict or "nobody"

        self.task = draft


@pytest.fixture
async def outside(cluster: Cluster, app: ff.App) -> AsyncIterator[ff.Client]:
    """Somebody else's client, with connections and a view of the cluster of its own."""
    async with ff.App(cluster.url).client() as client:
        yield client


async def read(job: ff.Job[Any]) -> list[Any]:
    """Every frame of a job from the first, until it has ended."""
    return [frame.value if frame.type == "token" else (frame.type, frame.value) async for frame in job.stream()]


async def approve(client: ff.Client, job: ff.Job[Any], token: str) -> None:
    """Click twice, as people do."""
    for _ in range(2):
        answer = await client.signal(token, f"yes to {job.id}", key="click", source="web:dana")
        assert answer.effect == "resume_condition_satisfied", answer


async def suspended(jobs: list[ff.Job[Any]]) -> None:
    for job in jobs:
        while (await job.status()).state != "suspended":
            await asyncio.sleep(0.02)


ALL = [[part, word] for part in ("first", "second") for word in range(WORDS_N)]


async def as_it_should(
    desk: Desk, backend: ClusterBackend, jobs: list[ff.Job[Any]], tails: list[asyncio.Task[list[Any]]]
) -> None:
    """Every job has its answer, every reader read everything once, every step ran once; the store is in order."""
    assert await asyncio.gather(*(job.result(timeout=60) for job in jobs)) == [f"yes to {job.id}" for job in jobs]
    assert await asyncio.wait_for(asyncio.gather(*tails), 30) == [ALL] * len(jobs)
    assert desk.ran == {f"{part} {job.id}": 1 for job in jobs for part in ("first", "second")}
    assert [await job.summary() for job in jobs] == [{"verdict": f"yes to {job.id}"} for job in jobs]
    assert await violations(backend, memory=Memory()) == []


async def test_steps_signals_and_readers_follow_slots_that_move(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, outside: ff.Client
) -> None:
    desk = Desk(app)

    async def move(n: int, offset: int = 0) -> None:
        for key in backend.config.keys("fp")[offset : offset + n]:
            slot = ids.slot_of(key)
            await asyncio.to_thread(cluster.migrate, slot, elsewhere(cluster, slot))

    async with app.client() as client, working(app, concurrency=JOBS_N):
        jobs: list[ff.Job[Any]] = list(await client.submit_many(desk.task, [None] * JOBS_N))
        tails = [asyncio.create_task(read(outside.job(job.id))) for job in jobs]
        await until(lambda: len(desk.ran) == JOBS_N, "every handler to write")
        await move(4)
        await until(lambda: len(desk.tokens) == JOBS_N, "every handler to ask", 30)
        await suspended(jobs)
        moving = asyncio.create_task(move(8, 2))
        await asyncio.gather(*(approve(outside, job, desk.tokens[job.id]) for job in jobs))
        await moving
        await as_it_should(desk, backend, jobs, tails)


async def test_what_waits_survives_its_primary_and_is_signalled_at_the_next(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, outside: ff.Client
) -> None:
    """The signals are sent while nobody serves the partition: their senders wait, and hear of one signal each."""
    desk = Desk(app)
    desk.pause = 0.0
    async with app.client() as client, working(app, concurrency=JOBS_N):
        jobs: list[ff.Job[Any]] = list(await client.submit_many(desk.task, [None] * JOBS_N))
        tails = [asyncio.create_task(read(outside.job(job.id))) for job in jobs]
        await until(lambda: len(desk.tokens) == JOBS_N, "every handler to ask", 30)
        await suspended(jobs)
        victim = cluster.owner(ids.slot_of(ids.partition_of(jobs[0].id)))
        await until(lambda: in_step(victim), "the replica to have all that was written")
        await asyncio.to_thread(victim.kill)
        sending = [asyncio.create_task(insist(outside, job, desk.tokens[job.id])) for job in jobs]
        await asyncio.to_thread(cluster.wait_promoted, victim)
        await asyncio.wait_for(asyncio.gather(*sending), 60)
        await asyncio.to_thread(cluster.restart, victim)
        await as_it_should(desk, backend, jobs, tails)


async def insist(client: ff.Client, job: ff.Job[Any], token: str) -> None:
    """What a web handler's caller does when the page does not load: the same click, again."""
    while True:
        try:
            return await approve(client, job, token)
        except EngineError as away:
            if not isinstance(away, ff.Unavailable):
                raise
            await asyncio.sleep(0.1)


def in_step(primary: Node) -> bool:
    _, offset, replicas = primary.ask("ROLE")
    return bool(replicas) and all(int(replica[2]) >= offset for replica in replicas)


async def test_secrets_are_rotated_on_every_node_and_open_gates_keep_their_tokens(
    app: ff.App, backend: ClusterBackend, cluster: Cluster, outside: ff.Client, ring: Path
) -> None:
    desk = Desk(app)
    desk.pause = 0.0
    async with app.client() as client, working(app, concurrency=JOBS_N):
        # By key they lie on every node; without, a few jobs share a partition or two.
        keys = [[f"{when} {n}" for n in range(JOBS_N)] for when in ("before", "after")]
        before: list[ff.Job[Any]] = list(await client.submit_many(desk.task, [None] * JOBS_N, keys=keys[0]))
        await until(lambda: len(desk.tokens) == JOBS_N, "every handler to ask", 30)
        ring.write_text(f"old {OLD}\nnew {NEW}\n")
        done = await backend.call(
            c.RotateWaitpointHmacSecretAllArgs(new_kid="new", new_secret_hex=NEW, grace_ms=3_600_000)
        )
        assert not done.failed
        assert {entry.partition for entry in done.entries} == set(range(16)), "all partitions, wherever they lie"
        after: list[ff.Job[Any]] = list(await client.submit_many(desk.task, [None] * JOBS_N, keys=keys[1]))
        await until(lambda: len(desk.tokens) == 2 * JOBS_N, "the later handlers to ask", 30)
        kids = {job.id: desk.tokens[job.id].split(".")[4] for job in (*before, *after)}
        assert kids == {job.id: "old" for job in before} | {job.id: "new" for job in after}
        await suspended([*before, *after])
        await asyncio.gather(*(approve(outside, job, desk.tokens[job.id]) for job in (*before, *after)))
        results = await asyncio.gather(*(job.result(timeout=60) for job in (*before, *after)))
        assert results == [f"yes to {job.id}" for job in (*before, *after)]
    owners = {cluster.owner(ids.slot_of(ids.partition_of(job.id))) for job in (*before, *after)}
    assert len(owners) == 3
