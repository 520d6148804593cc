"""Reads: one execution whole, outcomes of many, pages, history, leases. This engine's own requests.

The seed's views (`ExecutionSnapshot`, `ExecutionInfo`, `ExecutionContext`) are built from `StoredExecution`
by `ffcore/views.py`.
"""

from __future__ import annotations

import msgspec

from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, LaneId, PartitionKey, TimestampMs


class StoredExecution(Outcome, tag="execution"):
    """A record as the store keeps it; field names are those of `lua/shared/record.lua`."""

    execution_id: ExecutionId
    now_ms: TimestampMs
    lane_id: LaneId
    worker_instance_id: str
    fields: dict[str, str]
    tags: dict[str, str]
    texts: dict[str, str]
    """reason, category, traceback, cancel_reason, cancelled_by, progress, blocking, creator."""
    policy: bytes
    payload: bytes
    result: bytes
    attempts: list[str]
    """Closed attempts, oldest first: ``index attempt_id worker started_at ended_at how category``."""


class ReadExecutionArgs(Args[StoredExecution]):
    execution_id: ExecutionId
    parts: str = ""
    """Any of payload, result, attempts, joined by commas."""


class ExecutionOutcome(Row):
    execution_id: ExecutionId
    state: str
    """A stored state; `unknown`: no such record; `later`: the answer was full, ask for it again."""
    result: bytes
    result_encoding: str
    reason: str
    category: str
    traceback: str
    attempts: int
    has_result: bool


class ExecutionRef(Row):
    execution_id: ExecutionId


class Outcomes(Outcome, tag="outcomes"):
    items: list[ExecutionOutcome]


class ReadOutcomesArgs(Args[Outcomes]):
    """States and results of up to 200 executions of one partition."""

    partition: PartitionKey
    items: list[ExecutionRef]


class Awaiting(Outcome, tag="awaiting"):
    states: list[str]
    """Stored state of each; `unknown` where there is no record."""


class AwaitArgs(Args[Awaiting]):
    """Read states and register a client to be told of the end of those that have not ended.

    A registration lasts 60 s. The notice is one message on `Backend.client_channel(partition, client)`:
    lines of ``<uuid> <state>``.
    """

    partition: PartitionKey
    client: str
    items: list[ExecutionRef]


class ListedExecution(Row):
    execution_id: ExecutionId
    lane_id: LaneId
    task: str
    state: str
    reason: str
    next: str
    started: bool
    priority: int
    created_at: TimestampMs
    ended_at: TimestampMs
    attempts: int
    namespace: str
    worker_instance_id: str


class ExecutionsPage(Outcome, tag="page"):
    items: list[ListedExecution]
    cursor: str
    """Empty at the end. A page may be short, even empty, and still have a cursor."""


class ListExecutionsArgs(Args[ExecutionsPage]):
    """A page of executions by stored state, newest first within a lane and state.

    States are stored words; `ready` stands for ready, reclaimable and revoked. None given: all.
    """

    partition: PartitionKey
    lane_id: LaneId | None = None
    states: list[str] = msgspec.field(default_factory=list[str])
    tag: str | None = None
    """``key=value``"""
    namespace: str | None = None
    cursor: str | None = None
    limit: int = 100


class HistoryEntry(Row):
    event_id: str
    text: str
    """``uuid from to epoch attempt lane worker reason``"""


class History(Outcome, tag="history"):
    entries: list[HistoryEntry]
    cursor: str
    more: bool = False
    """The feed goes on behind the cursor; a page may be short, even empty, and still say so."""


class ExecutionHistoryArgs(Args[History]):
    """An execution's transitions, oldest first, as far as the partition's feed still holds them."""

    execution_id: ExecutionId
    after: str | None = None
    limit: int = 100


class ListedLease(Row):
    execution_id: ExecutionId
    lane_id: LaneId
    worker_instance_id: str
    lease_id: str
    lease_epoch: int
    attempt_index: int
    lease_expires_at: TimestampMs
    heard: bool
    """The holder has made a call since it claimed."""


class Leases(Outcome, tag="leases"):
    items: list[ListedLease]
    now_ms: TimestampMs
    cursor: str = ""
    """Empty at the end. A page may be short, even empty, and still have a cursor."""


class ListLeasesArgs(Args[Leases]):
    """Running executions, the one whose lease runs out first on top."""

    partition: PartitionKey
    lane_id: LaneId | None = None
    expired_only: bool = False
    limit: int = 100
    cursor: str | None = None


class CapabilitySet(Row):
    lane_id: LaneId
    digest: str
    tokens: str
    """Sorted, joined by commas."""


class CapabilitySets(Outcome, tag="capability_sets"):
    revision: int
    sets: list[CapabilitySet]


class ListCapabilitySetsArgs(Args[CapabilitySets]):
    """The capability sets that jobs of these lanes require: what a worker matches its own tokens against."""

    partition: PartitionKey
    lanes: list[str]


class EventEntry(Row):
    event_id: str
    fields: list[str]
    """Flat: ``e`` and a transition, ``o`` and an operator's action; the texts are those of `lua/shared/events.lua`."""


class Events(Outcome, tag="events"):
    entries: list[EventEntry]
    now_ms: TimestampMs


class ReadEventsArgs(Args[Events]):
    """The partition's feed after a cursor (``-``: from the oldest kept). A cursor older than what was
    trimmed is refused, `cursor_expired`, with the oldest id that is left."""

    partition: PartitionKey
    after: str = "-"
    limit: int = 100


class Eligible(Outcome, tag="eligible"):
    execution_ids: list[ExecutionId]
    """Best first: by priority, then turn."""
