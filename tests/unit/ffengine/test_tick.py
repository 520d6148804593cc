"""The ticker against a backend of plain lists: when it looks, when it leaves a partition to another, how it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.contracts.settings import ApplySettingsArgs, ListSettingsArgs, SettingsApplied, SettingsPage, SettingsRow
from ffcore.contracts.upkeep import TickArgs, Ticked, TickedPartition
from ffcore.errors import EngineBug, EngineError, Unavailable, rejection
from ffcore.ids import PartitionKey, TimestampMs
from ffengine import Ticker
from tests.integration.proxy import until

NOW_MS = 1_000_000_000_000


class Store:
    """Answers ticks with what a test wants and remembers who asked for what."""

    config = StoreConfig(fp=2)
    url, grouped = "fake://", True

    def __init__(self, answer: Callable[[str, int], dict[str, Any] | EngineError]) -> None:
        self._answer = answer
        self.calls: list[TickArgs] = []
        self.hear: Callable[[str, bytes], None] = lambda channel, data: None
        self.gap: Callable[[], None] | None = None
        self.closed = 0

    def ticker_channel(self, partition: PartitionKey) -> str:
        return f"tick {partition}"

    async def subscribe(
        self, channels: Sequence[str], on_message: Callable[[str, bytes], None], on_gap: Any = None
    ) -> Store:
        self.hear, self.gap = on_message, on_gap
        return self

    async def close(self) -> None:
        self.closed += 1

    async def call_all(self, batch: Sequence[Args[Any]]) -> list[Any]:
        out: list[Any] = []
        for args in batch:
            assert isinstance(args, TickArgs)
            self.calls.append(args)
            rows: list[TickedPartition] = []
            failed: EngineError | None = None
            for partition in args.partitions:
                said = self._answer(partition, len(self.calls))
                if isinstance(said, EngineError):
                    failed = said
                else:
                    facts = {
                        "mine": True,
                        "done": 0,
                        "reaped": 0,
                        "next_due_ms": TimestampMs(NOW_MS + 1000),
                        "owed": [],
                        **said,
                    }
                    rows.append(TickedPartition(partition=partition, now_ms=TimestampMs(NOW_MS), **facts))
            out.append(failed if failed is not None else Ticked(rows))
        return out


class Clock:
    """Time that passes only while the ticker pauses; `paused` remembers for how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ticker: Ticker, rounds: int) -> None:
        self.paused: list[float] = []

        async def pause(seconds: float) -> None:
            self.paused.append(seconds)
            time[0] += max(0.0, seconds)
            await asyncio.sleep(0)
            if len(self.paused) >= rounds:
                ticker.stop()

        time = [100.0]
        monkeypatch.setattr(ticker, "_pause", pause)
        monkeypatch.setattr(ticker, "_clock", lambda: time[0])


async def ran(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, int], dict[str, Any] | EngineError], rounds: int = 1
) -> Any:
    store = Store(answer)
    ticker = Ticker(store, "t1", limit=50)  # type: ignore[arg-type]
    clock = Clock(monkeypatch, ticker, rounds)
    await ticker.run()
    return store, ticker, clock


async def test_one_round_is_one_call_over_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    store, _, clock = await ran(monkeypatch, lambda partition, n: {})
    assert [list(call.partitions) for call in store.calls] == [["{fp:0}", "{fp:1}", "{b:0}", "{q:0}", "{w:0}"]]
    assert (store.calls[0].ticker, store.calls[0].limit) == ("t1", 50)
    assert clock.paused == [pytest.approx(0.9)]
    assert store.closed == 1


async def test_it_comes_back_when_the_earliest_thing_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(partition: str, n: int) -> dict[str, Any]:
        return {"next_due_ms": NOW_MS + (120 if partition == "{fp:1}" else 700)}

    store, _, clock = await ran(monkeypatch, answer, rounds=2)
    assert clock.paused[0] == pytest.approx(0.12)
    assert list(store.calls[1].partitions) == ["{fp:1}"]


async def test_a_full_round_is_followed_at_once_by_another_of_what_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(partition: str, n: int) -> dict[str, Any]:
        return {"done": 50 if partition == "{fp:0}" and n < 3 else 0}

    store, ticker, clock = await ran(monkeypatch, answer, rounds=3)
    assert clock.paused[:2] == [0.0, 0.0]
    assert [list(call.partitions) for call in store.calls[1:]] == [["{fp:0}"], ["{fp:0}"]]
    assert ticker.done_n == 100


async def test_what_is_due_and_not_done_is_not_asked_for_in_a_tight_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, clock = await ran(monkeypatch, lambda partition, n: {"next_due_ms": NOW_MS - 5})
    assert clock.paused[0] >= 0.01


async def test_anothers_partition_is_looked_at_when_the_promise_lapses_and_a_little_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, _, clock = await ran(monkeypatch, lambda partition, n: {"mine": False, "next_due_ms": NOW_MS + 400})
    assert 0.4 < clock.paused[0] <= 0.4 + 0.8


async def test_a_message_about_something_sooner_shortens_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(lambda partition, n: {})
    ticker = Ticker(store, "t1")  # type: ignore[arg-type]
    running = asyncio.create_task(ticker.run())
    await until(lambda: len(store.calls) >= 1)
    store.hear("tick {fp:1}", str(NOW_MS).encode())  # due by now
    await until(lambda: len(store.calls) >= 2)
    assert list(store.calls[1].partitions) == ["{fp:1}"]
    ticker.stop()
    await running


async def test_a_message_that_comes_while_a_call_is_under_way_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer may be older than the message; it must not put the next look off."""

    def answer(partition: str, n: int) -> dict[str, Any]:
        if n == 2 and partition == "{fp:1}":
            store.hear("tick {fp:1}", str(NOW_MS + 30).encode())
        return {}

    store = Store(answer)
    ticker = Ticker(store, "t1")  # type: ignore[arg-type]
    clock = Clock(monkeypatch, ticker, 2)
    await ticker.run()
    assert clock.paused[1] < 0.1


async def test_only_whose_promise_holds_acts_on_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(lambda partition, n: {"mine": False})
    ticker = Ticker(store, "t1")  # type: ignore[arg-type]
    clock = Clock(monkeypatch, ticker, 1)
    await ticker.run()
    before = min(watch.at for watch in ticker._watches.values())
    store.hear("tick {fp:1}", str(NOW_MS).encode())
    assert min(watch.at for watch in ticker._watches.values()) == before
    assert clock.paused[0] > 0.9


async def test_a_gap_in_the_messages_makes_it_look_at_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(lambda partition, n: {})
    ticker = Ticker(store, "t1")  # type: ignore[arg-type]
    running = asyncio.create_task(ticker.run())
    await until(lambda: len(store.calls) >= 1)
    assert store.gap is not None
    store.gap()
    await until(lambda: len(store.calls) >= 2)
    assert len(store.calls[1].partitions) == 5
    ticker.stop()
    await running


async def test_a_store_that_is_away_is_asked_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(partition: str, n: int) -> dict[str, Any] | EngineError:
        return Unavailable("gone") if n <= 4 else {}

    store, ticker, clock = await ran(monkeypatch, answer, rounds=5)
    assert len(store.calls) == 5
    assert ticker.rounds_n == 1
    assert clock.paused[3] > clock.paused[0]
    assert max(clock.paused) <= 2.0


async def test_a_node_of_a_cluster_that_is_away_costs_the_partitions_of_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each partition is a call of its own there; those that answered are not asked again before their time."""
    monkeypatch.setattr(Store, "grouped", False)

    def answer(partition: str, n: int) -> dict[str, Any] | EngineError:
        return Unavailable("away") if partition == "{fp:0}" else {}

    store, _, clock = await ran(monkeypatch, answer, rounds=2)
    assert [call.partitions for call in store.calls] == [
        ["{fp:0}"], ["{fp:1}"], ["{b:0}"], ["{q:0}"], ["{w:0}"], ["{fp:0}"],
    ]  # fmt: skip
    assert max(clock.paused) < 0.2, "the one that was away is asked again soon"


async def test_what_waiting_does_not_mend_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineBug):
        await ran(monkeypatch, lambda partition, n: EngineBug("drift"))


async def test_forgetting_leaves_the_server_a_third_of_its_time() -> None:
    """A backlog of purges is due at once and never urgent; due timers of the same call are."""
    ticker = Ticker(Store(lambda partition, n: {}), "t1", clock=lambda: 100.0)  # type: ignore[arg-type]
    row = TickedPartition(PartitionKey("{fp:0}"), True, 0, 28, TimestampMs(NOW_MS), TimestampMs(NOW_MS), [])
    ticker._take(row, later=0.1, took=0.03)
    assert ticker._watches[row.partition].at == pytest.approx(100.015)
    urgent = TickedPartition(PartitionKey("{fp:1}"), True, 5, 28, TimestampMs(NOW_MS), TimestampMs(NOW_MS), [])
    ticker._take(urgent, later=0.1, took=0.03)
    assert ticker._watches[urgent.partition].at == pytest.approx(100.0)


# ---- what operators have set -----------------------------------------------------------------------------


class Registry(Store):
    """A store at revision 3 whose partition 1 has heard of nothing behind 1."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__(lambda partition, n: {"settings": self.reached.get(partition, 3)})
        self.reached = {"{fp:1}": 1}
        self.refuses, self.applied, self.asked = refuses, list[ApplySettingsArgs](), 0

    async def call(self, args: Any) -> Any:
        if isinstance(args, ListSettingsArgs):
            self.asked += 1
            rows = [SettingsRow(f"lane:{n}", n, TimestampMs(NOW_MS), {"state": "paused"}) for n in (2, 3)]
            return SettingsPage([row for row in rows if row.revision > args.after_revision], 3)
        assert isinstance(args, ApplySettingsArgs)
        self.applied.append(args)
        if args.name == self.refuses:
            raise rejection("too_many_names", "4096 lanes are in use")
        self.reached[args.partition] = args.revision
        return SettingsApplied(True, args.revision)


async def kept_up(monkeypatch: pytest.MonkeyPatch, store: Registry, rounds: int = 3) -> Registry:
    ticker = Ticker(store, "t1", limit=50)  # type: ignore[arg-type]
    Clock(monkeypatch, ticker, rounds)
    await ticker.run()
    return store


async def test_a_partition_that_is_behind_is_told_what_was_set_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    store = await kept_up(monkeypatch, Registry())
    assert [(a.partition, a.name, a.revision, a.since) for a in store.applied] == [
        ("{fp:1}", "lane:2", 2, 1), ("{fp:1}", "lane:3", 3, 2),
    ]  # fmt: skip
    assert store.asked == 1, "and then it is up to date"


async def test_a_record_that_is_refused_is_not_tried_again_before_the_next_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = await kept_up(monkeypatch, Registry(refuses="lane:3"), rounds=5)
    assert [a.name for a in store.applied] == ["lane:2", "lane:3"]


async def test_only_whose_turn_it_is_tells_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Registry()
    store._answer = lambda partition, n: {"settings": store.reached.get(partition, 3), "mine": partition == "{w:0}"}
    await kept_up(monkeypatch, store)
    assert store.applied == []
