"""What a check says of waits and pauses that are not as they should be (I14, and what follows from the record)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.ids import uuid_of
from tests.lua import damage as stocks
from tests.lua import waits
from tests.lua.damage import GHOST, HEAD, Damage, about, damage
from tests.lua.engine import open_engine
from tests.lua.test_check import look, repair
from tests.lua.waits import gate, resume, send, suspending


class Stock(stocks.Stock):
    """One execution that waits, one that has waited, one that is paused, one that has ended, one that is ready."""

    async def fill(self) -> Stock:
        engine = self.engine
        submit = engine.submit
        self.ended = await submit(lane_id="ended")
        (job,) = await engine.claim(lanes=["ended"])
        await engine.complete(job)
        self.suspended = await submit(lane_id="suspended")
        (job,) = await engine.claim(lanes=["suspended"])
        self.gate = await gate(engine, job, "a")
        two = c.Composite(c.count(2, c.CountKind.DISTINCT_SIGNALS, None, ["a"]))
        await engine.call(waits.waiting(job, two, {"a": self.gate}, timeout_ms=60_000))
        await send(engine, self.suspended, self.gate)
        self.resumed = await submit(lane_id="resumed")
        (job,) = await engine.claim(lanes=["resumed"])
        await engine.call(suspending(job, c.OperatorOnly()))
        await engine.call(resume(self.resumed))
        self.paused = await submit(lane_id="paused")
        await engine.call(c.PauseExecutionArgs(execution_id=self.paused, reason=""))
        self.ready = await submit()
        return self


def wrong(name: str, plant: Callable[[Any], Awaitable[Any]], *said: str, beyond: bool = False) -> Damage:
    return damage(name, plant, *said, beyond=beyond)


DAMAGES = [
    wrong(
        "a wait that is forgotten",
        lambda s: s.do("DEL", s.key("s", s.suspended)),
        "I14 suspended waits for nothing",
        "I14 suspended it does not wait there",
        beyond=True,
    ),
    wrong(
        "a wait the record forgot",
        lambda s: s.set(s.resumed, suspension=None),
        "I14 resumed does not know of",
    ),
    wrong(
        "a wait that was and is gone",
        lambda s: s.do("DEL", s.key("s", s.resumed)),
        "I14 resumed its suspension is gone",
        beyond=True,
    ),
    wrong(
        "a wait that is not over",
        lambda s: s.do("HDEL", s.key("s", s.resumed), "y"),
        "I14 resumed its suspension is not over",
        beyond=True,
    ),
    wrong(
        "a wait that is over",
        lambda s: s.do("HSET", s.key("s", s.suspended), "y", "signal 1"),
        "I14 suspended its suspension is over",
        beyond=True,
    ),
    wrong(
        "a condition nobody can read",
        lambda s: s.do("HSET", s.key("s", s.suspended), "c", "[]"),
        "I14 suspended its condition cannot be read",
        beyond=True,
    ),
    wrong(
        "a signal that is gone",
        lambda s: s.do("HDEL", s.key("s", s.suspended), "m1"),
        "I14 suspended counts signals",
        beyond=True,
    ),
    wrong(
        "a wait at no waitpoint",
        lambda s: s.do("HSET", s.key("s", s.suspended), "w", GHOST),
        "I14 suspended no waitpoint",
        "I14 suspended it does not wait there",
        beyond=True,
    ),
    wrong(
        "a wait that time does not end",
        lambda s: s.do("ZREM", f"{HEAD}:timers", f"suspension:{uuid_of(s.suspended)}"),
        "I5 suspended timer suspension is not set",
    ),
    wrong(
        "a timeout of one that does not wait",
        lambda s: s.set(s.resumed, suspend_until="7"),
        "I5 resumed still has suspend_until",
    ),
    wrong(
        "paused and still in line",
        lambda s: s.set(s.ready, paused="7", more="1"),
        "I1 ready is paused",
        beyond=True,
    ),
    wrong("paused after the end", lambda s: s.set(s.ended, paused="7", more="1"), "I5 ended still has paused"),
]


@pytest.fixture
async def stock(store_url: str) -> AsyncIterator[Stock]:
    engine = await open_engine(store_url)
    stock = await Stock(engine).fill()
    assert await look(engine) == []
    yield stock
    await engine.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_found_and_put_right_if_it_can_be(stock: Stock, damage: Damage) -> None:
    engine = stock.engine
    await damage.plant(stock)
    found = await look(engine)
    for invariant, what, words in damage.said:
        assert any(v.invariant == invariant and v.id == about(stock, what) and words in v.detail for v in found), found
    assert len(found) == len(damage.said), found
    await repair(engine, found)
    assert (await look(engine) == []) is damage.repaired
