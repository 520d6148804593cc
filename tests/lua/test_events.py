"""ff_read_events and ff_execution_history: the partition's feed, its order and its bounds."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, Engine, cancel, retries, unclaim


async def feed(engine: Engine, after: str = "-", limit: int = 100) -> list[Any]:
    return (await engine.call(c.ReadEventsArgs(partition=P0, after=after, limit=limit))).entries


def words(entry: Any) -> list[list[str]]:
    return [text.split(" ") for name, text in zip(entry.fields[::2], entry.fields[1::2], strict=True) if name == "e"]


async def test_every_transition_is_told_once_in_order(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    await engine.fail(job)
    (job,) = await engine.claim()
    await engine.call(unclaim(job))
    await engine.call(cancel(job.execution_id))
    moves = [(w[1], w[2]) for entry in await feed(engine) for w in words(entry)]
    assert moves == [
        ("-", "ready"), ("ready", "active"), ("active", "delayed"), ("delayed", "ready"), ("ready", "active"),
        ("active", "ready"), ("ready", "cancelled"),
    ]  # fmt: skip


async def test_the_feed_is_read_from_a_cursor_in_pages(engine: Engine) -> None:
    for _ in range(5):
        await engine.submit()
        await engine.advance(1)
    first = await feed(engine, limit=2)
    assert [entry.event_id for entry in first] == [f"{START_MS}-0", f"{START_MS + 1}-0"]
    rest = await feed(engine, after=first[-1].event_id)
    assert len(rest) == 3 and await feed(engine, after=rest[-1].event_id) == []
    assert len(await feed(engine, after="0-0")) == 5


async def test_a_cursor_older_than_what_was_trimmed_is_refused_never_skipped(engine: Engine) -> None:
    await engine.submit()
    await engine.command("DEL", f"ff:{P0}:ev")
    for n in range(limits.EVENTS_N // 64):
        await engine.backend.call_all([])
        for m in range(64):
            engine.backend._calls.call("XADD", f"ff:{P0}:ev", f"{1_000 + n}-{m}", "o", "x")
    await engine.command("PING")
    assert await engine.refused("cursor_expired", c.ReadEventsArgs(partition=P0, after="999-0")) == "1000-0"
    assert len(await feed(engine, after="1000-0", limit=5)) == 5
    assert len(await feed(engine, after="-", limit=5)) == 5


async def test_the_feed_is_bounded(engine: Engine) -> None:
    for n in range(limits.EVENTS_N // 64 + 8):
        for m in range(64):
            engine.backend._calls.call("XADD", f"ff:{P0}:ev", f"{1_000 + n}-{m}", "o", "x")
    await engine.submit()
    assert await engine.command("XLEN", f"ff:{P0}:ev") < limits.EVENTS_N + 200


@pytest.mark.parametrize(
    ("field", "value"), [("limit", 0), ("limit", 1_001), ("after", ""), ("after", "x"), ("after", "1")]
)
async def test_bad_input_to_the_feed_is_refused(engine: Engine, field: str, value: Any) -> None:
    assert await engine.refused("invalid_input", c.ReadEventsArgs(partition=P0), **{field: value}) == field


async def test_the_history_of_one_execution_is_picked_from_the_feed(engine: Engine) -> None:
    job = await engine.running()
    await engine.submit()
    await engine.advance(1)
    await engine.complete(job)
    asking = c.ExecutionHistoryArgs(execution_id=job.execution_id)
    history = await engine.call(asking)
    assert [row.text.split()[2] for row in history.entries] == ["ready", "active", "completed"]
    first = await engine.call(asking, limit=2)
    rest = await engine.call(asking, after=first.cursor)
    assert [row.text.split()[2] for row in first.entries + rest.entries] == ["ready", "active", "completed"]
    again = await engine.call(asking, after=rest.cursor)
    assert (again.entries, again.cursor) == ([], rest.cursor), "at the end a cursor stays where it is"


async def test_one_call_of_a_history_looks_at_a_bounded_piece_of_the_feed(engine: Engine) -> None:
    for _ in range(limits.HISTORY_N):
        await engine.submit(lane_id="before")
    await engine.advance(1)
    job = await engine.running()
    for n in range(limits.HISTORY_N + 20):
        await engine.call(c.HoldArgs(partition=P0, what=f"task:other-{n % 2}", reason=""))
        await engine.call(c.ReleaseArgs(partition=P0, what=f"task:other-{n % 2}"))
    await engine.complete(job)
    found: list[str] = []
    after, pages = None, 0
    while True:
        page = await engine.call(c.ExecutionHistoryArgs(execution_id=job.execution_id, after=after))
        found, after, pages = found + [row.text.split()[2] for row in page.entries], page.cursor, pages + 1
        if not page.more:
            break
    assert found == ["ready", "active", "completed"]
    assert pages == 3, "it begins where the execution was created"


@pytest.mark.parametrize(
    ("field", "value"), [("limit", 0), ("limit", 1_001), ("after", ""), ("after", "x"), ("after", "+")]
)
async def test_bad_input_to_a_history_is_refused(engine: Engine, field: str, value: Any) -> None:
    asking = c.ExecutionHistoryArgs(execution_id=await engine.submit())
    assert await engine.refused("invalid_input", asking, **{field: value}) == field
