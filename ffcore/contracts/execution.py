"""Executions: create, complete, fail, cancel, delay, wait for children, expire, replay, tag.

A worker's call carries its fence; without one the source must be an operator's (`fence_required`).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row
from ffcore.contracts.failure import RetryScheduled
from ffcore.contracts.lease import CancelSource, LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    FlowId,
    LaneId,
    LeaseEpoch,
    LeaseId,
    Namespace,
    TimestampMs,
)
from ffcore.policy import ExecutionPolicy
from ffcore.states import PublicState

_NOW: frozenset[str] = frozenset({"now"})


# ---- create ------------------------------------------------------------------------------------------


class Created(Outcome, tag="created"):
    execution_id: ExecutionId
    public_state: PublicState


class Duplicate(Outcome, tag="duplicate"):
    """The same request was made before; this is the execution it made."""

    execution_id: ExecutionId


CreateExecutionResult = Created | Duplicate


class CreateExecutionArgs(Args[CreateExecutionResult]):
    """Create an execution. Sending it again is harmless: the id and the digest tell a repeat from a conflict."""

    OFF_WIRE: ClassVar[frozenset[str]] = frozenset({"now", "partition_id", "idempotency_key"})

    execution_id: ExecutionId
    namespace: Namespace
    lane_id: LaneId
    execution_kind: str
    """The task's name."""
    input_payload: bytes
    payload_encoding: str | None = None
    priority: int = 0
    creator_identity: str = ""
    idempotency_key: str | None = None
    """For the records: the id is already a function of the key (`ids.keyed_id`)."""
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    policy: ExecutionPolicy | None = None
    delay_until: TimestampMs | None = None
    execution_deadline_at: TimestampMs | None = None
    partition_id: int | None = None
    """The seed passes it; here the id says it, and another number is refused."""
    now: TimestampMs = TimestampMs(0)
    digest: bytes
    """First 16 bytes of sha256 over task, payload, lane, flow."""
    version: int = 1
    """Of the task."""
    fairness_key: str | None = None
    admission: str | None = None
    """What it must be admitted by, as lines (`ffcore.admission`); None: nothing but the budgets its policy names."""

    def __post_init__(self) -> None:
        ids.check_id(self.execution_id)
        ids.check_name(self.namespace, "namespace")
        ids.check_name(self.lane_id, "lane")
        ids.check_name(self.execution_kind, "task")
        checks.size(self.input_payload, "input_payload", limits.PAYLOAD_BYTES)
        checks.text(self.payload_encoding, "payload_encoding", limits.NAME_BYTES)
        checks.priority(self.priority)
        checks.size(self.creator_identity, "creator_identity", limits.KEY_BYTES, code="invalid_input")
        checks.text(self.idempotency_key, "idempotency_key")
        checks.tags(self.tags)
        checks.whole(self.delay_until, "delay_until")
        checks.whole(self.execution_deadline_at, "execution_deadline_at")
        if self.partition_id not in (None, ids.partition_index(ids.partition_of(self.execution_id))):
            raise InvalidArgument(f"partition_id {self.partition_id!r} is not the one in {self.execution_id}")
        if len(self.digest) != 16:
            raise InvalidArgument(f"digest has {len(self.digest)} bytes, not 16")
        checks.whole(self.version, "version", 0, checks.U32_MAX)
        checks.text(self.fairness_key, "fairness_key")
        checks.size(self.admission, "admission", limits.ADMISSION_BYTES, code="invalid_input")
        if self.policy is not None:
            self._inherit(self.policy)

    def _inherit(self, policy: ExecutionPolicy) -> None:
        # The policy may say priority and delay too. Two different wishes are a mistake, not a precedence.
        for name, unset in (("priority", 0), ("delay_until", None)):
            mine, theirs = getattr(self, name), getattr(policy, name)
            if theirs in (unset, mine):
                continue
            if mine != unset:
                raise InvalidArgument(f"{name} is {mine} here and {theirs} in the policy: give it once")
            msgspec.structs.force_setattr(self, name, theirs)


# ---- complete ----------------------------------------------------------------------------------------


class Completed(Outcome, tag="completed"):
    execution_id: ExecutionId
    public_state: PublicState
    replayed: bool = False
    """The call was made before; this is its answer again."""


CompleteExecutionResult = Completed


class CompleteExecutionArgs(Args[CompleteExecutionResult]):
    """End the execution with a result."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    result_payload: bytes | None = None
    result_encoding: str | None = None
    source: CancelSource = CancelSource.LEASE_HOLDER
    """Read only without a fence."""
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.size(self.result_payload, "result_payload", limits.RESULT_BYTES)
        checks.text(self.result_encoding, "result_encoding", limits.NAME_BYTES)


# ---- cancel ------------------------------------------------------------------------------------------


class Cancelled(Outcome, tag="cancelled"):
    execution_id: ExecutionId
    public_state: PublicState


class CancelRequested(Outcome, tag="cancel_requested"):
    """It is running: its worker is told and has until then; after that it is fenced off."""

    execution_id: ExecutionId
    grace_until: TimestampMs


class CancelAlreadyTerminal(Outcome, tag="already_terminal"):
    """It had ended before, as `public_state` says."""

    execution_id: ExecutionId
    public_state: PublicState


CancelExecutionResult = Cancelled | CancelRequested | CancelAlreadyTerminal


class CancelExecutionArgs(Args[CancelExecutionResult]):
    """Cancel: at once what is not running, after a grace what is. An operator override does not wait."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    reason: str
    source: CancelSource = CancelSource.LEASE_HOLDER
    lease_id: LeaseId | None = None
    lease_epoch: LeaseEpoch | None = None
    attempt_id: AttemptId | None = None
    now: TimestampMs = TimestampMs(0)
    grace_ms: int | None = None
    """How long a running attempt may take to end itself; None: `limits.CANCEL_GRACE_MS`."""

    def __post_init__(self) -> None:
        checks.size(self.reason, "reason", limits.REASON_BYTES, code="invalid_input")
        checks.span_ms(self.grace_ms, "grace_ms")
        given = [part is not None for part in (self.lease_id, self.lease_epoch, self.attempt_id)]
        if any(given) and not all(given):
            raise InvalidArgument(
                "a fence is lease_id, lease_epoch and attempt_id together: give all or none",
                code="partial_fence_triple",
            )


# ---- delay and wait for children ---------------------------------------------------------------------


class Delayed(Outcome, tag="delayed"):
    """`public_state` is cancelled when a cancel was requested: the lease's end was the cancel."""

    execution_id: ExecutionId
    public_state: PublicState


DelayExecutionResult = Delayed


class DelayExecutionArgs(Args[DelayExecutionResult]):
    """Give the lease back and continue the same attempt later."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    delay_until: TimestampMs
    source: CancelSource = CancelSource.LEASE_HOLDER
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.whole(self.delay_until, "delay_until")


class Moved(Outcome, tag="moved"):
    """`public_state` is cancelled when a cancel was requested: the lease's end was the cancel."""

    execution_id: ExecutionId
    public_state: PublicState


class ChildrenDone(Outcome, tag="already_satisfied"):
    """As many as it would wait for have ended: the lease goes on."""


class Child(Row):
    execution_id: ExecutionId


MoveToWaitingChildrenResult = Moved | ChildrenDone


class MoveToWaitingChildrenArgs(Args[MoveToWaitingChildrenResult]):
    """Give the lease back until the children have ended: those that are named, or all that have not."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex
    source: CancelSource = CancelSource.LEASE_HOLDER
    now: TimestampMs = TimestampMs(0)
    need: int = 0
    """So many of these must end; 0: all of them."""
    children: list[Child] = msgspec.field(default_factory=list[Child])

    def __post_init__(self) -> None:
        checks.whole(self.need, "need", 0, limits.ROWS_N)
        if len(self.children) > limits.ROWS_N:
            raise InvalidArgument(f"{len(self.children)} children; wait for {limits.ROWS_N} at a time, or name none")
        if self.children and self.need > len(self.children):
            raise InvalidArgument(f"need is {self.need} of {len(self.children)} named children")


# ---- change priority ---------------------------------------------------------------------------------


class Changed(Outcome, tag="changed"):
    execution_id: ExecutionId


ChangePriorityResult = Changed


class ChangePriorityArgs(Args[ChangePriorityResult]):
    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    new_priority: int
    lane_id: LaneId
    now: TimestampMs = TimestampMs(0)

    def __post_init__(self) -> None:
        checks.priority(self.new_priority, "new_priority")


# ---- expire ------------------------------------------------------------------------------------------


class Expired(Outcome, tag="expired"):
    execution_id: ExecutionId


class AlreadyTerminal(Outcome, tag="already_terminal"):
    pass


ExpireExecutionResult = Expired | AlreadyTerminal | RetryScheduled
"""An attempt that ran out of time is a failure, which the policy may retry."""


class ExpireExecutionArgs(Args[ExpireExecutionResult]):
    """End an execution by time."""

    execution_id: ExecutionId
    expire_reason: str
    """`attempt_timeout` may be retried; `execution_deadline`, or any other word, is final."""

    def __post_init__(self) -> None:
        checks.text(self.expire_reason, "expire_reason", 64)


# ---- replay ------------------------------------------------------------------------------------------


class Replayed(Outcome, tag="replayed"):
    public_state: PublicState


ReplayExecutionResult = Replayed


class ReplayExecutionArgs(Args[ReplayExecutionResult]):
    """Run a finished execution again, with counters, deadline and edges starting clean."""

    OFF_WIRE: ClassVar[frozenset[str]] = _NOW

    execution_id: ExecutionId
    now: TimestampMs = TimestampMs(0)
    mode: Literal["resume", "fresh"] = "resume"
    """`resume` keeps the outcomes of finished steps, `fresh` clears them."""

    def __post_init__(self) -> None:
        if self.mode not in ("resume", "fresh"):
            raise InvalidArgument(f"mode {self.mode!r:.40}: use resume or fresh")


# ---- tags --------------------------------------------------------------------------------------------


class TagsOk(Outcome, tag="ok"):
    count: int


SetExecutionTagsResult = TagsOk


class SetExecutionTagsArgs(Args[SetExecutionTagsResult]):
    execution_id: ExecutionId
    tags: dict[str, str]

    def __post_init__(self) -> None:
        checks.tags(self.tags)


SetFlowTagsResult = TagsOk


class SetFlowTagsArgs(Args[SetFlowTagsResult]):
    flow_id: FlowId
    tags: dict[str, str]

    def __post_init__(self) -> None:
        checks.tags(self.tags)
