"""ff_tick, the ticker's promise, the partition's clock, ff_read_header, ff_init_partition, the outbox."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.backend import StoreConfig
from tests.lua.engine import P0, P1, START_MS, TTL, W0, Engine, renewal, unclaim


async def ticked(
    engine: Engine, *partitions: Any, ticker: str = "t1", limit: int = 200, force: bool = False
) -> list[Any]:
    return (
        await engine.call(c.TickArgs(partitions=list(partitions or [P0]), ticker=ticker, limit=limit, force=force))
    ).partitions


async def test_one_ticker_looks_after_a_partition_until_its_promise_lapses(engine: Engine) -> None:
    (mine,) = await ticked(engine)
    assert (mine.mine, mine.next_due_ms) == (True, START_MS + limits.TICKER_MS)
    (theirs,) = await ticked(engine, ticker="t2")
    assert (theirs.mine, theirs.next_due_ms) == (False, START_MS + limits.TICKER_MS)
    assert (await ticked(engine, ticker="t2", force=True))[0].mine
    await engine.advance(limits.TICKER_MS - 1)
    assert not (await ticked(engine, ticker="t1"))[0].mine
    await engine.advance(1)
    assert (await ticked(engine, ticker="t1"))[0].mine


async def test_a_tick_answers_each_partition_and_when_to_come_back(engine: Engine) -> None:
    await engine.submit(delay_until=START_MS + 300)
    await engine.submit(id=engine.new_id(P1), delay_until=START_MS + 5_000)
    rows = await ticked(engine, P0, P1, W0)
    assert [(r.partition, r.mine, r.done, r.next_due_ms) for r in rows] == [
        (P0, True, 0, START_MS + 300), (P1, True, 0, START_MS + 1_000), (W0, True, 0, START_MS + 1_000),
    ]  # fmt: skip
    await engine.advance(300)
    assert [r.done for r in await ticked(engine, P0, P1)] == [1, 0]


async def test_a_tick_does_no_more_than_its_limit(engine: Engine) -> None:
    await engine.submit_many(7, delay_until=START_MS + 5)
    await engine.advance(5)
    assert [(r.done, r.next_due_ms) for r in [*await ticked(engine, limit=3), *await ticked(engine, limit=3)]] == [
        (3, engine.now), (3, engine.now),
    ]  # fmt: skip
    assert (await ticked(engine, limit=3))[0].done == 1


async def test_a_backlog_of_delays_does_not_hold_up_a_lost_lease(engine: Engine) -> None:
    job = await engine.running()
    await engine.submit_many(50, delay_until=START_MS + 5)
    await engine.at(START_MS + TTL)
    await ticked(engine, limit=1)
    assert await engine.state(job.execution_id) == "reclaimable"


async def test_what_is_due_before_the_promise_wakes_the_ticker_and_nothing_else_does(engine: Engine) -> None:
    ear = await engine.listen(engine.backend.ticker_channel(P0))
    await engine.submit(delay_until=START_MS + 10)
    assert await ear.heard() == [], "nobody has promised anything"
    await ticked(engine)
    await engine.submit(delay_until=START_MS + 2_000)
    assert await ear.heard() == []
    await engine.submit_many(2, delay_until=START_MS + 500)
    assert await ear.heard() == [("tick", str(START_MS + 500))]


async def test_a_tick_does_not_ring_itself(engine: Engine) -> None:
    await ticked(engine)
    ear = await engine.listen(engine.backend.ticker_channel(P0))
    await engine.submit(delay_until=START_MS + 100, execution_deadline_at=START_MS + 200)
    await ear.heard()
    job = await engine.running(execution_kind="held")
    await engine.call(unclaim(job, "unknown_task"))
    await ear.heard()
    await engine.advance(100)
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason=""))
    await engine.claim()
    await engine.call(c.ReleaseArgs(partition=P0, what="task:send"))
    await ear.heard()
    await ticked(engine)
    assert await ear.heard() == []


async def test_a_kind_of_timer_that_nobody_knows_is_kept_for_who_does(engine: Engine) -> None:
    await engine.command("ZADD", f"ff:{P0}:timers", START_MS, "someday:x", START_MS, "release:none")
    await engine.command("ZADD", f"ff:{P0}:reap", START_MS, "someday:x")
    await ticked(engine)
    assert await engine.command("ZSCORE", f"ff:{P0}:timers", "someday:x") == str(START_MS + 60_000).encode()
    assert await engine.command("ZSCORE", f"ff:{P0}:reap", "someday:x") == str(START_MS + 60_000).encode()
    await engine.command("ZREM", f"ff:{P0}:timers", "someday:x")


@pytest.mark.parametrize(
    ("field", "value"), [("limit", 0), ("limit", 1_001), ("ticker", ""), ("ticker", "a b"), ("ticker", "x" * 41)]
)
async def test_bad_input_to_a_tick_is_refused(engine: Engine, field: str, value: Any) -> None:
    assert await engine.refused("invalid_input", c.TickArgs(partitions=[P0], ticker="t"), **{field: value}) == field


# ---- the partition's clock ---------------------------------------------------------------------------


async def header(engine: Engine) -> c.Header:
    return await engine.call(c.ReadHeaderArgs(partition=P0))


async def test_time_never_runs_back_and_does_not_stand_still_after_a_step_back(engine: Engine) -> None:
    job = await engine.running()
    await engine.advance(10_000)
    await ticked(engine)
    await engine.at(START_MS - 5_000)
    assert (await header(engine)).now_ms == START_MS + 10_000
    await ticked(engine, force=True)
    await engine.at(START_MS - 4_000)
    assert (await header(engine)).now_ms == START_MS + 11_000, "the gap is made up for"
    renewed = await engine.call(renewal(job))
    assert renewed.expires_at == START_MS + 11_000 + TTL


async def test_the_gap_is_let_go_by_a_tenth_of_the_time_that_passes(engine: Engine) -> None:
    await engine.advance(10_000)
    await ticked(engine)
    await engine.at(START_MS)
    await ticked(engine, force=True)
    seen = [(await header(engine)).now_ms]
    for second in range(1, 8):
        await engine.at(START_MS + second * 1_000)
        await ticked(engine, force=True)
        seen.append((await header(engine)).now_ms)
    steps = [after - before for before, after in pairwise(seen)]
    assert all(900 <= step <= 1_000 for step in steps), steps
    assert int((await header(engine)).fields["offset"]) < 10_000


async def test_a_small_step_back_only_stops_time_for_as_long(engine: Engine) -> None:
    await engine.advance(1_000)
    await ticked(engine)
    await engine.at(START_MS + 500)
    await ticked(engine, force=True)
    head = await header(engine)
    assert (head.now_ms, head.fields["offset"]) == (START_MS + 1_000, "0")


async def test_the_feed_survives_a_step_back(engine: Engine) -> None:
    """An entry older than the last one would be an error after the writes before it."""
    await engine.submit()
    await engine.at(START_MS - 60_000)
    await engine.submit()
    entries = (await engine.call(c.ReadEventsArgs(partition=P0))).entries
    assert [entry.event_id for entry in entries] == [f"{START_MS}-0", f"{START_MS}-1"]


# ---- the header --------------------------------------------------------------------------------------


async def test_the_header_is_shown_as_it_stands(engine: Engine) -> None:
    await engine.submit(delay_until=START_MS + 5)
    head = await header(engine)
    assert (head.now_ms, head.timers_n, head.events_n, head.fields["v"]) == (START_MS, 1, 1, "1")
    assert head.fields["created_at"] == str(START_MS)


async def test_a_partition_is_initialised_once_and_for_good(engine: Engine) -> None:
    import msgspec

    counts = msgspec.json.encode(StoreConfig(fp=2)).decode()
    assert await engine.call(c.InitPartitionArgs(partition=P0, counts=counts)) == c.AlreadyInitialised("initialised")
    assert await engine.refused("revision_conflict", c.InitPartitionArgs(partition=P0, counts="other")) == counts


async def test_a_benchmark_call_does_nothing(engine: Engine) -> None:
    before = await engine.command("DBSIZE")
    assert await engine.call(c.NoopArgs(partition=P0, data=b"x" * 100)) == c.Done()
    assert await engine.command("DBSIZE") == before


# ---- the outbox --------------------------------------------------------------------------------------


async def owe(engine: Engine, row: str = "u.1.1") -> None:
    """What a transition that owes something writes; no function does yet."""
    await engine.command("HSET", f"ff:{P0}:outbox", row, "{b:0} settle some body")
    await engine.command("ZADD", f"ff:{P0}:timers", START_MS, f"outbox:{row}")


async def test_an_owed_row_is_answered_until_it_is_acknowledged(engine: Engine) -> None:
    await owe(engine)
    for _ in range(2):
        (row,) = (await ticked(engine, force=True))[0].owed
        assert (row.row, row.target, row.kind, row.body) == ("u.1.1", "{b:0}", "settle", "some body")
        assert (await ticked(engine, force=True))[0].owed == []
        await engine.advance(1_000)
    ack = c.AckOutboxArgs(partition=P0, items=[c.OutboxRef("u.1.1"), c.OutboxRef("none")])
    assert await engine.call(ack) == c.Acknowledged(1)
    assert await engine.call(ack) == c.Acknowledged(0)
    await engine.advance(1_000)
    assert (await ticked(engine, force=True))[0].owed == []


async def test_a_claim_does_not_take_an_owed_row_from_the_ticker(engine: Engine) -> None:
    """It runs due timers too, but has nobody to answer the row to."""
    await owe(engine)
    for _ in range(3):
        await engine.claim()
    assert len((await ticked(engine, force=True))[0].owed) == 1
    await engine.call(c.AckOutboxArgs(partition=P0, items=[c.OutboxRef("u.1.1")]))
