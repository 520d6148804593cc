"""The submit gate: above the high-water mark new work is refused with a time, and whatever ends work goes on."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.conftest import servers_that_can
from tests.lua.engine import P0, P1, Engine, told

CAN = pytest.mark.parametrize("server", servers_that_can("oom"), indirect=True)


def gate(**values: int) -> Any:
    return told("store", values)


async def look(engine: Engine) -> None:
    """A ticker looks at the memory again: it does so once a second."""
    await engine.advance(limits.TICKER_MS)
    await engine.tick()


@CAN
async def test_above_the_mark_submits_are_refused_and_the_rest_goes_on(engine: Engine) -> None:
    known = engine.creation(engine.new_id(key="k"))
    await engine.call(known)
    await engine.submit()
    await engine.call(gate(gate_bytes=1))
    await look(engine)
    assert await engine.refused("store_full", engine.creation()) == str(limits.FULL_RETRY_MS)
    row = c.NewExecution(engine.new_id(), b"d" * 16, b"p")
    many = c.CreateManyArgs(
        partition=P0, namespace="default", lane_id="mail", execution_kind="send", creator_identity="", items=[row]
    )
    assert (await engine.call(many)).items == [c.ItemCreated("error", "store_full")]
    assert isinstance(await engine.call(known), c.Duplicate), "what was taken before is answered"
    await engine.submit(id=engine.new_id(P1))
    for job in await engine.claim(2):
        await engine.complete(job, b"r" * 1_000)


@CAN
async def test_the_gate_opens_when_memory_is_freed_and_when_nobody_looks_any_more(engine: Engine) -> None:
    await engine.call(gate(gate_bytes=1))
    await look(engine)
    await engine.refused("store_full", engine.creation())
    await engine.call(gate(gate_bytes=1 << 50))
    await look(engine)
    await engine.submit()
    await engine.call(gate(gate_bytes=1))
    await look(engine)
    await engine.advance(limits.GATE_MS - 1)
    await engine.refused("store_full", engine.creation())
    await engine.advance(1)
    await engine.submit()


@CAN
async def test_the_mark_is_a_share_of_maxmemory(engine: Engine) -> None:
    used = int((await engine.command("INFO", "memory")).split(b"used_memory:")[1].split(b"\r\n")[0])
    for share, open_ in ((0.5, True), (0.95, False)):
        await engine.command("CONFIG", "SET", "maxmemory", str(int(used / share)))
        try:
            await look(engine)
            if open_:
                await engine.submit()
            else:
                await engine.refused("store_full", engine.creation())
                await engine.call(gate(gate_pct=0))
                await look(engine)
                await engine.submit()
        finally:
            await engine.command("CONFIG", "SET", "maxmemory", "0")


async def test_a_header_that_has_nothing_rare_to_say_says_so(engine: Engine) -> None:
    """An ordinary call reads the rare words only where one of them is set."""

    async def version() -> str:
        return (await engine.call(c.ReadHeaderArgs(partition=P0))).fields["v"]

    assert await version() == "1"
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason=""))
    assert await version() == "1 x"
    await engine.tick()
    assert await version() == "1 x"
    await engine.call(c.ReleaseArgs(partition=P0, what="task:send"))
    await engine.tick()
    await engine.tick()
    assert await version() == "1"
    await engine.submit()
    assert len(await engine.claim()) == 1
