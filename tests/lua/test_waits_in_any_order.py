"""Waits, signals, pauses and what interrupts them, in any order: a refusal at worst, never a broken store or a trap.

As `test_any_order.py`, with few executions and many calls about waiting, so that they meet.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.errors import Rejected
from tests.lua.engine import (
    OPERATOR,
    P0,
    Engine,
    cancel,
    completion,
    delay,
    failure,
    retries,
    revoke,
    timeouts,
    unclaim,
)
from tests.lua.test_any_order import Walk
from tests.lua.waits import any_call_of_a_waiting_one, any_wait

SEEDS = range(6)
STEPS = 250
MANY_SEEDS = 20
"""Enough for every rare meeting."""
CASCADE = "flow_cascade"
POLICIES: list[Any] = [
    None, None, retries(1), timeouts(execution_deadline_ms=9_000), timeouts(attempt_timeout_ms=4_000),
]  # fmt: skip


class Waits(Walk):
    def __init__(self, engine: Engine, seed: int) -> None:
        super().__init__(engine, seed)
        self.met: Counter[str] = Counter()

    def any_call(self) -> Any:
        rng, engine = self.rng, self.engine
        id = rng.choice(self.ids[-2:])
        calls: list[Any] = 2 * any_call_of_a_waiting_one(rng, id)
        again = [c.ReplayExecutionArgs(execution_id=id, mode=mode) for mode in ("resume", "fresh")]
        calls += [cancel(id, rng.choice([OPERATOR, CASCADE])), revoke(id), *again, *again, *again]
        job = next((job for job in reversed(self.jobs[-6:]) if job.execution_id == id), None)
        if job is not None:
            calls += 3 * any_wait(rng, job)
            calls += [completion(job), failure(job), delay(job, engine.now + 400), unclaim(job)]
        return rng.choice(calls)

    async def one(self) -> None:
        rng, engine = self.rng, self.engine
        what = rng.random()
        if what < 0.02 or not self.ids:
            args: Any = engine.creation(engine.new_id(), lane_id="a", policy=rng.choice(POLICIES))
            self.ids.append(args.execution_id)
        elif what < 0.2:
            args = self.claiming("a")
        elif what < 0.25:
            args = c.TickArgs(partitions=[P0], ticker="t1", limit=200)
        elif what < 0.3:
            await engine.advance(rng.choice([1, 100, 500, 1_500]))
            self.trace.append(f"time is {engine.now}")
            return
        else:
            args = self.any_call()
        try:
            answer: Any = await engine.call(args)
            said = type(answer).__name__ + " " + str(getattr(answer, "effect", getattr(answer, "behavior_applied", "")))
        except Rejected as refused:
            answer = said = refused.code
        self.met[f"{type(args).__name__} {said}".strip()] += 1
        self.trace.append(f"{type(args).__name__} {getattr(args, 'execution_id', '')} -> {answer!r:.150}")
        self.jobs += getattr(answer, "jobs", [])

    async def run(self) -> None:
        for _ in range(STEPS):
            await self.one()


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_order_of_waits_breaks_a_store_or_is_a_trap(engine: Engine, seed: int) -> None:
    walk = Waits(engine, seed)
    await walk.run()
    broken = await engine.violations()
    assert not broken, f"seed {seed}:\n  " + "\n  ".join([*walk.trace[-20:], *broken])
    assert await walk.drain() == [], f"seed {seed}"


async def test_the_walks_meet_what_they_are_for(engine: Engine) -> None:
    met: Counter[str] = Counter()
    for seed in range(MANY_SEEDS):
        await engine.fresh()
        walk = Waits(engine, 1_000 + seed)
        await walk.run()
        assert await engine.violations() == [], f"seed {1_000 + seed}:\n  " + "\n  ".join(walk.trace[-20:])
        met += walk.met
    missing = [what for what in WANTED if what not in met]
    assert missing == [], met


WANTED = [
    "WaitArgs WaitSuspended", "WaitArgs WaitSatisfied", "SuspendWireArgs WireSuspended",
    "SuspendWireArgs already_suspended",
    "DeliverSignalWireArgs Accepted resume_condition_satisfied", "DeliverSignalWireArgs Accepted appended_to_waitpoint",
    "DeliverSignalWireArgs Accepted signal_ignored_matcher_failed", "DeliverSignalWireArgs waitpoint_closed",
    "ResumeExecutionArgs Resumed", "PauseExecutionArgs Paused", "PauseExecutionArgs PausePending",
]  # fmt: skip
