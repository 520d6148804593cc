"""Damage to a journal, planted by plain commands: what a check says of it, and what of it a repair puts right."""

from __future__ import annotations

import pytest

import ffcore.contracts as c
from ffengine.check import Memory, violations
from tests.lua import invariants
from tests.lua.engine import P0, Engine, missing, open_engine
from tests.lua.test_journal import journal_key, key, step

FIRST = f"{key()} step ok 1 0 6:charge"
DAMAGES: list[tuple[str, list[str], list[tuple[str, ...]], bool]] = [
    ("an entry that cannot be read", ["I22 step 1 cannot be read", "I22 not", "I22 bytes"], [("HSET", "1", "charge")],
     False),
    ("an entry of no known kind", ["I22 1 cannot be read"], [("HSET", "1", FIRST.replace(" step ", " leap "))], False),
    ("an entry of no known status", ["I22 1 cannot be read"], [("HSET", "1", FIRST.replace(" ok ", " is "))], False),
    ("an entry that is gone", ["I22 counts 2 recorded", f"I22 k{key()} is to be found"], [("HDEL", "1")], False),
    ("a key that is gone", ["I22 counts 2 recorded", "I22 no key leads"], [("HDEL", "k" + key())], False),
    ("a key that leads elsewhere", ["I22 found under 2", "I22 no key leads"], [("HSET", "k" + key(), "2")], False),
    ("a number beyond the count", ["I22 not one of 2", "I22 is to be found under 1", "I22 no key"],
     [("HDEL", "1"), ("HSET", "3", FIRST)], False),
    ("bytes that are none", ["I22 counts 7 bytes"], [("HSET", "n", "2 7")], True),
    ("a count that is none", ["I22 counts 1 recorded", "I22 not one of 1"], [("HSET", "n", "1 7")], False),
    ("no count", ["I22 nobody has counted"], [("HDEL", "n")], False),
    ("a record that does not know", ["I22 its record does not know"], [("record", "")], True),
    ("a record that says nonsense", ["I1 journal is no run"], [("record", "once")], False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said", "plant", "repaired"), DAMAGES, ids=[d[0].replace(" ", "_") for d in DAMAGES])
async def test_damage_to_a_journal_is_found_and_put_right_if_it_can_be(
    store_url: str, name: str, said: list[str], plant: list[tuple[str, ...]], repaired: bool
) -> None:
    engine = await open_engine(store_url)
    try:
        job = await engine.running()
        await engine.call(step(job))
        await engine.call(step(job, "ship"))
        assert await violations(engine.backend, memory=Memory()) == []
        record = f"ff:{P0}:x:{job.execution_id.rpartition(':')[2]}"
        for word, *rest in plant:
            if word == "record":
                field = invariants.field_names()["journal"]
                await (
                    engine.command("HSET", record, field, *rest) if rest[0] else engine.command("HDEL", record, field)
                )
            else:
                await engine.command(word, journal_key(job.execution_id), *rest)
        found = await violations(engine.backend, memory=Memory())
        assert {v.id for v in found} == {job.execution_id}
        for text in said:
            invariant, _, words = text.partition(" ")
            assert any(v.invariant == invariant and words in v.detail for v in found), (text, found)
        for v in found:
            await engine.call(c.RepairArgs(partition=P0, object=v.object or v.id, invariant=v.invariant))
        left = await violations(engine.backend, memory=Memory())
        assert (left == []) is repaired, (name, left)
    finally:
        await engine.close()


async def test_a_journal_without_a_record_is_found(engine: Engine) -> None:
    await engine.command("HSET", journal_key(missing()), "n", "0 0")
    (said,) = await engine.violations()
    assert said.startswith("I18") and "its record is gone" in said
    await engine.command("DEL", journal_key(missing()))
