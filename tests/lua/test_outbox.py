"""The outbox: what one partition owes another is owed until it is acknowledged, whoever dies in between.

No function of this release owes anything yet, so these tests load a library in which `ff_noop` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.contracts.upkeep import OutboxRef, OwedRow
from ffcore.errors import Unavailable
from ffcore.ids import partition_of, uuid_of
from ffengine import Ticker
from tests.integration.proxy import until
from tests.lua.engine import P0, Engine, library_of, open_engine

OWING = '''run = function(p, a)
    for uuid in string.gmatch(a.data, "%S+") do
      outbox.add(p, record.load(p, uuid), "{fp:1}", "note", "a body, with spaces")
    end
    return { "ok" }
  end,'''


@pytest.fixture
async def owing(store_url: str) -> AsyncIterator[Engine]:
    lib = library_of()
    at = lib.source.index('name = "ff_noop"')
    changed = lib.source[at:].replace('flags = { "no-writes" }', "flags = {}", 1)
    changed = changed.replace('run = function() return { "ok" } end,', OWING, 1)
    assert "outbox.add" in changed
    signatures = {**lib.signatures, "ff_noop": lib.signatures["ff_noop"]._replace(flags=())}
    changed = lib.source[:at] + changed
    engine = await open_engine(store_url, lib._replace(sha="owing", source=changed, signatures=signatures))
    try:
        yield engine
    finally:
        await engine.close()


async def owe(engine: Engine) -> str:
    execution_id = await engine.submit()
    await engine.call(c.NoopArgs(partition=partition_of(execution_id), data=uuid_of(execution_id).encode()))
    return execution_id


async def owed(engine: Engine) -> list[OwedRow]:
    answer = await engine.call(c.TickArgs(partitions=[P0], ticker="t", force=True))
    return answer.partitions[0].owed


async def test_an_undelivered_row_is_answered_to_every_tick_until_it_is_acknowledged(owing: Engine) -> None:
    execution_id = await owe(owing)
    assert execution_id.startswith(P0)
    assert await owed(owing) == [], "whoever made the call has a second to deliver"
    for _ in range(3):
        await owing.advance(1_001)
        (row,) = await owed(owing)
        assert (row.target, row.kind, row.body) == ("{fp:1}", "note", "a body, with spaces")
        assert row.row.startswith(uuid_of(execution_id))
    done = await owing.call(c.AckOutboxArgs(partition=P0, items=[OutboxRef(row.row)]))
    assert done.count == 1
    await owing.advance(5_000)
    assert await owed(owing) == []
    assert (await owing.call(c.AckOutboxArgs(partition=P0, items=[OutboxRef(row.row)]))).count == 0


async def test_a_ticker_delivers_what_it_knows_and_leaves_the_rest_owed(owing: Engine) -> None:
    await owe(owing)
    await owing.advance(1_001)
    tries: list[Any] = []

    async def deliver(row: OwedRow) -> None:
        tries.append(row)
        if len(tries) == 1:
            raise Unavailable("not now")

    stranger = Ticker(owing.backend, "stranger", deliver={})
    running = asyncio.create_task(stranger.run())
    await until(lambda: stranger.rounds_n >= 1)
    stranger.stop()
    await running
    ticker = Ticker(owing.backend, "knows", deliver={"note": deliver})
    running = asyncio.create_task(ticker.run())
    for n in (1, 2):
        await owing.advance(2_000)
        await until(lambda n=n: len(tries) >= n)  # type: ignore[misc]
    await until(lambda: ticker.rounds_n >= 3)
    ticker.stop()
    await running
    await owing.advance(5_000)
    assert await owed(owing) == []
    assert len(tries) == 2


async def test_what_one_call_owes_twice_is_two_rows(owing: Engine) -> None:
    id = await owing.submit()
    await owing.call(c.NoopArgs(partition=P0, data=f"{uuid_of(id)} {uuid_of(id)}".encode()))
    await owing.advance(1_001)
    rows = [row.row for row in await owed(owing)]
    assert len(set(rows)) == 2
    await owing.call(c.AckOutboxArgs(partition=P0, items=[OutboxRef(rows[0])]))
    await owing.advance(1_001)
    assert [row.row for row in await owed(owing)] == rows[1:]
