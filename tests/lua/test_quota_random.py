"""Whatever is asked, ended, answered twice, late or never, and however time passes: the store counts as the simple
model does, tells whoever may go on, and in the end nothing is left."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import astuple

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import uuid_of
from tests.lua.engine import Engine, open_engine
from tests.lua.plain_quota import PlainQuota
from tests.lua.quotas import Q0, ask, asking, left, made, post, read, settlement, told, verified

KEYS = ("-", "t1", "t2")


@pytest.fixture
async def free_engine(store_url: str) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url)
    yield engine
    assert await engine.violations() == []
    await engine.close()


class Run:
    """One history of a quota, its model beside it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.rng = engine, random.Random(seed)
        self.jobs: list[Any] = []
        self.epochs: dict[Any, int] = {}
        self.unsent: list[str] = []
        """Rows that are on their way still: late, out of order, perhaps twice."""
        self.noted: dict[str, tuple[str, str]] = {}
        """Admission set that waits to be told -> subject, and what it was refused for."""

    async def begin(self) -> None:
        rng = self.rng
        window = rng.choice([1, 2, 5])
        rate, most = rng.choice([(0, 2), (2, 0), (3, 2), (4, 1)])
        self.model = PlainQuota(window * 1_000, rate, most)
        self.quota = await made(self.engine, f"q{rng.random()}", (rate, window), most)
        self.jobs = [self.engine.new_id() for _ in range(6)]
        self.epochs = dict.fromkeys(self.jobs, 1)

    def row(self) -> tuple[str, Any, int, c.AdmissionRequest]:
        rng = self.rng
        key, job = rng.choice(KEYS), rng.choice(self.jobs)
        if rng.random() < 0.5:
            self.epochs[job] += 1
        epoch = max(1, self.epochs[job] - (rng.random() < 0.1))
        adm = f"{KEYS.index(key)}-{rng.randrange(3)}"
        until = self.engine.now + rng.choice([0, 500, 30_000])
        return key, job, epoch, asking(self.engine, self.quota, job, epoch, key=key, adm=adm, until_ms=until)

    async def ask(self) -> None:
        asked = [self.row() for _ in range(self.rng.randint(1, 4))]
        answers = await ask(self.engine, *(row for *_, row in asked))
        for (key, job, epoch, row), answer in zip(asked, answers, strict=True):
            late = self.model.of(key).places.get(job, 0) > epoch
            word, wait = self.model.admit(key, job, epoch, self.engine.now)
            assert answer.state == word, (key, job, epoch, answer)
            if wait is not None:
                assert answer.retry_after_ms == wait
            if word == "rate" or (word == "concurrency" and not late):
                self.noted[row.adm] = key, word

    async def end(self) -> None:
        """A lease ends; its row may be long on its way."""
        job = self.rng.choice(self.jobs)
        key, undo = self.rng.choice(KEYS), self.rng.random() < 0.3
        self.unsent.append(settlement(self.quota, job, self.epochs[job], key, undo))

    async def deliver(self) -> None:
        rng = self.rng
        rows = rng.sample(self.unsent, min(len(self.unsent), rng.randint(1, 3)))
        before = {key: len(self.model.of(key).places) for key in KEYS}
        gen = await self.gen()
        wakes = told(await post(self.engine, "settle", *rows))
        for row in rows:
            if rng.random() < 0.8:
                self.unsent.remove(row)
            _, _, key, job, epoch, undo = row.split(" ")
            self.model.end(key, job, int(epoch), undo == "1")
        self.tell(wakes, before, gen)

    async def gen(self) -> int:
        return int(await self.engine.command("HGET", f"ff:{Q0}:quota:{uuid_of(self.quota)}", "gen"))

    def hear(self, wakes: list[Any], gen: int) -> set[str]:
        """Only who was refused is told, once, and of no more than there is; answers which subjects were spoken of."""
        keys: set[str] = set()
        for wake in wakes:
            key, _ = self.noted.pop(wake.adm)
            free = (self.model.most or 10**6) - len(self.model.of(key).places)
            assert wake.gen >= gen and (1 <= wake.allow <= free or wake.allow > 2**52), wake
            keys.add(key)
        return keys

    async def tick(self) -> Any:
        gen, ticked = await self.gen(), await self.engine.tick(Q0)
        self.hear(told([c.Wake(*row[1:]) for row in map(astuple, ticked.owed) if row[2] == "unhalt"]), gen)
        return ticked

    def tell(self, wakes: list[Any], before: dict[str, int], gen: int) -> None:
        """A place that was given back and can be taken is told of at once, to whoever waits for one."""
        waiting = {key for key, word in self.noted.values() if word == "concurrency"}
        spoken = self.hear(wakes, gen + 1)
        for key in waiting:
            places = len(self.model.of(key).places)
            starts = not self.model.rate or len(self.model.within(key, self.engine.now)) < self.model.rate
            if places < before[key] and (not self.model.most or places < self.model.most) and starts:
                assert key in spoken, (key, wakes)

    async def pass_time(self) -> None:
        await self.engine.advance(self.rng.choice([0, 1, 7, 100, 333, 1_000, 2_500]))
        if self.rng.random() < 0.4:
            await self.tick()

    async def look_after(self) -> None:
        """The partition of an execution answers what it was asked; some answers are late, lost or come twice."""
        rng = self.rng
        for row in (await self.tick()).owed:
            if row.kind != "verify" or rng.random() < 0.3:
                continue
            _, _, uuid, key, job, epoch = row.body.split(" ")
            if uuid != uuid_of(self.quota) or self.model.of(key).places.get(job) != int(epoch):
                continue
            held = rng.random() < 0.6
            for _ in range(rng.choice([1, 1, 2])):
                gen = await self.gen()
                before = {key: len(self.model.of(key).places) for key in KEYS}
                wakes = await verified(self.engine, self.quota, job, int(epoch), held, key)
                self.model.verified(key, job, int(epoch), held)
                self.tell(wakes, before, gen)

    async def change(self) -> None:
        """Limits of places and of starts; a longer window would count what has been forgotten."""
        rng, model = self.rng, self.model
        before = model.window_ms, model.rate, model.most
        if model.rate:
            model.rate = rng.randint(1, 4)
        if model.most:
            model.most = rng.randint(1, 3)
        if rng.random() < 0.3:
            model.window_ms = max(1_000, model.window_ms - 1_000)
            model.forget_before(self.engine.now)
        await self.engine.call(c.ChangeQuotaArgs(
            quota_policy_id=self.quota, window_seconds=model.window_ms // 1_000, max_requests_per_window=model.rate,
            max_concurrent=model.most,
        ))  # fmt: skip
        if before == (model.window_ms, model.rate, model.most):
            return
        while (await self.tick()).next_due_ms <= self.engine.now:
            pass
        assert not [key for key, word in self.noted.values() if word == "concurrency"], "all ask again"

    async def compare(self) -> None:
        for key in KEYS:
            status = await read(self.engine, self.quota, key)
            now = self.engine.now
            assert status.in_window == (len(self.model.within(key, now)) if self.model.rate else 0)
            assert status.active == len(self.model.of(key).places)
            assert status.next_free_ms == self.model.wait(key, now)

    async def finish(self) -> None:
        """All leases end, the post arrives, the windows pass."""
        for key in KEYS:
            for job, epoch in list(self.model.of(key).places.items()):
                self.unsent.append(settlement(self.quota, job, epoch, key))
        while self.unsent:
            row = self.unsent.pop()
            _, _, key, job, epoch, undo = row.split(" ")
            gen, wakes = await self.gen(), told(await post(self.engine, "settle", row))
            self.model.end(key, job, int(epoch), undo == "1")
            self.hear(wakes, gen)
        for _ in range(4):
            await self.engine.advance(limits.RESERVATION_MS)
            await self.tick()
        assert not [key for key, word in self.noted.values() if word == "concurrency"], "nobody waits for what is free"


@pytest.mark.parametrize("seed", range(12))
async def test_a_quota_counts_as_the_simple_model_does(free_engine: Engine, seed: int) -> None:
    run = Run(free_engine, seed)
    await run.begin()
    steps = [run.ask, run.ask, run.ask, run.end, run.deliver, run.pass_time, run.pass_time, run.look_after, run.change]
    weights = [4, 4, 4, 3, 3, 4, 4, 1, 0.5]
    for n in range(250):
        await run.rng.choices(steps, weights)[0]()
        await run.compare()
        if n % 25 == 0:
            assert await free_engine.violations() == []
    await run.finish()
    assert await left(free_engine) == {"quota", "quotas"}
