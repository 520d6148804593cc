"""The walk of tests/lua/test_any_order.py, sharpened: forged fences, repeated submits, a clock set back.

After each call a few things are asked that need no model: whose fence was accepted, whether a repeat changed anything,
whether an epoch rose. What the checker knows is not asked here.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

import ffcore.contracts as c
from ffbackend_valkey.library import Library
from ffcore.errors import EngineError
from ffcore.ids import PartitionKey
from ffengine import check
from tests.lua import invariants
from tests.lua.engine import Engine, completion, delay, failure, open_engine, progress, renewal, unclaim
from tests.lua.test_any_order import POLICIES, Walk
from tests.mutants.killers import Kill, Server, bounded
from tests.mutants.mutant import Mutant

WALKS = 3
STEPS = 160
LOOK_EVERY = 8
"""Steps between two looks of the checker."""
FENCED = (
    c.CompleteExecutionArgs, c.FailExecutionArgs, c.DelayExecutionArgs, c.RenewLeaseArgs, c.UnclaimArgs,
    c.UpdateProgressArgs
)  # fmt: skip


class Wrong(Exception):
    """Something the engine must never do."""


class Watch(Engine):
    """An engine whose calls are looked at."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.backend)
        self.epochs: dict[Any, tuple[int, str]] = {}
        self.calls_n = 0
        self.memory = check.Memory()

    async def fresh(self) -> None:
        await super().fresh()
        self.epochs.clear()
        self.memory = check.Memory()

    async def violations(self) -> list[str]:
        """What is wrong, to a checker that remembers what it has seen before."""
        store = await invariants.read_store(self.command)
        found = await check.violations(
            self.backend, memory=self.memory, partitions=map(PartitionKey, invariants.partitions(store))
        )
        return [f"{v.invariant} {v.id}: {v.detail}" for v in found] + invariants.strays(store)

    async def _record(self, id: Any) -> dict[str, str]:
        tag, _, uuid = str(id).rpartition(":")
        flat = await self.command("HGETALL", f"ff:{tag}:x:{uuid}")
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
        return {k.decode(): v.decode(errors="replace") for k, v in pairs}

    async def call(self, args: Any, **fields: Any) -> Any:
        self.calls_n += 1
        asked = isinstance(args, (*FENCED, c.CreateExecutionArgs))
        before = await self._record(args.execution_id) if asked else {}
        answer = await super().call(args, **fields)
        if isinstance(args, c.CreateExecutionArgs):
            if isinstance(answer, c.Created) and before:
                raise Wrong("I10: an execution that exists was created again")
            if before and before.get("dg", "").encode() != args.digest:
                raise Wrong("I10: another payload under the same id is no conflict")
        elif isinstance(args, FENCED):
            self._fenced(args, before, await self._record(args.execution_id))
        for job in getattr(answer, "jobs", None) or getattr(getattr(answer, "claimed", None), "jobs", []):
            self._leased(job)
        return answer

    def _fenced(self, args: Any, before: dict[str, str], after: dict[str, str]) -> None:
        if isinstance(args, c.UpdateProgressArgs):
            given = f"{args.lease_id} {args.lease_epoch} {args.attempt_id}"
        elif isinstance(args, c.UnclaimArgs):
            given = args.fence
        elif args.fence is None:
            return
        else:
            given = args.fence.wire
        lease = before.get("li", "")
        if given != f"{lease} {before.get('ep', '0')} {before.get('at', lease)}":
            raise Wrong(f"I8: {type(args).__name__} was accepted under a fence that is not the record's")
        if before["s"] != "active" and before != after:
            raise Wrong(f"I9: {type(args).__name__} changed a record that was {before['s']}")

    def _leased(self, job: c.ClaimedJob) -> None:
        epoch, lease = self.epochs.get(job.execution_id, (0, ""))
        if job.lease_id != lease and (job.lease_epoch <= epoch or job.lease_epoch < self.now - 60_000):
            raise Wrong(f"I8: epoch {job.lease_epoch} was handed out after {epoch}")
        self.epochs[job.execution_id] = (job.lease_epoch, job.lease_id)


def forged(rng: random.Random, job: c.ClaimedJob) -> c.ClaimedJob:
    """The job with one part of its fence changed."""
    other: dict[str, Any] = rng.choice(
        [{"lease_id": job.lease_id + "x"}, {"lease_epoch": job.lease_epoch + 1}, {"attempt_id": job.attempt_id + "x"}]
    )
    return msgspec.structs.replace(job, **other)


class SharpWalk(Walk):
    def step(self) -> Any:
        rng, engine = self.rng, self.engine
        if self.jobs and rng.random() < 0.15:
            job = forged(rng, rng.choice(self.jobs[-4:]))
            return rng.choice(
                [completion(job), failure(job), delay(job, engine.now), renewal(job), unclaim(job), progress(job,
                progress_pct=1)]
            )
        if self.ids and rng.random() < 0.05:
            digest = rng.choice([b"d", b"e"]) * 16
            return engine.creation(self.any_id(), lane_id=rng.choice("ab"), policy=rng.choice(POLICIES), digest=digest)
        return super().step()

    async def one(self) -> None:
        if self.rng.random() < 0.03:
            await self.engine.at(self.engine.now - self.rng.choice([5, 400, 2_500]))
            self.trace.append(f"the clock is set back to {self.engine.now}")
        await super().one()


def walk(server: Server, lib: Library, mutant: Mutant | None) -> Kill | None:
    """Seeded calls in any order; the checker looks in between, and then all that is left must come to an end."""

    async def run() -> Kill | None:
        engine = Watch(await open_engine(server.url, lib))
        try:
            for seed in range(WALKS):
                await engine.fresh()
                if found := await _one(engine, seed):
                    return Kill("walk", f"seed {seed}: {found}", engine.calls_n)
        finally:
            await engine.close()
        return None

    return bounded(server, "walk", run())


async def _one(engine: Watch, seed: int) -> str | None:
    walk = SharpWalk(engine, seed)
    try:
        for step in range(1, STEPS + 1):
            await walk.one()
            if step % LOOK_EVERY == 0 and (broken := await engine.violations()):
                return str(broken[0])
        if left := await walk.drain():
            return f"liveness: {len(left)} do not end: {left[0]}"
        broken = await engine.violations()
        return str(broken[0]) if broken else None
    except (Wrong, EngineError) as wrong:
        return f"{type(wrong).__name__}: {wrong}"
