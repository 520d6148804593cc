"""Firing against a backend of plain lists: one call for what is due, and nothing lost where the store refuses."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ffcore import limits
from ffcore.contracts.schedule import FiredMany, FireSchedulesArgs, ItemFired
from ffcore.contracts.upkeep import DueSchedule, TickedPartition
from ffcore.errors import EngineError, StoreFull, Unavailable
from ffcore.ids import PartitionKey, TimestampMs
from ffcore.schedules import Spec, run_id, schedule_id
from ffengine import Ticker
from ffengine.schedules import Fired, fire
from tests.unit.ffengine import test_tick as tick

P0 = PartitionKey("{fp:0}")
HOUR = 3_600_000
NOW = 500 * HOUR + 5
EVERY = Spec(every_ms=HOUR, start_ms=0).pack()
ALL = Spec(every_ms=HOUR, start_ms=0, catch_up="all").pack()


class Store:
    def __init__(self, *states: str, next_at_ms: int = 0, error: EngineError | None = None) -> None:
        self.calls: list[FireSchedulesArgs] = []
        self._states, self._next_at_ms, self._error = states, next_at_ms, error

    async def call(self, args: Any) -> Any:
        self.calls.append(args)
        if self._error is not None:
            raise self._error
        states = self._states or ("fired",) * len(args.items)
        return FiredMany([ItemFired(cast("Any", state), "") for state in states], self._next_at_ms)


def due(n: int, spec: str = EVERY, due_ms: int = NOW - 5) -> DueSchedule:
    return DueSchedule(schedule_id("default", f"s{n}", 1), due_ms, spec)


async def fired(store: Store, *rows: DueSchedule) -> Fired:
    ticked = TickedPartition(P0, True, 0, 0, TimestampMs(0), TimestampMs(NOW), [], 0, list(rows))
    return await fire(cast("Any", store), ticked)


async def test_what_is_due_is_fired_in_one_call() -> None:
    store = Store(next_at_ms=NOW + 7)
    assert await fired(store, due(1), due(2)) == Fired(2, NOW + 7)
    [call] = store.calls
    assert call.partition == P0
    assert [(row.instant_ms, row.next_ms) for row in call.items] == [(NOW - 5, NOW - 5 + HOUR)] * 2
    assert [row.execution_id for row in call.items] == [run_id(due(n).schedule_id, NOW - 5) for n in (1, 2)]


async def test_what_was_missed_shares_the_call_evenly() -> None:
    """One that has missed a thousand instants must not keep the others waiting."""
    store = Store()
    await fired(store, *(due(n, ALL, 0) for n in range(10)))
    assert len(store.calls[0].items) == limits.FIRES_N
    store = Store()
    await fired(store, *(due(n, ALL, 0) for n in range(limits.FIRES_N)))
    assert len(store.calls[0].items) == limits.FIRES_N


async def test_what_somebody_else_fired_first_is_not_counted() -> None:
    store = Store("moved", "fired", "gone", "error", "put_off")
    assert await fired(store, *(due(n) for n in range(5))) == Fired(3, None)


async def test_a_full_store_leaves_everything_due() -> None:
    assert await fired(Store(error=StoreFull("1000", code="store_full")), due(1)) == Fired(0, None)


async def test_a_store_that_is_away_is_the_tickers_to_wait_for() -> None:
    with pytest.raises(Unavailable):
        await fired(Store(error=Unavailable("gone")), due(1))


async def test_one_that_cannot_be_read_keeps_no_other_from_firing() -> None:
    store = Store()
    await fired(store, due(1, '{"moon":"full"}'), due(2))
    broken, sound = store.calls[0].items
    assert (broken.next_ms, broken.execution_id) == (broken.due_ms, None)
    assert sound.execution_id is not None


# ---- the ticker --------------------------------------------------------------------------------------------


class Ticked(tick.Store):
    """A store in which one schedule of partition 1 is due at the first tick."""

    def __init__(self, state: str, next_at_ms: int) -> None:
        super().__init__(lambda partition, n: {"schedules": [due(1)] if partition == "{fp:1}" and n == 1 else []})
        self.fires: list[FireSchedulesArgs] = []
        self._state, self._next_at_ms = state, next_at_ms

    async def call(self, args: Any) -> Any:
        self.fires.append(args)
        return FiredMany([ItemFired(cast("Any", self._state), "")], self._next_at_ms)


@pytest.mark.parametrize(("state", "after_s"), [("fired", 0.0), ("moved", 0.01)])
async def test_a_ticker_fires_what_is_due_and_comes_back_when_the_next_one_is(
    monkeypatch: pytest.MonkeyPatch, state: str, after_s: float
) -> None:
    """What is due already is asked for at once, unless nothing moved: then not in a tight loop."""
    for next_at_ms, pause_s in ((tick.NOW_MS + 120, 0.12), (tick.NOW_MS - 5, after_s), (0, 0.9)):
        store = Ticked(state, next_at_ms)
        ticker = Ticker(cast("Any", store), "t1")
        clock = tick.Clock(monkeypatch, ticker, 2)
        await ticker.run()
        assert [call.partition for call in store.fires] == ["{fp:1}"]
        assert max(0.0, clock.paused[0]) == pytest.approx(pause_s)
        assert ticker.fired_n == (state == "fired")
