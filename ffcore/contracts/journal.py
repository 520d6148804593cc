"""The journal: steps a handler has recorded, read back, forgotten by a new run. This engine's own; the seeds have none.

How an entry is packed and what its key is made of: `ffcore.steps`.
"""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.contracts.batch import Fence
from ffcore.ids import ExecutionId, TimestampMs

# ---- record a step ------------------------------------------------------------------------------------


class StepFrame(Row):
    """A frame of the attempt's stream that travels with a step."""

    frame_type: str
    mode: str
    payload: bytes
    encoding: str | None = None
    correlation_id: str | None = None


class StepRecorded(Outcome, tag="recorded"):
    seq: int
    """The entry's number; the first is 1."""
    lease_expires_at: TimestampMs
    cancel_until: int
    """Until when a requested cancel waits for this attempt; 0: none is requested."""


class StepReplayed(Outcome, tag="replayed"):
    """The key stands already, with this entry (`ffcore.steps.JournalEntry.parse`): its result is the step's."""

    entry: bytes
    lease_expires_at: TimestampMs
    cancel_until: int


class RecordStepArgs(Args[StepRecorded | StepReplayed]):
    """Record what a step came to, and renew the lease in the same call.

    status: ``ok`` (value: the result) and ``fatal`` (value: the packed failure) are final; ``intent`` says that a step
    which must not run twice begins, ``error`` that one failed and will be tried again (value: count, space, reason).
    """

    execution_id: ExecutionId
    fence: Fence
    step: str
    """The step's key (`ffcore.steps.step_key`)."""
    kind: str = "step"
    """step, sleep, gate, wait or spawn."""
    name: str
    status: str = "ok"
    value: bytes | None = None
    version: int = 1
    """The version of the task that runs; the journal keeps the one that began it."""
    lease_ttl_ms: int = 0
    """Renew for so long from now; 0: leave the lease alone. A renewal that would gain next to nothing is left out."""
    progress_pct: int | None = None
    progress_message: str | None = None
    spends: str | None = None
    """What the step has spent: a line ``<budget id> <key> <amounts>`` for each budget (`ffcore.admission`). Charged
    with the record, once; the key is the budget's to know a repeat by."""
    frames: list[StepFrame] = []  # noqa: RUF012 - msgspec copies it


# ---- read ----------------------------------------------------------------------------------------------


class JournalPage(Outcome, tag="journal"):
    began: str
    """The run the journal began in and the version of the task that began it, with a space between; empty: none."""
    total: int
    entries: list[bytes]


class ReadJournalArgs(Args[JournalPage]):
    """Entries from a number on, as many as one page of 64 KiB holds, and at least one."""

    execution_id: ExecutionId
    from_seq: int = 1
    limit: int = 1000


# ---- begin anew ----------------------------------------------------------------------------------------


class Continued(Outcome, tag="continued"):
    execution_id: ExecutionId
    run: int
    state: str
    """The stored state it came to: `ready`; `cancelled` where a cancel had been requested, `blocked` where a pause."""
    replayed: bool


class ContinueAsArgs(Args[Continued]):
    """End this run and begin the next with another payload, an empty journal and clean counters, under the same id."""

    execution_id: ExecutionId
    fence: Fence
    payload: bytes
    payload_encoding: str | None = None


# ---- versions ------------------------------------------------------------------------------------------


class VersionPinned(Outcome, tag="pinned"):
    version: int


class PinVersionArgs(Args[VersionPinned]):
    """A worker takes an execution no code has begun yet: from now on it is of this version of its task."""

    execution_id: ExecutionId
    fence: Fence
    version: int


# ---- what nobody asked for -----------------------------------------------------------------------------


class UnclaimedNoted(Outcome, tag="noted"):
    """The feed tells of it."""


class NoteUnclaimedArgs(Args[UnclaimedNoted]):
    """A handler that is about to end well has not asked for some recorded steps: an event says so, for people."""

    execution_id: ExecutionId
    fence: Fence
    count: int
    names: str
    """Some of them, as people read it; cut to 200 bytes."""
