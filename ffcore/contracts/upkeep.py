"""Upkeep: first write of a store, ticking, purging, the header. This engine's own."""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, PartitionKey, ScheduleId, TimestampMs


class Initialised(Outcome, tag="initialised"):
    """The partition's header was written."""


class AlreadyInitialised(Outcome, tag="already_satisfied"):
    reason: str


class InitPartitionArgs(Args[Initialised | AlreadyInitialised]):
    """Create a partition's header. `counts` names all counts of the store and is fixed for good."""

    partition: PartitionKey
    counts: str


class Done(Outcome, tag="ok"):
    """Nothing to tell."""


class NoopArgs(Args[Done]):
    """What one call costs, for benchmarks beside the real ones."""

    partition: PartitionKey
    data: bytes


class OwedRow(Row):
    """An effect a partition owes to another: deliver it, then acknowledge `row`."""

    row: str
    target: PartitionKey
    kind: str
    body: str


class DueSchedule(Row):
    """A schedule whose instant has come: whoever ticked fires it (`FireSchedulesArgs`)."""

    schedule_id: ScheduleId
    due_ms: int
    spec: str


class TickedPartition(Row):
    partition: PartitionKey
    mine: bool
    """False: another ticker looks after it until `next_due_ms`."""
    done: int
    reaped: int
    next_due_ms: TimestampMs
    now_ms: TimestampMs
    owed: list[OwedRow]
    """Undelivered outbox rows; answered again each second until acknowledged."""
    settings: int = 0
    """Revision up to which this partition has what operators set; of ``{w:0}``, the revision of the store."""
    schedules: list[DueSchedule] = []  # noqa: RUF012 - msgspec copies it
    """Due now; answered again until fired."""


class Ticked(Outcome, tag="ticked"):
    partitions: list[TickedPartition]


class TickArgs(Args[Ticked]):
    """Do what is due, at most `limit` timers and `limit` purges over all partitions named, and promise to look again.

    What is left is due at once: `next_due_ms` is not later than `now_ms`, so ask again.
    """

    partitions: list[PartitionKey]
    ticker: str
    limit: int = 200
    force: bool = False


class OutboxRef(Row):
    row: str


class Outbox(Outcome, tag="outbox"):
    rows: list[OwedRow]


class ReadOutboxArgs(Args[Outbox]):
    """What a partition owes to others: up to `limit` rows, oldest first where there are no more than that."""

    partition: PartitionKey
    limit: int = 100


class Acknowledged(Outcome, tag="acknowledged"):
    count: int


class AckOutboxArgs(Args[Acknowledged]):
    """Say that outbox rows have been delivered."""

    partition: PartitionKey
    items: list[OutboxRef]


class Purged(Outcome, tag="purged"):
    execution_ids: list[ExecutionId]
    remaining: int
    """Records that match and are left (for a dry run: all that match)."""


class PurgeArgs(Args[Purged]):
    """Forget terminal executions of a lane and outcome that ended before a time; bounded, repeatable."""

    partition: PartitionKey
    lane_id: str
    outcome: str
    before_ms: TimestampMs
    limit: int = 200
    dry_run: bool = False


class Header(Outcome, tag="header"):
    now_ms: TimestampMs
    fields: dict[str, str]
    timers_n: int
    reap_n: int
    events_n: int


class ReadHeaderArgs(Args[Header]):
    """A partition's header as it stands."""

    partition: PartitionKey
