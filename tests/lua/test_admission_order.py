"""The order of lanes whose jobs wait in queues of their own, against a model that looks at every job: random
submits, claims, refusals, releases, ends of halts, cancels, priorities and other orders; with capability sets and
fairness keys."""

from __future__ import annotations

import hashlib
import random
from typing import Any, NamedTuple

import pytest

import ffcore.contracts as c
from tests.lua.engine import P0, Engine, cancel, lane_told, wire
from tests.lua.test_admission_queues import B0, refuse, tell, uuid

BUDGETS = [f"{B0}:018f0000-0000-7000-8000-0000000000a{n}" for n in range(4)]
SETS = [hashlib.sha1(f"b {id}".encode()).hexdigest()[:12] for id in BUDGETS]
GPU = hashlib.sha1(b"gpu").hexdigest()[:12]
HALT_MS = 5_000


class Waiting(NamedTuple):
    id: str
    gpu: bool
    budget: int | None
    key: str | None
    priority: int
    since: int


class Model:
    """Which job may come next, found by looking at all that wait."""

    def __init__(self, engine: Engine, rng: random.Random) -> None:
        self.engine, self.rng = engine, rng
        self.waiting: dict[str, Waiting] = {}
        self.held: dict[str, tuple[Waiting, c.ClaimedJob]] = {}
        self.turns: dict[str, int] = {}
        self.halted: set[int] = set()
        self.aged_s = 0
        self.keyed = False
        self.gen = 0

    # ---- what the store does

    async def submit(self) -> None:
        gpu, budget = self.rng.random() < 0.3, self.rng.choice([None, 0, 1, 2, 3])
        key, priority = self.rng.choice([None, None, "a", "b"]), self.rng.choice([0, 0, 1, -1])
        options: dict[str, Any] = {"priority": priority, "fairness_key": key}
        if gpu:
            options["policy"] = {"routing_requirements": {"required_capabilities": ["gpu"]}}
        if budget is not None:
            options["admission"] = f"b {BUDGETS[budget]} hold -"
        id = await self.engine.submit(**options)
        self.keyed |= key is not None
        self.waiting[id] = Waiting(id, gpu, budget, key, priority, self.engine.now)
        await self.settle()

    async def claim(self, n: int, gpu: bool) -> None:
        got = await self.engine.claim(limit=n, capability_sets=[GPU] if gpu else [])
        for job in got:
            one = self.waiting[job.execution_id]
            assert self.may(one, gpu), f"{one} may not start"
            if self.aged_s and self.keyed:
                self.of_its_key(one, gpu)
            else:
                best = min(self.place(other) for other in self.waiting.values() if self.may(other, gpu))
                assert self.place(one) == best, f"{one} came before others"
            del self.waiting[job.execution_id]
            self.held[job.execution_id] = one, job
        assert len(got) == n or not any(self.may(one, gpu) for one in self.waiting.values()), "less than there was"

    def may(self, one: Waiting, gpu: bool) -> bool:
        return (gpu or not one.gpu) and one.budget not in self.halted

    def place(self, one: Waiting) -> Any:
        if self.aged_s:
            return one.since - one.priority * self.aged_s * 1_000
        return -one.priority, self.turns[one.id]

    def of_its_key(self, one: Waiting, gpu: bool) -> None:
        """Turns belong to a key within its queue; they go to the job of it that has aged most."""

        def queue(other: Waiting) -> Any:
            return other.gpu, other.budget, other.key

        mine = [other for other in self.waiting.values() if queue(other) == queue(one)]
        turn = min(self.turns[other.id] for other in mine)
        assert turn == min(self.turns[other.id] for other in self.waiting.values() if self.may(other, gpu))
        assert self.place(one) == min(map(self.place, mine))
        giver = next(other for other in mine if self.turns[other.id] == turn)
        self.turns[giver.id] = self.turns[one.id]

    async def settle(self) -> None:
        """Let a change of the order come to its end, and read the turns that it gave."""
        for _ in range(3):
            await self.engine.tick()
        for id in self.waiting:
            self.turns[id] = int((await self.engine.read(id)).fields["turn"])

    # ---- steps

    async def refuse(self) -> None:
        mine = [job for one, job in self.held.values() if one.budget is not None]
        if not mine:
            return
        job = self.rng.choice(mine)
        one, _ = self.held.pop(job.execution_id)
        assert one.budget is not None
        row = c.Refusal(job.execution_id, wire(job), BUDGETS[one.budget], "b", self.gen + 1, self.engine.now + HALT_MS)
        assert await refuse(self.engine, row) == [("refused", "ready")]
        self.halted.add(one.budget)
        self.waiting[one.id] = one

    async def release(self) -> None:
        budget = self.rng.randrange(4)
        self.gen += 1
        await tell(self.engine, "unhalt", f"{SETS[budget]} {uuid(BUDGETS[budget])} {self.gen} 999")
        self.halted.discard(budget)

    async def wait(self) -> None:
        for _, job in self.held.values():
            await self.engine.complete(job)
        self.held.clear()
        await self.engine.advance(HALT_MS + 1)
        await self.engine.tick()  # a few are let ask first
        await self.engine.advance(200)
        await self.engine.tick()
        self.halted.clear()

    async def cancel(self) -> None:
        if self.waiting:
            id = self.rng.choice(sorted(self.waiting))
            del self.waiting[id]
            await self.engine.call(cancel(id))

    async def hand_back(self) -> None:
        if self.held:
            one, job = self.held.pop(self.rng.choice(sorted(self.held)))
            await self.engine.call(c.UnclaimArgs(execution_id=one.id, fence=wire(job), reason="hand_back"))
            self.waiting[one.id] = one
            self.turns[one.id] = int((await self.engine.read(one.id)).fields["turn"])

    async def another_priority(self) -> None:
        if self.waiting and not (self.aged_s and self.keyed):
            id = self.rng.choice(sorted(self.waiting))
            priority = self.rng.choice([-2, 0, 2])
            await self.engine.call(c.ChangePriorityArgs(execution_id=id, new_priority=priority, lane_id=""))
            self.waiting[id] = self.waiting[id]._replace(priority=priority)

    async def another_order(self) -> None:
        self.aged_s = self.rng.choice([0, 1, 5])
        await self.engine.call(lane_told(aged_s=self.aged_s))
        await self.settle()


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_events_is_that_of_a_naive_model(engine: Engine, seed: int) -> None:
    rng = random.Random(seed)
    model = Model(engine, rng)
    for _ in range(140):
        step = rng.choices(
            ["submit", "claim", "refuse", "release", "wait", "cancel", "hand_back", "priority", "order", "pass"],
            [30, 18, 12, 6, 3, 5, 5, 4, 2 if seed % 2 else 0, 5],
        )[0]  # fmt: skip
        match step:
            case "submit":
                await model.submit()
            case "claim":
                await model.claim(rng.randint(1, 4), rng.random() < 0.6)
            case "refuse":
                await model.refuse()
            case "release":
                await model.release()
            case "wait":
                await model.wait()
            case "cancel":
                await model.cancel()
            case "hand_back":
                await model.hand_back()
            case "priority":
                await model.another_priority()
            case "order":
                await model.another_order()
            case _:
                await engine.advance(rng.randint(1, 50))
    await model.wait()
    await model.claim(200, gpu=True)
    assert not model.waiting
    assert await engine.command("HGET", f"ff:{P0}", "m1") in (b"0", None)
