"""Suspensions: an execution gives up its lease and slot until a condition holds or time runs out.

`SuspendArgs` is what callers use; `SuspendExecutionArgs` is the seed's older, wire-level form of the same.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar, NewType

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row, veiled
from ffcore.contracts.attempt import Handle
from ffcore.contracts.condition import Composite, ResumeCondition, TimeoutOnly, check_leaf
from ffcore.contracts.lease import AlreadySatisfied, LeaseFence
from ffcore.contracts.waitpoint import PendingWaitpoint, WaitpointHmac, check_waitpoint_key
from ffcore.errors import InvalidArgument
from ffcore.ids import AttemptIndex, ExecutionId, SuspensionId, TimestampMs, WaitpointId, WaitpointToken
from ffcore.states import BlockingReason, PublicState

IdempotencyKey = NewType("IdempotencyKey", str)
"""Names one suspend call; sending it again answers the first outcome. Empty is the same as none."""

WAITPOINTS_N = limits.WAITPOINTS_N
TIMEOUT_PAST_MS = limits.TIMEOUT_PAST_MS


class ResumeTarget(StrEnum):
    RUNNABLE = "runnable"


class TimeoutBehavior(StrEnum):
    FAIL = "fail"
    CANCEL = "cancel"
    EXPIRE = "expire"
    AUTO_RESUME_WITH_TIMEOUT_SIGNAL = "auto_resume_with_timeout_signal"
    ESCALATE = "escalate"

    def as_wire_str(self) -> str:
        return self.value


class SuspensionReasonCode(StrEnum):
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_OPERATOR_REVIEW = "waiting_for_operator_review"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_BUDGET = "paused_by_budget"
    STEP_BOUNDARY = "step_boundary"
    MANUAL_PAUSE = "manual_pause"

    def as_wire_str(self) -> str:
        return self.value

    @property
    def blocking_reason(self) -> BlockingReason:
        """The reason a suspended execution shows."""
        return _SHOWN.get(self) or BlockingReason(self.value)


_SHOWN = {
    SuspensionReasonCode.WAITING_FOR_OPERATOR_REVIEW: BlockingReason.PAUSED_BY_OPERATOR,
    SuspensionReasonCode.MANUAL_PAUSE: BlockingReason.PAUSED_BY_OPERATOR,
    SuspensionReasonCode.PAUSED_BY_BUDGET: BlockingReason.WAITING_FOR_BUDGET,
    SuspensionReasonCode.STEP_BOUNDARY: BlockingReason.WAITING_FOR_SIGNAL,
}


class SuspensionRequester(StrEnum):
    WORKER = "worker"
    OPERATOR = "operator"
    POLICY = "policy"
    SYSTEM_TIMEOUT_POLICY = "system_timeout_policy"

    def as_wire_str(self) -> str:
        return self.value


class ResumePolicy(msgspec.Struct, frozen=True, kw_only=True):
    resume_target: ResumeTarget = ResumeTarget.RUNNABLE
    consume_matched_signals: bool = True
    retain_signal_buffer_until_closed: bool = False
    resume_delay_ms: int | None = None
    close_waitpoint_on_resume: bool = True

    def __post_init__(self) -> None:
        checks.span_ms(self.resume_delay_ms, "resume_delay_ms")


# ---- suspend -----------------------------------------------------------------------------------------


class Fresh(msgspec.Struct, frozen=True, tag_field="type", tag="fresh"):
    """A waitpoint made by the suspend call itself."""

    waitpoint_id: WaitpointId
    waitpoint_key: str


class UsePending(msgspec.Struct, frozen=True, tag_field="type", tag="use_pending"):
    """A waitpoint opened before; signals it has kept count."""

    waitpoint_id: WaitpointId


WaitpointBinding = Fresh | UsePending


def fresh() -> Fresh:
    waitpoint_id = ids.uuid7()
    return Fresh(WaitpointId(waitpoint_id), f"wpk:{waitpoint_id}")


def use_pending(pending: PendingWaitpoint) -> UsePending:
    return UsePending(pending.waitpoint_id)


@veiled("waitpoint_token")
class AdditionalWaitpointBinding(Row):
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointHmac


@veiled("waitpoint_token")
class SuspendOutcomeDetails(Row):
    """The primary waitpoint's identity, and those of the others."""

    suspension_id: SuspensionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointHmac
    additional_waitpoints: list[AdditionalWaitpointBinding] = msgspec.field(
        default_factory=list[AdditionalWaitpointBinding]
    )


class Suspended(Outcome, tag="suspended"):
    """The lease is gone; `handle` stands for the suspended attempt."""

    details: SuspendOutcomeDetails
    handle: Handle
    replayed: bool = False
    """The call was sent before; this is what it was answered then."""


class SuspensionAlreadySatisfied(Outcome, tag="already_satisfied"):
    """Signals kept by a pending waitpoint were enough: the lease is still held, go on."""

    details: SuspendOutcomeDetails
    replayed: bool = False


SuspendOutcome = Suspended | SuspensionAlreadySatisfied


class SuspendArgs(Args[SuspendOutcome]):
    """Suspend until the condition holds. The first waitpoint is the primary one."""

    suspension_id: SuspensionId
    waitpoints: list[WaitpointBinding]
    resume_condition: ResumeCondition
    resume_policy: ResumePolicy = ResumePolicy()
    reason_code: SuspensionReasonCode
    requested_by: SuspensionRequester = SuspensionRequester.WORKER
    timeout_at: TimestampMs | None = None
    timeout_behavior: TimeoutBehavior = TimeoutBehavior.FAIL
    continuation_metadata_pointer: str | None = None
    now: TimestampMs = TimestampMs(0)
    """The caller's clock. 0: unknown; the store then checks the timeout alone."""
    idempotency_key: IdempotencyKey | None = None
    at: ExecutionId
    fence: LeaseFence | None = None
    """Required of a worker; an operator's suspension has none."""

    COMPOSED: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_bindings()
        self._check_condition()
        checks.whole(self.timeout_at, "timeout_at")
        if self.timeout_at is not None and 0 < self.timeout_at + TIMEOUT_PAST_MS < self.now:
            raise InvalidArgument(f"timeout_at {self.timeout_at} is more than 10 minutes before now {self.now}")
        if isinstance(self.resume_condition, TimeoutOnly) and self.timeout_at is None:
            raise InvalidArgument("timeout_only_without_deadline: TimeoutOnly needs timeout_at")
        if self.requested_by is SuspensionRequester.WORKER and self.fence is None:
            raise InvalidArgument("a worker suspends with its fence", code="fence_required")

    @property
    def primary(self) -> WaitpointBinding:
        return self.waitpoints[0]

    def _check_bindings(self) -> None:
        if not 1 <= len(self.waitpoints) <= WAITPOINTS_N:
            raise InvalidArgument(f"waitpoints_empty: give 1 to {WAITPOINTS_N} waitpoints, not {len(self.waitpoints)}")
        if any(not isinstance(extra, Fresh) for extra in self.waitpoints[1:]):
            raise InvalidArgument("only the first waitpoint may be a pending one: the others must be Fresh")
        if len({binding.waitpoint_id for binding in self.waitpoints}) != len(self.waitpoints):
            raise InvalidArgument("a waitpoint is bound twice")
        keys = [binding.waitpoint_key for binding in self.waitpoints if isinstance(binding, Fresh)]
        for key in keys:
            check_waitpoint_key(key)
        if len(set(keys)) != len(keys):
            raise InvalidArgument("two waitpoints have the same key", code="invalid_waitpoint_key")

    def _check_condition(self) -> None:
        if not isinstance(self.resume_condition, Composite):
            check_leaf(self.resume_condition)
        named = set(self.resume_condition.referenced_waitpoint_keys())
        bound = {binding.waitpoint_key for binding in self.waitpoints if isinstance(binding, Fresh)}
        pending_n = len(self.waitpoints) - len(bound)
        if len(self.waitpoints) > 1:
            # A pending waitpoint's key is known to the store only, so one name may be its.
            if not bound <= named or len(named - bound) != pending_n:
                raise InvalidArgument(f"the condition names {sorted(named)}, the waitpoints are {sorted(bound)}: "
                                      "both must be the same set")
        elif pending_n == 0 and not named <= bound:
            raise InvalidArgument(f"the condition names {sorted(named - bound)}, which no waitpoint has")


# ---- the seed's wire-level form ----------------------------------------------------------------------


@veiled("waitpoint_token")
class ExecutionSuspended(Outcome, tag="suspended"):
    suspension_id: SuspensionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken


@veiled("waitpoint_token")
class SuspendAlreadySatisfied(Outcome, tag="already_satisfied"):
    suspension_id: SuspensionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken


SuspendExecutionResult = ExecutionSuspended | SuspendAlreadySatisfied


class SuspendExecutionArgs(Args[SuspendExecutionResult]):
    """The same in the seed's words: one waitpoint; condition and policy as their JSON."""

    COMPOSED: ClassVar[bool] = True

    execution_id: ExecutionId
    fence: LeaseFence | None
    """Required; None is refused `fence_required`."""
    attempt_index: AttemptIndex
    suspension_id: SuspensionId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    reason_code: str
    requested_by: str
    resume_condition_json: str
    resume_policy_json: str
    continuation_metadata_pointer: str | None = None
    timeout_at: TimestampMs | None = None
    use_pending_waitpoint: bool = False
    timeout_behavior: str = "fail"

    def __post_init__(self) -> None:
        check_waitpoint_key(self.waitpoint_key)
        checks.whole(self.timeout_at, "timeout_at")
        if self.timeout_behavior not in [*TimeoutBehavior, "auto_resume"]:
            raise InvalidArgument(f"timeout_behavior {self.timeout_behavior!r:.40}: use {', '.join(TimeoutBehavior)}")


# ---- as the store takes it ---------------------------------------------------------------------------


class SuspendWaitpoint(Row):
    """One waitpoint of a suspension: opened by the call (`fresh`), or pending since before."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    """Of a pending one: the name the condition has for it; empty when it names none."""
    kid: str | None = None
    token_digest: str | None = None
    """SHA-256 of the token, hex. None with kid None: no token opens it."""
    fresh: bool = True


class BoundWaitpoint(Row):
    waitpoint_id: WaitpointId
    waitpoint_key: str
    kid: str
    """Empty: no token opens it, or the store no longer knows it."""


class WireSuspended(Outcome, tag="suspended"):
    suspension_id: SuspensionId
    waitpoints: list[BoundWaitpoint]
    fence: str
    """Of the lease it was given up under."""
    replayed: bool


class WireSatisfied(Outcome, tag="already_satisfied"):
    suspension_id: SuspensionId
    waitpoints: list[BoundWaitpoint]
    fence: str
    replayed: bool


SuspendWireResult = WireSuspended | WireSatisfied


class SuspendWireArgs(Args[SuspendWireResult]):
    """What `SuspendArgs` and `SuspendExecutionArgs` become: the condition compiled, digests in place of tokens."""

    FUNCTION: ClassVar[str] = "ff_suspend"
    WIRE: ClassVar[bool] = True

    execution_id: ExecutionId
    fence: LeaseFence | None = None
    attempt_index: AttemptIndex | None = None
    """Refused `invalid_lease_for_suspend` when another attempt runs; None: any."""
    suspension_id: SuspensionId
    condition: bytes
    """By `ffcore.conditions.compile_condition`, for the waitpoints in their order."""
    reason_code: str
    requested_by: str = SuspensionRequester.WORKER
    timeout_at: TimestampMs | None = None
    timeout_behavior: str = TimeoutBehavior.FAIL
    consume_matched_signals: bool = True
    retain_signal_buffer_until_closed: bool = False
    close_waitpoint_on_resume: bool = True
    resume_delay_ms: int | None = None
    continuation_metadata_pointer: str | None = None
    idempotency_key: str | None = None
    waitpoints: list[SuspendWaitpoint]


# ---- what a handler waits with -----------------------------------------------------------------------


class WaitSuspended(Outcome, tag="suspended"):
    """The lease is gone: the handler stops here, and runs again when the wait is over."""

    until: TimestampMs
    """When its time is over; 0: never."""


class WaitSatisfied(Outcome, tag="already_satisfied"):
    """The wait is over already; the lease is kept."""

    value: bytes
    """As the journal has it: `parse_wait` reads it."""


WaitResult = WaitSuspended | WaitSatisfied


class WaitedWaitpoint(Row):
    waitpoint_id: WaitpointId


class WaitArgs(Args[WaitResult]):
    """Suspend at a step of the handler, on waitpoints it has opened before; on none, to sleep."""

    execution_id: ExecutionId
    fence: LeaseFence
    suspension_id: SuspensionId
    step: str
    """Its key in the journal, where what it was resumed with will stand."""
    step_name: str
    version: int = 1
    """Of the task that runs."""
    condition: bytes
    timeout_ms: int | None = None
    timeout_behavior: TimeoutBehavior = TimeoutBehavior.FAIL
    reason_code: SuspensionReasonCode = SuspensionReasonCode.WAITING_FOR_SIGNAL
    close_waitpoints: bool = True
    """Otherwise, and after a timeout that the handler is told of, they stay open: what comes later is kept for the next
    wait."""
    waitpoints: list[WaitedWaitpoint] = msgspec.field(default_factory=list[WaitedWaitpoint])

    def __post_init__(self) -> None:
        checks.span_ms(self.timeout_ms, "timeout_ms")
        if len(self.waitpoints) > WAITPOINTS_N:
            raise InvalidArgument(f"{len(self.waitpoints)} waitpoints; one wait names {WAITPOINTS_N} at most")


# ---- resume and expire -------------------------------------------------------------------------------


class Resumed(Outcome, tag="resumed"):
    public_state: PublicState


ResumeExecutionResult = Resumed


class ResumeExecutionArgs(Args[ResumeExecutionResult]):
    """An operator lets an execution go on. A pause is taken back; without one, what waits for an operator is met, and a
    suspension in which nothing does ends as it stands."""

    execution_id: ExecutionId
    trigger_type: str = "signal"
    """``operator``: an operator's word, which meets what waits for one, and ends a wait in which nothing does.
    ``signal`` and ``auto_resume`` end the wait as it stands."""
    resume_delay_ms: int = 0

    REPEATABLE: ClassVar[bool] = False
    """Sent twice it may take a pause back first, and then end a wait that nobody meant."""

    def __post_init__(self) -> None:
        if self.trigger_type not in ("signal", "operator", "auto_resume"):
            raise InvalidArgument(f"trigger_type {self.trigger_type!r:.40}: use signal, operator or auto_resume")
        checks.span_ms(self.resume_delay_ms, "resume_delay_ms")


class SuspensionExpired(Outcome, tag="expired"):
    behavior_applied: str


ExpireSuspensionResult = SuspensionExpired | AlreadySatisfied


class ExpireSuspensionArgs(Args[ExpireSuspensionResult]):
    """Apply the timeout behaviour of a suspension whose time is over; harmless when it is not."""

    execution_id: ExecutionId


# ---- pause -------------------------------------------------------------------------------------------


class Paused(Outcome, tag="paused"):
    """It will not start, or go on, before it is resumed."""


class PausePending(Outcome, tag="pause_pending"):
    """It runs; once its lease ends without ending it, it is paused."""


class AlreadyPaused(Outcome, tag="already_paused"):
    pass


PauseExecutionResult = Paused | PausePending | AlreadyPaused


class PauseExecutionArgs(Args[PauseExecutionResult]):
    """Keep one execution from running until `ResumeExecutionArgs`."""

    execution_id: ExecutionId
    reason: str

    def __post_init__(self) -> None:
        checks.size(self.reason, "reason", limits.REASON_BYTES, code="invalid_input")
