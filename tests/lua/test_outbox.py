"""Mail between partitions: what one owes another is owed until it is acknowledged, whoever dies in between, and applied
once however often it is delivered, in whatever order.

These tests load a library in which `ff_noop` owes and a partition counts the notes it is sent.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator

import pytest

import ffcore.contracts as c
from ffcore import ids
from ffcore.contracts.mail import Letter, Wake
from ffcore.contracts.upkeep import OutboxRef, OwedRow
from ffcore.ids import PartitionKey
from ffengine import Ticker
from tests.integration.proxy import until
from tests.lua.engine import P0, P1, START_MS, Engine, library_of, open_engine

B0 = ids.partition_key(0, "b")
OWING = """run = function(p, a)
    for target, kind, body in string.gmatch(a.data, "(%S+) (%S+) (%S+)") do
      outbox.add(p, target, kind, body .. ", with spaces")
    end
    return { "ok" }
  end,"""
NOTED = """
inbox.on("note", function(p, body, from)
  redis.call("HINCRBY", p.key, "notes", 1)
  redis.call("HSET", p.key, "noted", (redis.call("HGET", p.key, "noted") or "") .. string.sub(body, 1, 1))
end)
inbox.on("relay", function(p, body, from) inbox.wake(p, from, "note", body) end)
"""


@pytest.fixture
async def owing(store_url: str) -> AsyncIterator[Engine]:
    lib = library_of()
    at = lib.source.index('name = "ff_noop"')
    changed = lib.source[at:].replace('flags = { "no-writes" }', "flags = {}", 1)
    changed = changed.replace('run = function() return { "ok" } end,\n}', OWING + "\n}" + NOTED, 1)
    assert "outbox.add" in changed
    signatures = {**lib.signatures, "ff_noop": lib.signatures["ff_noop"]._replace(flags=())}
    changed = lib.source[:at] + changed
    engine = await open_engine(store_url, lib._replace(sha="owing", source=changed, signatures=signatures))
    try:
        yield engine
        left = await engine.violations()
        assert not left, "the store is inconsistent after the test:\n  " + "\n  ".join(left)
    finally:
        await engine.close()


async def owe(
    engine: Engine, *bodies: str, target: PartitionKey = P1, kind: str = "note", source: PartitionKey = P0
) -> None:
    data = " ".join(f"{target} {kind} {body}" for body in bodies or ("a",))
    await engine.call(c.NoopArgs(partition=source, data=data.encode()))


async def owed(engine: Engine, source: PartitionKey = P0) -> list[OwedRow]:
    return (await engine.tick(source)).owed


async def outbox(engine: Engine, limit: int = 100) -> list[OwedRow]:
    return (await engine.call(c.ReadOutboxArgs(partition=P0, limit=limit))).rows


async def deliver(
    engine: Engine, rows: list[OwedRow], source: PartitionKey = P0, target: PartitionKey = P1
) -> c.Delivered:
    letters = [Letter(row.row, row.kind, row.body) for row in rows]
    return await engine.call(c.DeliverArgs(partition=target, source=source, items=letters))


async def ack(engine: Engine, rows: list[OwedRow]) -> int:
    return (await engine.call(c.AckOutboxArgs(partition=P0, items=[OutboxRef(row.row) for row in rows]))).count


async def noted(engine: Engine, partition: PartitionKey = P1) -> str:
    return (await engine.call(c.ReadHeaderArgs(partition=partition))).fields.get("noted", "")


# ---- owed --------------------------------------------------------------------------------------------------


async def test_an_undelivered_row_is_answered_to_every_tick_until_it_is_acknowledged(owing: Engine) -> None:
    await owe(owing)
    assert await owed(owing) == [], "whoever made the call has a second to deliver"
    for _ in range(3):
        await owing.advance(1_001)
        (row,) = await owed(owing)
        assert row == OwedRow(f"{P1}/0/{START_MS}", P1, "note", "a, with spaces")
    rows = await outbox(owing)
    assert await ack(owing, rows) == 1
    await owing.advance(5_000)
    assert await owed(owing) == []
    assert await ack(owing, rows) == 0
    assert await ack(owing, []) == 0


async def test_a_ticker_delivers_what_is_owed(owing: Engine) -> None:
    await owe(owing, "a", "b")
    await owe(owing, "c", target=B0)
    await owe(owing, "d", kind="word-of-a-later-release")
    await owing.advance(1_001)
    ticker = Ticker(owing.backend, "postman")
    running = asyncio.create_task(ticker.run())
    await until(lambda: ticker.rounds_n >= 3)
    ticker.stop()
    await running
    assert await noted(owing) == "ab"
    assert await noted(owing, B0) == "c"
    assert [row.kind for row in await outbox(owing)] == ["word-of-a-later-release"], "it stays for who knows it"
    await ack(owing, await outbox(owing))


async def test_rows_are_read_by_whoever_delivers_at_once(owing: Engine) -> None:
    await owe(owing, *"abc")
    await owe(owing, "d", target=B0)
    rows = await outbox(owing)
    assert [row.row for row in rows if row.target == P1] == [
        f"{P1}/0/{START_MS}", f"{P1}/{START_MS}/{START_MS + 1}", f"{P1}/{START_MS + 1}/{START_MS + 2}",
    ]  # fmt: skip
    assert [row.row for row in rows if row.target == B0] == [f"{B0}/0/{START_MS}"], "numbers are a target's own"
    assert len(await outbox(owing, 2)) == 2
    await owing.refused("invalid_input", c.ReadOutboxArgs(partition=P0, limit=0))
    await owing.refused("invalid_input", c.ReadOutboxArgs(partition=P0, limit=201))
    await ack(owing, rows)
    assert await outbox(owing) == []


async def test_many_rows_of_one_call(owing: Engine) -> None:
    await owe(owing, *(str(n) for n in range(500)))
    seen = 0
    while rows := await outbox(owing, 200):
        await deliver(owing, rows)
        seen += await ack(owing, rows)
    assert seen == 500
    assert int((await owing.call(c.ReadHeaderArgs(partition=P1))).fields["notes"]) == 500


# ---- delivered ---------------------------------------------------------------------------------------------


async def test_a_row_is_applied_once_however_often_it_comes(owing: Engine) -> None:
    await owe(owing, *"abc")
    rows = await outbox(owing)
    assert await deliver(owing, rows) == c.Delivered(0, [], [])
    assert await deliver(owing, rows) == c.Delivered(3, [], [])
    assert await deliver(owing, [*rows[1:], *rows]) == c.Delivered(5, [], [])
    assert await noted(owing) == "abc"
    header = (await owing.call(c.ReadHeaderArgs(partition=P1))).fields
    assert header["i" + P0] == str(START_MS + 2)
    assert int(header["replays"]) == 2, "a call that repeats an earlier one writes"
    assert await owing.command("EXISTS", f"ff:{P1}:inbox:fp0") == 0, "in order nothing else is kept"
    await ack(owing, rows)


async def test_in_any_order_and_any_number_of_times(owing: Engine) -> None:
    rng = random.Random(7)
    bodies = "abcdefghijklmnop"
    for round_n in range(6):
        for body in bodies:
            await owe(owing, body)
            await owing.advance(rng.choice([0, 0, 1, 40]))
        rows = await outbox(owing)
        missing, waiting = set(range(len(rows))), list(rows)
        while missing:
            some = [rng.randrange(len(rows)) for _ in range(rng.randrange(1, 6))]
            await deliver(owing, [waiting[n] for n in some])
            missing -= set(some)
            left = await owing.violations()
            assert not left
        await ack(owing, rows)
        assert sorted(await noted(owing)) == sorted(bodies * (round_n + 1))
    assert await owing.command("EXISTS", f"ff:{P1}:inbox:fp0") == 0
    assert await outbox(owing) == []


async def test_each_sender_counts_for_itself(owing: Engine) -> None:
    await owe(owing, "a", target=B0)
    await owe(owing, "b", target=B0, source=P1)
    (mine,) = await outbox(owing)
    (other,) = (await owing.call(c.ReadOutboxArgs(partition=P1))).rows
    assert mine.row == other.row
    await deliver(owing, [mine], P0, B0)
    await deliver(owing, [other], P1, B0)
    assert await noted(owing, B0) == "ab"
    await ack(owing, [mine])
    await owing.call(c.AckOutboxArgs(partition=P1, items=[OutboxRef(other.row)]))


async def test_a_kind_nobody_knows_is_left_and_holds_nobody_up(owing: Engine) -> None:
    await owe(owing, "a", kind="later")
    await owe(owing, "b")
    rows = await outbox(owing)
    answer = await deliver(owing, rows)
    assert answer == c.Delivered(0, [], [OutboxRef(rows[0].row)])
    assert await noted(owing) == "b"
    assert await owing.command("ZRANGE", f"ff:{P1}:inbox:fp0", 0, -1) == [str(START_MS + 1).encode()]
    known = [OwedRow(rows[0].row, P1, "note", "a"), rows[1]]
    assert await deliver(owing, known) == c.Delivered(1, [], []), "a later release knows it"
    assert await noted(owing) == "ba"
    assert await deliver(owing, [OwedRow("", P1, "later", "x")]) == c.Delivered(0, [], []), "a wake is not kept"
    await ack(owing, rows)


async def test_a_wake_is_answered_and_may_come_twice(owing: Engine) -> None:
    await owe(owing, "a", kind="relay")
    rows = await outbox(owing)
    assert (await deliver(owing, rows)).wakes == [Wake(P0, "note", "a, with spaces")]
    assert (await deliver(owing, rows)).wakes == []
    for _ in range(2):
        await deliver(owing, [OwedRow("", P1, "note", "w")])
    assert await noted(owing) == "ww"
    await ack(owing, rows)


async def test_what_is_addressed_to_somebody_else_is_refused(owing: Engine) -> None:
    args = c.DeliverArgs(partition=P1, source=P0, items=[Letter(f"{P0}/0/1", "note", "x")])
    await owing.refused("invalid_input", args)
    for row in ("r.1.1", f"{P1}/1", f"{P1}/x/2", f"{P1}/0/{'9' * 17}"):
        await owing.refused("invalid_input", args, items=[Letter(row, "note", "x")])
    await owing.refused("invalid_input", args, source="nobody", items=[])
    assert await noted(owing) == ""


# ---- servers that lost something -----------------------------------------------------------------------------


async def test_a_sender_that_forgot_its_last_rows_is_heard_all_the_same(owing: Engine) -> None:
    """A copy took over that had not heard of the last rows: their numbers are not given again."""
    await owe(owing, "a")
    word = f"o{P1}"
    before = await owing.command("HGET", f"ff:{P0}", word)
    await owing.advance(10)
    await owe(owing, *"bc")
    rows = await outbox(owing)
    await deliver(owing, [rows[0], rows[2]])
    await owing.command("HSET", f"ff:{P0}", word, before)
    await ack(owing, rows)
    await owing.advance(10)
    await owe(owing, *"de")
    late = await outbox(owing)
    assert await deliver(owing, [late[1], late[0]]) == c.Delivered(0, [], [])
    assert await noted(owing) == "aced"
    await ack(owing, late)


async def test_a_receiver_that_forgot_its_last_rows_goes_on(owing: Engine) -> None:
    """What came after the rows it lost stands ahead of a gap that nothing will fill."""
    await owe(owing, "a", "b")
    rows = await outbox(owing)
    await deliver(owing, rows)
    await ack(owing, rows)
    await owing.command("HSET", f"ff:{P1}", f"i{P0}", START_MS)
    for n in range(3):
        await owe(owing, "cde"[n])
    rows = await outbox(owing)
    assert await deliver(owing, rows) == c.Delivered(0, [], [])
    assert await deliver(owing, rows) == c.Delivered(3, [], [])
    assert await noted(owing) == "abcde"
    await ack(owing, rows)


async def test_a_gap_that_nothing_fills_is_closed_in_the_end(owing: Engine) -> None:
    numbers = itertools.count(START_MS + 10)
    sent: list[Letter] = []

    async def send(n: int) -> None:
        letters = [Letter(f"{P1}/{n}/{n + 1}", "note", "x") for n in itertools.islice(numbers, n)]
        await owing.call(c.DeliverArgs(partition=P1, source=P0, items=letters))
        sent.extend(letters)

    for _ in range(51):
        await send(200)
    assert await owing.command("ZCARD", f"ff:{P1}:inbox:fp0") == 51 * 200
    await owing.advance(10 * 60_000 - 1)
    await send(1)
    assert await owing.command("ZCARD", f"ff:{P1}:inbox:fp0") == 51 * 200 + 1
    assert not await owing.violations()
    await owing.advance(1)
    for _ in range(6):
        await send(1)
    assert await owing.command("ZCARD", f"ff:{P1}:inbox:fp0") == 0
    header = (await owing.call(c.ReadHeaderArgs(partition=P1))).fields
    assert header["i" + P0] == str(START_MS + 10 + len(sent))
    again = await owing.call(c.DeliverArgs(partition=P1, source=P0, items=sent[:1] + sent[-1:]))
    assert again.known == 2
    await owing.command("HSET", f"ff:{P0}", f"o{P1}", header["i" + P0])
