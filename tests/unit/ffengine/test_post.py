"""The post office against a backend of plain lists: who gets what, what is acknowledged, what is brought on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ffcore import limits
from ffcore.args import Args
from ffcore.backend import settled
from ffcore.contracts.mail import DeliverArgs, Delivered, Wake
from ffcore.contracts.upkeep import Acknowledged, AckOutboxArgs, Outbox, OutboxRef, OwedRow, ReadOutboxArgs
from ffcore.errors import EngineError, Unavailable
from ffcore.ids import PartitionKey
from ffengine.post import ROUNDS_N, Mail, Post

FP, B0, B1, Q0 = (PartitionKey(key) for key in ("{fp:0}", "{b:0}", "{b:1}", "{q:0}"))


class Store:
    """Keeps what is owed, and answers deliveries with what a test wants."""

    def __init__(self) -> None:
        self.owed: dict[str, OwedRow] = {}
        self.delivered: list[DeliverArgs] = []
        self.acknowledged: list[list[str]] = []
        self.reads_n = 0
        self.wakes: dict[PartitionKey, list[Wake]] = {}
        self.left: list[str] = []
        self.away: set[PartitionKey] = set()
        self.gate: asyncio.Event | None = None

    def owe(self, target: PartitionKey, n: int = 1, kind: str = "settle") -> list[OwedRow]:
        rows = [
            OwedRow(f"{target}/{at}/{at + 1}", target, kind, "a body")
            for at in range(len(self.owed), len(self.owed) + n)
        ]
        self.owed.update({row.row: row for row in rows})
        return rows

    async def call(self, args: Args[Any]) -> Any:
        await asyncio.sleep(0)
        if isinstance(args, ReadOutboxArgs):
            self.reads_n += 1
            if self.gate is not None:
                await self.gate.wait()
            if args.partition in self.away:
                raise Unavailable("away")
            return Outbox(list(self.owed.values())[: args.limit])
        if isinstance(args, AckOutboxArgs):
            self.acknowledged.append([ref.row for ref in args.items])
            return Acknowledged(sum(self.owed.pop(ref.row, None) is not None for ref in args.items))
        assert isinstance(args, DeliverArgs)
        self.delivered.append(args)
        if args.partition in self.away:
            raise Unavailable("away")
        left = [OutboxRef(letter.row) for letter in args.items if letter.row in self.left]
        return Delivered(0, self.wakes.get(args.partition, []), left)

    async def call_all(self, batch: Sequence[Args[Any]]) -> list[Any | EngineError]:
        return settled(await asyncio.gather(*(self.call(args) for args in batch), return_exceptions=True))


def post_of(store: Store) -> Post:
    return Post(store)  # type: ignore[arg-type]


async def test_each_receiver_gets_its_rows_in_one_call_and_all_are_acknowledged() -> None:
    store = Store()
    rows = [*store.owe(B0), *store.owe(Q0), *store.owe(B0)]
    assert await post_of(store).deliver(FP, rows) == 3
    assert [(call.partition, call.source, len(call.items)) for call in store.delivered] == [(B0, FP, 2), (Q0, FP, 1)]
    assert sorted(row for some in store.acknowledged for row in some) == sorted(row.row for row in rows)
    assert store.owed == {}


async def test_rows_of_a_receiver_that_is_away_stay_owed() -> None:
    store = Store()
    store.away = {B1}
    rows = [*store.owe(B0), *store.owe(B1)]
    assert await post_of(store).deliver(FP, rows) == 1
    assert list(store.owed) == [rows[1].row]


async def test_rows_of_a_kind_that_the_receiver_does_not_know_stay_owed() -> None:
    store = Store()
    rows = store.owe(B0, 2)
    store.left = [rows[0].row]
    assert await post_of(store).deliver(FP, rows) == 1
    assert list(store.owed) == [rows[0].row]


async def test_what_is_answered_is_brought_on_from_whoever_answered_it() -> None:
    store = Store()
    store.wakes = {B0: [Wake(FP, "verify", "x"), Wake(Q0, "note", "y")], FP: [Wake(B0, "verified", "z")]}
    store.wakes[Q0] = []
    await post_of(store).deliver(FP, store.owe(B0))
    first, second, third, *_ = store.delivered
    assert (first.partition, first.source) == (B0, FP)
    assert (second.partition, second.source, second.items[0].row) == (FP, B0, "")
    assert (third.partition, third.source, third.items[0].kind) == (Q0, B0, "note")
    assert len(store.delivered) <= 2 * ROUNDS_N


async def test_partitions_that_wake_each_other_do_so_for_some_rounds_and_no_more() -> None:
    store = Store()
    store.wakes = {B0: [Wake(FP, "ping", "x")], FP: [Wake(B0, "pong", "y")]}
    await post_of(store).deliver(FP, store.owe(B0))
    assert len(store.delivered) == ROUNDS_N
    assert len(store.acknowledged) == 1


async def test_a_wake_of_a_tick_is_not_acknowledged() -> None:
    store = Store()
    assert await post_of(store).deliver(B0, [OwedRow("", FP, "verify", "x")]) == 0
    assert store.acknowledged == []
    assert store.delivered[0].items[0].row == ""


async def test_many_rows_go_in_calls_of_a_size() -> None:
    store = Store()
    await post_of(store).deliver(FP, store.owe(B0, 450))
    assert [len(call.items) for call in store.delivered] == [200, 200, 50]
    assert [len(some) for some in store.acknowledged] == [200, 200, 50]


async def test_an_outbox_is_emptied_page_by_page_for_as_long_as_that_helps() -> None:
    store = Store()
    store.owe(B0, 250)
    assert await post_of(store).empty(FP, limit=limits.PAGE_N) == 250
    assert store.reads_n == 3
    store.owe(B1, limits.PAGE_N)
    store.away, store.reads_n = {B1}, 0
    assert await post_of(store).empty(FP, limit=limits.PAGE_N) == 0
    assert store.reads_n == 1


async def test_calls_of_one_turn_are_followed_by_one_round_and_later_ones_by_another() -> None:
    store = Store()
    store.gate = asyncio.Event()
    mail = Mail(post_of(store))
    for _ in range(5):
        mail.poke(FP)
    await asyncio.sleep(0.01)
    assert store.reads_n == 1
    for _ in range(5):
        mail.poke(FP)  # while the round is under way: what it has read may be older
    store.gate.set()
    await mail.settle()
    assert store.reads_n == 2
    await mail.close()


async def test_a_round_that_fails_leaves_the_rows_to_the_ticker() -> None:
    store = Store()
    store.away = {FP}
    mail = Mail(post_of(store))
    mail.poke(FP)
    await mail.settle()
    store.away = set()
    store.owe(B0)
    mail.poke(FP)
    await mail.settle()
    assert store.owed == {}


async def test_a_round_under_way_ends_with_its_worker() -> None:
    store = Store()
    store.gate = asyncio.Event()
    mail = Mail(post_of(store))
    mail.poke(FP)
    await asyncio.sleep(0.01)
    await mail.close()
    store.gate.set()
    await asyncio.sleep(0.01)
    assert store.delivered == []
