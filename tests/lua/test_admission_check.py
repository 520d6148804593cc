"""The checker on queues of admission sets, rings and halts: what is damaged is found and put right."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest

from tests.lua.engine import P0, Engine, open_engine
from tests.lua.test_admission_queues import BUDGET, OTHER, PAYING, PAYS, free, refusal, refuse, set_of, uuid
from tests.lua.test_check import look, repair

HEAD = f"ff:{P0}"
OPEN = set_of(f"b {OTHER}")


class Damage(NamedTuple):
    name: str
    words: tuple[Any, ...]
    """The command that does it."""
    said: tuple[str, str]
    """Invariant, and a part of what is said."""


DAMAGES = (
    Damage("a queue that left its ring", ("ZREM", f"{HEAD}:ring:1:-", OPEN), ("I2", "no claim looks into")),
    Damage(
        "a ring that thinks its first job is a later one", ("ZADD", f"{HEAD}:ring:1:-", 2**53, OPEN), ("I2", "in time")
    ),
    Damage("a halt without a timer", ("ZREM", f"{HEAD}:timers", f"halt:{PAYING}"), ("I5", "never ends")),
    Damage("a halted queue without a reason", ("HDEL", f"{HEAD}:halts", PAYING), ("I2", "nothing says why")),
    Damage("a timer without a halt", ("ZADD", f"{HEAD}:timers", 2**50, "halt:0123456789ab"), ("I5", "has no halt")),
    Damage("a halt that nobody can read", ("HSET", f"{HEAD}:halts", "0123456789ab", "x"), ("I2", "cannot be read")),
    Damage("a wrong count", ("HSET", HEAD, "m1", 17), ("I2", "counts 17 jobs")),
    Damage("a count of none", ("HSET", HEAD, "m1", 0), ("I2", "counts 0 jobs")),
    Damage(
        "a release that nobody forgets", ("ZREM", f"{HEAD}:reap", f"halts:{uuid(BUDGET)}"), ("I18", "nothing will ever")
    ),
)


@pytest.fixture
async def bare(store_url: str) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url)
    yield engine
    await engine.close()


async def stock(engine: Engine) -> None:
    """A halted queue with a job, an open one with two, one without, and a release heard of."""
    await refuse(engine, refusal(await engine.running(admission=PAYS)))
    for _ in range(2):
        await engine.submit(admission=f"b {OTHER} hold -")
    await engine.submit()
    await free(engine, 0, adm="0123456789ab", resource=BUDGET)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_found_and_put_right(bare: Engine, damage: Damage) -> None:
    await stock(bare)
    assert await look(bare) == []
    await bare.command(*damage.words)
    found = await look(bare)
    assert any(v.invariant == damage.said[0] and damage.said[1] in v.detail for v in found), found
    for _ in range(2):
        await repair(bare, await look(bare))
    assert await look(bare) == []
    await bare.at(bare.now + 86_400_001)
    for _ in range(3):
        await bare.tick()
        await bare.advance(200)
    assert len(await bare.claim(limit=10)) == 4
