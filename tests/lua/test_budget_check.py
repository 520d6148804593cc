"""What a check finds wrong with budgets and mail, and what a repair can put right."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

import ffcore.contracts as c
from ffcore import ids
from ffcore.contracts.mail import Letter
from ffengine.check import Memory, Violation, violations
from tests.lua.engine import P0, P1, START_MS, Engine, open_engine
from tests.lua.test_budget import B0, TEAM, budget_id, created, job, report, reserved, reserving, spent

UUID = ids.uuid_of(TEAM)
HEAD = f"ff:{B0}"
BUDGET = f"{HEAD}:budget:{UUID}"
GHOST = "ffffffff-0000-8000-8000-00000000dead"


@pytest.fixture
async def stock(store_url: str) -> AsyncIterator[Engine]:
    """A budget with something of everything, and rows that were applied ahead of others."""
    engine = await open_engine(store_url)
    await created(engine, hard={"tokens": 100}, soft={"tokens": 50}, reset_interval_ms=60_000)
    await created(engine, budget_id(2))
    await reserved(engine, reserving(1), reserving(2, "tokens=90"), reserving(3, "tokens=95"))
    await spent(engine, 1, "tokens=5")
    await report(engine, "k", tokens=2)
    await engine.call(c.DeliverArgs(partition=B0, source=P1, items=[Letter(f"{B0}/7/8", "verified", "b")]))
    yield engine
    await engine.close()


class Damage(NamedTuple):
    name: str
    plant: Callable[[Engine], Awaitable[Any]]
    said: str
    """Invariant and words of the detail."""
    repaired: bool = True


def do(*words: Any) -> Callable[[Engine], Awaitable[Any]]:
    return lambda engine: engine.command(*words)


def owing(row: str, text: str) -> Callable[[Engine], Awaitable[Any]]:
    async def plant(engine: Engine) -> None:
        await engine.command("HSET", f"ff:{P0}:outbox", row, text)
        await engine.command("ZADD", f"ff:{P0}:timers", START_MS + 1_000, f"outbox:{row}")

    return plant


USED = "I15 counts 8 tokens used, reported are 7"
TIMERS = f"{HEAD}:timers"
DAMAGES = [
    Damage("usage nobody reported", do("HSET", BUDGET, "u:tokens", "8"), USED, False),
    Damage("a reservation nobody counts", do("HSET", BUDGET, "r:tokens", "1"), "I15 reserved, set apart are 95"),
    Damage("no count of what is reserved", do("HDEL", BUDGET, "r:tokens"), "I15 counts no tokens reserved"),
    Damage("an amount that is none", do("HSET", BUDGET, "h:tokens", "-1"), "I15 its h:tokens is no amount", False),
    Damage("a field that is no number", do("HSET", BUDGET, "period", "x"), "I15 its period is no number", False),
    Damage("a reset that never comes", do("ZREM", TIMERS, f"reset:{UUID}"), "I5 its timer is 0"),
    Damage("a reset of nothing", do("ZADD", TIMERS, START_MS + 9, f"reset:{GHOST}"), "I5 of nothing"),
    Damage("a reservation nobody looks at", do("ZREM", TIMERS, f"res:{UUID} {job(1)}"), "I15 is never looked at"),
    Damage("a look at no reservation", do("ZADD", TIMERS, START_MS + 9, f"res:{UUID} {job(9)}"), "I5 of nothing"),
    Damage("an unreadable reservation", do("HSET", f"{HEAD}:res:{UUID}", job(9), "x"), "I15 cannot be read", False),
    Damage("a budget that is not listed", do("ZREM", f"{HEAD}:budgets", UUID), "I18 is not among the budgets"),
    Damage("a list of nothing", do("ZADD", f"{HEAD}:budgets", 0, GHOST), "I18 there is no such budget"),
    Damage("spending without a budget", do("HSET", f"{HEAD}:spent:{GHOST}", "-", "tokens=1"), "I18 its budget is gone"),
    Damage("a rank for nothing", do("ZADD", f"{HEAD}:spenders:{UUID}", 1, job(9)), "I15 is ranked and spent nothing"),
    Damage("spending without a rank", do("ZREM", f"{HEAD}:spenders:{UUID}", job(1)), "I15 is not ranked", False),
    Damage("spending that cannot be read", do("HSET", f"{HEAD}:spent:{UUID}", "-", "x"), "I15 cannot be read", False),
    Damage("keys nobody forgets", do("ZREM", f"{HEAD}:reap", f"reports:{UUID}"), "I18 keys of reports"),
    Damage("who waits is never forgotten", do("ZREM", f"{HEAD}:reap", f"waiting:{UUID}"), "I18 those who wait"),
    Damage("who waits for nothing", do("HSET", f"{HEAD}:waiting:{GHOST}", "{fp:0} a", "1 0 -"), "I18 nobody can wait"),
    Damage("who waits cannot be read", do("HSET", f"{HEAD}:waiting:{UUID}", "x", "1"), "I15 cannot be read"),
    Damage("a row ahead that is not", do("HSET", HEAD, f"i{P1}", "9"), "I15 stands ahead and is not"),
    Damage("a row that is none", owing("r.1.1", "{b:0} k b"), "I15 row r.1.1 of the outbox is none", False),
    Damage("a row of no number", owing("{b:0}/0/5", "{b:0} k b"), "I15 of the outbox is none", False),
]  # fmt: skip


async def look(engine: Engine) -> list[Violation]:
    return await violations(engine.backend, memory=Memory())


async def repair(engine: Engine, found: list[Violation]) -> list[Any]:
    return [
        await engine.call(c.RepairArgs(partition=v.partition, object=v.object or v.id, invariant=v.invariant))
        for v in found
    ]  # fmt: skip


async def test_the_stock_is_sound(stock: Engine) -> None:
    assert await look(stock) == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_found_and_put_right_if_it_can_be(stock: Engine, damage: Damage) -> None:
    await damage.plant(stock)
    found = await look(stock)
    invariant, words = damage.said.split(" ", 1)
    assert [v for v in found if v.invariant == invariant and words in v.detail], found
    assert await violations(stock.backend, memory=Memory(), limit=1) == found
    for _ in range(2):
        await repair(stock, await look(stock))
    left = await look(stock)
    assert (left == []) is damage.repaired, left
    assert all(type(answer) is not c.Repaired for answer in await repair(stock, left)), (
        "a repair says what it has not done"
    )
