"""Operator's controls: lanes in numbers, holds, giving a claim back. This engine's own."""

from __future__ import annotations

import msgspec

from ffcore.args import Args, Outcome, Row
from ffcore.contracts.batch import Fence
from ffcore.ids import ExecutionId, LaneId, PartitionKey, TimestampMs


class ListedLane(Row):
    lane_id: LaneId
    state: str
    number: str = ""
    """What stands for it in this partition's event feed; no other lane ever gets it."""


class ListedLanes(Outcome, tag="lanes"):
    lanes: list[ListedLane]
    cursor: str


class ListLanesArgs(Args[ListedLanes]):
    partition: PartitionKey
    after: str | None = None
    limit: int = 100


class LaneHalt(Row):
    """A queue of a lane that may not start anything now."""

    admission: str
    """Its admission set, a digest; "-": the whole lane, for its own quota."""
    kind: str
    """What it waits for: ``b`` a budget, ``q`` or ``l`` a quota."""
    resource: str
    """Which one: the uuid of its id."""
    until: TimestampMs
    """When it is asked again at the latest."""
    detail: str
    jobs: int


class LaneCounts(Outcome, tag="lane_stats"):
    state: str
    counts: dict[str, int]
    """Executions by stored state, in this partition."""
    oldest_created_at: TimestampMs
    """Creation of the job first in line; 0: none."""
    parked: int
    now_ms: TimestampMs
    held: int = 0
    """Ready jobs of halted queues, of 2,000 such queues at most."""
    halts: list[LaneHalt] = msgspec.field(default_factory=list[LaneHalt])
    """Those queues, at most 100 of them."""


class LaneStatsArgs(Args[LaneCounts]):
    partition: PartitionKey
    lane_id: LaneId


class Held(Outcome, tag="held"):
    """Jobs of this kind do not start any more."""


class AlreadyHeld(Outcome, tag="already_held"):
    """It was held before."""


class HoldArgs(Args[Held | AlreadyHeld]):
    """`what` is ``task:<name>`` or ``tag:<key>=<value>``."""

    partition: PartitionKey
    what: str
    reason: str


class ReleasedHold(Outcome, tag="released"):
    """The next ticks let the held jobs go."""


class NotHeld(Outcome, tag="not_held"):
    """There was no such hold."""


class ReleaseArgs(Args[ReleasedHold | NotHeld]):
    partition: PartitionKey
    what: str


class ListedHold(Row):
    what: str
    reason: str


class Holds(Outcome, tag="holds"):
    items: list[ListedHold]


class ListHoldsArgs(Args[Holds]):
    partition: PartitionKey


class Unclaimed(Outcome, tag="unclaimed"):
    execution_id: ExecutionId
    state: str
    """Where it went, a stored state."""


class UnclaimArgs(Args[Unclaimed]):
    """Give a claimed job back without an outcome.

    reason: ``hand_back`` (the worker stops; the same attempt goes on elsewhere), ``refused`` (admission
    said no; the attempt is not used up), ``unknown_task`` (this worker does not know it).
    """

    execution_id: ExecutionId
    fence: Fence
    reason: str
