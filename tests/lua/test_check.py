"""The checker and its repairs: each kind of damage, planted by plain commands, is found under its invariant and id,
and put right by what the record says, or said to be beyond that.

What a sound store looks like is tested everywhere: every other test of this directory ends with a check.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace

import ffcore.contracts as c
from ffbackend_valkey.library import lua_root
from ffcore import limits, states
from ffcore.ids import PartitionKey, uuid_of
from ffengine.check import Memory, Violation, violations
from tests.lua import invariants
from tests.lua.damage import DAMAGES, GHOST, HEAD, Damage, Stock, about
from tests.lua.engine import P0, P1, START_MS, Engine, lane_told, open_engine


@pytest.fixture
async def bare(store_url: str) -> AsyncIterator[Engine]:
    """An engine whose store need not be sound in the end."""
    engine = await open_engine(store_url)
    yield engine
    await engine.close()


@pytest.fixture
async def stock(bare: Engine) -> Stock:
    return await Stock(bare).fill()


async def look(engine: Engine, memory: Memory | None = None, **options: Any) -> list[Violation]:
    return await violations(engine.backend, memory=memory or Memory(), **options)


async def repair(engine: Engine, found: list[Violation]) -> list[Any]:
    order = sorted(found, key=lambda v: (("", ":", " ").index(v.object[:1]), v))
    return [
        await engine.call(c.RepairArgs(partition=v.partition, object=v.object or v.id, invariant=v.invariant))
        for v in order
    ]


async def test_the_stock_is_sound(stock: Stock) -> None:
    assert await look(stock.engine) == []


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_found_where_it_is_and_put_right_if_it_can_be(stock: Stock, damage: Damage) -> None:
    engine = stock.engine
    await damage.plant(stock)
    found = await look(engine)
    wanted = list(damage.said)
    for v in found:
        match = [w for w in wanted if (w[0], about(stock, w[1])) == (v.invariant, v.id) and w[2] in v.detail]
        if damage.name == "a time that ran back" and v.invariant == "I20":
            continue  # everything that ever happened is then in the future
        assert match, f"not expected: {v}"
        wanted.remove(match[0])
    if damage.name != "a time that ran back":
        assert wanted == [], found
    assert await look(engine, limit=1) == found, "pages of one find the same as one page"
    for _ in range(2):
        await repair(engine, await look(engine))
    left = await look(engine)
    assert (left == []) is damage.repaired, left
    assert all(type(a) is not c.Repaired for a in await repair(engine, left) if left), (
        "a repair says what it has not done"
    )
    for v in found:
        if v not in left:
            again = await engine.call(c.RepairArgs(partition=P0, object=v.object or v.id, invariant=v.invariant))
            assert type(again) is c.NothingWrong or (v.object.startswith(" ") and type(again) is c.Repaired), again
    assert await look(engine) == left


def test_every_invariant_of_a_store_has_a_damage() -> None:
    named = {said[0] for damage in DAMAGES for said in damage.said}
    assert named == {f"I{n}" for n in (*range(1, 11), 17, 18, 20)}


# ---- what only several pages or several passes can tell ------------------------------------------------------


async def test_an_execution_in_a_partition_of_another_family_is_told_of(bare: Engine) -> None:
    id = await bare.submit()
    await bare.command("COPY", f"{HEAD}:x:{uuid_of(id)}", f"ff:{{b:0}}:x:{uuid_of(id)}")
    found = await look(bare, partitions=[PartitionKey("{b:0}")])
    assert ("I19", f"{{b:0}}:{uuid_of(id)}") in {(v.invariant, v.id) for v in found}


async def test_bytes_that_a_lane_keeps_are_added_up(bare: Engine) -> None:
    await bare.call(lane_told(age_ms=0, bytes=10_000))
    for _ in range(3):
        await bare.complete(await bare.running(), b"r" * 100)
    assert await look(bare) == []
    await bare.command("HINCRBY", HEAD, "y1", 7)
    (found,) = await look(bare)
    assert (found.invariant, found.id) == ("I6", P0) and "there are 315" in found.detail
    await repair(bare, [found])
    assert await look(bare) == []


async def test_more_leases_than_a_page_counts_are_held_against_the_sum(bare: Engine) -> None:
    await bare.submit_many(limits.PAGE_MAX_N + 1)
    for _ in range(6):
        await bare.claim(200)
    assert await look(bare) == []
    await bare.command("HINCRBY", HEAD, "a1", -1)
    (found,) = await look(bare)
    assert (found.invariant, found.detail) == ("I6", "its lanes count 1000 running, there are 1001")
    await repair(bare, [found])
    assert await look(bare) == []


CHANGES: list[tuple[str, dict[str, Any], list[str]]] = [
    ("ended", {"state": "failed"}, ["I9"]),
    ("ended", {"at": START_MS + 3}, ["I9"]),
    ("short", {"result": "other"}, ["I9"]),
    ("ended", {"run": "-1", "more": "1"}, ["I9"]),
    ("running", {"lease_epoch": "7"}, ["I8"]),
    ("running", {"lease_id": "w2.s.0.0"}, ["I8"]),
]


@pytest.mark.parametrize(("what", "fields", "invariants_"), CHANGES)
async def test_what_must_not_change_is_remembered(
    stock: Stock, what: str, fields: dict[str, Any], invariants_: list[str]
) -> None:
    memory = Memory()
    assert await look(stock.engine, memory) == []
    before = {(v.invariant, v.id, v.detail) for v in await look(stock.engine)}
    await stock.set(getattr(stock, what), **fields)
    alone = {(v.invariant, v.id, v.detail) for v in await look(stock.engine)} - before
    compared = {(v.invariant, v.id, v.detail) for v in await look(stock.engine, memory)} - alone
    assert sorted({(i, id) for i, id, _ in compared}) == [(i, getattr(stock, what)) for i in invariants_]


async def test_a_replay_is_another_run_and_a_purge_no_loss(stock: Stock) -> None:
    memory, engine = Memory(), stock.engine
    memory.acknowledged |= {stock.ended, stock.short, stock.ready}
    assert await look(engine, memory) == []
    await engine.call(c.ReplayExecutionArgs(execution_id=stock.ended))
    (job,) = await engine.claim(lanes=["ended"])
    await engine.complete(job, b"another result")
    await engine.advance(10)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="ended", outcome="completed", before_ms=engine.now))
    assert await look(engine, memory) == []
    assert await look(engine, memory) == []


async def test_an_acknowledged_submit_must_exist(bare: Engine) -> None:
    memory = Memory()
    here, nowhere = await bare.submit(), bare.new_id()
    memory.acknowledged |= {here, nowhere}
    (found,) = await look(bare, memory)
    assert (found.invariant, found.id) == ("I10", nowhere)


async def test_what_is_gone_without_having_ended_is_missed(bare: Engine) -> None:
    """Also where the feed has been cut since, as long as it still holds what came after the last look."""
    memory = Memory()
    id = await bare.submit()
    assert await look(bare, memory) == []
    for kind in "xp":
        await bare.command("DEL", f"{HEAD}:{kind}:{uuid_of(id)}")
    await bare.command("DEL", f"{HEAD}:q:1:-")
    await bare.command("XTRIM", f"{HEAD}:ev", "MAXLEN", 0)
    found = await look(bare, memory)
    assert {(v.invariant, v.id) for v in found} == {("I10", id), ("I17", P0)}


async def test_a_scan_that_showed_less_than_there_is_raises_no_alarm(
    bare: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is restarted under a scan begins it anew somewhere else."""
    engine, memory = bare, Memory()
    await engine.complete(await engine.running())
    waiting = await engine.submit()
    assert await look(engine, memory) == []
    whole = engine.backend.call

    async def half(args: Any) -> Any:
        answer = await whole(args)
        return replace(answer, seen=[]) if isinstance(answer, c.Checked) else answer

    with monkeypatch.context() as patch:
        patch.setattr(engine.backend, "call", half)
        memory.acknowledged.add(waiting)
        assert await look(engine, memory) == []
    assert await look(engine, memory) == []


async def test_time_and_feed_never_run_back(bare: Engine) -> None:
    memory = Memory()
    await bare.submit()
    assert await look(bare, memory) == []
    await bare.command("HSET", HEAD, "hwm", START_MS - 1)
    assert ("I20", P0) in {(v.invariant, v.id) for v in await look(bare, memory)}


async def test_a_feed_that_was_cut_is_no_violation(bare: Engine) -> None:
    old = await bare.submit()
    for start in range(0, limits.EVENTS_N + 300, 100):
        for n in range(100):
            bare.backend._calls.call(
                "XADD", f"{HEAD}:ev", "MAXLEN", "~", limits.EVENTS_N, f"{START_MS}-*", "o", f"{start} {n}"
            )
    await bare.command("PING")
    first = await bare.command("XRANGE", f"{HEAD}:ev", "-", "+", "COUNT", 1)
    assert b"o" in first[0][1], "the first entry has been cut"
    (job,) = await bare.claim()
    assert job.execution_id == old
    assert await look(bare) == [] and await look(bare, limit=1) == []


async def test_two_libraries_are_told_apart(bare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bare.backend.call

    async def call(args: Any) -> Any:
        answer = await real(args)
        if isinstance(args, c.CheckArgs) and args.partition == P1:
            return replace(answer, facts=replace(answer.facts, library="another"))
        return answer

    monkeypatch.setattr(bare.backend, "call", call)
    (found,) = await look(bare)
    assert found.invariant == "I21" and P1 in found.detail


# ---- the functions -------------------------------------------------------------------------------------------


async def test_bad_input_to_a_check_is_refused(engine: Engine) -> None:
    assert await engine.refused("invalid_input", c.CheckArgs(partition=P0, feed_after="x")) == "feed_after"
    for limit in (0, 501):
        assert await engine.refused("invalid_input", c.CheckArgs(partition=P0, limit=limit)) == "limit"
    for cursor in ("", "k", "k x", "e 1", "e -1", "k 0 :x:1@0", "k 0 :junk@0", "x 1-1"):
        assert await engine.refused("invalid_offset", c.CheckArgs(partition=P0, cursor=cursor)) == "cursor"


async def test_a_check_changes_nothing(stock: Stock) -> None:
    before = await invariants.read_store(stock.engine.command)
    await look(stock.engine)
    assert await invariants.read_store(stock.engine.command) == before


NOT_WRONG = [
    "", " ", "x", ":x:1", ":q:1:-", ":timers nap:x", ":reap lane:9", ":lanes #9", " nothing", " bytes 9", ":held x",
    f"{P1}:{GHOST}", f"{P0}:{GHOST}", ":outbox r", ":claims s", ":timers order:1",
]  # fmt: skip


@pytest.mark.parametrize("object", NOT_WRONG)
async def test_a_repair_of_what_is_not_wrong_does_nothing(engine: Engine, object: str) -> None:
    await engine.submit()
    before = await invariants.read_store(engine.command)
    answer = await engine.call(c.RepairArgs(partition=P0, object=object, invariant="I3"))
    assert type(answer) in (c.NothingWrong, c.BeyondRepair), answer
    assert await invariants.read_store(engine.command) == before


async def test_a_repair_is_of_the_invariant_it_names(stock: Stock) -> None:
    await stock.do("ZREM", stock.queue(), uuid_of(stock.ready))
    await stock.do("ZREM", f"ff:{P0}:held", uuid_of(stock.held))
    for object in (stock.ready, stock.held):
        answer = await stock.engine.call(c.RepairArgs(partition=P0, object=object, invariant="I5"))
        assert type(answer) is c.NothingWrong


# ---- the checker follows the library ---------------------------------------------------------------------------


def lua(path: str) -> str:
    return (lua_root() / path).read_text()


def test_every_kind_of_key_is_known() -> None:
    text = "".join(lua(f"shared/{name}.lua") for name in ("kinds", "budget_check"))
    rows = re.findall(r'\{ name = "(\w+)", type', text)
    assert sorted(rows) == sorted(invariants.key_samples())


def test_reasons_and_kinds_of_attempts_are_those_of_the_contract() -> None:
    text = lua("shared/check.lua")
    block = re.search(r"^local REASONS = \{(.*?)^\}", text, re.S | re.M)
    assert block
    rows = dict(re.findall(r"(\w+) = \{(.*?)\}", block[1], re.S))
    assert {state: set(re.findall(r"(\w+) = true", row)) for state, row in rows.items()} == {
        state: {reason.value for reason in reasons} for state, reasons in states.REASONS.items()
    }
    following = re.search(r"^local NEXT = \{(.*?)\}", text, re.S | re.M)
    assert following and set(re.findall(r"(\w+) = true", following[1])) == set(states.NEXT)
