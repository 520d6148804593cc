"""Batches: many transitions of one partition in one call. This engine's own; the seeds have none.

Folding is what makes the figures: one event, one timer write, one index write per call instead of per
job. Every item is answered on its own, so a refused item costs its neighbours nothing.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from msgspec import Meta

from ffcore.args import Args, Outcome, Row
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    FlowId,
    LeaseEpoch,
    LeaseId,
    PartitionKey,
    TimestampMs,
    partition_of,
)

Fence = Annotated[str, Meta(description="lease_id, lease_epoch and attempt_id joined by one space")]


# ---- create many -------------------------------------------------------------------------------------


class NewExecution(Row):
    """What differs between the executions of one `CreateManyArgs`."""

    execution_id: ExecutionId
    digest: bytes
    """First 16 bytes of sha256 over task, payload, lane, flow: same id and digest is a repeat, same id
    and another digest a conflict."""
    payload: bytes
    fairness_key: str | None = None
    tags: bytes | None = None
    """Tags of this execution as flat pairs, each length-prefixed (`ffcore.wire.pack_pairs`); None: none."""
    admission: str | None = None
    """What it must be admitted by, as lines (`ffcore.admission`); None: nothing."""


class ItemCreated(Row):
    state: Literal["created", "duplicate", "error"]
    detail: str
    """Public state; for `duplicate` too; for `error` the code (`idempotency_conflict`, ...)."""


class CreatedMany(Outcome, tag="created_many"):
    items: list[ItemCreated]


class CreateManyArgs(Args[CreatedMany]):
    """Create up to 200 executions of one task in one partition. Options hold for all of them."""

    partition: PartitionKey
    namespace: str
    lane_id: str
    execution_kind: str
    version: int = 1
    payload_encoding: str | None = None
    priority: int = 0
    creator_identity: str = ""
    policy: bytes | None = None
    delay_until: int | None = None
    execution_deadline_at: int | None = None
    items: list[NewExecution]


# ---- claim a batch -----------------------------------------------------------------------------------


class JournalHead(Row):
    """What a claim tells of the steps an execution has recorded; the rest is read by `ReadJournalArgs`."""

    began: str
    """The run the journal began in and the version of the task that began it, with a space between."""
    total: int
    unpinned: bool
    """No code has begun this run: a worker with any version of the task may (`PinVersionArgs`)."""
    entries: list[bytes]
    """The first entries, as far as 64 KiB hold them."""


class Input(Row):
    """What one upstream returned; None stands for null, and for no result."""

    encoding: str
    result: bytes | None


class Inputs(Row):
    """The payload of an execution that was made without one: what its upstreams returned, in order."""

    shape: str
    """``1``: the value of the only upstream; ``*``: a list."""
    complete: bool
    """Else there are too many to travel along: `ReadUpstreamsArgs` has them."""
    items: list[Input | None]
    """None: an upstream that did not complete, in a group that waits for all of them."""


class ClaimedJob(Row):
    """One leased execution, with all a worker needs to run it.

    ``fence`` is ``f"{lease_id} {lease_epoch} {attempt_id}"``; lease_id is the claim's `claim_id` plus
    ``.`` and the index in this answer, attempt_id the same for a new attempt.
    """

    TEXT: ClassVar[int] = 20
    """This many fields travel as one text, separated by spaces."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId
    attempt_index: AttemptIndex
    attempt_type: str
    lease_expires_at: TimestampMs
    task: str
    lane_id: str
    priority: int
    created_at: TimestampMs
    version: int
    namespace: str
    deadline_at: int
    """0: none."""
    attempt_deadline_at: int
    """When the attempt times out, server time; 0: never."""
    retries: int
    crashes: int
    run: int
    """0 for the first run; replay and ContinueAs raise it."""
    cancel_requested: bool
    flow: str
    """The uuid of the flow it is a member of; ``-``: none."""
    payload: bytes
    payload_encoding: str
    policy: bytes
    """The execution's policy as JSON; empty when it has none."""
    tags: list[str]
    """Flat: key, value, key, value."""
    journal: JournalHead | None = None
    """None: nothing is recorded, and the task's version is the job's."""
    inputs: Inputs | None = None
    """None: the payload is its own."""
    admission: str | None = None
    """What it must be admitted by before it starts, as lines (`ffcore.admission`); its lane's quota is the last one and
    has the word ``lane`` behind it. None: nothing."""

    @property
    def flow_id(self) -> FlowId | None:
        return None if self.flow == "-" else FlowId(f"{partition_of(self.execution_id)}:{self.flow}")


class ClaimedBatch(Outcome, tag="claimed"):
    now_ms: TimestampMs
    """Server time of the answer; a worker's deadlines count from its own clock at the send."""
    jobs: list[ClaimedJob]
    again: bool
    """Leased less than asked for though more is ready (byte limit, holds): ask again at once."""
    sets_revision: int
    """Highest revision of the capability-set table seen; ask `list_capability_sets` when it has risen."""
    parked: bool
    """Nothing to lease: the worker is parked in these partitions and will be rung."""


class ClaimBatchArgs(Args[ClaimedBatch]):
    """Pop and lease up to `limit` jobs, trying the partitions in the order given.

    `claim_id` is ``<worker_instance_id>.<slot>.<n>``: a slot has one claim in flight, n rises by one per
    claim. Sending the same claim_id again (a lost reply) answers the same leases, as far as still held.
    """

    partitions: list[PartitionKey]
    lanes: list[str]
    capability_sets: list[str]
    """Digests of the capability sets this worker can serve; the set without requirements always counts."""
    limit: int
    claim_id: str
    worker_id: str
    worker_instance_id: str
    lease_ttl_ms: int
    park: str | None = None
    """Channel name to ring when work comes (see `Backend.worker_channel`); None: do not park."""


# ---- pass a bell on ------------------------------------------------------------------------------------


class BellPassed(Outcome, tag="passed"):
    """Another parked worker was rung, if there is work and one is parked."""


class PassBellArgs(Args[BellPassed]):
    """A bell reached a worker without room: let another one know. Harmless when repeated."""

    partition: PartitionKey
    lanes: list[str]
    capability_sets: list[str]


# ---- complete many -----------------------------------------------------------------------------------


class Completion(Row):
    execution_id: ExecutionId
    fence: Fence
    result: bytes | None = None
    """None is stored as no result and read back as null."""


class ItemDone(Row):
    state: Literal["completed", "replayed", "error"]
    detail: str
    """For `error` the code (`stale_lease`, `terminal`, ...); otherwise the public state."""


class CompletedMany(Outcome, tag="completed_many"):
    items: list[ItemDone]
    claimed: ClaimedBatch


class CompleteManyArgs(Args[CompletedMany]):
    """Complete jobs of one partition and, in the same call, claim up to `limit` more there (0: none)."""

    partition: PartitionKey
    lanes: list[str]
    capability_sets: list[str]
    limit: int
    claim_id: str
    worker_id: str
    worker_instance_id: str
    lease_ttl_ms: int
    park: str | None = None
    result_encoding: str | None = None
    items: list[Completion]


# ---- renew many --------------------------------------------------------------------------------------


class Renewal(Row):
    execution_id: ExecutionId
    fence: Fence


class ItemRenewed(Row):
    state: Literal["renewed", "error"]
    detail: str
    """`renewed`: empty, or `cancel:<grace_until_ms>` when a cancel is requested. `error`: the code."""
    expires_at_ms: int


class RenewedMany(Outcome, tag="renewed_many"):
    now_ms: TimestampMs
    items: list[ItemRenewed]


class RenewManyArgs(Args[RenewedMany]):
    """Extend leases of one partition; an attempt's timeout and the deadline bound the extension."""

    partition: PartitionKey
    lease_ttl_ms: int
    items: list[Renewal]
