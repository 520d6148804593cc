"""Schedules: what is submitted when, fired by whoever ticks. This engine's own; the seeds have none.

The store keeps which instant is next and that each is fired once; instants are computed here in Python
(`ffcore.schedules`), because cron expressions and time zones are.
"""

from __future__ import annotations

from typing import Literal

from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, PartitionKey, ScheduleId, TimestampMs


class SchedulePut(Outcome, tag="schedule_put"):
    what: Literal["created", "updated", "unchanged"]
    revision: int
    state: str


class PutScheduleArgs(Args[SchedulePut]):
    """Create a schedule, or bring it to another definition; the same digest changes nothing."""

    schedule_id: ScheduleId
    name: str
    namespace: str
    spec: str
    """When, as `ffcore.schedules.Spec` packs it; the store does not read it."""
    digest: str
    """Of the whole definition."""
    lane_id: str
    execution_kind: str
    version: int = 1
    priority: int = 0
    policy: bytes | None = None
    payload: bytes
    payload_encoding: str | None = None
    tags: bytes = b""
    fairness_key: str | None = None
    admission: str | None = None
    deadline_ms: int | None = None
    """Each run ends as expired so long after it was made."""
    due_ms: int
    """The first instant; 0: there is none."""
    at_ms: int
    """When that is acted on: the same, or later by its jitter."""
    keep_due: bool = False
    """Its instants are those it had: the one that is next stays."""
    paused: bool = False
    """How it begins; a schedule that exists stays as it is."""
    expected_revision: int = 0
    """Of the one that is replaced; 0: there is none. Else `revision_conflict`."""


class Firing(Row):
    """From one instant of a schedule to the next, with the run of one or without."""

    schedule_id: ScheduleId
    due_ms: int
    """The instant that was answered as due. If another is next by now, nothing happens."""
    next_ms: int
    """The instant after; 0: there is none. `due_ms` itself: nothing but another look at `next_at_ms`."""
    next_at_ms: int
    instant_ms: int
    """Which instant the run is for; of several that were missed, the last."""
    label: str
    """The same as text, for the run's tag ``schedule.due``."""
    execution_id: ExecutionId | None = None
    """None: no run."""


class ItemFired(Row):
    state: Literal["fired", "duplicate", "passed", "put_off", "moved", "gone", "error"]
    """duplicate: the run of this instant was there already, as from a backfill. moved: somebody else came first."""
    detail: str
    """Of an error its code; the instant stays due."""


class FiredMany(Outcome, tag="fired_many"):
    items: list[ItemFired]
    next_at_ms: int
    """When the next schedule of the partition is due; 0: there is none."""


class FireSchedulesArgs(Args[FiredMany]):
    """Fire what a tick has answered as due, each instant once whoever ticks."""

    partition: PartitionKey
    items: list[Firing]


class ScheduleRun(Row):
    execution_id: ExecutionId
    instant_ms: int
    label: str


class ItemRun(Row):
    state: Literal["created", "duplicate", "error"]
    detail: str


class ScheduleRuns(Outcome, tag="schedule_run"):
    items: list[ItemRun]


class RunScheduleArgs(Args[ScheduleRuns]):
    """Make runs for instants of the caller's choice; the schedule's own instants are not touched."""

    schedule_id: ScheduleId
    items: list[ScheduleRun]


class ScheduleChanged(Outcome, tag="schedule_changed"):
    changed: bool
    state: str
    revision: int


class PauseScheduleArgs(Args[ScheduleChanged]):
    """Fire nothing until it is resumed."""

    schedule_id: ScheduleId


class ResumeScheduleArgs(Args[ScheduleChanged]):
    """Go on with this instant; what fell into the pause is passed over."""

    schedule_id: ScheduleId
    due_ms: int
    at_ms: int
    expected_revision: int


class ScheduleRemoved(Outcome, tag="schedule_removed"):
    was_there: bool


class RemoveScheduleArgs(Args[ScheduleRemoved]):
    """Forget a schedule; its runs stay."""

    schedule_id: ScheduleId


class ListedSchedule(Row):
    schedule_id: ScheduleId
    name: str
    namespace: str
    state: str
    """active, paused or ended."""
    spec: str
    task: str
    lane_id: str
    due_ms: TimestampMs
    """The instant that is next; of a paused one the one at which it was paused; 0: none."""
    at_ms: TimestampMs
    """When that is acted on; 0: never."""
    fires: int
    last_ms: TimestampMs
    """The instant of the last run."""
    last_at_ms: TimestampMs
    """When that was made."""
    last_execution_id: str
    created_at: TimestampMs
    changed_at: TimestampMs
    revision: int
    refused: int
    """How often in a row its run has been refused."""
    refusal: str
    """The code of the last refusal."""


class ScheduleRead(Outcome, tag="schedule"):
    row: ListedSchedule
    now_ms: TimestampMs
    digest: str
    payload: bytes
    payload_encoding: str
    version: int
    priority: int
    tags: dict[str, str]
    policy: bytes
    admission: str
    deadline_ms: int
    fairness_key: str


class ReadScheduleArgs(Args[ScheduleRead]):
    """A schedule as it stands, with what it submits."""

    schedule_id: ScheduleId


class SchedulesPage(Outcome, tag="schedules_page"):
    schedules: list[ListedSchedule]
    cursor: str


class ListSchedulesArgs(Args[SchedulesPage]):
    """A page of a partition's schedules, by id."""

    partition: PartitionKey
    cursor: str | None = None
    limit: int = 100
