"""Damage to quotas and unique keys, planted by plain commands: what a check says of it, and what of it a repair puts
right."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.ids import uuid_of
from ffengine.check import Memory, Violation, violations
from tests.lua.engine import Engine, missing, open_engine
from tests.lua.quotas import Q0, admit, made, quota_id
from tests.lua.test_unique import take, unique_id

HEAD = f"ff:{Q0}"
QUOTA = uuid_of(quota_id())
UNIQUE = uuid_of(unique_id())
ID = missing()
OTHER = uuid_of(missing())

DAMAGES: list[tuple[str, list[str], list[tuple[Any, ...]], bool]] = [
    ("a quota on no list", ["is on no list"], [("ZREM", ":quotas", QUOTA)], True),
    ("a quota on the list that is gone", ["on the list and gone"], [("ZADD", ":quotas", 0, OTHER)], True),
    ("limits that are none", ["cannot be read"], [("HSET", f":quota:{QUOTA}", "rate", "many")], False),
    ("a window nobody looks at", ["is kept and nothing will ever"], [("ZREM", ":reap", f"subject:{QUOTA} -")], True),
    ("a window of a key that is not listed", ["is not listed"] * 3, [("ZREM", f":subj:{QUOTA}", "- -")], False),
    ("a key with nothing in it", ["there is nothing of it"], [("ZADD", f":subj:{QUOTA}", 0, "e5353879bd69bfddcb46 t1")],
     True),
    ("a key under the digest of another", ["under another's digest"], [("ZADD", f":subj:{QUOTA}", 0, "0" * 20 + " t1")],
     True),
    ("a start that is none", ["a start that cannot be read"], [("ZADD", f":win:{QUOTA}:-", 1, "x")], True),
    ("a place of nobody", ["a place that cannot be read"], [("HSET", f":run:{QUOTA}:-", "x", "1")], True),
    ("a place without an epoch", ["a place that cannot be read"], [("HSET", f":run:{QUOTA}:-", ID, "x")], True),
    ("a place nobody asks for", ["is never looked at"], [("HSET", f":run:{QUOTA}:-", ID, "1")], True),
    ("a timer of no place", ["that nobody holds"], [("ZADD", ":timers", 1, f"place:{QUOTA} - {ID}")], True),
    ("a queue that is none", ["a queue that cannot be read"], [("ZADD", f":ref:{QUOTA}:-", 1, "nowhere")], True),
    ("a key that cannot be read", ["is left over", "need ask for"], [("HSET", f":uniq:{UNIQUE}", "holder", "x"),
     ("HSET", f":uniq:{UNIQUE}", "seen", "1")], True),
    ("a hold nobody asks for", ["nobody will ask for its holder"], [("ZREM", ":timers", f"unique:{UNIQUE}")], True),
    ("a window of a key that never ends", ["nothing will end its window"], [("ZREM", ":reap", f"unique:{UNIQUE}")],
     True),
    ("a question that was answered", ["nobody need ask for"], [("HSET", f":uniq:{UNIQUE}", "seen", "1")], True),
    ("a question about a key that is free", ["nobody need ask for"], [("ZADD", ":timers", 1, f"unique:{OTHER}")], True),
]  # fmt: skip


async def look(engine: Engine) -> list[Violation]:
    return await violations(engine.backend, memory=Memory())


@pytest.mark.parametrize(("name", "said", "plant", "repaired"), DAMAGES, ids=[d[0].replace(" ", "_") for d in DAMAGES])
async def test_damage_to_a_quota_is_found_and_put_right_if_it_can_be(
    store_url: str, name: str, said: list[str], plant: list[tuple[Any, ...]], repaired: bool
) -> None:
    engine = await open_engine(store_url)
    try:
        quota = await made(engine, rate=(5, 60), most=1)
        await admit(engine, quota, engine.new_id())
        await admit(engine, quota, engine.new_id(), adm="abc")
        await take(engine, engine.new_id(), "window")
        assert await look(engine) == []
        for word, key, *rest in plant:
            await engine.command(word, HEAD + key, *rest)
        found = await look(engine)
        assert len(found) == len(said) and all(v.invariant == "I16" and v.id == Q0 for v in found), found
        for text in said:
            assert any(text in v.detail for v in found), (text, found)
        for _ in range(2):
            for v in await look(engine):
                await engine.call(c.RepairArgs(partition=Q0, object=v.object or v.id, invariant=v.invariant))
        left = await look(engine)
        assert (left == []) is repaired, (name, left)
        for v in found:
            again = await engine.call(c.RepairArgs(partition=Q0, object=v.object or v.id, invariant=v.invariant))
            assert type(again) is (c.NothingWrong if repaired else c.BeyondRepair), (v, again)
    finally:
        await engine.close()


async def test_what_would_be_asked_for_is_asked_after_a_repair(engine: Engine) -> None:
    quota = await made(engine, most=1)
    await admit(engine, quota, ID)
    member = f"place:{QUOTA} - {ID}"
    await engine.command("ZREM", f"{HEAD}:timers", member)
    (found,) = await look(engine)
    await engine.call(c.RepairArgs(partition=Q0, object=found.object, invariant=found.invariant))
    assert [row.kind for row in (await engine.tick(Q0)).owed] == ["verify"]
