"""Any call in any state, in any order: a refusal at worst, never a broken store.

Seeded walks over most functions. A failure prints its seed and its last steps; put the seed into SEEDS to keep it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.errors import EngineError, Rejected
from ffcore.policy import FixedBackoff, RetryPolicy
from tests.lua.engine import (
    OPERATOR,
    P0,
    TTL,
    Engine,
    cancel,
    completion,
    delay,
    failure,
    lane_told,
    progress,
    renewal,
    revoke,
    timeouts,
    unclaim,
    wire,
)  # fmt: skip
from tests.lua.test_block import block, route, unblock
from tests.lua.test_claim import finishing, needs, sets_of
from tests.lua.test_continue import continuing, pinning
from tests.lua.test_control import reprioritise
from tests.lua.test_grant import claim, for_worker, issue, reclaim, reissue, resume
from tests.lua.test_journal import step
from tests.lua.test_stream import frame, many, new, writing
from tests.lua.test_waiter import waiting
from tests.lua.waits import any_call_of_a_waiting_one, any_wait, letting_go

SEEDS = range(8)
STEPS = 120
POLICIES: list[Any] = [
    None, {"retry_policy": RetryPolicy(max_retries=2, backoff=FixedBackoff(delay_ms=500))}, {"max_reclaim_count": 0},
    timeouts(attempt_timeout_ms=2_000), timeouts(execution_deadline_ms=9_000), {"lease_ms": 1_500}, needs("gpu"),
    {"max_replay_count": 1},
]  # fmt: skip


class Walk:
    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.ids: list[Any] = []
        self.jobs: list[c.ClaimedJob] = []
        self.trace: list[str] = []

    def any_id(self) -> Any:
        return self.rng.choice(self.ids or [self.engine.new_id()])

    def step(self) -> Any:
        """One random call."""
        rng, engine, id = self.rng, self.engine, self.any_id()
        lane = rng.choice(["a", "b"])
        job = rng.choice(self.jobs[-6:]) if self.jobs else None
        calls: list[Any] = [
            cancel(id, rng.choice(["flow_cascade", "operator_override"]), grace_ms=rng.choice([None, 0, 3_000])),
            revoke(id),
            block(id, rng.choice(["paused_by_operator", "waiting_for_capable_worker"])), unblock(id), route(id),
            issue(id),
            claim(id, expected_attempt_index=rng.randrange(3), lease_id=f"L{rng.randrange(9)}"),
            resume(id, current_attempt_index=rng.randrange(2), lease_id=f"L{rng.randrange(9)}"), reissue(id),
            reclaim(id, current_attempt_index=rng.randrange(3), max_reclaim_count=rng.choice([None, 0])),
            for_worker(lane_id=lane, worker_capabilities=frozenset({"gpu"})), c.ReplayExecutionArgs(execution_id=id),
            c.ReplayExecutionArgs(execution_id=id, mode="fresh"), c.ReadJournalArgs(execution_id=id),
            reprioritise(id, rng.randrange(-2, 3), ""), c.HoldArgs(partition=P0, what=rng.choice(WHAT), reason=""),
            c.ReleaseArgs(partition=P0, what=rng.choice(WHAT)), c.ExpireExecutionArgs(execution_id=id,
            expire_reason="late"),
            c.SetExecutionTagsArgs(execution_id=id, tags={"a.b": rng.choice(["c", ""])}), waiting([id],
            rng.choice("xyz")),
            c.MarkLeaseExpiredArgs(execution_id=id), c.AnnounceTasksArgs(partition=P0, tasks=["send@1"]),
            lane_told(lane, state=rng.choice(LANE_STATES)),
            lane_told(lane, age_ms=rng.choice([0, 70_000]), count=rng.randrange(3), bytes=rng.choice([0, 20])),
            lane_told(lane, aged_s=rng.choice([0, 1, 60])), lane_told(lane, aged_s=60),
            c.PurgeArgs(partition=P0, lane_id=lane, outcome=rng.choice(["completed", "failed", "cancelled"]), limit=2,
                        before_ms=engine.now),  # type: ignore[arg-type]
        ]  # fmt: skip
        calls += any_call_of_a_waiting_one(rng, id)
        if job is not None:
            calls += any_wait(rng, job)
            calls += 2 * [
                completion(job), failure(job), delay(job, engine.now + rng.randrange(4_000)), renewal(job),
                unclaim(job, rng.choice(["hand_back", "refused", "unknown_task"])), progress(job, progress_pct=5),
                completion(job, fence=None, source=OPERATOR), finishing([job], self.claiming(lane)),
                step(job, rng.choice("abc"), status=rng.choice(["ok", "fatal", "intent", "error"]), progress_pct=7,
                     lease_ttl_ms=rng.choice([0, TTL])), step(job, rng.choice("abc")),
                continuing(job), pinning(job, rng.randrange(1, 3)), frame(job, mode="best_effort"),
                many(new(job, rng.randrange(1, 9)), new(job, rng.randrange(1, 9), mode="best_effort")),
                writing(job, version=rng.randrange(2)),
            ]  # fmt: skip
        return rng.choice(calls)

    def claiming(self, lane: str) -> c.ClaimBatchArgs:
        return self.engine.claiming(self.rng.randrange(1, 4), lanes=[lane], capability_sets=self.sets,
        lease_ttl_ms=TTL // 10,
                                    park="w1")  # fmt: skip

    sets: list[str] = []

    async def run(self) -> None:
        for _ in range(STEPS):
            await self.one()

    async def one(self) -> None:
        """Submit, claim, tick, let time pass, or any other call."""
        rng, engine = self.rng, self.engine
        what = rng.random()
        if what < 0.2:
            id = engine.new_id(key=str(rng.randrange(40)) if rng.random() < 0.3 else None)
            args: Any = engine.creation(
                id, lane_id=rng.choice(["a", "b"]), priority=rng.randrange(-1, 2), policy=rng.choice(POLICIES),
                fairness_key=rng.choice([None, "k", "l"]), tags=rng.choice([{}, {"a.b": "c"}]),
                delay_until=rng.choice([None, engine.now + 700]), execution_kind=rng.choice(["send", "scan"]),
            )  # fmt: skip
            self.ids.append(id)
        elif what < 0.4:
            self.sets = list((await sets_of(engine, "a", "b")).values())
            args = self.claiming(rng.choice(["a", "b"]))
        elif what < 0.5:
            args = c.TickArgs(partitions=[P0], ticker="t1", limit=rng.choice([1, 200]))
        elif what < 0.6:
            await engine.advance(rng.choice([1, 300, 1_500, 5_000, limits.RETENTION_MIN_AGE_MS]))
            self.trace.append(f"time is {engine.now}")
            return
        else:
            args = self.step()
        try:
            answer: Any = await engine.call(args)
        except Rejected as refused:
            answer = refused.code
        self.trace.append(f"{type(args).__name__} {getattr(args, 'execution_id', '')} -> {answer!r:.150}")
        self.jobs += getattr(answer, "jobs", None) or getattr(getattr(answer, "claimed", None), "jobs", [])

    async def drain(self) -> list[Any]:
        """Lift what keeps work from ending and let time pass; answers what has not ended all the same."""
        engine = self.engine
        for what in WHAT:
            await engine.call(c.ReleaseArgs(partition=P0, what=what))
        for lane in "ab":
            await engine.call(lane_told(lane, state="active"))
        for id in self.ids:
            try:
                await engine.call(unblock(id))
            except Rejected:
                pass
            await letting_go(engine, id)
        for _ in range(60):
            await engine.pass_time(2_000)
            sets = list((await sets_of(engine, "a", "b")).values())
            jobs = await engine.claim(200, lanes=["a", "b"], capability_sets=sets)
            rows = [c.Completion(job.execution_id, wire(job), b"r") for job in jobs]
            await engine.call(finishing([], engine.claiming(0), items=rows))
        page = await engine.call(
            c.ListExecutionsArgs(partition=P0, states=["ready", "granted", "delayed", "blocked", "active", "suspended"])
        )
        return page.items


LANE_STATES = ["active", "active", "paused", "draining"]
WHAT = ["task:send", "task:scan", "tag:a.b=c"]


@pytest.mark.parametrize("seed", SEEDS)
async def test_no_order_of_calls_breaks_a_store(engine: Engine, seed: int) -> None:
    walk = Walk(engine, seed)
    try:
        await walk.run()
        broken = await engine.violations()
    except EngineError as error:
        broken = [f"{type(error).__name__}: {error}"]
    assert not broken, f"seed {seed}:\n  " + "\n  ".join([*walk.trace[-20:], *broken])


@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_happened_everything_can_be_drained(engine: Engine, seed: int) -> None:
    """No state may be a trap: once holds, blocks and pauses are lifted, every execution comes to an end."""
    walk = Walk(engine, seed + 1_000)
    await walk.run()
    left = await walk.drain()
    assert left == [], f"seed {seed}: {left}"
