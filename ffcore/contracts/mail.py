"""Mail between partitions: rows of one partition's outbox, brought to the partition they are for. This engine's own."""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.contracts.upkeep import OutboxRef
from ffcore.ids import PartitionKey


class Letter(Row):
    """One row to deliver. `row` is its name, under which it is applied once; "" is a wake, which may be lost or come
    twice without harm."""

    row: str
    kind: str
    body: str


class Wake(Row):
    """What the receiver tells a third partition: deliver it with row "", from the partition that answered it."""

    target: PartitionKey
    kind: str
    body: str


class Delivered(Outcome, tag="delivered"):
    known: int
    """Rows that had been applied before: as good as applied now."""
    wakes: list[Wake]
    left: list[OutboxRef]
    """Rows of a kind this release does not know: not applied, so not to be acknowledged."""


class DeliverArgs(Args[Delivered]):
    """Apply rows that partition `source` owes to `partition`, each once however often it is delivered."""

    partition: PartitionKey
    source: PartitionKey
    items: list[Letter]
