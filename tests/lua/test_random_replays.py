"""Random graphs whose members end, run again, spawn, wait and are cancelled in random order, with all of it settled in
the call or a little at a time: after every few calls the checker finds nothing, and in the end the flow ends."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.memory import MemoryServer
from ffcore import limits
from ffcore.errors import Rejected
from tests.lua.engine import Engine, cancel, delay, open_engine, revoke, unclaim
from tests.lua.graphs import chunk, info, row, spawning, waiting
from tests.lua.members import end, settle
from tests.lua.test_random_dags import bounded

TTL = limits.LEASE_TTL_MAX_MS


@pytest.fixture(params=[1, 2, limits.EDGES_INLINE_N])
async def slow(store_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url, bounded(request.param))
    try:
        yield engine
    finally:
        await engine.close()
        MemoryServer.discard(store_url.removeprefix("memory://"))


def drawn(rng: random.Random, ids: list[Any]) -> list[c.NodeRow]:
    rows = [row(ids[0])]
    for n in range(1, len(ids)):
        ups = rng.sample(range(1, n + 1), min(n, rng.choice([0, 1, 1, 2, 3])))
        edges = ",".join(f"{up}{rng.choice('sssaf')}" for up in ups)
        group = rng.choice(["A", "A", "O c", "O l", f"Q {rng.randint(1, len(ups))} {rng.choice('cl')}"]) if ups else "A"
        rows.append(row(ids[n], edges, group=group))
    return rows


class Chaos:
    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.flow: Any = engine.new_id()
        self.ids = [engine.new_id() for _ in range(self.rng.choice([3, 6, 12]))]
        self.held: list[c.ClaimedJob] = []
        self.story: list[str] = []

    async def run(self, steps: int) -> None:
        await self.engine.call(chunk(self.flow, drawn(self.rng, self.ids)))
        for _ in range(steps):
            await self.step()
            if self.rng.random() < 0.3:
                await self.check()
        await self.finish()

    async def check(self) -> None:
        found = await self.engine.violations()
        assert not found, "\n".join([*found, *self.story])

    async def step(self) -> None:
        rng, engine = self.rng, self.engine
        what = rng.choice(
            ["claim"] * 4 + ["end"] * 4 + ["replay"] * 3 + ["cancel", "spawn", "wait", "give", "late", "pause", "tick"]
        )
        id = rng.choice(self.ids)
        try:
            if what == "claim":
                got = await engine.claim(rng.choice([1, 3]), lease_ttl_ms=TTL)
                self.held += got
                what += "".join(f" {self.ids.index(job.execution_id)}" for job in got)
            elif what == "replay":
                what += f" {self.ids.index(id)}"
                await engine.call(c.ReplayExecutionArgs(execution_id=id, mode=rng.choice(["resume", "fresh"])))
            elif what == "cancel":
                what += f" {self.ids.index(id)}"
                await engine.call(cancel(id, rng.choice(["flow_cascade", "operator_override"])))
            elif what == "pause":
                what += f" {self.ids.index(id)}"
                await engine.call(c.PauseExecutionArgs(execution_id=id, reason="wait"))
                await self.maybe_tick()
                await engine.call(c.ResumeExecutionArgs(execution_id=id, trigger_type="operator"))
            elif what == "tick":
                await engine.advance(rng.choice([1, 2_000]))
                await engine.tick(limit=rng.choice([1, 200]))
            elif self.held:
                job = self.held.pop(rng.randrange(len(self.held)))
                what += f" {self.ids.index(job.execution_id)}"
                await self.with_job(what, job)
        except Rejected as refused:
            what += f" ({refused.code})"
        self.story.append(what)

    async def maybe_tick(self) -> None:
        if self.rng.random() < 0.5:
            await self.engine.tick(limit=1)

    async def with_job(self, what: str, job: c.ClaimedJob) -> None:
        rng, engine = self.rng, self.engine
        if what.startswith(("spawn", "wait")):
            child = engine.new_id()
            await engine.call(spawning(job, child, self.flow, n=len(self.ids), abandon=rng.random() < 0.2))
            self.ids.append(child)
            if what.startswith("wait"):
                await engine.call(waiting(job, *rng.choice([(), (child,)])))
            else:
                self.held.append(job)
        elif what.startswith("give"):
            await engine.call(rng.choice([unclaim(job), unclaim(job, "refused"), revoke(job.execution_id)]))
        elif what.startswith("late"):
            await engine.call(delay(job, engine.now + rng.choice([0, 1_500])))
        else:
            await end(engine, job, rng.choice("cccccffxe"))

    async def finish(self) -> None:
        for _ in range(200):
            await settle(self.engine)
            self.held += await self.engine.claim(50, lease_ttl_ms=TTL)
            if not self.held:
                await self.engine.pass_time(2_000)
                self.held += await self.engine.claim(50, lease_ttl_ms=TTL)
            for job in self.held:
                try:
                    await self.engine.complete(job)
                except Rejected:
                    self.story.append(f"lost {self.ids.index(job.execution_id)}")
            self.held = []
            await self.check()
            if (await info(self.engine, self.flow)).state == "ended":
                return
        raise AssertionError("\n".join(["it never ends", *self.story]))


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_runs_again_all_counts_stay_right(slow: Engine, seed: int) -> None:
    await Chaos(slow, seed).run(60)
