"""Records of an older schema: brought up when they are touched and by the ticker, refused to an older library.

There is one schema so far, so the next one is played: a library in which `task` stands under another name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.library import Library, assemble, lua_root
from ffbackend_valkey.stores import connect
from ffcore import limits
from ffcore.errors import EngineBug
from tests.lua.engine import P0, P1, Engine, lane_told, library_of, on_test_clock, wire

STEP = """record.STEPS = { [1] = function(raw)
  raw.tk, raw.t = raw.t, nil
end, [2] = function(raw) end }"""


@cache
def newer(schema: int = 2) -> Library:
    """The library of the release after this one; of schema 3, of the one after that."""
    text = (lua_root() / "shared/record.lua").read_text()
    for old, new in (
        ("record.SCHEMA = 1", f"record.SCHEMA = {schema}"),
        ("record.STEPS = {}", STEP),
        ('task = "t"', 'task = "tk"'),
        ('"s", "x", "l", "t"', '"s", "x", "l", "tk"'),
        ('"li", "l", "t", "c"', '"li", "l", "tk", "c"'),
    ):
        assert text.count(old) >= 1, old
        text = text.replace(old, new)
    clock = on_test_clock((lua_root() / "shared/clock.lua").read_text())
    return assemble(replace={"shared/record.lua": text, "shared/clock.lua": clock})


@pytest.fixture
async def upgraded(engine: Engine, store_url: str) -> AsyncIterator[Any]:
    """Puts the newer library into the store; answers an engine that speaks through it. The old one is put back, over an
    empty store, because what is checked after each test is checked by this release."""
    opened: list[Any] = []

    async def upgrade(schema: int = 2) -> Engine:
        backend = await connect(store_url, init=False, check=False, lib=newer(schema))
        opened.append(backend)
        await backend.load_library(replace=True)
        await backend.read_config()
        new = Engine(backend)
        new.now, new._claims = engine.now, engine._claims  # a claim's number again would be the claim again
        return new

    yield upgrade
    for backend in opened:
        await backend.close()
    await engine.backend.load_library(replace=True)
    await engine.fresh()


async def stored(engine: Engine, id: Any) -> dict[bytes, bytes]:
    flat = await engine.command("HGETALL", f"ff:{id[:6]}:x:{id[7:]}")
    return dict(zip(flat[::2], flat[1::2], strict=True))


async def schema_of(engine: Engine, id: Any) -> int:
    """Of a record as it stands; the field that was renamed agrees."""
    raw = await stored(engine, id)
    schema = int(raw.get(b"sv", b"1"))
    assert (b"t" in raw, b"tk" in raw) == (schema == 1, schema == 2)
    return schema


async def header(engine: Engine, partition: Any = P0) -> dict[str, str]:
    return (await engine.call(c.ReadHeaderArgs(partition=partition))).fields


async def test_a_record_that_is_touched_is_brought_up_and_the_others_wait(engine: Engine, upgraded: Any) -> None:
    ids = await engine.submit_many(3)
    (job,) = await engine.claim()
    new = await upgraded()
    assert (await new.read(ids[1])).fields["task"] == "send", "a read shows it as it will be"
    assert [await schema_of(new, id) for id in ids] == [1, 1, 1], "and writes nothing"
    await new.complete(job)
    assert [await schema_of(new, id) for id in ids] == [2, 1, 1]
    made = await new.submit()
    (second,) = await new.claim()
    assert second.execution_id == ids[1] and second.task == "send"
    assert [await schema_of(new, id) for id in (*ids, made)] == [2, 2, 1, 2]
    assert await header(new, P1) | {"v": "1"} == await header(new, P1), "nothing has touched the other partition"


async def test_every_kind_of_call_understands_both(engine: Engine, upgraded: Any) -> None:
    delayed = await engine.submit(delay_until=engine.now + 1_000)
    held = await engine.submit(execution_kind="scan")
    running = await engine.running(lane_id="other")
    new = await upgraded()
    await new.call(c.HoldArgs(partition=P0, what="task:scan", reason=""))
    assert await new.claim() == []
    assert await new.state(held) == "blocked"
    page = await new.call(c.ListExecutionsArgs(partition=P0))
    assert {row.execution_id: row.task for row in page.items} == {
        delayed: "send", held: "scan", running.execution_id: "send",
    }  # fmt: skip
    finished = await new.call(
        c.CompleteManyArgs(
            partition=P0, lanes=["mail"], capability_sets=[], limit=0, claim_id="w1.s0.99", worker_id="w",
            worker_instance_id="w1", lease_ttl_ms=1_000,
            items=[c.Completion(running.execution_id, wire(running), b"r")],
        )
    )  # fmt: skip
    assert [item.state for item in finished.items] == ["completed"]
    await new.advance(1_000)
    (job,) = await new.claim()
    assert (job.execution_id, job.task) == (delayed, "send")


async def test_the_ticker_brings_up_the_rest_in_pieces(engine: Engine, upgraded: Any) -> None:
    """One that is interrupted goes on where it stood."""
    ids = await engine.submit_many(limits.TICK_N + 30)
    ids += await engine.submit_many(10, delay_until=engine.now + 10**9)
    ids += await engine.submit_many(10, lane_id="other")
    for job in await engine.claim(20):
        await engine.complete(job)
    ids += [await engine.submit(id=engine.new_id(P1))]
    new = await upgraded()
    await new.tick(limit=1)
    assert (await header(new))["v"] == "2 x"
    await new.tick(limit=50)
    done = [await schema_of(new, id) for id in ids].count(2)
    assert 0 < done < len(ids)
    for _ in range(2):  # another process goes on: where it stands is in the store
        await new.tick(limit=50, ticker="t2")
    assert done < [await schema_of(new, id) for id in ids].count(2) < len(ids)
    for _ in range(20):
        await new.tick()
        await new.tick(P1)
    assert {await schema_of(new, id) for id in ids} == {2}
    assert (await header(new))["v"] == "2"
    assert not {"records", "walk_records"} & (await header(new)).keys()
    assert len(await new.claim(200)) == 200


async def test_records_that_move_while_the_ticker_walks_are_not_left_out(engine: Engine, upgraded: Any) -> None:
    ids = await engine.submit_many(60)
    new = await upgraded()
    for _ in range(12):
        await new.tick(limit=10)
        for job in await new.claim(4):
            await new.complete(job)
    for _ in range(10):
        await new.tick()
    assert {await schema_of(new, id) for id in ids} == {2}
    assert (await header(new))["v"] == "2"


async def test_what_is_put_aside_while_the_ticker_walks_is_not_left_out(engine: Engine, upgraded: Any) -> None:
    """An order that is left stands under another key, which the walk must have before it still."""
    await engine.tick()
    ids = await engine.submit_many(40)
    await engine.submit_many(40, delay_until=engine.now + 10**9)
    new = await upgraded()
    await new.tick(limit=5)
    while " delayed " not in (await header(new))["walk_records"]:
        await new.tick(limit=5)
    await new.call(lane_told(aged_s=10))
    await new.command("ZREM", f"ff:{P0}:timers", "order:1")  # the walk ends before the move
    for _ in range(20):
        await new.tick()
    assert {await schema_of(new, id) for id in ids} == {2}


async def test_an_upgrade_before_the_last_one_is_through_walks_from_the_beginning(
    engine: Engine, upgraded: Any
) -> None:
    ids = await engine.submit_many(60)
    new = await upgraded()
    for _ in range(3):
        await new.tick(limit=20)
    assert "walk_records" in await header(new)
    newest = await upgraded(schema=3)
    for _ in range(20):
        await newest.tick()
    assert (await header(newest))["v"] == "3"
    assert {(await stored(newest, id))[b"sv"] for id in ids} == {b"3"}


async def test_a_malformed_call_may_be_the_first_of_a_newer_library(engine: Engine, upgraded: Any) -> None:
    """It raises the schema like any other; the walk must not be lost with what such a call had collected."""
    id = await engine.submit()
    new = await upgraded()
    with pytest.raises(EngineBug):
        await new.raw("ff_hold", P0, "one argument of two")
    for _ in range(4):
        await new.tick()
    assert await schema_of(new, id) == 2
    assert (await header(new))["v"] == "2"


async def test_an_older_library_refuses_what_a_newer_one_has_touched(engine: Engine, upgraded: Any) -> None:
    """Before it could meet a record it cannot read; a failover to a node with an older library, say."""
    await engine.submit()
    new = await upgraded()
    await new.claim()
    await engine.backend.command("FUNCTION", "LOAD", "REPLACE", library_of().source)
    for call in (engine.creation(), engine.claiming(1), c.ReadHeaderArgs(partition=P0)):
        with pytest.raises(EngineBug, match="newer release: upgrade the library"):
            await engine.call(call)
    await engine.submit(id=engine.new_id(P1))


async def test_a_record_from_the_future_is_not_guessed_at(engine: Engine, upgraded: Any) -> None:
    id = await engine.submit()
    new = await upgraded()
    await new.command("HSET", f"ff:{P0}:x:{id[7:]}", "sv", "3")
    with pytest.raises(EngineBug, match="newer release: upgrade the library"):
        await new.read(id)


async def test_as_long_as_there_is_one_schema_nothing_is_paid_for_the_next(engine: Engine) -> None:
    id = await engine.submit()
    assert b"sv" not in await stored(engine, id)
    assert (await header(engine))["v"] == "1"
