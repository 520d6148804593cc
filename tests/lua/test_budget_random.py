"""Random work on one budget beside a plain one with exact decimals: rows that are lost, late, doubled and out of order,
resets, raises, deletes. Whatever is granted fits: used + reserved stay within every hard limit at that instant.
"""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.admission import amount_text, pack_amounts
from ffcore.contracts.mail import Letter
from tests.lua.engine import START_MS, Engine
from tests.lua.plain_budget import PlainBudget, decimals
from tests.lua.test_budget import B0, TEAM, Post, creating, job, reserving, status

UUID = ids.uuid_of(TEAM)
STEPS_N = 120


class Rig:
    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.post = Post(engine)
        self.waiting: list[tuple[Letter, tuple[Any, ...]]] = []
        """Rows on their way, and what they do."""
        self.applied: set[str] = set()
        self.keys_n = 0
        self.told: list[tuple[str, int, str, str]] = []
        self.plain: PlainBudget

    def amounts(self, low: float = 0.0) -> str:
        rng = self.rng
        found: dict[str, str] = {}
        for name in rng.sample(["tokens", "usd", "joules"], rng.randrange(0 if low == 0 else 1, 3)):
            value: Any = rng.randrange(0, 30) if name == "tokens" else Decimal(rng.randrange(0, 4_000_000)).scaleb(-6)
            found[name] = amount_text(value)
        return pack_amounts(found) or "-"

    async def create(self) -> None:
        rng = self.rng
        every = rng.choice([0, 20_000])
        refuses = rng.random() < 0.3
        hard = {"tokens": rng.choice([0, 50, 200]), "usd": rng.choice([0, 3.5, 20])}
        soft = {"tokens": rng.choice([0, 30])}
        mode = "refuse" if refuses else "record"
        await self.engine.call(creating(hard=hard, soft=soft, reset_interval_ms=every, enforcement_mode=mode))
        now = self.engine.now
        self.plain = PlainBudget(
            {name: Decimal(str(n)) for name, n in hard.items()}, {name: Decimal(str(n)) for name, n in soft.items()},
            every, refuses, now, now,
        )  # fmt: skip

    async def reserve(self) -> None:
        n, epoch, text = self.rng.randrange(6), self.rng.randrange(1, 5), self.amounts()
        again = (held := self.plain.held.get(job(n))) is not None and held.epoch == epoch
        row = reserving(n, text, epoch=epoch, now=self.engine.now, lease_ms=self.rng.choice([2_000, 60_000]))
        (answer,) = (await self.engine.call(c.ReserveManyArgs(partition=B0, items=[row]))).items
        assert answer.state == self.plain.reserve(job(n), epoch, text)
        if answer.state == "granted" and not again:
            now = await status(self.engine)
            for name, hard in now.hard_limits.items():
                if decimals(text).get(name):
                    taken = Decimal(str(now.usage[name])) + Decimal(str(now.reserved.get(name, 0)))
                    assert taken <= Decimal(str(hard))

    async def spend(self) -> None:
        if self.told and self.rng.random() < 0.25:
            execution, epoch, key, text = self.rng.choice(self.told)
        else:
            self.keys_n += 1
            execution, epoch, key, text = (
                job(self.rng.randrange(6)),
                self.rng.randrange(1, 5),
                f"k{self.keys_n}",
                self.amounts(1),
            )
            self.told.append((execution, epoch, key, text))
        row = c.SpendRow(TEAM, execution, epoch, key, text)
        (answer,) = (await self.engine.call(c.SpendManyArgs(partition=B0, items=[row]))).items
        expected = self.plain.spend(execution, epoch, key, text)
        assert answer.state == expected, (answer, text)

    def owe(self) -> None:
        n, epoch = self.rng.randrange(6), self.rng.randrange(1, 5)
        if self.rng.random() < 0.6:
            self.waiting.append((self.post.settle(n, epoch), ("settle", job(n), epoch)))
        else:
            self.keys_n += 1
            text = self.amounts(1)
            letter = self.post.spend(n, text, epoch=epoch, key=f"k{self.keys_n}")
            self.waiting.append((letter, ("spend", job(n), epoch, f"k{self.keys_n}", text)))

    async def deliver(self) -> None:
        """Some of what is on its way, in any order; some of it comes again another time."""
        some = self.rng.sample(self.waiting, min(len(self.waiting), self.rng.randrange(1, 5)))
        answer = await self.post.deliver(*(letter for letter, _ in some))
        known = 0
        for letter, (what, *rest) in some:
            if letter.row in self.applied:
                known += 1
                continue
            self.applied.add(letter.row)
            getattr(self.plain, what)(*rest)
        assert answer.known == known
        self.waiting = [one for one in self.waiting if one not in some or self.rng.random() < 0.3]

    async def verify(self) -> None:
        n, epoch, held = self.rng.randrange(6), self.rng.randrange(1, 5), self.rng.randrange(2)
        await self.post.deliver(Letter("", "verified", f"b {UUID} - {job(n)} {epoch} {held}"))
        self.plain.verified(job(n), epoch, bool(held))

    async def change(self) -> None:
        rng = self.rng
        what = rng.randrange(4)
        if what == 0:
            await self.engine.call(c.ResetBudgetArgs(budget_id=TEAM))
            self.plain.reset()
        elif what == 1:
            name = rng.choice([name for name, n in self.plain.hard.items() if n] or ["none"])
            self.keys_n += 1
            if name != "none":
                for _ in range(2):
                    await self.engine.call(
                        c.RaiseBudgetArgs(budget_id=TEAM, amounts=f"{name}=1.5", key=f"r{self.keys_n}")
                    )
                self.plain.hard[name] += Decimal("1.5")
        elif what == 2:
            tokens = rng.choice([10, 80, 300])
            changes = c.budget_changes(hard={"tokens": str(tokens), "usd": "4"})
            await self.engine.call(c.ChangeBudgetArgs(budget_id=TEAM, changes=changes))
            self.plain.hard = {"tokens": Decimal(tokens), "usd": Decimal(4)}
        elif rng.random() < 0.3:
            await self.engine.call(c.DeleteBudgetArgs(budget_id=TEAM))
            await self.create()

    async def advance(self) -> None:
        await self.engine.advance(self.rng.choice([1, 500, 5_000, 25_000]))
        if self.rng.random() < 0.5:
            await self.engine.tick(B0)
        self.plain.advance(self.engine.now)

    async def compare(self) -> None:
        now, plain = await status(self.engine), self.plain
        assert {name: Decimal(str(n)) for name, n in now.usage.items()} == plain.used
        for name in plain.used:
            assert Decimal(str(now.reserved.get(name, 0))) == plain.reserved(name)
        assert now.reservations == len(plain.held)
        assert (now.breach_count, now.soft_breach_count, now.period) == (
            plain.breaches,
            plain.soft_breaches,
            plain.period,
        )
        assert now.next_reset_at == (str(plain.next_ms) if plain.next_ms else None)
        top = await self.engine.call(c.TopSpendersArgs(budget_id=TEAM))
        assert {
            one.execution_id: {name: Decimal(str(n)) for name, n in one.amounts.items()} for one in top.spenders
        } == plain.spent


@pytest.mark.parametrize("seed", range(12))
async def test_random_work_comes_to_what_a_plain_budget_says(engine: Engine, seed: int) -> None:
    rig = Rig(engine, seed)
    await rig.create()
    moves: list[Any] = [rig.reserve] * 5 + [rig.spend] * 4 + [rig.deliver] * 4 + [rig.verify, rig.change, rig.advance]
    for step in range(STEPS_N):
        if rig.rng.random() < 0.3:
            rig.owe()
        move = rig.rng.choice(moves)
        if move != rig.deliver or rig.waiting:
            await move()
        await rig.compare()
        if step % 20 == 19:
            assert not await engine.violations()
    assert engine.now < START_MS + limits.REPORT_KEYS_MS, "no key was forgotten meanwhile"
