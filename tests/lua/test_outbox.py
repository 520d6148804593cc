"""The outbox: what one partition owes another is owed until it is acknowledged, whoever dies in between.

No function of this release owes anything yet, so these tests load a library in which `ff_noop` does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.library import assemble, lua_root
from ffcore.contracts.upkeep import OutboxRef, OwedRow
from ffcore.errors import Unavailable
from ffcore.ids import partition_of, uuid_of
from ffengine import Ticker
from tests.integration.proxy import until
from tests.lua.engine import P0, Engine, library_of, open_engine

OWING = '''run = function(p, a)
    outbox.add(p, record.load(p, a.data), "{fp:1}", "note", "a body, with spaces")
    return { "ok" }
  end,'''


@pytest.fixture
async def owing(store_url: str) -> AsyncIterator[Engine]:
    source = (lua_root() / "library.lua").read_text()
    at = source.index('name = "ff_noop"')
    changed = source[at:].replace('flags = { "no-writes" }', "flags = {}", 1)
    changed = changed.replace('run = function() return { "ok" } end,', OWING, 1)
    assert "outbox.add" in changed
    clock = library_of().source  # the swapped clock is taken from the library the other tests load
    swapped = clock[clock.index("-- shared/clock.lua") : clock.index("-- shared/keys.lua")]
    engine = await open_engine(
        store_url, assemble(replace={"library.lua": source[:at] + changed, "shared/clock.lua": swapped})
    )
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
