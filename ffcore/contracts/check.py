"""The checker: what is not as docs/model.md says, one page of a partition at a time. This engine's own."""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.ids import ExecutionId, PartitionKey, TimestampMs


class Wrong(Row):
    """One violation."""

    invariant: str
    """`I1` to `I22` of docs/model.md."""
    id: str
    """An execution, or the partition."""
    detail: str
    remedy: str
    """What `RepairArgs` would do about it; empty: nothing can be done from here."""
    object: str
    """What to name in `RepairArgs`; empty: the execution."""


class SeenRecord(Row):
    """What stays comparable from pass to pass."""

    execution_id: ExecutionId
    state: str
    created_at: TimestampMs
    at: TimestampMs
    """When it ended, for one that has."""
    lease_epoch: int
    lease_id: str
    run: int
    result: str
    """A digest of a short result, the length of a longer one, empty for none."""


class SeenEvent(Row):
    """A transition of the feed; the last of an execution in its page also says what the record said then."""

    event_id: str
    text: str
    """``uuid from to epoch attempt lane lease_id reason``"""
    state: str
    """Empty for all but the last in the page; `gone`: there is no record."""
    lease_epoch: int
    held: bool
    """It was blocked, and among those a hold had stopped."""


class SeenSize(Row):
    """What one terminal record adds to the bytes its lane keeps."""

    uuid: str
    lane: str
    size: int


class KeptBytes(Row):
    lane: str
    counted: int


class OpenKid(Row):
    """Open waitpoints of one execution whose tokens a kid signed."""

    uuid: str
    kid: str
    n: int


class KidCount(Row):
    """What the partition counts of them."""

    kid: str
    """Empty: how many were ever opened, by any kid."""
    n: int


class FlowCounts(Row):
    """What a flow of many members counts."""

    uuid: str
    counts: dict[str, int]
    """By counter: queued, delayed, ... skipped, and resolving."""


class SeenMember(Row):
    """A member of such a flow."""

    uuid: str
    flow: str
    counter: str
    resolving: bool
    """It has ended, and its edges to others are still being resolved."""


class PageFacts(Row):
    now_ms: TimestampMs
    hwm: TimestampMs
    """The latest time the partition has used."""
    first_event: str
    last_event: str
    feed_full: bool
    """Older entries may have been cut off."""
    library: str
    """Digest of the library that answered."""


class Checked(Outcome, tag="checked"):
    wrong: list[Wrong]
    cursor: str
    """Where to go on; empty at the end."""
    looked: int
    """Keys, members and transitions looked at."""
    seen: list[SeenRecord]
    events: list[SeenEvent]
    sizes: list[SeenSize]
    bytes: list[KeptBytes]
    """On the first and the last page: what each lane with a byte limit counts."""
    facts: PageFacts
    kids: list[OpenKid] = []  # noqa: RUF012 - msgspec copies it
    kid_counts: list[KidCount] = []  # noqa: RUF012 - msgspec copies it
    """On the first and the last page."""
    flow_counts: list[FlowCounts] = []  # noqa: RUF012 - msgspec copies it
    flow_members: list[SeenMember] = []  # noqa: RUF012 - msgspec copies it


class CheckArgs(Args[Checked]):
    """One page of a partition's check; `limit` bounds how long it holds the server (200: about 3 ms; at most 500)."""

    partition: PartitionKey
    cursor: str | None = None
    limit: int = 200
    remember: bool = False
    """Answer `seen` as well."""
    feed_after: str | None = None
    """The event up to which the caller knows the feed; the same for all pages of a pass."""


class Repaired(Outcome, tag="repaired"):
    """It is as its record says, and so is everything that follows from the record."""

    left: list[str]
    """Always empty."""


class NothingWrong(Outcome, tag="nothing_wrong"):
    """It has been put right meanwhile, or it never was wrong."""


class BeyondRepair(Outcome, tag="beyond_repair"):
    """Nothing that is left says how it was."""

    left: list[str]
    """What is still wrong with that execution."""


class RepairArgs(Args[Repaired | NothingWrong | BeyondRepair]):
    """Put one violation right, by what the record says; looks again first."""

    partition: PartitionKey
    object: str
    """`Wrong.object`, or the execution's id where that is empty."""
    invariant: str
